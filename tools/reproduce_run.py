"""Doing the runs: one after another on this machine, or as a job array of SLURM."""

import contextlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import submit
from reproduce_cells import DATA_SETS, Cell, Places, build_cell_config, options_of
from reproduce_heldout import write_held_out
from reproduce_state import State, build_states

from vmp.utils import signals
from vmp.utils.files import write_text

RUN_NET = Path(__file__).with_name("run_net.py")
POLL_SECONDS = 0.5


def runnable(states: Sequence[State]) -> list[State]:
    """Return the runs that lack nothing, those that were stopped among them; none if all are done.

    Raises:
        ValueError: a folder holds another run's results, or each run to do lacks something.
    """
    others = [state for state in states if state.stage == "other"]
    if others:
        raise ValueError(
            f"{others[0].cell.name} holds results of {others[0].details[0]}; give the same KEY "
            "VALUE pairs as then, or another --out"
        )
    ready = [each for each in states if each.stage in ("new", "started") and not each.lacks]
    if not ready and any(state.stage != "finished" for state in states):
        raise ValueError("no run can be done; the list says what each lacks")
    return ready


def command_of(cell: Cell, places: Places, opts: Sequence[str]) -> list[str]:
    """Return the command that does a run, and goes on with it."""
    config = cell.config
    here = Path.cwd()
    shown = config.relative_to(here) if config.is_relative_to(here) else config
    words = [sys.executable, str(RUN_NET), "--cfg", str(shown)]
    return [*words, *options_of(cell, places, opts)]


def run_all(states: Sequence[State], places: Places, opts: Sequence[str], *, dry: bool) -> None:
    """Do the runs one after another; a finished one is not done again, a stopped one goes on.

    Args:
        states: where they stand.
        places: of data, weights and runs.
        opts: KEY VALUE pairs of every run.
        dry: print the commands alone.

    Raises:
        Interrupted: a signal came; the run under way has saved its state.
        ValueError: NUM_GPUS is not given, each run lacks something, or some failed: their names.
    """
    if "NUM_GPUS" not in opts[::2]:
        raise ValueError("NUM_GPUS is not given; end the command in NUM_GPUS 1, or 0 for the CPU")
    todo = runnable(states)
    _write_held_out(todo, places, dry=dry)
    signals.install()
    failed = []
    for number, state in enumerate(todo, start=1):
        words = command_of(state.cell, places, opts)
        print(f"== {number}/{len(todo)} {state.cell.name}\n   {shlex.join(words)}", flush=True)
        if dry:
            continue
        status = _run(words)
        if status == signals.EXIT_AGAIN or signals.stop_requested():
            raise signals.Interrupted("stopped; the same command goes on")
        (again,) = build_states([state.cell], places, opts)
        if status or again.stage != "finished":
            failed.append(state.cell.name)
            print(f"   failed with status {status}; the lines above say why", flush=True)
    if failed:
        raise ValueError(f"{len(failed)} of {len(todo)} runs failed: {', '.join(failed)}")


def _run(words: Sequence[str]) -> int:
    """Run a command to its end, pass a signal to stop on, and return its status."""
    process = subprocess.Popen(words)
    told = False
    try:
        while True:
            try:
                return process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if signals.stop_requested() and not told:
                    process.terminate()
                    told = True
    finally:  # Ctrl-C too, which the run has got itself
        if process.poll() is None:
            process.terminate()
            process.wait()


def submit_all(
    states: Sequence[State], places: Places, opts: Sequence[str], words: str, *, dry: bool
) -> None:
    """Submit the runs as one job array, each with its whole config.

    Args:
        states: where they stand.
        places: of data, weights and runs.
        opts: KEY VALUE pairs of every run.
        words: options of tools/submit.py, as on its command line.
        dry: print the script alone.

    Raises:
        ValueError: each run lacks something, or as submit.py says.
    """
    todo = runnable(states)
    if not todo:
        return
    _write_held_out(todo, places, dry=dry)
    with _config_folder(places.out / "configs", dry) as folder:
        given = []
        for state in todo:
            path = folder / f"{state.cell.name.replace('/', '_')}.yaml"
            write_text(path, build_cell_config(state.cell, places, opts).dump())
            given += ["--cfg", str(path)]
        given += ["--name", "reproduce", "--folder", str(places.out / "slurm")]
        given += [*(["--dry-run"] if dry else []), *shlex.split(words)]
        submit.submit(submit.parse_args(given))


@contextlib.contextmanager
def _config_folder(folder: Path, dry: bool) -> Iterator[Path]:
    if not dry:
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _write_held_out(states: Sequence[State], places: Places, *, dry: bool) -> None:
    names = {state.cell.dataset for state in states if state.cell.held_out}
    for name in sorted(names):
        if not dry and not DATA_SETS[name].held_out:
            print(f"held-out part of {name}: {write_held_out(name, places)}", flush=True)
