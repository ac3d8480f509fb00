import math

import numpy as np
import pytest
import torch

from vmp.metrics import METRICS, mean_average_precision, mean_class_accuracy, top1, top5
from vmp.metrics.classification import average_precision

NAMES = [name for name, _ in METRICS]


def random_case(seed, levels=None):
    """Scores and labels of odd sizes; with `levels`, few different scores, so many ties."""
    rng = np.random.default_rng(seed)
    samples, classes = rng.integers(1, 60), rng.integers(1, 12)
    scores = rng.normal(size=(samples, classes))
    if levels is not None:
        scores = rng.integers(levels, size=(samples, classes)).astype(float)
    return scores, rng.integers(classes, size=samples)


def naive_top(scores, labels, k):
    right = 0
    for row, label in zip(scores, labels, strict=True):
        ranked = sorted(range(len(row)), key=lambda index: (-row[index], index))
        right += label in ranked[:k]
    return 100 * right / len(labels)


def naive_average_precision(scores, positive):
    """Every distinct score is tried as threshold, from the top; straight from the definition."""
    total, last_recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        precision = (taken & positive).sum() / taken.sum()
        recall = (taken & positive).sum() / positive.sum()
        total += (recall - last_recall) * precision
        last_recall = recall
    return total


def test_the_registry_holds_the_four_metrics():
    assert sorted(NAMES) == ["mean_average_precision", "mean_class_accuracy", "top1", "top5"]


def test_a_case_worked_by_hand():
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.5, 0.4], [0.2, 0.1, 0.7]])
    labels = torch.tensor([0, 1, 1, 2])
    assert top1(scores, labels) == 75
    assert top5(scores, labels) == 100
    assert mean_class_accuracy(scores, labels) == pytest.approx(100 * (1 + 1 / 2 + 1) / 3)
    # class 0: first of the ranking 0.7 0.6 0.2 0.1; class 1: places 1 and 2; class 2: place 1
    assert mean_average_precision(scores, labels) == pytest.approx(100)


def test_average_precision_worked_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    positive = torch.tensor([True, False, True, False, True])
    assert average_precision(scores, positive) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_samples_of_equal_score_are_taken_in_together():
    positive = torch.tensor([True, False, True, False])
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 1, 0]):
        scores = torch.tensor([0.5, 0.5, 0.1, 0.9])
        value = average_precision(scores[order], positive[order])
        # one of three at 0.5 is the first half of recall at 1/3, the rest comes at 2/4
        assert value == pytest.approx(1 / 2 * 1 / 3 + 1 / 2 * 2 / 4)


def test_equal_scores_everywhere_are_worth_the_share_of_positives():
    labels = torch.tensor([0, 0, 0, 1])
    assert mean_average_precision(torch.zeros(4, 2), labels) == pytest.approx(
        100 * (3 / 4 + 1 / 4) / 2
    )


@pytest.mark.parametrize("levels", [None, 2, 5])
@pytest.mark.parametrize("seed", range(15))
def test_the_metrics_agree_with_plain_loops(seed, levels):
    scores, labels = random_case(seed, levels)
    tensors = torch.from_numpy(scores), torch.from_numpy(labels)
    classes = sorted(set(labels.tolist()))
    assert top1(*tensors) == pytest.approx(naive_top(scores, labels, 1), abs=1e-10)
    assert top5(*tensors) == pytest.approx(naive_top(scores, labels, 5), abs=1e-10)
    recalls = [naive_top(scores[labels == c], labels[labels == c], 1) for c in classes]
    assert mean_class_accuracy(*tensors) == pytest.approx(np.mean(recalls), abs=1e-10)
    precisions = [naive_average_precision(scores[:, c], labels == c) for c in classes]
    assert mean_average_precision(*tensors) == pytest.approx(100 * np.mean(precisions), abs=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_samples_does_not_matter(name):
    scores, labels = torch.randint(0, 4, (40, 7)).float(), torch.randint(0, 7, (40,))
    order = torch.randperm(40)
    metric = METRICS.get(name)
    assert metric(scores[order], labels[order]) == pytest.approx(metric(scores, labels), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_perfect_scores_are_100_percent(name):
    labels = torch.randint(0, 9, (50,))
    assert METRICS.get(name)(torch.eye(9)[labels] + torch.rand(50, 9) / 2, labels) == 100


def test_hopeless_scores_are_0_percent():
    labels = torch.randint(0, 9, (50,))
    scores = torch.rand(50, 9) - 2 * torch.eye(9)[labels]
    assert [metric(scores, labels) for metric in (top1, top5, mean_class_accuracy)] == [0, 0, 0]


def test_a_model_that_says_nothing_gets_only_the_first_class():
    assert top1(torch.zeros(4, 3), torch.tensor([0, 1, 2, 2])) == 25
    assert top5(torch.zeros(2, 8), torch.tensor([4, 5])) == 50


def test_top5_of_fewer_than_five_classes_is_of_all():
    assert top5(torch.rand(10, 3), torch.randint(0, 3, (10,))) == 100


def test_classes_without_a_sample_do_not_count():
    scores, labels = torch.eye(6)[[0, 1, 5]], torch.tensor([0, 1, 1])
    assert mean_class_accuracy(scores, labels) == 75
    # class 1: scores 0, 1, 0 of which the last two are positive
    assert mean_average_precision(scores, labels) == pytest.approx(
        100 * (1 + (1 / 2 + 1 / 2 * 2 / 3)) / 2
    )


def test_scores_of_a_float32_model_are_not_lost_in_rounding():
    # PySlowFast accumulates from -1e10 in float32: all scores become equal, mAP the base rate
    scores = torch.rand(100, 4) * 1e-6
    scores[torch.arange(100), torch.arange(100) % 4] += 1e-5
    assert mean_average_precision(scores, torch.arange(100) % 4) == 100


@pytest.mark.parametrize("name", NAMES)
def test_no_sample_at_all_gives_nan(name):
    assert math.isnan(METRICS.get(name)(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1]), "N, C"),
        (torch.zeros(3), torch.tensor([0, 1, 0]), "N, C"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), "NUM_CLASSES"),
        (torch.zeros(2, 2), torch.tensor([-1, 0]), "NUM_CLASSES"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), torch.tensor([0, 1]), "1 of 2 samples"),
    ],
)
def test_what_cannot_be_scored_is_refused(name, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        METRICS.get(name)(scores, labels)
