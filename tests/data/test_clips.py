import pickle
import time

import numpy as np
import pytest
import torch

from vmp.data.archive import DecodeError
from vmp.data.clips import Batch, ClipDataset, Failure, collate, stretch
from vmp.data.decode import VideoReader
from vmp.data.frame_index import TookTooLongError
from vmp.data.records import VideoRecord
from vmp.data.sampling import RandomClip, SpacedClips
from vmp.data.transforms import RandomCrop, ViewCrop


def train_set(records, replacements=3, seed=0, **changed):
    arguments = {
        "num_views": 1,
        "pick_frames": RandomClip(4, 2, 0.0, "hold"),
        "transform": RandomCrop((40, 48), 40, True),
        "seed": seed,
        "replacements": replacements,
    }
    return ClipDataset(records, **(arguments | changed))


def eval_set(records, num_clips=2, num_crops=3, policy="hold"):
    return ClipDataset(
        records,
        num_views=num_clips * num_crops,
        pick_frames=SpacedClips(4, 2, 0.0, policy, num_clips=num_clips, num_crops=num_crops),
        transform=ViewCrop(48, num_crops),
        seed=0,
    )


@pytest.fixture(scope="module")
def records(video_folder):
    return [VideoRecord(str(video_folder / f"video {v}.mp4"), v % 3) for v in range(4)]


@pytest.fixture(scope="module")
def broken(records, tmp_path_factory):
    """Records 1 and 2 of 4 can't be decoded."""
    text = tmp_path_factory.mktemp("broken") / "text.mp4"
    text.write_text("no video")
    return [
        records[0],
        VideoRecord(str(text), 1),
        VideoRecord("missing.mp4", 2),
        records[3],
    ]


def test_a_clip_is_uint8_in_model_layout(records):
    sample = train_set(records)[0, 2]
    assert sample.clip.shape == (3, 4, 40, 40)
    assert sample.clip.dtype == torch.uint8
    assert sample.clip.is_contiguous()
    assert (sample.label, sample.video, sample.view, sample.failures) == (2, 2, 0, ())


def test_randomness_is_a_function_of_seed_epoch_and_index(records):
    one, two, other = train_set(records), train_set(records), train_set(records, seed=1)
    two[0, 1]  # what was read before does not matter
    assert torch.equal(one[5, 3].clip, two[5, 3].clip)
    assert not torch.equal(one[5, 3].clip, one[6, 3].clip)
    assert not torch.equal(one[5, 3].clip, other[5, 3].clip)


def test_views_are_clips_times_crops(records, read_number):
    dataset = eval_set(records)
    assert len(dataset) == 4 * 6
    sample = dataset[0, 2 * 6 + 4]  # video 2, clip 1, centre
    assert (sample.video, sample.view) == (2, 4)
    assert torch.equal(sample.clip, dataset[9, 2 * 6 + 4].clip)  # epochs do not matter
    # left crop of clip 1, which begins at (20 - 8) / 2 = 6: the number is in the top left
    frames = dataset[0, 2 * 6 + 3].clip.permute(1, 2, 3, 0).numpy()
    assert [read_number(frame) for frame in frames] == [206, 208, 210, 213]


def test_frames_are_counted_from_the_start_of_the_record(records, read_number):
    segment = records[1]._replace(start=9, stop=15)
    frames = eval_set([segment], num_clips=1)[0, 0].clip.permute(1, 2, 3, 0).numpy()
    # linspace(0, 7, 4) = 0, 2.3, 4.7, 7, of which 6 frames are there: the last is held
    assert [read_number(frame) for frame in frames] == [109, 111, 113, 114]


def test_a_stretch_ends_with_what_decodes(records):
    assert stretch(records[0], 20) == 20
    assert stretch(records[0]._replace(start=5, stop=22), 20) == 15
    with pytest.raises(DecodeError, match=r"\[30, 40\) wanted, 20 decode"):
        stretch(records[0]._replace(start=30, stop=40), 20)


