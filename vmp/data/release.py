"""The index of a prepared data set: what datasets/<name>/prepare.py writes and the loader reads.

One JSON file, a line a record, that says of every official record of every split which frames of
which video it is. A record whose video is absent stays in, marked, so that an evaluation can tell
how many of the official records it has covered.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmp.data.records import VideoRecord
from vmp.utils.files import write_text

INDEX = "index.json"
# Videos that are scanned once leave what was found here, beside the index.
FRAME_INDEX_FOLDER = "frame_index"
_FORMAT = "vmp index 1"


def write_index(
    folder: str | Path,
    dataset: str,
    videos: str | Path,
    splits: Mapping[str, Mapping[str, Sequence[VideoRecord]]],
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write `<folder>/index.json`, whole or not at all, and return its path.

    Args:
        folder: made if needed.
        dataset: name in DATASETS.
        videos: folder that the paths of the records are relative to. Inside `folder` it is stored
            relative to it, so that the two can move together.
        splits: variant -> split ("train", "test") -> every official record, in the official order.
        classes: variant -> names of its classes, where the release's files tell them.
    """
    folder, videos = Path(folder).absolute(), Path(videos).absolute()
    inside = videos.is_relative_to(folder)
    head = {
        "format": _FORMAT,
        "dataset": dataset,
        "videos": str(videos.relative_to(folder) if inside else videos),
        "classes": {variant: list(names) for variant, names in (classes or {}).items()},
    }
    parts = [
        f"{json.dumps(f'{variant}/{split}')}: [\n" + ",\n".join(map(_line, records)) + "\n]"
        for variant, by_split in splits.items()
        for split, records in by_split.items()
    ]
    text = json.dumps(head)[:-1] + ', "splits": {\n' + ",\n".join(parts) + "\n}}\n"
    write_text(folder / INDEX, text)
    return folder / INDEX


def _line(record: VideoRecord) -> str:
    return json.dumps(list(record), ensure_ascii=True)


def read_index(
    root: str | Path, dataset: str, split: str, variant: str, *, script: str
) -> list[VideoRecord]:
    """Return the records of one split, their paths joined to the folder of the videos.

    Args:
        root: folder with index.json.
        dataset: what it must be the index of.
        split: "train" or "test".
        variant: as given to `write_index`.
        script: what writes the index, for the messages.

    Raises:
        ValueError: there is no index, it is broken or another data set's, or it has no such split.
    """
    path = Path(root, INDEX)
    index = _load(path, dataset, script)
    splits = index["splits"]
    key = f"{variant}/{split}"
    if key not in splits:
        known = sorted({name.rpartition("/")[0] for name in splits})
        raise ValueError(
            f"DATA.SPLIT {variant!r} has no {split} records in {path}; "
            f"there are: {', '.join(known)}"
        )
    videos = os.path.join(root, index["videos"])
    try:
        return [_record(row, videos) for row in splits[key]]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is broken ({error}); run {script} again") from error


def read_classes(root: str | Path, dataset: str, variant: str, *, script: str) -> tuple[str, ...]:
    """Return the class names that `write_index` was given for a variant; () if there are none.

    Raises:
        ValueError: there is no index, or it is broken or another data set's.
    """
    return tuple(_load(Path(root, INDEX), dataset, script)["classes"].get(variant, ()))


def _record(row: Sequence[Any], videos: str) -> VideoRecord:
    record = VideoRecord(*row)
    return record._replace(path=os.path.join(videos, record.path))


def _load(path: Path, dataset: str, script: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"no {path.name} in {path.parent}; set DATA.PATH_TO_DATA_DIR to the folder that "
            f"`python {script} --out FOLDER` has written"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        found, kind = index["dataset"], index["format"]
        complete = all(isinstance(index[key], dict) for key in ("splits", "classes"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is broken ({error!r}); run {script} again") from error
    if kind != _FORMAT or not complete:
        raise ValueError(f"{path} has another format ({kind!r}); run {script} again")
    if found != dataset:
        raise ValueError(
            f"{path} is the index of {found!r}, TRAIN.DATASET is {dataset!r}; make them the same"
        )
    return dict(index)
