"""MPII Cooking 2: from the official release to records, and on to a run."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.conftest import load_module
from tests.data.conftest import number_in, write_video
from tests.data.miniature_mpii_cooking2 import (
    MAT,
    RATE,
    ROWS,
    SPLITS,
    Annotated,
    write_annotation,
    write_release,
    write_setup,
)
from vmp import engine
from vmp.config import load_cfg
from vmp.data import CLASS_NAMES, DATASETS, VideoReader
from vmp.data.archive import DecodeError
from vmp.data.frame_index import find_index
from vmp.data.mpii_cooking2 import NAMES
from vmp.utils.cli import run_cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    """Return datasets/mpii_cooking2/prepare.py."""
    path = ROOT / "datasets" / "mpii_cooking2" / "prepare.py"
    yield from load_module("mpii_cooking2_prepare", path)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Return a folder with the miniature release."""
    return write_release(tmp_path_factory.mktemp("mpii"))


@pytest.fixture(scope="module")
def prepare(script):
    """Return a function (release, out, options) that prepares it into a folder."""

    def run(release, out, *options, count=("--any-count",), **places):
        given = {
            "--videos": release / "videos",
            "--annotation": release / MAT,
            "--setup": release / "experimentalSetup",
            "--out": out,
            "--workers": 1,
        }
        given |= {f"--{name}": place for name, place in places.items()}
        script.main([str(text) for pair in given.items() for text in pair] + [*count, *options])
        return out

    return run


@pytest.fixture(scope="module")
def prepared(release, prepare, tmp_path_factory):
    return prepare(release, tmp_path_factory.mktemp("prepared") / "out")


@pytest.fixture(scope="module")
def clips(release, prepare, tmp_path_factory):
    return prepare(release, tmp_path_factory.mktemp("clips") / "out", "--cut")


def records_of(root, split, variant=""):
    return DATASETS.get("mpiicooking2")(str(root), split, variant)


def rows_of(records):
    """Return (row number, class, start, stop) of the records."""
    return [
        (int(record.id.rpartition("/")[2]), NAMES[record.label], record.start, record.stop)
        for record in records
    ]


def excluded_of(records):
    return {int(record.id.rpartition("/")[2]): record.excluded for record in records}


# --------------------------------------------------------------------------- records
def test_the_first_and_last_rows_of_the_release_become_the_documented_frames(prepared):
    rows = rows_of(records_of(prepared, "train"))
    assert rows[:3] == [
        (1, "enterV", 193, 243),
        (2, "take outV", 269, 414),
        (3, "take outV", 453, 725),
    ]
    assert rows[-2:] == [(23, "unplugV", 11018, 11045), (24, "push downV", 11063, 11094)]


def test_every_official_record_is_in_the_index_in_the_official_order(prepared):
    assert rows_of(records_of(prepared, "train"))[3:-2] == [
        (4, "cut diceV", 0, 1),
        (5, "cut diceV", 10, 20),
        (8, "stirV", 14, 40),
        (9, "washV", 29, 45),
        (10, "washV", 29, 50),
    ]
    assert rows_of(records_of(prepared, "test")) == [
        (14, "pourV", 2, 12),
        (15, "cut diceV", 12, 30),
        (16, "enterV", 40, 50),  # clipped to the 50 frames there are
        (17, "stirV", 50, 70),
        (18, "washV", 49, 50),
        (19, "stirV", 0, 10),
        (21, "shakeV", 7, 20),
    ]


def test_what_cannot_be_read_is_excluded_with_its_reason(prepared):
    assert excluded_of(records_of(prepared, "train")) == (
        dict.fromkeys([1, 2, 3, 4, 5, 8, 9, 10], "") | {23: "absent", 24: "absent"}
    )
    excluded = excluded_of(records_of(prepared, "test"))
    assert excluded.pop(19).startswith("unreadable: ")
    assert excluded == {
        14: "",
        15: "",
        16: "",
        17: "out of range: frames 51 to 70 of 50",
        18: "",
        21: "absent",
    }


def test_the_frames_of_a_record_are_those_annotated(release, prepared):
    for record in records_of(prepared, "test") + records_of(prepared, "train"):
        if record.excluded:
            continue
        _, activity, start, end, _ = ROWS[int(record.id.rpartition("/")[2]) - 1]
        assert activity == NAMES[record.label]
        with VideoReader(record.path) as reader:
            assert reader.fps == pytest.approx(29.4)
            first, last = reader.read([record.start, record.stop - 1])
            assert number_in(first) == start - 1  # the pixels count from 0
            assert number_in(last) == min(end, len(reader)) - 1


