import pytest

from vmp.data.csv_list import class_names, csv
from vmp.data.records import VideoRecord


@pytest.fixture
def root(tmp_path):
    (tmp_path / "classes.txt").write_text("walking\nrunning fast\n")
    return tmp_path


@pytest.mark.parametrize("ending", ["csv", "txt", "list"])
def test_the_label_is_the_last_field_and_paths_may_hold_blanks(root, ending):
    lines = 'a.mp4 0\n\n  my videos/b 2.mp4   12  \n/abs/c.mp4\t1\nd, e.mp4,3\n"f g.mp4", 4\n'
    (root / f"train.{ending}").write_text(lines)
    assert csv(str(root), "train") == [
        VideoRecord(str(root / "a.mp4"), 0, id="a.mp4"),
        VideoRecord(str(root / "my videos/b 2.mp4"), 12, id="my videos/b 2.mp4"),
        VideoRecord("/abs/c.mp4", 1, id="/abs/c.mp4"),
        VideoRecord(str(root / "d, e.mp4"), 3, id="d, e.mp4"),
        VideoRecord(str(root / "f g.mp4"), 4, id="f g.mp4"),
    ]


@pytest.mark.parametrize("line", ["b.mp4", "b.mp4 walking", "b.mp4 -1", "7", "b.mp4 1.5", "b.mp47"])
def test_a_line_that_is_not_path_and_label_is_named(root, line):
    (root / "train.csv").write_text(f"a.mp4 0\n{line}\n")
    with pytest.raises(ValueError, match=r"train\.csv:2: .*is not `path label`"):
        csv(str(root), "train")


def test_lists_must_be_there_once_and_not_be_empty(root):
    with pytest.raises(ValueError, match=r"no list of the test videos; .*test\.csv"):
        csv(str(root), "test")
    (root / "test.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists no video"):
        csv(str(root), "test")
    (root / "test.csv").write_text("a.mp4 0\n")
    with pytest.raises(ValueError, match="only one"):
        csv(str(root), "test")


def test_a_variant_is_a_folder_of_lists(root):
    (root / "fold2").mkdir()
    (root / "fold2" / "test.txt").write_text("a.mp4 1\n")
    assert csv(str(root), "test", "fold2") == [VideoRecord(str(root / "a.mp4"), 1, id="a.mp4")]


def test_missing_videos_are_not_dropped_from_the_list(root):
    (root / "train.csv").write_text("gone.mp4 0\nalso gone.mp4 1\n")
    assert len(csv(str(root), "train")) == 2


def test_class_names_are_read_if_there(root, tmp_path):
    assert class_names(str(root)) == ("walking", "running fast")
    assert class_names(str(tmp_path / "elsewhere")) == ()
