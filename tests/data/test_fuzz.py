"""Mutated files cost a sample, never the job, and no frame is given for another one."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.data import fuzz
from vmp.data.decode import VideoReader

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="each case is a forked process with limits"
)


def run_cases(folder, count, seconds):
    """Run the cases 0 to `count` in parallel; return what became of each."""
    commands = [
        [sys.executable, "-m", "tests.data.fuzz", str(folder), "--first", str(first)]
        + ["--step", str(PROCESSES), "--count", str(len(range(first, count, PROCESSES)))]
        + ["--seconds", str(seconds)]
        for first in range(PROCESSES)
    ]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    lines = [line for process in running for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in running] == [0] * PROCESSES
    return [json.loads(line) for line in lines]


def check_cases(folder, count, seconds):
    cases = run_cases(folder, count, seconds)
    bad = [case for case in cases if case["outcome"] in fuzz.BAD]
    assert not bad, "\n".join(json.dumps(case) for case in bad)
    assert sorted(case["case"] for case in cases) == list(range(count)), f"{len(cases)} in time"
    outcomes = Counter(case["outcome"] for case in cases)
    assert min(outcomes["read"], outcomes["refused"]) > count / 5
    assert {case["file"] for case in cases} == {path.name for path in folder.iterdir()}


@pytest.mark.data
def test_mutated_files_are_read_right_or_refused(shared):
    check_cases(shared / "data" / "codecs", 120, 600)


@pytest.mark.slow
@pytest.mark.data
def test_two_thousand_mutated_files_are_read_right_or_refused(shared):
    check_cases(shared / "data" / "codecs", 2000, 1800)


def test_a_case_follows_from_its_number():
    data = random.Random(0).randbytes(5000)
    made = [fuzz.mutate(data, (48, 64), random.Random(number)) for number in (7, 7, 8)]
    assert made[0] == made[1] != made[2]
    assert all(changed != data for changed, _ in made)


# --------------------------------------------------------------------------- the test's own tests
FAULTS = {
    "crashed": lambda *_: os._exit(1),
    "hung": lambda *_: time.sleep(60),
    "raised": lambda *_: {}["nothing"],
    "memory": lambda *_: (np.ones(2**23), ("read", ""))[1],
    "read": lambda *_: ("read", ""),
}


@pytest.mark.parametrize("outcome", FAULTS)
def test_what_a_case_does_is_seen(outcome, monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz, "check", FAULTS[outcome])
    monkeypatch.setattr(fuzz, "HUNG_SECONDS", 0.5 if outcome == "hung" else 60.0)
    monkeypatch.setattr(fuzz, "RESIDENT_BYTES", 2**20 if outcome == "memory" else 2**40)
    assert fuzz.run_case(tmp_path, 0, "pyav")["outcome"] == outcome


def test_more_memory_than_allowed_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz, "check", lambda *_: np.ones(2**27))
    monkeypatch.setattr(fuzz, "ADDRESS_SPACE_BYTES", 2**28)
    case = fuzz.run_case(tmp_path, 0, "pyav")
    assert case["outcome"] == "raised"
    assert "MemoryError" in case["detail"]


@pytest.mark.parametrize("shift", [0, 1])
def test_a_frame_of_another_number_is_seen(shift, make_video, monkeypatch, tmp_path):
    path = make_video(tmp_path / "x.mp4", 20)
    plain = VideoReader.read
    monkeypatch.setattr(
        VideoReader,
        "read",
        lambda self, numbers, **options: plain(
            self, [max(number - shift, 0) for number in numbers], **options
        ),
    )
    outcome, detail = fuzz.check(path, random.Random(0))
    assert outcome == ("wrong" if shift else "read"), detail
