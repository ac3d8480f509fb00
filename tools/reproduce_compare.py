"""Two finished runs, sample by sample: how sure is the difference?"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vmp.engine.trained import PREDICTIONS
from vmp.metrics.bootstrap import PairedBootstrap, paired_bootstrap
from vmp.metrics.classification import hits


class Stored(NamedTuple):
    """The predictions of a run: names of the samples (N,), their videos, scores (N, C), labels."""

    names: list[str]
    videos: list[str]
    scores: Tensor
    labels: Tensor


class Comparison(NamedTuple):
    """Two runs on the samples that both have evaluated.

    Attributes:
        metric: what is compared.
        first: percent of the first run.
        second: percent of the second.
        only_first: samples that the first alone has right.
        only_second: likewise.
        percent: of the difference, second - first, in percent.
    """

    metric: str
    first: float
    second: float
    only_first: int
    only_second: int
    percent: PairedBootstrap


def read_predictions(run: Path) -> Stored:
    """Read what the test of a run has stored.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    path = run / PREDICTIONS
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, paths = arrays["ids"].tolist(), arrays["paths"].tolist()
            stretches = zip(arrays["starts"].tolist(), arrays["stops"].tolist(), strict=True)
            scores = torch.from_numpy(arrays["scores"].astype(np.float64))
            labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} can't be read ({error}); run the test of that run") from error
    # a list of one's own videos may give no names, or one name to several stretches
    names = [
        f"{name or Path(video).name} {start} {stop}"
        for name, video, (start, stop) in zip(ids, paths, stretches, strict=True)
    ]
    return Stored(names, [Path(video).name for video in paths], scores, labels)


def compare(first: Stored, second: Stored, *, replicates: int, seed: int) -> list[Comparison]:
    """Return top-1 and top-5 of two runs on their common samples.

    What is drawn are videos, with all of their samples: stretches of one long video are alike.

    Raises:
        ValueError: no common samples, or they have other labels or classes.
    """
    places = {name: place for place, name in enumerate(second.names)}
    pairs = [(here, places[name]) for here, name in enumerate(first.names) if name in places]
    if not pairs:
        raise ValueError("the two runs have no test sample in common; compare runs of one split")
    here, there = (torch.tensor(column) for column in zip(*pairs, strict=True))
    labels = first.labels[here]
    if first.scores.shape[1] != second.scores.shape[1] or (labels != second.labels[there]).any():
        raise ValueError("the two runs give the same samples other labels; prepare the data anew")
    known: dict[str, int] = {}
    videos = [known.setdefault(first.videos[place], len(known)) for place in here.tolist()]
    groups = torch.tensor(videos)
    return [
        _compare_hits(
            f"top{k}",
            hits(first.scores[here], labels, k),
            hits(second.scores[there], labels, k),
            groups,
            replicates=replicates,
            seed=seed,
        )
        for k in (1, 5)
    ]


def _compare_hits(
    metric: str, first: Tensor, second: Tensor, groups: Tensor, *, replicates: int, seed: int
) -> Comparison:
    result = paired_bootstrap(
        100 * first.double(), 100 * second.double(), groups, replicates=replicates, seed=seed
    )
    return Comparison(
        metric,
        100 * float(first.double().mean()),
        100 * float(second.double().mean()),
        int((first & ~second).sum()),
        int((second & ~first).sum()),
        result,
    )


def describe(comparisons: Sequence[Comparison], first: Stored, second: Stored) -> str:
    """Return the comparison as lines."""
    result = comparisons[0].percent
    lines = [
        f"{result.samples} samples of {result.groups} videos in common "
        f"({len(first.names)} and {len(second.names)} evaluated); {result.replicates} draws of "
        "videos; percent"
    ]
    for each in comparisons:
        drawn = each.percent
        lines.append(
            f"{each.metric}  {each.first:.2f} -> {each.second:.2f}  difference "
            f"{drawn.difference:+.2f}  95 % interval {drawn.low:+.2f} to {drawn.high:+.2f}  "
            f"p {drawn.p_value:.4f}  (right in the first alone {each.only_first}, in the second "
            f"alone {each.only_second})"
        )
    lines.append(
        "the interval is about the choice of the test videos, for these two trainings; what "
        "another seed changes, it does not tell"
    )
    return "\n".join(lines)
