"""What `tools/bench.py prompt` measures: the motion prompt alone, forward and backward.

The ways to do it take turns, round by round, on the same synthetic clip and the same incoming
gradients, of the prompts and of V. The released way does what the authors' layer does, operation by
operation, in float32 on a clip that its loader has normalised: making that clip is not counted.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from bench_figures import check_repeats, extra_peak, pick_device, spread
from torch import Tensor, nn

from vmp.prompts import MotionPrompt
from vmp.prompts import functional as F
from vmp.prompts.power_norm import sigmoid

SHAPES = ((8, 3, 9, 224, 224), (4, 3, 33, 224, 224), (32, 3, 17, 224, 224))
MEAN, STD = 0.45, 0.225  # of every channel
M, N = 0.5, -0.3
PENALTY = 2.5  # lambda of the paper's best (Eq. 7): the gradient of V
PASSES = ("forward", "backward")
WARM_UP = 2  # rounds that are not counted: allocations, compilation
# Before each measurement on a GPU: bytes written, and clock cycles in which it waits, some 10 ms.
FLUSH, IDLE = 2**32, 20_000_000


class Way(NamedTuple):
    """One of the ways to do it.

    Attributes:
        name: "released", "eager", "fused", "fused, float32 clip", "copy" or "copy, old memory".
        forward: makes the outputs.
        backward: takes what `forward` made.
        moved: bytes that must be read or written, of the clip twice, the prompts, their gradient.
    """

    name: str
    forward: Callable[[], Any]
    backward: Callable[[Any], Any]
    moved: int


class Released(nn.Module):
    """The released layer, from its description: every step an operation, float32 throughout.

    Its grey weights are the paper's, in the order of the channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor([M]))
        self.n = nn.Parameter(torch.tensor([N]))
        self.register_buffer("luma", torch.tensor([0.299, 0.587, 0.114]))

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return prompts (B, 3, T, H, W) and V of a normalised float32 clip (B, 3, T+1, H, W)."""
        pixels = clip * STD + MEAN
        gray = torch.einsum("bcthw,c->bthw", pixels, self.luma)
        differences = gray[:, 1:] - gray[:, :-1]
        a, b = F.slope(self.m), F.shift(self.n)
        attention = 1 / (1 + torch.exp(-(a * (differences - b))))
        changes = attention[:, 1:] - attention[:, :-1]
        variation = (changes**2).sum() / changes.numel()
        repeated = attention.unsqueeze(1).repeat(1, 3, 1, 1, 1)
        return repeated * clip[:, :, 1:], variation


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `prompt`."""
    command.add_argument(
        "--shapes", nargs="+", type=_shape, default=list(SHAPES), metavar="B,3,T+1,H,W"
    )
    command.add_argument("--repeats", type=int, default=9, help="rounds")
    command.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is")
    command.add_argument("--out", help="append the measurements, a line of JSON each")


def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(size) for size in text.split(","))
    if len(shape) != 5 or shape[1] != 3 or shape[2] < 3 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not B,3,T+1,H,W with T of 2 or more")
    return shape


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the measurements of each shape of clip.

    Raises:
        ValueError: fewer than two repeats.
    """
    device = pick_device(args.device)
    check_repeats(args.repeats)
    for shape in args.shapes:
        yield measure_shape(shape, device, args.repeats)


def measure_shape(shape: Sequence[int], device: str, repeats: int) -> dict[str, Any]:
    """Return the measurements of clips of `shape`, as they go into a line of JSON."""
    ways = make_ways(shape, device)
    flush = torch.empty(FLUSH if device == "cuda" else 0, dtype=torch.uint8, device=device)
    for way in ways:
        for _ in range(WARM_UP):
            time_way(way, flush)
    rounds: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            rounds[way.name].append(time_way(way, flush))
    batch, channels, frames, height, width = shape
    return {
        "bench": "prompt",
        "clip": list(shape),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "prompt_bytes": 4 * batch * channels * (frames - 1) * height * width,
        "ways": {
            way.name: {
                "seconds": rounds[way.name],
                "moved": way.moved,
                "peak_bytes": peak_bytes(way, device),
            }
            for way in ways
        },
    }


# --------------------------------------------------------------------------- ways
def make_ways(shape: Sequence[int], device: str) -> list[Way]:
    """Return the ways to make prompts of a clip (B, 3, T+1, H, W) of noise, and their gradients."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(256, tuple(shape), dtype=torch.uint8, generator=generator)
    floats = F.normalize(clip, 3 * [MEAN], 3 * [STD])
    grad = torch.randn(floats[:, :, 1:].shape, generator=generator)
    clip, floats, grad = clip.to(device), floats.to(device), grad.to(device)
    ours = {
        kernel: MotionPrompt(sigmoid(m=M, n=N), mean=3 * [MEAN], std=3 * [STD], kernel=kernel)
        for kernel in ("eager", "auto")
    }
    return [
        layer_way("released", Released().to(device), floats, grad),
        layer_way("eager", ours["eager"].to(device), clip, grad),
        layer_way("fused", ours["auto"].to(device), clip, grad),
        layer_way("fused, float32 clip", ours["auto"].to(device), floats, grad),
        copy_way("copy", _moved(clip, grad), device, old=False),
        copy_way("copy, old memory", _moved(clip, grad), device, old=True),
    ]


