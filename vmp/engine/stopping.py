"""What the ranks decide together between two steps: to save, and to stop."""

import datetime
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vmp.engine.agreement import exchange
from vmp.utils.distributed import is_main
from vmp.utils.signals import Interrupted, stop_requested


class Timer:
    """Says every so many minutes that it is time.

    Args:
        minutes: between two times; 0: never.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = minutes * 60
        self._last = time.monotonic()

    def due(self) -> bool:
        """Say whether it is time, once."""
        if not self._seconds or time.monotonic() - self._last < self._seconds:
            return False
        self._last = time.monotonic()
        return True


class Decisions:
    """Has all ranks save and stop at the same step.

    A signal may reach one rank only, or two ranks on either side of a step, and clocks differ. The
    wishes of a step are brought together while the next one runs, on the CPU, so that neither the
    host nor the device waits; with one rank they hold at once.

    Args:
        minutes: between two checkpoints; 0: never by the clock.
        timeout: seconds to wait for another rank.
    """

    def __init__(self, minutes: float, timeout: float) -> None:
        self._timer = Timer(minutes)
        # nccl would make the host wait for the device
        self._group: Any = None
        if dist.is_initialized():
            limit = datetime.timedelta(seconds=timeout)
            self._group = dist.new_group(backend="gloo", timeout=limit)
        self._pending: tuple[dist.Work, Tensor] | None = None

    def after_step(self) -> tuple[bool, bool]:
        """Return (save, stop), the same on all ranks; each calls it after each step."""
        wishes = (is_main() and self._timer.due(), bool(stop_requested()))
        if self._group is None:
            return wishes
        earlier = self.settle()
        values = torch.tensor(wishes, dtype=torch.int32)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = (work, values)
        return earlier

    def settle(self) -> tuple[bool, bool]:
        """Return what was decided last, and leave nothing under way."""
        if self._pending is None:
            return False, False
        work, values = self._pending
        self._pending = None
        work.wait()
        save, stop = values.tolist()
        return bool(save), bool(stop)


def stop_together(reason: str, when: str) -> None:
    """End work that each rank did for itself, for long; on all ranks, when they are done with it.

    A rank is waited for as long as it says now and then, by `get_on`, that it gets on.

    Args:
        reason: why this rank has stopped early, "" if it has not.
        when: that was, as "during an evaluation".

    Raises:
        Interrupted: a rank has stopped early; on all of them.
    """
    reasons = [each for each in exchange(reason) if each]
    if reasons:
        raise Interrupted(f"stopped by {reasons[0]} {when}; the same command goes on")
