"""What a data set is: a list of records, and the names of its classes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vmp.utils.registry import Registry

logger = logging.getLogger(__name__)

# name(root: str, split: str, variant: str = "") -> list[VideoRecord]; split is "train" or "test",
# variant is which of the official splits, "" for the data set's own default.
DATASETS = Registry("data set")
# Under the same names: name(root: str, variant: str = "") -> tuple[str, ...], index = label; empty
# if unnamed.
CLASS_NAMES = Registry("class names")

SPLITS = ("train", "test")

ClassNames = Callable[..., tuple[str, ...]]  # (root, variant)


class VideoRecord(NamedTuple):
    """A stretch of a video and its class.

    Attributes:
        path: the video file.
        label: class, 0 or more.
        start: first frame, counted from 0.
        stop: one past the last frame; None is the end of the video. Where fewer frames decode
            than an annotation promises, the stretch ends with what decodes.
        id: the name the release itself gives it, or its path as its list has it.
        excluded: why it is not to be read, one line ("absent", "quarantined: ..."); "" if it is.
            Training leaves such records out; an evaluation counts them as not evaluated.
    """

    path: str
    label: int
    start: int = 0
    stop: int | None = None
    id: str = ""
    excluded: str = ""


def register_class_names(dataset: str) -> Callable[[ClassNames], ClassNames]:
    """Register a function in CLASS_NAMES under the name of its data set."""
    return CLASS_NAMES.register(dataset)


def check_request(dataset: str, root: str, split: str) -> None:
    """Check the arguments every data set has.

    Raises:
        ValueError: no root, or a split that is not "train" or "test".
    """
    if not root:
        raise ValueError(
            f"no folder given for data set {dataset!r}; set DATA.PATH_TO_DATA_DIR to its root"
        )
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not known; there are: {', '.join(SPLITS)}")


def read_quarantine(path: str | Path) -> dict[str, str]:
    """Read a list of records not to be used, a line `id` or `id<tab>reason` each.

    Returns:
        id of a record -> reason.

    Raises:
        ValueError: the file can't be read.
    """
    try:
        # a mark that some editors begin a file with is no part of an id
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"DATA.QUARANTINE {path} can't be read: {error}") from error
    parted = (line.partition("\t") for line in lines if line.strip())
    return {name: reason.strip() for name, _, reason in parted}


def quarantine(records: Sequence[VideoRecord], reasons: Mapping[str, str]) -> list[VideoRecord]:
    """Mark the records that are named in `reasons` as excluded; those that are already stay so."""
    marked = []
    for record in records:
        reason = reasons.get(record.id)
        if reason is not None and not record.excluded:
            record = record._replace(excluded=f"quarantined: {reason or 'no reason given'}")
        marked.append(record)
    named = len(reasons.keys() & {record.id for record in records})
    logger.info("DATA.QUARANTINE names %d of these %d records", named, len(records))
    return marked
