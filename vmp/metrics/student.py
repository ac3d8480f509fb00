"""What a few runs say of all that could be: mean, deviation and Student's interval."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """Mean of n values with its uncertainty; what too few values can't tell is None.

    Attributes:
        n: number of values, at least 1.
        mean: of them.
        sd: standard deviation of a value (n - 1 in the denominator); None for one value.
        low: lower end of the interval of the mean; None for one value.
        high: upper end; likewise.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


def summarize(values: Sequence[float], level: float = 0.95) -> Summary:
    """Return mean, deviation and the interval mean +- t sd / sqrt(n), t of n - 1 degrees.

    Raises:
        ValueError: there are no values, or `level` is not between 0 and 1.
    """
    n = len(values)
    if not n:
        raise ValueError("there are no values to summarize; a table leaves such a cell empty")
    mean = statistics.fmean(values)
    if n == 1:
        return Summary(1, mean, None, None, None)
    sd = statistics.stdev(values)
    half = student_t(n - 1, level) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def student_t(degrees: int, level: float = 0.95) -> float:
    """Return t such that Student's distribution has the share `level` in [-t, t].

    The share is a finite sum in the angle atan(t / sqrt(degrees)) (Abramowitz & Stegun, 26.7.3 and
    26.7.4), and grows with it: the angle is found by halving.

    Args:
        degrees: of freedom, 1 or more.
        level: in (0, 1).

    Raises:
        ValueError: out of range.
    """
    if degrees < 1 or not 0 < level < 1:
        raise ValueError(
            f"{degrees} degrees of freedom and the level {level} were given; there must be at "
            "least 1, and the level between 0 and 1"
        )
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        if _share_within(middle, degrees) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _share_within(angle: float, degrees: int) -> float:
    """Return the share of Student's distribution in [-t, t], t = sqrt(degrees) tan(angle)."""
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(2 + odd, degrees - 1, 2):
        term *= math.cos(angle) ** 2 * (power - 1) / power
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
