"""What `tools/extract_features.py` does: run a trained model, write what its layers give."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from features_layers import FEATURES, Layer, Taps, build_layers, pick_layers
from features_videos import Job, build_jobs, list_jobs
from fvcore.common.config import CfgNode
from torch import Tensor

from vmp.config import load_cfg
from vmp.data import ClipLoader, DecodeError
from vmp.data.build import build_reader, build_test_view, build_view_counts
from vmp.data.clips import Batch, ClipDataset, OpenVideo, stretch
from vmp.data.loader import EvalPlan
from vmp.data.records import VideoRecord
from vmp.data.sampling import PickFrames
from vmp.engine import launch
from vmp.engine.build import build_device
from vmp.engine.evaluate import computing_with
from vmp.engine.progress import progress_bar
from vmp.engine.provenance import deciding_config
from vmp.engine.step import autocast
from vmp.engine.trained import build_trained, find_checkpoint, find_config
from vmp.engine.transfer import ahead
from vmp.models import VideoModel
from vmp.utils.distributed import barrier, gather_objects, get_rank, get_world_size, is_main
from vmp.utils.files import sha256, sha256_of, write_atomically, write_text
from vmp.utils.weights_file import write_safetensors

ABOUT = "features.json"  # in a folder of features: what all of them are
FACTS, FRAMES = "vmp", "frames"  # in a file: the metadata's key, and the numbers of the frames
# Sections and keys that decide what a layer gives for a video, and those of them that don't.
DECIDING = ("DATA.", "MODEL.", "PROMPT.", "TRAIN.PRECISION")
SECONDARY = tuple(
    f"DATA.{key}"
    for key in ("SPLIT", "QUARANTINE", "FRAME_INDEX_DIR", "DECODE_TIMEOUT", "DECODING_BACKEND")
)


class Task(NamedTuple):
    """What the processes do together.

    Attributes:
        cfg: of the model.
        checkpoint: its weights.
        jobs: all videos.
        layers: what to take.
        views: clips a video, crops a clip.
        pool: as Taps has it.
        out: the folder.
        format: "safetensors" or "npz".
        facts: what all files have in common.
    """

    cfg: CfgNode
    checkpoint: Path
    jobs: list[Job]
    layers: list[Layer]
    views: tuple[int, int]
    pool: str
    out: Path
    format: str
    facts: dict[str, Any]

    def target(self, job: Job) -> Path:
        """Return the file of a video."""
        return self.out / f"{job.name}.{self.format}"


def list_layers(args: argparse.Namespace) -> int:
    """Print the layers of a model and what each gives for one clip."""
    cfg = load_cfg(args.cfg or find_config(find_checkpoint(args.checkpoint)), args.opts)
    layers = build_layers(cfg)
    rows = [(each.name, " x ".join(map(str, each.shape)), each.kind) for each in layers]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, shape, kind in rows:
        print(f"{name:{widths[0]}}  {shape:{widths[1]}}  {kind}")
    return 0


def extract(args: argparse.Namespace) -> int:
    """Write the features of videos.

    Args:
        args: of the command line.

    Returns:
        0 if every video has its file, else 1.

    Raises:
        ValueError: there is nothing to read or no such layer, the checkpoint does not fit, or the
            folder has features of another kind.
    """
    checkpoint = find_checkpoint(args.checkpoint)
    cfg = load_cfg(args.cfg or find_config(checkpoint), args.opts)
    if args.processes and cfg.NUM_GPUS:
        raise ValueError(
            f"--processes is for the CPU, and NUM_GPUS is {cfg.NUM_GPUS}: that many processes"
        )
    task = build_task(cfg, checkpoint, args)
    launch(work, task, num_gpus=cfg.NUM_GPUS, num_processes=args.processes or 1)
    return 0 if all(task.target(job).exists() for job in task.jobs) else 1


# --------------------------------------------------------------------------- from cfg
def build_task(cfg: CfgNode, checkpoint: Path, args: argparse.Namespace) -> Task:
    """Return what is to be done.

    Raises:
        ValueError: there are no videos, or no such layer.
    """
    jobs = build_jobs(cfg, args.split) if args.split else list_jobs(args.videos)
    layers = pick_layers(build_layers(cfg), args.layer or [FEATURES])
    views = build_view_counts(cfg) if args.views == "test" else (1, 1)
    facts = {
        "model": cfg.MODEL.NAME,
        "checkpoint_sha256": sha256_of(checkpoint),
        "layers": [layer.name for layer in layers],
        "pool": args.pool,
        "clips": views[0],
        "crops": views[1],
        "config": build_deciding(cfg),
    }
    return Task(cfg, checkpoint, jobs, layers, views, args.pool, args.out, args.format, facts)


def build_deciding(cfg: CfgNode) -> dict[str, Any]:
    """Return {key: value} of what decides the features of a video, but for the weights."""
    prefixes = (*DECIDING, f"{cfg.MODEL.NAME.upper()}.")
    return {
        key: value
        for key, value in deciding_config(cfg.dump()).items()
        if key.startswith(prefixes) and key not in SECONDARY
    }


def build_loader(cfg: CfgNode, task: Task, jobs: Sequence[Job]) -> tuple[ClipLoader, PickFrames]:
    """Return the views of videos, as a test has them, and how their frames are picked."""
    num_frames = cfg.DATA.NUM_FRAMES + (1 if cfg.PROMPT.ENABLE else 0)
    side, num_views = cfg.DATA.TEST_CROP_SIZE, task.views[0] * task.views[1]
    pick_frames, transform = build_test_view(cfg, num_frames, *task.views)
    dataset = ClipDataset(
        [job.record for job in jobs],
        num_views=num_views,
        pick_frames=pick_frames,
        transform=transform,
        seed=cfg.RNG_SEED,
        open_video=build_reader(cfg),
    )
    workers = cfg.DATA_LOADER.NUM_WORKERS
    alone = any(layer.batch is None for layer in task.layers)
    loader = ClipLoader(
        dataset,
        EvalPlan(len(dataset), 1 if alone else cfg.TEST.BATCH_SIZE, num_workers=workers),
        clip_shape=(3, num_frames, side, side),
        class_names=(),
        num_workers=workers,
        pin_memory=cfg.DATA_LOADER.PIN_MEMORY and cfg.NUM_GPUS > 0,
        prefetch_factor=cfg.DATA_LOADER.PREFETCH_FACTOR,
    )
    return loader, pick_frames


# --------------------------------------------------------------------------- a process
def work(task: Task) -> None:
    """Make the features of this process's share of the videos, those that have none yet.

    Raises:
        ValueError: the checkpoint does not fit, or the folder has features of another kind.
    """
    if is_main():
        claim(task.out, task.facts)
    barrier()
    share = task.jobs[get_rank() :: get_world_size()]
    waiting = [job for job in share if not task.target(job).exists()]
    written = build_features(task.cfg, task, waiting) if waiting else 0
    counts = gather_objects((written, len(share) - len(waiting), len(waiting) - written))
    if is_main():
        tell(task, *(sum(each) for each in zip(*counts, strict=True)))


def tell(task: Task, written: int, there: int, failed: int) -> None:
    """Say what has become of the videos."""
    told = f"{written} files of features written to {task.out}"
    told += f", {there} were there already" if there else ""
    print(told + (f"; {failed} videos could not be read" if failed else ""))


def build_features(cfg: CfgNode, task: Task, jobs: Sequence[Job]) -> int:
    """Run the model on videos and write a file for each that can be read; return how many."""
    device = build_device(cfg)
    model = build_trained(cfg, task.checkpoint, device).model
    loader, pick_frames = build_loader(cfg, task, jobs)
    precision = getattr(torch, cfg.TRAIN.PRECISION)
    threads = cfg.TEST.CPU_THREADS or torch.get_num_threads()
    open_video = build_reader(cfg)
    written = 0
    with (
        loader,
        Taps(model, task.layers, task.pool) as taps,
        progress_bar(len(jobs), "extract") as bar,
        computing_with(threads),
    ):
        batches = ahead(loader.epoch(0), device)
        for video, values in whole_videos(run(model, batches, taps, precision), loader.num_views):
            bar.update()
            if isinstance(values, str):
                complain(jobs[video].record.path, values)
                continue
            written += write_video(task, jobs[video], values, open_video, pick_frames)
    return written


def complain(path: str, reason: str) -> None:
    """Say that a video could not be read."""
    print(f"not read: {path}: {reason}", file=sys.stderr, flush=True)


@torch.inference_mode()
def _run(model: VideoModel, batch: Batch, taps: Taps, precision: torch.dtype) -> None:
    with autocast(batch.clip.device, precision):
        model(batch.clip)


def run(
    model: VideoModel, batches: Iterator[Batch], taps: Taps, precision: torch.dtype
) -> Iterator[tuple[Batch, Mapping[str, Tensor]]]:
    """Yield each batch with what the layers give for it; nothing where it has no clip."""
    for batch in batches:
        if len(batch.label):
            _run(model, batch, taps, precision)
        yield batch, taps.take() if len(batch.label) else {}


def whole_videos(
    results: Iterator[tuple[Batch, Mapping[str, Tensor]]], num_views: int
) -> Iterator[tuple[int, dict[str, Tensor] | str]]:
    """Put views together to videos.

    Yields:
        (video, {layer: (views, ...)}), or (video, why it could not be read), as they are complete.
    """
    views: dict[int, dict[int, dict[str, Tensor]]] = {}
    failed: set[int] = set()
    for batch, values in results:
        for failure in batch.failures:
            if failure.video not in failed:
                failed.add(failure.video)
                views.pop(failure.video, None)
                yield failure.video, failure.reason
        for place, (video, view) in enumerate(
            zip(batch.video.tolist(), batch.view.tolist(), strict=True)
        ):
            if video in failed:
                continue
            # copies, which do not keep the rest of the batch
            own = {name: value[place].clone() for name, value in values.items()}
            views.setdefault(video, {})[view] = own
            if len(views[video]) == num_views:
                parts = views.pop(video)
                order = [parts[number] for number in range(num_views)]
                yield video, {name: torch.stack([part[name] for part in order]) for name in own}
    assert not views


# --------------------------------------------------------------------------- files
def claim(out: Path, facts: Mapping[str, Any]) -> None:
    """Write what the features of a folder are, or see that they are the same as before.

    Raises:
        ValueError: the folder has features of another kind, or can't be written.
    """
    path = out / ABOUT
    if not path.exists():
        try:
            write_text(path, json.dumps(facts, indent=1) + "\n")
        except OSError as error:
            raise ValueError(f"{out} can't be written to: {error.strerror or error}") from error
        return
    try:
        stored = flat(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} can't be read ({error}); take another --out") from error
    present = flat(json.loads(json.dumps(facts)))
    differences = [
        f"{key} ({stored.get(key)} there, {present.get(key)} now)"
        for key in {**stored, **present}
        if stored.get(key) != present.get(key)
    ]
    if differences:
        raise ValueError(
            f"{out} has features of another kind: {', '.join(differences[:3])}"
            f"{' ...' if len(differences) > 3 else ''}; take another --out, or delete it"
        )


def flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts and the keys of the config side by side."""
    rest = {key: value for key, value in facts.items() if key != "config"}
    return rest | dict(facts["config"])


