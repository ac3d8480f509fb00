"""Panels like the paper's Fig. 5 and 6: what motion prompt layers see and make, step by step.

Time runs to the right; a row has one kind of picture, on one scale.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from vmp.prompts import MotionPrompt
from vmp.prompts.functional import to_pixels
from vmp.visualization.style import DPI, difference_map, new_figure

Picture = npt.NDArray[np.uint8]

# Colour map and half range of the attention in the authors' figures, found by fitting: attention,
# in [0, 1], runs from light grey to red and never gets blue.
ATTENTION_MAP, ATTENTION_LIMIT = "coolwarm", 1.8
# One step of an 8-bit pixel: a still clip is drawn white, not as amplified rounding.
SMALLEST_LIMIT = 1 / 255
CELL_WIDTH = 1.6  # inches
LETTER = 0.065  # inches, of small letters, most of them digits
MOVIE_COLUMNS = 4


class Row(NamedTuple):
    """One kind of picture at T steps.

    Attributes:
        name: what it is.
        pictures: (T, H, W), or (T, H, W, 3) as uint8 or in [0, 1].
        colours: imshow's cmap, vmin and vmax; none for pictures that have colours.
        shown: part of the colours' range that can occur, which is all that the bar shows.
        heading: a line above, as whose attention it is.
    """

    name: str
    pictures: Tensor
    colours: Mapping[str, Any] = {}
    shown: tuple[float, float] = (0.0, 1.0)
    heading: str = ""


@torch.no_grad()
def motion_rows(
    prompts: Sequence[tuple[str, MotionPrompt]], clip: Tensor, *, normalised: bool = False
) -> list[Row]:
    """Return what `prompts` make of a clip: frames, differences, and attention and prompts of each.

    The prompts are drawn as pixels, by the layer's mean and standard deviation: attention 0 gives
    the mean, a grey, and attention 1 the frame itself.

    Args:
        prompts: what to write above, if anything, and a layer on the device of the clip; the
            differences are those of the first.
        clip: (3, T+1, H, W) uint8 RGB, T >= 2.
        normalised: add the differences of each step stretched to [0, 1], as the second picture of
            the paper's Fig. 1, which does not say how; here (D - min D) / (max D - min D).

    Returns:
        Rows of T pictures: the first frame, of which there is no difference, is left out.

    Raises:
        ValueError: the clip is not of that shape and type, or there are no prompts.
    """
    if clip.dtype != torch.uint8 or clip.ndim != 4:
        raise ValueError(
            f"a clip {tuple(clip.shape)} of {clip.dtype} was given; it must be (3, T+1, H, W) uint8"
        )
    if not prompts:
        raise ValueError("no prompts were given; there must be one at least")
    batch = clip.unsqueeze(0)
    differences = prompts[0][1].differences(batch)[0]
    limit = max(float(differences.abs().max()), SMALLEST_LIMIT)
    signed = {"cmap": difference_map(), "vmin": -limit, "vmax": limit}
    rows = [Row("frames", clip[:, 1:].movedim(0, -1))]
    if normalised:
        grey = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0}
        rows.append(Row("normalised\ndifferences", stretch(differences), grey))
    rows.append(Row("differences", differences, signed, (-limit, limit)))
    for name, layer in prompts:
        rows += _prompt_rows(name, layer, batch)
    return rows


def stretch(differences: Tensor) -> Tensor:
    """Return each map of (T, H, W) stretched to [0, 1]; a flat one becomes 0.5."""
    low = differences.amin(dim=(1, 2), keepdim=True)
    high = differences.amax(dim=(1, 2), keepdim=True)
    flat = high == low
    return torch.where(flat, 0.5, (differences - low) / torch.where(flat, 1.0, high - low))


def _prompt_rows(name: str, layer: MotionPrompt, batch: Tensor) -> list[Row]:
    made, variation = layer(batch)
    pixels = to_pixels(made, layer.mean, layer.std)[0].clamp(0, 1)
    colours = {"cmap": ATTENTION_MAP, "vmin": -ATTENTION_LIMIT, "vmax": ATTENTION_LIMIT}
    heading = ":  ".join(part for part in (name, describe(layer, float(variation))) if part)
    return [
        Row("attention", layer.attention(batch)[0], colours, heading=heading),
        Row("prompts", pixels.movedim(0, -1)),
    ]


def describe(layer: MotionPrompt, variation: float) -> str:
    """Return the numbers of a layer's power normalisation and V, one line."""
    # a power normalisation of the user's own need not have one
    numbers: Callable[[], dict[str, Tensor]] = getattr(layer.power_norm, "describe", dict)
    named = {"f(0)" if key == "f0" else key: float(value) for key, value in numbers().items()}
    parts = [f"{key} = {value:.4g}" for key, value in (named | {"V": variation}).items()]
    return f"{type(layer.power_norm).__name__}, {',  '.join(parts)}"


