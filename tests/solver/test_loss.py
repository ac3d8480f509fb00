import pytest
import torch
from torch.nn import functional as F

from vmp.solver import ActionLoss


def test_the_loss_is_cross_entropy_plus_lambda_times_the_variation():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]], dtype=torch.float64)
    label, variation = torch.tensor([0, 2]), torch.tensor(0.3, dtype=torch.float64)
    loss, task = ActionLoss(penalty=2.5)(logits, variation, label)
    by_hand = (logits.exp().sum(1).log() - logits[[0, 1], label]).mean()
    assert task.item() == pytest.approx(by_hand.item(), abs=1e-14)
    assert loss.item() == pytest.approx(by_hand.item() + 2.5 * 0.3, abs=1e-14)


def test_one_hot_targets_are_labels():
    logits, label = torch.randn(4, 5), torch.tensor([0, 4, 2, 2])
    loss = ActionLoss(penalty=0.0, label_smoothing=0.1)
    hard = loss(logits, torch.tensor(0.0), label)[1]
    soft = loss(logits, torch.tensor(0.0), F.one_hot(label, 5).float())[1]
    torch.testing.assert_close(hard, soft)


def test_smoothing_spreads_its_share_evenly_over_all_classes():
    logits, label = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 4, 2, 2])
    target = 0.8 * F.one_hot(label, 5).double() + 0.2 / 5
    by_hand = -(target * logits.log_softmax(1)).sum(1).mean()
    task = ActionLoss(0.0, label_smoothing=0.2)(logits, torch.tensor(0.0), label)[1]
    torch.testing.assert_close(task, by_hand)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_logits_is_in_float32_under_autocast(dtype):
    logits = torch.tensor([[300.0, -300.0], [1.0, 2.0]], dtype=dtype)
    variation, label = torch.tensor(0.25), torch.tensor([1, 0])
    expected = ActionLoss(1.0)(logits.float(), variation, label)
    with torch.autocast("cpu", torch.bfloat16):
        given = ActionLoss(1.0)(logits, variation, label)
    assert [part.dtype for part in given] == [torch.float32] * 2
    assert [part.item() for part in given] == [part.item() for part in expected]


def test_the_gradient_reaches_logits_and_variation():
    logits, variation = torch.zeros(2, 4, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    ActionLoss(2.5)(logits, variation, torch.tensor([0, 1]))[0].backward()
    assert variation.grad == 2.5
    torch.testing.assert_close(logits.grad[0], torch.tensor([-0.75, 0.25, 0.25, 0.25]) / 2)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [({"penalty": -1.0}, "PENALTY"), ({"penalty": float("nan")}, "PENALTY")]
    + [({"penalty": 0.0, "label_smoothing": value}, "SMOOTHING") for value in (-0.1, 1.0)],
)
def test_arguments_out_of_range_are_refused(arguments, key):
    with pytest.raises(ValueError, match=key):
        ActionLoss(**arguments)
