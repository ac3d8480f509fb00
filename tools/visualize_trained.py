"""Prompts that runs have learned, for `tools/visualize.py`."""

import argparse
from pathlib import Path
from typing import NamedTuple

from fvcore.common.config import CfgNode
from visualize_clip import spaced

from vmp.config import load_cfg
from vmp.data.sampling import clip_frames, clip_span
from vmp.engine.trained import find_checkpoint, find_config
from vmp.models import VideoModel, build_model, load_pretrained
from vmp.prompts import MotionPrompt


class Trained(NamedTuple):
    """A prompt of a run.

    Attributes:
        name: to stand above what it makes.
        prompt: of one pathway.
        numbers: frames of the video that it sees.
    """

    name: str
    prompt: MotionPrompt
    numbers: list[int]


def build_prompts(
    args: argparse.Namespace, fps: float
) -> tuple[list[tuple[str, MotionPrompt]], list[int]]:
    """Return the prompts of --checkpoint, each with its name, and the frames that they see.

    Args:
        args: of the command line.
        fps: of the video.

    Raises:
        ValueError: one of them has no prompt, or they do not see the same frames.
    """
    trained = [
        build_trained(Path(path), args.cfg, args.pathway, args.start, fps)
        for path in args.checkpoint
    ]
    prompts = [(each.name, each.prompt) for each in trained]
    if args.frames or args.stride:
        return prompts, spaced(args)
    first = trained[0]
    for each in trained:
        if each.numbers != first.numbers:
            raise ValueError(
                f"{first.name} sees the frames {first.numbers}, {each.name} {each.numbers}; "
                "give --frames and --stride for all, or draw them one by one"
            )
    return prompts, first.numbers


def build_trained(
    path: Path, cfg_file: str | None, pathway: int, start: int, fps: float
) -> Trained:
    """Return the prompt of a pathway of a run, and the frames it sees from `start` on.

    Args:
        path: a checkpoint, or the OUTPUT_DIR of a run.
        cfg_file: the config, if it is not the run's own.
        pathway: which, slowest first.
        start: first frame of the clip.
        fps: of the video.

    Raises:
        ValueError: there is no checkpoint, no config, or no such prompt.
    """
    checkpoint = find_checkpoint(path)
    cfg = load_cfg(cfg_file or find_config(checkpoint))
    model = load_model(build_model(cfg), checkpoint)
    prompt = pick_prompt(model, pathway)
    frames = model.frames[pathway]
    assert isinstance(frames, slice)  # those of a prompted pathway are
    run = checkpoint.parents[1].name if checkpoint.parent.name == "checkpoints" else checkpoint.stem
    numbers = build_numbers(cfg, model.clip_frames, start, fps)[frames]
    return Trained(f"{run} (λ = {cfg.PROMPT.PENALTY:g})", prompt, numbers)


def load_model(model: VideoModel, checkpoint: Path) -> VideoModel:
    """Return the model with the weights of a checkpoint.

    Raises:
        ValueError: it has no prompt for this model.
    """
    report = load_pretrained(model, str(checkpoint))
    if not any(name.startswith("prompts.") for name in report.used):
        raise ValueError(
            f"{checkpoint} gives no prompt to draw; name the checkpoint and the config of a run "
            "with PROMPT.ENABLE True"
        )
    return model


def pick_prompt(model: VideoModel, pathway: int) -> MotionPrompt:
    """Return the prompt of a pathway.

    Raises:
        ValueError: that pathway has none.
    """
    if str(pathway) not in model.prompts:
        raise ValueError(
            f"pathway {pathway} has no prompt; give --pathway one of {', '.join(model.prompts)}"
        )
    prompt = model.prompts[str(pathway)]
    assert isinstance(prompt, MotionPrompt)
    return prompt


def build_numbers(cfg: CfgNode, num_frames: int, start: int, fps: float) -> list[int]:
    """Return the frames of a clip from `start` on, spaced as the loader spaces them."""
    span = clip_span(num_frames, cfg.DATA.SAMPLING_RATE, fps, cfg.DATA.TARGET_FPS)
    return clip_frames(start, span, num_frames)
