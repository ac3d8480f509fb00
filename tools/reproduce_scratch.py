"""The study from scratch: each prompt beside its baseline and beside one without attention."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from reproduce_cells import DATA_SETS, Cell, Setting
from reproduce_collect import Result, Results
from reproduce_tables import (
    LEVEL,
    RUN_HEADS,
    as_csv,
    interval,
    markdown,
    run_rows,
    setting_name,
    spread,
)

from vmp.metrics.student import Summary, summarize

IDENTITY = "identity"
HEADS = ["recipe", "setting", "top-1", "n", "over the baseline", LEVEL, "over identity", LEVEL]
HEADS += ["learned", "f(0) of each seed"]


class Group(NamedTuple):
    """Runs that are compared with each other: one network on one split.

    Attributes:
        dataset: folder in configs/.
        split: DATA.SPLIT.
        baseline: recipe without a prompt.
    """

    dataset: str
    split: str
    baseline: str


class Trial(NamedTuple):
    """A recipe and a setting, over seeds.

    Attributes:
        recipe: file in configs/<data set>, without ".yaml".
        setting: what it changes.
        top1: percent; None without a run.
        over_baseline: paired by seed; None without a common seed, and for the baseline.
        over_identity: likewise, beside the prompt whose attention is 1.
        prompts: seed -> pathway -> what was learned.
    """

    recipe: str
    setting: Setting
    top1: Summary | None
    over_baseline: Summary | None
    over_identity: Summary | None
    prompts: Mapping[int, Mapping[str, Mapping[str, float]]]


Trials = Mapping[Group, Sequence[Trial]]


def make_trials(cells: Sequence[Cell], results: Results) -> dict[Group, list[Trial]]:
    """Return what each recipe and setting reaches, by the group it is compared in."""
    groups: dict[Group, dict[tuple[str, Setting], dict[int, Result]]] = {}
    for cell in cells:
        group = Group(cell.dataset, cell.split, cell.recipe.partition("_VMP")[0])
        by_seed = groups.setdefault(group, {}).setdefault((cell.recipe, cell.setting), {})
        if cell in results:
            by_seed[cell.seed] = results[cell]
    return {group: list(_compare(group, runs)) for group, runs in groups.items()}


def _compare(
    group: Group, runs: Mapping[tuple[str, Setting], Mapping[int, Result]]
) -> Iterator[Trial]:
    baseline = runs.get((group.baseline, Setting()), {})
    identity = next((each for (_, setting), each in runs.items() if setting.name == IDENTITY), {})
    for (recipe, setting), by_seed in runs.items():
        values = [result.metrics["top1"] for result in by_seed.values()]
        yield Trial(
            recipe,
            setting,
            summarize(values) if values else None,
            None if by_seed is baseline else gain(by_seed, baseline),
            None if by_seed is baseline or by_seed is identity else gain(by_seed, identity),
            {seed: result.prompts for seed, result in sorted(by_seed.items())},
        )


def gain(ours: Mapping[int, Result], theirs: Mapping[int, Result]) -> Summary | None:
    """Return the difference in top-1 over the seeds that both have; None if there is none."""
    both = [seed for seed in ours if seed in theirs]
    values = [ours[seed].metrics["top1"] - theirs[seed].metrics["top1"] for seed in both]
    return summarize(values) if values else None


def page(title: str, trials: Trials, results: Results, refused: Sequence[str]) -> str:
    """Return the tables of all groups, and the runs behind them."""
    parts = [f"# {title}\n", tables(trials), "## Runs\n", markdown(RUN_HEADS, run_rows(results))]
    if refused:
        parts += ["## Not taken\n", "".join(f"- {each}\n" for each in refused)]
    return "\n".join(parts)


def tables(trials: Trials) -> str:
    """Return a table of each group that has a run; a setting that nobody has run is empty."""
    parts = []
    for group, made in trials.items():
        if any(trial.top1 for trial in made):
            split = f", split `{group.split}`" if group.split else ""
            parts += [f"### {DATA_SETS[group.dataset].title}{split}: `{group.baseline}`\n"]
            parts += [markdown(HEADS, [cells_of(trial) for trial in made])]
    return "\n".join(parts)


def cells_of(trial: Trial) -> list[str]:
    """Return the cells of a row."""
    return [
        f"`{trial.recipe}`",
        setting_name(trial.setting),
        spread(trial.top1),
        f"{trial.top1.n}" if trial.top1 else "",
        spread(trial.over_baseline, signed=True),
        interval(trial.over_baseline),
        spread(trial.over_identity, signed=True),
        interval(trial.over_identity),
        learned_ranges(trial.prompts),
        stills(trial.prompts),
    ]


def learned_ranges(prompts: Mapping[int, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the lowest and highest of a, b and the like over the seeds, for each pathway."""
    parts = []
    for pathway in _pathways(prompts):
        values = [each[pathway] for each in prompts.values()]
        shown = {"a": ".1f", "b": ".2f", "value": ".4g"}
        ranges = [
            f"{name} {min(found):{form}} to {max(found):{form}}"
            for name, form in shown.items()
            if (found := [each[name] for each in values if name in each])
        ]
        parts.append(", ".join(ranges))
    return "; ".join(filter(None, parts))


def stills(prompts: Mapping[int, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the attention of a still pixel, a number for each seed, for each pathway."""
    parts = []
    for pathway in _pathways(prompts):
        found = [each[pathway]["f0"] for each in prompts.values() if "f0" in each[pathway]]
        parts.append(" ".join(f"{value:.3f}" for value in found))
    return "; ".join(filter(None, parts))


def _pathways(prompts: Mapping[int, Mapping[str, Mapping[str, float]]]) -> list[str]:
    return list(next(iter(prompts.values()), {}))


def study_csv(trials: Trials) -> str:
    """Return a line for each recipe and setting; what is not known is empty."""
    names = ("top1", "over_baseline", "over_identity")
    heads = ["dataset", "split", "recipe", "setting", "sets", "n"]
    heads += [f"{name}{end}" for name in names for end in ("", "_sd", "_low", "_high")]
    rows = []
    for group, made in trials.items():
        for trial in made:
            place = [group.dataset, group.split, trial.recipe, trial.setting.name]
            place += [" ".join(trial.setting.opts), f"{trial.top1.n}" if trial.top1 else ""]
            rows.append([*place, *(text for name in names for text in _numbers(trial, name))])
    return as_csv(heads, rows)


def _numbers(trial: Trial, name: str) -> list[str]:
    found: Summary | None = getattr(trial, name)
    numbers = (found.mean, found.sd, found.low, found.high) if found else (None,) * 4
    return ["" if each is None else f"{each:.6g}" for each in numbers]
