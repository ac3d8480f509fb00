"""Find one's own videos and their classes: in a folder of class folders, or in a CSV file.

Nothing is opened but the CSV, and nothing is written.
"""

import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ENDINGS = (
    *(".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv", ".3gp"),
    *(".ts", ".mts", ".m2ts", ".ogv", ".vob", ".asf", ".divx"),
)
# Names of folders, or values of a column, that mean a split.
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
# Titles of a CSV's columns.
COLUMNS = {
    "path": ("path", "video", "file", "filename", "video_path", "filepath", "clip", "name"),
    "label": ("label", "class", "category", "action", "target"),
    "split": ("split", "subset", "set", "partition"),
}


class Video(NamedTuple):
    """A video and its class.

    Attributes:
        path: absolute; links are not followed.
        name: its path in the folder or the CSV, by which a split goes.
        label: name of its class.
        split: "train", "test" or "val" where that is given, else "".
    """

    path: str
    name: str
    label: str
    split: str


class Found(NamedTuple):
    """What there is.

    Attributes:
        videos: sorted by name.
        notes: what was passed over, a line each.
    """

    videos: list[Video]
    notes: list[str]


def find_videos(source: Path) -> Found:
    """Return the videos of a folder of class folders, or of a CSV file.

    Raises:
        ValueError: there is no such thing, or it holds no videos, or fewer than two classes.
    """
    if source.is_dir():
        found = find_in_folder(source)
    elif source.is_file():
        found = find_in_csv(source)
    else:
        raise ValueError(f"{source} does not exist; name a folder of class folders or a CSV file")
    odd = {video: name for video in found.videos if (name := _odd_name(video))}
    kept = [video for video in found.videos if video not in odd]
    notes = found.notes
    if odd:
        example = next(iter(odd.values()))
        note = (
            f"{len(odd)} left out: a line of a list can't hold their names (line breaks, blanks "
            f"or quotes at an end, bytes that are no UTF-8), e.g. {example!r}; rename them"
        )
        if not kept:
            raise ValueError(f"{source} has no video that can be listed: {note}")
        notes = [*notes, note]
    classes = {video.label for video in kept}
    if len(classes) < 2:
        raise ValueError(_one_class(source, classes.pop()) + "".join(f" ({n})" for n in notes))
    return Found(sorted(kept, key=lambda video: video.name), notes)


def _one_class(source: Path, name: str) -> str:
    told = f"{source} has only one class, {name!r}; "
    if source.is_file():
        return told + "its label column must name at least two"
    meant = f": did you mean {source / name}?" if _nested(source / name) else ""
    return f"{told}each class needs its own folder in it{meant}"


def _nested(folder: Path) -> bool:
    return folder.is_dir() and any(each.is_dir() for each in folder.iterdir())


def _odd_name(video: Video) -> str:
    """Return the name that a line of a list, or of classes.txt, does not give back; "": none."""
    for name in (video.name, video.label, video.path):
        plain = name == name.strip().strip('"') and len(name.splitlines()) == 1
        if not plain or name != name.encode("utf-8", "replace").decode():
            return name
    return ""


# --------------------------------------------------------------------------- folders
def find_in_folder(source: Path) -> Found:
    """Return the videos of `source/<class>/`, or of `source/<split>/<class>/`, at any depth.

    Hidden files and folders are passed over, and so is what has not the ending of a video.

    Raises:
        ValueError: there is no video in a class folder.
    """
    root = source.absolute()
    folders = _subfolders(root)
    splits = {folder: SPLITS.get(folder.name.lower(), "") for folder in folders}
    videos: list[Video] = []
    notes: list[str] = []
    others: Counter[str] = Counter()
    if "train" in splits.values() and {"test", "val"} & set(splits.values()):
        for folder in (each for each in folders if splits[each]):
            for child in _subfolders(folder):
                _take_class(root, child, splits[folder], videos, notes, others)
        strays = [folder.name for folder in folders if not splits[folder]]
        if strays:
            notes.append(f"folders beside the splits were passed over: {', '.join(strays)}")
    else:
        for folder in folders:
            _take_class(root, folder, "", videos, notes, others)
    if others:
        told = ", ".join(f"{count} x {ending}" for ending, count in others.most_common(5))
        notes.append(f"no videos, so passed over: {told}")
    if not videos:
        raise ValueError(f"{source} has no video in a class folder{_what_instead(root, folders)}")
    return Found(videos, notes)


def _what_instead(root: Path, folders: Sequence[Path]) -> str:
    loose = [each for each in root.iterdir() if each.suffix.lower() in ENDINGS]
    if loose:
        return (
            f", but {len(loose)} beside each other; put those of a class into a folder of its "
            "name, or give a CSV with lines `path,label`"
        )
    if not folders:
        return "; it has no folder at all"
    return f"; looked in {', '.join(each.name for each in folders[:3])} for {', '.join(ENDINGS)}"


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")
    )


