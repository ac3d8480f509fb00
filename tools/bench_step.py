"""What `tools/bench.py step` measures: training steps of one recipe, done in several ways.

The ways take turns, step by step, on the same synthetic batch. The plain way is that of the
programs that ours replaces: float32 and eager, also the prompt, torch's own gradients, and for
TimeSformer attention written out and anomaly detection on, as its release has them. Everything else
of the network is ours in every way.
"""

import argparse
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from bench_figures import (
    as_words,
    check_repeats,
    extra_peak,
    pick_device,
    spread,
    synchronize,
)
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from vmp.config import load_cfg
from vmp.data.clips import Batch
from vmp.engine.build import build_learner
from vmp.engine.step import Learner, autocast, train_step
from vmp.models import model_cost
from vmp.models.stem import StemConv3d
from vmp.models.timesformer import TimeSformer
from vmp.models.video_model import take_frames

WARM_UP = 2  # steps of each way that are not counted: allocations, compilation
PASSES = 3  # multiply-adds of a step over those of a forward pass: backward has twice as many
# (side, times) of the products that the peak rate is measured with.
MATRIX = {"cpu": (2048, 1), "cuda": (8192, 20)}
# What is plain; everything else is as the recipe says.
PLAIN = {
    "TRAIN.PRECISION": "float32",
    "MODEL.COMPILE": "False",
    "MODEL.CHANNELS_LAST": "False",
    "MODEL.ACT_CHECKPOINT": "False",
    "PROMPT.KERNEL": "eager",
}

Marks = dict[str, Any]  # name -> seconds, or a CUDA event


class Way(NamedTuple):
    """One of the ways to do a step.

    Attributes:
        name: "plain", "plain float16", "ours" or "ours bfloat16" and the like, with " + prompt" or
            without.
        details: what of precision, layout, compilation and the like its config switches on.
        learner: with a model of its own.
        batch: on the device.
        around: makes the context of a step.
        marks: where the last step was when.
        multiply_adds: of a forward pass over one clip.
    """

    name: str
    details: str
    learner: Learner
    batch: Batch
    around: Callable[[], contextlib.AbstractContextManager[Any]]
    marks: Marks
    multiply_adds: int


class Marked(nn.Module):
    """The model, with a mark before and after each forward pass."""

    def __init__(self, model: nn.Module, mark: Callable[[str], None]) -> None:
        super().__init__()
        self.model, self.mark = model, mark

    def forward(self, clip: Tensor) -> Any:
        """Return what the model gives."""
        self.mark("forward")
        output = self.model(clip)
        self.mark("backward")
        return output


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `step`."""
    command.add_argument(
        "--cfg", action="append", required=True, metavar="FILE", help="a recipe; may be repeated"
    )
    command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides, for every recipe")
    command.add_argument("--batch", type=int, default=8, help="clips of a step")
    command.add_argument("--repeats", type=int, default=5, help="steps of each way")
    command.add_argument(
        "--also",
        nargs="*",
        default=[],
        choices=("bfloat16", "float16"),
        help="precisions to do it our way in, besides the recipe's",
    )
    command.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is")
    command.add_argument("--out", help="append the measurements, a line of JSON each")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the measurements of each recipe.

    Raises:
        ValueError: a recipe or an override that is wrong, or fewer than two repeats.
    """
    device = pick_device(args.device)
    check_repeats(args.repeats)
    for path in args.cfg:
        measured = measure_ways(
            make_ways(path, args.opts, device, args.batch, args.also), args.batch, args.repeats
        )
        yield {"bench": "step", "cfg": Path(path).stem, "opts": args.opts, **measured}


def measure_ways(ways: Sequence[Way], batch: int, repeats: int) -> dict[str, Any]:
    """Return the measurements of the ways to train one recipe, as they go into a line of JSON."""
    device = ways[0].learner.device.type
    for way in tqdm(ways, desc="warm up", leave=False):
        for _ in range(WARM_UP):
            time_step(way)
    steps: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    rates: dict[torch.dtype, list[float]] = {way.learner.precision: [] for way in ways}
    for _ in tqdm(range(repeats), desc="measure", leave=False):
        for way in ways:
            steps[way.name].append(time_step(way))
        for precision in rates:
            rates[precision].append(matrix_rate(device, precision))
    about = {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "clip": [batch, 3, ways[0].learner.model.num_frames, *ways[0].batch.clip.shape[3:]],
    }
    described = {
        way.name: {
            "details": way.details,
            "multiply_adds": PASSES * way.multiply_adds * batch,
            "matrix_peak": max(rates[way.learner.precision]),
            "peak_bytes": peak_bytes(way),
            "steps": steps[way.name],
        }
        for way in ways
    }
    return {**about, "ways": described}


