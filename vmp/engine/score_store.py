"""The scores of a test that is under way, on the disk, so that a killed test goes on."""

import logging
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejson
import torch
from torch import Tensor

from vmp.utils.distributed import broadcast_object, get_rank, is_main

logger = logging.getLogger(__name__)

# Before each record: mark, number of views, of classes, and the CRC-32 of what follows.
RECORD = struct.Struct("<4sIII")
MARK = b"view"  # else zeros, which a power cut may leave, would be records without views


class Scores(NamedTuple):
    """What a model made of V views.

    Attributes:
        item: (V,) int64, video * views per video + view.
        logits: (V, C) float32.
    """

    item: Tensor
    logits: Tensor


class ScoreStore:
    """A folder in which each rank of a test appends the scores it has to a file of its own.

    A file begins with a line of JSON, the facts of the test; then there is a record for each batch.
    A kill loses at most the record that is being written; its CRC tells. Nothing is forced onto the
    disk: a power cut loses the seconds of work that the system has not written yet. What follows a
    bad record is not used.

    Args:
        folder: on a disk of all ranks; nothing else is in it.
        facts: name -> value of what decides the scores; rank 0's count. Only scores with the same
            facts are taken up.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        self._facts = dict(facts)
        self._file = -1  # descriptor of this rank's file
        self._size = 0  # of it, in whole records
        self._complained = False

    def take_up(self) -> Scores:
        """Return what a stopped test left, each view once, and make ready to `add` to it.

        All ranks call it, once, and get the same. Scores of another test are set aside, where they
        replace those set aside before. If the disk can't be used, that is a warning, and nothing is
        kept.
        """
        answer = broadcast_object(self._prepare() if is_main() else None)
        if answer is None:
            return join([])
        head: bytes
        found: Scores
        head, found = answer
        try:
            path = self.folder / f"rank{get_rank()}.scores"
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            self._size = os.fstat(self._file).st_size
            if not self._size:
                self._append(head)
        except OSError as error:
            self._complain(error)
            self.close()
        return found

    def add(self, scores: Scores) -> None:
        """Append `scores` to this rank's file; if the disk is full, they are not kept."""
        if self._file < 0:
            return
        try:
            self._append(pack(scores))
        except OSError as error:
            self._complain(error)
            self._cut_back()

    def close(self) -> None:
        """Close this rank's file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Delete the folder, once the results are written; for rank 0, after all have closed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # a disk that fills up takes a part
            rest = rest[os.write(self._file, rest) :]
        self._size += len(data)

    def _cut_back(self) -> None:
        """Take off what is half written, so that the next record can follow."""
        try:
            os.ftruncate(self._file, self._size)
        except OSError:
            self.close()

    def _prepare(self) -> tuple[bytes, Scores] | None:
        """Return how a file begins, and what the files hold; None if the disk can't be used."""
        head = (simplejson.dumps(self._facts, sort_keys=True) + "\n").encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            paths = sorted(self.folder.glob("rank*.scores"))
            others = {name for path in paths for name in self._differences(path)}
            if others:
                self._set_aside(others)
                paths = []
            parts = [part for path in paths for part in read_and_cut(path, head)]
        except OSError as error:
            self._complain(error)
            return None
        found = join(parts)
        # the same view twice is the same scores: they have the same facts
        item, first = np.unique(found.item.numpy(), return_index=True)
        return head, Scores(torch.from_numpy(item), found.logits[torch.from_numpy(first)])

    def _differences(self, path: Path) -> set[str]:
        """Return the names of the facts by which a file is of another test."""
        with path.open("rb") as file:
            line = file.readline()
        try:
            facts = dict(simplejson.loads(line))
        except (ValueError, TypeError):  # cut off or damaged: of no test
            return set()
        names = self._facts.keys() | facts.keys()
        return {name for name in names if facts.get(name) != self._facts.get(name)}

    def _set_aside(self, differences: set[str]) -> None:
        aside = self.folder.with_name(f"{self.folder.name}.aside")
        shutil.rmtree(aside, ignore_errors=True)
        self.folder.rename(aside)
        self.folder.mkdir()
        logger.warning(
            "%s has scores of a test that differs in %s; they are set aside as %s, and this test "
            "begins anew",
            self.folder,
            ", ".join(sorted(differences)),
            aside,
        )

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            logger.warning("%s: scores are not kept, a killed test would do them again", error)
        self._complained = True


def join(parts: Sequence[Scores]) -> Scores:
    """Put scores one after the other."""
    parts = [part for part in parts if len(part.item)]
    if not parts:
        return Scores(torch.empty(0, dtype=torch.int64), torch.empty(0, 0))
    return Scores(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def pack(scores: Scores) -> bytes:
    """Return the record of `scores`."""
    item = scores.item.numpy().astype("<i8").tobytes()
    content = item + scores.logits.numpy().astype("<f4").tobytes()
    return RECORD.pack(MARK, *scores.logits.shape, zlib.crc32(content)) + content


def unpack(data: bytes, start: int) -> Iterator[tuple[Scores, int]]:
    """Yield scores and end of each record from byte `start` on, up to the first bad one."""
    while len(data) >= start + RECORD.size:
        mark, views, classes, crc = RECORD.unpack_from(data, start)
        begin, end = start + RECORD.size, start + RECORD.size + views * (8 + 4 * classes)
        if mark != MARK or end > len(data) or zlib.crc32(memoryview(data)[begin:end]) != crc:
            return
        item = np.frombuffer(data, "<i8", views, begin).astype(np.int64)
        logits = np.frombuffer(data, "<f4", views * classes, begin + 8 * views).astype(np.float32)
        yield Scores(torch.from_numpy(item), torch.from_numpy(logits).view(views, classes)), end
        start = end


def read_and_cut(path: Path, head: bytes) -> list[Scores]:
    """Return what a file has, and cut off what is not whole; without its head that is all."""
    data = path.read_bytes()
    records = list(unpack(data, len(head))) if data.startswith(head) else []
    whole = len(head) if data.startswith(head) else 0
    whole = records[-1][1] if records else whole
    if whole < len(data):
        os.truncate(path, whole)
    return [scores for scores, _ in records]
