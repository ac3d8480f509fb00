"""Runs for `tools/summary.py`: where they are, how far they have come, and if they go on."""

import fcntl
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import simplejson
import yaml

from vmp.config import get_cfg
from vmp.engine.checkpoint import list_checkpoints
from vmp.engine.provenance import deciding_config
from vmp.utils.mappings import flatten

# Any of these makes a folder a run.
SIGNS = ("log.jsonl", "test_results.json", "run.lock")
INNER = {"checkpoints", "tensorboard", "test_scores", "wandb"}
LOG_LINE = re.compile(r"^\d\d:\d\d:\d\d [A-Z] ", re.MULTILINE)
STARTED, FAILED = " process(es), ", " the run failed\n"
TAIL = 2**18  # bytes of a log that are looked at


class Run(NamedTuple):
    """A run as far as it has come.

    Attributes:
        name: to tell it by.
        folder: OUTPUT_DIR.
        state: "running", "finished", "failed" (by an error) or "stopped" (by a signal or a kill).
        note: by whom, or why; "" if there is nothing to say.
        config: {dotted key: value} of what decides its numbers and matters for its model.
        epochs: done, fractional.
        max_epoch: of the config.
        train: records of the training, at least loss and epoch in each.
        val: of the validations.
        results: test_results.json; {} before the test.
    """

    name: str
    folder: Path
    state: str
    note: str
    config: dict[str, Any]
    epochs: float
    max_epoch: int
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    results: dict[str, Any]

    @property
    def prompts(self) -> Mapping[str, Mapping[str, float]]:
        """Return what the prompts have learned, as the test or else the last record says."""
        found = self.results.get("prompts")
        if found is None:
            found = next((each["prompt"] for each in reversed(self.train) if "prompt" in each), {})
        return found or {}

    def metric(self, name: str) -> float | None:
        """Return a metric of the test."""
        value = self.results.get("metrics", {}).get(name)
        return None if value is None else float(value)

    def validations(self, name: str) -> list[tuple[float, float]]:
        """Return (epoch, metric) of the validations, ascending."""
        found = {each["epoch"]: each[name] for each in self.val if each.get(name) is not None}
        return sorted(found.items())

    def best(self, name: str) -> float | None:
        """Return the best validation."""
        values = [value for _, value in self.validations(name)]
        return (min if name == "loss" else max)(values) if values else None


