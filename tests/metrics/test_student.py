"""Student's interval against closed forms, and against the integral of the density."""

import math

import numpy as np
import pytest

from vmp.metrics.student import student_t, summarize


def share_by_integral(t, degrees):
    """Return the share of Student's distribution in [-t, t] by Simpson's rule on its density."""
    points = np.linspace(0, t, 20_001)
    scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    density = math.exp(scale) / math.sqrt(degrees * math.pi)
    values = density * (1 + points**2 / degrees) ** (-(degrees + 1) / 2)
    weights = np.ones_like(points)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return 2 * float((weights * values).sum()) * (points[1] - points[0]) / 3


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 9, 30, 101])
def test_the_share_within_t_is_the_level(degrees, level):
    assert share_by_integral(student_t(degrees, level), degrees) == pytest.approx(level, abs=1e-8)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_one_and_two_degrees_have_closed_forms(level):
    assert student_t(1, level) == pytest.approx(math.tan(math.pi * level / 2), rel=1e-9)
    assert student_t(2, level) == pytest.approx(level * math.sqrt(2 / (1 - level**2)), rel=1e-9)


def test_many_degrees_are_nearly_normal():
    assert student_t(100_000) == pytest.approx(1.959964, abs=1e-4)


def test_three_values_are_summarized_as_by_hand():
    summary = summarize([1.0, 2.0, 6.0])
    assert summary.n == 3
    assert summary.mean == 3.0
    assert summary.sd == pytest.approx(math.sqrt(7))
    half = 4.302652729911275 * math.sqrt(7 / 3)  # t of two degrees, from a table
    assert (summary.low, summary.high) == pytest.approx((3 - half, 3 + half))


def test_one_value_has_a_mean_and_no_spread():
    assert summarize([75.4]) == (1, 75.4, None, None, None)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="empty"):
        summarize([])


@pytest.mark.parametrize(("degrees", "level"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_what_is_out_of_range_is_refused(degrees, level):
    with pytest.raises(ValueError, match="degrees of freedom"):
        student_t(degrees, level)
