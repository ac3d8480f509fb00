"""How the command lines in tools/ end: what went wrong is one line, a traceback for who asks.

Every tool takes `--debug`, anywhere among its words, or `VMP_DEBUG=1` in the environment; programs
that it starts inherit it.
"""

import builtins
import logging
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from vmp.utils import signals

# Errors that are the user's or the data's, not the program's, by name: this layer knows no other.
EXPECTED = ("ValueError", "NonFiniteLossError", "DecodeError", "OSError")
# torch's for what a process that it started raised, by name: importing torch takes a second.
RAISED_IN_PROCESS = "ProcessRaisedException"
DEBUG_WORD, DEBUG_VARIABLE = "--debug", "VMP_DEBUG"
LONGEST = 500  # characters of an error nobody foresaw; some of torch's fill screens


class Described(NamedTuple):
    """An error in words.

    Attributes:
        kind: the name of its type.
        names: of its type and those above it.
        message: one line.
    """

    kind: str
    names: set[str]
    message: str


def run_cli(main: Callable[[], object]) -> None:
    """Call `main`; end with status 1 and one line for errors, a traceback with `--debug`.

    A run that was asked to stop and has saved its state ends with status 75. Errors of processes
    that `main` started count too. `--debug` is taken out of sys.argv before `main` reads it.
    """
    debug = take_debug()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except Exception as error:
        told = _describe(error)
        if signals.Interrupted.__name__ in told.names:
            _leave_saved()
        if debug:
            raise
        sys.exit(f"error: {_line(told)}")


def take_debug() -> bool:
    """Take `--debug` out of sys.argv, and say whether it or VMP_DEBUG was there; 0 is no."""
    given = DEBUG_WORD in sys.argv[1:]
    if given:
        sys.argv[1:] = [word for word in sys.argv[1:] if word != DEBUG_WORD]
        os.environ[DEBUG_VARIABLE] = "1"  # for the programs that this one starts
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def _line(told: Described) -> str:
    """Return what to say of an error: of one that nobody foresaw its type, and how to learn more.

    A run has then written the traceback to its log.
    """
    if told.names & set(EXPECTED):
        return told.message
    known = f"{told.kind}: {told.message}" if told.message else told.kind
    logs = [
        handler.baseFilename
        for handler in logging.getLogger("vmp").handlers
        if isinstance(handler, logging.FileHandler)
    ]
    where = f"{logs[0]} has the traceback, and {DEBUG_WORD} shows it" if logs else ""
    advice = where or f"run again with {DEBUG_WORD} for the traceback"
    return f"{textwrap.shorten(known, LONGEST, placeholder=' ...')}; {advice}"


def _describe(error: Any) -> Described:
    """Return an error in words.

    Of what a process raised they are those of its own error, of which torch brings the text alone:
    the types above are known if Python has them built in.
    """
    own = type(error).__name__
    if RAISED_IN_PROCESS not in _names(type(error)):
        return Described(own, _names(type(error)), _message(own, error))
    name, message = last_line(f"RuntimeError: {error}")
    kind = getattr(builtins, name, None)
    names = _names(kind) if isinstance(kind, type) else {name}
    return Described(name, names, f"process {error.error_index}: {message}")


def _message(kind: str, error: object) -> str:
    """Return the message of an error without the traceback that a data worker's comes with."""
    text = str(error).strip()
    if "Traceback" in text:
        return last_line(f"{kind}: {text}")[1]
    return " ".join(text.splitlines())


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
