"""Submit runs to SLURM, and see where they stand.

    python tools/submit.py --cfg configs/... --nodes 2 --gpus-per-node 8 --time 24:00:00 KEY VALUE
    python tools/submit.py --status

With several --cfg the runs are the tasks of one job array. Every config is loaded first, as a rank
of the job will load it, and the job gets it as it is now: a later change to the file does not reach
a run that waits in the queue or is requeued. Logs are in a folder of the submission below
--folder: <job>.log of the batch script, <job>.task<rank>.log of each process.
"""

# The script is written here and handed to sbatch as it is. submitit would do so only around a
# pickled function: its process then stands between SLURM and the trainer, passes SIGTERM over, has
# its own handler and time count for the requeue, and reads states from sacct, which many clusters
# do not have. Without these, what is left of it is a few #SBATCH lines behind private functions.

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import simplejson

from vmp.config import load_cfg
from vmp.utils.cli import run_cli
from vmp.utils.files import write_text
from vmp.utils.signals import DEFAULT as STOP_SIGNALS

ROOT = Path(__file__).resolve().parents[1]
# What the job does is the same for those who write their own script: it is taken from there.
TEMPLATE = ROOT / "scripts" / "slurm" / "train.sbatch"
MARK = "what the job does\n"
GRAIN = 60  # seconds that SLURM may be early with its warning
RECORD = "job.json"
# How a job can end that was not done.
FAILED = (
    *("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"),
    *("PREEMPTED", "REVOKED"),
    "LOST",  # our word, see state_of
)
# How the last line of a process begins that has ended with an error.
ERROR = re.compile(r"error: |[\w.]*(Error|Exception)\b")


class Run(NamedTuple):
    """A run to submit: its config's file, all of the config, its folder, its loader's workers."""

    path: Path
    config: str
    output_dir: Path
    workers: int


class Submitted(NamedTuple):
    """A run that was submitted: its job, the folder with its logs, the folder it writes."""

    job: str
    logs: Path
    output_dir: Path


class Place(NamedTuple):
    """Where a job stands: SLURM's state, the reason for it, and the time it has run."""

    state: str
    reason: str
    elapsed: str


