import numpy as np
import pytest
import torch

from vmp.prompts import POWER_NORMS
from vmp.visualization import draw_curves, draw_surfaces, moved_blob
from vmp.visualization.curves import OTHERS, SHIFTS, M
from vmp.visualization.surfaces import POINTS, shrink


@pytest.fixture(scope="module")
def axes():
    """Return the four parts of Fig. 3."""
    return draw_curves().axes


# The formulas of the paper (Eq. 1 to 3) and of the other four, in float64.
def ours(differences, m, n):
    slope = 5 / (0.45 * np.abs(np.tanh(m)) + 0.1)
    return 1 / (1 + np.exp(-slope * (differences - 0.6 * np.tanh(n))))


def others(differences):
    p = np.maximum(differences, 0)
    return {
        "Gamma": p**0.30,
        "MaxExp": 1 - (1 - p) ** 3.35,
        "SigmE": 2 / (1 + np.exp(-7.95 * p)) - 1,
        "AsinhE": np.log(100 * p + np.sqrt(1 + 1e4 * p**2)) / np.log(100 + np.sqrt(1 + 1e4)),
    }


def test_the_papers_power_normalisation_is_drawn_for_its_shifts(axes):
    for line, n in zip(axes[0].lines[: len(SHIFTS)], SHIFTS, strict=True):
        x, y = np.asarray(line.get_data())
        assert (x[0], x[-1]) == (-1, 1)
        np.testing.assert_allclose(y, ours(x, M, n), rtol=0, atol=1e-12)


def test_the_other_power_normalisations_are_drawn_as_their_formulas_say(axes):
    lines = {line.get_label(): np.asarray(line.get_data()) for line in axes[0].lines}
    for label, (x, y) in ((label, lines[label]) for label, *_ in OTHERS.values()):
        # the parameter is kept as a float32
        np.testing.assert_allclose(y, others(x)[label], rtol=0, atol=1e-6)


def test_every_power_normalisation_but_the_identity_has_a_curve():
    assert {name for name, _ in POWER_NORMS} == {"sigmoid", "identity", *OTHERS}


def test_slope_and_shift_are_drawn_with_their_bounds(axes):
    m, a = np.asarray(axes[1].lines[0].get_data())
    np.testing.assert_allclose(a, 5 / (0.45 * np.abs(np.tanh(m)) + 0.1), rtol=1e-12)
    n, b = np.asarray(axes[2].lines[0].get_data())
    np.testing.assert_allclose(b, 0.6 * np.tanh(n), rtol=1e-12, atol=1e-15)
    bounds = [[line.get_ydata()[0] for line in part.lines[1:]] for part in axes[1:3]]
    assert bounds[0] == pytest.approx([5 / 0.55, 50], rel=1e-6)
    assert bounds[1] == pytest.approx([-0.6, 0.6], rel=1e-6)


def test_the_line_on_the_surface_is_the_attention_of_still_pixels(axes):
    x, n, f = (np.asarray(each) for each in axes[3].lines[0].get_data_3d())
    assert (x == 0).all()
    np.testing.assert_allclose(f, ours(0.0, M, n), rtol=0, atol=1e-6)


def test_labels_lie_within_the_figure():
    figure = draw_curves()
    figure.canvas.draw()
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height


def test_the_made_up_difference_is_its_formula():
    axis = np.linspace(-1, 1, POINTS)
    x, y = axis[None, :], axis[:, None]

    def blob(center):
        return np.exp(-((x - center) ** 2 + y**2) / (2 * 0.16**2))

    ripple = 0.02 * np.sin(14 * x) * np.sin(16 * y)
    expected = 0.8 * (blob(0.25) - blob(-0.25)) + ripple
    np.testing.assert_allclose(moved_blob().numpy(), expected, rtol=0, atol=1e-12)


def test_surfaces_are_drawn_before_and_after_each_on_one_scale():
    norms = {name: make() for name, make in POWER_NORMS}
    figure = draw_surfaces(norms, moved_blob(24), title="blob")
    drawn = figure.axes[: 1 + len(norms)]
    assert drawn[0].get_title() == "before"
    for axes, (name, norm) in zip(drawn[1:], norms.items(), strict=True):
        assert axes.get_title().startswith(name)
        assert axes.get_zlim() == pytest.approx(drawn[1].get_zlim())
        # each patch has the mean of its corners
        heights = axes.collections[0].get_array()
        values = norm(moved_blob(24).float()).detach()
        corners = torch.nn.functional.avg_pool2d(values[None], 2, stride=1)[0]
        np.testing.assert_allclose(np.ravel(heights), corners.ravel(), rtol=0, atol=1e-5)


def test_a_large_map_is_averaged_and_a_small_one_kept():
    large = torch.arange(4.0 * POINTS**2).view(2 * POINTS, 2 * POINTS)
    small = shrink(large)
    assert small.shape == (POINTS, POINTS)
    assert small[0, 0] == large[:2, :2].mean()
    assert shrink(small) is small
