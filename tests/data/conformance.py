"""Every way of decoding compared with a sequential decode, file by file.

    python -m tests.data.conformance [FOLDER OF REAL VIDEOS]

prints the table of docs/decoding.md.
"""

import argparse
import importlib
import random
import re
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
from tests.data.sequential import Known, decode_all, nearer_to_another, place_of
from vmp.data.archive import DecodeError
from vmp.data.backends import SAME_PICTURE, difference
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


LIBRARIES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}

known_of = lru_cache(maxsize=1)(decode_all)


def compare(
    path: Path, backend: str, *, coded: bool, rounds: int = 30, margin: float = 0.0
) -> Outcome:
    """Read a file in every order and compare each frame.

    Args:
        path: the file.
        backend: what decodes it.
        coded: the pixels tell the number of the frame.
        rounds: how many frames are read each alone, besides the first and the last.
        margin: if not 0, the file is damaged, and decoders may mend it in different ways: a frame
            may differ, but not be more like another one by so many grey levels.

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
        off = 0.0
        for numbers in orders(total, rounds):
            try:
                frames = reader.read(numbers)
            except DecodeError as error:
                missing += numbers if len(numbers) == 1 else []
                reason = error.reason
                continue
            off = max(off, _check(known, reader, numbers, frames, coded, margin))
    return Outcome(total, sorted(set(missing)), reason, off)


def orders(total: int, rounds: int) -> Iterable[list[int]]:
    """Yield frame numbers: in turn, random ones in any order and twice, far ones, each alone."""
    rng = random.Random(total)
    yield list(range(total))
    for _ in range(rounds // 8):
        yield [rng.randrange(total) for _ in range(6)]
    yield [total - 1, 0, total // 2, total // 2, 0]
    chosen = rng.sample(range(total), min(rounds, total))
    yield from ([number] for number in {*chosen, 0, total - 1})


def _check(
    known: Known,
    reader: VideoReader,
    numbers: Sequence[int],
    frames: np.ndarray,
    coded: bool,
    margin: float,
) -> float:
    """Return the largest difference; a wrong frame is an AssertionError."""
    differences = []
    assert len(frames) == len(numbers)
    for number, frame in zip(numbers, frames, strict=True):
        place = place_of(known, reader.index, number)
        assert not isinstance(place, str), f"{reader.path}: frame {number} of {numbers}: {place}"
        right = np.rot90(known.pictures[place], known.turns)
        off = 0.0 if np.array_equal(right, frame) else difference(right, frame)
        differences.append(off)
        told = f"{reader.path}: frame {number} of {numbers} is {off:.2f} off"
        if coded:
            told += f", it is {number_in(frame)} and not {number_in(right)}"
            assert number_in(frame) == number_in(right), told
        if margin:
            coded_frame = np.rot90(frame, -known.turns)
            other = nearer_to_another(known.pictures, place, coded_frame, margin)
            assert not other, f"{told}; {other}"
        assert off <= SAME_PICTURE or margin, told
    return max(differences)


# --------------------------------------------------------------------------- the table
def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="*", help="folders with more videos")
    args = parser.parse_args(argv)
    av.logging.set_level(None)
    backends = [backend for backend in BACKENDS if is_installed(backend)]
    lines = [f"Made with {', '.join(map(_version, backends))}.", ""]
    lines += ["| file | frames | " + " | ".join(backends) + " |"]
    lines += ["|---" * (2 + len(backends)) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (ODD_VIDEOS | NO_VIDEOS).items():
            path = Path(folder, name.replace(".", "_"), name)
            path.parent.mkdir()
            make(path)
            lines.append(_row(path, backends, coded=name in ODD_VIDEOS))
        for path in (path for real in args.folder for path in sorted(real.iterdir())):
            lines.append(_row(path, backends, coded=False))
    sys.stdout.write("\n".join(lines) + "\n")


def is_installed(backend: str) -> bool:
    """Say if the library of a backend is there, with what it needs."""
    try:
        library = importlib.import_module(LIBRARIES[backend])
    except (ImportError, RuntimeError):
        return False
    return getattr(library, "ffmpeg_major_version", "its own") is not None


def _version(backend: str) -> str:
    library = importlib.import_module(LIBRARIES[backend])
    versions = {
        "pyav": lambda: "libavcodec {}.{}.{}".format(*library.library_versions["libavcodec"]),
        "decord": lambda: "libavcodec 58.35.100",  # of its wheels
        "torchcodec": lambda: f"FFmpeg {library.ffmpeg_major_version}",
    }
    return f"{LIBRARIES[backend]} {library.__version__} ({versions[backend]()})"


def _row(path: Path, backends: Sequence[str], *, coded: bool) -> str:
    frames = ""
    cells = []
    for backend in backends:
        if path.name in NO_VIDEOS:
            cells.append(_refusal(path, backend))
            continue
        try:
            outcome = compare(path, backend, coded=coded)
            frames = str(outcome.frames)
            cells.append(_cell(outcome))
        except AssertionError as error:
            cells.append(f"WRONG: {error}")
    return f"| {path.name} | {frames} | {' | '.join(cells)} |"


def _refusal(path: Path, backend: str) -> str:
    try:
        VideoReader(path, backend)
    except DecodeError:
        return "refused"
    return "WRONG: it is read"


def _cell(outcome: Outcome) -> str:
    reason = outcome.reason.partition(": ")[2].partition("; use")[0] or outcome.reason
    reason = re.sub(r"\[file:\S+\] |.*ERROR ", "", reason).strip(" .")  # of decord
    missing, total = outcome.missing, outcome.frames
    if missing and missing == list(range(total - len(missing), total)) and len(missing) < total:
        return "all but the last" + (f" {len(missing)}" if len(missing) > 1 else "")
    if missing:
        return f"no: {reason}" if len(missing) >= min(total, 30) else f"some: {reason}"
    return "exact" if not outcome.difference else f"same ({outcome.difference:.2f})"


if __name__ == "__main__":
    sys.exit(main())
