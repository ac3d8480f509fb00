"""A part of the training split kept out of the training, to choose settings on.

The test set must not choose anything. MPII Cooking 2 has validation sequences of its own; HMDB-51
and FineGym have not, so an index is written in which the training split lacks some of its source
videos, and those are the test split. The videos are read where they are.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from reproduce_cells import DATA_SETS, Places

from vmp.data import DATASETS, VideoRecord
from vmp.data.records import CLASS_NAMES
from vmp.data.release import INDEX, write_index

SHARE = 0.2


def hmdb51_source(record: VideoRecord) -> str:
    """Return the film that a clip was cut from: `<film>_<class>_<six properties>.avi`."""
    folder, _, name = record.id.rpartition("/")
    return name.rpartition(f"_{folder}_")[0] or name


def finegym_source(record: VideoRecord) -> str:
    """Return the YouTube name of the video, the first 11 characters of every instance's."""
    return record.id[:11]


SOURCES: dict[str, Callable[[VideoRecord], str]] = {
    "HMDB51": hmdb51_source,
    "FineGym": finegym_source,
}


def hold_out(
    records: Sequence[VideoRecord], source: Callable[[VideoRecord], str], share: float = SHARE
) -> tuple[list[VideoRecord], list[VideoRecord]]:
    """Divide records into those to train on and those held out; a source is in one part whole.

    Sources are taken in the order of the hash of their names, until the share is reached: it
    depends on nothing else, and is the same for every seed and setting.

    Args:
        records: of a training split.
        source: names what a record comes from.
        share: of the records, at least, that is held out, in (0, 1).

    Raises:
        ValueError: nothing would be left to train on.
    """
    by_source: dict[str, int] = {}
    for record in records:
        by_source[source(record)] = by_source.get(source(record), 0) + 1
    chosen: set[str] = set()
    count = 0
    for name in sorted(by_source, key=lambda each: hashlib.sha256(each.encode()).hexdigest()):
        if count >= share * len(records):
            break
        chosen.add(name)
        count += by_source[name]
    if count == len(records):
        raise ValueError(
            f"the {len(records)} training records come from {len(by_source)} source(s), of which "
            "none is left to train on; prepare the whole data set"
        )
    parts: tuple[list[VideoRecord], list[VideoRecord]] = ([], [])
    for record in records:
        parts[source(record) in chosen].append(record)
    return parts


def write_held_out(dataset: str, places: Places) -> Path:
    """Write the index of a data set for all its splits, once, and return its folder.

    Raises:
        ValueError: the data set is not prepared, or too small.
    """
    facts = DATA_SETS[dataset]
    root = (places.data / facts.folder).absolute()
    folder = places.out / "held_out" / facts.folder
    if (folder / INDEX).is_file():
        return folder
    name = dataset.lower()
    splits, classes = {}, {}
    for split in facts.splits:
        train, held_out = hold_out(DATASETS.get(name)(str(root), "train", split), SOURCES[dataset])
        splits[split] = {"train": train, "test": held_out}
        classes[split] = CLASS_NAMES.get(name)(str(root), split)
    write_index(folder, name, root, splits, classes)  # the records' paths are whole: root is spare
    return folder
