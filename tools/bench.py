"""Measure, side by side in one run: how long it takes to get a clip out of a video, and to train.

python tools/bench.py decode      # CPU seconds of a clip: the plain way, ours, decoding alone
python tools/bench.py loader      # clips per second of a whole loader
python tools/bench.py step        # a training step and its parts: the plain way, ours
python tools/bench.py stop        # what checkpoints, a stop by a signal and a resumed start cost
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import bench_decode
import bench_step
import bench_stop
import torch

from vmp.data.decode import BACKENDS
from vmp.utils.cli import run_cli

# each has add_arguments, measure, and HEAD and rows of its table
PARTS = {"step": bench_step, "stop": bench_stop}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("decode", "loader"):
        command = commands.add_parser(name)
        command.add_argument("--formats", nargs="+", choices=bench_decode.FORMATS)
        command.add_argument("--samplings", nargs="+", choices=bench_decode.SAMPLINGS)
        command.add_argument("--clips", type=int, default=40, help="of each kind")
        command.add_argument("--videos", type=int, default=3, help="of each format")
        command.add_argument("--folder", help="keep the videos here and take those that are there")
        command.add_argument("--out", help="append the measurements, a line of JSON each")
        command.set_defaults(
            formats=list(bench_decode.FORMATS), samplings=list(bench_decode.SAMPLINGS)
        )
    commands.choices["decode"].add_argument("--backends", nargs="+", choices=BACKENDS)
    commands.choices["decode"].set_defaults(backends=["pyav"])
    commands.choices["loader"].add_argument("--workers", nargs="+", type=int, default=[0, 2])
    for name, part in PARTS.items():
        part.add_arguments(commands.add_parser(name))
    return parser.parse_args(argv)


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    models = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": str(len(models) or "?"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "av": av.__version__,
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def spread(values: list[float]) -> dict[str, float]:
    """Return median and quartiles in milliseconds."""
    low, middle, high = statistics.quantiles([1000 * value for value in values], n=4)
    return {"low": low, "median": middle, "high": high}


def bench_clips(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the CPU time of a clip for each format and sampling."""
    torch.set_num_threads(1)
    for kind in args.formats:
        paths = bench_decode.make_videos(folder, kind, args.videos)
        for sampling in args.samplings:
            seconds = bench_decode.measure(paths, sampling, args.clips, args.backends)
            times = {name: spread(values) for name, values in seconds.items()}
            yield {"bench": "decode", "format": kind, "sampling": sampling, "cpu_ms": times}


def bench_loaders(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the clips per second of whole loaders, the first batch of each not counted."""
    for kind in args.formats:
        paths = bench_decode.make_videos(folder, kind, args.videos)
        for sampling in args.samplings:
            for workers in args.workers:
                rates = {}
                for name in ("plain", "ours"):
                    make = getattr(
                        bench_decode, {"plain": "plain_loader", "ours": "our_loader"}[name]
                    )
                    rates[name] = clips_per_second(make(paths, sampling, args.clips, workers))
                yield {
                    "bench": "loader",
                    "format": kind,
                    "sampling": sampling,
                    "workers": workers,
                    "clips_per_second": rates,
                }


def clips_per_second(batches: Iterator[torch.Tensor]) -> float:
    """Return the rate after the first batch."""
    next(batches)
    began, clips = time.perf_counter(), 0
    for batch in batches:
        clips += len(batch)
    return clips / (time.perf_counter() - began)


def decode_row(result: dict[str, Any]) -> str:
    """Return a line of the Markdown table."""
    times = result["cpu_ms"]
    plain, floor = times["plain"]["median"], times["floor"]["median"]
    cells = [result["format"], result["sampling"], *(_cell(times[name]) for name in times)]
    ours = [times[name]["median"] for name in times if name in BACKENDS]
    cells += [f"{plain / value:.1f}" for value in ours] + [f"{value / floor:.2f}" for value in ours]
    return "| " + " | ".join(cells) + " |"


def _cell(value: dict[str, float]) -> str:
    return f"{value['median']:.1f} ({value['low']:.1f}-{value['high']:.1f})"


def decode_head(backends: list[str]) -> list[str]:
    """Return the head of the Markdown table."""
    cells = ["videos", "clip", "plain, ms", *(f"{name}, ms" for name in backends), "floor, ms"]
    cells += ["index, ms", *(f"plain / {name}" for name in backends)]
    cells += [f"{name} / floor" for name in backends]
    return ["| " + " | ".join(cells) + " |", "|---" * len(cells) + "|"]


def loader_row(result: dict[str, Any]) -> str:
    """Return a line of the Markdown table."""
    rates = result["clips_per_second"]
    numbers = f"{rates['plain']:.1f} | {rates['ours']:.1f} | {rates['ours'] / rates['plain']:.1f}"
    return f"| {result['format']} | {result['sampling']} | {result['workers']} | {numbers} |"


LOADER_HEAD = [
    "| videos | clip | workers | plain, clips/s | ours, clips/s | ours / plain |",
    "|---|---|---|---|---|---|",
]


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table as it grows, append lines of JSON."""
    args = parse_args(argv)
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if args.command in PARTS:
        part = PARTS[args.command]
        show(part.measure(args), part.HEAD, part.rows, args.out, about)
        return
    decode = args.command == "decode"
    head = decode_head(args.backends) if decode else LOADER_HEAD
    with tempfile.TemporaryDirectory() as temporary:
        results = (bench_clips if decode else bench_loaders)(args, Path(args.folder or temporary))
        show(results, head, decode_row if decode else loader_row, args.out, about)


def show(
    results: Iterator[dict[str, Any]],
    head: list[str],
    row: Callable[[dict[str, Any]], str],
    out: str | None,
    about: dict[str, str],
) -> None:
    """Print a Markdown table as it grows, and append lines of JSON to `out`."""
    print("\n".join(head))
    for result in results:
        print(row(result))
        sys.stdout.flush()
        if out:
            with open(out, "a", encoding="utf-8") as file:
                file.write(json.dumps({**result, "machine": about}) + "\n")


if __name__ == "__main__":
    run_cli(main)
