"""An evaluation gives the same bytes however it is shared out, stopped and taken up again."""

import json
import multiprocessing
import os
import random
import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import vmp
from tests.models.tiny import TINY
from vmp import engine
from vmp.data.archive import DecodeError
from vmp.data.clips import ClipDataset
from vmp.data.loader import ClipLoader, EvalPlan
from vmp.data.records import VideoRecord
from vmp.data.sampling import SpacedClips
from vmp.data.transforms import ViewCrop
from vmp.engine.evaluate import describe_test, predict, write_results
from vmp.engine.score_store import ScoreStore
from vmp.models import BACKBONES, VideoModel, build_model
from vmp.utils.signals import Interrupted

CPU = torch.device("cpu")
NUM_VIDEOS, NUM_VIEWS, BATCH_SIZE = 5, 6, 4


# ---------------------------------------------------------------- with a network of no size


class Video:
    """Frames made of the number in the path; video `broken` can't be opened."""

    fps = 25.0
    broken: int | None = None

    def __init__(self, path):
        self.path = path
        if path == f"video {self.broken}":
            raise DecodeError(path, "it is broken")

    def __len__(self):
        return 20

    def read(self, numbers, short_side):
        number = int(self.path.split()[-1])
        frames = [np.full((8, 12, 3), 7 * number + frame, np.uint8) for frame in numbers]
        frames = np.stack(frames)
        frames[:, :, 6:] += 100  # left and right differ, and so do the crops
        return frames

    def close(self):
        pass


class Output(NamedTuple):
    logits: torch.Tensor


class Toy(nn.Module):
    """Logits of 3 classes that depend on the size of the batch, as last bits do, but plainly."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, clip):
        self.batches.append(clip)
        means = clip.float().mean((1, 2, 3, 4)).unsqueeze(1) / 100
        return Output(torch.cat([means.sin(), means.cos(), means * len(clip)], 1))


class KilledError(Exception):
    pass


class Dying(Toy):
    """Fails at the batch of this number, as if killed there."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, clip):
        if len(self.batches) == self.number:
            raise KilledError
        return super().forward(clip)


def make_loader(num_workers=0, batch_size=BATCH_SIZE, open_video=Video):
    records = [VideoRecord(f"video {number}", number % 3) for number in range(NUM_VIDEOS)]
    dataset = ClipDataset(
        records,
        num_views=NUM_VIEWS,
        pick_frames=SpacedClips(2, 2, 0.0, "hold", num_clips=2, num_crops=3),
        transform=ViewCrop(8, 3),
        seed=0,
        open_video=open_video,
    )
    plan = EvalPlan(len(dataset), batch_size, num_workers=num_workers)
    return ClipLoader(
        dataset,
        plan,
        clip_shape=(3, 2, 8, 8),
        class_names=("a", "b", "c"),
        num_workers=num_workers,
    )


def results_in(folder):
    return [(Path(folder) / name).read_bytes() for name in ("test_results.json", "predictions.npz")]


def evaluate(folder, model, store=None, **options):
    """Return the bytes of the files that an evaluation by `model` ends in."""
    loader = make_loader()
    predictions = predict(model, loader, device=CPU, store=store, **options)
    write_results(folder, predictions, loader, {"seed": 0})
    return results_in(folder)


@pytest.mark.parametrize("number", [0, 1, 4, 7])
def test_an_evaluation_goes_on_with_the_batch_it_was_killed_at(tmp_path, number):
    whole = evaluate(tmp_path, Toy())
    with pytest.raises(KilledError):
        evaluate(tmp_path, Dying(number), ScoreStore(tmp_path / "scores", {}))
    model = Toy()
    assert evaluate(tmp_path, model, ScoreStore(tmp_path / "scores", {})) == whole
    # the scores of a batch are asked for when the next one is under way
    assert len(model.batches) == 8 - max(0, number - 1)


def test_an_evaluation_that_was_killed_at_its_end_evaluates_nothing_again(tmp_path):
    whole = evaluate(tmp_path, Toy(), ScoreStore(tmp_path / "scores", {}))
    assert evaluate(tmp_path, Dying(0), ScoreStore(tmp_path / "scores", {})) == whole


def test_what_could_not_be_decoded_is_tried_again_alone_and_with_the_same_bits(
    tmp_path, monkeypatch
):
    whole = evaluate(tmp_path, Toy())
    monkeypatch.setattr(Video, "broken", 1)
    partly = evaluate(tmp_path, Toy(), ScoreStore(tmp_path / "scores", {}))
    assert b'"evaluated_videos": 4' in partly[0]
    assert evaluate(tmp_path, Dying(0), ScoreStore(tmp_path / "scores", {})) == partly
    monkeypatch.setattr(Video, "broken", None)
    model = Toy()
    assert evaluate(tmp_path, model, ScoreStore(tmp_path / "scores", {})) == whole
    # items 6 to 12: two of the batch 4 to 8, all of 8 to 12, the others black
    black = [[not clip.any() for clip in batch] for batch in model.batches]
    assert black == [[True, True, False, False], [False] * 4]


