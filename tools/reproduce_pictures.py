"""Pictures of the study from scratch: how the runs trained, and what their start has decided."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from reproduce_cells import DATA_SETS, Cell, Setting
from reproduce_scratch import Group
from reproduce_summary import RunSummary
from summary_plot import draw_line

from vmp.visualization.style import DASHES, PALETTE, new_figure, save_figure

SIGMOIDS = ("lambda-0", "lambda-2.5", "start-open", "lr-10")


def draw_pictures(summaries: Sequence[RunSummary], folder: Path) -> list[Path]:
    """Write scratch_curves.png and scratch_start.png; none without runs."""
    if not summaries:
        return []
    figures = {"scratch_curves": draw_curves(summaries), "scratch_start": draw_starts(summaries)}
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        save_figure(figure, path)
    return paths


def group_of(summary: RunSummary) -> Group:
    """Return what a run is compared in."""
    cell = summary.cell
    return Group(cell.dataset, cell.split, cell.recipe.partition("_VMP")[0])


def title_of(group: Group) -> str:
    """Return a group as it stands above a picture."""
    split = f" {group.split}" if group.split else ""
    return f"{DATA_SETS[group.dataset].title}{split}, {group.baseline}"


def draw_curves(summaries: Sequence[RunSummary]) -> Figure:
    """Draw the loss of the training batches against the epoch: mean and range of the seeds."""
    groups = list(dict.fromkeys(map(group_of, summaries)))
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure = new_figure(4.6 * columns, 3.6 * rows + 0.6)
    for place, group in enumerate(groups, start=1):
        axes = figure.add_subplot(rows, columns, place)
        runs = [each for each in summaries if group_of(each) == group]
        for look, (name, curves) in zip(_looks(), _by_name(runs).items(), strict=False):
            points = [list(zip(each.curve.epoch, each.curve.loss, strict=True)) for each in curves]
            draw_line(axes, points, label=name, **look)
        axes.set(title=title_of(group), xlabel="epoch", ylabel="training loss")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, loc="lower left")
    figure.suptitle("Training: mean of the seeds, and the lowest to the highest of them")
    return figure


def _looks() -> Iterator[dict[str, Any]]:
    for dashes in DASHES:
        for colour in PALETTE:
            yield {"color": colour, "ls": dashes}


def _by_name(runs: Sequence[RunSummary]) -> dict[str, list[RunSummary]]:
    """Return the runs of each recipe and setting, named by what tells them apart."""
    named: dict[str, list[RunSummary]] = {}
    for each in runs:
        pathways = each.cell.recipe.partition("_VMP_")[2]
        name = " ".join(filter(None, (pathways, each.cell.setting.name))) or "baseline"
        named.setdefault(name, []).append(each)
    return named


def draw_starts(summaries: Sequence[RunSummary]) -> Figure:
    """Draw what a prompt gains over its baseline of the same seed against f(0) at the end.

    Only prompts of one pathway with the paper's sigmoid: these have one f(0).
    """
    top1 = {each.cell: each.result.metrics["top1"] for each in summaries}
    groups = list(dict.fromkeys(map(group_of, summaries)))
    figure = new_figure(8, 4.6)
    axes = figure.add_subplot()
    for colour, group in zip(PALETTE * len(groups), groups, strict=False):
        for mark, setting in zip("o^sD", SIGMOIDS, strict=True):
            points = [
                (next(iter(each.result.prompts.values()))["f0"], gain)
                for each in summaries
                if group_of(each) == group and each.cell.setting.name == setting
                if len(each.result.prompts) == 1
                if (gain := _gain(each, group, top1)) is not None
            ]
            if points:
                label = f"{title_of(group)}: {setting}"
                axes.scatter(*zip(*points, strict=True), color=colour, marker=mark, label=label)
    axes.axhline(0, color="black", lw=0.8)
    axes.set(
        xlim=(-0.03, 1.03),
        xlabel="attention of a still pixel, f(0), after the training",
        ylabel="top-1 over the baseline, same seed",
    )
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, fontsize=7)
    return figure


def _gain(summary: RunSummary, group: Group, top1: Mapping[Cell, float]) -> float | None:
    plain = summary.cell._replace(recipe=group.baseline, setting=Setting())
    return top1[summary.cell] - top1[plain] if plain in top1 else None
