"""Make a data set of your own videos: the lists, a split, recipes, and the command that trains.

python tools/new_dataset.py FOLDER           # a folder of class folders
python tools/new_dataset.py VIDEOS.csv       # lines `path,label`, paths relative to the file

A split that is there already is kept: folders train/ and test/ (or val/) of class folders, or a
column `split` of the CSV. Otherwise --test-share of each class is held out, by a draw that depends
on --seed and the names alone. Every video is opened once; those that can't be read are named and
left out. The videos themselves are never changed, moved or copied.
"""

import argparse
import re
from pathlib import Path

from vmp.utils.cli import run_cli

BASES = Path(__file__).resolve().parents[1] / "configs" / "base"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", type=Path, metavar="DIR", help="a folder of class folders, or a CSV file"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="for lists and recipes; data/<name of DIR> if not given",
    )
    parser.add_argument(
        "--test-share", type=float, default=0.2, metavar="S", help="of each class, 0 to 1 (0.2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another one, another split (0)")
    parser.add_argument(
        "--group-by",
        metavar="REGEX",
        help="keep videos together, all to train or all to test, in whose path it finds the same "
        "text (its first group, if it has one): clips of one person or recording",
    )
    parser.add_argument(
        "--recipe",
        nargs="+",
        default=["X3D_S"],
        metavar="NAME",
        help="backbones of configs/base to write recipes for (X3D_S)",
    )
    parser.add_argument(
        "--small", action="store_true", help="recipes that a CPU can train from scratch: 64 pixels"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes; the cores there are if not given"
    )
    parser.add_argument("--force", action="store_true", help="replace lists and recipes in --out")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if not 0 < args.test_share < 1:
        parser.error(f"--test-share is {args.test_share:g}; it must be between 0 and 1")
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")
    if args.group_by is not None:
        try:
            re.compile(args.group_by)
        except re.error as error:
            parser.error(f"--group-by {args.group_by!r} is no regular expression: {error}")
    args.out = args.out or Path("data", args.source.absolute().stem)
    return args


def main(argv: list[str] | None = None) -> None:
    """Make lists and recipes, and say how to go on."""
    args = parse_args(argv)
    from new_dataset_write import make_dataset

    make_dataset(
        args.source,
        args.out,
        test_share=args.test_share,
        seed=args.seed,
        group_by=args.group_by,
        recipes=args.recipe,
        bases=BASES,
        small=args.small,
        workers=args.workers,
        force=args.force,
    )


if __name__ == "__main__":
    run_cli(main)
