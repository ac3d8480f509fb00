"""What turns logits into updates: loss, learning-rate schedule, optimizer, mixing of samples."""

from vmp.solver.loss import ActionLoss
from vmp.solver.mixing import Mixing, build_mixing
from vmp.solver.optimizer import build_optimizer, set_learning_rate
from vmp.solver.schedule import build_schedule

__all__ = [
    "ActionLoss",
    "Mixing",
    "build_mixing",
    "build_optimizer",
    "build_schedule",
    "set_learning_rate",
]
