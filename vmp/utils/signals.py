"""Being asked to stop: handlers that only set a flag, which the loops look at between two steps.

Nothing but the standard library is imported, so that the handlers can be set before the seconds
that importing torch takes: a batch system may signal as soon as a process is there, and the default
of most signals is to kill.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

# The status of a program that has saved its work and should be run again (EX_TEMPFAIL).
EXIT_AGAIN = 75
DEFAULT = "SIGTERM,SIGUSR1,SIGUSR2"

_installed: list[signal.Signals] = []
_received: list[str] = []


class Interrupted(Exception):  # noqa: N818  (no error: all is saved)
    """The run was asked to stop, has saved its state, and can be started again."""


def install(names: str | None = None) -> None:
    """Take note of signals from now on instead of dying of them. In the main thread only.

    Args:
        names: of the signals, with commas; None is $VMP_STOP_SIGNALS, or DEFAULT without it. ""
            takes none.

    Raises:
        ValueError: a name is no signal's, or one that can't be caught.
    """
    if names is None:
        names = os.environ.get("VMP_STOP_SIGNALS", DEFAULT)
    for name in filter(None, (part.strip() for part in names.split(","))):
        try:
            number = signal.Signals[name.upper()]
            signal.signal(number, _note)
        except (KeyError, OSError, ValueError):
            raise ValueError(
                f"VMP_STOP_SIGNALS names {name!r}; it takes signals that can be caught, with "
                f"commas between, as {DEFAULT}"
            ) from None
        if number not in _installed:
            _installed.append(number)


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number).name)


def stop_requested() -> str:
    """Return the name of the first signal that came, "" if none has."""
    return _received[0] if _received else ""


def forget() -> None:
    """Act as if no signal had come."""
    _received.clear()


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Have processes that start meanwhile ignore the signals.

    A batch system signals every process of a job: a loader's worker that dies of it takes the
    training with it before it can save. Ignoring is inherited, by helper processes too.
    """
    handlers = {number: signal.getsignal(number) for number in _installed}
    for number in handlers:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def ignore() -> None:
    """Ignore the signals in this process: for a worker whose parent handles them."""
    for number in _installed:
        signal.signal(number, signal.SIG_IGN)
