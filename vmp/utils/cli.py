"""How the command lines in tools/ end: what a user got wrong is one line, not a traceback."""

import builtins
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from vmp.utils import signals

# Errors that are the user's or the data's, not the program's, by name: this layer knows no other.
EXPECTED = ("ValueError", "NonFiniteLossError", "DecodeError", "OSError")
# torch's for what a process that it started raised, by name: importing torch takes a second.
RAISED_IN_PROCESS = "ProcessRaisedException"


def run_cli(main: Callable[[], object]) -> None:
    """Call `main`; end with status 1 and one line for errors that a user can mend.

    A run that was asked to stop and has saved its state ends with status 75. Errors of processes
    that `main` started count too. Others, which are ours, keep their traceback.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except Exception as error:
        names, message = _describe(error)
        if signals.Interrupted.__name__ in names:
            _leave_saved()
        if not names & set(EXPECTED):
            raise
        sys.exit(f"error: {message}")


def _describe(error: Any) -> tuple[set[str], str]:
    """Return the names of an error's type and of those above it, and its message in one line.

    Of what a process raised they are those of its own error, of which torch brings the text alone:
    the types above are known if Python has them built in.
    """
    names = _names(type(error))
    if RAISED_IN_PROCESS not in names:
        return names, last_line(f"{type(error).__name__}: {error}")[1]
    name, message = last_line(f"RuntimeError: {error}")
    kind = getattr(builtins, name, None)
    names = _names(kind) if isinstance(kind, type) else {name}
    return names, f"process {error.error_index}: {message}"


def _names(kind: type) -> set[str]:
    return {each.__name__ for each in kind.__mro__}


def _leave_saved() -> NoReturn:
    """End with the status that says so, whatever signals still come; the log has said why."""
    signals.ignore()  # Python gives handlers up before it is gone, and a batch system signals again
    sys.exit(signals.EXIT_AGAIN)


def last_line(text: str) -> tuple[str, str]:
    """Return type and message of an error told as `type: message`.

    What a process or a data worker raised comes with its traceback as part of the message; then
    they are those of its last line.
    """
    line = text.strip().splitlines()[-1]
    name, colon, message = line.partition(": ")
    return (name.rpartition(".")[2], message) if colon else ("", line)
