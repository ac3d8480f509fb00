"""`tools/doctor.py dist`: what keeps ranks from working together is found and told in one line."""

import argparse
import json
import os
import re
import socket

import doctor
import doctor_dist
import pytest
import torch.distributed as dist

from tests.engine.test_launch import GENEROUS, environments, run_ranks
from vmp.engine import agreement

HOST = socket.gethostname()
GOOD = {
    "host": "node0",
    "device": "cpu",
    "gpus": [],
    "visible_gpus": "",
    "cores": list(range(8)),
    "all_cores": 8,
    "threads": 2,
    "vmp": "0.1",
    "torch": "2.15",
    "cuda": "13",
    "nccl": "2",
    "python": "3.11",
    "wrong": "",
    "skew_seconds": 0.0,
    "folder": {
        "error": "",
        "unseen": [],
        "seen_seconds": 0.1,
        "write_seconds": 0.002,
        "free_bytes": 10**12,
    },
}


@pytest.fixture
def tool(monkeypatch):
    """The module, with short measurements and short waiting for ranks that are gone."""
    monkeypatch.setattr(doctor_dist, "SIZES", (4, 4096))
    monkeypatch.setattr(doctor_dist, "SECONDS", 0.01)
    for name, seconds in {"BEAT": 0.2, "GRACE": 3.0, "LINGER": 1.0}.items():
        monkeypatch.setattr(agreement, name, seconds)
    return doctor_dist


def make_ranks(*changes):
    return [GOOD | {"rank": rank} | change for rank, change in enumerate(changes)]


def options(tool, folder="", timeout=20.0, as_json=True):
    return tool.Options(str(folder), timeout, as_json, "torchrun")


# ---------------------------------------------------------------- ranks that work together


@pytest.mark.dist
def test_ranks_that_are_well_are_reported_once_with_what_was_measured(tool, tmp_path, capfd):
    outcomes = run_ranks(tool.examine, options(tool, tmp_path / "run"), environments(3))
    assert [each.text for each in outcomes] == ["done"] * 3
    report = json.loads(capfd.readouterr().out)  # one report, of rank 0
    assert report["ok"]
    assert report["problems"] == []
    assert report["backend"] == "gloo"
    assert [each["rank"] for each in report["ranks"]] == [0, 1, 2]
    assert {each["host"] for each in report["ranks"]} == {HOST}
    assert [row["bytes"] for row in report["all_reduce"]] == [4, 4096]
    assert all(row["gb_per_s"] > 0 for row in report["all_reduce"])
    for each in report["ranks"]:
        assert abs(each["skew_seconds"]) < tool.SKEW  # of one clock
        assert each["folder"]["unseen"] == []
        assert each["folder"]["free_bytes"] > 0
    assert list((tmp_path / "run").iterdir()) == []  # nothing is left behind


@pytest.mark.dist
def test_a_rank_that_is_missing_ends_it_in_time_with_its_number(tool, tmp_path, capfd):
    settings = environments(3)[:2]
    outcomes = run_ranks(tool.examine, options(tool, tmp_path), settings, init_timeout=2)
    for outcome in outcomes:
        assert outcome.text.startswith("LostRankError: rank 2 of 3 did not come within ")
        assert outcome.seconds < GENEROUS / 2
    assert capfd.readouterr().out == ""


@pytest.mark.dist
def test_a_rank_with_another_version_is_named(tool, monkeypatch, capfd):
    describe = tool.describe_rank

    def describe_differently(device):
        return describe(device) | ({"torch": "2.9.0"} if dist.get_rank() == 1 else {})

    monkeypatch.setattr(tool, "describe_rank", describe_differently)
    outcomes = run_ranks(tool.examine, options(tool), environments(2))
    for outcome in outcomes:
        assert outcome.text.startswith(f"UnwellError: torch is '2.9.0' on rank 1 ({HOST}), '")
        assert outcome.text.endswith("; start all ranks from the same installation")
    assert not json.loads(capfd.readouterr().out)["ok"]


@pytest.mark.dist
def test_a_rank_that_sees_another_folder_is_named(tool, monkeypatch, tmp_path, capfd):
    try_folder = tool.try_folder

    def try_own_folder(given):
        return try_folder(given._replace(output_dir=str(tmp_path / str(dist.get_rank() == 2))))

    monkeypatch.setattr(tool, "try_folder", try_own_folder)
    outcomes = run_ranks(tool.examine, options(tool, "runs", timeout=3.0), environments(3))
    expected = f"rank 0 ({HOST}) does not see in runs what rank 2 ({HOST}) wrote; give the run a"
    for outcome in outcomes:
        assert outcome.text.startswith(f"UnwellError: {expected}")
        assert outcome.text.endswith("(and 2 more)")
    ranks = json.loads(capfd.readouterr().out)["ranks"]
    assert [each["folder"]["unseen"] for each in ranks] == [[2], [2], [0, 1]]


