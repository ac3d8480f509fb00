"""Every way of decoding compared with a sequential decode, file by file.

    python -m tests.data.conformance [FOLDER OF REAL VIDEOS]

prints the table of docs/decoding.md.
"""

import argparse
import contextlib
import random
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from tests.data.conftest import number_in
from tests.data.odd_videos import NO_VIDEOS, ODD_VIDEOS
from tests.data.sequential import Known, decode_all, place_of
from vmp.data.archive import DecodeError
from vmp.data.backends import SAME_PICTURE
from vmp.data.decode import BACKENDS, VideoReader


class Outcome(NamedTuple):
    """What a backend makes of a file.

    Attributes:
        frames: number of frames there are.
        missing: those it refuses to give.
        reason: why, or why it refuses the file.
        difference: the largest from the sequential decode, mean of a frame, grey levels.
    """

    frames: int
    missing: list[int]
    reason: str
    difference: float


known_of = lru_cache(maxsize=4)(decode_all)


def compare(path: Path, backend: str, *, coded: bool) -> Outcome:
    """Read a file in every order and compare each frame.

    Args:
        path: the file.
        backend: what decodes it.
        coded: the pixels tell the number of the frame.

    Returns:
        What can't be read; a wrong frame is an AssertionError.
    """
    known = known_of(path)
    try:
        reader = VideoReader(path, backend)
    except DecodeError as error:
        return Outcome(len(known.pictures), list(range(len(known.pictures))), error.reason, 0.0)
    with reader:
        total = len(reader)
        upright = np.rot90(known.pictures[0], known.turns).shape[:2]
        assert reader.size == upright
        if known.whole == len(known.pictures):
            assert total == known.whole
        missing, reason = [], ""
        difference = 0.0
        for numbers in orders(total):
            try:
                frames = reader.read(numbers)
            except DecodeError as error:
                missing += numbers if len(numbers) == 1 else []
                reason = error.reason
                continue
            difference = max(difference, _check(known, reader, numbers, frames, coded))
    return Outcome(total, sorted(set(missing)), reason, difference)


def orders(total: int) -> Iterable[list[int]]:
    """Yield frame numbers: in turn, random ones in any order and twice, far ones, each alone."""
    rng = random.Random(total)
    yield list(range(total))[:300]
    for _ in range(4):
        yield [rng.randrange(total) for _ in range(6)]
    yield [total - 1, 0, total // 2, total // 2, 0]
    alone = list(range(total))
    rng.shuffle(alone)
    yield from ([number] for number in {*alone[:30], 0, total - 1})


def _check(
    known: Known, reader: VideoReader, numbers: Sequence[int], frames: np.ndarray, coded: bool
) -> float:
    """Return the largest difference; a wrong frame is an AssertionError."""
    differences = []
    assert len(frames) == len(numbers)
    for number, frame in zip(numbers, frames, strict=True):
        place = place_of(known, reader._index, number)
        assert not isinstance(place, str), f"{reader.path}: frame {number} of {numbers}: {place}"
        right = np.rot90(known.pictures[place], known.turns)
        difference = float(np.abs(right.astype(np.int16) - frame).mean())
        differences.append(difference)
        told = f"{reader.path}: frame {number} of {numbers} is {difference:.2f} off"
        if coded:
            told += f", it is {number_in(frame)} and not {number_in(right)}"
            assert number_in(frame) == number_in(right), told
        assert difference <= SAME_PICTURE, told
    return max(differences)


# --------------------------------------------------------------------------- the table
def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="*", help="folders with more videos")
    args = parser.parse_args(argv)
    av.logging.set_level(None)
    lines = ["| file | frames | " + " | ".join(BACKENDS) + " |", "|---" * (2 + len(BACKENDS)) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (ODD_VIDEOS | NO_VIDEOS).items():
            path = Path(folder, name.replace(".", "_"), name)
            path.parent.mkdir()
            make(path)
            lines.append(_row(path, coded=name in ODD_VIDEOS))
        for path in (path for real in args.folder for path in sorted(real.iterdir())):
            lines.append(_row(path, coded=False))
    sys.stdout.write("\n".join(lines) + "\n")


def _row(path: Path, *, coded: bool) -> str:
    frames = ""
    cells = []
    for backend in BACKENDS:
        try:
            outcome = compare(path, backend, coded=coded)
            frames = str(outcome.frames)
            cells.append(_cell(outcome))
        except (av.FFmpegError, StopIteration):  # no video at all: it must be refused
            with contextlib.suppress(DecodeError):
                VideoReader(path, backend)
                raise AssertionError(f"{path} is no video, and {backend} reads it") from None
            cells.append("refused")
        except AssertionError as error:
            cells.append(f"WRONG: {error}")
    return f"| {path.name} | {frames} | {' | '.join(cells)} |"


def _cell(outcome: Outcome) -> str:
    reason = outcome.reason.partition(": ")[2].partition(";")[0] or outcome.reason
    missing, total = outcome.missing, outcome.frames
    if missing and missing == list(range(total - len(missing), total)) and len(missing) < total:
        return "all but the last" + (f" {len(missing)}" if len(missing) > 1 else "")
    if missing:
        return f"no: {reason}" if len(missing) >= min(total, 30) else f"some: {reason}"
    return "exact" if not outcome.difference else f"same ({outcome.difference:.2f})"


if __name__ == "__main__":
    sys.exit(main())
