"""Tables by class: who is recognised, and who is taken for whom."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vmp.metrics.classification import average_precision, check, hits, ranked_classes


def confusion_matrix(scores: Tensor, labels: Tensor) -> Tensor:
    """Return counts (C, C) int64: row the true class, column the class of the highest score."""
    check(scores, labels)
    classes = scores.shape[1]
    pairs = labels * classes + ranked_classes(scores)[:, 0]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def per_class_table(
    scores: Tensor, labels: Tensor, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row a class, in order: its number of samples and how well it is recognised.

    Args:
        scores: (N, C).
        labels: (N,) in [0, C).
        class_names: C names.

    Returns:
        Dicts with label, name, count, and in percent top1, top5, average_precision and
        precision (of the samples taken for this class, those that are of it). What has no sample
        to average over is None, which JSON can hold.

    Raises:
        ValueError: not one name a class.
    """
    if len(class_names) != scores.shape[1]:
        raise ValueError(
            f"{len(class_names)} class names for scores of {scores.shape[1]} classes were given; "
            "set MODEL.NUM_CLASSES to the number of classes of the data set"
        )
    matrix = confusion_matrix(scores, labels)
    in_five = torch.bincount(labels[hits(scores, labels, 5)], minlength=len(matrix))
    rows: list[dict[str, Any]] = []
    for label, name in enumerate(class_names):
        count, right = int(matrix[label].sum()), int(matrix[label, label])
        taken = int(matrix[:, label].sum())
        row = {"label": label, "name": name, "count": count}
        shares = {
            "top1": right / count if count else None,
            "top5": int(in_five[label]) / count if count else None,
            "precision": right / taken if taken else None,
            "average_precision": (
                average_precision(scores[:, label], labels == label) if count else None
            ),
        }
        percents = {key: None if part is None else 100 * part for key, part in shares.items()}
        rows.append(row | percents)
    return rows
