"""Learning rates as pure functions of the fractional epoch: 2.5 is half-way through the third.

The rules are PySlowFast's; so a run can start anywhere, and nothing has to be saved to resume.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

from fvcore.common.config import CfgNode

Schedule = Callable[[float], float]


def cosine(base: float, end: float, max_epoch: float) -> Schedule:
    """Return half a cosine from `base` at epoch 0 to `end` at `max_epoch` and after it."""
    if max_epoch <= 0:
        raise ValueError(f"the cosine ends at epoch {max_epoch}; SOLVER.MAX_EPOCH must be above 0")

    def learning_rate(epoch: float) -> float:
        progress = min(epoch / max_epoch, 1.0)
        return end + (base - end) * (math.cos(math.pi * progress) + 1) / 2

    return learning_rate


def steps_with_relative_lrs(base: float, steps: Sequence[float], lrs: Sequence[float]) -> Schedule:
    """Return the schedule that is `base * lrs[i]` from epoch `steps[i]` on.

    Raises:
        ValueError: the lengths differ, or `steps` does not start at 0 and increase.
    """
    if len(steps) != len(lrs):
        raise ValueError(
            f"there are {len(steps)} SOLVER.STEPS and {len(lrs)} SOLVER.LRS; give one LR a step"
        )
    if not steps or steps[0] != 0 or any(first >= second for first, second in pairwise(steps)):
        raise ValueError(f"SOLVER.STEPS is {list(steps)}; it must start at 0 and increase")

    def learning_rate(epoch: float) -> float:
        return base * lrs[bisect_right(steps, epoch) - 1]

    return learning_rate


def with_warmup(schedule: Schedule, start: float, epochs: float) -> Schedule:
    """Return `schedule` after a straight line over the first `epochs`.

    The line goes from `start` to what `schedule` has at the *end* of the warm-up, so nothing jumps
    there; the schedule is not shifted, it goes on as if it had run from epoch 0.
    """
    if epochs < 0:
        raise ValueError(f"SOLVER.WARMUP_EPOCHS is {epochs}, it must be 0 (none) or above")

    def learning_rate(epoch: float) -> float:
        if epoch >= epochs:
            return schedule(epoch)
        return start + (schedule(epochs) - start) * epoch / epochs

    return learning_rate


def build_schedule(cfg: CfgNode) -> Schedule:
    """Return the learning rate as a function of the fractional epoch, as SOLVER says.

    Raises:
        ValueError: an unknown SOLVER.LR_POLICY, or steps or epochs that make no schedule.
    """
    solver = cfg.SOLVER
    if solver.LR_POLICY == "cosine":
        schedule = cosine(solver.BASE_LR, solver.COSINE_END_LR, solver.MAX_EPOCH)
    elif solver.LR_POLICY == "steps_with_relative_lrs":
        schedule = steps_with_relative_lrs(solver.BASE_LR, solver.STEPS, solver.LRS)
    else:
        raise ValueError(
            f"SOLVER.LR_POLICY is {solver.LR_POLICY!r}; there are: cosine, steps_with_relative_lrs"
        )
    return with_warmup(schedule, solver.WARMUP_START_LR, solver.WARMUP_EPOCHS)
