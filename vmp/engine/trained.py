"""Trained models: from a run's folder or a file of weights to a model that predicts."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fvcore.common.config import CfgNode

from vmp.data.build import build_class_names
from vmp.engine.checkpoint import list_checkpoints
from vmp.models import PretrainedReport, VideoModel, build_model, load_pretrained

PREDICTIONS = "predictions.npz"


class Trained(NamedTuple):
    """A model that predicts.

    Attributes:
        model: in evaluation mode, with every weight from the file.
        class_names: of its classes.
        report: what the file gave, its SHA-256 among it.
    """

    model: VideoModel
    class_names: tuple[str, ...]
    report: PretrainedReport


def find_checkpoint(path: Path) -> Path:
    """Return the file itself, or the newest checkpoint of a run's folder.

    Raises:
        ValueError: there is none.
    """
    if path.is_file():
        return path
    found = list_checkpoints(path)
    if not found:
        what = "there is no checkpoint in it" if path.is_dir() else "it does not exist"
        raise ValueError(f"{path}: {what}; name a checkpoint or the OUTPUT_DIR of a run")
    return found[-1]


def find_config(checkpoint: Path) -> Path:
    """Return config.yaml of the run that a checkpoint lies in.

    Raises:
        ValueError: there is none.
    """
    path = _run_of(checkpoint) / "config.yaml"
    if not (_lies_in_run(checkpoint) and path.is_file()):
        raise ValueError(f"{checkpoint} lies in no run with a config.yaml; name one with --cfg")
    return path


def build_trained(
    cfg: CfgNode, checkpoint: Path | str, device: torch.device | str = "cpu"
) -> Trained:
    """Make the model of a config with the weights of a file, to predict with.

    Args:
        cfg: of the training, or of the recipe that a public checkpoint goes with.
        checkpoint: a file of weights, of this program or of one that it knows.
        device: of the model.

    Raises:
        ValueError: the file can't be read or does not fit, whole and exactly, or the data set has
            another number of classes than the model.
    """
    model = build_model(cfg)
    report = load_pretrained(model, checkpoint)
    check_whole(report, str(checkpoint))
    return Trained(model.to(device).eval(), build_known_names(cfg, Path(checkpoint)), report)


def check_whole(report: PretrainedReport, path: str) -> None:
    """Raise ValueError unless a file gave every weight and no other: what a prediction needs."""
    misfits = [*report.missing, *report.dropped, *report.unexpected]
    if misfits:
        raise ValueError(
            f"{path} and the model differ in {', '.join(misfits[:5])}"
            f"{' ...' if len(misfits) > 5 else ''}; a test needs every weight and no other: check "
            "MODEL.NAME, MODEL.NUM_CLASSES and PROMPT.ENABLE"
        )


def build_known_names(cfg: CfgNode, checkpoint: Path) -> tuple[str, ...]:
    """Return the names of the classes: of the data set, else of the run's test, else numbers.

    The data set need not be there: the test that a run ends with has stored its names.

    Raises:
        ValueError: the data set has another number of classes than the model.
    """
    numbers = tuple(map(str, range(cfg.MODEL.NUM_CLASSES)))
    names = build_class_names(cfg)
    stored = _run_of(checkpoint) / PREDICTIONS
    if names != numbers or not (_lies_in_run(checkpoint) and stored.is_file()):
        return names
    try:
        with np.load(stored, allow_pickle=False) as arrays:
            found = tuple(map(str, arrays["class_names"].tolist()))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return names  # a help to the reader, not what is predicted
    return found if len(found) == len(names) else names


def _lies_in_run(checkpoint: Path) -> bool:
    return checkpoint.absolute().parent.name == "checkpoints"


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.absolute().parent.parent
