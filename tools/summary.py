"""Compare runs: a table on the screen, and files of it, or a plot.

python tools/summary.py runs                                   # every run below a folder
python tools/summary.py runs/x3d_xs runs/x3d_xs_vmp --out curves.png table.md
python tools/summary.py 'runs/lambda_*' --sort top1 --out all.csv all.json

RUNS are OUTPUT_DIRs of runs that go on, have ended or have failed, folders with such folders below,
or patterns of them. --out takes several files: .md, .csv and .json hold the table, .png, .pdf and
.svg the curves of loss, validation, slope and shift.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vmp.utils.cli import run_cli

METRICS = ("top1", "top5", "mean_class_accuracy", "mean_average_precision", "loss")
TABLES, PICTURES = (".md", ".csv", ".json"), (".png", ".pdf", ".svg")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folders, or patterns of folders")
    about = f"what to write: {', '.join(TABLES + PICTURES)}"
    parser.add_argument("--out", nargs="+", default=[], metavar="FILE", help=about)
    about = f"of validation and plot: {', '.join(METRICS)} (default: top1)"
    parser.add_argument("--metric", choices=METRICS, default="top1", metavar="NAME", help=about)
    about = "name (the default), state, epochs, val, a metric of the test, or a key of the config"
    parser.add_argument("--sort", default="name", metavar="WHAT", help=about)
    about = "dots an inch of a picture (default: 120)"
    parser.add_argument("--dpi", type=int, default=120, metavar="N", help=about)
    args = parser.parse_args(argv)
    for path in map(Path, args.out):
        if path.suffix.lower() not in TABLES + PICTURES:
            parser.error(f"--out {path}: it must end in one of {', '.join(TABLES + PICTURES)}")
        if path.is_dir():
            parser.error(f"--out {path} is a folder; name a file")
    if args.dpi < 20:
        parser.error("--dpi is at least 20")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, and write what the command line asks for."""
    args = parse_args(argv)
    from summary_table import summarize  # torch and matplotlib take seconds

    summarize(args)


if __name__ == "__main__":
    run_cli(main)
