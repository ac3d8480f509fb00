"""What `tools/bench.py pipeline` measures: whether the loader keeps up with what the clips are for.

The loader and the training step of a recipe work together as in a training, on videos like those of
the data sets (bench_decode makes them). With `--asleep` the steps only sleep, as long as a device
that is not there would need.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bench_decode
import torch
from bench_figures import as_words, pick_device, spread, synchronize
from fvcore.common.config import CfgNode
from tqdm import tqdm

from vmp.config import load_cfg
from vmp.data import ClipLoader, build_loader
from vmp.data.clips import Batch
from vmp.engine.build import build_device, build_learner
from vmp.engine.progress import Waiting
from vmp.engine.step import train_step
from vmp.engine.transfer import ahead

RECIPE = str(Path(__file__).parents[1] / "configs" / "MotionShapes" / "X3D_XS.yaml")
WARM_UP = 2  # batches of an epoch that are not counted, in which the workers get going

Step = Callable[[Batch], object]


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `pipeline`."""
    command.add_argument("--cfg", default=RECIPE, metavar="FILE", help="default: a small X3D")
    command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides")
    command.add_argument("--formats", nargs="+", choices=bench_decode.FORMATS)
    command.add_argument("--videos", type=int, default=3, help="of each format")
    command.add_argument("--folder", help="keep the videos here and take those that are there")
    command.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    command.add_argument("--batch", type=int, default=8, help="clips of a step")
    command.add_argument("--steps", type=int, default=8, help="of an epoch that are measured")
    command.add_argument("--repeats", type=int, default=5, help="epochs of each kind")
    command.add_argument(
        "--device-rate",
        nargs="+",
        type=float,
        default=[20.0, 50.0, 100.0, 200.0],
        metavar="CLIPS_PER_S",
        help="of devices to count the workers for",
    )
    command.add_argument(
        "--asleep",
        nargs="+",
        type=float,
        default=[],
        metavar="CLIPS_PER_S",
        help="of devices to stand in for: the steps only sleep",
    )
    command.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is")
    command.add_argument("--out", help="append the measurements, a line of JSON each")
    command.set_defaults(formats=list(bench_decode.FORMATS))


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the measurements of each format.

    Raises:
        ValueError: a recipe or an override that is wrong, fewer than two repeats, or no steps.
    """
    if args.repeats < 2 or args.steps < 1 or min(args.device_rate + args.asleep) <= 0:
        raise ValueError("--repeats must be 2 or more, --steps 1 or more, and every rate above 0")
    device = pick_device(args.device)
    with tempfile.TemporaryDirectory() as temporary:
        for kind in args.formats:
            paths = bench_decode.make_videos(Path(args.folder or temporary), kind, args.videos)
            folder = Path(temporary, kind)
            folder.mkdir()
            write_list(folder, paths, args.batch * (WARM_UP + args.steps))
            cfg = load_cfg(args.cfg, [*args.opts, *_settings(folder, args.batch, device)])
            measured = measure_kind(cfg, args.workers, args.asleep, args.repeats)
            about = {"format": kind, "cfg": Path(args.cfg).stem, "opts": args.opts}
            yield {"bench": "pipeline", **about, "rates": args.device_rate, **measured}


def write_list(folder: Path, videos: Sequence[Path], clips: int) -> None:
    """List as many training clips, each of the videos in turn."""
    lines = [f"{videos[number % len(videos)].resolve()} 0" for number in range(clips)]
    (folder / "train.csv").write_text("\n".join(lines), encoding="utf-8")


def _settings(folder: Path, batch: int, device: str) -> list[str]:
    fixed = {
        "TRAIN.DATASET": "csv",
        "DATA.SPLIT": "",
        "DATA.PATH_TO_DATA_DIR": folder,
        "TRAIN.BATCH_SIZE": batch,
        "TRAIN.GLOBAL_BATCH_SIZE": 0,
        "SOLVER.BASE_LR": 0.0,  # nothing is to be learned here
        "NUM_GPUS": int(device == "cuda"),
    }
    return as_words(fixed)


def measure_kind(
    cfg: CfgNode, workers: Sequence[int], rates: Sequence[float], repeats: int
) -> dict[str, Any]:
    """Return the measurements of one format; all kinds of epochs take turns."""
    device = build_device(cfg)
    steps = {f"asleep, {rate:g} clips/s": _sleeper(rate) for rate in rates}
    steps = steps or {"training": build_step(cfg)}
    loaders = {number: make_loader(cfg, number) for number in {*workers, 0}}
    cpu: list[float] = []
    alone: dict[str, list[float]] = {name: [] for name in steps}
    epochs: dict[str, dict[int, list[dict[str, float]]]] = {
        name: {number: [] for number in workers} for name in steps
    }
    try:
        batch = next(ahead(loaders[0].epoch(0), device))
        for epoch in tqdm(range(repeats), leave=False):
            cpu.append(cpu_of_a_clip(loaders[0], epoch))
            for name, step in steps.items():
                alone[name].append(time_steps([batch] * len(loaders[0]), step, device))
                for number in workers:
                    took = time_epoch(loaders[number], epoch, step, device)
                    epochs[name][number].append(took)
    finally:
        for loader in loaders.values():
            loader.close()
    return {
        "clip": list(batch.clip.shape),
        "threads": torch.get_num_threads(),
        "cpu_seconds": cpu,
        "alone": alone,
        "epochs": epochs,
    }


def make_loader(cfg: CfgNode, workers: int) -> ClipLoader:
    """Return the recipe's loader for training with another number of workers."""
    changed = cfg.clone()
    changed.defrost()
    changed.DATA_LOADER.NUM_WORKERS = workers
    return build_loader(changed, "train")


