"""What made a result: the config that decides numbers, the weights, the code, the machine."""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fvcore
import numpy as np
import torch
import yaml
from fvcore.common.config import CfgNode
from torch import nn

import vmp
from vmp.data.records import VideoRecord
from vmp.models import PretrainedReport, VideoModel
from vmp.prompts import MotionPrompt
from vmp.utils.files import sha256
from vmp.utils.mappings import flatten

# Keys that say where, when and how fast, not what: they may differ between runs of equal results.
INCIDENTAL = (
    "OUTPUT_DIR",
    "NUM_GPUS",
    "NUM_PROCESSES",
    "DIST_TIMEOUT",
    "DIST_INIT_TIMEOUT",
    "LOG_PERIOD",
    "TENSORBOARD",
    "WANDB",
    "MODEL.ACT_CHECKPOINT",
    "DATA.PATH_TO_DATA_DIR",
    "DATA_LOADER",
    "TRAIN.ENABLE",
    "TRAIN.AUTO_RESUME",
    "TRAIN.EVAL_PERIOD",
    "TRAIN.CHECKPOINT_PERIOD",
    "TRAIN.CHECKPOINT_STEPS",
    "TRAIN.CHECKPOINT_MINUTES",
    "TRAIN.CHECKPOINT_KEEP",
    "TEST.ENABLE",
    "TEST.CHECKPOINT_FILE_PATH",
)


# Keys that may differ between the hosts of one run.
LOCAL = ("OUTPUT_DIR", "DATA.PATH_TO_DATA_DIR", "DATA_LOADER", "DIST_INIT_TIMEOUT")


def deciding_config(text: str) -> dict[str, Any]:
    """Return {dotted key: value} of what decides numbers in a dumped config."""
    return _config_without(text, INCIDENTAL)


def shared_config(text: str) -> dict[str, str]:
    """Return {dotted key: value} of what all ranks must have alike to work together."""
    return {key: str(value) for key, value in _config_without(text, LOCAL).items()}


def _config_without(text: str, names: Sequence[str]) -> dict[str, Any]:
    flat = flatten(yaml.safe_load(text), ".")
    return {
        key: value
        for key, value in flat.items()
        if not any(key == name or key.startswith(f"{name}.") for name in names)
    }


def training_differences(stored: str, present: str) -> list[str]:
    """Return `KEY (there, here)` for each key by which the training of two configs differs."""
    there, here = deciding_config(stored), deciding_config(present)
    return [
        f"{key} ({there.get(key)} there, {here.get(key)} here)"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
        and not key.startswith("TEST.")
        and key != "TRAIN.INIT_SHA256"  # it checks a file and changes nothing
    ]


def hash_config(text: str) -> str:
    """Return the SHA-256 of what decides numbers in a dumped config."""
    return sha256(yaml.safe_dump(deciding_config(text), sort_keys=True).encode())


def describe_records(records: Sequence[VideoRecord]) -> str:
    """Return how many videos there are and the SHA-256 of which ones, with labels and segments.

    The folder of the videos is not among it: it may be another one where a job is started again.
    """
    lines = [
        f"{record.id or Path(record.path).name}\t{record.label}\t{record.start}\t{record.stop}"
        for record in records
    ]
    digest = sha256("\n".join(lines).encode())
    return f"{len(lines)} videos (SHA-256 {digest})"


def build_provenance(cfg: CfgNode, model: VideoModel, report: PretrainedReport) -> dict[str, Any]:
    """Return what to write beside a result, none of which depends on the time or the machine.

    Keys: prompts (learned parameters and f(0)), seed, config (what of it decides numbers),
    config_sha256, checkpoint (file name), weights_sha256, trained (what the checkpoint says of its
    training: epoch, step, seed, config_sha256; empty for weights of others), versions, git_commit.

    Args:
        cfg: of the test.
        model: with the weights of the checkpoint.
        report: of loading them.
    """
    text = cfg.dump()
    return {
        "prompts": describe_prompts(model),
        "seed": cfg.RNG_SEED,
        "config": deciding_config(text),
        "config_sha256": hash_config(text),
        "checkpoint": Path(report.path).name,
        "weights_sha256": hash_weights(model),
        "trained": describe_training(report),
        "versions": {
            "vmp": vmp.__version__,
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "numpy": np.__version__,
            "fvcore": fvcore.__version__,
        },
        "git_commit": git_commit(),
    }


def describe_training(report: PretrainedReport) -> dict[str, Any]:
    """Return epoch, step, seed and config hash that a checkpoint of ours states, {} for others."""
    facts = report.facts
    try:
        return {
            "epoch": int(facts["epoch"]),  # a safetensors file has texts
            "step": int(facts["step"]),
            "seed": yaml.safe_load(facts["config"])["RNG_SEED"],
            "config_sha256": hash_config(facts["config"]),
        }
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError):
        return {}  # not all of it is there, or means something else


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


def git_commit() -> str:
    """Return the commit of the checkout that this code lies in, "+changes" if it was edited.

    "unknown" where there is no git or no checkout.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40"]
    try:
        found = subprocess.run(
            [*command, "--exclude=*", "--dirty=+changes"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def describe_machine() -> dict[str, str]:
    """Return what of the machine decides the last digits: versions, GPU, threads, cores."""
    return {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": str(torch.get_num_threads()),
        "cpus": str(os.cpu_count()),
    }
