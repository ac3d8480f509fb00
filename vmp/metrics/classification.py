"""Metrics of single-label classification, registered by name.

Every one takes scores (N, C) (any monotone scale: logits or probabilities) and labels (N,) in
[0, C), and returns percent. Without any sample there is nothing to average: the result is nan.
Ties between classes go to the lower class index, on every device.
"""

import math

import torch
from torch import Tensor

from vmp.utils.registry import Registry

METRICS = Registry("metric")


@METRICS.register()
def top1(scores: Tensor, labels: Tensor) -> float:
    """Return the percentage of samples whose class has the highest score."""
    return _percent(hits(scores, labels, 1))


@METRICS.register()
def top5(scores: Tensor, labels: Tensor) -> float:
    """Return the percentage of samples whose class is among the min(5, C) highest scores."""
    return _percent(hits(scores, labels, 5))


@METRICS.register()
def mean_class_accuracy(scores: Tensor, labels: Tensor) -> float:
    """Return the mean of the classes' top-1 percentages over the classes that have a sample."""
    correct = hits(scores, labels, 1)
    count = torch.bincount(labels, minlength=scores.shape[1])
    right = torch.bincount(labels[correct], minlength=scores.shape[1])
    present = count > 0
    return _percent(right[present].double() / count[present])


@METRICS.register()
def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Return the mean average precision in percent: one class against the rest.

    `average_precision` of each class that has a sample, its column of scores ranking all samples;
    then the plain mean over these classes. Scores must be comparable between samples, so
    probabilities rather than logits.
    """
    check(scores, labels)
    classes = labels.unique().tolist()
    values = [average_precision(scores[:, index], labels == index) for index in classes]
    return _percent(torch.tensor(values, dtype=torch.float64))


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Return the average precision, in [0, 1], of scores (N,) against booleans (N,).

    The sum over thresholds, from the highest score down, of (recall gained) x (precision); samples
    of equal score are taken in together, so their order does not matter. This is the definition
    scikit-learn and with it PySlowFast use: no interpolation, no 11 points.

    Raises:
        ValueError: nothing is positive.
    """
    if not positive.any():
        raise ValueError("average precision needs at least one positive sample, there is none")
    ranked, order = scores.sort(descending=True)
    found = positive[order].double().cumsum(0)
    # the last place of each run of equal scores is where the threshold falls
    falls = torch.ones_like(positive)
    falls[:-1] = ranked[1:] != ranked[:-1]
    taken = torch.arange(1, len(scores) + 1, device=scores.device)[falls]
    found = found[falls]
    gained = found.diff(prepend=found.new_zeros(1))
    return float((gained * found / taken).sum() / found[-1])


def hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return booleans (N,): the class of the sample is among its k highest scores."""
    check(scores, labels)
    return (ranked_classes(scores)[:, :k] == labels.unsqueeze(1)).any(dim=1)


def ranked_classes(scores: Tensor) -> Tensor:
    """Return the class indices (N, C) of each sample by falling score, ties by rising index."""
    return scores.argsort(dim=1, descending=True, stable=True)


def check(scores: Tensor, labels: Tensor) -> None:
    """Raise ValueError if these are not finite scores (N, C) and labels (N,) in [0, C).

    A nan would rank above every number, and a model that broke down would look right.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} and labels of shape {tuple(labels.shape)} "
            "were given; they must be (N, C) and (N,)"
        )
    if scores.isnan().any():
        bad = int(scores.isnan().any(dim=1).sum())
        raise ValueError(f"the scores of {bad} of {len(scores)} samples hold nan; nothing to rank")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise ValueError(
            f"labels range from {int(labels.min())} to {int(labels.max())}; with scores of "
            f"{scores.shape[1]} classes they must be in [0, {scores.shape[1]}): set "
            "MODEL.NUM_CLASSES"
        )


def _percent(shares: Tensor) -> float:
    return 100 * float(shares.double().mean()) if len(shares) else math.nan
