"""Panels like the paper's Fig. 5: what a motion prompt layer sees and makes, frame by frame.

Figures are made without pyplot, so drawing neither opens a window nor leaves anything behind.
"""

from collections.abc import Callable
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from vmp.prompts import MotionPrompt
from vmp.prompts.functional import to_pixels

# Colour map and half range of the attention in the authors' figures, found by fitting: attention,
# in [0, 1], runs from light grey to red and never gets blue.
ATTENTION_MAP, ATTENTION_LIMIT = "coolwarm", 1.8
# Diverging: blue below 0, white at 0, red above.
DIFFERENCE_MAP = "RdBu_r"
# One step of an 8-bit pixel: a still clip is drawn white, not as amplified rounding.
SMALLEST_LIMIT = 1 / 255
CELL_WIDTH = 2.4  # inches


def motion_panel(
    frames: Tensor,
    differences: Tensor,
    attention: Tensor,
    prompts: Tensor,
    *,
    title: str = "",
    caption: str = "",
    labels: list[str] | None = None,
) -> Figure:
    """Draw one row a time step: frame | difference | attention | prompt.

    Args:
        frames: (T, H, W, 3) uint8; F_{t+1}, the frame that the attention of row t multiplies.
        differences: (T, H, W) in [-1, 1], drawn on a scale symmetric about 0 that reaches the
            largest of the panel.
        attention: (T, H, W) in [0, 1], in the authors' colours.
        prompts: (T, H, W, 3) as pixels; what lies outside [0, 1] is clipped.
        title: above the panel.
        caption: below it.
        labels: T words, left of the rows; None numbers them from 1.

    Returns:
        A figure on an Agg canvas: `figure.savefig(path)` writes it.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    _check(frames, differences, attention, prompts)
    rows, height, width = differences.shape
    names = labels or [str(row + 1) for row in range(rows)]
    limit = max(float(differences.abs().max()), SMALLEST_LIMIT)
    columns: tuple[tuple[str, Tensor, dict[str, Any], float], ...] = (
        ("frames", frames, {}, 0),
        ("differences", differences, _colours(DIFFERENCE_MAP, limit), -limit),
        ("attention", attention, _colours(ATTENTION_MAP, ATTENTION_LIMIT), 0),
        ("prompts", prompts.clamp(0, 1), {}, 0),
    )
    size = (4 * CELL_WIDTH + 0.4, rows * CELL_WIDTH * height / width + 1.2)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, pictures, colours, lowest) in enumerate(columns):
        axes[0, column].set_title(name)
        for row, picture in enumerate(pictures.detach().cpu().numpy()):
            shown = axes[row, column].imshow(picture, interpolation="nearest", **colours)
            axes[row, column].set(xticks=[], yticks=[])
        if colours:
            scale = figure.colorbar(
                shown, ax=axes[:, column], location="bottom", shrink=0.8, aspect=25, pad=0.01
            )
            scale.ax.set_xlim(lowest, min(colours["vmax"], 1))  # only what occurs
    for row, label in enumerate(names):
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center")
    figure.suptitle(title)
    figure.supxlabel(caption, fontsize="medium")
    return figure


def _colours(name: str, limit: float) -> dict[str, Any]:
    """Return imshow's arguments for a diverging map, symmetric about 0."""
    return {"cmap": name, "vmin": -limit, "vmax": limit}


def _check(frames: Tensor, differences: Tensor, attention: Tensor, prompts: Tensor) -> None:
    shape = tuple(differences.shape)
    fits = attention.shape == differences.shape and len(shape) == 3 and shape[0] > 0
    if not fits or not frames.shape == prompts.shape == (*shape, 3):
        raise ValueError(
            f"frames {tuple(frames.shape)}, differences {shape}, attention "
            f"{tuple(attention.shape)} and prompts {tuple(prompts.shape)} were given; "
            "they must be (T, H, W, 3), (T, H, W), (T, H, W) and (T, H, W, 3)"
        )


@torch.no_grad()
def prompt_panel(
    prompt: MotionPrompt, clip: Tensor, *, title: str = "", max_rows: int = 8
) -> Figure:
    """Draw what `prompt` makes of a clip, with its learned numbers as caption.

    The prompts are drawn as pixels, by the layer's mean and standard deviation: attention 0 gives
    the mean, a grey, and attention 1 the frame itself.

    Args:
        prompt: the layer, on the device of the clip.
        clip: (3, T+1, H, W) uint8 RGB, T >= 2.
        title: above the panel.
        max_rows: time steps drawn; of more, evenly spaced ones. The row labels are the numbers of
            the frames in the clip, the first, of which there is no difference, being 0.

    Raises:
        ValueError: the clip is not of that shape and type.
    """
    if clip.dtype != torch.uint8 or clip.ndim != 4:
        raise ValueError(
            f"a clip {tuple(clip.shape)} of {clip.dtype} was given; it must be (3, T+1, H, W) uint8"
        )
    batch = clip.unsqueeze(0)
    prompts, variation = prompt(batch)
    steps = torch.linspace(0, prompts.shape[2] - 1, min(max_rows, prompts.shape[2])).round().long()
    pixels = to_pixels(prompts, prompt.mean, prompt.std)[0]
    return motion_panel(
        clip[:, 1:][:, steps].movedim(0, -1),
        prompt.differences(batch)[0, steps],
        prompt.attention(batch)[0, steps],
        pixels[:, steps].movedim(0, -1),
        title=title,
        caption=_caption(prompt, float(variation)),
        labels=[str(step + 1) for step in steps.tolist()],
    )


def _caption(prompt: MotionPrompt, variation: float) -> str:
    """Return the numbers of the layer's power normalisation and V, one line."""
    # a power normalisation of the user's own need not have one
    describe: Callable[[], dict[str, Tensor]] = getattr(prompt.power_norm, "describe", dict)
    named = {"f(0)" if key == "f0" else key: float(value) for key, value in describe().items()}
    parts = [f"{key} = {value:.3g}" for key, value in (named | {"V": variation}).items()]
    return f"{type(prompt.power_norm).__name__}: {',  '.join(parts)}"
