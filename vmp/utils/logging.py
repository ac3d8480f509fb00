"""What a run says: lines for people, lines of JSON for programs, and numbers on boards."""

import contextlib
import io
import logging
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import simplejson
from tqdm import tqdm

from vmp.utils.boards import Boards, numbers, open_boards
from vmp.utils.files import write_text
from vmp.utils.output_dir import open_output_dir

logger = logging.getLogger(__name__)

FORMAT = "%(asctime)s %(levelname).1s %(message)s"
# tqdm's own is shared with forked processes: one that is killed holding it has all others wait
_BARS = threading.RLock()


def setup_logging(output_dir: str | Path, *, rank: int = 0) -> None:
    """Send log records to the terminal (rank 0 alone; warnings of all) and to OUTPUT_DIR/log.txt.

    The file also has what is only for finding faults, tracebacks above all. Ranks other than 0
    write log.rank<r>.txt. Calling it again replaces what was set up before.

    Raises:
        ValueError: OUTPUT_DIR, or the file, can't be made or written.
    """
    with open_output_dir(output_dir) as folder:
        file = _FileHandler(folder / ("log.txt" if rank == 0 else f"log.rank{rank}.txt"))
    tqdm.set_lock(_BARS)
    root = logging.getLogger("vmp")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.DEBUG)
    root.propagate = False
    terminal = _TerminalHandler(sys.stderr)
    terminal.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    for handler in (terminal, file):
        handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
        root.addHandler(handler)


class _TerminalHandler(logging.StreamHandler):  # type: ignore[type-arg]  # Python 3.11 takes one
    """One whose lines stand above a progress bar, whoever shows it, and do not tear it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _FileHandler(logging.FileHandler):
    """One that a full disk does not make print a traceback for every line."""

    _complained = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._complained:
            self._complained = True
            with contextlib.suppress(OSError):  # it may go to a file on the same disk
                sys.stderr.write(f"{self.baseFilename} can't be written: {error}; lines are lost\n")


class RunLog:
    """Writes one record a call: a JSON line in log.jsonl, and its numbers on the boards.

    On a full disk lines wait until there is room, and TensorBoard gets no more; both is told once.

    Args:
        output_dir: folder of the run.
        enabled: False on ranks other than 0: nothing is written.
        tensorboard: write to tensorboard/ too.
        wandb: project of Weights & Biases to send them to, "": none.
        config: of the run, for Weights & Biases.
        hparams: of the run, for TensorBoard's table of hyper-parameters.
        step: updates done. What a killed run recorded beyond it is taken out first: it will be
            recorded again.
        again: kinds of records that will be recorded again at `step` itself.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        enabled: bool,
        tensorboard: bool,
        wandb: str = "",
        config: Mapping[str, Any] | None = None,
        hparams: Mapping[str, Any] | None = None,
        step: int = 0,
        again: Collection[str] = (),
    ) -> None:
        self._file = None
        self._boards = Boards({})
        self._waiting = b""  # lines not written yet
        self._full = False
        if not enabled:
            return
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        _cut(folder / "log.jsonl", step, again)
        self._file = (folder / "log.jsonl").open("ab", buffering=0)
        self._boards = open_boards(
            folder,
            tensorboard=tensorboard,
            wandb=wandb,
            config=config,
            hparams=hparams,
            purge_step=step + 1,
        )

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Record `values` (numbers, texts, mappings of them) of `kind` at update `step`."""
        if self._file is None:
            return
        record = {"kind": kind, "step": step, **values}
        self._waiting += (simplejson.dumps(record, ignore_nan=True) + "\n").encode()
        self._write_waiting(self._file)
        self._boards.write(kind, step, values)

    def draw(self, step: int, make: Callable[[], Mapping[str, Any]]) -> None:
        """Show the pictures that `make` returns on the boards, see `Boards.draw`."""
        self._boards.draw(step, make)

    def _write_waiting(self, file: io.FileIO) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[file.write(self._waiting) :]
            self._full = False
        except OSError as error:
            if not self._full:
                logger.warning("%s can't be written (%s); its lines wait", file.name, error)
            self._full = True

    def close(self) -> None:
        """Write what waits, if there is room, and close the files."""
        if self._file is not None:
            self._write_waiting(self._file)
            with contextlib.suppress(OSError):  # a file server may tell of a full disk only now
                self._file.close()
        self._boards.close()


def _cut(path: Path, step: int, again: Collection[str]) -> None:
    """Keep the records up to `step`; a line that a kill has cut off goes as well."""
    if not path.exists():
        return
    lines, kept = path.read_text(encoding="utf-8").splitlines(keepends=True), []
    for line in lines:
        try:
            record = simplejson.loads(line) if line.endswith("\n") else {}
            if record["step"] < step + (record["kind"] not in again):
                kept.append(line)
        except (ValueError, KeyError):
            continue
    if kept != lines:
        write_text(path, "".join(kept))


def readable(values: Mapping[str, Any]) -> str:
    """Return `loss 1.234  top1 56.2  ...` for a line that a person reads."""
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers(values).items())