# --------------------------------------------------------------------------- ways
def make_ways(
    path: str, opts: Sequence[str], device: str, batch: int, also: Sequence[str] = ()
) -> list[Way]:
    """Return the ways to train the recipe at `path`, each with and without a prompt."""
    plain = [("plain", PLAIN)]
    if device == "cuda" and load_cfg(path, opts).MODEL.NAME != "timesformer":
        plain.append(("plain float16", PLAIN | {"TRAIN.PRECISION": "float16"}))  # PySlowFast's
    fixed = {
        "NUM_GPUS": str(int(device == "cuda")),
        "TRAIN.BATCH_SIZE": str(batch),
        "TRAIN.GLOBAL_BATCH_SIZE": "0",
        "SOLVER.BASE_LR": "0.0",  # nothing is learned from noise, and nothing diverges
    }
    ours = [("ours", {}), *((f"ours {name}", {"TRAIN.PRECISION": name}) for name in also)]
    ways = []
    for prompted in (False, True):
        for name, changes in [*plain, *ours]:
            settings = fixed | changes | {"PROMPT.ENABLE": str(prompted)}
            words = as_words(settings)
            name += " + prompt" if prompted else ""
            ways.append(
                build_way(load_cfg(path, [*opts, *words]), name, plain=name.startswith("plain"))
            )
    return ways


def build_way(cfg: CfgNode, name: str, *, plain: bool) -> Way:
    """Return the way of a config, with a learner of its own, compiled if the config says so."""
    learner = build_learner(cfg)
    model, crop = learner.model, cfg.DATA.TRAIN_CROP_SIZE
    cost = model_cost(model, cfg.DATA.NUM_FRAMES, crop)
    if cfg.MODEL.COMPILE:
        model.compile()
    marks: Marks = {}
    add_marks(learner, marks)
    switches = {
        "channels last": cfg.MODEL.CHANNELS_LAST,
        "compiled": cfg.MODEL.COMPILE,
        "blocks computed again": cfg.MODEL.ACT_CHECKPOINT,
    }
    details = [cfg.TRAIN.PRECISION, *(text for text, on in switches.items() if on)]
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    if plain and isinstance(model.backbone.net, TimeSformer):
        details.append("attention written out, anomaly mode")
        around = released_timesformer
    elif plain:
        around = partial(mock.patch.object, StemConv3d, "forward", nn.Conv3d.forward)
    shape = (cfg.TRAIN.BATCH_SIZE, 3, model.clip_frames, crop, crop)
    batch = random_batch(shape, learner.device)
    return Way(name, ", ".join(details), learner, batch, around, marks, cost.multiply_adds)


def add_marks(learner: Learner, marks: Marks) -> None:
    """Have each step of `learner` note in `marks` when its parts begin."""

    def mark(name: str) -> None:
        if learner.device.type == "cuda":
            marks[name] = torch.cuda.Event(enable_timing=True)
            marks[name].record()
        else:
            marks[name] = time.perf_counter()

    learner.parallel = Marked(learner.parallel, mark)
    learner.optimizer.register_step_pre_hook(lambda *_: mark("optimizer"))
    learner.optimizer.register_step_post_hook(lambda *_: mark("end"))


@contextlib.contextmanager
def released_timesformer() -> Iterator[None]:
    """Have attention written out and anomalies looked for, as TimeSformer's release does."""
    patch = mock.patch.object(F, "scaled_dot_product_attention", written_out_attention)
    with patch, torch.autograd.set_detect_anomaly(True):
        yield


def written_out_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(Q K^T / sqrt(d)) V, each of (rows, heads, tokens, d)."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    mixed: Tensor = scores.softmax(dim=-1) @ value
    return mixed


