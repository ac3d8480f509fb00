"""How command lines end."""

import logging
import os
import subprocess
import sys

import pytest
from torch.multiprocessing.spawn import ProcessRaisedException

from tests.conftest import ROOT
from vmp.utils.cli import run_cli
from vmp.utils.signals import EXIT_AGAIN


def test_what_a_user_got_wrong_is_one_line():
    def main():
        raise ValueError("the value, the rule, the way out")

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code == "error: the value, the rule, the way out"


def test_an_error_of_a_worker_or_process_is_its_last_line():
    def worker():
        raise ValueError(
            "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  File x\n"
            "ValueError: a.mp4: the clip needs 9 frames\n"
        )

    with pytest.raises(SystemExit) as caught:
        run_cli(worker)
    assert caught.value.code == "error: a.mp4: the clip needs 9 frames"

    def process():
        text = "\n\n-- Process 1 terminated:\nTraceback\nvmp.x.NonFiniteLossError: step 3\n"
        raise ProcessRaisedException(text, 1, 4711)

    with pytest.raises(SystemExit) as caught:
        run_cli(process)
    assert caught.value.code == "error: process 1: step 3"


def test_a_full_disk_is_one_line():
    def main():
        raise OSError(28, "No space left on device", "runs/a")

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code == "error: [Errno 28] No space left on device: 'runs/a'"


def raise_ours():
    raise ZeroDivisionError("division by zero")


@pytest.fixture(autouse=True)
def _no_debug(monkeypatch):
    """Start without the word, the variable and another test's log, and leave none behind."""
    monkeypatch.setattr(logging.getLogger("vmp"), "handlers", [])
    monkeypatch.setattr(sys, "argv", ["tool.py"])
    monkeypatch.setenv("VMP_DEBUG", "0")


def test_an_error_that_nobody_foresaw_is_one_line_that_says_how_to_see_the_traceback():
    with pytest.raises(SystemExit) as caught:
        run_cli(raise_ours)
    assert caught.value.code == (
        "error: ZeroDivisionError: division by zero; run again with --debug for the traceback"
    )


def test_an_error_without_words_is_told_by_its_type():
    def main():
        raise AssertionError

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code == "error: AssertionError; run again with --debug for the traceback"


def test_a_long_message_of_many_lines_is_one_line():
    def main():
        raise RuntimeError("Error(s) in loading:\n\tMissing key" + "\n  frame #1: x" * 100)

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code.startswith("error: RuntimeError: Error(s) in loading: Missing key")
    assert "\n" not in caught.value.code
    assert len(caught.value.code) < 600


def test_the_file_that_has_the_traceback_is_named(tmp_path, monkeypatch):
    log = logging.getLogger("vmp")
    handler = logging.FileHandler(tmp_path / "log.txt")
    monkeypatch.setattr(log, "handlers", [handler])
    with pytest.raises(SystemExit, match=f"{tmp_path}/log.txt has the traceback"):
        run_cli(raise_ours)
    handler.close()


def test_an_error_of_a_process_that_nobody_foresaw_is_one_line():
    def main():
        text = "\n\n-- Process 1 terminated:\nTraceback\nZeroDivisionError: division by zero\n"
        raise ProcessRaisedException(text, 1, 4711)

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code.startswith("error: ZeroDivisionError: process 1: division by zero; ")


@pytest.mark.parametrize("words", [["--debug", "a", "b"], ["a", "--debug", "b"], ["a", "b"]])
def test_debug_shows_the_traceback_of_any_error_and_the_tool_does_not_see_the_word(
    words, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["tool.py", *words])
    monkeypatch.setenv("VMP_DEBUG", "" if "--debug" in words else "1")
    seen = []

    def main():
        seen.extend(sys.argv)
        raise ValueError("a value")

    with pytest.raises(ValueError, match="a value"):
        run_cli(main)
    assert seen == ["tool.py", "a", "b"]
    assert os.environ["VMP_DEBUG"] == "1"  # for what the tool starts


def test_a_tool_shows_a_traceback_only_where_it_is_asked_for():
    tool = str(ROOT / "tools" / "run_net.py")
    command = [sys.executable, tool, "--cfg", "nowhere.yaml"]
    plain = subprocess.run(command, capture_output=True, text=True)
    asked = subprocess.run([*command, "--debug"], capture_output=True, text=True)
    assert (plain.returncode, asked.returncode) == (1, 1)
    assert len(plain.stderr.splitlines()) == 1
    assert "Traceback" in asked.stderr
    assert "nowhere.yaml" in asked.stderr


def test_success_returns():
    run_cli(lambda: None)


LATE = """
import os, signal
from vmp.utils import signals
signals.install("SIGTERM")
from vmp.utils.cli import run_cli

class Late:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGTERM):
        kill(process, number)

late = Late()  # goes after Python has given up the handlers

def main():
    raise signals.Interrupted("all is saved")

run_cli(main)
"""


def test_a_run_that_is_saved_ends_with_75_whatever_signal_comes_while_it_leaves():
    assert subprocess.run([sys.executable, "-c", LATE]).returncode == EXIT_AGAIN
