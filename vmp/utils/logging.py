"""What a run says: lines for people, lines of JSON for programs, and TensorBoard scalars."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import simplejson

from vmp.utils.files import write_text
from vmp.utils.mappings import flatten

logger = logging.getLogger(__name__)

FORMAT = "%(asctime)s %(levelname).1s %(message)s"


def setup_logging(output_dir: str | Path, *, rank: int = 0) -> None:
    """Send log records to the terminal (rank 0 alone; warnings of all) and to OUTPUT_DIR/log.txt.

    The file also has what is only for finding faults, tracebacks above all. Ranks other than 0
    write log.rank<r>.txt. Calling it again replaces what was set up before.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger("vmp")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.DEBUG)
    root.propagate = False
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    file = logging.FileHandler(folder / ("log.txt" if rank == 0 else f"log.rank{rank}.txt"))
    for handler in (terminal, file):
        handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
        root.addHandler(handler)


class RunLog:
    """Writes one record a call: a JSON line in log.jsonl and scalars in tensorboard/.

    Args:
        output_dir: folder of the run.
        enabled: False on ranks other than 0: nothing is written.
        tensorboard: write the scalars too.
        step: updates done. What a killed run recorded beyond it is taken out first: it will be
            recorded again.
    """

    def __init__(
        self, output_dir: str | Path, *, enabled: bool, tensorboard: bool, step: int = 0
    ) -> None:
        self._file = None
        self._writer = None
        if not enabled:
            return
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        _cut(folder / "log.jsonl", step)
        self._file = (folder / "log.jsonl").open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Record `values` (numbers, texts, mappings of them) of `kind` at update `step`."""
        if self._file is None:
            return
        record = {"kind": kind, "step": step, **values}
        self._file.write(simplejson.dumps(record, ignore_nan=True) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in _numbers(values).items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the files."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def _cut(path: Path, step: int) -> None:
    """Keep the records up to `step`; a line that a kill has cut off goes as well."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and simplejson.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    write_text(path, "".join(kept))


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    flat = flatten(values, "/").items()
    return {name: float(value) for name, value in flat if isinstance(value, int | float)}


def readable(values: Mapping[str, Any]) -> str:
    """Return `loss 1.234  top1 56.2  ...` for a line that a person reads."""
    return "  ".join(f"{name} {value:.4g}" for name, value in _numbers(values).items())
