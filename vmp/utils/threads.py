"""Work with a time limit, for calls into libraries that may never come back."""

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_local = threading.local()


def run_in_time(work: Callable[[], T], seconds: float) -> T:
    """Return what `work` returns, done in a helper thread of the calling one.

    One helper serves all calls: a thread for each would leave memory scattered over as many arenas.

    Raises:
        TimeoutError: there is no answer after `seconds`. The helper is left to itself, with what it
            holds, and the next call gets another one.
    """
    # a fork copies the variable, not the thread
    if getattr(_local, "pid", None) != os.getpid():
        _local.helper, _local.pid = _Helper(), os.getpid()
    helper: _Helper = _local.helper
    try:
        return helper.do(work, seconds)
    except queue.Empty:
        _local.pid = None
        raise TimeoutError(f"no answer in {seconds:g} s") from None


class _Helper:
    """A daemon thread that does one thing after the other, until this object goes."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_work, args=(self._tasks,), daemon=True).start()

    def do(self, work: Callable[[], T], seconds: float) -> T:
        answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._tasks.put((work, answer))
        result, error = answer.get(timeout=seconds)
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # without an error it is what `work` returns

    def __del__(self) -> None:
        self._tasks.put(None)


def _work(tasks: "queue.SimpleQueue[Any]") -> None:
    while (task := tasks.get()) is not None:
        work, answer = task
        try:
            answer.put((work(), None))
        except BaseException as error:
            answer.put((None, error))
        del task, work, answer  # nothing is held while waiting