# ---------------------------------------------------------------- the command line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cfg", action="append", default=[], metavar="FILE", help="a config; several: an array")
    add("--nodes", type=int, default=1, metavar="N")
    add("--gpus-per-node", type=int, metavar="N", help="one process each; 0: on the CPU")
    add("--tasks-per-node", type=int, metavar="N", help="processes a node, where it has no GPUs")
    add("--cpus-per-task", type=int, metavar="N", help="default: one, and the loader's workers")
    add("--time", metavar="LIMIT", help="as SLURM writes it: 90 (minutes), 24:00:00, 2-00:00:00")
    for name in ("partition", "account", "qos", "constraint", "mem"):
        add(f"--{name}", metavar="VALUE", help="as sbatch's")
    add("--signal", default="USR1@120", metavar="NAME@SECONDS", help="warning before the limit")
    add("--requeue", action="store_true", help="go on by itself after a stop or a lost node")
    add("--setup", action="append", default=[], metavar="LINE", help='such as "module load cuda"')
    add("--sbatch", action="append", default=[], metavar="OPTION", help="as --sbatch=--exclusive")
    add("--name", metavar="NAME", help="of the job; default: the config's")
    add("--folder", type=Path, default=Path("runs/slurm"), help="for scripts and logs")
    add("--dry-run", action="store_true", help="print the script; write and submit nothing")
    add("--status", nargs="*", metavar="WHAT", help="of runs, by OUTPUT_DIR or job; default: all")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of every config")
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError for options that are missing or do not go together."""
    if not args.cfg:
        raise ValueError("there is no --cfg; name a config, or ask for --status")
    if args.gpus_per_node is None or args.time is None:
        raise ValueError("a job needs --gpus-per-node (0: on the CPU) and --time")
    for name in ("nodes", "tasks_per_node", "cpus_per_task"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    if args.gpus_per_node and args.tasks_per_node not in (None, args.gpus_per_node):
        raise ValueError(
            f"--tasks-per-node is {args.tasks_per_node}, but each of the {args.gpus_per_node} GPUs "
            "of a node has one process; leave it out"
        )
    if args.name and "/" in args.name:
        raise ValueError(f"--name is {args.name!r}; it is part of a file's name, so without /")
    late = next((word for word in args.opts if word.startswith("--")), "")
    if late:
        raise ValueError(f"{late} comes after a KEY; put options before the KEY VALUE pairs")
    if "NUM_GPUS" in args.opts:
        raise ValueError("NUM_GPUS is given, but follows from --gpus-per-node; leave it out")
    if args.signal:
        _check_signal(args.signal, args.time)


def _check_signal(signal: str, limit: str) -> None:
    match = re.fullmatch(r"([A-Z0-9]+)@(\d+)", signal)
    if not match:
        raise ValueError(f"--signal is {signal!r}; it is a name and seconds, such as USR1@120")
    listed = os.environ.get("VMP_STOP_SIGNALS", STOP_SIGNALS).split(",")
    known = [name.strip().upper() for name in listed]
    if f"SIG{match[1].removeprefix('SIG')}" not in known:
        raise ValueError(
            f"--signal is {signal}, but a training stops at {', '.join(known)}; take one of them, "
            "or name it in the variable VMP_STOP_SIGNALS"
        )
    least = int(match[2]) + 2 * GRAIN
    if seconds_of(limit) < least:
        raise ValueError(
            f"--time is {limit}, and with --signal {signal} the warning could come before the "
            f"training begins; give {-(-least // 60)} minutes or more"
        )


def seconds_of(limit: str) -> float:
    """Return the seconds of a time limit of SLURM's: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s.

    Raises:
        ValueError: it is written in another way.
    """
    if limit.upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if not match:
        raise ValueError(f"--time is {limit!r}; it is minutes, h:m:s or days-h:m:s")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    # hours come first behind days; without days, only where there are three numbers
    units = (3600, 60, 1) if days or len(numbers) == 3 else (60, 1)
    seconds = sum(number * unit for number, unit in zip(numbers, units, strict=False))
    return seconds + 86400 * int(days or 0)


# ---------------------------------------------------------------- what is submitted


def load_runs(args: argparse.Namespace) -> list[Run]:
    """Load every config with the overrides.

    Raises:
        ValueError: one does not load, or two would write into one folder.
    """
    opts = [*args.opts, "NUM_GPUS", str(args.gpus_per_node)]
    runs: list[Run] = []
    for name in args.cfg:
        with _as_rank(args.nodes * tasks_per_node(args)):
            cfg = load_cfg(name, opts)
        folder = Path(cfg.OUTPUT_DIR).absolute()
        twin = next((run.path for run in runs if run.output_dir == folder), None)
        if twin:
            raise ValueError(
                f"OUTPUT_DIR is {cfg.OUTPUT_DIR} for both {twin} and {name}; a run needs its own: "
                "set it in each config, or nowhere, then it follows from the config's name"
            )
        runs.append(Run(Path(name), cfg.dump(), folder, cfg.DATA_LOADER.NUM_WORKERS))
    return runs


def tasks_per_node(args: argparse.Namespace) -> int:
    """Return the processes of a node."""
    return int(args.gpus_per_node or args.tasks_per_node or 1)


@contextlib.contextmanager
def _as_rank(world_size: int) -> Iterator[None]:
    """Let a config be checked as by a rank of the job: batches must divide among its processes."""
    names = {"RANK": "0", "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    names |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "VMP_LAUNCHER": "torchrun"}
    before = dict(os.environ)
    os.environ.update(names)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def config_paths(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Return where the configs lie that the job reads."""
    return [folder / f"{index}_{run.path.stem}.yaml" for index, run in enumerate(runs)]