def test_validation_trains_on_the_same_and_tests_on_the_validation_sequences(prepared):
    assert records_of(prepared, "train", "val") == records_of(prepared, "train")
    assert records_of(prepared, "train", "test") == records_of(prepared, "train")
    assert records_of(prepared, "test", "test") == records_of(prepared, "test")
    assert rows_of(records_of(prepared, "test", "val")) == [
        (12, "pourV", 4, 24),
        (13, "openV", 19, 29),  # named so, though iaMat says closeV
    ]


def test_ids_are_unique_and_no_sequence_is_on_both_sides(prepared):
    splits = [
        records_of(prepared, *request) for request in (("train",), ("test",), ("test", "val"))
    ]
    ids = [record.id for records in splits for record in records]
    assert len(set(ids)) == len(ids) == 19
    sequences = [{record.id.partition("/")[0] for record in records} for records in splits]
    assert sum(map(len, sequences)) == len(set.union(*sequences))


def test_the_authors_shift_is_one_frame_late(release, prepare, tmp_path):
    shifted = prepare(release, tmp_path / "out", "--authors-shift")
    rows = rows_of(records_of(shifted, "train"))
    assert rows[:4] == [
        (1, "enterV", 194, 244),
        (2, "take outV", 270, 415),
        (3, "take outV", 454, 726),
        (4, "cut diceV", 1, 2),
    ]
    test = records_of(shifted, "test")
    assert rows_of(test)[2] == (16, "enterV", 41, 50)
    # the last frame of the video is now past its end
    assert excluded_of(test)[18] == "out of range: frames 50 to 50 of 50"
    assert "the authors' shift" in (shifted / "report.txt").read_text()


@pytest.mark.parametrize(
    ("start", "end", "frames", "excluded"),
    [
        (1, 50, (0, 50), ""),
        (50, 50, (49, 50), ""),
        (50, 51, (49, 50), ""),
        (0, 3, (0, 3), ""),  # no such frame where counting begins at 1
        (51, 51, (50, 51), "out of range: frames 51 to 51 of 50"),
        (9, 8, (8, 8), "out of range: frames 9 to 8 of 50"),
    ],
)
def test_frames_are_kept_within_the_video(script, prepared, start, end, frames, excluded):
    index = find_index(records_of(prepared, "test")[0].path)
    assert index.num_frames == 50
    row = script.Row(7, "s22-d23-cam-002", "addV", start, end)
    record = script.make_record(row, "video.avi", index, authors_shift=False)
    assert (record.start, record.stop) == frames
    assert record.excluded == excluded


def test_the_class_names_are_the_67(prepared):
    names = CLASS_NAMES.get("mpiicooking2")(str(prepared))
    assert names == NAMES == tuple(sorted(NAMES))
    assert len(set(names)) == 67


def test_an_unknown_variant_or_no_index_is_an_error_that_says_what_to_do(prepared, tmp_path):
    with pytest.raises(ValueError, match="there are: test, val"):
        records_of(prepared, "test", "dishes")
    with pytest.raises(ValueError, match="datasets/mpii_cooking2/prepare.py"):
        records_of(tmp_path, "test")


# --------------------------------------------------------------------------- report and files
def test_the_report_tells_everything_odd(prepared):
    lines = (prepared / "report.txt").read_text().splitlines()
    for line in (
        "activities that are none of the 67 classes, dropped: 4",
        "  '': 1 intervals",
        "  'assembleV': 1 intervals",
        "  'rip offV': 1 intervals",
        "  'rip-offV': 1 intervals",
        "sequences in no split, not used: 1",
        "  s22-d32: 1 intervals",
        "sequences of a split without any interval: 1",
        "  s10-d02 (train)",
        "  row 13: 'openV', not ['closeV']",
        "  s08-d02-cam-002 washV from 30: rows 9, 10",
        "  s22-d23-cam-002/00016: frames (40, 60) wanted, (40, 50) there",
        "  s22-d23-cam-002/00017: out of range: frames 51 to 70 of 50",
        "  24 intervals, the release has 14,105",
        "  4 train sequences, the release has 201",
    ):
        assert line in lines, line
    assert any(line.startswith("  s22-d26-cam-002: ") for line in lines)
    table = {line.split()[0]: line.split()[1:] for line in lines[-5:-2]}
    #                                official usable clipped absent unreadable out-of-range
    assert table["train"] == ["10", "8", "0", "2", "0", "0"]
    assert table["val"] == ["2", "2", "0", "0", "0", "0"]
    assert table["test"] == ["7", "4", "1", "1", "1", "1"]


