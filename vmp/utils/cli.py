"""How the command lines in tools/ end: what a user got wrong is one line, not a traceback."""

import builtins
import sys
from collections.abc import Callable
from typing import NoReturn

from torch.multiprocessing.spawn import ProcessRaisedException

from vmp.utils import signals

# Errors that are the user's or the data's, not the program's, by name: this layer knows no other.
EXPECTED = ("ValueError", "NonFiniteLossError", "DecodeError", "OSError")


def run_cli(main: Callable[[], object]) -> None:
    """Call `main`; end with status 1 and one line for errors that a user can mend.

    A run that was asked to stop and has saved its state ends with status 75. Errors of processes
    that `main` started count too. Others, which are ours, keep their traceback.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except signals.Interrupted:
        _leave_saved()
    except ProcessRaisedException as error:
        name, message = last_line(f"RuntimeError: {error}")
        if name == signals.Interrupted.__name__:
            _leave_saved()
        # known by its name alone; OSError has subclasses among the built-in ones
        kind = getattr(builtins, name, None)
        if name not in EXPECTED and not (isinstance(kind, type) and issubclass(kind, OSError)):
            raise
        sys.exit(f"error: process {error.error_index}: {message}")
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        if not names & set(EXPECTED):
            raise
        _, message = last_line(f"{type(error).__name__}: {error}")
        sys.exit(f"error: {message}")


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
