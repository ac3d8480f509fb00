"""Checkpoints of a run: written whole, found, read without executing anything, pruned."""

import logging
import re
from pathlib import Path
from typing import Any

import torch

from vmp.utils.files import read_tensors, write_atomically

logger = logging.getLogger(__name__)

NAME = re.compile(r"epoch_(\d+)\.pth")


def checkpoint_path(output_dir: str | Path, epoch: int) -> Path:
    """Return where the checkpoint after `epoch` epochs lies."""
    return Path(output_dir) / "checkpoints" / f"epoch_{epoch:05d}.pth"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    folder = Path(output_dir) / "checkpoints"
    return sorted(path for path in folder.glob("epoch_*.pth") if NAME.fullmatch(path.name))


def save_checkpoint(path: Path, state: dict[str, Any], *, keep: int = 0) -> None:
    """Write `state` (tensors, numbers, texts, lists and dicts of them) whole or not at all.

    Args:
        path: as `checkpoint_path` names it.
        state: what to write.
        keep: checkpoints of the run that stay, newest first; 0 keeps all.
    """
    for partial in path.parent.glob(".epoch_*.partial"):  # of a run that was killed
        partial.unlink(missing_ok=True)
    write_atomically(path, lambda file: torch.save(state, file))
    if keep:
        for old in list_checkpoints(path.parents[1])[:-keep]:
            if old != path:
                old.unlink(missing_ok=True)


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