def make_script(args: argparse.Namespace, runs: Sequence[Run], folder: Path) -> str:
    """Return the batch script; `folder` (absolute) is that of the submission."""
    variables = {
        "python": sys.executable,
        "root": ROOT,
        "logs": folder,
        "requeue": "yes" if args.requeue else "no",
    }
    configs = [shlex.quote(str(path)) for path in config_paths(runs, folder)]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in sbatch_options(args, runs, folder)),
        "",
        *args.setup,
        *(f"{name}={shlex.quote(str(value))}" for name, value in variables.items()),
        *(f"# {index}: {_command(args, run)}" for index, run in enumerate(runs)),
        "configs=(",
        *(f"    {path}" for path in configs),
        ")",
        'set -- --cfg "${configs[${SLURM_ARRAY_TASK_ID:-0}]}"',
        "",
    ]
    return "\n".join(lines) + "\n" + TEMPLATE.read_text(encoding="utf-8").partition(MARK)[2]


def sbatch_options(args: argparse.Namespace, runs: Sequence[Run], folder: Path) -> list[str]:
    """Return the options of sbatch, as they stand in the script."""
    array = len(runs) > 1
    values = {
        "job-name": args.name or ("vmp" if array else runs[0].path.stem),
        "array": f"0-{len(runs) - 1}" if array else None,
        "nodes": args.nodes,
        "ntasks-per-node": tasks_per_node(args),
        "gpus-per-node": args.gpus_per_node,
        "cpus-per-task": args.cpus_per_task or 1 + max(run.workers for run in runs),
        "mem": args.mem,
        "time": args.time,
        "partition": args.partition,
        "account": args.account,
        "qos": args.qos,
        "constraint": args.constraint,
        "signal": args.signal,
        "open-mode": "append",  # else a requeue empties the log
        "output": folder / ("%A_%a.log" if array else "%j.log"),
        "chdir": Path.cwd(),
    }
    options = [f"--{key}={shlex.quote(str(value))}" for key, value in values.items() if value]
    return [*options, "--requeue" if args.requeue else "--no-requeue", *args.sbatch]


def _command(args: argparse.Namespace, run: Run) -> str:
    """Return what a person would have typed for `run`, in one line."""
    return " ".join(shlex.join([str(run.path), *args.opts]).split())


# ---------------------------------------------------------------- submitting


def submit(args: argparse.Namespace) -> None:
    """Check everything, then submit.

    Raises:
        ValueError: nothing was submitted, and why.
    """
    check_args(args)
    runs = load_runs(args)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = args.folder.absolute() / f"{stamp}_{args.name or runs[0].path.stem}"
    script = make_script(args, runs, folder)
    if args.dry_run:
        print(script, end="")
        return
    queue = read_queue()
    _check_partition(args.partition)
    _check_free(runs, read_submitted(args.folder), queue)
    _make_folder(folder)
    try:
        write_text(folder / "job.sh", script)
        for run, path in zip(runs, config_paths(runs, folder), strict=True):
            write_text(path, run.config)
        job = _sbatch(folder / "job.sh")
    except BaseException:
        shutil.rmtree(folder)
        raise
    for number, run in zip(job_numbers(job, len(runs)), runs, strict=True):
        print(f"job {number}: {run.path} -> {shown(run.output_dir)}")
    record = {"job": job, "runs": [str(run.output_dir) for run in runs]}
    write_text(folder / RECORD, simplejson.dumps(record, indent=1) + "\n")
    print(f"logs: {shown(folder)}; where it stands: python tools/submit.py --status")


def job_numbers(job: str, count: int) -> list[str]:
    """Return what SLURM calls the jobs of a submission of `count` runs."""
    return [job] if count == 1 else [f"{job}_{index}" for index in range(count)]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ValueError(
            f"{folder} is there already, from a submission in the same second; submit again"
        ) from None


