"""Draw the figures of the paper, of formulas, of videos and of your own runs.

python tools/visualize.py curves --out fig3.png                    # Fig. 3, in closed form
python tools/visualize.py surfaces --out surfaces.png              # before and after each norm
python tools/visualize.py history RUN RUN ... --out fig4.pdf       # Fig. 4: a and b of your runs
python tools/visualize.py panels --video clip.avi --out fig5.png fig5.mp4 --checkpoint RUN
python tools/visualize.py panels --video clip.avi --out fig5.png --a 11.04 --b -0.59
python tools/visualize.py compare --video clip.avi --out compare.png

--out takes several files, .png, .pdf or .svg, and for panels and compare .mp4 with all kinds of
pictures side by side. Without a command it is `panels`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vmp.utils.cli import run_cli

# What the authors' site gives as learned on MPII Cooking 2: a = 23.46, b = 0.032; the one of their
# settings that holds the background back.
MPII_M, MPII_N = 0.257, 0.053
FRAMES, STRIDE = 8, 2
COMMANDS = {
    "curves": "Fig. 3: power normalisations, slope a(m), shift b(n), f(D), in closed form",
    "surfaces": "a difference map before and after each power normalisation, in 3-D",
    "history": "Fig. 4: slope and shift against the epoch, from the logs of runs",
    "panels": "Fig. 5 and 6: frames, differences, attention and prompts of a video",
    "compare": "all power normalisations on one video",
}
PICTURES, MOVIE = (".png", ".pdf", ".svg"), ".mp4"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        kinds = PICTURES + ((MOVIE,) if name in ("panels", "compare") else ())
        about = f"what to write: {', '.join(kinds)}"
        command.add_argument("--out", nargs="+", required=True, metavar="FILE", help=about)
        about = "dots an inch of a picture (default: 120)"
        command.add_argument("--dpi", type=int, default=120, metavar="N", help=about)
        if name == "history":
            command.add_argument("runs", nargs="+", metavar="RUN", help="an OUTPUT_DIR")
        if name in ("surfaces", "panels", "compare"):
            _add_clip(command, required=name != "surfaces")
            _add_numbers(command, several=name == "panels")
        if name in ("panels", "compare"):
            _add_layout(command)
        if name == "panels":
            _add_trained(command)
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def _add_clip(parser: argparse.ArgumentParser, *, required: bool) -> None:
    clip = parser.add_argument_group("the clip")
    about = "the video file" if required else "the video file; without one: a made-up difference"
    clip.add_argument("--video", required=required, metavar="FILE", help=about)
    clip.add_argument("--start", type=int, default=0, metavar="N", help="its first frame, from 0")
    about = f"distance of two frames (default: as the checkpoint's config has it, else {STRIDE})"
    clip.add_argument("--stride", type=int, metavar="N", help=about)
    about = "of height and width, pixels (default: 256)"
    clip.add_argument("--short-side", type=int, default=256, metavar="N", help=about)


def _add_numbers(parser: argparse.ArgumentParser, *, several: bool) -> None:
    given = parser.add_argument_group("the paper's power normalisation by its numbers")
    count = "+" if several else 1
    named = {
        "a": "slope, above 9.09 and up to 50",
        "b": "shift, between -0.6 and 0.6",
        "m": f"instead of --a (default: {MPII_M}, MPII's)",
        "n": f"instead of --b (default: {MPII_N}, MPII's)",
    }
    for name, about in named.items():
        given.add_argument(f"--{name}", type=float, nargs=count, metavar=name.upper(), help=about)


def _add_layout(parser: argparse.ArgumentParser) -> None:
    layout = parser.add_argument_group("the picture")
    about = f"prompts made (default: as the checkpoint's config has it, else {FRAMES})"
    layout.add_argument("--frames", type=int, metavar="N", help=about)
    about = "of these drawn, evenly spaced; a movie has all (default: 8)"
    layout.add_argument("--steps", "--rows", type=int, default=8, metavar="N", help=about)
    about = "add the differences stretched to the full range, as in Fig. 1"
    layout.add_argument("--normalised", action="store_true", help=about)


def _add_trained(parser: argparse.ArgumentParser) -> None:
    trained = parser.add_argument_group("or trained prompts")
    about = "checkpoints of runs with PROMPT.ENABLE, or their OUTPUT_DIR: its newest"
    trained.add_argument("--checkpoint", nargs="+", metavar="RUN", help=about)
    about = "their config file (default: config.yaml of the run)"
    trained.add_argument("--cfg", metavar="FILE", help=about)
    about = "whose prompt, slowest first (default: 0)"
    trained.add_argument("--pathway", type=int, default=0, metavar="N", help=about)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a line about arguments that do not go together."""
    given = vars(args)
    numbers = {name: given.get(name) or [] for name in "abmn"}
    for pair in ("ab", "mn"):
        if len(numbers[pair[0]]) != len(numbers[pair[1]]):
            parser.error(f"--{pair[0]} and --{pair[1]} go together, equally many numbers each")
    if bool(numbers["a"]) + bool(numbers["m"]) + bool(given.get("checkpoint")) > 1:
        parser.error("give --a and --b, --m and --n, or --checkpoint, one of the three")
    if given.get("cfg") and not args.checkpoint:
        parser.error("--cfg is the config of a --checkpoint; give that too")
    least = {"start": 0, "stride": 1, "frames": 2, "steps": 1, "short_side": 1, "dpi": 20}
    for name, lowest in least.items():
        if given.get(name) is not None and given[name] < lowest:
            parser.error(f"--{name.replace('_', '-')} is at least {lowest}")
    allowed = PICTURES + ((MOVIE,) if args.command in ("panels", "compare") else ())
    for path in map(Path, args.out):
        if path.suffix.lower() not in allowed:
            parser.error(f"--out {path}: it must end in one of {', '.join(allowed)}")
        if path.is_dir():
            parser.error(f"--out {path} is a folder; name a file")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    import sys

    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0].startswith("--") and words[0] != "--help":
        words = ["panels", *words]
    args = parse_args(words)
    # matplotlib and torch take seconds: they are imported after the arguments are read
    if args.command in ("panels", "compare"):
        from visualize_prompt import draw
    else:
        from visualize_plots import draw
    draw(args)


if __name__ == "__main__":
    run_cli(main)
