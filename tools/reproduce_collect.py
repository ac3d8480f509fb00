"""From finished runs to numbers: means over seeds and splits, differences, intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import simplejson
from reproduce_cells import (
    DATA_SETS,
    Cell,
    Column,
    Places,
    Row,
    Setting,
    build_cell_config,
    read_paper,
)
from reproduce_state import RESULTS, complaint_about, read_results

from vmp.data.release import official_count
from vmp.metrics.student import Summary, summarize


class Result(NamedTuple):
    """What a finished run has measured, and what made it.

    Attributes:
        metrics: in percent.
        evaluated: test records that could be read.
        official: test records of the official split, or of the held-out part.
        commit: of the code.
        config_sha256: of what decides numbers.
        weights_sha256: of the trained weights.
        init_sha256: of the file they started from, "" if there was none.
        prompts: pathway -> what was learned.
    """

    metrics: Mapping[str, float]
    evaluated: int
    official: int
    commit: str
    config_sha256: str
    weights_sha256: str
    init_sha256: str
    prompts: Mapping[str, Mapping[str, float]]


class Entry(NamedTuple):
    """A number of Table 1: the paper's and ours.

    Attributes:
        row: where it stands.
        column: likewise.
        paper: percent.
        ours: over seeds; None where there is no run.
        evaluated: records that were evaluated, in the run with the fewest.
        official: records of the official split; 0 without a run.
    """

    row: Row
    column: Column
    paper: float
    ours: Summary | None
    evaluated: int
    official: int


class Gain(NamedTuple):
    """What a prompt gains over its baseline: the paper's numbers and ours, seed by seed."""

    row: Row
    column: Column
    paper: float
    ours: Summary | None


class Trial(NamedTuple):
    """A setting of a study on one split: what it reaches and learns, over seeds."""

    dataset: str
    recipe: str
    split: str
    setting: Setting
    top1: Summary | None
    top5: Summary | None
    prompts: Mapping[str, Mapping[str, float]]
    best: bool


Results = Mapping[Cell, Result]


def build_results(
    cells: Sequence[Cell], places: Places, opts: Sequence[str]
) -> tuple[dict[Cell, Result], list[str]]:
    """Return the finished runs among `cells`, and why others with results are not taken."""
    found: dict[Cell, Result] = {}
    refused = []
    for cell in cells:
        folder = places.out / cell.name
        if not (folder / RESULTS).is_file():
            continue
        cfg = build_cell_config(cell, places, opts)
        results = read_results(folder)
        complaint = complaint_about(results, cfg.dump(), cfg.SOLVER.MAX_EPOCH)
        if complaint:
            refused.append(f"{cell.name}: {complaint}")
        else:
            found[cell] = make_result(results, cell, cfg.TRAIN.DATASET, _init_sha256(folder))
    return found, refused


def make_result(results: Mapping[str, Any], cell: Cell, dataset: str, init_sha256: str) -> Result:
    """Return what the tables need of a test_results.json."""
    counts = results["counts"]
    official = None if cell.held_out else official_count(dataset, cell.split, "test")
    return Result(
        results["metrics"],
        counts["evaluated_videos"],
        official or counts["videos"],
        results["git_commit"],
        results["config_sha256"],
        results["weights_sha256"],
        init_sha256,
        results["prompts"],
    )


def _init_sha256(folder: Path) -> str:
    path = folder / "init_report.json"
    if not path.is_file():
        return ""
    return str(simplejson.loads(path.read_text(encoding="utf-8")).get("sha256", ""))


# ---------------------------------------------------------------- Table 1


def by_seed(results: Results, recipe: str, column: Column) -> dict[int, float]:
    """Return {seed: percent} of a row and column.

    The mean over splits is that of a seed that has all of them; others are left out.
    """
    splits = DATA_SETS[column.dataset].splits if column.split == "mean" else (column.split,)
    values: dict[int, list[float]] = {}
    for cell, result in results.items():
        here = (cell.dataset, cell.recipe, cell.setting, cell.held_out)
        if here == (column.dataset, recipe, Setting(), False) and cell.split in splits:
            values.setdefault(cell.seed, []).append(result.metrics[column.metric])
    return {
        seed: sum(each) / len(each)
        for seed, each in sorted(values.items())
        if len(each) == len(splits)
    }


def make_entries(results: Results) -> list[Entry]:
    """Return every number of Table 1, row by row; ours is None without a run."""
    columns, rows = read_paper()
    entries = []
    for row in rows:
        for column, paper in zip(columns, row.values, strict=True):
            values = by_seed(results, row.recipe, column)
            ours = summarize(list(values.values())) if values else None
            evaluated, official = _coverage(results, row.recipe, column, values)
            entries.append(Entry(row, column, paper, ours, evaluated, official))
    return entries


def _coverage(
    results: Results, recipe: str, column: Column, seeds: Mapping[int, float]
) -> tuple[int, int]:
    """Return (evaluated, official) of the seed with the fewest evaluated, over all its splits."""
    counts = {seed: (0, 0) for seed in seeds}
    for cell, result in results.items():
        if (cell.dataset, cell.recipe, cell.setting) != (column.dataset, recipe, Setting()):
            continue
        if cell.seed in counts and column.split in (cell.split, "mean"):
            evaluated, official = counts[cell.seed]
            counts[cell.seed] = (evaluated + result.evaluated, official + result.official)
    return min(counts.values(), default=(0, 0))


def make_gains(results: Results) -> list[Gain]:
    """Return what each prompt gains over its baseline, over the seeds that both have."""
    columns, rows = read_paper()
    by_recipe = {row.recipe: row for row in rows}
    gains = []
    for row in (row for row in rows if row.baseline):
        plain_row = by_recipe[row.baseline]
        for place, column in enumerate(columns):
            prompted = by_seed(results, row.recipe, column)
            plain = by_seed(results, row.baseline, column)
            ours = [prompted[seed] - plain[seed] for seed in prompted if seed in plain]
            paper = round(row.values[place] - plain_row.values[place], 1)
            gains.append(Gain(row, column, paper, summarize(ours) if ours else None))
    return gains


# ---------------------------------------------------------------- studies


def make_trials(cells: Sequence[Cell], results: Results) -> list[Trial]:
    """Return what each setting of a study reaches; the best of a split by its mean top-1."""
    groups: dict[tuple[str, str, str], dict[Setting, list[Result]]] = {}
    for cell in cells:
        settings = groups.setdefault((cell.dataset, cell.recipe, cell.split), {})
        done = settings.setdefault(cell.setting, [])
        if cell in results:
            done.append(results[cell])
    trials = []
    for (dataset, recipe, split), settings in groups.items():
        made = [_trial(dataset, recipe, split, *each) for each in settings.items()]
        best = max((trial.top1.mean for trial in made if trial.top1), default=None)
        for trial in made:
            is_best = trial.top1 is not None and trial.top1.mean == best
            trials.append(trial._replace(best=is_best))
    return trials


def _trial(
    dataset: str, recipe: str, split: str, setting: Setting, done: Sequence[Result]
) -> Trial:
    metrics = [
        summarize([result.metrics[name] for result in done]) if done else None
        for name in ("top1", "top5")
    ]
    prompts = {
        pathway: {
            name: sum(result.prompts[pathway][name] for result in done) / len(done)
            for name in values
            if all(name in result.prompts[pathway] for result in done)
        }
        for pathway, values in (done[0].prompts.items() if done else ())
    }
    return Trial(dataset, recipe, split, setting, metrics[0], metrics[1], prompts, best=False)
