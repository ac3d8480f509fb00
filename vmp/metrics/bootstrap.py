"""How sure a difference between two models is: the paired bootstrap."""

from typing import NamedTuple

import torch
from torch import Tensor

# Numbers of one block of draws: what is in memory at a time.
BLOCK = 2**22


class PairedBootstrap(NamedTuple):
    """What resampling says of the mean difference between two models.

    Attributes:
        difference: mean of second - first over the samples.
        low: lower end of the interval.
        high: upper end.
        p_value: how often a difference of this size, of either sign, comes about by the choice of
            the samples where the two models are equally good; in (0, 1].
        samples: N.
        groups: how many were drawn from, N if each sample is one of its own.
        replicates: draws.
    """

    difference: float
    low: float
    high: float
    p_value: float
    samples: int
    groups: int
    replicates: int


def paired_bootstrap(
    first: Tensor,
    second: Tensor,
    groups: Tensor | None = None,
    *,
    replicates: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedBootstrap:
    """Return how sure the mean of `second` - `first` is, by drawing samples with replacement.

    Both models saw the same samples, so each draw takes the outcomes of both (Efron & Tibshirani,
    1993, sec. 13.3 and 16.4). The interval is that of the percentiles. The p-value is the share,
    each count raised by one, of draws whose mean is as far from the observed one as that is from 0.
    Neither knows of the chance in the training: for that compare several seeds.

    Args:
        first: (N,) outcomes of a model, such as 1 for right and 0 for wrong.
        second: (N,) outcomes of the other on the same samples, in the same order.
        groups: (N,) int64, samples with the same number are drawn together: those of one video are
            not independent. None: each on its own.
        replicates: draws, at least 1.
        level: of the interval, in (0, 1).
        seed: of the draws; the same gives the same numbers.

    Raises:
        ValueError: no samples, other shapes, outcomes that are not finite, or a level or number of
            draws out of range.
    """
    _check(first, second, groups, replicates, level)
    differences = second.double() - first.double()
    if groups is None:
        groups = torch.arange(len(differences))
    _, place = groups.unique(return_inverse=True)
    counts = torch.bincount(place).double()
    sums = torch.zeros_like(counts).index_add_(0, place, differences)
    observed = differences.mean()
    means = _resample(sums, counts, replicates, seed)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    # draws that are as far in exact arithmetic must not fall short by a rounding
    as_far = (means - observed).abs() >= observed.abs() - 1e-12
    p_value = (1 + int(as_far.sum())) / (1 + replicates)
    return PairedBootstrap(
        float(observed), low, high, p_value, len(differences), len(counts), replicates
    )


def _resample(sums: Tensor, counts: Tensor, replicates: int, seed: int) -> Tensor:
    """Return the mean (replicates,) of the samples in as many groups as there are, drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    number = len(sums)
    step = max(1, BLOCK // number)
    means = []
    for start in range(0, replicates, step):
        shape = (min(step, replicates - start), number)
        drawn = torch.randint(number, shape, generator=generator)
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return torch.cat(means)


def _check(
    first: Tensor, second: Tensor, groups: Tensor | None, replicates: int, level: float
) -> None:
    shapes = [tuple(each.shape) for each in (first, second, groups) if each is not None]
    if first.ndim != 1 or len(set(shapes)) != 1 or not len(first):
        raise ValueError(
            f"outcomes and groups have the shapes {', '.join(map(str, shapes))}; they must be (N,) "
            "of the same N samples, at least one"
        )
    if not (first.isfinite().all() and second.isfinite().all()):
        raise ValueError("an outcome is not finite; leave out samples without one in both models")
    if not 0 < level < 1 or replicates < 1:
        raise ValueError(
            f"the level is {level} and there are {replicates} draws; the level must be between 0 "
            "and 1, with at least one draw"
        )