def test_absent_videos_are_listed_and_found_once_they_are_there(release, prepare, tmp_path):
    out = prepare(release, tmp_path / "out")
    missing = (out / "missing.txt").read_text()
    assert missing == "s37-d74-cam-002.avi\ns28-d51-cam-002.avi\n"
    videos = tmp_path / "videos"
    shutil.copytree(release / "videos", videos)
    (videos / "more").mkdir()
    for name, frames in (("s28-d51-cam-002.avi", 30), ("s22-d26-cam-002.AVI", 20)):
        write_video(videos / "more" / "video.avi", frames, codec="mpeg4", rate=RATE)
        (videos / "more" / "video.avi").rename(videos / "more" / name)
    (videos / "s22-d26-cam-002.avi").unlink()
    prepare(release, out, videos=videos)
    assert (out / "missing.txt").read_text() == "s37-d74-cam-002.avi\n"
    test = records_of(out, "test")
    assert excluded_of(test) | {17: ""} == dict.fromkeys([14, 15, 16, 17, 18, 19, 21], "")
    assert test[-1].path.endswith("more/s28-d51-cam-002.avi")
    assert number_in(VideoReader(test[-1].path).read([test[-1].start])[0]) == 7


def test_a_reencoded_video_of_another_rate_is_told(release, prepare, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(release / "videos", videos)
    write_video(videos / "s21-d21-cam-002.avi", 30, codec="mpeg4", rate=25)
    out = prepare(release, tmp_path / "out", videos=videos)
    report = (out / "report.txt").read_text()
    assert "another rate than 29.4 frames a second; frame numbers may be wrong: 1" in report
    assert "  s21-d21-cam-002: 25\n" in report
    assert "another rate" not in (prepare(release, out) / "report.txt").read_text()


def test_preparing_again_writes_the_same_and_scans_nothing_again(release, prepare, prepared):
    before = {path: path.read_bytes() for path in prepared.rglob("*") if path.is_file()}
    kept = {path: path.stat().st_mtime_ns for path in (prepared / "frame_index").iterdir()}
    assert len(kept) == 1
    prepare(release, prepared)
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_setup_may_be_nested_as_the_archive_unpacks_it(release, prepare, prepared, tmp_path):
    write_setup(tmp_path / "setup", SPLITS, nested=True)
    out = prepare(release, tmp_path / "out", setup=tmp_path / "setup")
    assert (out / "index.json").read_text() == (prepared / "index.json").read_text()


# --------------------------------------------------------------------------- reading the release
def test_fields_that_only_matlab_can_read_are_not_touched(release, script):
    with h5py.File(release / MAT) as file:
        assert set(file) == {"#refs#", "#subsystem#", "annos"}
        assert file.userblock_size == 512
        assert file["annos/nImgsPerFile"][0, 0] == 0xDD000000
        assert file["annos/iaMat"].shape == (74, 24)
        assert file["annos/activity"].shape == (24, 1)
    annotation = script.read_annotation(release / MAT)
    assert len(annotation.rows) == 24
    assert annotation.frame_rate == 29.4


def test_strings_are_utf_16_and_empty_ones_are_empty(tmp_path, script):
    rows = [Annotated("s07-d72", text, 1, 5, ()) for text in ("crème brûlée V", "", "切る")]
    write_annotation(tmp_path / MAT, rows)
    annotation = script.read_annotation(tmp_path / MAT)
    assert [row.activity for row in annotation.rows] == [row.activity for row in rows]


def test_the_classes_are_the_activities_that_are_attributes(tmp_path, script):
    rows = [Annotated("s07-d72", name, 1, 5) for name in (*reversed(NAMES), "rollV", "knives")]
    write_annotation(tmp_path / MAT, rows)
    assert tuple(script.find_classes(script.read_annotation(tmp_path / MAT))) == NAMES
    rows.append(Annotated("s07-d72", "hand", 1, 5))  # a noun of attributeMap as an activity
    write_annotation(tmp_path / "other.mat", rows)
    with pytest.raises(ValueError, match="'hand' is an attribute but none of the 67"):
        script.find_classes(script.read_annotation(tmp_path / "other.mat"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start": 3.5}, "row 2: 3.5 is no number of a frame"),
        ({"end": float("nan")}, "row 2: nan is no number of a frame"),
        ({"sequence": "s07d72"}, "row 2: 's07d72-cam-002' is no name of a video"),
    ],
)
def test_a_broken_row_is_named(tmp_path, script, changed, message):
    rows = [ROWS[0], ROWS[1]._replace(**changed), ROWS[2]]
    if "sequence" in changed:
        # subject and dish are read from the name by the writer
        rows[1] = rows[1]._replace(sequence="s07d072")
        message = message.replace("s07d72", "s07d072")
    write_annotation(tmp_path / MAT, rows)
    with pytest.raises(ValueError, match=message):
        script.read_annotation(tmp_path / MAT)


@pytest.mark.parametrize("broken", ["absent", "text", "cut short", "no annos", "a field short"])
def test_a_broken_annotation_is_one_line_that_says_what_to_do(release, tmp_path, script, broken):
    path = tmp_path / MAT
    shutil.copy(release / MAT, path)
    if broken == "absent":
        path.unlink()
    elif broken == "text":
        path.write_text("<html>")
    elif broken == "cut short":
        path.write_bytes(path.read_bytes()[:20_000])
    else:
        with h5py.File(path, "r+") as file:
            del file["annos" if broken == "no annos" else "annos/endFrame"]
            if broken == "a field short":
                file["annos/endFrame"] = np.ones((23, 1))
    with pytest.raises(ValueError, match="README|again|must be") as error:
        script.read_annotation(path)
    assert MAT in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no sequence"),
        ("\n \n", "lists no sequence"),
        ("s22-d23\ns22-d23-cam-002\n", "line 2: 's22-d23-cam-002' is no sequence"),
        ("s07-d72\n", "s07-d72 is in sequencesTrainAttr.txt and in sequencesTest.txt"),
    ],
)
def test_a_broken_split_file_is_an_error(tmp_path, script, text, message):
    write_setup(tmp_path / "setup", SPLITS | {"sequencesTest.txt": text})
    with pytest.raises(ValueError, match=message):
        script.read_setup(tmp_path / "setup")


