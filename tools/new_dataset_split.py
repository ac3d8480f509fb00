"""Part videos into train and test: the same share of each class, groups kept together."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from new_dataset_find import Video

Parts = dict[str, list[Video]]  # "train" and "test"


def split_videos(
    videos: Sequence[Video],
    same: Mapping[str, str],
    *,
    share: float,
    seed: int,
    group_by: str | None = None,
) -> Parts:
    """Return the videos of each part: as they are marked, or by a draw.

    The draw depends on the seed and the names alone: neither on the order of the files nor on where
    they lie, and a new video moves few others.

    Args:
        videos: to part; all of them marked with a split, or none.
        same: path -> what is equal for copies of one video, which stay together.
        share: of each class for the test, 0 to 1.
        seed: of the draw.
        group_by: a regular expression; videos in whose name it finds the same stay together.

    Raises:
        ValueError: a class would have no video to train on, or by a draw none to test on.
    """
    if any(video.split for video in videos):
        return _as_marked(videos)
    totals = Counter(video.label for video in videos)
    wanted = {label: min(max(1, round(share * n)), n - 1) for label, n in totals.items()}
    alone = [label for label, count in wanted.items() if not count]
    if alone:
        raise ValueError(
            f"{_listed(alone)}: a single video; a class needs two, one to train and one to test "
            "on. Add some, or take the class away"
        )
    groups = _group(videos, same, group_by)
    tested: Counter[str] = Counter()
    parts: Parts = {"train": [], "test": []}
    for name in sorted(groups, key=lambda name: _draw(seed, name)):
        labels = Counter(video.label for video in groups[name])
        nearer = sum(
            abs(tested[label] - wanted[label]) - abs(tested[label] + count - wanted[label])
            for label, count in labels.items()
        )
        if nearer > 0:
            tested += labels
        parts["test" if nearer > 0 else "train"] += groups[name]
    _check_parts(parts, "; take another --seed or --test-share, or a finer --group-by")
    return {part: sorted(listed, key=lambda video: video.name) for part, listed in parts.items()}


def _as_marked(videos: Sequence[Video]) -> Parts:
    """Return the parts that are given; what is marked val is the test where there is no other."""
    marked = {name: [v for v in videos if v.split == name] for name in ("train", "test", "val")}
    parts = {"train": marked["train"], "test": marked["test"] or marked["val"]}
    for name, listed in parts.items():
        if not listed:
            raise ValueError(f"the split that is there has no {name} video that can be read")
    labels = {part: {video.label for video in listed} for part, listed in parts.items()}
    if unknown := sorted(labels["test"] - labels["train"]):
        raise ValueError(f"{_listed(unknown)}: no video to train on in the split that is there")
    return parts


def _group(
    videos: Sequence[Video], same: Mapping[str, str], group_by: str | None
) -> dict[str, list[Video]]:
    """Return the groups by the name of one of their videos, or of what they have in common."""
    groups: dict[str, list[Video]] = defaultdict(list)
    first: dict[str, str] = {}
    for video in sorted(videos, key=lambda video: video.name):
        match = re.search(group_by, video.name) if group_by else None
        if match is None:
            key = first.setdefault(same.get(video.path) or video.path, video.name)
        else:
            key = f"group {match[1] if match.re.groups else match[0]}"
        groups[key].append(video)
    return groups


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def _check_parts(parts: Parts, advice: str) -> None:
    labels = {part: {video.label for video in listed} for part, listed in parts.items()}
    for part, there in labels.items():
        if lacking := sorted(set().union(*labels.values()) - there):
            raise ValueError(f"{_listed(lacking)}: no video to {part} on{advice}")


def _listed(names: Sequence[str]) -> str:
    told = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if names[3:] else "")
    return f"class {told}"
