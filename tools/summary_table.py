"""What `tools/summary.py` tells of runs: what differs, a line each, and what their seeds say."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import simplejson
from reproduce_tables import as_csv, interval, learned, markdown, short_commit, spread
from summary_plot import Line, draw
from summary_read import Run, read_runs

from vmp.metrics.student import summarize as summary_of
from vmp.utils.files import write_text
from vmp.visualization.style import save_figure

# Told before others, and by what they are called in a table.
FIRST = {
    "TRAIN.DATASET": "data set",
    "DATA.SPLIT": "split",
    "MODEL.NAME": "model",
    "PROMPT.ENABLE": "prompt",
    "PROMPT.PATHWAYS": "pathways",
    "PROMPT.POWER_NORM": "norm",
    "PROMPT.PENALTY": "λ",
}
SEED = "RNG_SEED"
NAMES = FIRST | {SEED: "seed"}
METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean-class",
    "mean_average_precision": "mAP",
}
MOST = 8  # keys that get a column; more would not fit on a screen
LAST = {"running": 0, "failed": 1, "stopped": 2, "finished": 3}  # in the order of who looks


class Settings(NamedTuple):
    """What tells runs apart.

    Attributes:
        columns: keys that differ, each with a column.
        along: keys that differ just as one of the columns does, or did not fit.
    """

    columns: list[str]
    along: list[str]


def summarize(args: argparse.Namespace) -> None:
    """Print the table of --runs, and write --out."""
    runs, complaints = read_runs(args.runs)
    runs = sort_runs(runs, args.sort)
    settings = find_settings([run.config for run in runs])
    groups = find_groups(runs, settings)
    print(describe(runs, settings, groups, args.metric, aligned))
    for run in runs:
        if run.state == "failed":
            print(f"{run.name} failed: {run.note}")
    for complaint in complaints:
        print(f"left out: {complaint}")
    for path in map(Path, args.out):
        kind = path.suffix.lower()
        if kind == ".md":
            write_text(path, describe(runs, settings, groups, args.metric, markdown))
        elif kind == ".csv":
            write_text(path, as_csv(*full_table(runs, settings, args.metric)))
        elif kind == ".json":
            write_text(path, as_json(runs, settings, args.metric, complaints))
        else:
            lines = [Line(name, members) for name, members in groups.items()]
            save_figure(draw(lines, args.metric), path, dpi=args.dpi)
        print(f"wrote {path}")


def sort_runs(runs: Sequence[Run], by: str) -> list[Run]:
    """Return the runs in an order: metrics from the best on, all else ascending, the rest last.

    Raises:
        ValueError: no run has `by`.
    """
    values: list[Any]
    if by in (*METRICS, "loss"):
        values = [run.metric(by) for run in runs]
    elif by == "val":
        values = [run.best("top1") for run in runs]
    elif by in ("name", "epochs"):
        values = [getattr(run, by) for run in runs]
    elif by == "state":
        values = [LAST[run.state] for run in runs]
    elif any(by in run.config for run in runs):
        values = [run.config.get(by) for run in runs]
    else:
        ways = ", ".join(["name", "state", "epochs", "val", *METRICS, "loss"])
        raise ValueError(f"--sort {by}: it is none of {ways}, and no key of the runs' configs")
    there = [(value, run) for value, run in zip(values, runs, strict=True) if value is not None]
    alike = len({type(value) in (int, float) for value, _ in there}) == 1
    there.sort(
        key=lambda pair: pair[0] if alike else str(pair[0]),
        reverse=by == "val" or by in METRICS,
    )
    missing = [run for value, run in zip(values, runs, strict=True) if value is None]
    return [run for _, run in there] + missing


# ---------------------------------------------------------------- what differs


def find_settings(configs: Sequence[dict[str, Any]]) -> Settings:
    """Return by which keys configs differ; one that a config has not got is no difference."""
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [_text(config.get(key)) for config in configs if key in config] for key in keys}
    differing = [key for key in keys if len(set(values[key])) > 1]
    order = [key for key in FIRST if key in differing]
    order += sorted(key for key in differing if key not in FIRST and key != SEED)
    columns: list[str] = []
    along: list[str] = []
    for key in order:
        spare = key not in FIRST and any(_follows(key, before, configs) for before in columns)
        hidden = len(order) > MOST and (spare or len(columns) >= MOST)
        (along if hidden else columns).append(key)
    return Settings(columns + [key for key in (SEED,) if key in differing], along)


def _follows(key: str, before: str, configs: Sequence[dict[str, Any]]) -> bool:
    """Return whether the value of `before` tells that of `key`."""
    pairs = {(_text(each.get(before)), _text(each.get(key))) for each in configs}
    return len(pairs) == len({pair[0] for pair in pairs})


def find_groups(runs: Sequence[Run], settings: Settings) -> dict[str, list[Run]]:
    """Return the runs of each setting, which differ in their seed alone, by what tells it apart."""
    keys = [key for key in (*settings.columns, *settings.along) if key != SEED]
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(_text(run.config.get(key)) for key in keys), []).append(run)
    named: dict[str, list[Run]] = {}
    for members in found.values():
        alone = len({run.config.get(SEED) for run in members}) < len(members)
        name = name_setting(members[0], settings)
        if alone or not name or name in named:  # the settings do not tell them apart: folders do
            named |= {run.name: [run] for run in members}
        else:
            named[name] = members
    return named


def name_setting(run: Run, settings: Settings) -> str:
    """Return in words what tells the setting of a run from others."""
    words = []
    for key in settings.columns:
        if key == SEED or key not in run.config:
            continue
        value, name = run.config[key], _head(key)
        if key == "PROMPT.ENABLE":
            words.append("prompt" if value else "no prompt")
        elif key in ("TRAIN.DATASET", "MODEL.NAME", "PROMPT.POWER_NORM"):
            words.append(str(value))
        elif value not in ("", None):
            words.append(f"{name} {_text(value)}")
    return ", ".join(words)


def _head(key: str) -> str:
    return NAMES.get(key, key)


def _text(value: Any) -> str:
    """Return a value in a cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and "/" in value:
        return Path(value).name
    return str(value)


