"""Evaluation: every view of every video exactly once, on any number of ranks, and its files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejson
import torch
from torch import Tensor
from torch.nn import functional as F

from vmp.data import ClipLoader
from vmp.data.clips import Failure
from vmp.data.records import VideoRecord
from vmp.engine.progress import progress_bar
from vmp.engine.step import autocast
from vmp.metrics import METRICS, confusion_matrix, ensemble_views, per_class_table
from vmp.models import VideoModel
from vmp.utils.distributed import gather_objects
from vmp.utils.files import write_atomically, write_text


class Predictions(NamedTuple):
    """What a model says of the videos of a split.

    Attributes:
        scores: (M, C) float64 probabilities of the M evaluated videos: the mean over their views
            of the softmax, or the softmax of the mean logits.
        labels: (M,) int64.
        video: (M,) int64, indices into the records.
        loss: mean cross-entropy of all views evaluated, nan if there are none.
        views: number of views evaluated.
        failures: views that could not be decoded; their videos are not among the M.
    """

    scores: Tensor
    labels: Tensor
    video: Tensor
    loss: float
    views: int
    failures: tuple[Failure, ...]


@torch.inference_mode()
def predict(
    model: VideoModel,
    loader: ClipLoader,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    ensemble: str = "softmax",
) -> Predictions:
    """Return the model's predictions for the loader's split, the same on all ranks.

    Args:
        model: put into evaluation mode; its mode is restored.
        loader: of this rank; the ranks' loaders together cover every view once.
        device: where the model is.
        precision: of autocast.
        ensemble: what is averaged over the views, "softmax" or "logits".

    Raises:
        ValueError: a view came more than once or is missing without a reported failure.
    """
    was_training = model.training
    model.eval()
    logits: list[Tensor] = []
    views: list[Tensor] = []  # rows (video, view, label)
    failures: list[Failure] = []
    with progress_bar(len(loader), "evaluate") as bar:
        for batch in loader.epoch(0):
            bar.update()
            failures += batch.failures
            if not len(batch.label):
                continue
            with autocast(device, precision):
                output = model(batch.clip.to(device, non_blocking=True))
            logits.append(output.logits.float().cpu())
            views.append(torch.stack([batch.video, batch.view, batch.label], dim=1))
    model.train(was_training)
    gathered = gather_objects((logits, views, failures))
    return _combine(
        [part for rank in gathered for part in rank[0]],
        [part for rank in gathered for part in rank[1]],
        sorted(failure for rank in gathered for failure in rank[2]),
        loader=loader,
        ensemble=ensemble,
    )


def _combine(
    logits: Sequence[Tensor],
    views: Sequence[Tensor],
    failures: Sequence[Failure],
    *,
    loader: ClipLoader,
    ensemble: str,
) -> Predictions:
    """Sort the views of all ranks, so that nothing depends on who evaluated what, and average."""
    if not logits:
        raise ValueError(f"none of the {len(loader.records)} videos could be read: {failures[0]}")
    table = torch.cat(list(views))
    order = (table[:, 0] * loader.num_views + table[:, 1]).argsort()
    video, view, label = table[order].unbind(1)
    values = torch.cat(list(logits))[order].double()
    averaged = values.softmax(1) if ensemble == "softmax" else values
    result = ensemble_views(averaged, video, view, len(loader.records), loader.num_views)
    _check_complete(result.incomplete, failures)
    if not len(result.video):
        raise ValueError(f"no video could be read with all of its views: {failures[0]}")
    scores = result.scores if ensemble == "softmax" else result.scores.softmax(1)
    labels = torch.tensor([loader.records[index].label for index in result.video.tolist()])
    loss = float(F.cross_entropy(values, label))
    return Predictions(scores, labels, result.video, loss, len(values), tuple(failures))


def _check_complete(incomplete: Sequence[int], failures: Sequence[Failure]) -> None:
    """Every video without all of its views must have a failure to explain it."""
    unexplained = set(incomplete) - {failure.video for failure in failures}
    if unexplained:
        raise ValueError(
            f"{len(unexplained)} videos lack views though nothing failed, the first is number "
            f"{min(unexplained)}; this is a bug in how the views are spread over the ranks"
        )


def compute_metrics(predictions: Predictions) -> dict[str, float]:
    """Return every registered metric in percent, and the loss."""
    scores, labels = predictions.scores, predictions.labels
    metrics = {name: metric(scores, labels) for name, metric in METRICS}
    return metrics | {"loss": predictions.loss}


def count_videos(predictions: Predictions, loader: ClipLoader) -> dict[str, int]:
    """Return how many videos and views there are, and how many were evaluated."""
    return {
        "videos": len(loader.records),
        "evaluated_videos": len(predictions.labels),
        "views_per_video": loader.num_views,
        "evaluated_views": predictions.views,
    }


def list_failures(predictions: Predictions, loader: ClipLoader) -> list[dict[str, Any]]:
    """Return id, path, reason and number of failed views of each record not evaluated."""
    listed: dict[int, dict[str, Any]] = {}
    for failure in predictions.failures:
        entry = listed.setdefault(
            failure.video,
            {
                "id": loader.records[failure.video].id,
                "path": failure.path,
                "reason": failure.reason,
                "views": 0,
            },
        )
        entry["views"] += 1
    return [listed[video] for video in sorted(listed)]


def write_results(
    output_dir: str | Path,
    predictions: Predictions,
    loader: ClipLoader,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Write predictions.npz and test_results.json, and return what the latter holds.

    Apart from the paths of videos nothing in them depends on the machine or the time, so that the
    results of two runs can be compared as files.
    """
    folder = Path(output_dir)
    results = {
        "metrics": compute_metrics(predictions),
        "counts": count_videos(predictions, loader),
        "not_evaluated": list_failures(predictions, loader),
        "per_class": per_class_table(predictions.scores, predictions.labels, loader.class_names),
        "confusion_matrix": confusion_matrix(predictions.scores, predictions.labels).tolist(),
        **provenance,
    }
    records: list[VideoRecord] = [loader.records[index] for index in predictions.video.tolist()]
    arrays: dict[str, Any] = {
        "scores": predictions.scores.numpy(),
        "labels": predictions.labels.numpy(),
        "ids": np.array([record.id for record in records], dtype=np.str_),
        "paths": np.array([record.path for record in records], dtype=np.str_),
        "starts": np.array([record.start for record in records]),
        # -1: to the end of the video
        "stops": np.array([-1 if record.stop is None else record.stop for record in records]),
        "class_names": np.array(loader.class_names, dtype=np.str_),
    }
    write_atomically(folder / "predictions.npz", lambda file: np.savez_compressed(file, **arrays))
    text = simplejson.dumps(results, indent=2, ignore_nan=True)
    write_text(folder / "test_results.json", text + "\n")
    return results
