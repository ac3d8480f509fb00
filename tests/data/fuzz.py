"""Mutated videos, each read in a process of its own, and compared with a sequential decode.

    python -m tests.data.fuzz FOLDER --first 0 --count 100 [--backend NAME] [--keep DIR]

One line of JSON a case. A case follows from its number alone: `--first N --count 1` plays it again.
"""

import argparse
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np

from tests.data.sequential import Known, decode_all, nearer_to_another, place_of
from vmp.data.archive import DecodeError
from vmp.data.decode import VideoReader, scaled_size
from vmp.data.frame_index import FrameIndex

# Seconds for opening and for each read; the whole case is killed after HUNG_SECONDS.
READER_SECONDS = 20.0
HUNG_SECONDS = 120.0
# Memory of a process: more than it had at its start, and at most in use.
ADDRESS_SPACE_BYTES = 4 * 2**30
RESIDENT_BYTES = 1536 * 2**20
# Frames of a sequential decode that are known; a mutated file may claim to be endless.
KNOWN_FRAMES = 400
# Longest short side that is compared at full size; larger frames are scaled to it.
FULL_SIZE = 128

BAD = ("wrong", "raised", "crashed", "hung", "memory")


# --------------------------------------------------------------------------- mutations
def mutate(data: bytes, size: tuple[int, int], rng: random.Random) -> tuple[bytes, str]:
    """Change a file in one to three ways.

    Args:
        data: the file.
        size: (height, width) of its frames.
        rng: where all chance comes from.

    Returns:
        The file changed, and what was done.
    """
    changed = bytearray(data)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        how = rng.choice(MUTATIONS)
        if len(changed) > 16:
            done.append(f"{how.__name__}({how(changed, size, rng)})")
    return bytes(changed), " ".join(done)


def flip_bits(data: bytearray, size: tuple[int, int], rng: random.Random) -> str:
    count = rng.choice((1, 1, 2, 4, 16, 64, 256))
    places = [_place(data, rng) for _ in range(count)]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    return f"{count} from {min(places)}"


def zero_run(data: bytearray, size: tuple[int, int], rng: random.Random) -> str:
    place, length = _place(data, rng), rng.choice((1, 4, 16, 100, 1000, 5000))
    length = min(length, len(data) - place)
    data[place : place + length] = bytes(length)
    return f"{length} at {place}"


def noise_run(data: bytearray, size: tuple[int, int], rng: random.Random) -> str:
    place, length = _place(data, rng), rng.choice((4, 16, 100, 1000))
    length = min(length, len(data) - place)
    data[place : place + length] = rng.randbytes(length)
    return f"{length} at {place}"


def truncate(data: bytearray, size: tuple[int, int], rng: random.Random) -> str:
    keep = rng.randrange(len(data))
    del data[keep:]
    return str(keep)


def delete_chunk(data: bytearray, size: tuple[int, int], rng: random.Random) -> str:
    place, length = _place(data, rng), rng.choice((1, 2, 4, 188, 1000, 20000))
    del data[place : place + length]
    return f"{length} at {place}"


def duplicate_chunk(data: bytearray, size: tuple[int, int], rng: random.Random) -> str:
    place, length = _place(data, rng), rng.choice((1, 4, 188, 1000, 20000))
    data[place:place] = data[place : place + length]
    return f"{length} at {place}"


def swap_chunks(data: bytearray, size: tuple[int, int], rng: random.Random) -> str:
    length = rng.choice((4, 188, 1000, 10000))
    one, other = sorted((_place(data, rng), _place(data, rng)))
    length = min(length, other - one, len(data) - other)
    first, second = data[one : one + length], data[other : other + length]
    data[one : one + length], data[other : other + length] = second, first
    return f"{length} at {one} and {other}"


def extreme_field(data: bytearray, size: tuple[int, int], rng: random.Random) -> str:
    """Overwrite a number of the header with one that is too large or too small."""
    width = rng.choice((1, 2, 4, 8))
    place = _near_name(data, rng)
    value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1)))
    data[place : place + width] = value.to_bytes(width, rng.choice(("big", "little")))
    return f"{value} at {place}"


def enlarge(data: bytearray, size: tuple[int, int], rng: random.Random) -> str:
    """Overwrite what looks like the height or the width of the frames."""
    sought, order = rng.choice(size), rng.choice(("big", "little"))
    pattern = sought.to_bytes(2, order)
    places = [*_occurrences(data[:8192], pattern)]
    places += [place + len(data) - 8192 for place in _occurrences(data[8192:][-8192:], pattern)]
    places = [place for place in places if 0 <= place < len(data) - 1] or [_place(data, rng)]
    value = rng.choice((0, 1, 2 * sought, 4096, 8192, 16384, 32767, 65535))
    for place in places[: rng.choice((1, 1, 2, 100))]:
        data[place : place + 2] = value.to_bytes(2, order)
    return f"{sought} to {value} in {len(places)} places"


MUTATIONS = (
    flip_bits, flip_bits, zero_run, noise_run, truncate, delete_chunk, duplicate_chunk,
    swap_chunks, extreme_field, extreme_field, enlarge,
)  # fmt: skip

NAMES = (
    b"mvhd", b"tkhd", b"mdhd", b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco", b"elst",
    b"avcC", b"avc1", b"trun", b"avih", b"strh", b"strf", b"idx1", b"00dc", b"\x1a\x45\xdf\xa3",
    b"\x1f\x43\xb6\x75", b"\x16\x54\xae\x6b", b"\x00\x00\x01\xb3", b"\x00\x00\x01\xba",
)  # fmt: skip


def _place(data: bytearray, rng: random.Random) -> int:
    """Anywhere, but the two ends, where headers are, more often."""
    kind = rng.random()
    if kind < 0.3:
        return rng.randrange(min(len(data), 2048))
    if kind < 0.45:
        return len(data) - 1 - rng.randrange(min(len(data), 2048))
    return rng.randrange(len(data))


