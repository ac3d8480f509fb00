"""The paper's Fig. 3: power normalisations, slope and shift, in closed form; no data is needed."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vmp.prompts import POWER_NORMS
from vmp.prompts.functional import power_normalization, shift, slope
from vmp.visualization.style import BLACK, BLUE, GREEN, ORANGE, PINK, RED, new_figure

# The others it is compared with, and how each is drawn.
OTHERS = {
    "gamma": ("Gamma", BLUE, "--"),
    "maxexp": ("MaxExp", GREEN, "-."),
    "sigme": ("SigmE", PINK, ":"),
    "asinhe": ("AsinhE", BLACK, (0, (5, 1, 1, 1, 1, 1))),
}
# Of the sigmoid drawn: the slope that the authors' site gives as learned on MPII Cooking 2, a =
# 23.5, and shifts from -0.6 to 0.6.
M = 0.257
SHIFTS = (-2.5, -0.8, -0.35, 0.0, 0.35, 0.8, 2.5)


def draw_curves() -> Figure:
    """Draw (a) power normalisations, (b) the slope a(m), (c) the shift b(n), (d) f over D and n.

    Returns:
        A figure with the paper's constants (alpha 5, beta 0.45, gamma 0.6, eps 0.1).
    """
    figure = new_figure(9.6, 7.2)
    differences = torch.linspace(-1, 1, 401, dtype=torch.float64)
    free = torch.linspace(-4, 4, 401, dtype=torch.float64)
    _draw_norms(figure.add_subplot(2, 2, 1), differences)
    bounds = [power(torch.tensor(value)) for power, value in ((slope, torch.inf), (slope, 0.0))]
    _draw_line(figure.add_subplot(2, 2, 2), "m", "slope a", free, slope(free), bounds)
    figure.axes[-1].set_title("(b)  a(m) = 5 / (0.45 |tanh m| + 0.1)")
    ends = [shift(torch.tensor(value)) for value in (-torch.inf, torch.inf)]
    _draw_line(figure.add_subplot(2, 2, 3), "n", "shift b", free, shift(free), ends)
    figure.axes[-1].set_title("(c)  b(n) = 0.6 tanh n")
    _draw_surface(figure.add_subplot(2, 2, 4, projection="3d"))
    return figure


def _draw_norms(axes: Any, differences: Tensor) -> None:
    a = slope(torch.tensor(M, dtype=torch.float64))
    shifts = shift(torch.tensor(SHIFTS, dtype=torch.float64))
    family = power_normalization(differences, a, shifts[:, None])
    axes.fill_between(differences, family[-1], family[0], color=ORANGE, alpha=0.18, lw=0)
    for index, values in enumerate(family):
        middle = SHIFTS[index] == 0
        label = "ours, b = 0 (band: |b| < 0.6)" if middle else None
        width = 2.4 if middle else 0.8
        axes.plot(differences, values, color=ORANGE, lw=width, label=label, zorder=2 + middle)
    for name, (label, colour, dashes) in OTHERS.items():
        norm = POWER_NORMS.get(name)().double()
        with torch.no_grad():
            values = norm(differences)
        axes.plot(differences, values, color=colour, ls=dashes, label=label)
    axes.set(
        xlabel="difference D",
        ylabel="attention f(D)",
        title=f"(a)  power normalisations, ours at a = {float(a):.1f}",
    )
    axes.set(xlim=(-1, 1), ylim=(-0.03, 1.4), yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.legend(loc="upper center", fontsize="small", ncols=2, frameon=False)
    axes.grid(alpha=0.25)


def _draw_line(
    axes: Any, across: str, up: str, free: Tensor, values: Tensor, bounds: list[Tensor]
) -> None:
    axes.plot(free, values, color=ORANGE, lw=2)
    for bound in bounds:
        axes.axhline(float(bound), color=BLACK, lw=0.8, ls="--")
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(f"{float(bound):.3g}", (0.99, float(bound)), (0, 3), ha="right", **place)
    axes.set(xlabel=across, ylabel=up, xlim=(float(free[0]), float(free[-1])))
    axes.margins(y=0.12)
    axes.grid(alpha=0.25)


def _draw_surface(axes: Any) -> None:
    across = torch.linspace(-1, 1, 81, dtype=torch.float64)
    along = torch.linspace(-3, 3, 61, dtype=torch.float64)
    n, differences = torch.meshgrid(along, across, indexing="ij")
    values = power_normalization(differences, slope(torch.tensor(M, dtype=n.dtype)), shift(n))
    axes.plot_surface(
        differences.numpy(),
        n.numpy(),
        values.numpy(),
        cmap="cividis",
        vmin=0,
        vmax=1,
        rstride=2,
        cstride=2,
        lw=0,
        antialiased=False,
    )
    still = power_normalization(torch.zeros_like(along), slope(torch.tensor(M)), shift(along))
    axes.plot(torch.zeros_like(along), along, still, color=RED, lw=1.5, zorder=10)
    axes.set(xlabel="difference D", ylabel="n", zlim=(0, 1), zticks=[0, 0.5, 1])
    axes.set(xticks=[-1, 0, 1], yticks=[-2, 0, 2])
    axes.set_zlabel("f(D)")
    axes.set_title("(d)  f(D; n); red: still pixels, f(0)")
    axes.view_init(elev=28, azim=-60)
    axes.set_box_aspect((1, 1, 0.75), zoom=0.95)
