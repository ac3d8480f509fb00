"""Checkpoints of a run: written whole and in the background, found, read back, pruned."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmp.utils.files import read_tensors, write_atomically

logger = logging.getLogger(__name__)

# After so many epochs, and so many updates of the next one. Names sort as the checkpoints follow.
NAME = re.compile(r"epoch_(\d{5,})(_update_(\d{7,}))?\.pth")
BEST = "best.pth"


def checkpoint_path(output_dir: str | Path, epoch: int, update: int = 0) -> Path:
    """Return where the checkpoint after `epoch` epochs and `update` updates of the next lies."""
    within = f"_update_{update:07d}" if update else ""
    return Path(output_dir) / "checkpoints" / f"epoch_{epoch:05d}{within}.pth"


def best_path(output_dir: str | Path) -> Path:
    """Return where the best checkpoint of a run lies."""
    return Path(output_dir) / "checkpoints" / BEST


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first; the best is one of them or an older one."""
    folder = Path(output_dir) / "checkpoints"
    return sorted(path for path in folder.glob("epoch_*.pth") if NAME.fullmatch(path.name))


def save_checkpoint(
    path: Path, state: Mapping[str, Any], *, keep: int = 0, best: bool = False
) -> None:
    """Write `state` (tensors, numbers, texts, lists and dicts of them) whole or not at all.

    Args:
        path: as `checkpoint_path` names it.
        state: what to write.
        keep: checkpoints of the run that stay, newest first; 0 keeps all. The best stays besides.
        best: the checkpoint is the best so far.

    Raises:
        OSError: it can't be written; what was there before is there still.
    """
    for partial in path.parent.glob(".*.partial"):  # of a run that was killed
        partial.unlink(missing_ok=True)
    write_atomically(path, lambda file: torch.save(state, file))
    if best:
        keep_best(path)
    if keep:
        for old in list_checkpoints(path.parents[1])[:-keep]:
            if old != path:
                old.unlink(missing_ok=True)


def keep_best(path: Path) -> None:
    """Give a checkpoint the name of the best; a copy where there are no hard links.

    Raises:
        OSError: it can't be; what had the name has it still.
    """
    name = path.with_name(BEST)
    if name.exists() and name.samefile(path):
        return
    partial = name.with_name(f".{name.name}.{os.getpid()}.partial")
    try:
        os.link(path, partial)
    except OSError:
        write_atomically(name, lambda file: file.write(path.read_bytes()))
        return
    partial.replace(name)


def read_newest(output_dir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Return path and content of the newest checkpoint that can be read, None if there is none.

    A damaged one is named in a warning, and the one before it is taken.

    Raises:
        ValueError: there are checkpoints, and none can be read: nothing is begun over them.
    """
    for path in reversed(list_checkpoints(output_dir)):
        try:
            return path, read_tensors(path)
        except ValueError as error:
            logger.warning("%s; the one before it is taken", error)
    if list_checkpoints(output_dir):
        raise ValueError(
            f"none of the checkpoints in {output_dir} can be read; mend access to them, take "
            "another OUTPUT_DIR or delete it"
        )
    return None


def snapshot(value: Any) -> Any:
    """Return a copy of `value` that training does not change: its tensors, copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: snapshot(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(inner) for inner in value)
    return value


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time, while the training goes on.

    Training waits for the copy to memory, and for the checkpoint before if that is still being
    written. A checkpoint that can't be written, as on a full disk, is a warning: those before it
    are kept, and the next is tried.

    Args:
        keep: as in `save_checkpoint`.

    Attributes:
        stalls: seconds that training waited, for each checkpoint.
        failed: why the newest could not be written, "" if it was.
        lost_best: the newest that was to be the best could not be written.
    """

    def __init__(self, *, keep: int) -> None:
        self.stalls: list[float] = []
        self.failed = ""
        self.lost_best = False
        self._keep = keep
        self._thread: threading.Thread | None = None

    def save(
        self,
        path: Path,
        state: Mapping[str, Any],
        *,
        best: bool = False,
        began: float | None = None,
    ) -> None:
        """Copy `state` and begin to write it; `began` is when training began to wait, else now."""
        began = time.perf_counter() if began is None else began
        self.wait()
        copied = snapshot(state)
        self.stalls.append(time.perf_counter() - began)
        self._thread = threading.Thread(target=self._write, args=(path, copied, best))
        self._thread.start()

    def _write(self, path: Path, state: Mapping[str, Any], best: bool) -> None:
        began = time.perf_counter()
        try:
            save_checkpoint(path, state, keep=self._keep, best=best)
            self.failed = ""
            self.lost_best = self.lost_best and not best
        except Exception as error:  # torch has errors of its own for a full disk
            self.lost_best = self.lost_best or best
            self.failed = f"{path} can't be written ({str(error).splitlines()[0]})"
            logger.warning("%s; the checkpoints before it are kept", self.failed)
            return
        seconds = time.perf_counter() - began
        logger.info("wrote %s in %.2f s, training waited %.2f s", path, seconds, self.stalls[-1])

    def wait(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Wait until nothing is being written, and call `meanwhile` every second."""
        if self._thread is not None:
            while self._thread.is_alive():
                self._thread.join(1.0)
                meanwhile()
            self._thread = None
