"""When a training is saved and when it stops, alike on all ranks."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from vmp.engine.agreement import exchange, get_on
from vmp.engine.checkpoint import CheckpointWriter, checkpoint_path
from vmp.engine.progress import NonFiniteLossError
from vmp.engine.state import collect_state
from vmp.engine.step import Learner
from vmp.engine.stopping import Decisions
from vmp.utils.distributed import any_rank, broadcast_object, is_main
from vmp.utils.signals import Interrupted, stop_requested

# Seconds for which the other ranks take rank 0, that writes a checkpoint, for one that gets on.
WRITE_LIMIT = 1800.0


class Plan(NamedTuple):
    """When what happens in a training, and where it is written."""

    output_dir: Path
    max_epoch: int
    accumulate: int  # micro-batches of an update
    log_period: int  # updates
    eval_period: int  # epochs, 0: never
    checkpoint_period: int  # epochs
    checkpoint_steps: int  # 0: none within an epoch
    checkpoint_minutes: float  # 0: none by the clock
    checkpoint_keep: int
    precise_batches: int  # 0: no precise batch statistics
    timeout: float  # seconds to wait for another rank
    records: str  # of the training set, described
    config: str  # all of it, as text


class Saver:
    """Decides when the ranks save and stop within an epoch, and has rank 0 write.

    Args:
        learner: what is saved.
        plan: when and where.
    """

    def __init__(self, learner: Learner, plan: Plan) -> None:
        self.writer = CheckpointWriter(keep=plan.checkpoint_keep)
        self._learner, self._plan = learner, plan
        self._decisions = Decisions(plan.checkpoint_minutes, plan.timeout)
        self._best_before = learner.best  # the best but the last

    def after_step(self) -> None:
        """Save when it is time; on all ranks, after each step.

        Raises:
            Interrupted: it was asked for, and this step is saved.
        """
        save, stop = self._decisions.after_step()
        if save or stop or self._is_due():
            self.save()
        if stop:
            self._stop()

    def _is_due(self) -> bool:
        steps = self._plan.checkpoint_steps
        return steps > 0 and self._learner.step % steps == 0

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Save before work that takes long, if it is time, and when that work is interrupted.

        Raises:
            Interrupted: it was asked for, before or meanwhile, and what was there before is saved.
        """
        self.after_step()
        try:
            yield
        except Interrupted:
            self.save()
            self._stop()

    def after_epoch(self, *, saved: bool) -> None:
        """Stop if asked to; on all ranks, at the end of an epoch that is or is not `saved`.

        Raises:
            Interrupted: it was asked for, and the epoch is saved. Not after the last one.
        """
        save, stop = self._decisions.after_step()
        stop = stop and self._learner.epoch < self._plan.max_epoch
        if not saved and (save or stop or self._is_due()):
            self.save()
        if stop:
            self._stop()

    def _stop(self) -> None:
        self.finish()
        learner = self._learner
        path = checkpoint_path(self._plan.output_dir, learner.epoch, learner.update)
        raise Interrupted(
            f"stopped by {stop_requested() or 'a signal to another rank'} after step "
            f"{learner.step}; {path} is written, and the same command goes on from it"
        )

    def save(self, *, best: bool = False) -> None:
        """Begin to write a checkpoint of this step.

        Raises:
            NonFiniteLossError: such weights are no good.
        """
        learner, plan = self._learner, self._plan
        check_weights(learner)
        path = checkpoint_path(plan.output_dir, learner.epoch, learner.update)
        state = collect_state(learner, plan.config, plan.records) | {"is_best": best}
        if is_main():
            began = time.perf_counter()
            self.writer.wait(get_on)
            if self.writer.lost_best and not best:
                state["best"] = self._best_before
            self.writer.save(path, state, best=best, began=began)

    def beats_best(self, top1: float) -> bool:
        """Say whether a validation beats that of the best checkpoint; on all ranks.

        The best is the best that was written: what a full disk has lost does not count.
        """
        learner = self._learner
        self.writer.wait()
        if broadcast_object(self.writer.lost_best):
            learner.best = self._best_before
        self._best_before = learner.best
        learner.best = max(top1, learner.best)
        return top1 > self._best_before

    def finish(self) -> None:
        """Wait until all is written, on all ranks: the first that leaves has the others ended.

        Raises:
            OSError: the newest checkpoint could not be written; on all ranks.
        """
        self._decisions.settle()
        failed = self.wait()
        if failed:
            raise OSError(f"{failed}; make room, and the same command goes on")

    def wait(self) -> str:
        """Wait on all ranks until nothing is being written; return why the newest could not be."""
        limit = time.monotonic() + WRITE_LIMIT
        self.writer.wait(lambda: get_on() if time.monotonic() < limit else "")
        return exchange(self.writer.failed)[0]


def check_weights(learner: Learner) -> None:
    """Raise on all ranks if a weight or statistic is not finite: such a checkpoint is no good."""
    finite = [value.isfinite().all() for value in learner.model.state_dict().values()]
    if any_rank(not bool(torch.stack(finite).all()), learner.device):
        raise NonFiniteLossError(f"the weights are not finite after step {learner.step}")
