"""What `tools/bench.py stop` measures: what it costs to be able to stop a training, and to stop it.

A training is started, signalled after some updates, and started again, as a batch system does it.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench_figures import as_words, spread
from tqdm import tqdm

from vmp.utils import signals

RUN_NET = Path(__file__).with_name("run_net.py")
POLL = 0.01  # seconds
# lines of vmp/engine/training.py and checkpoint.py
UPDATE = re.compile(r"epoch [\d.]+  step \d+ ")
WROTE = re.compile(r"wrote \S+ in ([\d.]+) s, training waited ([\d.]+) s")
# what is measured, in the words of the table
STALL = "an update waits for a checkpoint"
DISK = "a checkpoint is on the disk after"
STOP = "from the signal to status 75"
RESUME = "from the command to the first update of a resumed run"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `stop`."""
    command.add_argument("--cfg", required=True, metavar="FILE", help="a recipe, with its data")
    command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides")
    command.add_argument("--repeats", type=int, default=5, help="stops and resumed starts")
    command.add_argument("--updates", type=int, default=6, help="of each start")
    command.add_argument("--limit", type=float, default=300, help="seconds for any one thing")
    command.add_argument("--out", help="append the measurements, a line of JSON each")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the measurements of one training that is stopped again and again.

    Raises:
        ValueError: fewer than two repeats or updates, or a run that does not do what it should; the
            last line that it wrote is in the message.
    """
    if min(args.repeats, args.updates) < 2:
        raise ValueError("--repeats and --updates must be 2 or more")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        seconds = measure_run(args.cfg, args.opts, run, args.repeats, args.updates, args.limit)
        size = max(path.stat().st_size for path in run.glob("checkpoints/*.pth"))
    about = {"cfg": Path(args.cfg).stem, "opts": args.opts, "checkpoint_bytes": size}
    yield {"bench": "stop", **about, "seconds": seconds}


def measure_run(
    cfg: str, opts: Sequence[str], folder: Path, repeats: int, updates: int, limit: float
) -> dict[str, list[float]]:
    """Return what was waited for, by name, in seconds."""
    fixed = {
        "OUTPUT_DIR": str(folder),
        "TRAIN.CHECKPOINT_STEPS": str(updates // 2),
        "TRAIN.CHECKPOINT_KEEP": "2",
        "SOLVER.MAX_EPOCH": "100000",
        "LOG_PERIOD": "1",  # an update is known by its line
        "TEST.ENABLE": "False",
    }
    command = [sys.executable, str(RUN_NET), "--cfg", cfg, *opts, *as_words(fixed)]
    seconds: dict[str, list[float]] = {STALL: [], DISK: [], STOP: [], RESUME: []}
    console = folder / "console.txt"
    for number in tqdm(range(repeats + 1), desc="starts", leave=False):
        started, stopped = one_start(command, console, updates, limit)
        if number:  # the first one does not resume
            seconds[RESUME].append(started)
        seconds[STOP].append(stopped)
        for disk, stall in WROTE.findall(_read(console)):
            seconds[STALL].append(float(stall))
            seconds[DISK].append(float(disk))
    return seconds


def one_start(
    command: Sequence[str], console: Path, updates: int, limit: float
) -> tuple[float, float]:
    """Start a run, let it make `updates`, stop it; return the seconds to the first, and to stop.

    Raises:
        ValueError: it takes longer than `limit` for something, or ends otherwise than asked.
    """
    began = time.perf_counter()
    with console.open("w", encoding="utf-8") as file:
        run = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        _wait_for_updates(run, console, 1, limit)
        started = time.perf_counter()
        _wait_for_updates(run, console, updates, limit)
        signalled = time.perf_counter()
        os.killpg(run.pid, signal.SIGTERM)  # as a batch system does: all of its processes
        status = run.wait(limit)
        stopped = time.perf_counter()
    except subprocess.TimeoutExpired:
        raise ValueError(f"the run is not over {limit:.0f} s after SIGTERM") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    if status != signals.EXIT_AGAIN:
        raise ValueError(f"the run ended with status {status}: {_last_line(console)}")
    return started - began, stopped - signalled


def _wait_for_updates(
    run: "subprocess.Popen[bytes]", console: Path, count: int, limit: float
) -> None:
    end = time.perf_counter() + limit
    while len(UPDATE.findall(_read(console))) < count:
        if run.poll() is not None:
            raise ValueError(f"the run ended before it was stopped: {_last_line(console)}")
        if time.perf_counter() > end:
            raise ValueError(f"no update within {limit:.0f} s (--limit): {_last_line(console)}")
        time.sleep(POLL)


def _read(console: Path) -> str:
    return console.read_text(encoding="utf-8", errors="replace")


def _last_line(console: Path) -> str:
    return (_read(console).strip().splitlines() or ["it said nothing"])[-1]


HEAD = ["| recipe | checkpoint, MiB | what | seconds | of |", "|---" * 5 + "|"]


def rows(result: dict[str, Any]) -> str:
    """Return the lines of the Markdown table."""
    size = f"{result['checkpoint_bytes'] / 2**20:.0f}"
    lines = []
    for what, values in result["seconds"].items():
        cells = [result["cfg"], size, what, spread(values)]
        lines.append("| " + " | ".join([*cells, str(len(values))]) + " |")
    return "\n".join(lines)
