import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import doctor
import doctor_data
import pytest
from doctor_data import advise, between
from matplotlib.figure import Figure
from matplotlib.image import imread

from tests.data.conftest import write_video
from tests.data.test_examine import cut_off, flip_in_frame, lie_about_frames, write_still
from vmp.config import load_cfg
from vmp.data import build_loader
from vmp.data.examine import Journal

TOOL = Path(__file__).resolve().parents[2] / "tools" / "doctor.py"
CONFIG = """
TRAIN: {DATASET: csv, BATCH_SIZE: 2}
TEST: {BATCH_SIZE: 2, NUM_ENSEMBLE_VIEWS: 1, NUM_SPATIAL_CROPS: 1}
MODEL: {NUM_CLASSES: 4}
DATA: {NUM_FRAMES: 4, SAMPLING_RATE: 2, TARGET_FPS: 0.0, TRAIN_CROP_SIZE: 32, TEST_CROP_SIZE: 32,
  TRAIN_JITTER_SCALES: [32, 40]}
DATA_LOADER: {NUM_WORKERS: 0, PIN_MEMORY: False}
"""
TRAIN = """
fine 1.mp4 0
fine 2.mp4 1
gone.mp4 0
text.mp4 1
cut off.mp4 0
lies a little.avi 1
lies.avi 1
still.mp4 0
short.mp4 1
./fine 1.mp4 0
"""
TEST = """
fine 3.mp4 0
fine 1.mp4 0
copy of fine 2.mp4 0
also gone.mp4 2
"""


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    """A data set with one of each fault."""
    root = tmp_path_factory.mktemp("sick")
    for number in (1, 2, 3):
        write_video(root / f"fine {number}.mp4", 20 + number, first=100 * number)
    shutil.copy(root / "fine 2.mp4", root / "copy of fine 2.mp4")
    (root / "text.mp4").write_text("this is a text\n" * 100)
    options = {"g": "10"}
    for name, more in {"lies a little.avi": 2, "lies.avi": 20}.items():
        path = write_video(root / name, 24, codec="mpeg4", options=options, first=len(name))
        lie_about_frames(path, more)
    cut_off(write_video(root / "whole.mp4", 60, first=500), root / "cut off.mp4")
    write_still(root / "still.mp4")
    write_video(root / "short.mp4", 6, first=700)
    (root / "train.csv").write_text(TRAIN)
    (root / "test.csv").write_text(TEST)
    (root / "config.yaml").write_text(CONFIG)
    return root


@pytest.fixture
def healthy(tmp_path, monkeypatch):
    """A data set with no fault: 8 videos to train on, 2 to test.

    It is looked at in this process and nothing is drawn, which is faster.
    """
    record_calls(monkeypatch)
    monkeypatch.setattr(doctor_data, "draw", lambda report, splits: Figure())
    for number in range(10):
        write_video(tmp_path / f"{number}.mp4", 20, first=50 * number)
    lines = [f"{number}.mp4 {number % 4}\n" for number in range(10)]
    (tmp_path / "train.csv").write_text("".join(lines[:8]))
    (tmp_path / "test.csv").write_text("".join(lines[8:]))
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def words(root, *more):
    given = ["data", "--cfg", root / "config.yaml", "DATA.PATH_TO_DATA_DIR", root, *more]
    return [str(word) for word in given]


def audit(root, *more, out=None, speed=False):
    """Run the doctor; return its status and the summary that it has written."""
    out = out or root / "out"
    options = ["--out", out, "--workers", 1, *([] if speed else ["--no-speed"])]
    status = doctor.main(words(root, *more, *options))
    return status, json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def audited(sick):
    return audit(sick)


def found(report, split, kind):
    return [entry["id"] for entry in report["splits"][split]["problems"].get(kind, [])]