def build_step(cfg: CfgNode) -> Step:
    """Return the training step of a recipe."""
    learner = build_learner(cfg)
    learner.model.train()
    return lambda batch: train_step(learner, [batch], epoch=0.0)


def _sleeper(rate: float) -> Step:
    """Return a step that does nothing for as long as a device of `rate` clips a second would."""
    return lambda batch: time.sleep(len(batch.label) / rate)


def cpu_of_a_clip(loader: ClipLoader, epoch: int) -> float:
    """Return the CPU seconds a clip costs in a loader without workers: what one would spend."""
    batches = loader.epoch(epoch)
    for _ in range(WARM_UP):
        next(batches)
    began = time.process_time()
    clips = sum(len(batch.label) for batch in batches)
    return (time.process_time() - began) / clips


def time_steps(batches: Sequence[Batch], step: Step, device: torch.device) -> float:
    """Return the clips a second of steps that wait for nothing; the first ones not counted."""
    began, clips = 0.0, 0
    for number, batch in enumerate(batches):
        if number == WARM_UP:
            synchronize(device.type)
            began, clips = time.perf_counter(), 0
        step(batch)
        clips += len(batch.label)
    synchronize(device.type)
    return clips / (time.perf_counter() - began)


def time_epoch(
    loader: ClipLoader, epoch: int, step: Step, device: torch.device
) -> dict[str, float]:
    """Return clips a second and the share of time waited for data; the first steps not counted."""
    waiting = Waiting(loader.epoch(epoch))
    began, clips = 0.0, 0
    for number, batch in enumerate(ahead(waiting, device)):
        step(batch)
        clips += len(batch.label)
        if number == WARM_UP - 1:
            synchronize(device.type)
            waiting.take_seconds()
            began, clips = time.perf_counter(), 0
    synchronize(device.type)
    seconds = time.perf_counter() - began
    return {"rate": clips / seconds, "waited": waiting.take_seconds() / seconds}


# --------------------------------------------------------------------------- the table
HEAD = [
    "| videos | CPU of a clip, ms | workers that hide it | step | workers | clips/s "
    "| of the step alone, % | waiting for data, % |",
    "|---" * 8 + "|",
]


def rows(result: dict[str, Any]) -> str:
    """Return the lines of a format."""
    lines = []
    needed = ", ".join(f"{rate:g}/s: {workers_for(result, rate)}" for rate in result["rates"])
    about = [result["format"], spread([1e3 * each for each in result["cpu_seconds"]], "{:.1f}")]
    about.append(needed)
    for name, by_workers in result["epochs"].items():
        for number, epochs in by_workers.items():
            cells = [*about, name, str(number), *_cells(epochs, result["alone"][name])]
            lines.append("| " + " | ".join(cells) + " |")
            about = ["", "", ""]
    return "\n".join(lines)


def workers_for(result: dict[str, Any], rate: float) -> int:
    """Return how many workers, with a core each, spend no more than there is for `rate` clips/s."""
    cpu: list[float] = result["cpu_seconds"]
    return math.ceil(rate * statistics.median(cpu))


def _cells(epochs: Sequence[dict[str, float]], alone: Sequence[float]) -> list[str]:
    shares = [100 * epoch["rate"] / own for epoch, own in zip(epochs, alone, strict=True)]
    return [
        spread([epoch["rate"] for epoch in epochs], "{:.1f}"),
        spread(shares, "{:.0f}"),
        spread([100 * epoch["waited"] for epoch in epochs], "{:.0f}"),
    ]