def _check_partition(wanted: str | None) -> None:
    """Raise ValueError for a partition that the cluster does not have."""
    there = ask("sinfo", "-h", "-a", "-o", "%R").split()
    unknown = [name for name in (wanted or "").split(",") if name and name not in there]
    if unknown:
        raise ValueError(
            f"--partition {unknown[0]} is unknown here; there is {', '.join(sorted(set(there)))}"
        )


def _check_free(
    runs: Sequence[Run], submitted: Sequence[Submitted], queue: Mapping[str, Place]
) -> None:
    """Raise ValueError if a job that is not over yet writes into the folder of one of `runs`."""
    folders = {run.output_dir for run in runs}
    for other in submitted:
        place = queue.get(other.job)
        if place is None or place.state in (*FAILED, "COMPLETED"):
            continue
        if other.output_dir in folders:
            raise ValueError(
                f"OUTPUT_DIR {shown(other.output_dir)} belongs to job {other.job}, which is "
                f"{place.state}; `scancel {other.job}` first, or take another OUTPUT_DIR"
            )


def _sbatch(script: Path) -> str:
    """Return the number of the job."""
    return ask("sbatch", "--parsable", str(script)).strip().partition(";")[0]


def ask(program: str, *words: str) -> str:
    """Return what a program of SLURM's answers.

    Raises:
        ValueError: there is no such program here, or it failed.
    """
    if shutil.which(program) is None:
        raise ValueError(
            f"there is no {program} here; run this on a login node of a SLURM cluster, or see "
            "docs/clusters.md for other ways (--dry-run prints the script)"
        )
    done = subprocess.run([program, *words], capture_output=True, encoding="utf-8")
    if done.returncode:
        reason = "; ".join(done.stderr.split("\n")).strip("; ") or f"status {done.returncode}"
        raise ValueError(f"{program} failed, so nothing is done: {reason}")
    return done.stdout


# ---------------------------------------------------------------- where things stand


def read_queue() -> dict[str, Place]:
    """Return where each of the user's jobs stands that SLURM still remembers, by its number."""
    answer = ask("squeue", "-h", "-r", "--me", "-t", "all", "-o", "%i|%T|%r|%M")
    rows = [line.split("|") for line in answer.splitlines()]
    return {row[0].strip(): Place(*(word.strip() for word in row[1:4])) for row in rows}


def read_submitted(folder: Path) -> list[Submitted]:
    """Return what was submitted with this --folder, oldest first."""
    found = []
    for record in sorted(folder.glob(f"*/{RECORD}")):
        content = simplejson.loads(record.read_text(encoding="utf-8"))
        numbers = job_numbers(content["job"], len(content["runs"]))
        for number, output_dir in zip(numbers, content["runs"], strict=True):
            found.append(Submitted(number, record.parent.absolute(), Path(output_dir)))
    return found


def select(submitted: Sequence[Submitted], wanted: Sequence[str]) -> list[Submitted]:
    """Return what is asked for by job or folder; without a wish, the last of each folder.

    Raises:
        ValueError: something wanted was not submitted from here.
    """
    if not wanted:
        return list({each.output_dir: each for each in submitted}.values())
    chosen = []
    for what in wanted:
        folder = Path(what).absolute()
        jobs = [each for each in submitted if what in (each.job, each.job.partition("_")[0])]
        # the last job that wrote there tells how the run stands
        jobs = jobs or [each for each in submitted if each.output_dir == folder][-1:]
        if not jobs:
            raise ValueError(
                f"{what} is neither a job nor the OUTPUT_DIR of one that was submitted with this "
                "--folder; `squeue --me` shows all jobs"
            )
        chosen += jobs
    return chosen


