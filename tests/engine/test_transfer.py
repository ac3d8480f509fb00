"""One batch ahead: on a GPU's streams, of which these are likenesses that note what is asked."""

import contextlib
from itertools import islice

import pytest
import torch

from vmp.data.clips import Batch
from vmp.engine import transfer
from vmp.engine.progress import Waiting
from vmp.engine.transfer import ahead

GPU = torch.device("cuda", 0)


class Clip:
    """A tensor that notes what becomes of it."""

    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def to(self, device, *, non_blocking):
        assert device == GPU
        assert non_blocking
        self.notes.append(f"copy {self.name} on {Streams.current.name}")
        return Clip(self.name, self.notes)

    def record_stream(self, stream):
        self.notes.append(f"{self.name} kept for {stream.name}")


class Stream:
    def __init__(self, name, notes):
        self.name, self.notes, self.done = name, notes, []

    def wait_event(self, event):
        self.notes.append(f"{self.name} waits for {event.after}")


class Event:
    def __init__(self, *, blocking):
        assert blocking

    def record(self, stream):
        self.notes = stream.notes
        done = [note for note in stream.notes if note.endswith(f"on {stream.name}")]
        self.after = done[-1] if done else "nothing"

    def synchronize(self):
        self.notes.append(f"host waits for {self.after}")


class Streams:
    current: Stream


@pytest.fixture
def notes(monkeypatch):
    found: list[str] = []
    Streams.current = work = Stream("work", found)

    @contextlib.contextmanager
    def within(stream):
        Streams.current = stream
        yield
        Streams.current = work

    transfer._copy_stream.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", found))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    yield found
    transfer._copy_stream.cache_clear()


def make_batches(count, notes):
    for number in range(count):
        notes.append(f"load {number}")
        clip, label = (Clip(f"{what} {number}", notes) for what in ("clip", "label"))
        yield Batch(clip, label, torch.tensor([number]), torch.zeros(1), ())


def test_the_next_batch_is_on_its_way_before_there_is_work_on_this_one(notes):
    for number, batch in enumerate(ahead(make_batches(3, notes), GPU)):
        assert batch.video == number
        assert batch.video.device.type == "cpu"
        notes.append(f"step {number} on work")
    assert notes == [
        *("load 0", "copy clip 0 on side", "copy label 0 on side"),
        *("load 1", "copy clip 1 on side", "copy label 1 on side"),
        *("work waits for copy label 0 on side", "clip 0 kept for work", "label 0 kept for work"),
        "step 0 on work",
        *("load 2", "copy clip 2 on side", "copy label 2 on side"),
        *("work waits for copy label 1 on side", "clip 1 kept for work", "label 1 kept for work"),
        "step 1 on work",
        "host waits for step 0 on work",
        *("work waits for copy label 2 on side", "clip 2 kept for work", "label 2 kept for work"),
        "step 2 on work",
    ]


@pytest.mark.parametrize("per_update", [1, 2, 3])
def test_the_host_waits_for_the_update_before_the_last_whatever_the_micro_batches(
    notes, per_update
):
    coming = ahead(make_batches(5 * per_update, notes), GPU, per_update=per_update)
    for update in range(5):
        assert len(list(islice(coming, per_update))) == per_update
        waits = [int(note.split()[4]) for note in notes if note.startswith("host waits for step")]
        assert max(waits, default=-1) == (update - 2 if update > 1 else -1)
        notes.append(f"step {update} on work")


def test_a_short_epoch_and_an_empty_one_come_whole(notes):
    assert [int(batch.video) for batch in ahead(make_batches(1, notes), GPU)] == [0]
    assert not list(ahead(iter(()), GPU))


def test_two_epochs_share_the_stream_whose_memory_they_reuse(notes):
    assert transfer._copy_stream(GPU) is transfer._copy_stream(torch.device("cuda", 0))


def test_on_a_cpu_the_very_batches_come_and_none_before_its_time():
    taken = []

    def load():
        for number in range(3):
            values = torch.full((2,), number)
            batch = Batch(values, values, values, values, ())
            taken.append(batch)
            yield batch

    coming = ahead(load(), torch.device("cpu"), per_update=2)
    for number in range(3):
        assert next(coming) is taken[number]
        assert len(taken) == number + 1


def test_what_counts_as_waiting_is_the_loader_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("vmp.engine.progress.time.perf_counter", lambda: now[0])

    def load():
        for number in range(4):
            now[0] += 1.0
            yield number

    waiting = Waiting(load())
    for number in waiting:
        now[0] += 10.0  # the step
        if number == 1:
            assert waiting.take_seconds() == 2.0
    assert waiting.take_seconds() == 2.0
    assert waiting.take_seconds() == 0.0


@pytest.mark.gpu
def test_on_a_gpu_every_batch_is_whole_while_it_is_worked_on():
    device = torch.device("cuda", 0)
    values = torch.randint(256, (12, 2, 3, 16, 224, 224), dtype=torch.uint8)
    numbers = torch.arange(2)
    batches = [Batch(clip, numbers, numbers, numbers, ()).pin_memory() for clip in values]
    matrix, sums = torch.rand(4096, 4096, device=device), []
    for batch in ahead(iter(batches), device):
        for _ in range(5):
            matrix = (matrix @ matrix).softmax(1)  # so that the sum is late
        sums.append(batch.clip.long().sum() + batch.label.sum())
        del batch
    assert [int(value) for value in sums] == [int(clip.long().sum()) + 1 for clip in values]
