"""Batches on their way to the device, one ahead of the work on them."""

import functools
from collections import deque
from collections.abc import Iterator

import torch

from vmp.data.clips import Batch


def ahead(
    batches: Iterator[Batch], device: torch.device, *, per_update: int = 1
) -> Iterator[Batch]:
    """Yield `batches` with clip and label on `device`, the copy of the next one already begun.

    To a GPU they are copied on a stream of their own, beside the work on the batch before; from
    memory that is not pinned the host waits for each. Videos and views stay on the host.

    The host is held back so that no more than one update is queued behind the one at work: else
    copies would pile up on the GPU, and a host far ahead of it would wait for data that the GPU has
    no use for yet. So there are two updates' clips on the GPU and those of one batch more.

    On a CPU the batches come as they are, none before it is asked for.

    Args:
        batches: on the host.
        device: where they are worked on; on a GPU, on the stream that is current at the first.
        per_update: batches that are taken for one update.
    """
    if device.type != "cuda":
        return batches
    return _copied_ahead(batches, device, per_update)


def _copied_ahead(
    batches: Iterator[Batch], device: torch.device, per_update: int
) -> Iterator[Batch]:
    copies, work = _copy_stream(device), torch.cuda.current_stream(device)
    queued: deque[torch.cuda.Event] = deque()  # each when the work before a batch is done
    coming: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        following = _copy(batch, device, copies)
        if coming is not None:
            yield _hand_out(*coming, work)
            queued.append(_event(work))
            if len(queued) > per_update:
                queued.popleft().synchronize()
        coming = following
    if coming is not None:
        yield _hand_out(*coming, work)


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return always the same stream of a GPU: memory that one has freed no other one takes."""
    return torch.cuda.Stream(device)


def _copy(
    batch: Batch, device: torch.device, copies: torch.cuda.Stream
) -> tuple[Batch, torch.cuda.Event]:
    """Begin to copy a batch; return it, and the event of its arrival."""
    with torch.cuda.stream(copies):
        clip = batch.clip.to(device, non_blocking=True)
        label = batch.label.to(device, non_blocking=True)
    return batch._replace(clip=clip, label=label), _event(copies)


def _hand_out(batch: Batch, arrived: torch.cuda.Event, work: torch.cuda.Stream) -> Batch:
    """Have the work wait for the batch, and the batch's memory for the work."""
    work.wait_event(arrived)
    for tensor in (batch.clip, batch.label):
        tensor.record_stream(work)
    return batch


def _event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event(blocking=True)  # waited for asleep: the core is a worker's
    event.record(stream)
    return event
