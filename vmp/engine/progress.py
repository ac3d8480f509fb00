"""What is told of a training while it goes on, and the watch for losses that are not finite."""

import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vmp.data.clips import Batch
from vmp.data.records import VideoRecord
from vmp.models import VideoModel, model_cost
from vmp.utils.distributed import average, gather_objects, get_world_size, is_main

logger = logging.getLogger(__name__)


BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def progress_bar(total: int, title: str, done: int = 0) -> "tqdm[Any]":
    """Return a bar of `total` steps, `done` before; it shows on rank 0 of a run in a terminal.

    TQDM_DISABLE=1 switches it off, like any of tqdm.
    """
    # an argument would win over the environment: it is given only where there must be no bar
    options: dict[str, Any] = {} if is_main() and sys.stderr.isatty() else {"disable": True}
    options |= {"leave": False, "dynamic_ncols": True, "bar_format": BAR}
    return tqdm(total=total, initial=done, desc=title, **options)


def describe_pace(clips: int, seconds: float, waited: float) -> str:
    """Return how fast it goes, for a bar.

    Args:
        clips: of this rank; all ranks are taken to be as fast.
        seconds: that they took.
        waited: seconds of these in which this process waited for data.
    """
    seconds = max(seconds, 1e-9)
    rate = clips / seconds * get_world_size()
    return f"{rate:.3g} clips/s, waits {waited / seconds:.0%}"


class TimeLeft:
    """Tells how long the rest of a training takes, validations and all, at the pace so far.

    Args:
        step: updates done before this process began.
    """

    def __init__(self, step: int) -> None:
        self._first, self._began = step, time.perf_counter()

    def describe(self, step: int, last: int) -> str:
        """Return hours, minutes and seconds from update `step`, just done, to `last`."""
        each = (time.perf_counter() - self._began) / max(1, step - self._first)
        return str(tqdm.format_interval(each * (last - step)))


def log_cost(model: VideoModel, num_frames: int, crop_size: int) -> None:
    """Say how large the model is and what one test view costs; on rank 0."""
    if is_main():
        cost = model_cost(model, num_frames, crop_size)
        logger.info("%s: %d frames of %d x %d pixels", cost, num_frames, crop_size, crop_size)


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; raised on all ranks."""


class Waiting(Iterator[Batch]):
    """Yield the batches of a loader and keep the seconds that it had this process wait.

    A GPU has an update or two to do meanwhile, see `ahead`: what it idles may be less.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - start

    def take_seconds(self) -> float:
        """Return the seconds waited since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Progress:
    """Collects the scalars of updates, on their device, until a log line asks for their means.

    Args:
        records: of the training set, to name the videos of a bad batch.
    """

    def __init__(self, records: Sequence[VideoRecord]) -> None:
        self._records = records
        self._start_period()

    def _start_period(self) -> None:
        self._scalars: list[dict[str, Tensor]] = []
        self._videos: list[list[int]] = []
        self._replaced = 0
        self._clips = 0
        self._began = time.perf_counter()

    def add(self, batches: Sequence[Batch], scalars: dict[str, Tensor]) -> None:
        """Take what `train_step` returned for `batches`; does not wait for the device."""
        self._scalars.append(scalars)
        self._videos.append([video for batch in batches for video in batch.video.tolist()])
        self._clips += sum(len(batch.label) for batch in batches)
        for failure in (failure for batch in batches for failure in batch.failures):
            self._replaced += 1
            logger.warning("replaced in training: %s: %s", failure.path, failure.reason)

    def describe_pace(self, waited: float) -> str:
        """Return how fast this period goes, for a bar; does not wait for the device."""
        return describe_pace(self._clips, time.perf_counter() - self._began, waited)

    def flush(self, step: int, waited: float) -> dict[str, float]:
        """Return the means over all ranks since the last call; waits for the device.

        Args:
            step: updates done.
            waited: seconds this rank waited for data.

        Returns:
            The scalars of `train_step`, clips_per_second (of all ranks), data_wait (share of the
            time, 0 to 1), replaced (clips of all ranks that could not be decoded).

        Raises:
            NonFiniteLossError: the loss of an update was not finite, on any rank.
        """
        names = list(self._scalars[0])
        table = torch.stack(
            [torch.stack([scalars[name].float() for name in names]) for scalars in self._scalars]
        )
        losses = table[:, names.index("loss")].tolist()
        first_step = step - len(losses) + 1  # updates are counted from 1
        elapsed = time.perf_counter() - self._began
        counts = torch.tensor([self._clips / elapsed, waited / elapsed, float(self._replaced)])
        means = average(torch.cat([table.mean(0), counts.to(table)])).tolist()
        self._raise_if_not_finite(losses, first_step)
        values = dict(zip(names, means, strict=False))
        values["clips_per_second"] = means[-3] * get_world_size()
        values["data_wait"] = means[-2]
        values["replaced"] = round(means[-1] * get_world_size())
        self._start_period()
        return values

    def _raise_if_not_finite(self, losses: list[float], first_step: int) -> None:
        bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        mine = (first_step + bad[0], self._videos[bad[0]]) if bad else None
        found = [place for place in gather_objects(mine) if place is not None]
        if not found:
            return
        step = min(place[0] for place in found)
        videos = [video for place in found if place[0] == step for video in place[1]]
        paths = ", ".join(self._records[video].path for video in videos)
        raise NonFiniteLossError(f"the loss is not finite at step {step}; its clips: {paths}")
