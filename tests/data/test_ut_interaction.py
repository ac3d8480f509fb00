from collections import Counter
from pathlib import Path

import pytest

from vmp.data import VideoReader
from vmp.data.ut_interaction import class_names, utinteraction


@pytest.fixture
def root(tmp_path):
    """As released: two folders of clips and no lists."""
    for folder, sequence in (("segmented_set1", 1), ("segmented_set2", 11)):
        (tmp_path / folder).mkdir()
        for clip in range(12):
            (tmp_path / folder / f"{clip}_{sequence}_{clip % 6}.avi").touch()
    return tmp_path


def test_without_lists_set_1_trains_and_set_2_tests(root):
    train, test = utinteraction(str(root), "train"), utinteraction(str(root), "test", "crossset")
    assert {Path(record.path).parent.name for record in train} == {"segmented_set1"}
    assert {Path(record.path).parent.name for record in test} == {"segmented_set2"}
    assert [record.label for record in train] == [0, 1, 2, 3, 4, 5] * 2


def test_the_sequence_split_needs_its_lists(root):
    with pytest.raises(ValueError, match=r"split_seq_train\.txt is missing"):
        utinteraction(str(root), "train", "seq")
    (root / "split_seq_train.txt").write_text("segmented_set2/4_11_4.avi 4\n")
    (record,) = utinteraction(str(root), "train", "seq")
    assert (Path(record.path), record.label) == (root / "segmented_set2" / "4_11_4.avi", 4)


def test_wrong_folders_names_and_variants_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match="no clips in"):
        utinteraction(str(tmp_path / "elsewhere"), "train")
    with pytest.raises(ValueError, match="crossset, seq"):
        utinteraction(str(root), "train", "1")
    (root / "split_seq_test.txt").write_text("segmented_set2/4_11_4.avi 3\n")
    with pytest.raises(ValueError, match="the list says class 3, the name 4"):
        utinteraction(str(root), "test", "seq")
    (root / "segmented_set1" / "99_1_7.avi").touch()
    with pytest.raises(ValueError, match="end with its class, 0 to 5"):
        utinteraction(str(root), "train")


@pytest.mark.data
@pytest.mark.parametrize(("variant", "counts"), [("crossset", (60, 60)), ("seq", (84, 36))])
def test_the_real_release_has_its_clips(shared, variant, counts):
    root = str(shared / "data" / "ut_interaction")
    splits = [utinteraction(root, split, variant) for split in ("train", "test")]
    assert tuple(len(records) for records in splits) == counts
    paths = {record.path for records in splits for record in records}
    assert len(paths) == 120
    assert all(Path(path).is_file() for path in paths)
    labels = Counter(record.label for records in splits for record in records)
    assert labels == dict.fromkeys(range(6), 20)
    assert len(class_names(root)) == 6


@pytest.mark.data
def test_a_real_clip_has_fewer_frames_than_its_header_says(shared):
    clip = shared / "data" / "ut_interaction" / "segmented_set1" / "0_1_4.avi"
    assert len(VideoReader(clip)) == 108  # the header: 110