def status(args: argparse.Namespace) -> None:
    """Print a table: a line a run with its state, starts, newest checkpoint and last line."""
    submitted = read_submitted(args.folder)
    if not submitted:
        raise ValueError(f"nothing was submitted with --folder {args.folder}; give its --folder")
    chosen = select(submitted, args.status)
    queue = read_queue()
    rows = [("JOB", "RUN", "STATE", "STARTS", "CHECKPOINT", "LAST LINE")]
    rows += [row_of(each, queue.get(each.job)) for each in chosen]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *cells, line in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        print("  ".join([*padded, line]).rstrip())
    counts = Counter(row[2].split()[0] for row in rows[1:])
    print(", ".join(f"{count} {state}" for state, count in counts.most_common()))


def row_of(each: Submitted, place: Place | None) -> tuple[str, str, str, str, str, str]:
    """Return the line of a run in the table of `status`."""
    log = batch_log(each)
    starts = len(re.findall(r"^-- \S+ start", log, re.M))
    ends = re.findall(r"^-- \S+ end with status (\d+)", log, re.M)
    state = state_of(place, ends[-1] if ends and len(ends) == starts else None)
    line = last_line(each, failed=state.split()[0] in FAILED)
    checkpoint = newest_checkpoint(each.output_dir)
    return each.job, shown(each.output_dir), state, str(starts), checkpoint, line


def state_of(place: Place | None, end: str | None) -> str:
    """Return the state of a job as SLURM tells it, or as its log does once SLURM has forgotten.

    Args:
        place: what SLURM says; None if it does not know the job any more.
        end: the status that the last start ended with; None if it has not ended by itself.
    """
    if place is not None and place.state == "PENDING":
        return f"PENDING ({textwrap.shorten(place.reason, 30, placeholder=' ...')})"
    if end == "75" and (place is None or place.state in ("FAILED", "TIMEOUT")):
        return "STOPPED (75: submit it again)"
    if place is not None and (place.state != "FAILED" or end is None):
        return f"{place.state} {place.elapsed}"
    if end is None:
        return "LOST (it did not end by itself)"
    return "COMPLETED" if end == "0" else f"FAILED (status {end})"


def batch_log(each: Submitted) -> str:
    """Return what the batch script has written, of all starts; "" before the first."""
    try:
        return (each.logs / f"{each.job}.log").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def last_line(each: Submitted, *, failed: bool) -> str:
    """Return the last line of rank 0's log; of a failed run, the line that tells the reason.

    That is the last line of the first process that ended with an error: the others' errors, of
    lost connections, come after it. If no process had time for one, it is what SLURM says first.
    """
    logs = sorted(each.logs.glob(f"{each.job}.task*.log"), key=lambda path: path.stat().st_mtime)
    lines = {path: _tail(path) for path in logs}
    reasons = [line for line in lines.values() if ERROR.match(line)] if failed else []
    if failed and not reasons:
        reasons = re.findall(r"^\S+ error: .*", batch_log(each).rpartition(" start ")[2], re.M)
    return reasons[0] if reasons else lines.get(each.logs / f"{each.job}.task0.log", "")


def _tail(path: Path, size: int = 4096) -> str:
    """Return the last line of a log that is not empty, and not of SLURM, which writes there too."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    own = (line.strip() for line in reversed(lines) if not line.startswith("slurmstepd"))
    return next(filter(None, own), "")


def newest_checkpoint(output_dir: Path) -> str:
    """Return the name and the age of the newest checkpoint, "-" if there is none."""
    files = [(path.stat().st_mtime, path.name) for path in output_dir.glob("checkpoints/*.pth")]
    if not files:
        return "-"
    written, name = max(files)
    minutes = max(0.0, time.time() - written) / 60
    age = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
    return f"{name} ({age} ago)"


def shown(path: Path) -> str:
    """Return a path as it is written from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def main() -> None:
    """Submit, or say where things stand."""
    args = parse_args()
    if args.status is None:
        submit(args)
    else:
        status(args)


if __name__ == "__main__":
    run_cli(main)
