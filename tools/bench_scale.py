"""What `tools/bench.py scale` measures: how a training step grows, what a second process brings.

Three parts, each with a table of its own. "step": time and memory of a step against the batch, the
frames and the crop. "ranks": two processes on this machine's CPU with a thread each against one.
"views": the evaluation of a video by 10 x 3 views that share a reader, against one view at a time.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import bench_decode
import bench_step
import torch
import torch.distributed as dist
from bench_figures import as_words, check_repeats, spread
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # likewise
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from vmp.config import load_cfg
from vmp.data import VideoReader
from vmp.data.build import build_test_view
from vmp.data.clips import Batch, ClipDataset, Sample, collate
from vmp.data.records import VideoRecord
from vmp.engine.build import build_learner
from vmp.engine.launch import launch
from vmp.engine.step import Learner, train_step
from vmp.models import build_model
from vmp.utils.files import write_text

RECIPES = [
    str(Path(__file__).parents[1] / "configs" / "HMDB51" / f"{name}.yaml")
    for name in (
        "SLOWFAST_8x8_R50",
        "C2D_8x8_R50",
        "I3D_8x8_R50",
        "X3D_M",
        "TimeSformer_divST_8x32_224",
    )
]
# What grows while the other two stay at POINT; the sides are multiples of TimeSformer's patches.
AXES = {"batch": (1, 2, 4, 8), "frames": (4, 8, 16, 32), "crop": (64, 96, 144, 224)}
POINT = {"batch": 1, "frames": 8, "crop": 96}
LABELS = {
    "batch": "clips of a step",
    "frames": "frames of a clip",
    "crop": "side of the crop, pixels",
}
TICKS = [digit * 10**power for power in range(1, 6) for digit in (1, 2, 5)]
RANKS_POINT = {"batch": 4, "frames": 8, "crop": 96}
CLIPS, CROPS = 10, 3  # views of a video
AT_ONCE = 6  # views that the network takes at once


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `scale`."""
    command.add_argument("--part", choices=PARTS, required=True)
    command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides, for every recipe")
    command.add_argument(
        "--cfg", action="append", metavar="FILE", help="a recipe; default: that of each backbone"
    )
    command.add_argument("--repeats", type=int, default=5, help="rounds")
    command.add_argument("--out", help="append the measurements, a line of JSON each")
    command.add_argument(
        "--plot", metavar="FILE", help="draw what --out holds of the part step, in the end"
    )


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the measurements of each recipe.

    Raises:
        ValueError: a recipe or an override that is wrong, fewer than two repeats, or --plot without
            --out.
    """
    check_repeats(args.repeats)
    if args.plot and not args.out:
        raise ValueError("--plot draws what is in the file --out; give one")
    for path in args.cfg or RECIPES:
        measured = PARTS[args.part].measure(path, args.opts, args.repeats)
        about = {"cfg": Path(path).stem, "opts": args.opts, "threads": torch.get_num_threads()}
        yield {"bench": "scale", "part": args.part, **about, **measured}
    if args.plot:
        lines = [json.loads(line) for line in Path(args.out).read_text("utf-8").splitlines()]
        draw([line for line in lines if line.get("part") == "step"]).savefig(args.plot, dpi=110)


def _settings(changes: Mapping[str, object]) -> list[str]:
    fixed = {"NUM_GPUS": 0, "TRAIN.GLOBAL_BATCH_SIZE": 0, "SOLVER.BASE_LR": 0.0}
    return as_words({**fixed, **changes})


def _point(batch: int, frames: int, crop: int) -> list[str]:
    return _settings(
        {
            "TRAIN.BATCH_SIZE": batch,
            "DATA.NUM_FRAMES": frames,
            "DATA.TRAIN_CROP_SIZE": crop,
            "DATA.TRAIN_JITTER_SCALES": f"[{crop}, {crop}]",  # no video is read
        }
    )


# --------------------------------------------------------------------------- the growth of a step
def measure_growth(path: str, opts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Return seconds and peak bytes of a step for each size along each of AXES.

    All sizes take turns, so that what else the machine does falls on all of them.
    """
    points = {_key(POINT | {axis: size}) for axis, sizes in AXES.items() for size in sizes}
    steps = {
        point: bench_step.build_way(load_cfg(path, [*opts, *_point(*point)]), "", plain=False)
        for point in sorted(points)
    }
    seconds: dict[tuple[int, ...], list[float]] = {point: [] for point in steps}
    for number in tqdm(range(-1, repeats), desc=Path(path).stem, leave=False):
        for point, way in steps.items():
            took = bench_step.time_step(way)["total"]
            seconds[point] += [took] if number >= 0 else []  # the first round warms up
    peaks = {point: bench_step.peak_bytes(way) for point, way in steps.items()}
    axes = {
        axis: [
            {"size": size, "seconds": seconds[point], "peak_bytes": peaks[point]}
            for size in sizes
            for point in [_key(POINT | {axis: size})]
        ]
        for axis, sizes in AXES.items()
    }
    return {"point": POINT, "axes": axes}


