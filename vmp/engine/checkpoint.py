"""Checkpoints of a run: written whole, found, read without executing anything, pruned."""

import logging
import re
from pathlib import Path
from typing import Any

import torch

from vmp.utils.files import write_atomically

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
    write_atomically(path, lambda file: torch.save(state, file))
    if keep:
        for old in list_checkpoints(path.parents[1])[:-keep]:
            old.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in it is executed.

    Raises:
        ValueError: it is missing, damaged, or holds other things than tensors and plain values.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"there is no checkpoint {path}") from None
    except Exception as error:  # torch.load has no common error for what a damaged file can do
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} can't be read as a checkpoint ({reason})") from error
    return state


def read_newest(output_dir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Return path and content of the newest checkpoint that can be read, None if there is none.

    A damaged one is named in a warning, and the one before it is taken.
    """
    for path in reversed(list_checkpoints(output_dir)):
        try:
            return path, read_checkpoint(path)
        except ValueError as error:
            logger.warning("%s; the one before it is taken", error)
    return None