# ---------------------------------------------------------------- tables

Table = tuple[list[str], list[list[str]]]


def full_table(runs: Sequence[Run], settings: Settings, metric: str) -> Table:
    """Return heads and rows with all there is of each run; what it has not got is empty."""
    keys = [*settings.columns, *settings.along]
    heads = ["run", *map(_head, keys), "state", "epochs", "of"]
    heads += [f"val {METRICS.get(metric, metric)} best", "last"]
    heads += [*(f"test {name}" for name in METRICS.values()), "test loss", "evaluated", "videos"]
    heads += ["learned", "commit"]
    rows = []
    for run in runs:
        validated = [value for _, value in run.validations(metric)]
        counts = run.results.get("counts", {})
        numbers = [run.best(metric), validated[-1] if validated else None]
        numbers += [run.metric(name) for name in (*METRICS, "loss")]
        rows.append(
            [
                run.name,
                *(_text(run.config.get(key)) for key in keys),
                *(run.state, f"{run.epochs:.3g}", f"{run.max_epoch}"),
                *("" if each is None else f"{each:.6g}" for each in numbers),
                *(_text(counts.get(name)) for name in ("evaluated_videos", "videos")),
                learned(run.prompts),
                run.results.get("git_commit", ""),
            ]
        )
    return heads, rows


def short_table(runs: Sequence[Run], settings: Settings, metric: str) -> Table:
    """Return heads and rows that a person reads."""
    heads = ["run", *map(_head, settings.columns), "state", "epochs"]
    heads += [f"val {METRICS.get(metric, metric)}", "test top-1", "top-5", "mean", "mAP"]
    heads += ["evaluated", "learned", "commit"]
    rows = []
    for run in runs:
        counts = run.results.get("counts")
        tested = f"{counts['evaluated_videos']} of {counts['videos']}" if counts else ""
        rows.append(
            [
                run.name,
                *(_text(run.config.get(key)) for key in settings.columns),
                *(run.state, f"{run.epochs:.3g} of {run.max_epoch}", _best_and_last(run, metric)),
                *("" if (x := run.metric(name)) is None else f"{x:.1f}" for name in METRICS),
                *(tested, learned(run.prompts), short_commit(run.results.get("git_commit", ""))),
            ]
        )
    return heads, rows


