"""One run at a time in a folder."""

import fcntl
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from vmp.utils.output_dir import open_output_dir

NAME = "run.lock"


class RunLock:
    """Holds OUTPUT_DIR/run.lock as long as this process lives.

    A POSIX record lock: the system drops it when the process ends, however it ends, and a child
    does not inherit it. So a dead run leaves the file and no lock.

    Args:
        folder: OUTPUT_DIR; it is made if needed.
        patience: seconds to wait for another owner, which may be just ending (a file server may
            take a while to notice a dead machine).

    Raises:
        ValueError: another process holds it; who, and where, is named. Or there are no locks, or
            `folder` can't be made or written.
    """

    def __init__(self, folder: str | Path, *, patience: float = 5.0) -> None:
        with open_output_dir(folder) as made:
            self._path = made / NAME
            self._file: TextIO | None = self._path.open("a+", encoding="utf-8")
            deadline = time.monotonic() + patience
            while not self._take():
                if time.monotonic() >= deadline:
                    self._refuse()
                time.sleep(0.2)
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()

    def _take(self) -> bool:
        assert self._file is not None
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            self.release()
            raise ValueError(
                f"{self._path} can't be locked ({error.strerror}), so that two runs could write to "
                "one folder; take an OUTPUT_DIR on a file system with locks (Lustre: -o flock)"
            ) from None
        return True

    def _refuse(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        owner = self._file.readline().strip() or "another process"
        self.release()
        raise ValueError(
            f"{self._path.parent} is in use by {owner}; wait for it, stop it, or take another "
            "OUTPUT_DIR"
        )

    def release(self) -> None:
        """Let go of it; the file stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
