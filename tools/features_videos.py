"""Which videos features are made of, and under which names they are kept."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from fvcore.common.config import CfgNode
from new_dataset_find import ENDINGS

from vmp.data.build import build_official_records
from vmp.data.records import VideoRecord

LISTS = (".txt", ".csv", ".list")
LABEL = re.compile(r"[,\s]\s*\d+$")


class Job(NamedTuple):
    """A video to make features of.

    Attributes:
        name: path of its file below the folder of features, without its ending.
        record: the video; its label is -1 where it has none.
    """

    name: str
    record: VideoRecord


def list_jobs(words: Sequence[str]) -> list[Job]:
    """Return what files, folders and lists name, in their order, each video once.

    Raises:
        ValueError: a list can't be read, nothing is found, or two videos would have one name.
    """
    return unique(job for word in words for job in _jobs_of(word))


def build_jobs(cfg: CfgNode, split: str) -> list[Job]:
    """Return the videos of a split of the data set TRAIN.DATASET.

    Raises:
        ValueError: missing files, no videos, or two of one name.
    """
    records = build_official_records(cfg, split)
    return unique(Job(_name(record), record) for record in records)


def unique(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs, each once.

    Raises:
        ValueError: there is none, or two different ones have the same name.
    """
    found: dict[str, Job] = {}
    for job in jobs:
        other = found.setdefault(job.name, job)
        if _stretch(other) != _stretch(job):
            raise ValueError(
                f"{other.record.path} and {job.record.path} would both be written as {job.name}; "
                "name a folder that both are in, or take two --out"
            )
    if not found:
        raise ValueError("there is no video; check the folder and the list")
    return list(found.values())


def _stretch(job: Job) -> tuple[str, int, int | None]:
    return os.path.abspath(job.record.path), job.record.start, job.record.stop


def _name(record: VideoRecord) -> str:
    """Return the name of a record: as the release has it, with its frames if it is a part."""
    name = below(record.id or record.path)
    if record.start == 0 and record.stop is None:
        return name
    return f"{name}_{record.start}-{'' if record.stop is None else record.stop}"


def _jobs_of(word: str) -> Iterator[Job]:
    path = Path(word)
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix.lower() in ENDINGS)
        if not files:
            raise ValueError(f"{path} has no video in it, none of {', '.join(ENDINGS)}")
        for file in files:
            yield Job(below(file.relative_to(path)), VideoRecord(str(file), -1, id=str(file)))
    elif path.suffix.lower() in LISTS:
        for line in _lines(path):
            labelled = LABEL.search(line)
            name = LABEL.sub("", line).strip('" ')
            label = int(labelled[0].strip(", \t")) if labelled else -1
            yield Job(below(name), VideoRecord(str(path.parent / name), label, id=name))
    else:
        yield Job(below(word), VideoRecord(word, -1, id=word))


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list {path} can't be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def below(path: str | PurePath) -> str:
    """Return a path that stays below the folder it is joined to: without a root and `..`."""
    plain = os.path.normpath(path)
    if PurePath(plain).parts[0] == "..":
        plain = os.path.abspath(plain)
    return PurePath(plain).relative_to(PurePath(plain).anchor).as_posix()
