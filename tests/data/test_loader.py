import os
import signal
import sys

import pytest
import torch

from vmp.data.clips import ClipDataset
from vmp.data.decode import VideoReader
from vmp.data.loader import ClipLoader, EvalPlan, TrainPlan
from vmp.data.records import VideoRecord
from vmp.data.sampling import RandomClip, SpacedClips
from vmp.data.transforms import RandomCrop, ViewCrop

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def records(video_folder):
    return [VideoRecord(str(video_folder / f"video {v}.mp4"), v % 3) for v in range(11)]


def train_loader(
    records, *, make=ClipDataset, rank=0, world_size=1, batch_size=4, seed=3, **options
):
    dataset = make(
        records,
        num_views=1,
        pick_frames=RandomClip(3, 2, 0.0, "hold"),
        transform=RandomCrop((32, 40), 32, True),
        seed=seed,
        replacements=2,
    )
    plan = TrainPlan(len(dataset), batch_size, seed=seed, rank=rank, world_size=world_size)
    return ClipLoader(dataset, plan, clip_shape=(3, 3, 32, 32), class_names=("a",), **options)


def eval_loader(
    records, *, rank=0, world_size=1, batch_size=4, num_workers=0, open_video=VideoReader, **options
):
    dataset = ClipDataset(
        records,
        num_views=6,
        pick_frames=SpacedClips(3, 2, 0.0, "hold", num_clips=2, num_crops=3),
        transform=ViewCrop(32, 3),
        seed=0,
        open_video=open_video,
    )
    plan = EvalPlan(
        len(dataset), batch_size, rank=rank, world_size=world_size, num_workers=num_workers
    )
    options |= {"clip_shape": (3, 3, 32, 32), "class_names": ("a",), "num_workers": num_workers}
    return ClipLoader(dataset, plan, **options)


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        for tensor, other_tensor in zip(batch[:4], other[:4], strict=True):
            assert torch.equal(tensor, other_tensor)
        assert batch.failures == other.failures


def batches_of(make, loader, epoch):
    batches = list(loader.epoch(epoch))
    if make is train_loader:
        return batches
    # in evaluation each worker has a stretch of its own: the same batches in another order
    return sorted(batches, key=lambda batch: (int(batch.video[0]), int(batch.view[0])))


@pytest.mark.parametrize("make", [train_loader, eval_loader])
def test_two_and_four_workers_give_the_same_clips_as_none(make, records):
    reference = [list(make(records).epoch(epoch)) for epoch in (0, 1)]
    for workers in (2, 4):
        loader = make(records, num_workers=workers)
        for epoch in (0, 1):
            assert_same(batches_of(make, loader, epoch), reference[epoch])


def test_spawned_workers_give_the_same_clips(records):
    loader = train_loader(records, num_workers=1, start_method="spawn")
    assert_same(list(loader.epoch(2)), list(train_loader(records).epoch(2)))


def test_two_ranks_have_the_halves_of_each_training_batch(records):
    whole = list(train_loader(records).epoch(1))
    ranks = [list(train_loader(records, rank=r, world_size=2).epoch(1)) for r in (0, 1)]
    for batch, *halves in zip(whole, *ranks, strict=True):
        for field in range(4):
            assert torch.equal(batch[field], torch.cat([half[field] for half in halves]))


def test_an_epoch_has_every_video_once_and_drops_the_incomplete_batch(records):
    loader = train_loader(records)
    batches = list(loader.epoch(0))
    assert len(loader) == len(batches) == 2
    videos = torch.cat([batch.video for batch in batches]).tolist()
    assert len(set(videos)) == 8
    orders = [
        torch.cat([batch.video for batch in loader.epoch(epoch)]).tolist() for epoch in (0, 1)
    ]
    assert orders[0] == videos
    assert orders[1] != videos


def test_an_epoch_goes_on_in_the_middle(records):
    for workers in (0, 1):
        loader = train_loader(records, batch_size=2, num_workers=workers)
        whole = list(loader.epoch(4))
        assert_same(list(loader.epoch(4, start=3)), whole[3:])
        assert list(loader.epoch(4, start=len(loader))) == []


def test_an_epoch_left_early_does_not_disturb_the_next(records):
    loader = train_loader(records, batch_size=2, num_workers=2)
    next(loader.epoch(0))
    assert_same(list(loader.epoch(1)), list(train_loader(records, batch_size=2).epoch(1)))


