"""Write what layers of a trained model make of videos, a file for each video.

python tools/extract_features.py --checkpoint RUN --list-layers
python tools/extract_features.py --checkpoint RUN --out FOLDER VIDEO FOLDER LIST ...
python tools/extract_features.py --checkpoint RUN --out FOLDER --split test [KEY VALUE ...]

A folder is searched for videos; a list is a .txt, .csv or .list file with a path a line, relative
to itself, and perhaps a label after it. --split is for the data set of the config. The same command
goes on where it was stopped. It ends with status 1 if a video could not be read.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vmp.config.load import part_words
from vmp.utils.cli import run_cli

SPLITS = ("train", "test")
FORMATS = ("safetensors", "npz")
VIEWS = ("test", "center")
POOLS = ("none", "mean")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; what is no option is parted into `videos` and `opts`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    about = "videos, folders, lists; then overrides of the config, as NUM_GPUS 1"
    parser.add_argument("words", nargs="*", metavar="VIDEO ... KEY VALUE", help=about)
    about = "a checkpoint, or the OUTPUT_DIR of a run: its newest"
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="RUN", help=about)
    about = "its config (default: config.yaml of the run)"
    parser.add_argument("--cfg", metavar="FILE", help=about)
    about = "of the data set of the config, instead of videos"
    parser.add_argument("--split", choices=SPLITS, help=about)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go")
    about = "which (default: features, what the last layer makes logits of); several may be given"
    parser.add_argument("--layer", action="append", metavar="NAME", help=about)
    about = "say which layers there are, and what each gives for one clip"
    parser.add_argument("--list-layers", action="store_true", help=about)
    about = f"of the files (default: {FORMATS[0]})"
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help=about)
    about = "test: all clips and crops of a test (the default); center: its first clip's centre"
    parser.add_argument("--views", choices=VIEWS, default=VIEWS[0], help=about)
    about = "mean: averaged over frames and places, channels left; none: whole (the default)"
    parser.add_argument("--pool", choices=POOLS, default=POOLS[0], help=about)
    about = "on the CPU (default: 1; on GPUs there is one for each of NUM_GPUS)"
    parser.add_argument("--processes", type=int, metavar="N", help=about)
    args = parser.parse_intermixed_args(argv)
    args.videos, args.opts = part_words(args.words)
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a line about arguments that do not go together."""
    if args.processes is not None and args.processes < 1:
        parser.error(f"--processes is {args.processes}; it must be at least 1")
    if args.list_layers:
        return
    if args.out is None:
        parser.error("--out FOLDER is missing: where the files go")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file; name a folder")
    if bool(args.videos) == bool(args.split):
        parser.error("name videos, folders or lists, or a --split of the config's data set")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for and return the exit status."""
    args = parse_args(argv)
    from features_run import extract, list_layers  # torch: after all that can be wrong here

    return list_layers(args) if args.list_layers else extract(args)


if __name__ == "__main__":
    run_cli(lambda: sys.exit(main()))
