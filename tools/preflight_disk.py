"""What a run takes on the disk, and what is free there."""

import os
import shutil
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from vmp.models import build_model

# Networks that were looked at, by what decides their size.
_model_bytes: dict[str, int] = {}


def free_bytes(folder: Path) -> int:
    """Return what is free on the disk that a folder, which need not be there yet, will lie on."""
    above = (folder.absolute(), *folder.absolute().parents)
    # os.path: where one may not look there is nothing, while Path.exists raises
    return shutil.disk_usage(next(each for each in above if os.path.exists(each))).free


def why_not_writable(folder: Path) -> str:
    """Return why a run can't write into OUTPUT_DIR, which need not be there yet; "" if it can."""
    above = (folder.absolute(), *folder.absolute().parents)
    there = next(each for each in above if os.path.lexists(each))
    if not os.path.isdir(there):
        return f"OUTPUT_DIR {folder}: {there} is no folder; take another OUTPUT_DIR, or remove it"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"OUTPUT_DIR {folder}: the folder {there} is not writable; take another OUTPUT_DIR"
    return ""


def build_bytes(cfg: CfgNode) -> int:
    """Return the bytes of a run's checkpoints: those that are kept, and one being written."""
    kept = cfg.TRAIN.CHECKPOINT_KEEP or cfg.SOLVER.MAX_EPOCH // cfg.TRAIN.CHECKPOINT_PERIOD
    kept += 1 if cfg.TRAIN.EVAL_PERIOD else 0
    copies = (2 if cfg.SOLVER.OPTIMIZING_METHOD == "adamw" else 1) + (cfg.SOLVER.EMA_DECAY > 0)
    return int((kept + 1) * (1 + copies) * build_model_bytes(cfg))


def build_model_bytes(cfg: CfgNode) -> int:
    """Return the bytes of a network's parameters and statistics."""
    key = build_network_name(cfg)
    if key not in _model_bytes:
        with torch.device("meta"):
            state = build_model(cfg).state_dict()
        _model_bytes[key] = sum(value.numel() * value.element_size() for value in state.values())
    return _model_bytes[key]


def build_network_name(cfg: CfgNode) -> str:
    """Return what decides the size of a network; prompt and classes hardly count."""
    return f"{cfg.MODEL.NAME} {dict(cfg[cfg.MODEL.NAME.upper()])}"
