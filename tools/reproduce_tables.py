"""The tables as text: Markdown, CSV and LaTeX. What nobody has run stays empty."""

import csv
import io
from collections.abc import Mapping, Sequence

from reproduce_cells import DATA_SETS, Column, Setting
from reproduce_collect import Entry, Gain, Results, Trial

from vmp.metrics.student import Summary

LEVEL = "95 % interval"


def title_of(column: Column) -> str:
    """Return the heading of a column of Table 1."""
    title = DATA_SETS[column.dataset].title
    if column.dataset == "HMDB51":
        return f"{title} {column.split if column.split == 'mean' else f'split {column.split}'}"
    return f"{title} top-{column.metric.removeprefix('top')}"


def spread(ours: Summary | None, digits: int = 1, *, signed: bool = False) -> str:
    """Return `mean +- sd`, the mean alone for one seed, "" without a run."""
    if ours is None:
        return ""
    mean = f"{ours.mean:{'+' if signed else ''}.{digits}f}"
    return mean if ours.sd is None else f"{mean} ± {ours.sd:.{digits}f}"


def interval(ours: Summary | None, digits: int = 1, *, less: float = 0.0) -> str:
    """Return `low to high` of the interval less a number, "" where there is none."""
    if ours is None or ours.low is None or ours.high is None:
        return ""
    return f"{ours.low - less:+.{digits}f} to {ours.high - less:+.{digits}f}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def by_row(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return the entries of each row of Table 1."""
    rows: dict[str, list[Entry]] = {}
    for entry in entries:
        rows.setdefault(entry.row.recipe, []).append(entry)
    return list(rows.values())


def table1_markdown(
    entries: Sequence[Entry], gains: Sequence[Gain], results: Results, refused: Sequence[str]
) -> str:
    """Return Table 1 with our numbers, each number by itself, the gains, and the runs behind."""
    parts = [
        "# Table 1: paper / ours\n",
        "Percent; ours is the mean over seeds ± the standard deviation of a seed. A number that "
        "nobody has run is empty.\n",
        compact_table1(entries),
        "## Each number\n",
        markdown(ENTRY_HEADS, [entry_cells(each) for each in entries]),
        "## What the prompt gains\n",
        "Seed by seed over the baseline of the same seed and split.\n",
        markdown(GAIN_HEADS, [gain_cells(each) for each in gains]),
        "## Runs\n",
        markdown(RUN_HEADS, run_rows(results)),
    ]
    if refused:
        parts += ["## Not taken\n", "".join(f"- {each}\n" for each in refused)]
    return "\n".join(parts)


def compact_table1(entries: Sequence[Entry]) -> str:
    """Return Table 1 as the paper prints it, each cell `paper / ours`."""
    rows = by_row(entries)
    cells = [
        [row[0].row.name, *(f"{each.paper} / {spread(each.ours)}".rstrip() for each in row)]
        for row in rows
    ]
    return markdown(["", *(title_of(each.column) for each in rows[0])], cells)


ENTRY_HEADS = [
    *("row", "recipe", "column", "paper", "ours", "difference", "n", f"{LEVEL} of the difference"),
    "evaluated",
]
GAIN_HEADS = ["row", "recipe", "column", "paper", "ours", "n", LEVEL]
RUN_HEADS = ["run", "top-1", "top-5", "evaluated", "learned", "commit", "config", "weights", "init"]


def entry_cells(entry: Entry) -> list[str]:
    """Return the cells of a number of Table 1."""
    ours = entry.ours
    return [
        entry.row.name,
        entry.row.recipe,
        title_of(entry.column),
        f"{entry.paper}",
        spread(ours),
        f"{ours.mean - entry.paper:+.1f}" if ours else "",
        f"{ours.n}" if ours else "",
        interval(ours, less=entry.paper),
        f"{entry.evaluated} of {entry.official}" if ours else "",
    ]


def gain_cells(gain: Gain) -> list[str]:
    """Return the cells of a gain."""
    ours = gain.ours
    return [
        gain.row.name,
        gain.row.recipe,
        title_of(gain.column),
        f"{gain.paper:+.1f}",
        spread(ours, signed=True),
        f"{ours.n}" if ours else "",
        interval(ours),
    ]


def run_rows(results: Results) -> list[list[str]]:
    """Return a line for each finished run; hashes by their first twelve digits."""
    return [
        [
            cell.name,
            f"{result.metrics['top1']:.2f}",
            f"{result.metrics['top5']:.2f}",
            f"{result.evaluated} of {result.official}",
            learned(result.prompts),
            short_commit(result.commit),
            result.config_sha256[:12],
            result.weights_sha256[:12],
            result.init_sha256[:12],
        ]
        for cell, result in results.items()
    ]


def short_commit(commit: str) -> str:
    """Return the first twelve digits of a commit, and the mark of changes over it."""
    digits, plus, _ = commit.partition("+")
    return digits[:12] + ("+changes" if plus else "")


