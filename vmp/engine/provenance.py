"""What made a result: the config that decides numbers, the weights, the code."""

import hashlib
from pathlib import Path
from typing import Any

import fvcore
import numpy as np
import torch
import torchvision
import yaml
from fvcore.common.config import CfgNode
from torch import nn

import vmp
from vmp.models import VideoModel
from vmp.prompts import MotionPrompt
from vmp.utils.files import git_commit, sha256

# Keys that say where and how fast, not what: they may differ between runs of equal results.
INCIDENTAL = (
    "OUTPUT_DIR",
    "NUM_GPUS",
    "NUM_PROCESSES",
    "DIST_TIMEOUT",
    "LOG_PERIOD",
    "TENSORBOARD",
    "DATA_LOADER",
)


def build_provenance(cfg: CfgNode, model: VideoModel, checkpoint: Path) -> dict[str, Any]:
    """Return what to write beside a result, none of which depends on the time or the machine.

    Keys: config (what of it decides numbers), config_sha256, seed, checkpoint (file name),
    weights_sha256, prompts (learned parameters and f(0)), versions, git_commit.
    """
    config = yaml.safe_load(cfg.dump())
    config = {key: value for key, value in config.items() if key not in INCIDENTAL}
    config["TEST"].pop("CHECKPOINT_FILE_PATH")  # the weights' hash says which
    return {
        "prompts": describe_prompts(model),
        "seed": cfg.RNG_SEED,
        "checkpoint": checkpoint.name,
        "weights_sha256": hash_weights(model),
        "config_sha256": sha256(yaml.safe_dump(config, sort_keys=True).encode()),
        "config": config,
        "versions": {
            "vmp": vmp.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
            "fvcore": fvcore.__version__,
        },
        "git_commit": git_commit(),
    }


def describe_prompts(model: VideoModel) -> dict[str, dict[str, float]]:
    """Return m, n, a, b and f(0) (or what the power normalisation has) of each prompted pathway."""
    described = {}
    for pathway, prompt in model.prompts.items():
        assert isinstance(prompt, MotionPrompt)
        values = prompt.power_norm.describe()
        described[pathway] = {name: float(value) for name, value in values.items()}
    return described


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 over names, shapes, types and bytes of the state dict, in its order."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name}|{tuple(value.shape)}|{value.dtype}|".encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
