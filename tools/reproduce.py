"""Reproduce the paper's tables: list the runs, do them, collect what came out.

python tools/reproduce.py table1                          # which runs there are, what each lacks
python tools/reproduce.py table1 --run NUM_GPUS 1         # do them, one after another
python tools/reproduce.py table1 --submit --slurm "--gpus-per-node 1 --time 24:00:00"
python tools/reproduce.py table1 --collect                # the table, on the screen and in --out
python tools/reproduce.py compare RUN_A RUN_B             # paired bootstrap of two finished runs
python tools/reproduce.py zoo                             # MODEL_ZOO.md's tables, from docs/runs

`lambda`, `sensitivity`, `power-norms`, `ablations` and `scratch` are used like `table1`; the lambda
that comes out is to be put into the recipe. Every command can be repeated: a run that is finished
is not done again, one that was stopped goes on. A table holds what was run with these recipes and
KEY VALUE pairs, nothing else. Data sets lie in --data as datasets/<name>/prepare.py writes them
(hmdb51, finegym, mpii_cooking2; motionshapes, ut_interaction for `scratch`), weights in --weights
under the names they are published with. What --collect writes as <study>_runs.json is all that is
left to keep of finished runs: put into docs/runs, it goes into MODEL_ZOO.md with `zoo`.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fvcore.common.config import CfgNode

from vmp.config import get_cfg
from vmp.utils.cli import run_cli

if TYPE_CHECKING:  # torch takes seconds: what needs it is imported after the arguments are read
    from reproduce_cells import Cell, Places
    from reproduce_state import State

STUDIES = {
    "table1": "Table 1: 14 rows on three splits of HMDB-51, FineGym and MPII Cooking 2",
    "lambda": "the weight of the penalty, chosen on a held-out part of the training split",
    "sensitivity": "alpha, beta and gamma, one at a time (the grid is ours)",
    "power-norms": "the paper's power normalisation and four others, learned and fixed",
    "ablations": "no attention, fixed or frozen parts, other starts, rates and sums: ours",
    "scratch": "MotionShapes and UT-Interaction from scratch, small enough for a CPU: ours",
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in STUDIES.items():
        _add_study(commands.add_parser(name, help=about, description=about))
    about = "Compare the stored predictions of two runs, such as a baseline and its prompted twin."
    compare = commands.add_parser("compare", help=about, description=about)
    compare.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="an OUTPUT_DIR")
    compare.add_argument("--draws", type=int, default=10_000, metavar="N")
    compare.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws")
    about = (
        "Bring the measured tables of MODEL_ZOO.md and their pictures up to date, from docs/runs."
    )
    commands.add_parser("zoo", help=about, description=about)
    words = sys.argv[1:] if argv is None else list(argv)
    end = first_key(words)
    args = parser.parse_args(words[:end])
    args.opts = words[end:]
    return args


def first_key(words: Sequence[str]) -> int:
    """Return the place of the first key of the config, or the end: a list may come before it."""
    cfg = get_cfg()
    sections = tuple(f"{name}." for name, value in cfg.items() if isinstance(value, CfgNode))
    keys = cfg.keys() - {name.rstrip(".") for name in sections}
    found = (n for n, word in enumerate(words) if word in keys or word.startswith(sections))
    return next(found, len(words))


def _add_study(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--dataset", nargs="+", default=[], metavar="NAME", help="folders of configs/; default: all"
    )
    add("--rows", nargs="+", default=[], metavar="RECIPE", help="with * and ?; default: all")
    add("--splits", nargs="+", default=[], metavar="SPLIT", help="default: all")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    add("--data", type=Path, default=Path("data"), metavar="FOLDER", help="of the data sets")
    add("--weights", type=Path, default=Path("data/weights"), metavar="FOLDER")
    add("--out", type=Path, default=Path("runs/reproduce"), metavar="FOLDER", help="for the runs")
    add("--rate", type=float, metavar="R", help="multiply-adds a second of a GPU, for the hours")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--run", action="store_true", help="do the runs one after another")
    ways.add_argument("--submit", action="store_true", help="submit them to SLURM as an array")
    ways.add_argument("--collect", action="store_true", help="make the tables")
    add("--dry-run", action="store_true", help="list; with --run or --submit, what would be done")
    add("--slurm", default="", metavar="OPTIONS", help="of tools/submit.py, in one word")
    parser.epilog = "KEY VALUE pairs, overrides of every run, come at the end, as NUM_GPUS 1"


def study(args: argparse.Namespace) -> None:
    """List the runs of a study, do them, or collect them."""
    from reproduce_cells import Places, list_cells
    from reproduce_state import build_states

    check_args(args)
    places = Places(args.data, args.weights, args.out)
    cells = list_cells(
        args.command,
        datasets=args.dataset,
        rows=args.rows,
        splits=args.splits,
        seeds=args.seeds,
    )
    if args.collect:
        collect(args, cells, places)
        return
    states = build_states(cells, places, args.opts, args.rate)
    print_states(states, args)
    if args.run:
        from reproduce_run import run_all

        run_all(states, places, args.opts, dry=args.dry_run)
    if args.submit:
        from reproduce_run import submit_all

        submit_all(states, places, args.opts, args.slurm, dry=args.dry_run)


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError for arguments that do not go together."""
    late = next((word for word in args.opts if word.startswith("--")), "")
    if late:
        raise ValueError(f"{late} comes after a KEY; put options before the KEY VALUE pairs")
    if len(args.opts) % 2:
        raise ValueError(f"overrides are KEY VALUE pairs; {args.opts[-1]!r} has no partner")
    if args.rate is not None and args.rate <= 0:
        raise ValueError(f"--rate is {args.rate:g}; it must be above 0, such as 5e12")
    if args.slurm and not args.submit:
        raise ValueError("--slurm is given without --submit; add it, or leave --slurm out")