def read_runs(words: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Return the runs that `words` name, and in a line each what was not taken.

    Args:
        words: folders of runs, folders above them, patterns.

    Raises:
        ValueError: there is no run at all.
    """
    folders, complaints = find_runs(words)
    parents = [str(folder.absolute().parent) for folder in folders]
    above = os.path.commonpath(parents) if parents else ""
    runs = []
    for folder in folders:
        try:
            runs.append(read_run(folder, os.path.relpath(folder.absolute(), above)))
        except (ValueError, OSError) as error:
            complaints.append(str(error))
    if not runs:
        told = "; ".join(complaints)
        raise ValueError(f"there is no run to show: {told}; name an OUTPUT_DIR or a folder of them")
    return runs, complaints


def find_runs(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the folders of runs, each once, and what in `words` has none."""
    folders: dict[Path, Path] = {}
    complaints = []
    for word in words:
        paths = [word] if os.path.exists(word) else sorted(glob.glob(word, recursive=True))
        if not paths:
            complaints.append(f"{word}: there is no such folder")
        for path in map(Path, paths):
            found = list(_runs_below(path))
            folders |= {run.resolve(): run for run in found if run.resolve() not in folders}
            if path.is_file():
                complaints.append(f"{path}: it is a file, not the OUTPUT_DIR of a run")
            elif not found:
                complaints.append(f"{path}: no run is in it")
    return list(folders.values()), complaints


def _runs_below(top: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(top):
        if any(sign in files for sign in SIGNS):
            yield Path(folder)
        below[:] = sorted(name for name in below if name not in INNER and name[0] != ".")


def read_run(folder: Path, name: str) -> Run:
    """Return the run in a folder.

    Raises:
        ValueError: what says of it what it is is missing or damaged.
    """
    results = _read_results(folder / "test_results.json")
    whole = _read_config(folder / "config.yaml", results)
    records = list(read_records(folder / "log.jsonl"))
    train = [each for each in records if each["kind"] == "train" and "loss" in each]
    val = [each for each in records if each["kind"] == "val"]
    kept = [re.search(r"epoch_(\d+)", path.name) for path in list_checkpoints(folder)]
    done = [int(found[1]) for found in kept if found]
    done += [each["epoch"] for each in val] + [results.get("trained", {}).get("epoch", 0)]
    max_epoch = int(whole["SOLVER.MAX_EPOCH"])
    trained = max(done) >= max_epoch
    tested = results.get("trained", {}).get("epoch") == max_epoch or (results and not train)
    finished = bool(tested or (trained and not whole.get("TEST.ENABLE", True)))
    state, note = find_state(folder, finished=finished)
    epochs = float(max([*done, *(each["epoch"] for each in train[-1:])]))
    config = relevant(flatten(get_cfg(), ".") | whole)
    return Run(name, folder, state, note, config, epochs, max_epoch, train, val, results)


def _read_results(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        results: dict[str, Any] = simplejson.loads(path.read_text(encoding="utf-8"))
        results["metrics"], results["counts"]
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is damaged, or no result of a test; test the run again") from None
    return results


def _read_config(path: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted key: value} of config.yaml, or of its result where a test alone has run."""
    if not path.is_file():
        if results.get("config"):
            return dict(results["config"])
        raise ValueError(f"{path.parent} has no config.yaml: its run has only begun, or is none")
    try:
        config = flatten(yaml.safe_load(path.read_text(encoding="utf-8")), ".")
        config["SOLVER.MAX_EPOCH"], config["MODEL.NAME"]
    except (OSError, ValueError, AttributeError, KeyError, yaml.YAMLError):
        raise ValueError(f"{path} is damaged, or no config of a run") from None
    return config


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a log; what a kill has cut off is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = simplejson.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"kind", "step"} <= record.keys():
            yield record


def find_state(folder: Path, *, finished: bool) -> tuple[str, str]:
    """Return the state of a run, and who has it or what went wrong."""
    if is_locked(folder / "run.lock"):
        owner = (folder / "run.lock").read_text(encoding="utf-8", errors="replace")
        return "running", owner.strip()
    error = find_error(folder / "log.txt")
    if error:
        return "failed", error
    return ("finished", "") if finished else ("stopped", "")


def is_locked(path: Path) -> bool:
    """Return whether a living run holds its lock."""
    try:
        with path.open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of when the file is closed
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False


def find_error(path: Path) -> str:
    """Return the error that the last start of a run has ended with, "" if it has not."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        text = file.read().decode(errors="replace")
    last = text.rpartition(STARTED)[2]
    trace = last.rpartition(FAILED)[2] if FAILED in last else ""
    told = LOG_LINE.split(trace)[0].strip().splitlines()
    return told[-1] if told else ""


def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a config what decides numbers, less the sections of what the run has not got."""
    model, prompt = str(config["MODEL.NAME"]), config["PROMPT.ENABLE"]
    used = {model.upper(), f"PROMPT.{str(config['PROMPT.POWER_NORM']).upper()}"}
    models = {"SLOWFAST", "C2D", "I3D", "X3D", "TIMESFORMER"}
    kept = {}
    for key, value in deciding_config(yaml.safe_dump(dict(config))).items():
        section = key.rpartition(".")[0]
        if section in models and section not in used:
            continue
        if key.startswith("PROMPT.") and key != "PROMPT.ENABLE":
            inner = key.count(".") == 2
            if not prompt or (inner and section not in used):
                continue
        kept[key] = value
    return kept