# --------------------------------------------------------------------------- what it finds
def test_every_fault_is_found_and_nothing_else(audited):
    _, report = audited
    train = {
        "missing": ["gone.mp4"],
        "unreadable": ["text.mp4"],
        "truncated": ["cut off.mp4", "lies.avi"],
        "still": ["still.mp4"],
        "short": ["short.mp4"],
    }
    problems = report["splits"]["train"]["problems"]
    assert {kind: found(report, "train", kind) for kind in problems} == train
    assert set(report["splits"]["test"]["problems"]) == {"missing"}
    assert found(report, "test", "missing") == ["also gone.mp4"]
    assert report["splits"]["train"]["records"] == 10
    assert report["splits"]["train"]["usable"] == 8


def test_duplicates_and_leaks_are_found_by_content(audited):
    _, report = audited
    duplicates = report["splits"]["train"]["duplicates"]
    assert [(pair["second"], pair["first"]) for pair in duplicates] == [
        ("./fine 1.mp4", "fine 1.mp4")
    ]
    assert report["splits"]["test"]["duplicates"] == []
    leaks = [(pair["second"], pair["first"], pair["labels"]) for pair in report["leaks"]]
    assert leaks == [
        ("fine 1.mp4", "fine 1.mp4", [0, 0]),
        ("copy of fine 2.mp4", "fine 2.mp4", [1, 0]),
    ]


def test_the_text_names_each_fault_and_draws_the_labels(audited, sick):
    text = (sick / "out" / "report.txt").read_text()
    flowing = " ".join(text.split())
    for wanted in (
        "MISSING: 1 in train, 1 in test.",
        "gone.mp4: No such file or directory",
        "UNREADABLE: 1 in train.",
        "lies.avi: the header promises 44 frames, 24 decode",
        "STILL: 1 in train.",
        "short.mp4: a clip reaches over 8 frames, there are 6",
        "DATA.SHORT_CLIP hold repeats the last frame",
        "DUPLICATES in train: 1.",
        "LEAKS: 2.",
        "1 of them with another class.",
        "copy of fine 2.mp4 is fine 2.mp4 (class 1, here 0)",
        "To leave out what can't be read (3)",
        "RECORDS PER CLASS, train (# usable, . not); without a usable one: 2, 3",
        "RECORDS PER CLASS, test (# usable, . not); without a usable one: 1, 2, 3",
    ):
        assert wanted in flowing, wanted
    assert f"    0 0 {'#' * 32}{'.' * 8} 4 of 5\n" in text
    assert f"    2 2 {'':40} 0\n" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_picture_shows_what_is_usable_and_what_is_not(audited, sick):
    picture = imread(sick / "out" / "report.png")
    colours = (picture[..., :3] * 255).round().astype(int).reshape(-1, 3)
    blue, red = (colours == (31, 119, 180)).all(1).sum(), (colours == (214, 39, 40)).all(1).sum()
    assert blue > 2 * red > 0


def test_the_status_and_one_line_tell_that_the_evaluation_set_is_not_whole(audited, sick):
    status, report = audited
    assert status == 1
    assert report["verdict"]["text"] == (
        "The evaluation set is not whole: 1 of 4 records can't be evaluated (1 missing)."
    )
    assert report["verdict"]["text"] in (sick / "out" / "report.txt").read_text()


def test_the_loader_uses_the_quarantine(audited, sick):
    listed = sick / "out" / "quarantine.tsv"
    assert [line.split("\t")[0] for line in listed.read_text().splitlines()] == [
        "gone.mp4",
        "text.mp4",
        "also gone.mp4",
    ]
    options = ["DATA.PATH_TO_DATA_DIR", str(sick), "DATA.QUARANTINE", str(listed)]
    cfg = load_cfg(sick / "config.yaml", options)
    train, test = build_loader(cfg, "train"), build_loader(cfg, "test")
    assert len(train.records) == 8
    assert not [failure for batch in train.epoch(0) for failure in batch.failures]
    batches = list(test.epoch(0))
    assert sum(len(batch.label) for batch in batches) == 3
    failures = [failure for batch in batches for failure in batch.failures]
    assert [failure.reason for failure in failures] == [
        "quarantined: missing: No such file or directory"
    ]


