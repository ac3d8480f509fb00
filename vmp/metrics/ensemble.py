"""The average over the views of each video."""

from typing import NamedTuple

import torch
from torch import Tensor


class Ensemble(NamedTuple):
    """What the views of the videos say together.

    Attributes:
        scores: (M, C) float64, the means over the views, of the M complete videos.
        video: (M,) int64, their indices, rising.
        incomplete: indices of the videos that lack a view; they are not in `scores`.
    """

    scores: Tensor
    video: Tensor
    incomplete: list[int]


def ensemble_views(
    scores: Tensor, video: Tensor, view: Tensor, num_videos: int, num_views: int
) -> Ensemble:
    """Average the scores of the views of each video.

    Summed in float64 in the order of the view numbers, so the result is the same to the bit in
    whatever order, from however many ranks, the views arrive.

    Args:
        scores: (V, C), V the number of views that were evaluated.
        video: (V,) int64 in [0, num_videos).
        view: (V,) int64 in [0, num_views).
        num_videos: videos there should be.
        num_views: views each should have.

    Raises:
        ValueError: an index out of range, lengths that differ, or a view given twice.
    """
    _check(scores, video, view, num_videos, num_views)
    places, order = (video * num_views + view).sort()
    twice = places[1:][places[1:] == places[:-1]]
    if len(twice):
        first = divmod(int(twice[0]), num_views)
        raise ValueError(
            f"view {first[1]} of video {first[0]} was evaluated more than once ({len(twice)} "
            "repeats in all); every (video, view) must come exactly once"
        )
    complete = torch.bincount(video, minlength=num_videos) == num_views
    kept = order[complete[video[order]]]
    views = scores[kept].double().view(-1, num_views, scores.shape[1])
    total = torch.zeros_like(views[:, 0])
    for index in range(num_views):
        total += views[:, index]
    incomplete = (~complete).nonzero().flatten().tolist()
    return Ensemble(total / num_views, complete.nonzero().flatten(), incomplete)


def _check(scores: Tensor, video: Tensor, view: Tensor, num_videos: int, num_views: int) -> None:
    if not (scores.ndim == 2 and len(scores) == len(video) == len(view)):
        raise ValueError(
            f"scores {tuple(scores.shape)}, video {tuple(video.shape)} and view "
            f"{tuple(view.shape)} were given; they must be (V, C), (V,) and (V,)"
        )
    for name, index, number in (("video", video, num_videos), ("view", view, num_views)):
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < number:
            raise ValueError(
                f"{name} indices from {int(index.min())} to {int(index.max())} were given; "
                f"they must be in [0, {number})"
            )
