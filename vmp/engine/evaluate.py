"""Evaluation: every view of every video exactly once, on any number of ranks, and its files."""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejson
import torch
from torch import Tensor
from torch.nn import functional as F

import vmp
from vmp.data import ClipLoader
from vmp.data.clips import Batch, Failure
from vmp.data.loader import EvalPlan
from vmp.data.records import VideoRecord
from vmp.engine.agreement import get_on
from vmp.engine.progress import Waiting, describe_pace, progress_bar
from vmp.engine.provenance import describe_records
from vmp.engine.score_store import Scores, ScoreStore, join
from vmp.engine.step import autocast
from vmp.engine.stopping import stop_together
from vmp.engine.transfer import ahead
from vmp.metrics import METRICS, confusion_matrix, ensemble_views, per_class_table
from vmp.models import VideoModel
from vmp.utils.distributed import gather_objects
from vmp.utils.files import sha256, sha256_of, write_atomically, write_text

logger = logging.getLogger(__name__)


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
    threads: int = 0,
    store: ScoreStore | None = None,
    stop: Callable[[], str] = lambda: "",
) -> Predictions:
    """Return the model's predictions for the loader's split, the same on all ranks.

    They are the same to the bit on any number of ranks, stopped and taken up again or not, if the
    machines are alike and compute with the same number of threads. For the last bits of what a
    network makes of a clip depend on the size of the batch and on the threads (measured on a CPU,
    all backbones), not on the clip's place in the batch nor on its neighbours.

    Args:
        model: put into evaluation mode; its mode is restored.
        loader: of this rank, with an EvalPlan; the ranks' loaders together cover every view once.
        device: where the model is.
        precision: of autocast.
        ensemble: what is averaged over the views, "softmax" or "logits".
        threads: CPU threads to compute with; 0: as many as there are by now.
        store: where scores are kept as they come and taken up from. Views that could not be decoded
            are not in it and tried again: the reason may have been the machine that was stopped.
        stop: asked before each batch; with an answer other than "", the reason, the ranks evaluate
            no further.

    Raises:
        Interrupted: `stop` gave a reason on any rank; on all of them.
        ValueError: a view came more than once or is missing without a reported failure, or nothing
            could be evaluated.
    """
    plan = loader.plan
    assert isinstance(plan, EvalPlan)
    stored = join([]) if store is None else store.take_up()
    plan.leave_out(stored.item.numpy())
    if len(stored.item):
        logger.info("%d of %d views are there already", len(stored.item), plan.num_items)
    was_training = model.training
    model.eval()
    with computing_with(threads or torch.get_num_threads()):
        scores, failures, reason = _evaluate(model, loader, plan, device, precision, store, stop)
    model.train(was_training)
    stop_together(reason, "during an evaluation")
    gathered = gather_objects((join(scores), failures))
    return _combine(
        join([stored, *(rank[0] for rank in gathered)]),
        sorted(failure for rank in gathered for failure in rank[1]),
        loader=loader,
        ensemble=ensemble,
    )


def _evaluate(
    model: VideoModel,
    loader: ClipLoader,
    plan: EvalPlan,
    device: torch.device,
    precision: torch.dtype,
    store: ScoreStore | None,
    stop: Callable[[], str],
) -> tuple[list[Scores], list[Failure], str]:
    """Return this rank's scores, its failures, and why it stopped early, "" if it didn't."""
    scores: list[Scores] = []
    failures: list[Failure] = []
    reason = ""
    underway: deque[_Underway] = deque()
    waiting, tally = Waiting(loader.epoch(0)), _Tally(loader)
    with progress_bar(len(loader), "evaluate") as bar:
        whole = (_fill_up(batch, loader.num_views, plan) for batch in waiting)
        for batch in ahead(whole, device):
            if reason := get_on(stop()):
                break
            if not bar.disable:
                bar.set_postfix_str(tally.describe(scores, waiting.seconds), refresh=False)
            bar.update()
            failures += batch.failures
            if len(batch.label):
                underway.append(_start(model, batch, loader.num_views, plan, device, precision))
            if len(underway) > 1:
                scores.append(_finish(underway.popleft(), store))
    scores += [_finish(last, store) for last in underway]
    if store is not None:
        store.close()
    return scores, failures, reason


