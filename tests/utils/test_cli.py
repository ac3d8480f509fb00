"""How command lines end."""

import subprocess
import sys

import pytest
from torch.multiprocessing.spawn import ProcessRaisedException

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


def test_our_own_errors_keep_their_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_cli(main)


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