def test_a_batch_keeps_its_size_whatever_is_broken_in_it(monkeypatch):
    monkeypatch.setattr(Video, "broken", 1)
    model = Toy()
    predict(model, make_loader(), device=CPU)
    # of 30 items; 8 to 12 are all of the broken video
    assert [len(batch) for batch in model.batches] == [4, 4, 4, 4, 4, 4, 2]


def test_without_a_store_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predict(Toy(), make_loader(), device=CPU)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_keep_scores_changes_no_result(tmp_path, caplog):
    whole = evaluate(tmp_path, Toy())
    (tmp_path / "scores").write_text("no folder")
    assert evaluate(tmp_path, Toy(), ScoreStore(tmp_path / "scores", {})) == whole
    assert "scores are not kept" in caplog.text


@pytest.mark.parametrize("number", [0, 3, 7])
def test_an_evaluation_that_is_asked_to_stop_keeps_all_it_has_begun(tmp_path, number):
    whole = evaluate(tmp_path, Toy())
    first, second = Toy(), Toy()
    store = ScoreStore(tmp_path / "scores", {})
    with pytest.raises(Interrupted, match="stopped by SIGTERM during an evaluation"):
        predict(
            first,
            make_loader(),
            device=CPU,
            store=store,
            stop=lambda: "SIGTERM" if len(first.batches) == number else "",
        )
    assert evaluate(tmp_path, second, ScoreStore(tmp_path / "scores", {})) == whole
    assert len(first.batches) + len(second.batches) == 8


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([8, 9], "2 views are missing.*: view 4 of video 1, view 5 of video 1;"),
        ([8, 9, 10, 11, 11], "1 views are there more than once.*: view 5 of video 1;"),
    ],
)
def test_a_view_that_is_missing_or_doubled_is_named(monkeypatch, batch, message):
    planned = EvalPlan.batch
    monkeypatch.setattr(
        EvalPlan, "batch", lambda plan, epoch, n: batch if n == 2 else planned(plan, epoch, n)
    )
    with pytest.raises(ValueError, match=message):
        predict(Toy(), make_loader(), device=CPU)


def test_a_missing_view_is_not_excused_by_a_broken_one_of_its_video(monkeypatch):
    class Odd(ClipDataset):
        def __getitem__(self, key):
            sample = super().__getitem__(key)
            return sample._replace(failures=()) if key[1] == 7 else sample

    monkeypatch.setattr(sys.modules[__name__], "ClipDataset", Odd)
    monkeypatch.setattr(Video, "broken", 1)
    with pytest.raises(ValueError, match="1 views are missing.*: view 1 of video 1;"):
        predict(Toy(), make_loader(), device=CPU)


def test_the_number_of_threads_is_the_one_asked_for_and_then_the_former(monkeypatch):
    before, seen = torch.get_num_threads(), []

    class Noting(Toy):
        def forward(self, clip):
            seen.append(torch.get_num_threads())
            return super().forward(clip)

    predict(Noting(), make_loader(), device=CPU, threads=before + 1)
    predict(Noting(), make_loader(), device=CPU)
    assert seen == [before + 1] * 8 + [before] * 8
    assert torch.get_num_threads() == before


@pytest.mark.gpu
def test_a_gpu_gives_the_scores_of_the_cpu():
    there, here = (
        predict(Toy(), make_loader(), device=torch.device(name)) for name in ("cuda", "cpu")
    )
    # scores that are read before they have come would be far off
    torch.testing.assert_close(there.scores, here.scores, atol=1e-5, rtol=0)


def test_the_mode_of_the_model_is_restored():
    model = Toy()
    for mode in (True, False):
        predict(model.train(mode), make_loader(), device=CPU)
        assert model.training is mode


class SlowVideo(Video):
    """Leaves a file for each clip that it has decoded."""

    folder = Path()

    def read(self, numbers, short_side):
        frames = super().read(numbers, short_side)
        (self.folder / f"{self.path} {numbers[0]}").touch()
        return frames