def eval_batches(num_items, world_size, num_workers=0, leave_out=()):
    """Return the batches of each rank of an EvalPlan of 4."""
    ranks = []
    for rank in range(world_size):
        plan = EvalPlan(num_items, 4, rank=rank, world_size=world_size, num_workers=num_workers)
        plan.leave_out(leave_out)
        ranks.append([plan.batch(0, number) for number in range(len(plan))])
    return ranks


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_workers", [0, 2, 3])
def test_evaluation_has_the_same_batches_on_any_number_of_ranks(world_size, num_workers):
    for num_items in (1, 11, 12, 50):
        ranks = eval_batches(num_items, world_size, num_workers)
        batches = sorted(batch for rank in ranks for batch in rank)
        assert [item for batch in batches for item in batch] == list(range(num_items))
        assert all(len(batch) == 4 for batch in batches[:-1])
        assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_is_left_of_an_evaluation_is_shared_out_anew(world_size):
    done = [*range(9), 10, 44, *range(30, 40)]
    ranks = eval_batches(50, world_size, leave_out=done)
    batches = [batch for rank in ranks for batch in rank]
    assert [item for batch in batches for item in batch] == sorted(set(range(50)) - set(done))
    assert all(len({item // 4 for item in batch}) == 1 for batch in batches)
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
    assert eval_batches(50, world_size, leave_out=range(50)) == [[]] * world_size


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_each_worker_evaluates_one_stretch_of_the_items(num_workers):
    for num_items in (50, 53, 60):
        (batches,) = eval_batches(num_items, 1, num_workers)
        for worker in range(num_workers):
            mine = [item for batch in batches[worker::num_workers] for item in batch]
            assert mine == list(range(mine[0], mine[-1] + 1))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_an_evaluation_opens_each_video_once_for_all_its_views(records, tmp_path, num_workers):
    class Noted(VideoReader):
        def __init__(self, path):
            super().__init__(path)
            with (tmp_path / "opened").open("a") as file:
                file.write(f"{path}\n")

    loader = eval_loader(records, num_workers=num_workers, open_video=Noted)
    assert sum(len(batch.label) for batch in loader.epoch(0)) == 66
    opened = (tmp_path / "opened").read_text().splitlines()
    assert set(opened) == {record.path for record in records}
    # more workers than one may meet within a video
    assert len(opened) <= 11 + max(0, num_workers - 1)


def test_the_same_views_on_two_ranks(records):
    def views(loader):
        return {
            (int(video), int(view)): clip
            for batch in loader.epoch(0)
            for clip, video, view in zip(batch.clip, batch.video, batch.view, strict=True)
        }

    whole = views(eval_loader(records))
    parts = [views(eval_loader(records, rank=rank, world_size=2)) for rank in (0, 1)]
    assert len(whole) == 66
    assert parts[0].keys().isdisjoint(parts[1])
    both = parts[0] | parts[1]
    assert both.keys() == whole.keys()
    assert all(torch.equal(both[key], clip) for key, clip in whole.items())


def test_failures_come_with_the_batch(records, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    bad = [*records[:3], VideoRecord(str(tmp_path / "bad.mp4"), 0)]
    (batch,) = train_loader(bad, num_workers=1).epoch(0)
    assert len(batch.clip) == 4
    assert [failure.video for failure in batch.failures] == [3]
    batches = list(eval_loader(bad, num_workers=1).epoch(0))
    assert sum(len(batch.clip) for batch in batches) == 18
    assert [failure.view for batch in batches for failure in batch.failures] == list(range(6))


def test_what_a_worker_raises_comes_with_its_message(records):
    wrong = [VideoRecord("missing.mp4", 0)] * 4
    with pytest.raises(ValueError, match=r"3 clips in a row can't be decoded: missing\.mp4: No"):
        list(train_loader(wrong, num_workers=1).epoch(0))


def test_a_killed_worker_is_an_error_not_a_hang(records):
    loader = train_loader(records, batch_size=1, num_workers=1, prefetch_factor=1)
    batches = loader.epoch(0)
    next(batches)
    os.kill(batches._workers[0].pid, signal.SIGKILL)
    # the kill is noticed by itself, or by the connection to the worker
    with pytest.raises((RuntimeError, ConnectionError)):
        list(batches)


class DiesAsking(ClipDataset):
    """Once it has read a clip, its worker is killed while it asks whether to end."""

    def __getitem__(self, key):
        sys.setprofile(die_asking)
        return super().__getitem__(key)


def die_asking(frame, event, arg):
    # within the lock of multiprocessing's Event, where there is one
    locked = event == "c_return" and arg.__qualname__ == "SemLock.__enter__"
    if locked or (event == "return" and frame.f_code.co_name == "is_set"):
        while frame and frame.f_code.co_name != "is_set":
            frame = frame.f_back
        if frame and frame.f_back.f_code.co_name == "_worker_loop":
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_worker_killed_while_it_asks_whether_to_end_is_no_hang_either(records, start_method):
    loader = train_loader(
        records, make=DiesAsking, batch_size=1, num_workers=1, start_method=start_method
    )
    with pytest.raises((RuntimeError, ConnectionError)):
        list(loader.epoch(0))


def test_loading_leaves_the_global_generator_alone(records):
    before = torch.get_rng_state()
    for workers in (0, 1):
        next(train_loader(records, num_workers=workers).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of the 2 ranks"):
        TrainPlan(10, 5, seed=0, world_size=2)
    with pytest.raises(ValueError, match="more than the 3 training videos"):
        TrainPlan(3, 4, seed=0)
