import json

import pytest

from vmp.data import DATASETS, DecodeError, VideoReader
from vmp.data.records import VideoRecord, quarantine, read_quarantine
from vmp.data.release import (
    OFFICIAL_COUNTS,
    cut_clips,
    official_count,
    read_classes,
    read_index,
    scan_videos,
    write_index,
)

RECORDS = [
    VideoRecord("a class/-x.avi", 0, id="a class/-x.avi"),
    VideoRecord("#b [1].mkv", 1, 3, 9, "b_3"),
    VideoRecord("çä.mp4", 1, 0, None, "c", "absent"),
]


def read(root, split="train", variant="1", dataset="hmdb51"):
    return read_index(root, dataset, split, variant, script="prepare.py")


@pytest.fixture
def root(tmp_path):
    splits = {"1": {"train": RECORDS, "test": []}, "2": {"train": RECORDS[:1]}}
    write_index(tmp_path, "hmdb51", tmp_path / "videos", splits, {"1": ["x, y", "ü"]})
    return tmp_path


def test_every_record_comes_back_with_its_path_joined_to_the_videos(root):
    joined = [record._replace(path=str(root / "videos" / record.path)) for record in RECORDS]
    assert read(root) == joined
    assert read(root, "test") == []
    assert read_classes(root, "hmdb51", "1", script="prepare.py") == ("x, y", "ü")
    assert read_classes(root, "hmdb51", "2", script="prepare.py") == ()


def test_index_and_videos_can_move_together_and_videos_can_lie_elsewhere(root, tmp_path_factory):
    moved = root.rename(tmp_path_factory.mktemp("moved") / "here")
    assert read(moved)[0].path == str(moved / "videos" / RECORDS[0].path)
    elsewhere = tmp_path_factory.mktemp("videos")
    write_index(moved, "hmdb51", elsewhere, {"1": {"train": RECORDS}})
    assert read(moved)[0].path == str(elsewhere / RECORDS[0].path)


def test_the_index_is_one_line_a_record(root):
    lines = (root / "index.json").read_text().splitlines()
    for record in RECORDS:
        name = json.dumps(record.path)
        assert [line for line in lines if name in line and line.startswith(f"[{name}, ")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.unlink(), "no index.json .* DATA.PATH_TO_DATA_DIR .* prepare.py"),
        (lambda index: index.write_text(index.read_text()[:-9]), "is broken .* run prepare.py"),
        (lambda index: index.write_text("[]"), "is broken .* run prepare.py"),
        (lambda index: edit(index, format="2"), "another format"),
        (lambda index: edit(index, splits=[]), "another format"),
        (lambda index: edit(index, dataset="finegym"), "index of 'finegym', TRAIN.DATASET is"),
        (lambda index: edit(index, splits={"1/train": [[1, 2, 3, 4, 5, 6, 7]]}), "is broken"),
        (lambda index: edit(index, splits={"3/train": []}), "no train records .* there are: 3"),
    ],
)
def test_what_is_wrong_with_an_index_is_said_in_one_line(root, change, message):
    change(root / "index.json")
    with pytest.raises(ValueError, match=message) as raised:
        read(root)
    assert "\n" not in str(raised.value)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_quarantine_marks_records_by_id_and_keeps_an_older_reason(tmp_path):
    path = tmp_path / "quarantine.tsv"
    path.write_text("b_3\ttook more than 120 s\n\nc\tunreadable\na class/-x.avi\nnot there\tx\n")
    marked = quarantine(RECORDS, read_quarantine(path))
    assert [record.excluded for record in marked] == [
        "quarantined: no reason given",
        "quarantined: took more than 120 s",
        "absent",
    ]
    path.write_bytes("\ufeffc\r\n".encode())
    assert read_quarantine(path) == {"c": ""}
    with pytest.raises(ValueError, match=r"DATA.QUARANTINE .*missing.* can't be read"):
        read_quarantine(tmp_path / "missing")


def test_the_official_counts_are_those_of_known_data_sets_and_their_variants():
    assert set(OFFICIAL_COUNTS) <= {name for name, _ in DATASETS}
    assert official_count("hmdb51", "", "train") == official_count("hmdb51", "3", "train") == 3570
    assert official_count("finegym", "", "test") == 8521
    assert official_count("finegym", "gym288", "test") == 9646
    assert official_count("mpiicooking2", "", "test") is None
    assert official_count("utinteraction", "seq", "test") is None


def test_videos_are_looked_into_by_name(tmp_path, make_video):
    make_video(tmp_path / "a.mp4", 12)
    (tmp_path / "b.mp4").write_text("no video")
    seen = scan_videos({n: str(tmp_path / f"{n}.mp4") for n in "abc"}, tmp_path / "out", 1)
    assert seen["a"].num_frames == 12
    assert isinstance(seen["b"], DecodeError)
    assert "No such file" in seen["c"].reason


def test_what_is_not_excluded_becomes_a_clip_and_equal_names_share_one(
    tmp_path, make_video, read_number
):
    make_video(tmp_path / "a.mp4", 12)
    records = [
        VideoRecord("a.mp4", 0, 3, 9, id="x"),
        VideoRecord("a.mp4", 7, 3, 9, id="x"),
        VideoRecord("a.mp4", 0, 20, 30, id="past the end"),
        VideoRecord("b.mp4", 0, 0, 5, id="b", excluded="absent"),
    ]
    clips = cut_clips(records, tmp_path, tmp_path / "out", 1, name=lambda r: f"{r.id}.mp4")
    assert list(clips) == records
    first, other, past, absent = clips.values()
    assert first == VideoRecord("x.mp4", 0, 0, 6, id="x")
    assert other == first._replace(label=7)
    assert past.excluded == "unreadable: no frame from 20 to 30, it has 12"
    assert absent == records[3]._replace(path="b.mp4")
    assert [path.name for path in (tmp_path / "out" / "clips").iterdir()] == ["x.mp4"]
    with VideoReader(tmp_path / "out" / "clips" / "x.mp4") as clip:
        assert [read_number(frame) for frame in clip.read(range(6))] == [3, 4, 5, 6, 7, 8]


def test_it_is_said_how_many_records_a_quarantine_names(caplog):
    with caplog.at_level("INFO"):
        assert quarantine(RECORDS, {"b_3 unreadable": ""}) == RECORDS
        quarantine(RECORDS, {"b_3": "unreadable", "elsewhere": ""})
    assert "names 0 of these 3 records" in caplog.text
    assert "names 1 of these 3 records" in caplog.text
