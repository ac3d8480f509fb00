"""Which clips make a batch, on which rank; and the worker processes that decode them."""

import copy
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from vmp.data.clips import Batch, ClipDataset, Key, Sample, collate
from vmp.data.records import VideoRecord
from vmp.utils import signals

# Python's choice is that of the process's own start: one of several ranks would spawn its workers
START_METHOD = "fork" if sys.platform == "linux" else None


class Plan(Protocol):
    """What is in the batches of one rank."""

    def __len__(self) -> int:
        """Return the number of batches per epoch."""

    def batch(self, epoch: int, number: int) -> list[int]:
        """Return the items of batch `number` of an epoch."""


class TrainPlan:
    """Batches for training: each epoch another order, the incomplete last batch dropped.

    Global batch s is items s * B to (s + 1) * B of a permutation that depends on (seed, epoch)
    only; rank r has its r-th part of them. So the global batches are the same on any number of
    ranks.

    Args:
        num_items: items in all.
        batch_size: B, over all ranks; a multiple of the number of ranks.
        seed: of the permutations.
        rank: from 0.
        world_size: ranks.

    Raises:
        ValueError: B is not a multiple of the ranks, or there are fewer items than B.
    """

    def __init__(
        self, num_items: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"TRAIN.BATCH_SIZE {batch_size} must be a multiple of the {world_size} ranks"
            )
        if num_items < batch_size:
            raise ValueError(
                f"TRAIN.BATCH_SIZE {batch_size} is more than the {num_items} training videos, "
                f"so an epoch has no batch; lower it"
            )
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._order = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return self.num_items // self.batch_size

    def batch(self, epoch: int, number: int) -> list[int]:
        """Return this rank's items of global batch `number`."""
        if self._order[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.num_items)
            self._order = (epoch, order)
        share = self.batch_size // self.world_size
        first = number * self.batch_size + self.rank * share
        return [int(item) for item in self._order[1][first : first + share]]


class EvalPlan:
    """Batches for evaluation: every item exactly once, nothing padded, nothing shuffled.

    Batch k is items k * B to (k + 1) * B, on however many ranks: the last bits of what a network
    makes of a clip depend on the size of its batch. Rank r has the r-th of W stretches of batches,
    so that the views of a video stay together. The ranks' numbers of batches differ by at most 1.

    DataLoader hands batches to its workers in turn. They are ordered so that each worker, too, gets
    one stretch: it opens a video once for all its views. Only a video on the border between two
    stretches is opened twice.

    Args:
        num_items: items in all.
        batch_size: B, of each rank.
        rank: from 0.
        world_size: W.
        num_workers: of each rank's loader.

    Attributes:
        num_items: as given.
        batch_size: as given.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.num_items = num_items
        self.batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._num_workers = max(1, num_workers)
        self.leave_out([])

    def leave_out(self, items: Sequence[int] | np.ndarray) -> None:
        """Leave out `items` and no others; what is left is shared out anew. Alike on all ranks."""
        self._wanted = np.ones(self.num_items, dtype=bool)
        self._wanted[np.asarray(items, dtype=np.int64)] = False
        left = np.unique(np.flatnonzero(self._wanted) // self.batch_size)
        bounds = [len(left) * r // self._world_size for r in (self._rank, self._rank + 1)]
        stretches = np.array_split(left[slice(*bounds)], self._num_workers)  # the longer ones first
        turns = range(len(stretches[0]))
        self._batches = [int(s[turn]) for turn in turns for s in stretches if turn < len(s)]

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, epoch: int, number: int) -> list[int]:
        """Return the items of this rank's batch `number` not left out; `epoch` does not matter."""
        first = self._batches[number] * self.batch_size
        return [first + int(i) for i in np.flatnonzero(self._wanted[first:][: self.batch_size])]


