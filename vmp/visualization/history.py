"""The paper's Fig. 4: slope and shift of runs against the epoch, read from their logs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
import yaml
from matplotlib.figure import Figure

from vmp.prompts.functional import power_normalization
from vmp.visualization.style import BLACK, DASHES, PALETTE, new_figure

# What tells runs apart, as it is written, and where it stands in their config.
FACTS = {
    "data": "TRAIN.DATASET",
    "split": "DATA.SPLIT",
    "backbone": "MODEL.NAME",
    "λ": "PROMPT.PENALTY",
    "seed": "RNG_SEED",
}


class History(NamedTuple):
    """What a run has logged of one prompted pathway.

    Attributes:
        folder: of the run.
        pathway: "0" is the slowest.
        facts: of the config, by the names of FACTS.
        epochs: fractional, ascending.
        a: slope at each.
        b: shift at each.
    """

    folder: Path
    pathway: str
    facts: dict[str, Any]
    epochs: list[float]
    a: list[float]
    b: list[float]


def read_history(folder: str | Path) -> list[History]:
    """Return what a run has logged of its prompts, one for each prompted pathway.

    Args:
        folder: OUTPUT_DIR of a run, also of one that goes on.

    Raises:
        ValueError: it is no such folder, or has no prompt with a slope and a shift.
    """
    folder = Path(folder)
    path = folder / "log.jsonl"
    if not path.is_file():
        what = "there is no log.jsonl in it" if folder.is_dir() else "it is no folder"
        raise ValueError(f"{folder}: {what}; name the OUTPUT_DIR of a run")
    records = [record for record in map(_parse, path.read_text("utf-8").splitlines()) if record]
    pathways = sorted(records[-1]["prompt"]) if records else []
    if not pathways or not all("a" in records[-1]["prompt"][pathway] for pathway in pathways):
        raise ValueError(
            f"{folder}: its log has no slope and shift; name a run with PROMPT.ENABLE True and "
            "PROMPT.POWER_NORM sigmoid that has trained for LOG_PERIOD updates"
        )
    facts = _read_facts(folder / "config.yaml")
    return [
        History(
            folder,
            pathway,
            facts,
            [record["epoch"] for record in records],
            [record["prompt"][pathway]["a"] for record in records],
            [record["prompt"][pathway]["b"] for record in records],
        )
        for pathway in pathways
    ]


def _parse(line: str) -> dict[str, Any] | None:
    """Return a training record with prompts, None for any other line, or one cut off by a kill."""
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return record if record.get("kind") == "train" and record.get("prompt") else None


def _read_facts(path: Path) -> dict[str, Any]:
    """Return the FACTS of a run's config; {} where it is missing."""
    if not path.is_file():
        return {}
    config = yaml.safe_load(path.read_text("utf-8"))
    facts = {}
    for name, key in FACTS.items():
        section, _, leaf = key.rpartition(".")
        facts[name] = (config[section] if section else config)[leaf]
    return facts


def draw_history(histories: Sequence[History]) -> Figure:
    """Draw (a) slope and (b) shift against the epoch, (c) the last f(D), a line for each pathway.

    Runs that differ in lambda alone have colours from dark to light with it; pathways have
    different dashes. What all runs share is written above, what tells them apart in the legend.

    Args:
        histories: at least one.
    """
    histories = _sorted(histories)
    shared, names = _names(histories)
    runs = list(dict.fromkeys(each.folder for each in histories))
    by_penalty = len(runs) == len({each.facts.get("λ") for each in histories}) > 1
    colours = dict(zip(runs, _colours(len(runs), by_penalty), strict=True))
    widths = torch.linspace(3.4, 1.2, len(runs)).tolist()  # of equal lines all are seen
    pathways = sorted({each.pathway for each in histories})
    figure = new_figure(11, 3.6 + 0.2 * -(-len(names) // 4))
    slopes, shifts, learned = figure.subplots(1, 3)
    differences = torch.linspace(-1, 1, 401, dtype=torch.float64)
    for each, name in zip(histories, names, strict=True):
        look: dict[str, Any] = {
            "color": colours[each.folder],
            "ls": DASHES[pathways.index(each.pathway) % len(DASHES)],
            "lw": widths[runs.index(each.folder)],
            "label": name,
        }
        mark = "o" if len(each.epochs) == 1 else ""
        slopes.plot(each.epochs, each.a, marker=mark, **look)
        shifts.plot(each.epochs, each.b, marker=mark, **look)
        numbers = (torch.tensor(value[-1], dtype=torch.float64) for value in (each.a, each.b))
        learned.plot(differences, power_normalization(differences, *numbers), **look)
    slopes.set(xlabel="epoch", ylabel="slope a", title="(a)  slope")
    shifts.set(xlabel="epoch", ylabel="shift b", title="(b)  shift")
    learned.set(xlabel="difference D", ylabel="attention f(D)", title="(c)  f(D) at the end")
    learned.set(xlim=(-1, 1), ylim=(-0.03, 1.03))
    learned.axvline(0, color=BLACK, lw=0.6)
    for axes in (slopes, shifts, learned):
        axes.grid(alpha=0.25)
    handles, labels = slopes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    figure.suptitle(shared)
    return figure


def _names(histories: Sequence[History]) -> tuple[str, list[str]]:
    """Return what all share, in words, and for each what tells it apart."""
    differing = [
        name for name in FACTS if len({str(each.facts.get(name)) for each in histories}) > 1
    ]
    alike = {name: histories[0].facts.get(name) for name in FACTS if name not in differing}
    shared = ",  ".join(
        f"{name} {value}" for name, value in alike.items() if value not in ("", None)
    )
    names = [_name(each, differing) for each in histories]
    runs = {(name, each.pathway) for name, each in zip(names, histories, strict=True)}
    if len(runs) < len(histories):  # the facts do not tell all apart: folders do
        names = [str(each.folder) for each in histories]
    several = len({each.pathway for each in histories}) > 1
    ends = [f", pathway {each.pathway}" if several else "" for each in histories]
    return shared, [name + end for name, end in zip(names, ends, strict=True)]


def _name(each: History, differing: Sequence[str]) -> str:
    parts = [
        f"{name} = {each.facts.get(name):g}"
        if name == "λ" and each.facts
        else f"{each.facts.get(name)}"
        for name in differing
    ]
    return ", ".join(parts) or each.folder.name


def _sorted(histories: Sequence[History]) -> list[History]:
    """Return them by lambda, those of one lambda as they come."""
    return sorted(histories, key=lambda each: float(each.facts.get("λ") or 0))


def _colours(count: int, by_penalty: bool) -> list[Any]:
    """Return colours in an order, or apart."""
    if not by_penalty:
        return [PALETTE[index % len(PALETTE)] for index in range(count)]
    scale = matplotlib.colormaps["viridis"]
    return [scale(0.9 * index / (count - 1)) for index in range(count)]