def test_one_process_alone_has_little_to_say(tool, tmp_path, capsys):
    tool.examine(options(tool, tmp_path))
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["backend"] == "none"
    assert report["all_reduce"] == []
    assert report["ranks"][0]["folder"]["seen_seconds"] < GENEROUS


# ---------------------------------------------------------------- the judgement


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"wrong": "all-reduce gives a wrong sum"}, "rank 1: all-reduce gives a wrong sum; look"),
        ({"skew_seconds": -3.0}, "rank 1: the clock is -3.0 s off that of rank 0; have the hosts"),
        ({"folder": GOOD["folder"] | {"free_bytes": 10}}, "rank 1: 0.00 GB are free in runs; make"),
        (
            {"folder": {"error": "Permission denied (runs)", "unseen": []}},
            "rank 1 can't write to runs: Permission denied (runs); give the run a folder",
        ),
    ],
)
def test_each_problem_names_the_rank_and_what_to_do(tool, change, problem):
    problems, notes = tool.judge(make_ranks({}, change, {}), "runs")
    assert len(problems) == 1
    assert problems[0].startswith(problem)
    assert notes == []
    assert tool.judge(make_ranks({}, {}, {}), "runs") == ([], [])


def test_what_makes_a_run_slow_is_a_note(tool):
    gpus = ({"device": "cuda:0", "gpus": [name], "threads": 8} for name in ("H100", "A100"))
    problems, notes = tool.judge(make_ranks(*gpus), "")
    assert problems == []
    assert notes == [
        "GPU is 'A100' on rank 1, 'H100' on rank 0: the slowest sets the pace",
        "node0: 2 ranks have 16 threads on 8 cores; set OMP_NUM_THREADS 4",
    ]


def test_a_rank_that_is_bound_to_one_core_is_noted(tool):
    bound = ({"cores": [core], "threads": 1} for core in range(2))
    (note,) = tool.judge(make_ranks(*bound), "")[1]  # and no more: each thread has its own core
    assert note.startswith("node0: a rank may use 1 core of 8")


def test_the_table_has_a_line_for_each_rank_and_the_problems_below(tool):
    lost = {"folder": GOOD["folder"] | {"unseen": [0]}, "host": "node1", "visible_gpus": "0,1"}
    ranks = make_ranks({}, lost)
    report = {
        "ok": False,
        "problems": ["rank 1 is odd"],
        "notes": ["it is slow"],
        "backend": "gloo",
        "launcher": "slurm",
        "all_reduce": [{"bytes": 1024, "seconds": 0.002, "gb_per_s": 0.5}],
        "output_dir": "runs",
        "ranks": ranks,
    }
    lines = tool.tell(report)
    assert lines[0] == "2 rank(s) on 2 host(s), started by slurm, backend gloo"
    first, second = (line.split() for line in lines if "node" in line)
    assert first == ["0", "node0", "cpu", "0", "2", "8", "+0.000", "2.0", "0.10", "1000.0"]
    assert second[:5] == ["1", "node1", "cpu", "0", "(0,1)"]
    assert second[-2] == "never"
    assert ["1,024", "2.000", "0.500"] in [line.split() for line in lines]
    assert lines[-3:] == ["note: it is slow", "problem: rank 1 is odd", "1 problem(s)."]
    assert max(map(len, lines)) <= 100


# ---------------------------------------------------------------- the command


def test_the_command_reports_and_ends_with_0(tool, tmp_path, capsys):
    assert doctor.main(["dist", "--gpus", "0", "--output-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "All is well."


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_the_command_says_what_is_wrong_in_one_line_and_ends_with_1(tool, as_json, capsys):
    command = ["dist", "--gpus", "0", "--output-dir", "/proc/none", *as_json]
    assert doctor.main(command) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: rank 0 can't write to /proc/none: ")
    if as_json:
        assert not json.loads(captured.out)["ok"]


def test_ranks_that_cannot_meet_end_it_with_1(tool, capsys, monkeypatch):
    for name, value in environments(2)[0].items():
        monkeypatch.setenv(name, value)
    assert doctor.main(["dist", "--gpus", "0", "--timeout", "1", "--json"]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    # the time to connect is part of it
    assert re.match(r"error: rank 1 of 2 did not come within (1|0\.\d) s", line)
    assert json.loads(captured.out)["problems"][0] in line


@pytest.mark.slow
@pytest.mark.dist
def test_it_starts_processes_of_its_own(tool, tmp_path, capfd):
    arguments = argparse.Namespace(
        processes=2, gpus=None, output_dir=str(tmp_path), timeout=GENEROUS, json=True
    )
    assert tool.check_dist(arguments) == 0
    assert len(json.loads(capfd.readouterr().out)["ranks"]) == 2
    assert "RANK" not in os.environ
