import os
import threading
import time

import pytest

from vmp.utils.threads import run_in_time


def test_results_and_errors_come_back_and_one_thread_serves_all_calls():
    assert run_in_time(lambda: 3, 5.0) == 3
    names = {run_in_time(lambda: threading.current_thread().ident, 5.0) for _ in range(5)}
    assert len(names) == 1
    assert names != {threading.current_thread().ident}
    with pytest.raises(KeyError, match="x"):
        run_in_time(lambda: {}["x"], 5.0)


def test_what_never_comes_back_is_left_and_the_next_call_is_served():
    release = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer in 0\.05 s"):
        run_in_time(release.wait, 0.05)
    assert run_in_time(lambda: 4, 5.0) == 4
    release.set()


def test_a_helper_ends_with_the_thread_it_serves():
    before = threading.active_count()
    callers = [threading.Thread(target=run_in_time, args=(int, 5.0)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_forked_process_gets_its_own():
    run_in_time(int, 5.0)
    child = os.fork()
    if child == 0:
        try:
            os._exit(run_in_time(lambda: 7, 5.0))
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