def test_training_replaces_a_broken_clip_by_the_next_readable_sample(broken):
    dataset = train_set(broken)
    sample = dataset[0, 1]
    assert (sample.video, sample.label) == (3, broken[3].label)
    assert torch.equal(sample.clip, dataset[0, 3].clip)
    assert [failure.video for failure in sample.failures] == [1, 2]
    assert "Invalid data" in sample.failures[0].reason
    assert sample.failures[1] == Failure("missing.mp4", "No such file or directory", 2, 0)


def test_too_many_broken_clips_in_a_row_are_an_error_that_lists_them(broken):
    with pytest.raises(ValueError, match=r"2 clips in a row.*text\.mp4.*missing\.mp4"):
        train_set(broken, replacements=1)[0, 1]


def test_evaluation_never_replaces_and_leaves_the_clip_out_of_the_batch(broken):
    dataset = eval_set(broken)
    samples = [dataset[0, item] for item in (0, 1 * 6 + 2, 3 * 6)]
    assert samples[1].clip is None
    batch = collate(samples, (3, 4, 48, 48))
    assert batch.clip.shape == (2, 3, 4, 48, 48)
    assert batch.video.tolist() == [0, 3]
    assert batch.label.dtype == batch.view.dtype == torch.int64
    assert [(failure.video, failure.view) for failure in batch.failures] == [(1, 2)]
    nothing = collate(samples[1:2], (3, 4, 48, 48))
    assert nothing.clip.shape == (0, 3, 4, 48, 48)
    assert len(nothing.failures) == 1


def test_the_error_policy_names_the_video(records):
    dataset = eval_set([records[0]._replace(stop=5)], policy="error")
    with pytest.raises(ValueError, match=r"video 0\.mp4: the clip needs 8 frames, there are 5"):
        dataset[0, 0]


def test_data_set_and_batch_can_be_pickled(records):
    dataset = pickle.loads(pickle.dumps(train_set(records)))
    assert torch.equal(dataset[1, 1].clip, train_set(records)[1, 1].clip)
    batch = collate([dataset[0, 0]], (3, 4, 40, 40))
    assert isinstance(pickle.loads(pickle.dumps(batch)), Batch)


def test_the_global_random_state_is_left_alone(records):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train_set(records)[0, 0]
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_an_excluded_record_is_not_opened_and_counts_as_not_decoded(records):
    absent = records[1]._replace(excluded="absent", path=records[0].path)
    opened = []
    dataset = eval_set([records[0], absent])
    dataset.open_video = lambda path: opened.append(path)
    sample = dataset[0, 6]
    assert sample.clip is None
    assert sample.failures == (Failure(absent.path, "absent", 1, 0),)
    assert opened == []


def test_the_views_of_a_video_share_one_reader_and_the_crops_of_a_clip_its_frames(records):
    dataset = eval_set(records)
    fresh = [eval_set(records)[0, item].clip for item in range(12)]
    opened, read = [], []

    class Reader(VideoReader):
        def __init__(self, path):
            opened.append(path)
            super().__init__(path)

        def read(self, indices, short_side=None):
            read.append(list(indices))
            return super().read(indices, short_side)

    dataset.open_video = Reader
    shared = [dataset[0, item].clip for item in range(12)]
    assert all(torch.equal(one, other) for one, other in zip(shared, fresh, strict=True))
    assert opened == [records[0].path, records[1].path]
    assert len(read) == 4  # 2 videos of 2 clips, each of 3 crops


def test_a_file_that_takes_too_long_costs_its_time_once_not_for_each_view(records):
    dataset = eval_set(records)
    opened = []

    def open_video(path):
        opened.append(path)
        raise TookTooLongError(path, "took more than 120 s")

    dataset.open_video = open_video
    reasons = [failure.reason for item in range(12) for failure in dataset[0, item].failures]
    assert reasons == ["took more than 120 s"] * 12
    assert opened == [records[0].path, records[1].path]


def test_what_a_stalled_decoder_still_uses_is_not_used_again(records):
    reader = VideoReader(records[0].path, timeout=0.1)
    whole = reader.read([0, 1])
    stuck = reader._backend
    stuck.read = lambda *a: time.sleep(3)
    with pytest.raises(DecodeError, match="stalls"):
        reader.read([0])
    assert reader._backend is not stuck
    reader.timeout = 60.0
    np.testing.assert_array_equal(reader.read([0, 1]), whole)