def _key(sizes: dict[str, int]) -> tuple[int, ...]:
    return sizes["batch"], sizes["frames"], sizes["crop"]


def growth_rows(result: dict[str, Any]) -> list[str]:
    """Return a row for each of what grows."""
    return [
        _row([result["cfg"], axis, *map(_growth_cell, points), _growth(points)])
        for axis, points in result["axes"].items()
    ]


def _growth_cell(point: dict[str, Any]) -> str:
    milliseconds = spread([1000 * value for value in point["seconds"]], "{:.0f}")
    return f"{point['size']}: {milliseconds} ms, {point['peak_bytes'] / 2**20:.0f} MiB"


def _growth(points: Sequence[dict[str, Any]]) -> str:
    """Return how many times as large the last size is, and with it time and memory."""
    first, last = points[0], points[-1]
    medians = [statistics.median(point["seconds"]) for point in (first, last)]
    return (
        f"{last['size'] / first['size']:.1f}: {medians[1] / medians[0]:.1f}, "
        f"{last['peak_bytes'] / first['peak_bytes']:.1f}"
    )


def draw(results: Sequence[dict[str, Any]]) -> Figure:
    """Return the curves: time above, memory below, a column for each of what grows."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(2, len(AXES), sharey="row")
    for column, (axis, label) in enumerate(LABELS.items()):
        for result in results:
            _draw_growth(grid[:, column], result["axes"][axis], result["cfg"])
        others = ", ".join(f"{name} {POINT[name]}" for name in AXES if name != axis)
        grid[0, column].set_title(others, fontsize=10)
        grid[1, column].set_xlabel(label)
        for panel in grid[:, column]:
            panel.set_xscale("log", base=2)
            panel.set_xticks(AXES[axis], [str(size) for size in AXES[axis]])
            panel.grid(alpha=0.3)
    for panel, label in zip(grid[:, 0], ("a training step, ms", "peak memory, MiB"), strict=True):
        panel.set_ylabel(label)
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        ticks = [tick for tick in TICKS if low <= tick <= high]
        panel.set_yticks(ticks, [str(tick) for tick in ticks])
    for panel in grid.flat:
        panel.minorticks_off()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(results), frameon=False)
    return figure


def _draw_growth(panels: Sequence[Axes], points: Sequence[dict[str, Any]], name: str) -> None:
    sizes = [point["size"] for point in points]
    quartiles = [statistics.quantiles(p["seconds"], n=4) for p in points]
    low, middle, high = ([1000 * each[i] for each in quartiles] for i in range(3))
    line = panels[0].plot(sizes, middle, marker="o", markersize=4, label=name)[0]
    panels[0].fill_between(sizes, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    panels[1].plot(sizes, [p["peak_bytes"] / 2**20 for p in points], marker="o", markersize=4)


# --------------------------------------------------------------------------- two processes
class RanksTask(NamedTuple):
    """What each of two processes is told.

    Attributes:
        cfg: the recipe.
        opts: its overrides.
        point: the sizes of the step, those of one process.
        repeats: rounds.
        out: the file that rank 0 writes.
    """

    cfg: str
    opts: tuple[str, ...]
    point: dict[str, int]
    repeats: int
    out: str


class Exchange:
    """What becomes of the gradients of DistributedDataParallel's buckets, in its stead.

    They are summed over the ranks when backward is done, so that nothing hides the time it takes,
    or not at all.
    """

    def __init__(self, learner: Learner) -> None:
        assert isinstance(learner.parallel, DistributedDataParallel)
        self.learner, self.summing = learner, True
        self._buckets: list[Tensor] = []
        learner.parallel.register_comm_hook(None, self._keep)
        learner.optimizer.register_step_pre_hook(lambda *_: self._sum())

    def _keep(self, _: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        self._buckets.append(bucket.buffer())
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def _sum(self) -> None:
        for bucket in self._buckets if self.summing else []:
            dist.all_reduce(bucket.div_(dist.get_world_size()))
        self._buckets.clear()

    def step(self, batch: Batch, *, summing: bool) -> None:
        """Update once."""
        self.summing = summing
        train_step(self.learner, [batch], epoch=0.0)


ALONE, SPLIT, BOTH = "one process", "two, half a batch each", "two, a batch each"
AFTER, WITHOUT = "two, a batch each, summed after backward", "two, a batch each, not summed"


def measure_ranks(path: str, opts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Return the seconds of a step of one process and of two, each with a thread of its own."""
    with tempfile.TemporaryDirectory() as folder:
        task = RanksTask(path, tuple(opts), RANKS_POINT, repeats, str(Path(folder, "seconds.json")))
        launch(time_ranks, task, num_processes=2)
        measured: dict[str, Any] = json.loads(Path(task.out).read_text("utf-8"))
    return {"point": RANKS_POINT, **measured}


