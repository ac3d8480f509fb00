"""From an official release to an index: what the scripts datasets/<name>/prepare.py share.

The index, which they write and the loader reads, is one JSON file, a line a record, that says of
every official record of every split which frames of which video it is. A record whose video is
absent stays in, marked, so that an evaluation can tell how many of the official records it has
covered.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vmp.data.archive import DecodeError
from vmp.data.cut import Clip, cut_all
from vmp.data.frame_index import FrameIndex, scan_all
from vmp.data.records import VideoRecord
from vmp.utils.files import write_text

# Records of the official releases: data set -> variant -> split; the first variant is the default.
# MPII Cooking 2 is not here: what its split files name are videos, and how many of their intervals
# count is told nowhere.
OFFICIAL_COUNTS: dict[str, dict[str, dict[str, int]]] = {
    "hmdb51": {variant: {"train": 3570, "test": 1530} for variant in ("1", "2", "3")},
    "finegym": {  # v1.1
        "gym99": {"train": 26320, "test": 8521},
        "gym288": {"train": 29334, "test": 9646},
    },
    "utinteraction": {"crossset": {"train": 60, "test": 60}},
}

INDEX = "index.json"
# Videos that are scanned once leave what was found here, beside the index.
FRAME_INDEX_FOLDER = "frame_index"
# Clips that are cut, beside the index as well.
CLIPS_FOLDER = "clips"
_FORMAT = "vmp index 1"


def official_count(dataset: str, variant: str, split: str) -> int | None:
    """Return the number of records of an official split; None if it is not known."""
    variants = OFFICIAL_COUNTS.get(dataset, {})
    return variants.get(variant or next(iter(variants), ""), {}).get(split)


# --------------------------------------------------------------------------- the videos
def scan_videos(
    paths: Mapping[str, str], out: Path, workers: int
) -> dict[str, FrameIndex | DecodeError]:
    """Look into videos, with a bar; what an earlier call has found is not looked for again.

    Args:
        paths: name of a video -> its file, each file once.
        out: folder of the index.
        workers: processes.

    Returns:
        Name -> which frames there are, or what is wrong with the file.
    """
    names = {path: name for name, path in paths.items()}
    found = scan_all(names, out / FRAME_INDEX_FOLDER, workers)
    bar = tqdm(found, total=len(names), desc="scan videos", unit="video")
    return {names[path]: result for path, result in bar}


def cut_clips(
    records: Iterable[VideoRecord],
    videos: Path,
    out: Path,
    workers: int,
    *,
    name: Callable[[VideoRecord], str],
) -> dict[VideoRecord, VideoRecord]:
    """Write a clip of each record that is not excluded, with a bar.

    What an earlier call has cut is left as it is. Records of the same name share a clip.

    Args:
        records: their paths relative to `videos`.
        videos: folder of the long videos.
        out: folder of the index; the clips come into CLIPS_FOLDER there.
        workers: processes.
        name: record -> file name of its clip, relative to CLIPS_FOLDER.

    Returns:
        Record -> record of its clip, the path relative to CLIPS_FOLDER. One that can't be cut is
        excluded as unreadable.

    Raises:
        ValueError: clips can't be encoded here.
        OSError: no room, or no permission.
    """
    folder = out / CLIPS_FOLDER
    names = {record: name(record) for record in records}
    clips = {
        Clip(str(videos / record.path), record.start, record.stop, folder / named)
        for record, named in names.items()
        if not record.excluded
    }
    # neighbours in a video one after the other: what has been read of it is still in memory
    made = cut_all(sorted(clips), out / FRAME_INDEX_FOLDER, workers)
    bar = tqdm(made, total=len(clips), desc="cut clips", unit="clip")
    frames = {clip.out: result for clip, result in bar}
    return {
        record: _of_clip(record, named, frames.get(folder / named))
        for record, named in names.items()
    }


def _of_clip(record: VideoRecord, named: str, frames: int | DecodeError | None) -> VideoRecord:
    clip = record._replace(path=named)
    if frames is None:  # excluded before
        return clip
    if isinstance(frames, DecodeError):
        return clip._replace(excluded=f"unreadable: {frames.reason}")
    return clip._replace(start=0, stop=frames)


# --------------------------------------------------------------------------- the index
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