class _Tally:
    """Says, for a bar, how an evaluation gets on."""

    def __init__(self, loader: ClipLoader) -> None:
        self._loader, self._began = loader, time.perf_counter()
        self._counted, self._views, self._right = 0, 0, 0

    def describe(self, scores: Sequence[Scores], waited: float) -> str:
        """Return how fast it goes, and the top-1 of the views in `scores`, which only grows."""
        for each in scores[self._counted :]:
            video = (each.item // self._loader.num_views).tolist()
            labels = torch.tensor([self._loader.records[index].label for index in video])
            self._views += len(video)
            self._right += int((each.logits.argmax(1) == labels).sum())
        self._counted = len(scores)
        pace = describe_pace(self._views, time.perf_counter() - self._began, waited)
        return f"{pace}, top1 of views {100 * self._right / max(1, self._views):.3g}"


class _Underway(NamedTuple):
    """Views at work on the device, which is given the next ones before these are asked for."""

    item: Tensor
    place: Tensor  # of the views in the batch
    logits: Tensor  # of the batch, on the CPU; not there before `copied`
    copied: torch.cuda.Event | None


def _start(
    model: VideoModel,
    batch: Batch,
    num_views: int,
    plan: EvalPlan,
    device: torch.device,
    precision: torch.dtype,
) -> _Underway:
    item = batch.video * num_views + batch.view
    with autocast(device, precision):
        logits = model(batch.clip).logits.float()
    logits = logits.to("cpu", non_blocking=True)  # from a GPU into page-locked memory
    copied = None
    if device.type == "cuda":
        copied = torch.cuda.Event()
        copied.record()
    return _Underway(item, item % plan.batch_size, logits, copied)


def _finish(views: _Underway, store: ScoreStore | None) -> Scores:
    if views.copied is not None:
        views.copied.synchronize()
    scores = Scores(views.item, views.logits[views.place])
    if store is not None:
        store.add(scores)
    return scores


def _fill_up(batch: Batch, num_views: int, plan: EvalPlan) -> Batch:
    """Put clips where they are in the whole batch, black ones in the place of those not there.

    What is not there could not be decoded, or has been scored before; without it the batch would
    have another size, and the last bits of the others would be different. A batch of no clips
    stays one.
    """
    if not len(batch.label):
        return batch
    item = batch.video * num_views + batch.view
    first = int(item[0]) // plan.batch_size * plan.batch_size
    size = min(plan.batch_size, plan.num_items - first)
    place = item - first
    assert 0 <= int(place.min()) <= int(place.max()) < size
    if len(item) == size:
        return batch
    whole = batch.clip.new_zeros((size, *batch.clip.shape[1:]))
    whole[place] = batch.clip
    return batch._replace(clip=whole)


@contextlib.contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Have torch use so many threads on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _combine(
    scores: Scores, failures: Sequence[Failure], *, loader: ClipLoader, ensemble: str
) -> Predictions:
    """Sort the views of all ranks, so that nothing depends on who evaluated what, and average."""
    _check_complete(scores.item, failures, loader)
    if not len(scores.item):
        raise ValueError(f"none of the {len(loader.records)} videos could be read: {failures[0]}")
    order = scores.item.argsort()
    item, values = scores.item[order], scores.logits[order].double()
    video, view = item // loader.num_views, item % loader.num_views
    averaged = values.softmax(1) if ensemble == "softmax" else values
    result = ensemble_views(averaged, video, view, len(loader.records), loader.num_views)
    if not len(result.video):
        raise ValueError(f"no video could be read with all of its views: {failures[0]}")
    means = result.scores if ensemble == "softmax" else result.scores.softmax(1)
    labels = torch.tensor([record.label for record in loader.records])
    with computing_with(1):
        loss = float(F.cross_entropy(values, labels[video]))
    return Predictions(
        means, labels[result.video], result.video, loss, len(values), tuple(failures)
    )


def _check_complete(item: Tensor, failures: Sequence[Failure], loader: ClipLoader) -> None:
    """Every view must have come once: as a score, or as a failure."""
    failed = [failure.video * loader.num_views + failure.view for failure in failures]
    every = torch.cat([item, torch.tensor(failed, dtype=torch.int64)])
    times = torch.bincount(every, minlength=len(loader.records) * loader.num_views)
    for wrong, what in ((times == 0, "missing"), (times > 1, "there more than once")):
        places = wrong.nonzero().flatten().tolist()
        if places:
            pairs = [divmod(place, loader.num_views) for place in places[:5]]
            listed = ", ".join(f"view {view} of {loader.records[v].path}" for v, view in pairs)
            raise ValueError(
                f"{len(places)} views are {what}, though each must be evaluated once: {listed}"
                f"{' ...' if len(places) > 5 else ''}; this is a bug in how they are spread over "
                "the ranks or kept: report it, and test again with a new OUTPUT_DIR"
            )


def describe_test(loader: ClipLoader, provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return what decides the scores of a test, as the facts of its ScoreStore.

    Args:
        loader: with an EvalPlan.
        provenance: as `build_provenance` makes it.
    """
    assert isinstance(loader.plan, EvalPlan)
    return {
        "weights": provenance["weights_sha256"],
        "config": provenance["config_sha256"],
        "records": describe_records(loader.records),
        "TEST.BATCH_SIZE": str(loader.plan.batch_size),
        "versions": simplejson.dumps(provenance["versions"], sort_keys=True),
        "code": hash_code(),
    }


def hash_code() -> str:
    """Return the SHA-256 over names and contents of this package's source files.

    A commit would not do: it does not tell what was edited, and changes with files of no matter.
    """
    folder = Path(vmp.__file__).parent
    files = sorted(folder.rglob("*.py"))
    lines = [f"{path.relative_to(folder).as_posix()} {sha256_of(path)}" for path in files]
    return sha256("\n".join(lines).encode())


def compute_metrics(predictions: Predictions) -> dict[str, float]:
    """Return every registered metric in percent, and the loss."""
    scores, labels = predictions.scores, predictions.labels
    with computing_with(1):  # sums over many samples depend on the threads in the last bits
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
    with computing_with(1):
        table = per_class_table(predictions.scores, predictions.labels, loader.class_names)
    results = {
        "metrics": compute_metrics(predictions),
        "counts": count_videos(predictions, loader),
        "not_evaluated": list_failures(predictions, loader),
        "per_class": table,
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