def test_what_is_in_quarantine_is_listed_not_opened_and_stays_in_the_list(
    audited, sick, tmp_path, monkeypatch
):
    out = shutil.copytree(sick / "out", tmp_path / "out")
    listed = out / "quarantine.tsv"
    before = listed.read_text()
    opened = record_calls(monkeypatch)
    status, report = audit(sick, "DATA.QUARANTINE", listed, out=out)
    assert not opened  # the missing ones are not even looked for
    assert status == 1
    assert found(report, "train", "excluded") == ["gone.mp4", "text.mp4"]
    assert report["splits"]["train"]["excluded"] == {"quarantined": 2}
    assert "(1 quarantined)" in report["verdict"]["text"]
    assert listed.read_text() == before


def test_a_flipped_bit_in_the_middle_takes_a_full_look(healthy, capsys):
    path = write_video(healthy / "8.mp4", 60, first=400)
    flip_in_frame(path, 20)
    assert audit(healthy)[0] == 0
    assert "--full decodes them all" in capsys.readouterr().out
    status, report = audit(healthy, "--full")
    assert status == 1
    assert found(report, "test", "broken") == ["8.mp4"]
    assert "every frame decoded" in capsys.readouterr().out
    assert "8.mp4: frames " in (healthy / "out" / "report.txt").read_text()


# --------------------------------------------------------------------------- statuses
def test_losses_in_training_and_short_test_records_leave_the_status_at_0(healthy):
    (healthy / "0.mp4").unlink()
    write_video(healthy / "9.mp4", 3)
    status, report = audit(healthy)
    assert status == 0
    assert found(report, "train", "missing") == ["0.mp4"]
    assert found(report, "test", "short") == ["9.mp4"]
    assert audit(healthy, "DATA.SHORT_CLIP", "error")[0] == 1


def test_a_split_that_is_not_asked_for_is_not_judged(healthy):
    (healthy / "9.mp4").unlink()
    (healthy / "test.csv").unlink()
    status, report = audit(healthy, "--splits", "train")
    assert status == 0
    assert report["verdict"] is None
    assert list(report["splits"]) == ["train"]


def test_a_label_or_a_name_too_many_is_told_not_refused(healthy):
    (healthy / "classes.txt").write_text("a\nb\nc\n")
    (healthy / "test.csv").write_text("8.mp4 0\n9.mp4 4\n")
    status, report = audit(healthy)
    assert status == 1
    assert found(report, "test", "label") == ["9.mp4"]
    assert "data set 'csv' has 3 classes" in report["complaint"]
    assert "CLASSES: MODEL.NUM_CLASSES is 4" in (healthy / "out" / "report.txt").read_text()