def draw_panel(
    rows: Sequence[Row],
    *,
    title: str = "",
    labels: Sequence[str] | None = None,
    max_steps: int = 8,
) -> Figure:
    """Draw rows below each other, time to the right.

    Args:
        rows: of equally many pictures of one size.
        title: above all.
        labels: T words, above the columns; None numbers them from 1.
        max_steps: steps drawn; of more, evenly spaced ones.

    Returns:
        A figure on an Agg canvas, see `save_figure`.

    Raises:
        ValueError: the rows do not fit each other.
    """
    total, height, width = _check(rows)
    names = labels or [str(step + 1) for step in range(total)]
    steps = torch.linspace(0, total - 1, min(max_steps, total)).round().long().tolist()
    across = CELL_WIDTH * max(len(steps), 3)
    headings = sum(len(_wrap(row.heading, across)) for row in rows)
    down = len(rows) * (CELL_WIDTH * height / width + 0.1)
    figure = new_figure(across + 1.8, down + 0.18 * headings + 0.75)
    tighten(figure)
    axes = figure.subplots(len(rows), len(steps), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for cell, step in zip(line, steps, strict=True):
            shown = _show(cell, row, step)
        line[0].set_ylabel(row.name, rotation=0, ha="right", va="center")
        if row.heading:
            _write_beside(line[0], _wrap(row.heading, across))
        if row.colours:
            bar = figure.colorbar(shown, ax=list(line), location="right", shrink=0.9, pad=0.01)
            bar.ax.set_ylim(*row.shown)
    for cell, step in zip(axes[0], steps, strict=True):
        cell.set_title(names[step])
    figure.suptitle(title)
    return figure


def prompt_panel(
    prompt: MotionPrompt, clip: Tensor, *, title: str = "", max_steps: int = 8
) -> Figure:
    """Draw what one prompt makes of a clip, see `motion_rows` and `draw_panel`."""
    return draw_panel(motion_rows([("", prompt)], clip), title=title, max_steps=max_steps)


def movie_frames(
    rows: Sequence[Row], *, title: str = "", labels: Sequence[str] | None = None
) -> Iterator[Picture]:
    """Yield a picture a step, all kinds side by side (four in a line), of even height and width.

    Args:
        rows: as in `draw_panel`.
        title: above all.
        labels: T words, one of them behind the title.

    Raises:
        ValueError: the rows do not fit each other.
    """
    total, height, width = _check(rows)
    names = labels or [str(step + 1) for step in range(total)]
    cells = wrapped(rows)
    columns = min(MOVIE_COLUMNS, len(cells))
    lines = -(-len(cells) // columns)
    cell = 1.5 * CELL_WIDTH
    size = (cell * columns + 1.8, lines * (cell * height / width + 0.65) + 0.4)
    figure = new_figure(*size)
    tighten(figure)
    axes = figure.subplots(lines, columns, squeeze=False)
    images = []
    for place, row in zip_longest(axes.flat, cells):
        if row is None:
            place.set_axis_off()
            continue
        images.append((_show(place, row, 0), row))
        place.set_title(row.name.replace("\n", " "))
        _write_beside(place, _wrap(row.heading, 2 * cell), below=True)
    scales = {row.name: (image, row) for image, row in images if row.colours}  # one of a name
    for image, row in scales.values():
        bar = figure.colorbar(image, ax=axes, location="right", aspect=30, pad=0.01)
        bar.set_label(row.name.replace("\n", " "))
        bar.ax.set_ylim(*row.shown)
    for step in range(total):
        for image, row in images:
            image.set_data(_array(row, step))
        figure.suptitle(f"{title}  {names[step]}".strip())
        picture = picture_of(figure)
        figure.set_layout_engine("none")  # found once, it stays
        yield picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


def tighten(figure: Figure) -> None:
    """Leave little room between the parts of a figure, and a margin around them."""
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.02, h_pad=0.05, wspace=0, hspace=0)
    margins = [0.06 / inches for inches in figure.get_size_inches()]
    engine.set(rect=(*margins, *(1 - 2 * margin for margin in margins)))


def picture_of(figure: Figure, dpi: float = DPI) -> Picture:
    """Return a figure as (H, W, 3) uint8."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    rendered: Any = figure.canvas
    picture: Picture = np.asarray(rendered.buffer_rgba())[..., :3].copy()
    return picture


def wrapped(rows: Sequence[Row]) -> list[Row | None]:
    """Return rows as the cells of a movie: None where the last of a line would begin a pair."""
    cells: list[Row | None] = []
    for row in rows:
        if row.heading and len(cells) % MOVIE_COLUMNS == MOVIE_COLUMNS - 1:
            cells.append(None)
        cells.append(row)
    return cells


def _wrap(text: str, width: float) -> list[str]:
    """Return the lines of small letters that `text` takes in so many inches."""
    whole = text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    return wrap(whole, max(1, int(width / LETTER)))


def _write_beside(axes: Any, lines: Sequence[str], *, below: bool = False) -> None:
    """Write above a picture, or up to two lines below, what may be wider than it."""
    # blanks keep room for it: it has no part in the layout, which it would widen
    room = "\n".join(" " * max(len(lines), 2 * below))
    if below:
        axes.set_xlabel(room, fontsize="small")
    else:
        axes.set_title(room, fontsize="small")
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    place |= {"va": "top" if below else "bottom", "fontsize": "small"}
    corner, gap = ((0, 0), (0, -4)) if below else ((0, 1), (0, 3))
    axes.annotate("\n".join(lines), corner, gap, **place).set_in_layout(False)


def _show(axes: Any, row: Row, step: int) -> AxesImage:
    axes.set(xticks=[], yticks=[])
    shown: AxesImage = axes.imshow(_array(row, step), interpolation="nearest", **row.colours)
    return shown


def _array(row: Row, step: int) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = row.pictures[step].detach().cpu().numpy()
    return array


def _check(rows: Sequence[Row]) -> tuple[int, int, int]:
    """Return T, H and W of all rows."""
    shapes = [tuple(row.pictures.shape) for row in rows]
    sizes = {shape[:3] for shape in shapes}
    fit = all(len(shape) == 3 or (len(shape) == 4 and shape[3] == 3) for shape in shapes)
    if not fit or len(sizes) != 1 or math.prod(shapes[0]) == 0:
        raise ValueError(
            f"rows of shapes {', '.join(map(str, shapes))} were given; they must be (T, H, W) or "
            "(T, H, W, 3), of the same T, H and W"
        )
    total, height, width = sizes.pop()
    return total, height, width
