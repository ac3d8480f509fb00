import os
import signal
import sys
import time

import pytest

from vmp.utils.processes import Died, work_through

PRELOAD = "vmp.utils.processes"


def double_or_die(number):
    if number % 5 == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def fail(job):
    raise OSError(28, f"no room for {job}")


def leave(job):
    sys.exit(3)


def sleep(seconds):
    time.sleep(seconds)


def test_a_job_that_kills_its_process_is_named_and_the_others_are_done():
    done = dict(work_through(range(12), double_or_die, 2, preload=PRELOAD))
    assert done == {n: Died("SIGKILL") if n in (4, 9) else 2 * n for n in range(12)}


def test_an_error_comes_back_as_it_was_raised():
    with pytest.raises(OSError, match="no room for a"):
        list(work_through(["a"], fail, 1, preload=PRELOAD))
    with pytest.raises(RuntimeError, match="for a ended with status 3"):
        list(work_through(["a"], leave, 1, preload=PRELOAD))


def test_who_stops_asking_does_not_wait_for_what_is_under_way():
    began = time.monotonic()
    jobs = work_through([0, 600, 600], sleep, 2, preload=PRELOAD)
    assert next(jobs) == (0, None)
    jobs.close()
    assert time.monotonic() - began < 300