def _best_and_last(run: Run, metric: str) -> str:
    values = [value for _, value in run.validations(metric)]
    if not values:
        return ""
    best, last, digits = run.best(metric), values[-1], 3 if metric == "loss" else 1
    ends = f"{last:.{digits}f}"
    return ends if best == last else f"{ends} (best {best:.{digits}f})"


def split_shared(table: Table) -> tuple[str, Table]:
    """Return what all rows have alike, as a sentence, and the table without it."""
    heads, rows = table
    columns = list(zip(*rows, strict=True))
    alike = [len(rows) > 1 and len(set(column)) == 1 for column in columns]
    alike[0] = False
    told = [
        f"{head} {column[0]}"
        for head, column, same in zip(heads, columns, alike, strict=True)
        if same and column[0]
    ]
    kept = [place for place, same in enumerate(alike) if not same]
    shorter = [[row[place] for place in kept] for row in rows]
    return ", ".join(told), ([heads[place] for place in kept], shorter)


def describe(
    runs: Sequence[Run],
    settings: Settings,
    groups: dict[str, list[Run]],
    metric: str,
    make: Callable[[Sequence[str], Sequence[Sequence[str]]], str],
) -> str:
    """Return the table of runs, and that of settings where one has several seeds."""
    shared, table = split_shared(short_table(runs, settings, metric))
    facts = [f"{_head(key)} {_text(runs[0].config.get(key))}" for key in _same(runs)]
    parts = [f"{len(runs)} run(s): {', '.join(filter(None, [*facts, shared]))}\n", make(*table)]
    if settings.along:
        names = ", ".join(settings.along)
        parts.append(f"What differs as well, in step with these (all in .csv and .json): {names}\n")
    several = {name: members for name, members in groups.items() if len(members) > 1}
    if several:
        parts.append("Over seeds, ± the standard deviation of a seed:\n")
        parts.append(make(*seeds_table(groups, metric)))
    return "\n".join(parts)


def _same(runs: Sequence[Run]) -> Iterable[str]:
    """Return which of the first facts all runs share."""
    for key in ("TRAIN.DATASET", "DATA.SPLIT", "MODEL.NAME", "PROMPT.ENABLE"):
        values = {_text(run.config.get(key)) for run in runs}
        if len(values) == 1 and values != {""}:
            yield key


def seeds_table(groups: dict[str, list[Run]], metric: str) -> Table:
    """Return heads and rows of what settings reach over their seeds."""
    name = METRICS.get(metric, metric)
    heads = ["setting", f"n, test {name}", "95 % interval of the mean", f"n, best val {name}"]
    digits, rows = 3 if metric == "loss" else 1, []
    for setting, members in groups.items():
        tests = [value for run in members if (value := run.metric(metric)) is not None]
        bests = [value for run in members if (value := run.best(metric)) is not None]
        tested, validated = (summary_of(each) if each else None for each in (tests, bests))
        rows.append(
            [
                setting,
                f"{len(tests)}, {spread(tested, digits)}" if tests else "",
                interval(tested, digits).replace("+", ""),
                f"{len(bests)}, {spread(validated, digits)}" if bests else "",
            ]
        )
    kept = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    return [heads[place] for place in kept], [[row[place] for place in kept] for row in rows]


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a screen."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def as_json(runs: Sequence[Run], settings: Settings, metric: str, complaints: Sequence[str]) -> str:
    """Return all of it for programs."""
    keys = [*settings.columns, *settings.along]
    listed = [
        {
            "run": run.name,
            "folder": str(run.folder),
            "state": run.state,
            "note": run.note,
            "epochs": run.epochs,
            "max_epoch": run.max_epoch,
            "differs": {key: run.config[key] for key in keys if key in run.config},
            "val": dict(run.validations(metric)),
            "test": run.results.get("metrics", {}),
            "counts": run.results.get("counts", {}),
            "prompts": run.prompts,
            "commit": run.results.get("git_commit", ""),
            "config_sha256": run.results.get("config_sha256", ""),
            "weights_sha256": run.results.get("weights_sha256", ""),
        }
        for run in runs
    ]
    content = {"metric": metric, "runs": listed, "left_out": list(complaints)}
    return str(simplejson.dumps(content, indent=1, ignore_nan=True)) + "\n"
