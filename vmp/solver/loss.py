"""The training loss: cross-entropy plus the penalty on the attention's variation (Eq. 7)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ActionLoss(nn.Module):
    """L = L_ori + lambda V (Chen et al. 2024, Eq. 7), L_ori the cross-entropy.

    Both terms are computed in float32 (float64 for float64 logits), whatever autocast says.

    Args:
        penalty: lambda, the weight of the variation V, at least 0.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1); applied to
            soft targets too, which is the same as mixing smoothed labels.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(self, penalty: float, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= penalty < float("inf"):
            raise ValueError(f"the penalty is {penalty}, it must be 0 or above: set PROMPT.PENALTY")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label smoothing is {label_smoothing}, it must be in [0, 1): "
                "set SOLVER.LABEL_SMOOTHING"
            )
        self.penalty, self.label_smoothing = penalty, label_smoothing

    def forward(self, logits: Tensor, variation: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its cross-entropy part, two scalars, means over the batch.

        Args:
            logits: (B, C), any floating type; not softmax.
            variation: V, a scalar.
            target: labels (B,) int64 in [0, C), or probabilities (B, C) that sum to 1.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if target.is_floating_point():
                target = target.to(logits.dtype)
            task = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
            return task + self.penalty * variation.to(logits.dtype), task

    def extra_repr(self) -> str:
        """Return what the repr shows."""
        return f"penalty={self.penalty}, label_smoothing={self.label_smoothing}"
