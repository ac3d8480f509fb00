"""How the command lines in tools/ end: what a user got wrong is one line, not a traceback."""

import sys
from collections.abc import Callable

from torch.multiprocessing.spawn import ProcessRaisedException

# What the text of an exception ends with when a user or the data, not the program, is wrong.
EXPECTED = ("ValueError", "NonFiniteLossError", "DecodeError", "FileNotFoundError")


def run_cli(main: Callable[[], object]) -> None:
    """Call `main`; end with status 1 and one line for errors that a user can mend.

    Errors of a process that `main` started count too. Others, which are ours, keep their
    traceback.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except ProcessRaisedException as error:
        last = str(error).strip().splitlines()[-1]
        name, _, message = last.partition(": ")
        if name.rpartition(".")[2] not in EXPECTED:
            raise
        sys.exit(f"error: process {error.error_index}: {message}")
    except Exception as error:
        if type(error).__name__ not in EXPECTED:
            raise
        sys.exit(f"error: {error}")
