import json

import pytest
import torch

from vmp.metrics import (
    confusion_matrix,
    mean_average_precision,
    mean_class_accuracy,
    per_class_table,
    top1,
    top5,
)

NAMES = ["hug", "kick", "point", "punch", "push", "shake"]


def case():
    return torch.rand(60, 6), torch.randint(0, 6, (60,))


def test_rows_of_the_confusion_matrix_are_the_truth():
    scores = torch.eye(3)[[0, 2, 2, 1]]
    assert confusion_matrix(scores, torch.tensor([0, 1, 2, 1])).tolist() == [
        [1, 0, 0],
        [0, 1, 1],
        [0, 0, 1],
    ]


def test_the_confusion_matrix_counts_every_sample_once_and_gives_top1():
    scores, labels = case()
    matrix = confusion_matrix(scores, labels)
    assert matrix.dtype == torch.int64
    assert matrix.sum(dim=1).tolist() == torch.bincount(labels, minlength=6).tolist()
    assert 100 * matrix.trace().item() / 60 == pytest.approx(top1(scores, labels))


def test_the_table_averages_to_the_metrics():
    scores, labels = case()
    table = per_class_table(scores, labels, NAMES)
    assert [row["name"] for row in table] == NAMES
    assert [row["label"] for row in table] == list(range(6))
    count = [row["count"] for row in table]
    assert count == torch.bincount(labels, minlength=6).tolist()
    for key, metric in (("top1", top1), ("top5", top5)):
        weighted = sum(row[key] * row["count"] for row in table) / 60
        assert weighted == pytest.approx(metric(scores, labels))
    for key, metric in (
        ("top1", mean_class_accuracy),
        ("average_precision", mean_average_precision),
    ):
        assert sum(row[key] for row in table) / 6 == pytest.approx(metric(scores, labels))


def test_precision_is_of_the_samples_taken_for_the_class():
    scores = torch.eye(2)[[0, 0, 0, 1]]
    table = per_class_table(scores, torch.tensor([0, 1, 1, 1]), ["hug", "kick"])
    assert [row["precision"] for row in table] == [pytest.approx(100 / 3), 100]
    assert [row["top1"] for row in table] == [100, pytest.approx(100 / 3)]


def test_a_class_without_samples_has_none_and_json_can_hold_it():
    table = per_class_table(torch.eye(3)[[0, 0]], torch.tensor([0, 0]), ["hug", "kick", "point"])
    empty = {"count": 0, "top1": None, "top5": None, "precision": None, "average_precision": None}
    assert table[1] == {"label": 1, "name": "kick"} | empty
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_one_name_a_class_is_asked_for():
    with pytest.raises(ValueError, match="2 class names for scores of 3 classes"):
        per_class_table(torch.eye(3), torch.arange(3), ["hug", "kick"])
