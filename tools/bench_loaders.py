"""What `tools/bench.py loader` measures: clips per second of whole loaders, plain and ours."""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import bench_clips
import bench_decode
from torch import Tensor

LOADERS = {"plain": bench_decode.plain_loader, "ours": bench_decode.our_loader}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `loader`."""
    bench_clips.add_video_arguments(command)
    command.add_argument("--workers", nargs="+", type=int, default=[0, 2])


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the clips per second of whole loaders, the first batch of each not counted."""
    for paths, kind, sampling in bench_clips.kinds(args):
        for workers in args.workers:
            rates = {
                name: clips_per_second(make(paths, sampling, args.clips, workers))
                for name, make in LOADERS.items()
            }
            about = {"format": kind, "sampling": sampling, "workers": workers}
            yield {"bench": "loader", **about, "clips_per_second": rates}


def clips_per_second(batches: Iterator[Tensor]) -> float:
    """Return the rate after the first batch."""
    next(batches)
    began, clips = time.perf_counter(), 0
    for batch in batches:
        clips += len(batch)
    return clips / (time.perf_counter() - began)


HEAD = [
    "| videos | clip | workers | plain, clips/s | ours, clips/s | ours / plain |",
    "|---|---|---|---|---|---|",
]


def rows(result: dict[str, Any]) -> str:
    """Return a line of the Markdown table."""
    rates = result["clips_per_second"]
    numbers = f"{rates['plain']:.1f} | {rates['ours']:.1f} | {rates['ours'] / rates['plain']:.1f}"
    return f"| {result['format']} | {result['sampling']} | {result['workers']} | {numbers} |"
