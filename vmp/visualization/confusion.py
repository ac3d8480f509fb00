"""Which classes are taken for which: a confusion matrix as a picture, for 2 to some 300 classes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from vmp.visualization.style import new_figure

NUMBERED = 16  # up to so many classes each cell has its number in it
NAMED = 100  # up to so many each class has its name at its row, of more every second, third, ...
LONGEST = 41  # characters of a name
CELL = 0.16  # inches, of the smallest letters


def draw_confusion(matrix: Tensor, class_names: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix, each row in percent of its samples.

    Rows of classes without a sample are grey.

    Args:
        matrix: (C, C) counts, row the true class, column the class it was taken for.
        class_names: C names.
        title: written above, before what all rows together say.
    """
    counts = matrix.numpy().astype(float)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    classes = len(counts)
    names = [_shortened(f"{number} {name}") for number, name in enumerate(class_names)]
    size = 9.0 if classes <= NUMBERED else 6.5
    side = max(3.0, min(NAMED, classes) * max(CELL, 0.5 - 0.02 * classes))
    across = names if classes <= NUMBERED else [str(index) for index in range(classes)]
    left, below = (0.5 + 0.0092 * size * max(map(len, each)) for each in (names, across))
    width, height = left + side + 0.9, below + side + 0.35
    figure = new_figure(width, height)
    figure.set_layout_engine("none")  # places known: finding them takes seconds for 100 names
    axes = figure.add_axes((left / width, below / height, side / width, side / height))
    axes.set_facecolor("0.85")
    scale = PowerNorm(0.5, 0, 100)  # mistakes are spread over many classes: small shares show
    image = axes.imshow(shares, cmap="Blues", norm=scale, interpolation="nearest")
    beside = ((left + side + 0.1) / width, below / height, 0.15 / width, side / height)
    bar = figure.colorbar(image, cax=figure.add_axes(beside))
    bar.set_label("percent of the true class")
    shown = range(0, classes, -(-classes // NAMED))
    axes.set_yticks(shown, [names[index] for index in shown], fontsize=size)
    axes.set_xticks(shown, [across[index] for index in shown], fontsize=size, rotation=90)
    axes.set(xlabel="taken for", ylabel="true class")
    if classes <= NUMBERED:
        _write_numbers(axes, shares)
    right, every = np.trace(counts), counts.sum()
    whole = f"{right:g} of {every:g} right, {100 * right / every:.1f} %" if every else "no samples"
    axes.set_title(f"{title}  {whole}".strip(), fontsize=10)
    return figure


def _shortened(name: str) -> str:
    """Return a name without its middle if it is long: names of a kind differ at the end, too."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"


def _write_numbers(axes: Axes, shares: NDArray[np.float64]) -> None:
    for row, column in np.argwhere(shares >= 0.5):
        colour = "white" if shares[row, column] > 35 else "black"
        text = f"{shares[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
