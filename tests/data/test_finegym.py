"""FineGym, from the official release to records: the right frames, and nothing lost in silence."""

import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import pytest

from tests.conftest import load_module
from tests.data.conftest import number_in, write_video
from tests.data.miniature_finegym import (
    ANNOTATION,
    DASH,
    DASHES,
    GONE,
    GYM99,
    GYM288,
    LEADING,
    NAMES,
    NULL,
    PLAIN,
    TIMES,
    TRICKY,
    UNDERSCORE,
    UNKNOWN,
    VIDEOS,
    write_release,
)
from tests.engine.conftest import BASE, MODELS, results_of
from vmp import engine
from vmp.config import load_cfg
from vmp.data import VideoReader, frame_index
from vmp.data import cut as cutting
from vmp.data import finegym as module
from vmp.data.archive import DecodeError
from vmp.data.finegym import class_names, finegym
from vmp.data.release import FRAME_INDEX_FOLDER

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "datasets" / "finegym" / "prepare.py"
JSON_NAME = "finegym_annotation_info_v1.1.json"
SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def script():
    yield from load_module("finegym_prepare", SCRIPT)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("finegym"))


@pytest.fixture
def copy(release, tmp_path):
    """A release that a test may change."""
    return shutil.copytree(release, tmp_path / "release")


def arguments(release, out, *more):
    folders = ["--videos", release / "videos", "--annotations", release / "annotations"]
    given = [*folders, "--out", out, "--any-count", "--workers", 1, *more]
    return [str(each) for each in given]


