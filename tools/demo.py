"""Predict for your own video: `python tools/demo.py --checkpoint RUN VIDEO [KEY VALUE ...]`.

VIDEO is a file, a folder of them, or - for one that comes through a pipe; --camera 0 takes a camera
instead. The likeliest classes are printed; --json writes them to a file, --out a movie that shows
them beside the attention and the prompts.
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vmp.config.load import part_words
from vmp.utils.cli import run_cli
from vmp.utils.files import make_folder_of

MOVIE, PIPE, CAMERA = ".mp4", "-", "/dev/video"
# Files of a folder that are taken for videos.
VIDEO_TYPES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)


class Job(NamedTuple):
    """One video.

    Attributes:
        video: a path, PIPE, or the device of a camera.
        movie: to write, or None.
    """

    video: str
    movie: Path | None

    @property
    def is_stream(self) -> bool:
        """Whether it comes but once, and perhaps without an end."""
        return self.video == PIPE or self.video.startswith(CAMERA)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments; `videos` and `opts` are those without a name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="VIDEO ... KEY VALUE",
        help="videos, then overrides of the config",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="RUN", help="an OUTPUT_DIR, or a file of weights")
    add("--cfg", metavar="FILE", help="its config (default: config.yaml of the run)")
    add("--camera", metavar="N", help=f"a camera: a number, or {CAMERA}N")
    add("--out", type=Path, metavar="FILE", help="movie to write; for several videos a folder")
    add("--json", type=Path, metavar="FILE", help="file to write the predictions to")
    about = "a prediction each for windows of a clip's length, or one as a test makes it"
    add("--window", choices=("sliding", "whole"), default="sliding", help=about)
    about = "from one window to the next (default: half a window)"
    add("--stride", type=float, metavar="SECONDS", help=about)
    add("--topk", type=int, default=5, metavar="N", help="classes to name (default: 5)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    about = "whose attention the movie shows, slowest first (default: the first that has one)"
    add("--pathway", type=int, metavar="N", help=about)
    add("--seconds", type=float, metavar="N", help="stop a camera or pipe after so many")
    args = parser.parse_intermixed_args(argv)
    args.videos, args.opts = part_words(args.words)
    return args


def list_jobs(args: argparse.Namespace) -> list[Job]:
    """Return what is to be done, all of it possible as far as names tell.

    Raises:
        ValueError: arguments that do not go together, a video that is not there, or an output that
            can't be written.
    """
    check_numbers(args)
    videos = list_videos(args)
    if args.json is not None:
        check_json(args.json, videos)
    several = (
        len(videos) > 1 or Path(args.videos[0] if args.videos else "").is_dir() and args.videos
    )
    if args.out is None:
        jobs = [Job(video, None) for video in videos]
    elif several:
        jobs = [Job(video, args.out / f"{Path(video).name}{MOVIE}") for video in videos]
        check_folder(args.out, jobs)
    else:
        jobs = [Job(videos[0], args.out)]
        check_movie(args.out, videos[0])
    for job in jobs:
        if job.movie is not None:
            make_folder_of(job.movie)
    if any(job.is_stream for job in jobs):
        if len(jobs) > 1:
            raise ValueError("a pipe or camera goes alone; give the other videos in another call")
        if args.window == "whole":
            raise ValueError("the end of a pipe or camera is not known; give --window sliding")
    elif args.seconds is not None:
        raise ValueError("--seconds stops a pipe or camera; files are read to their end")
    return jobs


def check_numbers(args: argparse.Namespace) -> None:
    """Raise ValueError for a number that makes no sense."""
    if args.topk < 1:
        raise ValueError(f"--topk {args.topk}: it must be at least 1")
    for name in ("stride", "seconds"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} {value:g}: it must be above 0")
    if args.stride is not None and args.window == "whole":
        raise ValueError("--stride is of windows; leave it out, or give --window sliding")


def list_videos(args: argparse.Namespace) -> list[str]:
    """Return the videos, those of a folder in the order of their names."""
    if args.camera is not None:
        if args.videos:
            raise ValueError(f"--camera and {args.videos[0]} were given; choose one of them")
        return [f"{CAMERA}{args.camera}" if args.camera.isdigit() else args.camera]
    if not args.videos:
        raise ValueError("no video was given; name a file, a folder, - for a pipe, or --camera 0")
    found: list[str] = []
    for word in args.videos:
        path = Path(word)
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.suffix.lower() in VIDEO_TYPES)
            if not inside:
                endings = ", ".join(VIDEO_TYPES)
                raise ValueError(f"{word} has no videos in it; they end in {endings}")
            found += map(str, inside)
        elif "://" in word:
            raise ValueError(f"{word} is a URL, none is opened; pipe the video in, and give -")
        elif word == PIPE or word.startswith(CAMERA) or path.exists():
            found.append(word)
        else:
            raise ValueError(f"{word} does not exist; name a video file, or a folder of them")
    return found


def check_json(out: Path, videos: Sequence[str]) -> None:
    """Raise ValueError unless the predictions can be written."""
    if out.is_dir():
        raise ValueError(f"--json {out} is a folder; name a file")
    if out.exists() and any(os.path.exists(video) and out.samefile(video) for video in videos):
        raise ValueError(f"--json {out} is one of the videos; give another name")
    make_folder_of(out)


def check_movie(out: Path, video: str) -> None:
    """Raise ValueError unless the movie of one video can be written."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file that ends in {MOVIE}")
    if out.suffix.lower() != MOVIE:
        raise ValueError(f"--out {out}: the movie of one video must end in {MOVIE}")
    if out.exists() and os.path.exists(video) and out.samefile(video):
        raise ValueError(f"--out {out} is the video itself; give another name")


def check_folder(out: Path, jobs: Sequence[Job]) -> None:
    """Raise ValueError unless each of several videos gets a movie of its own in a folder."""
    if out.suffix.lower() == MOVIE or (out.exists() and not out.is_dir()):
        raise ValueError(f"--out {out} is one file, the videos are {len(jobs)}; name a folder")
    seen: dict[Path | None, str] = {}
    for job in jobs:
        if job.movie in seen:
            raise ValueError(
                f"{seen[job.movie]} and {job.video} would both become {job.movie}; "
                "give them in two calls"
            )
        seen[job.movie] = job.video


def main(argv: Sequence[str] | None = None) -> None:
    """Look at the command line, then predict."""
    args = parse_args(argv)
    jobs = list_jobs(args)
    from demo_run import run  # torch: after all that can be wrong with the command line

    run(args, jobs)


if __name__ == "__main__":
    run_cli(main)
