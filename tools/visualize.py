"""Draw a motion prompt panel of a video: frames | differences | attention | prompts.

python tools/visualize.py --video clip.avi --out panel.png                  # MPII's m and n
python tools/visualize.py --video clip.avi --out panel.png --a 11.04 --b -0.59
python tools/visualize.py --video clip.avi --out panel.png --cfg CFG --checkpoint FILE
"""

import argparse
import math
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from vmp.config import load_cfg
from vmp.data import VideoReader
from vmp.data.sampling import clip_frames, clip_span, fill_short
from vmp.models import VideoModel, build_model, load_pretrained
from vmp.models.video_model import take_frames
from vmp.prompts import POWER_NORMS, MotionPrompt
from vmp.utils.cli import run_cli
from vmp.visualization import prompt_panel

# What the authors' site gives as learned on MPII Cooking 2: a = 23.46, b = 0.032; the one of their
# settings that holds the background back.
MPII_M, MPII_N = 0.257, 0.053


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", required=True, help="the video file")
    parser.add_argument("--out", required=True, help="the picture to write: .png, .pdf, ...")
    parser.add_argument("--start", type=int, default=0, help="first frame of the clip")
    parser.add_argument("--short-side", type=int, default=256, help="of height and width, pixels")
    parser.add_argument("--rows", type=int, default=8, help="time steps drawn")
    trained = parser.add_argument_group("a trained prompt")
    trained.add_argument("--checkpoint", help="a checkpoint of a run with PROMPT.ENABLE")
    trained.add_argument("--cfg", help="its config file, such as OUTPUT_DIR/config.yaml")
    trained.add_argument("--pathway", type=int, default=0, help="which, slowest first")
    given = parser.add_argument_group("or a prompt by its numbers")
    given.add_argument("--a", type=float, help="slope, above 9.09 and up to 50, with --b")
    given.add_argument("--b", type=float, help="shift, between -0.6 and 0.6, with --a")
    given.add_argument("--m", type=float, default=MPII_M, help=f"learned m, {MPII_M}: MPII's")
    given.add_argument("--n", type=float, default=MPII_N, help=f"learned n, {MPII_N}: MPII's")
    given.add_argument("--frames", type=int, default=8, help="prompts; one frame more is read")
    given.add_argument("--stride", type=int, default=2, help="distance of two frames read")
    args = parser.parse_args(argv)
    if (args.checkpoint is None) != (args.cfg is None):
        parser.error("--checkpoint and --cfg go together")
    if (args.a is None) != (args.b is None):
        parser.error("--a and --b go together")
    if args.start < 0 or args.frames < 2 or min(args.stride, args.rows, args.short_side) < 1:
        parser.error("--start is at least 0, --frames 2, --stride, --rows and --short-side 1")
    return args


def fixed_prompt(m: float, n: float) -> MotionPrompt:
    """Return a prompt whose m and n are these."""
    return MotionPrompt(POWER_NORMS.get("sigmoid")(m=m, n=n, learnable=False))


def solve(a: float, b: float) -> tuple[float, float]:
    """Return m >= 0 and n that give slope `a` and shift `b` (Eq. 2).

    Raises:
        ValueError: no m and n do.
    """
    paper = POWER_NORMS.get("sigmoid")()
    lowest, highest = paper.alpha / (paper.beta + paper.eps), paper.alpha / paper.eps
    if not (lowest < a <= highest and abs(b) < paper.gamma):
        raise ValueError(
            f"no m and n give a = {a}, b = {b}; a must be above {lowest:.4g} and at most "
            f"{highest:g}, b between {-paper.gamma:g} and {paper.gamma:g}"
        )
    return math.atanh((paper.alpha / a - paper.eps) / paper.beta), math.atanh(b / paper.gamma)


def build_trained(cfg: CfgNode, checkpoint: str) -> VideoModel:
    """Return the model of a run with the weights of its checkpoint.

    Raises:
        ValueError: there is no prompt in the config or in the checkpoint.
    """
    model = build_model(cfg)
    report = load_pretrained(model, checkpoint)
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


def read_clip(video: VideoReader, numbers: list[int], short_side: int) -> Tensor:
    """Return frames (1, 3, T+1, H, W) uint8; past the end of the video the last one is held."""
    frames = video.read(fill_short(numbers, len(video), "hold"), short_side=short_side)
    return torch.as_tensor(frames).movedim(-1, 0).unsqueeze(0)


def main(argv: list[str] | None = None) -> None:
    """Make the prompt, read the clip, draw."""
    args = parse_args(argv)
    with VideoReader(args.video) as video:
        if args.checkpoint:
            cfg = load_cfg(args.cfg)
            model = build_trained(cfg, args.checkpoint)
            prompt = pick_prompt(model, args.pathway)
            numbers = build_numbers(cfg, model.clip_frames, args.start, video.fps)
            clip = read_clip(video, numbers, args.short_side)
            clip = take_frames(clip, model.frames[args.pathway])
        else:
            m, n = (args.m, args.n) if args.a is None else solve(args.a, args.b)
            prompt = fixed_prompt(m, n)
            stop = args.start + (args.frames + 1) * args.stride
            clip = read_clip(video, list(range(args.start, stop, args.stride)), args.short_side)
    figure = prompt_panel(prompt, clip[0], title=Path(args.video).name, max_rows=args.rows)
    figure.savefig(args.out, dpi=100)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_cli(main)