def frame_numbers(
    record: VideoRecord, num_views: int, open_video: OpenVideo, pick_frames: PickFrames
) -> Tensor:
    """Return the numbers (views, T) of the frames that the views of a video have.

    Raises:
        DecodeError: it can't be read any more.
    """
    with open_video(record.path) as reader:
        total, fps = stretch(record, len(reader)), reader.fps
    random = np.random.default_rng(0)  # the views of a test draw nothing
    views = [pick_frames(total, fps, view, random) for view in range(num_views)]
    return torch.tensor(views) + record.start


def write_video(
    task: Task,
    job: Job,
    values: dict[str, Tensor],
    open_video: OpenVideo,
    pick_frames: PickFrames,
) -> bool:
    """Write the file of a video, whole or not at all; return whether it could be read again."""
    try:
        num_views = task.views[0] * task.views[1]
        numbers = frame_numbers(job.record, num_views, open_video, pick_frames)
    except DecodeError as error:
        complain(error.path, error.reason)
        return False
    config = json.dumps(task.facts["config"], sort_keys=True)
    facts = {key: value for key, value in task.facts.items() if key != "config"}
    facts |= {"config_sha256": sha256(config.encode())}
    facts |= {"checkpoint": str(task.checkpoint), "path": os.path.abspath(job.record.path)}
    facts |= {"id": job.record.id, "label": job.record.label}
    text = json.dumps(facts)
    tensors = {**values, FRAMES: numbers}
    target = task.target(job)
    if task.format == "safetensors":
        write_safetensors(target, tensors, {FACTS: text})
    else:
        arrays: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
        arrays[FACTS] = np.array(text)
        write_atomically(target, lambda file: np.savez(file, **arrays))
    return True