def print_states(states: "Sequence[State]", args: argparse.Namespace) -> None:
    """Print a line for each run, then what is missing and how it is got, then the sums."""
    from reproduce_state import FORMULA, free_bytes

    width = max(len(state.cell.name) for state in states)
    for state in states:
        hours = "" if state.hours is None else f"{state.hours:9.1f} h"
        lacks = f"lacks {', '.join(state.lacks)}" if state.lacks else ""
        print(f"{state.cell.name:<{width}}  {state.stage:<8}  {lacks:<19}{hours}".rstrip())
    print()
    for detail, count in Counter(each for state in states for each in state.details).items():
        print(f"{detail} ({count} run{'s' if count > 1 else ''})")
    for line in dict.fromkeys(describe_data(state) for state in states if not state.data.lack):
        print(line)
    todo = [state for state in states if state.stage in ("new", "started")]
    ready = [state for state in todo if not state.lacks]
    stages = Counter(state.stage for state in states)
    print(
        f"{len(states)} runs: {', '.join(f'{n} {stage}' for stage, n in stages.items())}; "
        f"{len(ready)} can run now"
    )
    needed, free = sum(state.bytes for state in todo), free_bytes(args.out)
    print(f"disk: {needed / 1e9:.1f} GB for those to do, {free / 1e9:.1f} GB free for {args.out}")
    if args.rate is None:
        print("GPU hours: not told without --rate; `tools/bench.py step` measures one")
        return
    known = [state.hours for state in todo if state.hours is not None]
    print(f"{FORMULA}\nGPU hours: {sum(known):.0f} for {len(known)} of the {len(todo)} runs to do")


def describe_data(state: "State") -> str:
    """Return how much there is of a run's split."""
    cell, (train, all_train), (test, all_test) = state.cell, state.data.train, state.data.test
    kept_out = ", the test part held out of the training" if cell.held_out else ""
    return (
        f"data: {cell.dataset} split {cell.split}: {train} of {all_train} records to train on, "
        f"{test} of {all_test} to test on{kept_out}"
    )


def collect(args: argparse.Namespace, cells: "Sequence[Cell]", places: "Places") -> None:
    """Print the table of the finished runs, and write it as Markdown, CSV and LaTeX."""
    import reproduce_tables as tables
    from reproduce_collect import build_results, make_entries, make_gains, make_trials
    from reproduce_summary import summarize_runs, write_summaries

    from vmp.utils.files import write_text

    results, refused = build_results(cells, places, args.opts)
    files = {"_runs.csv": tables.runs_csv(results)}
    if args.command == "table1":
        entries = make_entries(results)
        page = tables.table1_markdown(entries, make_gains(results), results, refused)
        files |= {".csv": tables.table1_csv(entries), ".tex": tables.table1_latex(entries)}
    elif args.command == "scratch":
        import reproduce_scratch as scratch

        groups = scratch.make_trials(cells, results)
        page = scratch.page(STUDIES["scratch"], groups, results, refused)
        files |= {".csv": scratch.study_csv(groups)}
    else:
        trials = make_trials(cells, results)
        page = tables.study_markdown(STUDIES[args.command], trials, results, refused)
        files |= {".csv": tables.study_csv(trials)}
    files[".md"] = page
    print(page)
    for ending, text in files.items():
        write_text(args.out / f"{args.command}{ending}", text)
    summaries = f"{args.command}_runs.json"
    write_summaries(args.out / summaries, summarize_runs(results, places))
    names = ", ".join([*(f"{args.command}{ending}" for ending in sorted(files)), summaries])
    print(f"{len(results)} of {len(cells)} runs are in it; wrote {names} in {args.out}")


def compare(args: argparse.Namespace) -> None:
    """Print how sure the difference of two runs is."""
    from reproduce_compare import compare, describe, read_predictions

    first, second = (read_predictions(run) for run in args.runs)
    found = compare(first, second, replicates=args.draws, seed=args.seed)
    print(f"{args.runs[0]} -> {args.runs[1]}\n{describe(found, first, second)}")


def zoo() -> None:
    """Bring MODEL_ZOO.md and its pictures up to date."""
    from reproduce_pictures import draw_pictures
    from reproduce_zoo import PAGE, ROOT, RUNS, read_study, write_page

    print(f"{PAGE}: {', '.join(write_page())}")
    for path in draw_pictures(read_study(RUNS, "scratch"), ROOT / "docs" / "figures"):
        print(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Do what is asked."""
    args = parse_args(argv)
    if args.command in STUDIES:
        study(args)
        return
    if args.opts:
        raise ValueError(
            f"{args.opts[0]} is given to {args.command}, which reads results; leave it out"
        )
    if args.command == "compare":
        compare(args)
    else:
        zoo()


if __name__ == "__main__":
    run_cli(main)
