"""A data set of one's own: a text file a split, one line `path label` a video."""

import os
from pathlib import Path

from vmp.data.records import DATASETS, VideoRecord, check_request, register_class_names

ENDINGS = (".csv", ".txt", ".list")
NAMES_FILE = "classes.txt"


@DATASETS.register()
def csv(root: str, split: str, variant: str = "") -> list[VideoRecord]:
    """Read `<root>/<split>.csv`, `.txt` or `.list`.

    A line is `path label`. The label, an integer from 0, is the last field, so the path may hold
    blanks; the two are parted by blanks, a comma or a tab. Paths are relative to `root`, or
    absolute. Empty lines are skipped. Whether a video exists is not looked at: one that is missing
    shows up as a failure when it is read, and is counted there.

    Args:
        root: folder with the lists.
        split: "train" or "test".
        variant: a folder in `root` that holds the lists instead; paths stay relative to `root`.

    Raises:
        ValueError: no list, more than one, an empty one, or a line that is not `path label`; the
            message names file and line.
    """
    check_request("csv", root, split)
    return read_list(_find_list(Path(root, variant), split), root)


@register_class_names("csv")
def class_names(root: str, variant: str = "") -> tuple[str, ...]:
    """Read `<root>/classes.txt`, one name a line, the first for label 0; () if there is none."""
    path = Path(root, NAMES_FILE)
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def read_list(listing: Path, root: str) -> list[VideoRecord]:
    """Read a list of `path label` lines; paths are relative to `root`.

    Raises:
        ValueError: as `csv`.
    """
    records = []
    text = listing.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            path, label = _parse(line, f"{listing}:{number}")
            records.append(VideoRecord(os.path.join(root, path), label, id=path))
    if not records:
        raise ValueError(f"{listing} lists no video; write one line `path label` for each")
    return records


def _find_list(folder: Path, split: str) -> Path:
    wanted = [folder / f"{split}{ending}" for ending in ENDINGS]
    found = [path for path in wanted if path.is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{', '.join(map(str, found))}: only one may be there; remove the others")
    raise ValueError(
        f"no list of the {split} videos; {wanted[0]} (or {', '.join(ENDINGS[1:])}) is wanted, "
        f"with a line `path label` for each video"
    )


def _parse(line: str, place: str) -> tuple[str, int]:
    """Split `path label`, `path,label` or `path<tab>label` at the last separator."""
    text = line.strip()
    head = text.rstrip("0123456789")
    path = head.rstrip(", \t").strip().strip('"')
    parted = head != text and head[-1:] in (",", " ", "\t")
    if not path or not parted:
        raise ValueError(
            f"{place}: {text!r} is not `path label`; the last field is the class, an integer from 0"
        )
    return path, int(text[len(head) :])