def time_ranks(task: RanksTask) -> None:
    """Time, in each of two processes, all ways to do a step; rank 0 writes the seconds."""
    torch.set_num_threads(1)
    cfg = load_cfg(task.cfg, [*task.opts, *_point(**task.point)])
    with mock.patch("vmp.engine.build.get_world_size", return_value=1):
        alone = build_learner(cfg)  # knows nothing of the other process
    both, kept = build_learner(cfg), Exchange(build_learner(cfg))
    size, side = task.point["batch"], task.point["crop"]
    batch, part = (
        bench_step.random_batch((clips, 3, alone.model.clip_frames, side, side), alone.device)
        for clips in (size, size // 2)
    )
    rank = dist.get_rank()
    ways: dict[str, Callable[[], object]] = {
        ALONE: lambda: train_step(alone, [batch], 0.0) if rank == 0 else None,
        SPLIT: lambda: train_step(both, [part], 0.0),
        BOTH: lambda: train_step(both, [batch], 0.0),
        AFTER: lambda: kept.step(batch, summing=True),
        WITHOUT: lambda: kept.step(batch, summing=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, task.repeats):
        for name, work in ways.items():
            dist.barrier()
            began = time.perf_counter()
            work()
            dist.barrier()
            # the first round warms up
            seconds[name] += [time.perf_counter() - began] if number >= 0 else []
    if rank == 0:
        gradients = sum(p.nbytes for p in alone.model.parameters() if p.requires_grad)
        write_text(task.out, json.dumps({"seconds": seconds, "gradient_bytes": gradients}))


def ranks_rows(result: dict[str, Any]) -> list[str]:
    """Return the row of a recipe."""
    seconds = result["seconds"]
    rounds = list(zip(*seconds.values(), strict=True))
    ways = [dict(zip(seconds, each, strict=True)) for each in rounds]
    # of what summing after backward takes; where no round tells that from noise, of nothing
    told = all(way[AFTER] > way[WITHOUT] for way in ways)
    hidden = [(way[AFTER] - way[BOTH]) / (way[AFTER] - way[WITHOUT]) for way in ways if told]
    cells = [
        *(spread([1000 * value for value in seconds[name]], "{:.0f}") for name in seconds),
        spread([100 * way[ALONE] / (2 * way[SPLIT]) for way in ways], "{:.0f}"),
        spread([100 * way[ALONE] / way[BOTH] for way in ways], "{:.0f}"),
        spread([100 * way[ALONE] / way[WITHOUT] for way in ways], "{:.0f}"),
        spread([100 * share for share in hidden], "{:.0f}") if told else "",
    ]
    return [_row([result["cfg"], f"{result['gradient_bytes'] / 2**20:.0f}", *cells])]


# --------------------------------------------------------------------------- many views
def measure_views(path: str, opts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Return, for each kind of videos, the seconds that 10 x 3 views of one take, by way.

    One process decodes some views, puts them through the network, and goes on.
    """
    views = {"TEST.NUM_ENSEMBLE_VIEWS": CLIPS, "TEST.NUM_SPATIAL_CROPS": CROPS}
    cfg = load_cfg(path, [*opts, *_settings(views)])
    model = build_model(cfg).eval()
    formats = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in tqdm(bench_decode.FORMATS, desc=Path(path).stem, leave=False):
            (video,) = bench_decode.make_videos(Path(folder), kind, 1)
            formats[kind] = _time_views(cfg, model, str(video), Path(folder), repeats)
    side = cfg.DATA.TEST_CROP_SIZE
    return {"clip": [model.clip_frames, side, side], "formats": formats}


def _time_views(
    cfg: Any, model: torch.nn.Module, video: str, folder: Path, repeats: int
) -> dict[str, dict[str, list[float]]]:
    pick_frames, transform = build_test_view(cfg, cfg.DATA.NUM_FRAMES, CLIPS, CROPS)
    make = partial(
        ClipDataset,
        [VideoRecord(video, label=0)],
        num_views=CLIPS * CROPS,
        pick_frames=pick_frames,
        transform=transform,
        seed=0,
        open_video=partial(VideoReader, index_dir=folder),
    )
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"decoded": [], "evaluated": []} for name in ("together", "one by one")
    }
    for number in range(-1, repeats):
        for name, kept in seconds.items():
            decoded, evaluated = _evaluate(_views(make, share=name == "together"), model)
            if number >= 0:  # the first round warms up
                kept["decoded"].append(decoded)
                kept["evaluated"].append(evaluated)
    return seconds


def _views(make: Callable[[], ClipDataset], *, share: bool) -> Iterator[Sample]:
    """Yield the views of the video, from one data set, or each from a new one, which opens it."""
    shared = make()
    for view in range(len(shared)):
        yield (shared if share else make())[0, view]


@torch.inference_mode()
def _evaluate(samples: Iterator[Sample], model: torch.nn.Module) -> tuple[float, float]:
    """Return the seconds of decoding the views, and of that and putting them through the model."""
    began, decoded = time.perf_counter(), 0.0
    for _ in range(CLIPS * CROPS // AT_ONCE):
        asked = time.perf_counter()
        waiting = list(itertools.islice(samples, AT_ONCE))
        decoded += time.perf_counter() - asked
        model(collate(waiting, ()).clip)
    return decoded, time.perf_counter() - began


def views_rows(result: dict[str, Any]) -> list[str]:
    """Return a row for each kind of videos."""
    rows = []
    for kind, ways in result["formats"].items():
        together, alone = ways["together"], ways["one by one"]
        cells = [
            spread([CLIPS * CROPS / value for value in way["evaluated"]], "{:.1f}")
            for way in (alone, together)
        ]
        cells += [
            spread([1000 * value for value in way["decoded"]], "{:.0f}")
            for way in (alone, together)
        ]
        for what in ("decoded", "evaluated"):
            pairs = zip(alone[what], together[what], strict=True)
            cells.append(spread([one / other for one, other in pairs]))
        rows.append(_row([result["cfg"], kind, *cells]))
    return rows


# --------------------------------------------------------------------------- tables
class Part(NamedTuple):
    """One of the things that are measured.

    Attributes:
        measure: (recipe, overrides, rounds) -> measurements.
        head: cells of the table's head.
        rows: lines of the table.
    """

    measure: Callable[[str, Sequence[str], int], dict[str, Any]]
    head: tuple[str, ...]
    rows: Callable[[dict[str, Any]], list[str]]


PARTS = {
    "step": Part(
        measure_growth,
        ("recipe", "what grows", "smallest", "", "", "largest", "largest / smallest: time, memory"),
        growth_rows,
    ),
    "ranks": Part(
        measure_ranks,
        (
            "recipe",
            "gradients, MiB",
            *(f"{way}, ms" for way in (ALONE, SPLIT, BOTH, AFTER, WITHOUT)),
            "efficiency at the same batch in all, %",
            "at the same batch each, %",
            "not summed, %",
            "of the sum hidden, %",
        ),
        ranks_rows,
    ),
    "views": Part(
        measure_views,
        (
            "recipe",
            "videos",
            "one by one, views/s",
            "together, views/s",
            "decoded one by one, ms",
            "decoded together, ms",
            "ratio decoded",
            "ratio end to end",
        ),
        views_rows,
    ),
}
HEAD: list[str] = []  # each recipe's table has its own, since it depends on the part


def rows(result: dict[str, Any]) -> str:
    """Return the Markdown table of a recipe."""
    part = PARTS[result["part"]]
    return "\n".join([_row(part.head), "|---" * len(part.head) + "|", *part.rows(result), ""])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
