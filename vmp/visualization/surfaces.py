"""Surfaces before and after each power normalisation, like the paper's Fig. 3 (d)."""

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vmp.prompts.power_norm import PowerNorm
from vmp.visualization.style import difference_map, new_figure

# Points along the longer side of a surface: more hide each other.
POINTS = 72
COLUMNS = 3


def moved_blob(size: int = POINTS) -> Tensor:
    """Return a difference map (size, size) in [-1, 1] in closed form.

    A bright Gaussian blob has moved to the right by about its width, so it is negative where it
    was and positive where it is; a ripple of +-0.02 is around it, as the noise of a camera.
    """
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    def blob(center: float) -> Tensor:
        return torch.exp(-((x - center).square() + y.square()) / (2 * 0.16**2))

    ripple = 0.02 * torch.sin(14 * x) * torch.sin(16 * y)
    return 0.8 * (blob(0.25) - blob(-0.25)) + ripple


@torch.no_grad()
def draw_surfaces(
    norms: Mapping[str, PowerNorm], differences: Tensor, *, title: str = ""
) -> Figure:
    """Draw a difference map and what each power normalisation makes of it, on one scale.

    Args:
        norms: by the name to stand above.
        differences: (H, W) in [-1, 1]; larger ones are averaged down.
        title: above all.
    """
    before = shrink(differences)
    after = {name: norm(before.to(torch.float32)) for name, norm in norms.items()}
    lines = -(-(1 + len(after)) // COLUMNS)
    figure = new_figure(3.5 * COLUMNS + 0.6, 3.0 * lines + 0.5)
    limit = max(float(before.abs().max()), 1 / 255)
    signed = {"cmap": difference_map(), "vmin": -limit, "vmax": limit}
    first = _draw(figure, (lines, 1), before, signed, (-limit, limit))
    first.set_title("before")
    for place, (name, values) in enumerate(after.items(), start=2):
        axes = _draw(
            figure, (lines, place), values, {"cmap": "cividis", "vmin": 0, "vmax": 1}, (0, 1)
        )
        axes.set_title(f"{name}{_numbers(norms[name])}")
    figure.suptitle(title)
    bars: dict[str, Any] = {"location": "right", "shrink": 0.6, "aspect": 25, "pad": 0.02}
    shown = [axes.collections[0] for axes in figure.axes[:2]]
    figure.colorbar(shown[1], ax=figure.axes, label="attention f(D)", **bars)
    figure.colorbar(shown[0], ax=figure.axes[: 1 + len(after)], label="difference D", **bars)
    return figure


def _numbers(norm: PowerNorm) -> str:
    """Return slope and shift of a power normalisation, or its one number, in brackets."""
    found = norm.describe()
    told = [f"{name} = {float(found[name]):.3g}" for name in ("a", "b") if name in found]
    told += [f"{float(found['value']):.3g}"] if "value" in found else []
    return f"  ({', '.join(told)})" if told else ""


def shrink(differences: Tensor) -> Tensor:
    """Return a map of at most POINTS a side, each the mean of the area it stands for."""
    height, width = differences.shape
    factor = -(-max(height, width) // POINTS)
    if factor == 1:
        return differences
    cut = differences[: height // factor * factor, : width // factor * factor]
    pooled: Tensor = torch.nn.functional.avg_pool2d(cut[None], factor)[0]
    return pooled


def _draw(
    figure: Figure,
    place: tuple[int, int],
    values: Tensor,
    colours: dict[str, Any],
    limits: tuple[float, float],
) -> Any:
    lines, index = place
    axes: Any = figure.add_subplot(lines, COLUMNS, index, projection="3d")
    height, width = values.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    axes.plot_surface(
        x.numpy(),
        y.numpy(),
        values.numpy(),
        rcount=POINTS,
        ccount=POINTS,
        lw=0,
        antialiased=False,
        **colours,
    )
    axes.set(zlim=limits, xticks=[], yticks=[])
    axes.zaxis.set_major_locator(MaxNLocator(3))
    axes.invert_yaxis()  # as the picture: the top is behind
    axes.view_init(elev=42, azim=-110)
    longest = max(height, width)
    axes.set_box_aspect((width / longest, height / longest, 0.5), zoom=1.05)
    return axes
