"""Say what is wrong before a run finds out.

python tools/doctor.py data --cfg CFG [KEY VALUE ...]     # the data set of a config
srun python tools/doctor.py dist --output-dir FOLDER      # the processes and hosts of a run

`data` opens every video once and judges every record. It ends with status 0 if the evaluation set
is whole, 1 if it is not, 2 if the command is wrong. It can be stopped at any time: the same command
goes on from there.

`dist` lets the processes that srun, torchrun or mpirun start (or --processes of its own) meet, add
up, and look at their clocks and at a folder. It ends with status 0 if all is well.
"""

import argparse
import sys
from pathlib import Path

from vmp.utils.cli import run_cli

SPLITS = ("train", "test")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; `data` sets `parser`, its own, for what it finds wrong later."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = "Audit the data set of a config."
    data = commands.add_parser("data", help="audit the data set of a config", description=about)
    _add_data_arguments(data)
    about = "Let the ranks of a run work together, before a training does."
    dist = commands.add_parser("dist", help="let the processes of a run meet", description=about)
    _add_dist_arguments(dist)
    return parser


def _add_data_arguments(data: argparse.ArgumentParser) -> None:
    data.set_defaults(parser=data)
    data.add_argument("--cfg", required=True, metavar="FILE", help="a YAML file of configs/")
    data.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides, see vmp/config")
    data.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="which; both if not given"
    )
    data.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for the report; OUTPUT_DIR/doctor if not given"
    )
    data.add_argument("--workers", type=int, help="processes; the cores there are if not given")
    data.add_argument("--full", action="store_true", help="decode every frame of every video")
    data.add_argument(
        "--clips-per-second",
        type=float,
        metavar="N",
        help="the rate at which the model trains on this machine, all GPUs together: how many "
        "workers that takes",
    )
    data.add_argument(
        "--no-speed", dest="speed", action="store_false", help="do not time the loader"
    )


def _add_dist_arguments(dist: argparse.ArgumentParser) -> None:
    dist.add_argument(
        "--processes", type=int, default=1, metavar="N", help="on the CPU, if no launcher has begun"
    )
    dist.add_argument(
        "--gpus", type=int, metavar="N", help="a process each; all there are if not given, 0: none"
    )
    dist.add_argument("--output-dir", default="", metavar="FOLDER", help="that all should see")
    dist.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds for each step (60)"
    )
    dist.add_argument("--json", action="store_true", help="for programs")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    args = make_parser().parse_args(argv)
    if args.command == "data" and args.workers is not None and args.workers < 1:
        args.parser.error("--workers must be at least 1")
    if args.command == "data" and args.clips_per_second is not None and args.clips_per_second <= 0:
        args.parser.error("--clips-per-second must be above 0")
    return args


def main(argv: list[str] | None = None) -> int:
    """Do what the sub-command says and return the exit status."""
    args = parse_args(argv)
    if args.command == "data":
        from doctor_data import check_data

        return check_data(args)
    from doctor_dist import check_dist

    return check_dist(args)


if __name__ == "__main__":
    run_cli(lambda: sys.exit(main()))