def run(script, release, out, *more):
    """Run the script in this process and return what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        script.main(arguments(release, out, *more))
    return printed.getvalue()


@pytest.fixture(scope="module")
def prepared(script, release, tmp_path_factory):
    """(folder, what was printed)."""
    out = tmp_path_factory.mktemp("prepared") / "finegym"
    return out, run(script, release, out)


@pytest.fixture(scope="module")
def with_clips(script, release, tmp_path_factory):
    out = tmp_path_factory.mktemp("clips") / "finegym"
    return out, run(script, release, out, "--cut")


def by_id(root, variant="gym99"):
    records = [each for split in SPLITS for each in finegym(str(root), split, variant)]
    return {record.id: record for record in records}


def read_numbers(record):
    """Read all frames of a record and return the numbers coded in their pixels."""
    with VideoReader(record.path) as reader:
        stop = len(reader) if record.stop is None else record.stop
        return [number_in(frame) for frame in reader.read(range(record.start, stop))]


@pytest.fixture(scope="module")
def shown(release):
    """Id -> (time, number in the pixels) of every frame, decoded from end to end by PyAV alone."""
    found = {}
    for video in VIDEOS:
        with av.open(str(release / "videos" / video.name)) as container:
            found[video.name[:11]] = [
                (frame.time, number_in(frame.to_ndarray(format="rgb24")))
                for frame in container.decode(video=0)
            ]
    return found


USABLE = [
    name
    for name, (begin, _) in TIMES.items()
    if not name.startswith(GONE) and (name[:11] != DASH or begin < 6)
]


# --------------------------------------------------------------------------- frames
@pytest.mark.parametrize("name", USABLE)
def test_the_frames_read_are_exactly_those_shown_from_start_to_end(prepared, shown, name):
    begin, end = TIMES[name]
    # a frame that is due less than a millisecond before a time counts as due then
    expected = [number for time, number in shown[name[:11]] if begin <= time + 1e-3 < end]
    if name == f"{LEADING}_E_000001_000003_A_0000_0000":
        assert expected == []  # between two frames: the next one is taken
        expected = [30]
    numbers = read_numbers(by_id(prepared[0])[name])
    assert numbers == expected
    assert numbers


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        # all three stages of the vault, not its first one
        (f"{PLAIN}_E_000001_000007_A_0000_0005", 26, 149),
        # the same vault, annotated once more
        (f"{PLAIN}_E_000002_000007_A_0000_0004", 51, 149),
        # 0.04 s are one frame
        (f"{PLAIN}_E_000007_000009_A_0000_0000", 189, 189),
        (f"{LEADING}_E_000001_000003_A_0001_0001", 49, 49),
        # to the end, 0.28 s after that of its event at 9.0 s, frame 225
        (f"{PLAIN}_E_000007_000009_A_0001_0002", 206, 231),
        # its name says seconds 21 to 21
        (f"{UNDERSCORE}_E_000002_000025_A_0021_0021", 580, 589),
        # 29.97 frames a second
        (f"{DASHES}_E_000000_000009_A_0000_0001", 19, 56),
        # it ends 0.6 s after its video
        (f"{DASH}_E_000001_000005_A_0003_0005", 110, 149),
    ],
)
def test_an_odd_instance_has_the_frames_worked_out_by_hand(prepared, name, first, last):
    record = by_id(prepared[0])[name]
    assert (record.start, record.stop) == (first, last + 1)
    assert read_numbers(record) == list(range(first, last + 1))


def test_every_kind_of_name_and_container_is_found(prepared, release):
    found = {Path(record.path) for record in by_id(prepared[0]).values() if not record.excluded}
    assert found == {release / "videos" / video.name for video in VIDEOS}
    assert {path.suffix for path in found} == {".mp4", ".mkv", ".webm", ".MP4", ".MKV"}


def test_records_are_the_lists_in_their_order_whether_usable_or_not(prepared):
    for variant, lists in (("gym99", GYM99), ("gym288", GYM288)):
        for split in SPLITS:
            records = finegym(str(prepared[0]), split, variant)
            assert [(each.id, each.label) for each in records] == list(lists[split].items())


def test_the_two_sets_share_instances_and_are_not_nested(prepared):
    ids = {(v, s): {each.id for each in finegym(str(prepared[0]), s, v)}
           for v in module.VARIANTS for s in SPLITS}  # fmt: skip
    assert ids["gym99", "test"] & ids["gym288", "train"]
    assert ids["gym99", "train"] & ids["gym288", "test"]
    shared = by_id(prepared[0]).keys() & by_id(prepared[0], "gym288").keys()
    gym99, gym288 = by_id(prepared[0]), by_id(prepared[0], "gym288")
    assert all(gym99[name][2:] == gym288[name][2:] for name in shared)


def test_an_event_may_have_instances_in_both_lists(prepared):
    sides = [
        {each.id for each in finegym(str(prepared[0]), split) if each.id.startswith(DASHES)}
        for split in SPLITS
    ]
    assert [len(side) for side in sides] == [1, 1]
    assert len({name[:25] for side in sides for name in side}) == 1


def test_what_was_found_about_long_videos_is_kept_and_not_found_again(
    script, release, prepared, tmp_path, monkeypatch
):
    kept = list((prepared[0] / FRAME_INDEX_FOLDER).iterdir())
    assert len(kept) == 1  # of the one with more than 1,024 frames
    shutil.copytree(prepared[0], tmp_path / "again")
    frame_index._indexes.clear()
    made = []
    make = frame_index.make_index
    monkeypatch.setattr(
        frame_index,
        "make_index",
        lambda source, *args: made.append(source.path) or make(source, *args),
    )
    run(script, release, tmp_path / "again")
    assert {Path(path).name for path in made} == {
        video.name for video in VIDEOS if video.num_frames < 1024
    }
    assert by_id(tmp_path / "again") == by_id(prepared[0])


# --------------------------------------------------------------------------- what can't be used
def test_what_cannot_be_used_stays_in_with_its_reason(prepared):
    excluded = {r.id: r.excluded for r in by_id(prepared[0]).values() if r.excluded}
    assert excluded.keys() == TIMES.keys() - set(USABLE) | {UNKNOWN, NULL}
    assert excluded[f"{GONE}_E_000100_000130_A_0000_0001"] == "absent"
    assert excluded[f"{GONE}_E_000100_000130_A_0004_0005"] == "absent"
    assert excluded[UNKNOWN] == excluded[NULL] == "not in the annotation"
    assert excluded[f"{DASH}_E_042204_042244_A_0000_0001"] == (
        "out of range: it begins at 42204.48 s, when with-hyphen.webm has ended, after 150 frames"
    )
    assert excluded[f"{DASH}_E_000007_000008_A_0000_0000"].startswith("out of range: ")


def test_the_report_counts_what_is_lost_and_names_what_is_cut_short(prepared):
    out, printed = prepared
    table = [
        "gym99 train  9 of 11 usable, 1 absent (1 video), 0 unreadable (0 videos), "
        "0 out of range, 1 not in the annotation",
        "gym99 test   6 of 10 usable, 1 absent (1 video), 0 unreadable (0 videos), "
        "2 out of range, 1 not in the annotation",
        "gym288 train 2 of 3 usable, 1 absent (1 video), 0 unreadable (0 videos), "
        "0 out of range, 0 not in the annotation",
        "gym288 test  2 of 2 usable, 0 absent (0 videos), 0 unreadable (0 videos), "
        "0 out of range, 0 not in the annotation",
    ]
    lines = (out / "report.txt").read_text().splitlines()
    assert lines[:4] == table
    assert sorted(lines[5:]) == sorted(
        [
            f"{UNKNOWN}: not in the annotation",
            f"{NULL}: not in the annotation",
            f"{DASH}_E_000001_000005_A_0003_0005: cut short, it ends at 6.60 s, when "
            f"with-hyphen.webm has ended, after 150 frames",
            f"{DASH}_E_000007_000008_A_0000_0000: out of range: it begins at 7.00 s, when "
            f"with-hyphen.webm has ended, after 150 frames",
            f"{DASH}_E_042204_042244_A_0000_0001: out of range: it begins at 42204.48 s, when "
            f"with-hyphen.webm has ended, after 150 frames",
        ]
    )
    assert "\n".join(table) in printed
    assert all(line in printed for line in lines)


def test_missing_txt_names_the_absent_videos_and_what_each_costs(prepared):
    assert (prepared[0] / "missing.txt").read_text().splitlines() == [
        "# video\tgym99/train\tgym99/test\tgym288/train\tgym288/test",
        f"{GONE}\t1\t1\t1\t0",
    ]


def test_an_instance_that_ends_with_the_last_frame_is_not_cut_short(prepared):
    # 2.4 s at 25 frames a second are the 60 frames of the video
    name = f"{TRICKY}_E_000000_000002_A_0001_0002"
    assert by_id(prepared[0])[name][2:4] == (25, 60)
    assert name not in (prepared[0] / "report.txt").read_text()


def test_a_video_that_does_not_decode_is_told_apart_from_an_absent_one(script, copy, tmp_path):
    (copy / "videos" / f"{DASHES}.mkv").write_bytes(b"<html>no video here</html>")
    run(script, copy, tmp_path / "out")
    record = by_id(tmp_path / "out")[f"{DASHES}_E_000000_000009_A_0000_0001"]
    assert record.excluded.startswith("unreadable: ")
    report = (tmp_path / "out" / "report.txt").read_text()
    assert "8 of 11 usable, 1 absent (1 video), 1 unreadable (1 video)" in report
    assert report.count(f"{DASHES}.mkv: unreadable: ") == 1  # once, not for each instance
    assert DASHES not in (tmp_path / "out" / "missing.txt").read_text()


def test_of_many_remarks_the_first_are_shown_and_all_are_kept(script, copy, tmp_path):
    path = copy / "annotations" / JSON_NAME
    path.write_text(json.dumps(ANNOTATION | {PLAIN: {}, LEADING: {}, DASH: {}, UNDERSCORE: {}}))
    script.SHOWN, before = 3, script.SHOWN
    printed = run(script, copy, tmp_path / "out")
    script.SHOWN = before
    assert printed.count(": not in the annotation") == 3
    report = (tmp_path / "out" / "report.txt").read_text()
    lost = report.count(": not in the annotation")
    # an instance that two sets share is named once
    assert lost == sum(each[:11] in (PLAIN, LEADING, DASH, UNDERSCORE)
                       for each in {*GYM99["train"], *GYM99["test"]})  # fmt: skip
    assert f"... and {lost - 3} more" in printed


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"timestamps": []}, "its time stamps are broken"),
        ({"segments": {"A_0000_0001": {"stages": 1, "timestamps": []}}}, "time stamps are broken"),
        (
            {"segments": {"A_0000_0001": {"stages": 1, "timestamps": [[1.3, 0.01]]}}},
            "it ends at 0.61 s, before it begins at 1.90 s",
        ),
    ],
)
def test_broken_time_stamps_cost_one_instance(script, event, reason):
    element = script.Element(DASHES, "E_000000_000009", "A_0000_0001", 3)
    whole = ANNOTATION[DASHES]["E_000000_000009"]
    told = script.times_of({DASHES: {"E_000000_000009": whole | event}}, element)
    assert told.startswith("not in the annotation: ")
    assert reason in told


# --------------------------------------------------------------------------- the official files
@pytest.mark.parametrize("video", [PLAIN, DASH, DASHES, LEADING, UNDERSCORE, TRICKY, "__________-"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_an_id_is_split_by_position(script, tmp_path, video, ending):
    path = tmp_path / "list.txt"
    lines = [f"{video}_E_042204_042244_A_0021_0021 98", f"{video}_E_000001_000002_A_0000_0001 0"]
    path.write_bytes((ending or "\n").join(lines).encode() + ending.encode())
    first, second = script.read_elements(path)
    assert first == (video, "E_042204_042244", "A_0021_0021", 98)
    assert second.id == f"{video}_E_000001_000002_A_0000_0001"


@pytest.mark.parametrize(
    "line",
    [
        "short_E_000001_000002_A_0000_0001 0",
        f"{PLAIN}_E_000001_000002 0",
        f"{PLAIN}_E_000001_000002_A_0000_0001",
        f"{PLAIN}_E_000001_000002_A_0000_0001 walk",
        "<html>",
    ],
)
def test_a_line_of_another_kind_is_named(script, tmp_path, line):
    path = tmp_path / "list.txt"
    path.write_text(f"{PLAIN}_E_000001_000002_A_0000_0001 0\n{line}\n")
    with pytest.raises(ValueError, match=r"list\.txt:2: .* is not `<id> <label>`"):
        script.read_elements(path)


def test_an_id_that_comes_twice_is_refused(script, tmp_path):
    (tmp_path / "list.txt").write_text(f"{PLAIN}_E_000001_000002_A_0000_0001 0\n" * 2)
    with pytest.raises(ValueError, match=r"list\.txt:2: .* comes twice"):
        script.read_elements(tmp_path / "list.txt")


def test_class_names_are_trimmed_and_told_apart_by_their_set(prepared):
    root = str(prepared[0])
    assert class_names(root) == class_names(root, "gym99") == NAMES
    assert class_names(root, "gym288") == (*NAMES, "(UB) swing once more")


def test_names_alike_in_one_set_are_told_apart_all_the_same(script, tmp_path):
    lines = [f"Clabel: {i}; set:  1; Glabel: {7 + i}; (VT) jump\n" for i in range(2)]
    (tmp_path / "names.txt").write_text("".join(lines))
    assert script.read_categories(tmp_path / "names.txt") == [
        "(VT) jump (set 1, Glabel 7)",
        "(VT) jump (set 1, Glabel 8)",
    ]


@pytest.mark.parametrize("line", ["Clabel:   2; set:  1; Glabel:   1; (VT) jump", "(VT) jump"])
def test_categories_must_count_from_zero(script, tmp_path, line):
    (tmp_path / "names.txt").write_text(f"Clabel:   0; set:  1; Glabel:   1; (VT) a\n{line}\n")
    with pytest.raises(ValueError, match=r"names\.txt:2: .* is not `Clabel: 1; set"):
        script.read_categories(tmp_path / "names.txt")


def strict(release, out):
    return [each for each in arguments(release, out) if each != "--any-count"]


def test_counts_other_than_the_official_ones_are_refused(script, release, tmp_path):
    with pytest.raises(ValueError, match=r"v1\.1\.txt has 11 lines, the official file 26,320; .*"):
        script.main(strict(release, tmp_path))


@pytest.mark.parametrize(
    ("file", "count", "official"),
    [("val_element", 10, "8,521"), ("categories", 5, "99")],
)
def test_each_count_is_checked(script, release, tmp_path, monkeypatch, file, count, official):
    right = {"train": 11, "test": 10, "classes": 5}
    wrong = {"val_element": {"test": 8_521}, "categories": {"classes": 99}}[file]
    counts = script.SETS["gym99"]._replace(**(right | wrong))
    monkeypatch.setitem(script.SETS, "gym99", counts)
    with pytest.raises(ValueError, match=rf"{file}\.txt has {count} lines, .* file {official};"):
        script.read_set(release / "annotations", "gym99", any_count=False)


def test_a_training_list_of_v1_0_is_refused_and_explained(script, copy, tmp_path, monkeypatch):
    old = script.SETS["gym99"]._replace(old_train=11)
    assert (script.SETS["gym99"].old_train, script.SETS["gym288"].old_train) == (20_484, 22_671)
    monkeypatch.setitem(script.SETS, "gym99", old)
    with pytest.raises(ValueError, match=r"instances of v1\.0; the paper uses v1\.1, .* 26,320"):
        run(script, copy, tmp_path / "out")

    folder = copy / "annotations"
    for name in ("gym99_train_element_v{}.txt", "finegym_annotation_info_v{}.json"):
        (folder / name.format("1.1")).rename(folder / name.format("1.0"))
    told = r"\.json, gym99_train_element_v1\.0\.txt will not do: the paper uses v1\.1\)"
    with pytest.raises(ValueError, match=rf"lacks .*_v1\.1\.json, .*v1\.1\.txt \(.*_v1\.0{told}"):
        run(script, copy, tmp_path / "out")


def test_the_files_wanted_are_named(script, tmp_path):
    (tmp_path / "annotations").mkdir()
    with pytest.raises(ValueError, match="see datasets/finegym/README.md") as error:
        run(script, tmp_path, tmp_path / "out")
    for name in (JSON_NAME, "gym99_train_element_v1.1.txt", "gym99_val_element.txt",
                 "gym99_categories.txt"):  # fmt: skip
        assert name in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_set_without_lists_is_left_out_unless_it_is_asked_for(script, copy, tmp_path):
    for path in (copy / "annotations").glob("gym288*"):
        path.unlink()
    run(script, copy, tmp_path / "out")
    assert len(finegym(str(tmp_path / "out"), "train")) == 11
    with pytest.raises(ValueError, match="'gym288' has no train records .* there are: gym99"):
        finegym(str(tmp_path / "out"), "train", "gym288")
    with pytest.raises(ValueError, match="lacks gym288_train_element_v1.1.txt, "):
        run(script, copy, tmp_path / "out", "--sets", "gym99", "gym288")


def test_only_the_sets_asked_for_are_prepared(script, release, tmp_path):
    run(script, release, tmp_path / "out", "--sets", "gym288")
    assert len(finegym(str(tmp_path / "out"), "test", "gym288")) == 2
    with pytest.raises(ValueError, match="there are: gym288"):
        finegym(str(tmp_path / "out"), "test")


def test_an_instance_in_both_lists_is_refused(script, copy, tmp_path):
    path = copy / "annotations" / "gym99_val_element.txt"
    path.write_text(path.read_text() + f"\n{UNKNOWN} 2\n")
    with pytest.raises(ValueError, match=f"1 instances are in both lists of gym99, e.g. {UNKNOWN}"):
        run(script, copy, tmp_path / "out")


def test_a_label_without_a_name_is_refused(script, copy, tmp_path):
    path = copy / "annotations" / "gym99_categories.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="has class 4, there are names for 4"):
        run(script, copy, tmp_path / "out")


@pytest.mark.parametrize("text", ["<html>", '{"a": ', "[]"])
def test_an_annotation_that_is_something_else_is_refused(script, copy, tmp_path, text):
    (copy / "annotations" / JSON_NAME).write_text(text)
    with pytest.raises(ValueError, match=rf"{JSON_NAME} is not .*; download it again"):
        run(script, copy, tmp_path / "out")


def test_two_files_of_one_video_are_refused(script, copy, tmp_path):
    shutil.copy(copy / "videos" / f"{PLAIN}.mp4", copy / "videos" / f"{PLAIN}.WebM")
    with pytest.raises(
        ValueError, match=rf"two files of one video: {PLAIN}\.WebM and {PLAIN}\.mp4"
    ):
        run(script, copy, tmp_path / "out")


def test_without_any_video_the_ids_to_get_are_listed(script, release, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="has none of the 7 videos by id"):
        run(script, release, tmp_path / "out", "--videos", tmp_path / "none")
    listed = (tmp_path / "out" / "missing.txt").read_text().splitlines()[1:]
    assert {line[:11] for line in listed} == {name[:11] for name in TIMES}
    assert not (tmp_path / "out" / "index.json").exists()
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        run(script, release, tmp_path / "out", "--videos", tmp_path / "nowhere")


def test_the_command_ends_with_one_line_where_the_user_is_wrong(tmp_path):
    args = ["--videos", tmp_path, "--annotations", tmp_path, "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *args], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path} lacks {JSON_NAME}, ")
    assert done.stderr.count("\n") == 1


def test_workers_are_at_least_one(script, release, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main(arguments(release, tmp_path, "--workers", 0))
    assert "--workers must be at least 1" in capsys.readouterr().err


# --------------------------------------------------------------------------- the loader
def test_gym99_is_the_default(prepared):
    root = str(prepared[0])
    assert finegym(root, "test") == finegym(root, "test", "gym99")
    assert finegym(root, "test") != finegym(root, "test", "gym288")


def test_an_unknown_variant_is_refused(prepared):
    for function in (lambda v: finegym(str(prepared[0]), "train", v),
                     lambda v: class_names(str(prepared[0]), v)):  # fmt: skip
        with pytest.raises(ValueError, match="'gym530' is not known; there are: gym99, gym288"):
            function("gym530")


def test_a_folder_that_was_not_prepared_is_refused(release):
    with pytest.raises(ValueError, match=r"no index.json in .* datasets/finegym/prepare.py"):
        finegym(str(release), "train")


# --------------------------------------------------------------------------- clips
def test_clips_hold_the_frames_that_are_read_from_the_long_videos(prepared, with_clips):
    long, clips = by_id(prepared[0]), by_id(with_clips[0])
    assert clips.keys() == long.keys()
    for name, record in clips.items():
        assert record.excluded == long[name].excluded
        assert record.label == long[name].label
        if not record.excluded:
            assert record[2:4] == (0, long[name].stop - long[name].start)
            assert Path(record.path) == with_clips[0] / "clips" / f"{name}.mp4"
            assert read_numbers(record) == read_numbers(long[name])


def test_an_instance_of_two_sets_is_one_clip_and_nothing_else_is_written(with_clips):
    files = {path.name for path in (with_clips[0] / "clips").iterdir()}
    assert files == {f"{name}.mp4" for name in USABLE}
    assert by_id(with_clips[0], "gym288").keys() == {*GYM288["train"], *GYM288["test"]}


def test_clips_move_with_their_folder(with_clips, tmp_path):
    shutil.copytree(with_clips[0], tmp_path / "moved")
    record = by_id(tmp_path / "moved")[f"{UNDERSCORE}_E_000002_000025_A_0021_0021"]
    assert Path(record.path).parent == tmp_path / "moved" / "clips"
    assert read_numbers(record) == list(range(580, 590))


def test_cutting_goes_on_where_it_was_stopped(script, release, tmp_path, monkeypatch):
    cut, done = cutting.cut, []

    def killed(source, start, stop, out, index_dir):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(out)
        return cut(source, start, stop, out, index_dir)

    with monkeypatch.context() as patch:
        patch.setattr(cutting, "cut", killed)
        with pytest.raises(KeyboardInterrupt):
            run(script, release, tmp_path, "--cut")
    assert not (tmp_path / "index.json").exists()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").iterdir()}
    assert times.keys() == set(done)
    run(script, release, tmp_path, "--cut")
    assert len(list((tmp_path / "clips").iterdir())) == len(USABLE)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_a_clip_that_cannot_be_cut_is_excluded_and_told(script, release, tmp_path, monkeypatch):
    name = f"{DASHES}_E_000000_000009_A_0002_0002"
    cut = cutting.cut

    def failing(source, start, stop, out, index_dir):
        if out.name == f"{name}.mp4":
            raise DecodeError(source, "broken in the middle")
        return cut(source, start, stop, out, index_dir)

    monkeypatch.setattr(cutting, "cut", failing)
    run(script, release, tmp_path, "--cut")
    assert by_id(tmp_path)[name].excluded == "unreadable: broken in the middle"
    report = (tmp_path / "report.txt").read_text()
    assert "gym99 test   5 of 10 usable, 1 absent (1 video), 1 unreadable (1 video)" in report
    assert f"{name}: no clip, " in report


@pytest.mark.slow
def test_several_processes_make_the_same_index_and_clips(script, release, with_clips, tmp_path):
    one, two = with_clips[0], tmp_path / "finegym"
    run(script, release, two, "--cut", "--workers", 2)
    for name in ("index.json", "report.txt", "missing.txt"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    for record in by_id(two).values():
        if not record.excluded:
            here = Path(record.path)
            assert read_numbers(record) == read_numbers(
                record._replace(path=str(one / here.relative_to(two)))
            )


# --------------------------------------------------------------------------- end to end
@pytest.mark.parametrize("source", ["prepared", pytest.param("with_clips", marks=pytest.mark.slow)])
def test_a_model_trains_and_is_tested_and_what_is_absent_counts_as_not_evaluated(
    source, request, tmp_path
):
    root, _ = request.getfixturevalue(source)
    values = BASE | MODELS["x3d"] | {
        "TRAIN.DATASET": "finegym",
        "TRAIN.BATCH_SIZE": 4,
        "DATA.PATH_TO_DATA_DIR": root,
        "DATA.SPLIT": "gym99",
        "MODEL.NUM_CLASSES": 5,
        "SOLVER.MAX_EPOCH": 1,
        "OUTPUT_DIR": tmp_path / "run",
    }  # fmt: skip
    cfg = load_cfg(None, [str(text) for pair in values.items() for text in pair])
    engine.run(cfg)
    results = results_of(cfg)
    assert results["counts"]["videos"] == 10
    assert results["counts"]["evaluated_videos"] == 6
    assert sum(row["count"] for row in results["per_class"]) == 6
    assert {row["name"] for row in results["per_class"]} == set(NAMES)
    excluded = {each.id: each.excluded for each in finegym(str(root), "test") if each.excluded}
    assert {each["id"]: each["reason"] for each in results["not_evaluated"]} == excluded


def test_the_base_config_is_gym99():
    cfg = load_cfg(ROOT / "configs" / "base" / "FineGym.yaml", ["DATA.PATH_TO_DATA_DIR", "x"])
    assert (cfg.TRAIN.DATASET, cfg.DATA.SPLIT, cfg.MODEL.NUM_CLASSES) == ("finegym", "gym99", 99)


# --------------------------------------------------------------------------- the real lists
@pytest.fixture
def real(shared):
    folder = shared / "data" / "annotations" / "finegym"
    if not folder.is_dir():
        pytest.skip(f"no FineGym lists in {folder}")
    return folder


@pytest.mark.data
def test_the_real_gym99_lists_have_the_official_counts(script, real):
    elements, names = script.read_set(real, "gym99", any_count=False)
    train, test = elements["train"], elements["test"]
    assert (len(train), len(test), len(names)) == (26_320, 8_521, 99)
    assert len(set(names)) == 99
    assert names[58] == "(BB) salto backward tucked (set 33)"
    assert names[70] == "(BB) salto backward tucked (set 35)"
    assert names[16] == "(FX) stag jump"
    videos = [{each.video for each in part} for part in (train, test)]
    assert [len(side) for side in videos] == [155, 65]
    assert (len(videos[0] & videos[1]), len(videos[0] | videos[1])) == (40, 180)
    events = [{(each.video, each.event) for each in part} for part in (train, test)]
    assert (len(events[0] | events[1]), len(events[0] & events[1])) == (4_968, 265)
    for part, least, most in ((train, 48, 1_623), (test, 20, 471)):
        sizes = Counter(each.label for each in part)
        assert set(sizes) == set(range(99))
        assert (min(sizes.values()), max(sizes.values())) == (least, most)
        assert sizes[95] == most


@pytest.mark.data
def test_the_real_names_of_both_sets_are_made_distinct(script, real):
    for name, count in (("gym99", 99), ("gym288", 288)):
        names = script.read_categories(real / f"{name}_categories.txt")
        assert len(set(names)) == len(names) == count == script.SETS[name].classes
        assert sum("(set " in each for each in names) == {"gym99": 2, "gym288": 6}[name]
        assert all(each == each.strip() for each in names)


@pytest.mark.data
def test_the_real_time_stamps_agree_with_our_arithmetic(script, shared, tmp_path):
    path = shared / "data/annotations/samples/finegym_v1.1_real_timestamps_derived.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 11
    for row in rows:
        # the annotation from which the rows were derived: times from the start of the event
        start = float(row["Event_start_time"])
        begin, end = (
            round(float(row[key]) - start, 2) for key in ("Subaction_start", "Subaction_end")
        )
        stages = [[begin, end]]
        if row["stages"] == "3":
            stages = [[begin, begin + 1], [begin + 1, end - 1], [end - 1, end]]
        (tmp_path / "list.txt").write_text(f"{row['full_id']} {row['class']}\n")
        (element,) = script.read_elements(tmp_path / "list.txt")
        annotated = {
            "event": int(row["event"]),
            "segments": {element.segment: {"stages": len(stages), "timestamps": stages}},
            "timestamps": [[start, float(row["Event_end_time"])]],
        }
        assert element.video == row["videoname"]
        assert element.label == int(row["class"])
        times = script.times_of({element.video: {element.event: annotated}}, element)
        assert times == pytest.approx(
            (float(row["Subaction_start"]), float(row["Subaction_end"])), abs=1e-6
        )
        # the integers of the name are the same times, truncated
        assert element.event == f"E_{int(start):06d}_{int(float(row['Event_end_time'])):06d}"
        assert element.segment == f"A_{int(begin):04d}_{int(end):04d}"


@pytest.mark.data
def test_the_real_lists_make_a_whole_index_that_says_how_little_is_there(
    script, real, tmp_path, shared
):
    annotations, videos = tmp_path / "annotations", tmp_path / "videos"
    annotations.mkdir()
    videos.mkdir()
    for path in real.glob("gym99*"):
        shutil.copy(path, annotations)
    write_video(videos / "0LtLS9wROrk.mp4", 25)  # one second; its first event is at second 147
    annotation: dict = {}
    for split in SPLITS:
        for element in script.read_elements(real / script.LISTS[split].format("gym99")):
            event = annotation.setdefault(element.video, {}).setdefault(
                element.event,
                {"event": 1, "segments": {}, "timestamps": [[int(element.event[2:8]), 1e6]]},
            )
            begin, end = int(element.segment[2:6]), int(element.segment[7:]) + 0.5
            event["segments"][element.segment] = {"stages": 1, "timestamps": [[begin, end]]}
    (annotations / JSON_NAME).write_text(json.dumps(annotation))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        script.main(["--videos", str(videos), "--annotations", str(annotations),
                     "--out", str(tmp_path / "out"), "--workers", "1"])  # fmt: skip
    for split, count, others in (("train", 26_320, 154), ("test", 8_521, 64)):
        records = finegym(str(tmp_path / "out"), split)
        kinds = Counter(record.excluded.partition(":")[0] for record in records)
        assert kinds["out of range"] == sum(each.id.startswith("0LtLS9w") for each in records) > 0
        assert kinds["absent"] + kinds["out of range"] == len(records) == count
        told = f"{split:<5}  0 of {count:,} usable, {kinds['absent']:,} absent ({others} videos), "
        assert told in printed.getvalue()
    rows = [line.split("\t") for line in (tmp_path / "out/missing.txt").read_text().splitlines()]
    lost = {row[0]: (int(row[1]), int(row[2])) for row in rows[1:]}
    assert len(lost) == 179
    # counted by others in the lists
    known = json.loads(
        (shared / "data/annotations/finegym_known_missing_videos_partial.json").read_text()
    )
    counted = known["gym99_v1.1_instances_affected"]
    assert len(counted) == 16
    assert {v: lost[v] for v in counted} == {v: (c["train"], c["val"]) for v, c in counted.items()}