class Overlapped(Toy):
    """Before its answer it waits for the clips of the batch after this one to be decoded."""

    folder = Path()

    def forward(self, clip):
        done = BATCH_SIZE * (len(self.batches) + 2)
        wanted = min(-(-done // 3), 2 * NUM_VIDEOS)  # three crops are of one clip
        end = time.monotonic() + 30
        while len(list(self.folder.iterdir())) < wanted:
            assert time.monotonic() < end, "the next batch is not decoded meanwhile"
            time.sleep(0.01)
        return super().forward(clip)


def test_a_batch_is_decoded_while_the_one_before_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(SlowVideo, "folder", tmp_path)
    monkeypatch.setattr(Overlapped, "folder", tmp_path)
    model = Overlapped()
    predict(model, make_loader(num_workers=1, open_video=SlowVideo), device=CPU)
    assert len(model.batches) == 8


def test_the_files_of_results_hold_no_time(tmp_path, monkeypatch):
    first = evaluate(tmp_path, Toy())
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    monkeypatch.setattr(time, "localtime", lambda *args: time.gmtime(now + 1e6))
    assert evaluate(tmp_path, Toy()) == first
    with zipfile.ZipFile(tmp_path / "predictions.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("threads", [2, 3])
def test_metrics_do_not_depend_on_the_threads(threads):
    from vmp.engine.evaluate import Predictions, compute_metrics

    count = 100_000  # sums of so many numbers are split among threads
    scores = torch.rand(count, 3, dtype=torch.float64)
    labels = torch.randint(3, (count,))
    predictions = Predictions(scores, labels, torch.arange(count), 0.0, count, ())
    before, values = torch.get_num_threads(), []
    for number in (1, threads):
        torch.set_num_threads(number)
        values.append(compute_metrics(predictions))
    torch.set_num_threads(before)
    assert values[0] == values[1]


def test_the_facts_of_a_test_tell_all_that_decides_scores_but_no_folders(monkeypatch, tmp_path):
    provenance = {"weights_sha256": "w", "config_sha256": "c", "versions": {"torch": "2"}}
    facts = describe_test(make_loader(), provenance)
    for name in provenance:
        assert describe_test(make_loader(), provenance | {name: "other"}) != facts
    assert describe_test(make_loader(batch_size=5), provenance) != facts
    for change in ({"label": 2}, {"start": 1}, {"stop": 9}, {"id": "other"}):
        loader = make_loader()
        loader.records[0] = loader.records[0]._replace(**change)
        assert describe_test(loader, provenance) != facts
    loader = make_loader()
    loader.records[:] = [r._replace(path=f"/elsewhere/{r.path}") for r in loader.records]
    assert describe_test(loader, provenance) == facts
    shutil.copytree(Path(vmp.__file__).parent, tmp_path / "vmp")
    monkeypatch.setattr(vmp, "__file__", str(tmp_path / "vmp" / "__init__.py"))
    assert describe_test(make_loader(), provenance) == facts
    (tmp_path / "vmp" / "models" / "x3d.py").write_text("edited = True")
    assert describe_test(make_loader(), provenance) != facts


# ---------------------------------------------------------------- with real networks


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("name", sorted(TINY))
def test_the_bits_of_a_clip_depend_on_neither_its_place_nor_its_neighbours(name):
    # what `predict` relies on when it puts black clips in the place of those not there
    size = {"num_classes": 8, "num_frames": 8, "crop_size": 32, "dropout_rate": 0.5}
    model = VideoModel(BACKBONES.get(name)(**size, **TINY[name]), num_frames=8).eval()
    clips = torch.randint(256, (4, 3, 8, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        logits = model(clips).logits
        assert not torch.equal(logits[0], logits[1])
        for place in range(4):
            alone = torch.zeros_like(clips)
            alone[place] = clips[place]
            assert torch.equal(model(alone).logits[place], logits[place])
            assert torch.equal(model(clips.roll(place, 0)).logits, logits.roll(place, 0))


# ---------------------------------------------------------------- several processes

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vmp.engine"])  # imported once for all processes


def rank_main(cfg, rank, world_size, meeting_place, pause):
    """Be one rank of a test whose forward passes take `pause` seconds longer."""
    forward = VideoModel.forward

    def slow(self, clip):
        time.sleep(pause)
        return forward(self, clip)

    VideoModel.forward = slow
    # this checkout may be committed to between two starts
    sys.modules["vmp.engine.provenance"].git_commit = lambda: "commit"
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers
    torch.set_num_threads(4 - world_size)  # other than on another number of ranks
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=world_size
        )
    engine.test(cfg)
    if world_size > 1:
        dist.destroy_process_group()


def stopped_rank_main(cfg, rank, *rest):
    """Be one rank of a test of which rank 1 alone is asked to stop, after two batches."""
    calls = iter(["", "", "SIGTERM"])
    runner = sys.modules["vmp.engine.testing"]
    runner.stop_requested = lambda: next(calls) if rank == 1 else ""
    try:
        rank_main(cfg, rank, *rest)
    except Interrupted:
        sys.exit(75)


def start_ranks(cfg, world_size, pause=0.0, main=rank_main):
    place = Path(cfg.OUTPUT_DIR) / f"meeting{time.monotonic_ns()}"
    place.parent.mkdir(exist_ok=True)
    ranks = []
    for rank in range(world_size):
        rest = (cfg, rank, world_size, str(place), pause)
        ranks.append(CONTEXT.Process(target=main, args=rest))
        ranks[-1].start()
    return ranks


def kept_bytes(cfg):
    folder = Path(cfg.OUTPUT_DIR) / "test_scores"
    return sum(path.stat().st_size for path in folder.glob("rank*"))


def kill_later(ranks, cfg, growth, delay):
    """Kill all ranks at once when the scores have grown by so many bytes, and a little later."""
    wanted = kept_bytes(cfg) + growth
    end = time.monotonic() + 60
    while kept_bytes(cfg) < wanted and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(delay)
    for process in ranks:
        process.kill()
    for process in ranks:
        process.join()


@pytest.fixture
def weights(make_cfg, tmp_path):
    """Return a function: model -> a file of its weights."""

    def save(model):
        torch.manual_seed(3)
        path = tmp_path / f"{model}.pth"
        torch.save({"model": build_model(make_cfg(model)).state_dict()}, path)
        return path

    return save


@pytest.fixture
def cfg_of(make_cfg, weights, motionshapes, tmp_path):
    """Return a function: (model, output folder) -> a test of 144 views, those of a video broken."""
    shutil.copytree(motionshapes, tmp_path / "data")
    sorted((tmp_path / "data" / "test").iterdir())[3].write_bytes(b"not a video")

    def make(model, out, **options):
        return make_cfg(
            model,
            out,
            TEST__CHECKPOINT_FILE_PATH=weights(model),
            TEST__NUM_ENSEMBLE_VIEWS=3,
            TEST__NUM_SPATIAL_CROPS=3,
            TEST__BATCH_SIZE=4,
            DATA__PATH_TO_DATA_DIR=tmp_path / "data",
            **options,
        )

    return make


@pytest.mark.dist
@pytest.mark.parametrize("model", ["x3d", "timesformer"])
def test_one_two_and_three_ranks_write_the_same_bytes(cfg_of, model):
    files = []
    for world_size in (1, 2, 3):
        cfg = cfg_of(model, f"ranks{world_size}", DATA_LOADER__NUM_WORKERS=world_size - 1)
        ranks = start_ranks(cfg, world_size)
        for process in ranks:
            process.join()
        assert [process.exitcode for process in ranks] == [0] * world_size
        files.append(results_in(cfg.OUTPUT_DIR))
        assert not (Path(cfg.OUTPUT_DIR) / "test_scores").exists()
    for other in files[1:]:
        assert json.loads(other[0]) == json.loads(files[0][0])  # whose message says where
        assert other == files[0]
    assert b'"evaluated_views": 135' in files[0][0]
    assert b'"dimmed": 0.' in files[0][0]


@pytest.mark.dist
def test_killed_at_random_and_taken_up_by_other_numbers_of_ranks_it_writes_the_same_bytes(cfg_of):
    whole, parts = cfg_of("x3d", "whole"), cfg_of("x3d", "parts")
    (alone,) = start_ranks(whole, 1)
    alone.join()
    seed = int.from_bytes(os.urandom(4), "little")
    rng = random.Random(seed)
    for world_size in (2, 3, 1, 2):
        ranks = start_ranks(parts, world_size, pause=0.02)
        # of 135 views of 40 bytes
        kill_later(ranks, parts, growth=rng.randrange(1, 1000), delay=rng.uniform(0, 0.03))
        assert [process.exitcode for process in ranks] == [-9] * world_size, seed
        assert not (Path(parts.OUTPUT_DIR) / "test_results.json").exists()
    assert 0 < kept_bytes(parts) < 3 * 1000 + 135 * 56
    ranks = start_ranks(parts, 3)
    for process in ranks:
        process.join()
    assert results_in(parts.OUTPUT_DIR) == results_in(whole.OUTPUT_DIR), seed


@pytest.mark.dist
def test_all_ranks_are_interrupted_when_one_is_asked_to_stop(cfg_of):
    cfg = cfg_of("x3d", "run")
    ranks = start_ranks(cfg, 2, main=stopped_rank_main)
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [75, 75]
    # rank 0 has done its 18 of the 36 batches, one of which has two views of the broken video
    assert kept_bytes(cfg) > 18 * 4 * 40