def test_blanks_and_any_ends_of_lines_are_fine_in_a_split_file(tmp_path, script):
    path = tmp_path / "sequencesTest.txt"
    path.write_bytes("\ufeffs22-d23 \r\n\r\n\ts22-d25\ns22-d23\n\ns28-d51".encode())
    assert script.read_sequences(path) == ["s22-d23", "s22-d25", "s28-d51"]
    with pytest.raises(ValueError, match="must be the release's experimentalSetup"):
        script.read_sequences(tmp_path / "sequencesVal.txt")


def test_a_folder_without_videos_is_an_error(release, prepare, tmp_path):
    (tmp_path / "videos").mkdir()
    with pytest.raises(ValueError, match="no .avi below"):
        prepare(release, tmp_path / "out", videos=tmp_path / "videos")
    assert not (tmp_path / "out" / "index.json").exists()


def test_other_counts_than_the_official_end_the_command_with_one_line(release, prepare, tmp_path):
    with pytest.raises(SystemExit, match="error: 24 intervals, the release has 14,105; "):
        run_cli(lambda: prepare(release, tmp_path / "out", count=()))
    assert not (tmp_path / "out").exists()


def test_sure_counts_are_asserted_and_inferred_ones_warn(script):
    right = script.OFFICIAL | script.EXPECTED
    assert script.check_counts(right, any_count=False) == []
    for what in script.OFFICIAL:
        with pytest.raises(ValueError, match=f"{what}, the release has .* --any-count"):
            script.check_counts(right | {what: 1}, any_count=False)
        assert len(script.check_counts(right | {what: 1}, any_count=True)) == 1
    for what in script.EXPECTED:
        (warning,) = script.check_counts(right | {what: 1}, any_count=False)
        assert warning.startswith(f"1 {what}, the release has")