def _near_name(data: bytearray, rng: random.Random) -> int:
    """A place after the name of a field of the header, if there is one."""
    found = [place for name in NAMES for place in [data.find(name)] if place >= 0]
    if not found or rng.random() < 0.3:
        return _place(data, rng)
    return min(rng.choice(found) + rng.randrange(4, 64), len(data) - 9)


def _occurrences(data: bytes, pattern: bytes) -> Iterator[int]:
    place = data.find(pattern)
    while place >= 0:
        yield place
        place = data.find(pattern, place + 1)


# --------------------------------------------------------------------------- one case
def check(path: Path, rng: random.Random, backend: str = "pyav") -> tuple[str, str]:
    """Read a file here and there.

    Returns:
        (outcome, what happened): "refused", "read" or "wrong".
    """
    try:
        reader = VideoReader(path, backend, timeout=READER_SECONDS)
    except DecodeError as error:
        return "refused", error.reason
    with reader:
        total, index = len(reader), reader.index
        side = min(FULL_SIZE, index.height, index.width)
        size = scaled_size(index.height, index.width, side)
        known = decode_all(path, size, most=KNOWN_FRAMES, seconds=READER_SECONDS)
        clips = [
            np.linspace(0, total - 1, min(total, 6)).astype(int).tolist(),
            [(first := rng.randrange(total)), *(min(first + n, total - 1) for n in (1, 2, 3))],
            [total - 1],
            [rng.randrange(total)],
        ]
        read, errors = 0, []
        for numbers in clips:
            try:
                frames = reader.read(numbers, short_side=side)
            except DecodeError as error:
                errors.append(error.reason)
                continue
            read += len(frames)
            for number, frame in zip(numbers, frames, strict=True):
                wrong = what_is_wrong(known, index, number, frame)
                if wrong:
                    return "wrong", f"frame {number} of {total} in {numbers}: {wrong}"
    if index.label != "pts" or len(index.checksums):
        expected = known.whole
        if known.complete and total != expected:
            return "wrong", f"{total} frames, {expected} come before the first error"
    return "read", f"{read} of {total} frames; {errors[:1]}"


def what_is_wrong(known: Known, index: FrameIndex, number: int, frame: np.ndarray) -> str:
    """Compare a frame with the sequential decode; return what is wrong with it, or ""."""
    place = place_of(known, index, number)
    if isinstance(place, str):
        return place if known.complete else ""
    return nearer_to_another(known.pictures, place, np.rot90(frame, -index.quarter_turns))


def run_case(path: Path, number: int, backend: str) -> dict[str, object]:
    """Run one case in a forked process, so that nothing it does is felt here."""
    begin = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _child(path, number, backend, writing)
    os.close(writing)
    killed = _wait(child, begin)
    _, status, usage = os.wait4(child, 0)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    outcome, detail = json.loads(text) if text else ("crashed", f"status {status}")
    if killed:
        outcome, detail = "hung", f"no end after {HUNG_SECONDS:g} s"
    mb = usage.ru_maxrss / 1024
    if outcome not in BAD and mb * 2**20 > RESIDENT_BYTES:
        outcome, detail = "memory", f"{mb:.0f} MB"
    seconds = round(time.monotonic() - begin, 2)
    return {"outcome": outcome, "detail": detail, "seconds": seconds, "mb": round(mb)}


def _wait(child: int, begin: float) -> bool:
    """Wait for a process without reaping it; kill it when its time is over."""
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() - begin > HUNG_SECONDS:
            os.kill(child, signal.SIGKILL)
            return True
        time.sleep(0.003)
    return False


def _child(path: Path, number: int, backend: str, pipe: int) -> None:
    """Check the file, tell the outcome, and never return."""
    result = ("crashed", "")
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 2)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = now + ADDRESS_SPACE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        result = check(path, random.Random(f"reads {number}"), backend)
    except BaseException as error:
        result = ("raised", f"{error!r} {traceback.format_exc(limit=-3)}")
    finally:
        os.write(pipe, json.dumps(result).encode()[:60_000])
        os._exit(0)


# --------------------------------------------------------------------------- many cases
def sources(folder: Path) -> list[tuple[Path, tuple[int, int]]]:
    """Return the videos of a folder and the sizes of their frames; small files come more often."""
    found = []
    for path in sorted(folder.iterdir()):
        with av.open(str(path), metadata_errors="ignore") as container:
            context = container.streams.video[0].codec_context
            size = context.height, context.width
        found += [(path, size)] * (3 if path.stat().st_size < 150_000 else 1)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run cases and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after")
    parser.add_argument("--backend", default="pyav")
    parser.add_argument("--file", default="", help="only this file of the folder")
    parser.add_argument("--keep", type=Path, help="folder that gets the files of bad cases")
    args = parser.parse_args(argv)
    av.logging.set_level(None)
    # once here and not in each child
    importlib.import_module({"pyav": "av"}.get(args.backend, args.backend))
    files = [(path, size) for path, size in sources(args.folder) if args.file in ("", path.name)]
    end = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.first, args.first + args.count * args.step, args.step):
            if time.monotonic() > end:
                return
            rng = random.Random(number)
            source, size = rng.choice(files)
            data, done = mutate(source.read_bytes(), size, rng)
            path = Path(folder, f"{number}{source.suffix}")
            path.write_bytes(data)
            line = {"case": number, "file": source.name, "mutation": done}
            line |= run_case(path, number, args.backend)
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
            if args.keep and line["outcome"] in BAD:
                args.keep.mkdir(parents=True, exist_ok=True)
                path.rename(args.keep / path.name)
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