class _Keys(Sampler[list[Key]]):
    """Hands the keys of an epoch's batches to the workers, from batch `start` on."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[list[Key]]:
        return self._batches(self.epoch, self.start)

    def _batches(self, epoch: int, start: int) -> Iterator[list[Key]]:
        for number in range(start, len(self.plan)):
            yield [(epoch, item) for item in self.plan.batch(epoch, number)]


class ClipLoader:
    """Batches of clips, epoch by epoch, the same for any number of workers.

    The workers stay alive between epochs, until `close` or the end of a `with`. One epoch at a
    time: a new one ends the one before.

    Args:
        dataset: the clips.
        plan: what is in the batches of this rank.
        clip_shape: (3, T, H, W).
        class_names: index = label.
        num_workers: processes that decode; 0 decodes in this process.
        pin_memory: batches in page-locked memory, for the copy to a GPU.
        prefetch_factor: batches each worker prepares ahead.
        start_method: "fork", "spawn" or "forkserver"; None is Python's own choice. A worker that is
            not forked imports torch anew: seconds, and hundreds of MB that others can't share.

    Attributes:
        records: the videos.
        class_names: index = label.
        num_views: views of each video.
        plan: what is in the batches of this rank.
    """

    records: list[VideoRecord]
    class_names: tuple[str, ...]
    num_views: int

    def __init__(
        self,
        dataset: ClipDataset,
        plan: Plan,
        *,
        clip_shape: tuple[int, ...],
        class_names: tuple[str, ...],
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int = 2,
        start_method: str | None = START_METHOD,
    ) -> None:
        self.records = dataset.records
        self.class_names = class_names
        self.num_views = dataset.num_views
        self.plan = plan
        self._keys = _Keys(plan)
        self._loader: DataLoader[Sample] = DataLoader(
            dataset,
            batch_sampler=self._keys,
            collate_fn=partial(collate, clip_shape=clip_shape),
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor if num_workers else None,
            persistent_workers=num_workers > 0,
            worker_init_fn=_start_worker,
            multiprocessing_context=_context(start_method) if num_workers else None,
            # else DataLoader draws from the global generator, which dropout relies on
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of an epoch, from batch `start` on.

        Raises:
            RuntimeError: a worker was killed. ValueError: too many clips in a row fail. What
                a worker raises comes with its own message and trace.
        """
        self._keys.epoch = epoch
        self._keys.start = start
        if self._loader._iterator is not None or not self._loader.num_workers:
            return iter(self._loader)
        with signals.ignored():  # the workers start here
            return iter(self._loader)

    def clip(self, item: int) -> Tensor | None:
        """Return the clip of an item as epoch 0 has it, decoded here; None if it is left out."""
        # by a copy: workers that start later must not inherit an open video
        sample: Sample = copy.copy(self._loader.dataset)[(0, item)]
        return sample.clip

    def close(self) -> None:
        """End the workers. They ignore the signal by which Python would end them at its exit."""
        # torch ends them when the last reference to its iterator goes, which the frames of an
        # error hold until after Python has begun to wait for them
        iterator: Any = self._loader._iterator
        self._loader._iterator = None
        if iterator is not None:
            iterator._shutdown_workers()
            for worker in iterator._workers:
                worker.kill()  # if it is stuck, in a file system say

    def __enter__(self) -> "ClipLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Flag:
    """A flag that processes share, read and set without a lock.

    Workers ask DataLoader's event whether to end, before each batch. One that is killed while it
    asks multiprocessing's own Event takes the event's lock with it, and whoever asks next waits for
    ever: the training, which would tell of the death.

    Args:
        context: how processes start.
    """

    def __init__(self, context: BaseContext) -> None:
        self._value = context.RawValue("b", 0)

    def set(self) -> None:
        """Set it, for good."""
        self._value.value = 1

    def is_set(self) -> bool:
        """Return whether it was set."""
        return bool(self._value.value)


def _context(start_method: str | None) -> BaseContext:
    """Return a context of `start_method` whose events have no lock."""
    # a copy: Python has one context of a method for all that asks
    context = copy.copy(multiprocessing.get_context(start_method))
    context.Event = partial(_Flag, context)  # type: ignore[assignment, method-assign]
    return context


def _start_worker(worker: int) -> None:
    """Keep a worker to one core, and to its work when the job is signalled: training ends it."""
    torch.set_num_threads(1)
    signals.ignore()