def layer_way(name: str, layer: nn.Module, clip: Tensor, grad: Tensor) -> Way:
    """Return the way of a layer: prompts and V of a clip, then the gradients of m and n."""
    parameters = list(layer.parameters())
    grads = [grad, torch.tensor(PENALTY, device=grad.device)]

    def backward(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, parameters, grads)

    return Way(name, lambda: layer(clip), backward, _moved(clip, grad))


def _moved(clip: Tensor, grad: Tensor) -> int:
    return 2 * clip.nbytes + 2 * grad.nbytes


def copy_way(name: str, moved: int, device: str, *, old: bool) -> Way:
    """Return the way that copies bytes, as many as a layer must read and write, half in each pass.

    Args:
        name: of the way.
        moved: bytes to be read and written in all.
        device: where they are.
        old: they are written where something has been written before, not into new memory.
    """
    source = torch.ones(moved // 4, dtype=torch.uint8, device=device)
    memory = torch.ones_like(source) if old else None

    def copy(_: Any = None) -> Tensor:
        return (torch.empty_like(source) if memory is None else memory).copy_(source)

    return Way(name, copy, copy, moved)


# --------------------------------------------------------------------------- measuring
def time_way(way: Way, flush: Tensor) -> dict[str, float]:
    """Return the seconds of a forward and of a backward pass.

    On a GPU a large write goes before, so that the clip is not in its cache, and some idle time,
    in which the passes are queued: what is measured is the GPU's time and not Python's.
    """
    marks: list[Any] = []

    def mark() -> None:
        if flush.is_cuda:
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()
        else:
            marks.append(time.perf_counter())

    flush.zero_()
    if flush.is_cuda:
        torch.cuda._sleep(IDLE)
    mark()
    outputs = way.forward()
    mark()
    way.backward(outputs)
    mark()
    pairs = list(itertools.pairwise(marks))
    if flush.is_cuda:
        torch.cuda.synchronize()
        seconds = [one.elapsed_time(other) / 1000 for one, other in pairs]
    else:
        seconds = [other - one for one, other in pairs]
    return dict(zip(PASSES, seconds, strict=True))


def peak_bytes(way: Way, device: str) -> int:
    """Return the most that a forward and a backward pass allocate on top of what was there.

    There were the clip, the parameters and the incoming gradients; the prompts are counted.
    """
    return extra_peak(device, lambda: way.backward(way.forward()))


# --------------------------------------------------------------------------- tables
HEAD = [
    "| clip | way | forward, ms | backward, ms | both, ms | released / this | "
    "peak / prompts | GB/s | of copy, % |",
    "|---" * 9 + "|",
]


def rows(result: dict[str, Any]) -> str:
    """Return the lines of the Markdown table."""
    clip = " x ".join(map(str, result["clip"]))
    return "\n".join(
        "| " + " | ".join([clip, name, *_cells(result, name)]) + " |" for name in result["ways"]
    )


def _cells(result: dict[str, Any], name: str) -> list[str]:
    way, released = result["ways"][name], totals(result, "released")
    both = totals(result, name)
    form = "{:.1f}" if result["device"] == "cpu" else "{:.3f}"
    passes = ([each[part] for each in way["seconds"]] for part in PASSES)
    ratios = [one / other for one, other in zip(released, both, strict=True)]
    rate, copied = (_rate(result, each) for each in (name, "copy"))
    return [
        *(spread([1000 * value for value in each], form) for each in (*passes, both)),
        "" if name == "released" else spread(ratios, "{:.2f}"),
        f"{way['peak_bytes'] / result['prompt_bytes']:.2f}",
        f"{rate / 1e9:.1f}",
        f"{100 * rate / copied:.0f}",
    ]


def totals(result: dict[str, Any], name: str) -> list[float]:
    """Return the seconds of both passes of a way, one a round."""
    return [each["forward"] + each["backward"] for each in result["ways"][name]["seconds"]]


def _rate(result: dict[str, Any], name: str) -> float:
    return float(result["ways"][name]["moved"] / statistics.median(totals(result, name)))
