"""What `tools/bench.py decode` measures: CPU seconds of a clip, got in the ways of bench_decode."""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_decode
import torch

from vmp.data.decode import BACKENDS


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `decode`."""
    add_video_arguments(command)
    command.add_argument("--backends", nargs="+", choices=BACKENDS, default=["pyav"])


def add_video_arguments(command: argparse.ArgumentParser) -> None:
    """Add those that `decode` and `loader` have in common."""
    formats, samplings = list(bench_decode.FORMATS), list(bench_decode.SAMPLINGS)
    command.add_argument("--formats", nargs="+", choices=formats, default=formats)
    command.add_argument("--samplings", nargs="+", choices=samplings, default=samplings)
    command.add_argument("--clips", type=int, default=40, help="of each kind")
    command.add_argument("--videos", type=int, default=3, help="of each format")
    command.add_argument("--folder", help="keep the videos here and take those that are there")
    command.add_argument("--out", help="append the measurements, a line of JSON each")


def kinds(args: argparse.Namespace) -> Iterator[tuple[list[Path], str, str]]:
    """Yield (videos, format, sampling) of all that is asked for; the videos are made here."""
    with tempfile.TemporaryDirectory() as temporary:
        for kind in args.formats:
            paths = bench_decode.make_videos(Path(args.folder or temporary), kind, args.videos)
            for sampling in args.samplings:
                yield paths, kind, sampling


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the CPU time of a clip for each format and sampling."""
    torch.set_num_threads(1)
    for paths, kind, sampling in kinds(args):
        seconds = bench_decode.measure(paths, sampling, args.clips, args.backends)
        times = {name: spread(values) for name, values in seconds.items()}
        yield {"bench": "decode", "format": kind, "sampling": sampling, "cpu_ms": times}


def spread(values: list[float]) -> dict[str, float]:
    """Return median and quartiles in milliseconds."""
    low, middle, high = statistics.quantiles([1000 * value for value in values], n=4)
    return {"low": low, "median": middle, "high": high}


HEAD = [
    "| videos | clip | plain, ms | backend | ours, ms | floor, ms | index, ms | plain / ours "
    "| ours / floor |",
    "|---" * 9 + "|",
]


def rows(result: dict[str, Any]) -> str:
    """Return a line of the Markdown table for each backend."""
    return "\n".join(_row(result, name) for name in result["cpu_ms"] if name in BACKENDS)


def _row(result: dict[str, Any], backend: str) -> str:
    times = result["cpu_ms"]
    plain, ours, floor = (times[name]["median"] for name in ("plain", backend, "floor"))
    shown = {
        name: f"{t['median']:.1f} ({t['low']:.1f}-{t['high']:.1f})" for name, t in times.items()
    }
    cells = [result["format"], result["sampling"], shown["plain"], backend, shown[backend]]
    cells += [shown["floor"], shown["index"], f"{plain / ours:.1f}", f"{ours / floor:.2f}"]
    return "| " + " | ".join(cells) + " |"
