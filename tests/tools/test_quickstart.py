import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.conftest import load_module

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "quickstart.py"


@pytest.fixture(scope="module")
def tool():
    yield from load_module("quickstart", TOOL)


def made_up(top1, top5, prompts=None):
    return {
        "metrics": {"top1": top1, "top5": top5},
        "per_class": [{}] * 8,
        "prompts": prompts or {},
    }


LEARNED = {"0": {"m": 0.1, "n": 0.2, "a": 12.345, "b": 0.0612, "f0": 0.3456}}


def test_the_table_tells_both_results_their_difference_and_what_was_learned(tool):
    lines = tool.table(made_up(61.25, 97.5), made_up(58.75, 98.0, LEARNED)).splitlines()
    assert [line.split() for line in lines] == [
        ["top-1", "top-5", "a", "b", "f(0)"],
        ["X3D_XS", "61.2", "97.5"],
        ["X3D_XS_VMP", "58.8", "98.0", "12.35", "0.061", "0.346"],
        ["difference", "-2.5", "+0.5"],
        ["chance", "12.5", "62.5"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_a_model_at_chance_is_a_failure(tool):
    tool.check_above_chance({"a": made_up(25.0, 70.0), "b": made_up(60.0, 90.0)})
    with pytest.raises(ValueError, match="b reached 24.9 % top-1"):
        tool.check_above_chance({"a": made_up(60.0, 90.0), "b": made_up(24.9, 70.0)})


def test_a_step_that_fails_is_named_with_its_status(tool):
    tool.step("fine", "-c", "pass")
    with pytest.raises(ValueError, match="broken: failed with status 3"):
        tool.step("broken", "-c", "raise SystemExit(3)")


def test_output_is_shown_behind_its_name_and_a_failure_stops_the_other(tool, capsys):
    slow = tool.start(["-c", "import time; print('here', flush=True); time.sleep(60)"], threads=1)
    wrong = tool.start(["-c", "raise SystemExit(3)"], threads=1)
    assert tool.wait_for_all({"slow": slow, "wrong": wrong}) == "wrong"
    assert (slow.returncode, wrong.returncode) == (-signal.SIGTERM, 3)
    fine = tool.start(["-c", "import os; print('threads', os.environ['OMP_NUM_THREADS'])"], 2)
    tool.show("fine", fine)
    assert tool.wait_for_all({"fine": fine}) == ""
    assert "fine       | threads 2\n" in capsys.readouterr().out


def run(out, *arguments):
    return subprocess.run(
        [sys.executable, TOOL, "--out", out, *arguments], capture_output=True, encoding="utf-8"
    )


def test_a_failing_step_ends_the_program_with_one_error_line_of_its_own(tmp_path):
    (tmp_path / "motionshapes_4_2").write_text("a file where the folder should be")
    done = run(tmp_path, "--train", "4", "--test", "2")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: MotionShapes")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_whole_of_it_on_a_few_videos_and_again_on_the_same_ones(tmp_path):
    small = ["--train", "16", "--test", "8", "SOLVER.MAX_EPOCH", "1", "DATA_LOADER.NUM_WORKERS"]
    for workers in ("0", "1"):
        done = run(tmp_path, *small, workers)
        # after one epoch the models are at chance, or by luck above it: the rest is written anyway
        assert done.returncode == 0 or "reached" in done.stderr.splitlines()[-1], done.stderr
        assert "difference" in done.stdout
        assert f"tensorboard --logdir {tmp_path}" in done.stdout
    assert "already there" in done.stdout
    assert imread(tmp_path / "panel.png").shape[1] > 600
    for recipe in ("x3d_xs", "x3d_xs_vmp"):
        results = json.loads((tmp_path / recipe / "test_results.json").read_text("utf-8"))
        assert results["counts"]["evaluated_videos"] == 8
        assert results["counts"]["views_per_video"] > 1
        assert list((tmp_path / recipe / "tensorboard").iterdir())