def _take_class(
    root: Path,
    folder: Path,
    split: str,
    videos: list[Video],
    notes: list[str],
    others: Counter[str],
) -> None:
    """Add the videos of a class folder; what else is in it goes into the notes."""
    label = unicodedata.normalize("NFC", folder.name)  # as some file systems do not
    before = len(videos)
    for path in _files(folder, {os.path.realpath(folder)}):
        if path.suffix.lower() in ENDINGS:
            videos.append(Video(str(path), path.relative_to(root).as_posix(), label, split))
        else:
            others[path.suffix.lower() or "without an ending"] += 1
    if len(videos) == before:
        where = f"{split} folder" if split else "folder"
        notes.append(f"the {where} {folder.name!r} has no videos; it is no class")


def _files(folder: Path, above: set[str]) -> Iterator[Path]:
    """Yield the files below a folder, links followed; one that leads back to itself is not."""
    for each in sorted(folder.iterdir()):
        if each.name.startswith("."):
            continue
        if each.is_dir():
            real = os.path.realpath(each)
            if real not in above:
                yield from _files(each, above | {real})
        else:
            yield each


# --------------------------------------------------------------------------- a CSV file
def find_in_csv(source: Path) -> Found:
    """Return the videos of a CSV file: `path,label`, or columns with titles, among them `split`.

    Paths are relative to the file's folder, labels names or numbers. Commas, tabs or semicolons
    part the columns; a first line that is a title is told by its words or by its path.

    Raises:
        ValueError: it can't be read, has no videos, or a line is not of this form; a video has
            two classes.
    """
    rows, lines = _read_rows(source)
    if not rows:
        raise ValueError(f"{source} has no line `path,label`")
    columns = _columns(rows[0])
    notes = []
    if columns or _is_title(rows[0], source.parent):
        if not columns:  # or a video that is not there
            notes.append(f"line {lines[0]} was taken for a title: there is no file {rows[0][0]!r}")
        rows, lines = rows[1:], lines[1:]
    videos: dict[str, Video] = {}
    repeated = 0
    for row, line in zip(rows, lines, strict=True):
        video = _parse_row(row, columns, f"{source}:{line}", source.parent)
        known = videos.setdefault(video.path, video)
        repeated += known is not video
        if known != video:
            raise ValueError(
                f"{source}:{line}: {video.name} is {video.label!r} {video.split} here and "
                f"{known.label!r} {known.split} before; a video has one class and one split"
            )
    if not videos:
        raise ValueError(f"{source} has a title and no line `path,label`")
    if repeated:
        notes.append(f"{repeated} lines say again what another says")
    return Found(list(videos.values()), notes)


def _read_rows(source: Path) -> tuple[list[list[str]], list[int]]:
    """Return the rows that are not empty, and the numbers of their lines."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} can't be read as text in UTF-8: {error}") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    comma = next((sign for sign in "\t,;" if sign in first), ",")
    reader = csv.reader(text.splitlines(), delimiter=comma)
    rows, lines = [], []
    try:
        for row in reader:
            if any(field.strip() for field in row):
                fields = [field.strip() for field in row]
                # `path label`, as other frameworks have it
                rows.append(fields if fields[1:] else fields[0].rsplit(maxsplit=1))
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{source}:{reader.line_num}: {error}") from error
    return rows, lines


def _columns(row: Sequence[str]) -> dict[str, int]:
    """Return kind -> column where a row is a title that names path and label, else {}."""
    titles = [field.lower() for field in row]
    found = {
        kind: titles.index(next(word for word in words if word in titles))
        for kind, words in COLUMNS.items()
        if any(word in titles for word in words)
    }
    return found if {"path", "label"} <= found.keys() else {}


def _is_title(row: Sequence[str], folder: Path) -> bool:
    return Path(row[0]).suffix.lower() not in ENDINGS and not (folder / row[0]).is_file()


def _parse_row(row: Sequence[str], columns: dict[str, int], place: str, folder: Path) -> Video:
    if not columns:
        if len(row) != 2:
            raise ValueError(
                f"{place}: {','.join(row)!r} is not `path,label`; put a path with a comma in "
                "quotes, or begin the file with titles, as `path,label,split`"
            )
        columns = {"path": 0, "label": 1}
    if len(row) <= max(columns["path"], columns["label"]):
        raise ValueError(f"{place}: {','.join(row)!r} has fewer columns than titles")
    name, label = row[columns["path"]], unicodedata.normalize("NFC", row[columns["label"]])
    if not name or not label:
        raise ValueError(f"{place}: {','.join(row)!r} lacks the path or the label")
    split = ""
    if "split" in columns:
        told = row[columns["split"]] if columns["split"] < len(row) else ""
        split = SPLITS.get(told.lower(), "")
        if not split:
            raise ValueError(f"{place}: {told!r} is no split; there are: train, test, val")
    return Video(os.path.abspath(folder / name), name, label, split)


# --------------------------------------------------------------------------- classes
def class_names(videos: Sequence[Video]) -> list[str]:
    """Return the names of the classes, the first for label 0; numbers in their order."""
    names = {video.label for video in videos}
    if all(re.fullmatch(r"\d+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
