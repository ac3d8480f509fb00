"""What is kept of finished runs once their checkpoints are gone: one small JSON for many of them.

A summary is all that the tables and pictures of runs are made of. Those in docs/runs are what
MODEL_ZOO.md is made of.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reproduce_cells import Cell, Places, Setting
from reproduce_collect import Result, Results
from summary_read import read_records

from vmp.utils.files import write_text

POINTS = 40  # of a curve, at most
DIGITS = 5  # of a number in a curve
CELL_KEYS = ("dataset", "recipe", "split", "seed", "held_out")


class Curve(NamedTuple):
    """What a run has logged while it trained, all of one length.

    Attributes:
        epoch: fractional, ascending.
        loss: of the task, of the batches since the point before.
        top1: likewise, percent.
        prompts: pathway -> name of what was learned ("a", "b", "f0", ...) -> values.
    """

    epoch: list[float]
    loss: list[float]
    top1: list[float]
    prompts: dict[str, dict[str, list[float]]]


class RunSummary(NamedTuple):
    """A finished run: which, what came out, how it got there, on what machine."""

    cell: Cell
    result: Result
    curve: Curve
    machine: dict[str, str]


def summarize_runs(results: Results, places: Places) -> list[RunSummary]:
    """Return the summaries of finished runs, of whose folders the logs are read."""
    return [
        RunSummary(cell, result, *read_log(places.out / cell.name / "log.jsonl"))
        for cell, result in results.items()
    ]


def read_log(path: Path) -> tuple[Curve, dict[str, str]]:
    """Return the curve and the machine of a log; empty where there is none.

    Of records of one step the last counts: a run that was stopped has logged some twice.
    """
    records = list(read_records(path))
    starts = [record for record in records if record["kind"] == "start"]
    steps = {record["step"]: record for record in records if record["kind"] == "train"}
    points = thin([steps[step] for step in sorted(steps)])
    prompts = {
        pathway: {
            name: rounded([point["prompt"][pathway][name] for point in points])
            for name, value in values.items()
            if isinstance(value, float)
        }
        for pathway, values in (points[0].get("prompt", {}) if points else {}).items()
    }
    epoch, loss, top1 = (
        rounded([point[key] for point in points]) for key in ("epoch", "task_loss", "top1")
    )
    machine = starts[-1].get("machine", {}) if starts else {}
    return Curve(epoch, loss, top1, prompts), machine


def thin(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return at most POINTS of them, evenly spaced, the first and the last among them."""
    if len(points) <= POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(place * last / (POINTS - 1))] for place in range(POINTS)]


def rounded(values: Sequence[float]) -> list[float]:
    """Return the values to DIGITS significant digits."""
    return [float(f"{value:.{DIGITS}g}") for value in values]


def write_summaries(path: Path, summaries: Sequence[RunSummary]) -> None:
    """Write summaries, a line for each."""
    lines = ",\n".join(json.dumps(as_dict(each), sort_keys=True) for each in summaries)
    write_text(path, f"[\n{lines}\n]\n")


def as_dict(summary: RunSummary) -> dict[str, Any]:
    """Return a summary as JSON has it."""
    cell, result, curve, machine = summary
    return {
        "run": {key: getattr(cell, key) for key in CELL_KEYS},
        "setting": cell.setting._asdict(),
        "result": result._asdict(),
        "curve": curve._asdict(),
        "machine": machine,
    }


def read_summaries(path: Path) -> list[RunSummary]:
    """Read what `write_summaries` has written.

    Raises:
        ValueError: it can't be read, or is something else.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [
            RunSummary(
                Cell(**each["run"], setting=_setting(**each["setting"])),
                Result(**each["result"]),
                Curve(**each["curve"]),
                each["machine"],
            )
            for each in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} can't be read as summaries of runs ({error}); make it with "
            "`python tools/reproduce.py STUDY --collect`"
        ) from error


def _setting(name: str, opts: Sequence[str]) -> Setting:
    return Setting(name, tuple(opts))