def full_rows(script):
    """Return as many rows, videos, activities and classes as the release has."""
    splits = {"sequencesTrainAttr.txt": 201, "sequencesVal.txt": 17, "sequencesTest.txt": 42}
    names = [f"s{7 + n // 10:02}-d{1 + n % 10:02}" for n in range(273)]
    files, begin = {}, 0
    for file, count in splits.items():
        files[file] = "".join(f"{name}\n" for name in names[begin : begin + count])
        begin += count
    others = [f"other {n}V" for n in range(20)]
    rows = [
        Annotated(names[n % 273], NAMES[n % 67], 1 + n // 273, 20 + n // 273)
        for n in range(script.EXPECTED["intervals of the 67 classes"])
    ]
    rows += [Annotated(names[n % 273], others[n % 20], 1, 20, ("hand",)) for n in range(115)]
    return rows, files


@pytest.mark.slow
def test_a_release_of_the_official_size_is_indexed_without_a_warning(prepare, script, tmp_path):
    rows, files = full_rows(script)
    write_annotation(tmp_path / MAT, rows, shared=True)
    write_setup(tmp_path / "experimentalSetup", files)
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "s07-d01-cam-002.avi", 80, codec="mpeg4", rate=RATE)
    out = prepare(tmp_path, tmp_path / "out", count=())
    counts = [
        len(records_of(out, *request)) for request in (("train",), ("test",), ("test", "val"))
    ]
    listed = " ".join(files.values()).split()
    assert sum(counts) == sum(row.sequence in listed for row in rows[:13_990])
    usable = [record for record in records_of(out, "train") if not record.excluded]
    assert len(usable) == sum(row.sequence == "s07-d01" for row in rows[:13_990])
    report = (out / "report.txt").read_text()
    assert "warnings" not in report
    assert "sequences in no split, not used: 13" in report
    assert len((out / "missing.txt").read_text().splitlines()) == 201 + 17 + 42 - 1


# --------------------------------------------------------------------------- cutting
def test_a_clip_has_the_frames_that_the_long_video_has_there(prepared, clips):
    for request in (("train",), ("test",), ("test", "val")):
        whole, cut = records_of(prepared, *request), records_of(clips, *request)
        assert [record.id for record in cut] == [record.id for record in whole]
        assert [record.label for record in cut] == [record.label for record in whole]
        assert [record.excluded for record in cut] == [record.excluded for record in whole]
        for long, clip in zip(whole, cut, strict=True):
            if long.excluded:
                continue
            assert (clip.start, clip.stop) == (0, long.stop - long.start)
            with VideoReader(clip.path) as reader:
                numbers = [number_in(frame) for frame in reader.read(range(len(reader)))]
                assert reader.fps == pytest.approx(29.4)
            assert numbers == list(range(long.start, long.stop))


def test_clips_are_files_of_their_own_inside_the_folder(clips, tmp_path):
    names = sorted(path.relative_to(clips).as_posix() for path in clips.rglob("*.mp4"))
    assert len(names) == 8 + 4 + 2
    assert "clips/s07-d72-cam-002/00002_take_outV_269-414.mp4" in names
    duplicates = [name for name in names if "washV" in name and "s08" in name]
    assert len(duplicates) == 2
    moved = tmp_path / "moved"
    shutil.copytree(clips, moved)  # nothing outside is needed
    for record in records_of(moved, "train"):
        assert Path(record.path).is_relative_to(moved)
        assert record.excluded or Path(record.path).is_file()


def test_cutting_again_makes_only_what_is_not_there(release, prepare, clips):
    paths = sorted(clips.rglob("*.mp4"))
    paths[3].unlink()
    paths[5].write_bytes(paths[5].read_bytes()[:100])
    times = {path: path.stat().st_mtime_ns for path in paths if path.exists()}
    index = (clips / "index.json").read_text()
    prepare(release, clips, "--cut")
    assert sorted(clips.rglob("*.mp4")) == paths
    assert (clips / "index.json").read_text() == index
    changed = [path for path in times if path.stat().st_mtime_ns != times[path]]
    assert changed == [paths[5]]


def test_clips_of_other_frames_do_not_replace_those_of_an_index_written_before(
    release, prepare, clips
):
    before = {path: path.read_bytes() for path in clips.rglob("*.mp4")}
    index = (clips / "index.json").read_text()
    prepare(release, clips, "--cut", "--authors-shift")
    assert {path: path.read_bytes() for path in before} == before
    record = records_of(clips, "train")[0]
    with VideoReader(record.path) as reader:
        assert number_in(reader.read([0])[0]) == 194
    prepare(release, clips, "--cut")
    assert (clips / "index.json").read_text() == index
    for path in set(clips.rglob("*.mp4")) - set(before):
        path.unlink()