@pytest.mark.parametrize(
    "more",
    [["--splits", "val"], ["--workers", "0"], ["--clips-per-second", "0"], ["DATA.NOTHING", "1"]],
)
def test_a_wrong_command_ends_with_status_2(healthy, more, capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main(words(healthy, *more))
    assert ended.value.code == 2
    assert more[0].strip("-") in capsys.readouterr().err


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_options_may_come_before_and_after_the_overrides():
    args = doctor.parse_args(["data", "--workers", "3", "--cfg", "c", "A.B", "1", "--full"])
    assert (args.workers, args.cfg, args.opts, args.full) == (3, "c", ["A.B", "1"], True)


# --------------------------------------------------------------------------- stopped and resumed
def record_calls(monkeypatch, stop_after=None):
    """Look at videos in this process, note which; after some, press Ctrl-C."""
    calls = []

    def look_here(jobs, look, workers):
        for job in jobs:
            if len(calls) == stop_after:
                raise KeyboardInterrupt
            calls.append(Path(job.path).name)
            yield look(job)

    monkeypatch.setattr(doctor_data, "examine_all", look_here)
    return calls


def test_stopped_it_says_how_to_go_on_and_then_does_only_the_rest(healthy, monkeypatch, capsys):
    first = record_calls(monkeypatch, stop_after=4)
    with pytest.raises(SystemExit) as ended:
        audit(healthy)
    assert ended.value.code == 130
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("interrupted; 4 videos are in ")
    assert last.endswith("the same command goes on from there")
    with (healthy / "out" / "videos.jsonl").open("a") as file:
        file.write('{"version": 1, "pa')  # a kill while writing
    rest = record_calls(monkeypatch)
    assert audit(healthy)[0] == 0
    assert "4 of 10 videos are known" in capsys.readouterr().out
    assert sorted(first + rest) == [f"{number}.mp4" for number in range(10)]
    again = record_calls(monkeypatch)
    assert audit(healthy)[0] == 0
    assert not again


def test_a_video_that_came_or_changed_since_is_looked_at_again(healthy, monkeypatch):
    (healthy / "3.mp4").rename(healthy / "hidden")
    assert found(audit(healthy)[1], "train", "missing") == ["3.mp4"]
    (healthy / "hidden").rename(healthy / "3.mp4")
    write_video(healthy / "5.mp4", 30)
    calls = record_calls(monkeypatch)
    assert found(audit(healthy)[1], "train", "missing") == []
    assert calls == ["3.mp4", "5.mp4"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_real_signal_loses_nothing_that_was_done(tmp_path, how):
    source = write_video(tmp_path / "source.mp4", 100)
    for number in range(1500):
        os.link(source, tmp_path / f"{number}.mp4")
    lines = "".join(f"{number}.mp4 0\n" for number in range(1500))
    (tmp_path / "train.csv").write_text(lines)
    (tmp_path / "config.yaml").write_text(CONFIG)
    journal = tmp_path / "out" / "videos.jsonl"
    command = [sys.executable, str(TOOL), *words(tmp_path, "--splits", "train", "--no-speed")]
    command += ["--out", str(tmp_path / "out"), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (journal.is_file() and len(journal.read_bytes().splitlines()) > 20):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
    _, told = process.communicate(timeout=20)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert ("goes on from there" in told) == (how == signal.SIGINT)
    assert "Traceback" not in told
    done = known_paths(journal)
    assert 20 <= len(done) < 1500
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"{len(done):,} of 1,500 videos are known" in shown
    assert len(journal.read_bytes().splitlines()) in (1500, 1501)  # one may have been cut off


def known_paths(path):
    journal = Journal(path)
    journal.close()
    return set(journal.facts)


MEASURED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import doctor
for variant in ("few", "many"):
    status = doctor.main([*sys.argv[2:], "DATA.SPLIT", variant, "--out", f"out/{variant}"])
    print(status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_ten_thousand_records_fit_in_memory(tmp_path):
    source = write_video(tmp_path / "source.mp4", 10)
    lines = [f"{number}.mp4 {number % 4}\n" for number in range(10_000)]
    for number in range(10_000):
        os.link(source, tmp_path / f"{number}.mp4")
    for variant, train, test in (("few", lines[:8], lines[8:10]), ("many", lines, lines[:2000])):
        (tmp_path / variant).mkdir()
        (tmp_path / variant / "train.csv").write_text("".join(train))
        (tmp_path / variant / "test.csv").write_text("".join(test))
    (tmp_path / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "-c", MEASURED, str(TOOL.parent)]
    command += words(tmp_path)[:3] + ["--no-speed", "--workers", "2"]
    command += ["DATA.PATH_TO_DATA_DIR", str(tmp_path)]
    ended = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    lines = [line.split() for line in ended.stdout.splitlines()]
    (_, few), (_, many) = [line for line in lines if len(line) == 2 and line[0] == "0"]
    assert len(known_paths(tmp_path / "out" / "many" / "videos.jsonl")) == 10_000
    assert int(many) - int(few) < 60_000  # KiB


# --------------------------------------------------------------------------- the speed
def test_the_loader_is_timed_and_workers_are_recommended(healthy, monkeypatch, capsys):
    monkeypatch.setattr(doctor_data, "TIMED_CLIPS", 6)
    monkeypatch.setattr(doctor_data, "cores", lambda: 2)
    (healthy / "0.mp4").write_text("no video\n")
    _, report = audit(healthy, "--clips-per-second", "0.001", speed=True)
    speed = report["speed"]
    assert speed["clips"] == 6
    assert 0 < speed["cpu_seconds_per_clip"] < 1
    assert set(speed["clips_per_second"]) == {"1", "2"}
    assert all(rate > 0 for rate in speed["clips_per_second"].values())
    assert "set DATA_LOADER.NUM_WORKERS 1;" in speed["advice"]
    assert speed["advice"] in " ".join(capsys.readouterr().out.split())


def test_where_nothing_can_be_timed_that_is_told_and_the_rest_stands(healthy):
    for number in range(8):
        (healthy / f"{number}.mp4").unlink()
    status, report = audit(healthy, speed=True)
    assert status == 0
    assert "has no train videos" in report["speed"]["failed"]
    assert "SPEED: not measured" in (healthy / "out" / "report.txt").read_text()


def test_the_advice_has_a_reserve_and_does_not_pass_a_guess_for_a_measurement():
    rates = {1: 10.0, 9: 50.0}
    assert [between(rates, workers) for workers in (1, 5, 9)] == [10, 30, 50]
    assert "NUM_WORKERS 1; workers in all: 1, which load 10 clips/s (measured)" in advise(
        rates, 9, 1
    )
    assert "NUM_WORKERS 5; workers in all: 5, which load 30 clips/s (not measured" in advise(
        rates, 27, 1
    )
    assert "NUM_WORKERS 3 for each of 2 processes; workers in all: 5," in advise(rates, 27, 2)
    assert "NUM_WORKERS 9; workers in all: 9, which load 50 clips/s (measured)" in advise(
        rates, 49, 1
    )
    short = advise(rates, 100, 1)
    assert "does not suffice" in short
    assert "50% of the time" in short
    assert "NUM_WORKERS 1;" in advise({1: 10.0}, 5, 1)


# --------------------------------------------------------------------------- other data sets
def test_motion_shapes_are_sound(motionshapes, tmp_path, capsys):
    config = CONFIG.replace("csv", "motionshapes").replace("NUM_CLASSES: 4", "NUM_CLASSES: 8")
    (tmp_path / "config.yaml").write_text(config)
    given = ["data", "--cfg", str(tmp_path / "config.yaml"), "--no-speed", "--full"]
    given += ["DATA.PATH_TO_DATA_DIR", str(motionshapes), "--out", str(tmp_path / "out")]
    assert doctor.main(given) == 0
    shown = capsys.readouterr().out
    assert "The evaluation set is whole: all 16 records can be read." in shown
    assert "not usable" not in shown
    assert "careful" not in shown
    assert "No frames come twice, none of the test is trained on." in shown


def test_videos_in_an_archive_are_looked_at_there(healthy, capsys):
    (healthy / "videos").mkdir()
    for split in ("train", "test"):
        listing = healthy / f"{split}.csv"
        lines = listing.read_text().splitlines()
        listing.write_text("".join(f"videos/{line}\n" for line in lines))
    for number in range(9):
        (healthy / f"{number}.mp4").rename(healthy / "videos" / f"{number}.mp4")
    with tarfile.open(healthy / "videos.tar", "w") as tar:
        tar.add(healthy / "videos", "videos")
    shutil.rmtree(healthy / "videos")
    status, report = audit(healthy)
    assert status == 1
    assert report["videos"]["readable"] == 9
    assert found(report, "test", "missing") == ["videos/9.mp4"]
    assert "videos.tar has no member '9.mp4'" in capsys.readouterr().out
    audit(healthy)
    assert "9 of 10 videos are known" in capsys.readouterr().out


@pytest.mark.data
@pytest.mark.slow
def test_ut_interaction_is_whole_as_published(shared, tmp_path, capsys):
    config = TOOL.parents[1] / "configs" / "UTInteraction" / "X3D_S.yaml"
    root = shared / "data" / "ut_interaction"
    given = ["data", "--cfg", str(config), "DATA.PATH_TO_DATA_DIR", str(root), "--no-speed"]
    assert doctor.main([*given, "--out", str(tmp_path), "--full"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["videos"]["promised_less_decoded"] == {"2": 74, "1": 45, "0": 1}
    assert [split["official"] for split in report["splits"].values()] == [60, 60]
    assert {kind for split in report["splits"].values() for kind in split["problems"]} == {"short"}
    assert "The evaluation set is whole" in capsys.readouterr().out
