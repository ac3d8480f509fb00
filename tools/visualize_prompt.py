"""The figures of `tools/visualize.py` that show what prompts, given or trained, make of a video."""

import argparse
from pathlib import Path

from visualize import MOVIE
from visualize_clip import all_norms, fixed_norm, pick_numbers, read_clip, spaced

from vmp.data import VideoReader
from vmp.prompts import MotionPrompt
from vmp.visualization import draw_panel, motion_rows, movie_frames, save_figure, write_movie


def draw(args: argparse.Namespace) -> None:
    """Make the prompts, read the clip, draw.

    Args:
        args: of the command line.

    Raises:
        ValueError: the numbers, the configs or the checkpoints give no prompts to draw, or these
            do not see the same frames.
        DecodeError: the video can't be read.
    """
    with VideoReader(args.video) as video:
        prompts, numbers = pick_prompts(args, video.fps)
        clip = read_clip(video, numbers, args.short_side)
        fps = video.fps * (len(numbers) - 1) / (numbers[-1] - numbers[0])
    rows = motion_rows(prompts, clip, normalised=args.normalised)
    title, labels = Path(args.video).name, [f"frame {number}" for number in numbers[1:]]
    for path in map(Path, args.out):
        if path.suffix.lower() == MOVIE:
            write_movie(movie_frames(rows, title=title, labels=labels), path, fps)
        else:
            figure = draw_panel(rows, title=title, labels=labels, max_steps=args.steps)
            save_figure(figure, path, dpi=args.dpi)
        print(f"wrote {path}")


def pick_prompts(
    args: argparse.Namespace, fps: float
) -> tuple[list[tuple[str, MotionPrompt]], list[int]]:
    """Return the prompts, each with what to write above, and the frames that they see.

    Args:
        args: of the command line.
        fps: of the video.

    Raises:
        ValueError: as `draw`.
    """
    if args.command == "panels" and args.checkpoint:
        from visualize_trained import build_prompts  # the models take seconds to import

        return build_prompts(args, fps)
    numbers = spaced(args)
    if args.command == "compare":
        ((m, n),) = pick_numbers(args)
        return [("", MotionPrompt(norm)) for norm in all_norms(m, n).values()], numbers
    return [("", MotionPrompt(fixed_norm(m, n))) for m, n in pick_numbers(args)], numbers
