"""Explore motion prompts of a video on a local web page, with sliders.

python tools/explorer.py clip.avi                          # http://127.0.0.1:7860
python tools/explorer.py clip.avi --checkpoint RUN         # starts with what a run has learned
python tools/explorer.py clip.avi --port 0 --no-browser    # any free port, no window opens

The page is for this machine alone, unless --host says otherwise, and fetches nothing from others.
"""

import argparse
import re
import socket
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vmp.utils.cli import run_cli

GRADIO = (6, 10)  # the first whose HTML can be watched by a script
MOST_FRAMES = 16
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", metavar="VIDEO", help="a video file")
    clip = parser.add_argument_group("what the page starts with")
    about = "a run with PROMPT.ENABLE, its OUTPUT_DIR or a checkpoint: what it has learned"
    clip.add_argument("--checkpoint", metavar="RUN", help=about)
    about = "its config (default: config.yaml of the run), or a recipe: the _BASE_ of the YAML"
    clip.add_argument("--cfg", metavar="FILE", help=about)
    about = "whose prompt, slowest first (default: 0)"
    clip.add_argument("--pathway", type=int, default=0, metavar="N", help=about)
    clip.add_argument("--start", type=int, default=0, metavar="N", help="first frame, from 0")
    about = "distance of two frames (default: as the checkpoint's config has it, else 2)"
    clip.add_argument("--stride", type=int, metavar="N", help=about)
    about = "prompts made (default: as the checkpoint's config has it, else 8)"
    clip.add_argument("--frames", type=int, metavar="N", help=about)
    about = "of height and width, pixels (default: 224)"
    clip.add_argument("--short-side", type=int, default=224, metavar="N", help=about)
    page = parser.add_argument_group("the page")
    about = "address to listen at (default: %(default)s: this machine alone)"
    page.add_argument("--host", default="127.0.0.1", help=about)
    about = "port (default: %(default)s); 0 takes a free one"
    page.add_argument("--port", type=int, default=7860, metavar="N", help=about)
    page.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a line about numbers out of their range."""
    ranges = {
        "start": (0, None),
        "stride": (1, None),
        "frames": (2, MOST_FRAMES),
        "short_side": (16, 1080),
        "pathway": (0, None),
        "port": (0, 65535),
    }
    for name, (low, high) in ranges.items():
        value = getattr(args, name)
        if value is not None and (value < low or (high is not None and value > high)):
            rule = f"at least {low}" if high is None else f"from {low} to {high}"
            parser.error(f"--{name.replace('_', '-')} is {value}; it is {rule}")


def check_extra() -> None:
    """Raise ValueError unless there is a Gradio that the page can be made with."""
    wanted = ".".join(map(str, GRADIO))
    try:
        found = version("gradio")
    except PackageNotFoundError:
        found = ""
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < GRADIO:
        what = f"it is {found}, {wanted} is needed" if found else "it is not installed"
        raise ValueError(f"the page needs Gradio, {what}: pip install 'vmp[explorer]'")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ValueError: the port is taken, or there is no such address here.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(
            f"--host {host}: {error.strerror}; give an address of this machine"
        ) from None
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(place)
        taken.listen()
    except OSError as error:
        taken.close()
        why = (error.strerror or str(error)).lower()
        raise ValueError(
            f"can't listen at {host}, port {port}: {why}; --port 0 takes a free one"
        ) from None
    return taken


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is interrupted."""
    args = parse_args(argv)
    for path in filter(None, (args.video, args.checkpoint)):
        if not Path(path).exists():
            raise ValueError(f"{path} does not exist; name a video, and the OUTPUT_DIR of a run")
    check_extra()
    with listen(args.host, args.port) as taken:
        # torch takes seconds, and so does Gradio: each is imported when all before is right
        from explorer_answers import build_start

        from vmp.data import VideoReader

        with VideoReader(args.video) as reader:
            start = build_start(args, reader)
            from explorer_page import serve

            serve(args, start, taken)


if __name__ == "__main__":
    run_cli(main)