def test_what_cannot_be_cut_is_excluded_with_its_reason(release, prepare, tmp_path, monkeypatch):
    def breaks_off(clips, index_dir, workers):
        for clip in clips:
            broken = clip.start == 453
            yield clip, DecodeError(clip.source, "breaks off") if broken else clip.stop - clip.start

    monkeypatch.setattr("vmp.data.release.cut_all", breaks_off)
    excluded = excluded_of(records_of(prepare(release, tmp_path / "out", "--cut"), "train"))
    assert excluded[3] == "unreadable: breaks off"
    assert [number for number, why in excluded.items() if why] == [3, 23, 24]


# --------------------------------------------------------------------------- a run
@pytest.mark.parametrize("root", ["prepared", "clips"])
def test_a_run_trains_and_tells_how_many_of_the_official_records_it_evaluated(
    root, request, tmp_path
):
    values = {
        "DATA.PATH_TO_DATA_DIR": request.getfixturevalue(root),
        "MODEL.NAME": "x3d",
        "X3D.WIDTH_FACTOR": 1.0,
        "X3D.DEPTH_FACTOR": 1.0,
        "DATA.NUM_FRAMES": 4,
        "DATA.SAMPLING_RATE": 2,
        "DATA.TRAIN_JITTER_SCALES": [32, 36],
        "DATA.TRAIN_CROP_SIZE": 32,
        "DATA.TEST_CROP_SIZE": 32,
        "DATA_LOADER.NUM_WORKERS": 0,
        "TRAIN.BATCH_SIZE": 4,
        "TRAIN.EVAL_PERIOD": 0,
        "TEST.BATCH_SIZE": 4,
        "TEST.NUM_ENSEMBLE_VIEWS": 2,
        "TEST.NUM_SPATIAL_CROPS": 1,
        "SOLVER.MAX_EPOCH": 2,
        "PROMPT.ENABLE": True,
        "LOG_PERIOD": 1,
        "TENSORBOARD": False,
        "OUTPUT_DIR": tmp_path / "run",
    }
    recipe = ROOT / "configs" / "base" / "MPIICooking2.yaml"
    cfg = load_cfg(recipe, [str(text) for pair in values.items() for text in pair])
    assert len(NAMES) == cfg.MODEL.NUM_CLASSES
    engine.run(cfg)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    trained = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    assert len(trained) == 4  # 8 usable records in batches of 4, twice
    assert all(np.isfinite(line["loss"]) for line in trained)
    results = json.loads((tmp_path / "run" / "test_results.json").read_text())
    counts = results["counts"]
    assert counts["videos"] == 7
    assert counts["evaluated_videos"] == 4
    assert counts["evaluated_views"] == 8


# --------------------------------------------------------------------------- real lists
@pytest.mark.data
def test_the_names_are_those_of_the_release(shared):
    path = shared / "data" / "annotations" / "mpii_cooking2_classes.json"
    classes = json.loads(path.read_text())["classes"]
    assert tuple(entry["name"] for entry in classes) == NAMES
    assert [entry["index"] for entry in classes] == list(range(67))


@pytest.mark.data
def test_the_real_split_lists_have_the_official_numbers(shared, script, tmp_path):
    path = shared / "data" / "annotations" / "mpii_cooking2_splits_reconstructed.json"
    lists = json.loads(path.read_text())
    keys = {"train": "train_inferred_201", "val": "val_17", "test": "test_42"}
    files = {
        script.SPLIT_FILES[split]: "".join(f"{name}\n" for name in lists[key])
        for split, key in keys.items()
    }
    write_setup(tmp_path / "experimentalSetup", files)
    setup = script.read_setup(tmp_path / "experimentalSetup")
    assert {split: len(names) for split, names in setup.items()} == {
        "train": 201,
        "val": 17,
        "test": 42,
    }
    assert setup["train"][0] == "s07-d72"
    assert setup["test"][0] == "s22-d23"
    unused = set(lists["all_273"]) - {name for names in setup.values() for name in names}
    assert unused == set(lists["unused_13"])
