"""The curves of runs for `tools/summary.py`: loss, validation, slope and shift by epoch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from summary_read import Run

from vmp.visualization.style import DASHES, PALETTE, new_figure

Points = list[tuple[float, float]]  # (epoch, value), ascending
WIDTH = 11.0  # inches


class Line(NamedTuple):
    """A setting to draw, with the runs of its seeds."""

    name: str
    runs: list[Run]


def draw(lines: Sequence[Line], metric: str) -> Figure:
    """Draw training loss, validation, slope and shift; what no run has logged gets no axes.

    Settings have colours, pathways dashes. Of several seeds it is the mean, and a band from the
    lowest to the highest.

    Args:
        lines: at least one.
        metric: of the validation.
    """
    pathways = sorted({pathway for line in lines for run in line.runs for pathway in run.prompts})
    wanted: list[tuple[str, dict[str, Callable[[Run], Points]]]] = [
        ("training loss", {"": _loss}),
        (f"validation {metric}", {"": lambda run: run.validations(metric)}),
    ]
    for name, head in (("a", "slope a"), ("b", "shift b")):
        wanted.append((head, {pathway: _learned(pathway, name) for pathway in pathways}))
    shown = [
        (head, curves)
        for head, curves in wanted
        if any(take(run) for take in curves.values() for line in lines for run in line.runs)
    ]
    columns = 3 if len(shown) == 3 else max(1, min(2, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    legend = -(-len(lines) // _legend_columns(lines))
    figure = new_figure(WIDTH if columns > 1 else 7, 3.0 * rows + 0.22 * legend)
    colours = _colours(len(lines))
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place, (head, curves) in zip(places, shown, strict=False):
        for number, take in enumerate(curves.values()):
            for line, colour in zip(lines, colours, strict=True):
                found = [points for run in line.runs if (points := take(run))]
                draw_line(place, found, color=colour, ls=DASHES[number % len(DASHES)])
        place.set(xlabel="epoch", ylabel=head)
        place.grid(alpha=0.25)
        if len(curves) > 1:
            for number, pathway in enumerate(curves):
                place.plot([], [], "k", ls=DASHES[number % len(DASHES)], label=f"pathway {pathway}")
            place.legend(fontsize="small", frameon=False)
    for place in places[len(shown) :]:
        place.set_axis_off()
    _write_legend(figure, lines, colours)
    return figure


def _loss(run: Run) -> Points:
    return [(each["epoch"], each["loss"]) for each in run.train if each["loss"] is not None]


def _learned(pathway: str, name: str) -> Callable[[Run], Points]:
    def take(run: Run) -> Points:
        records = ((each["epoch"], each.get("prompt", {}).get(pathway, {})) for each in run.train)
        return [(epoch, values[name]) for epoch, values in records if values.get(name) is not None]

    return take


def draw_line(axes: Axes, seeds: Sequence[Points], **look: Any) -> None:
    """Draw the curves of a setting's seeds: the mean where several have a value, and a band."""
    if not seeds:
        return
    epochs = np.array(sorted({epoch for points in seeds for epoch, _ in points}))
    values = np.stack([_at(epochs, points) for points in seeds])
    mark = "o" if len(epochs) < 12 else ""
    axes.plot(epochs, np.nanmean(values, axis=0), marker=mark, ms=3, lw=1.4, **look)
    if len(seeds) > 1:
        low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
        axes.fill_between(epochs, low, high, color=look["color"], alpha=0.18, lw=0)


def _at(epochs: NDArray[np.float64], points: Points) -> NDArray[np.float64]:
    """Return a curve at `epochs`, nan before its first and after its last point."""
    own, values = np.array(points, dtype=float).T
    between: NDArray[np.float64] = np.interp(epochs, own, values, left=np.nan, right=np.nan)
    return between


def _colours(count: int) -> list[Any]:
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    scale = matplotlib.colormaps["turbo"]
    return [scale(0.05 + 0.9 * index / (count - 1)) for index in range(count)]


def _legend_columns(lines: Sequence[Line]) -> int:
    longest = max(len(_label(line)) for line in lines)
    return max(1, min(4, int(WIDTH / (0.09 * longest + 0.6))))


def _label(line: Line) -> str:
    count = len(line.runs)
    return f"{line.name} ({count} seeds)" if count > 1 else line.name


def _write_legend(figure: Figure, lines: Sequence[Line], colours: Sequence[Any]) -> None:
    handles = [matplotlib.lines.Line2D([], [], color=colour, lw=2) for colour in colours]
    figure.legend(
        handles,
        [_label(line) for line in lines],
        loc="outside lower center",
        ncols=_legend_columns(lines),
        fontsize="small",
    )
