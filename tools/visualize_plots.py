"""The figures of `tools/visualize.py` that are curves and surfaces."""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from visualize import STRIDE
from visualize_clip import all_norms, pick_numbers, read_clip

from vmp.data import VideoReader
from vmp.prompts import MotionPrompt
from vmp.visualization import (
    draw_curves,
    draw_history,
    draw_surfaces,
    moved_blob,
    read_history,
    save_figure,
)


def draw(args: argparse.Namespace) -> None:
    """Draw the figure of a command, and write it.

    Args:
        args: of the command line.

    Raises:
        ValueError: a run has no log of its prompts, or no m and n give the numbers.
        DecodeError: the video can't be read.
    """
    makers = {"curves": lambda _: draw_curves(), "history": _history, "surfaces": _surfaces}
    figure = makers[args.command](args)
    for path in args.out:
        save_figure(figure, path, dpi=args.dpi)
        print(f"wrote {path}")


def _history(args: argparse.Namespace) -> Figure:
    return draw_history([each for run in args.runs for each in read_history(run)])


def _surfaces(args: argparse.Namespace) -> Figure:
    ((m, n),) = pick_numbers(args)
    if not args.video:
        return draw_surfaces(all_norms(m, n), moved_blob())
    stride = args.stride or STRIDE
    numbers = [args.start + step * stride for step in range(3)]  # as few as a prompt takes
    with VideoReader(args.video) as video:
        clip = read_clip(video, numbers, args.short_side)
    difference = MotionPrompt().differences(clip.unsqueeze(0))[0, 0]
    title = f"{Path(args.video).name}, frames {numbers[0]} and {numbers[1]}"
    return draw_surfaces(all_norms(m, n), difference, title=title)