def random_batch(shape: tuple[int, ...], device: torch.device) -> Batch:
    """Return a batch of uint8 noise (B, 3, T, H, W) on the device: there is no wait for data."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)
    numbers = torch.zeros(shape[0], dtype=torch.int64, device=device)
    return Batch(clip, numbers, numbers, numbers, ())


# --------------------------------------------------------------------------- measuring
def time_step(way: Way) -> dict[str, float]:
    """Return the seconds of a step, also in CPU time, of its parts, and of the prompt alone."""
    learner = way.learner
    way.marks.clear()
    with way.around():
        synchronize(learner.device.type)
        began, cpu_began = time.perf_counter(), time.process_time()
        train_step(learner, [way.batch], epoch=0.0)
        synchronize(learner.device.type)
        seconds = {"total": time.perf_counter() - began, "cpu": time.process_time() - cpu_began}
    names = list(way.marks)  # the optimizer's are missing where float16 has skipped the step
    for name, following in itertools.pairwise(names):
        seconds[name] = _between(way.marks[name], way.marks[following])
    learner.optimizer.zero_grad(set_to_none=True)  # each way begins with the same memory
    return seconds | {"prompt": time_prompt(way)}


def time_prompt(way: Way) -> float:
    """Return the seconds of all prompts of the model alone, forward and backward; 0 without."""
    learner, model, seconds = way.learner, way.learner.model, 0.0
    for pathway, prompt in model.prompts.items():
        clip = take_frames(way.batch.clip, model.frames[int(pathway)])
        synchronize(learner.device.type)
        began = time.perf_counter()
        with autocast(learner.device, learner.precision):
            outputs = prompt(clip)
        synchronize(learner.device.type)
        seconds += time.perf_counter() - began
        gradients = [torch.ones_like(output) for output in outputs]
        synchronize(learner.device.type)
        began = time.perf_counter()
        torch.autograd.backward(outputs, gradients)
        synchronize(learner.device.type)
        seconds += time.perf_counter() - began
    learner.optimizer.zero_grad(set_to_none=True)
    return seconds


def _between(one: Any, other: Any) -> float:
    """Return the seconds from one mark to another, both passed."""
    if isinstance(one, float):
        return float(other - one)
    return float(one.elapsed_time(other)) / 1000


def matrix_rate(device: str, precision: torch.dtype) -> float:
    """Return the multiply-adds per second of a product of two large matrices."""
    side, times = MATRIX[device]
    one = torch.rand(side, side, device=device, dtype=precision)
    one @ one
    synchronize(one.device.type)
    began = time.perf_counter()
    for _ in range(times):
        one @ one
    synchronize(one.device.type)
    return times * side**3 / (time.perf_counter() - began)


def peak_bytes(way: Way) -> int:
    """Return what the model and the optimizer hold, and the most that a step allocates besides.

    Each way is counted as if it were alone. On a CPU torch's own allocations are added up, not what
    its libraries take for themselves.
    """
    model, state = way.learner.model, way.learner.optimizer.state
    held = [*model.parameters(), *model.buffers()]
    held += [value for each in state.values() for value in each.values() if torch.is_tensor(value)]
    besides = extra_peak(way.learner.device.type, lambda: time_step(way))
    return sum(tensor.nbytes for tensor in held) + besides


# --------------------------------------------------------------------------- tables
HEAD = [
    "| recipe | clips | way | ms | clips/s | plain / this | in CPU time | prompt costs, % | "
    "peak, MiB | prompt, % | forward, % | backward, % | optimizer, % | GMAC/s | "
    "of the matrix peak, % |",
    "|---" * 15 + "|",
]


def rows(result: dict[str, Any]) -> str:
    """Return the lines of the Markdown table."""
    batch, _, frames, side, _ = result["clip"]
    clips = f"{batch} x {frames} x {side}²"
    lines = []
    for name, way in result["ways"].items():
        cells = [result["cfg"], clips, f"{name} ({way['details']})", *_cells(result, name, batch)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(result: dict[str, Any], name: str, batch: int) -> list[str]:
    way = result["ways"][name]
    seconds = totals(result, name)
    middle = statistics.median(seconds)
    parts = ("prompt", "forward", "backward", "optimizer")
    return [
        spread([1000 * value for value in seconds], "{:.0f}"),
        f"{batch / middle:.2f}",
        _against(result, name, "total"),
        _against(result, name, "cpu"),
        _prompt_costs(result, name),
        f"{way['peak_bytes'] / 2**20:.0f}",
        *(f"{100 * share(way['steps'], part):.1f}" for part in parts),
        f"{way['multiply_adds'] / middle / 1e9:.1f}",
        f"{100 * way['multiply_adds'] / middle / way['matrix_peak']:.0f}",
    ]


def totals(result: dict[str, Any], name: str, clock: str = "total") -> list[float]:
    """Return the seconds of the steps of a way, one a round, or for "cpu" their CPU seconds."""
    return [step[clock] for step in result["ways"][name]["steps"]]


def share(steps: Sequence[dict[str, float]], part: str) -> float:
    """Return the median share that a part has in its step."""
    return statistics.median(step.get(part, 0.0) / step["total"] for step in steps)


def _against(result: dict[str, Any], name: str, clock: str) -> str:
    """Return how many times as long the plain way takes, with a prompt if this one has one."""
    plain = "plain + prompt" if name.endswith("+ prompt") else "plain"
    if name == plain:
        return ""
    pairs = zip(totals(result, plain, clock), totals(result, name, clock), strict=True)
    return spread([one / other for one, other in pairs], "{:.2f}")


def _prompt_costs(result: dict[str, Any], name: str) -> str:
    """Return by how much a step with a prompt is longer than its baseline, round by round.

    On a CPU in CPU time: what other programs take would be more than the difference.
    """
    baseline, _, prompted = name.partition(" + ")
    if not prompted:
        return ""
    clock = "cpu" if result["device"] == "cpu" else "total"
    pairs = zip(totals(result, baseline, clock), totals(result, name, clock), strict=True)
    return spread([100 * (other / one - 1) for one, other in pairs], "{:.1f}")