def learned(prompts: Mapping[str, Mapping[str, float]]) -> str:
    """Return what prompts have learned, in short."""
    shown = {"a": ".2f", "b": ".3f", "value": ".3g", "f0": ".3f", "dimmed": ".1%"}
    parts = [
        ", ".join(f"{name} {values[name]:{form}}" for name, form in shown.items() if name in values)
        for values in prompts.values()
    ]
    if len(parts) == 1:
        return parts[0]
    return "; ".join(f"{pathway}: {part}" for pathway, part in zip(prompts, parts, strict=True))


def table1_csv(entries: Sequence[Entry]) -> str:
    """Return a line for each number of Table 1; what is not known is empty."""
    heads = ["row", "recipe", "dataset", "split", "metric", "paper", "mean", "sd", "difference"]
    heads += ["n", "low", "high", "evaluated", "official"]
    rows = []
    for entry in entries:
        ours = entry.ours
        place = [entry.row.name, entry.row.recipe, *entry.column, f"{entry.paper}"]
        if ours is None:
            rows.append([*place, *[""] * 8])
            continue
        numbers = [ours.mean, ours.sd, ours.mean - entry.paper, ours.n, ours.low, ours.high]
        texts = ["" if each is None else f"{each:.6g}" for each in numbers]
        rows.append([*place, *texts, f"{entry.evaluated}", f"{entry.official}"])
    return as_csv(heads, rows)


def runs_csv(results: Results) -> str:
    """Return a line for each finished run, hashes and commit in full."""
    heads = ["run", "dataset", "recipe", "setting", "split", "seed", "top1", "top5", "evaluated"]
    heads += ["official", "commit", "config_sha256", "weights_sha256", "init_sha256", "learned"]
    rows = [
        [
            *(cell.name, cell.dataset, cell.recipe, cell.setting.name, cell.split, f"{cell.seed}"),
            *(f"{result.metrics[name]:.6g}" for name in ("top1", "top5")),
            *(f"{result.evaluated}", f"{result.official}", result.commit, result.config_sha256),
            *(result.weights_sha256, result.init_sha256, learned(result.prompts)),
        ]
        for cell, result in results.items()
    ]
    return as_csv(heads, rows)


def as_csv(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *rows])
    return text.getvalue()


def table1_latex(entries: Sequence[Entry]) -> str:
    """Return Table 1 as a tabular, paper / ours."""
    rows = by_row(entries)
    heads = ["", *(title_of(entry.column) for entry in rows[0])]
    lines = [
        f"\\begin{{tabular}}{{l{'c' * len(rows[0])}}}",
        "\\hline",
        _latex_line(heads),
        "\\hline",
    ]
    for row in rows:
        numbers = [f"{each.paper} / {spread(each.ours)}".rstrip() for each in row]
        lines.append(_latex_line([row[0].row.name, *numbers]))
    return "\n".join([*lines, "\\hline", "\\end{tabular}"]) + "\n"


def _latex_line(cells: Sequence[str]) -> str:
    text = " & ".join(cell.replace("&", "\\&").replace("±", "$\\pm$") for cell in cells)
    return f"{text} \\\\"


# ---------------------------------------------------------------- studies

TRIAL_HEADS = ["data set", "split", "recipe", "setting", "top-1", "top-5", "n", LEVEL, "learned"]


def study_markdown(
    title: str, trials: Sequence[Trial], results: Results, refused: Sequence[str]
) -> str:
    """Return the table of a study; the setting with the highest mean top-1 of a split is bold."""
    rows = [
        [
            DATA_SETS[each.dataset].title,
            each.split,
            each.recipe,
            f"**{setting_name(each.setting)}**" if each.best else setting_name(each.setting),
            spread(each.top1),
            spread(each.top5),
            f"{each.top1.n}" if each.top1 else "",
            interval(each.top1).replace("+", ""),
            learned(each.prompts),
        ]
        for each in trials
    ]
    parts = [f"# {title}\n", markdown(TRIAL_HEADS, rows)]
    parts += ["## Runs\n", markdown(RUN_HEADS, run_rows(results))]
    if refused:
        parts += ["## Not taken\n", "".join(f"- {each}\n" for each in refused)]
    return "\n".join(parts)


def setting_name(setting: Setting) -> str:
    """Return what a setting is called in a table."""
    return setting.name or "as the recipe"


def study_csv(trials: Sequence[Trial]) -> str:
    """Return a line for each setting."""
    heads = ["dataset", "split", "recipe", "setting", "top1", "top1_sd", "top5", "top5_sd", "n"]
    rows = []
    for each in trials:
        place = [each.dataset, each.split, each.recipe, each.setting.name]
        numbers = [
            number
            for summary in (each.top1, each.top5)
            for number in ((None, None) if summary is None else (summary.mean, summary.sd))
        ]
        texts = ["" if number is None else f"{number:.6g}" for number in numbers]
        rows.append([*place, *texts, f"{each.top1.n}" if each.top1 else ""])
    return as_csv([*heads], rows)
