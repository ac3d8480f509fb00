"""Look at the videos of a data set, each once: what decodes, what moves, what is damaged.

What was seen of a video is a line of a journal, so that this can be stopped and goes on where it
was. Nothing is judged here: that is for `vmp.data.audit`, which needs nothing but these facts.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vmp.data.archive import DecodeError, Source, locate
from vmp.data.backends import Frames
from vmp.data.clips import OpenVideo, stretch
from vmp.data.decode import VideoReader
from vmp.data.frame_index import Deadline, FrameIndex, describe_death, label_frames, opened
from vmp.data.records import VideoRecord
from vmp.utils.processes import Died, work_through

# Where frames of a stretch are compared, shares of its length: unevenly spaced, or what repeats
# itself could look still.
_SAMPLED = (0.0, 0.2, 0.5, 0.7, 1.0)
# They are scaled to this short side, pixels, which evens out the noise of sensor and encoder.
_MOTION_SIDE = 64
# Weights of R, G and B in the grey that motion prompts take differences of.
_LUMA = (0.299, 0.587, 0.114)
# A damaged stretch is read, to see whether it can be, up to so many frames.
_TRIED = 32
# Seconds that decoding one whole video may take.
_FULL_SECONDS = 6 * 3600.0
_VERSION = 1

Stretch = tuple[int, int | None]
Examine = Callable[["Job"], "VideoFacts"]


class Job(NamedTuple):
    """A video to look at.

    Attributes:
        path: the video.
        stretches: the distinct (start, stop) that records have of it, ascending.
    """

    path: str
    stretches: tuple[Stretch, ...]


class StretchFacts(NamedTuple):
    """What was seen of the frames [start, stop) of a video.

    Attributes:
        start: first frame.
        stop: one past the last; None is the end of the video.
        motion: how much its pictures differ, levels of 0 to 255; None if they were not seen.
        error: why a frame of it does not decode; "" if those sampled do.
    """

    start: int
    stop: int | None
    motion: float | None
    error: str


class Damage(NamedTuple):
    """Frames `first` to `last`, both included, about which the decoder complains.

    Attributes:
        readable: whether they can be read all the same, as pictures that are wrong.
    """

    first: int
    last: int
    readable: bool


class VideoFacts(NamedTuple):
    """What was seen of a video.

    Attributes:
        path: the video.
        state: size and time of the file, to know whether it has changed; "" if missing.
        fingerprint: of its content, to know copies; "" if that could not be read.
        error: why it can't be read; "" if it can.
        num_frames: that decode.
        promised: frames that the container's header tells of; 0 if it does not.
        exact: whether it told their number, not just a duration.
        fps: frames per second, on average.
        height: as shown, pixels.
        width: likewise.
        codec: FFmpeg's name of the decoder.
        scan: how its frames were found, "packets" or "frames".
        full: whether every frame was decoded.
        stretches: of its records.
        damage: what that found.
    """

    path: str
    state: str = ""
    fingerprint: str = ""
    error: str = ""
    num_frames: int = 0
    promised: int = 0
    exact: bool = False
    fps: float = 0.0
    height: int = 0
    width: int = 0
    codec: str = ""
    scan: str = ""
    full: bool = False
    stretches: tuple[StretchFacts, ...] = ()
    damage: tuple[Damage, ...] = ()

    @property
    def missing(self) -> bool:
        """Whether there is no such video."""
        return not self.state


def plan_jobs(records: Iterable[VideoRecord]) -> list[Job]:
    """Return each video of the records once; what is excluded is not to be opened."""
    stretches: dict[str, set[Stretch]] = {}
    for record in records:
        if not record.excluded:
            stretches.setdefault(record.path, set()).add((record.start, record.stop))
    return [Job(path, tuple(sorted(found, key=_order))) for path, found in stretches.items()]


def _order(part: Stretch) -> tuple[int, float]:
    return part[0], math.inf if part[1] is None else part[1]


# --------------------------------------------------------------------------- one video
def examine(job: Job, *, open_video: OpenVideo, full: bool = False) -> VideoFacts:
    """Look at one video: how many frames there are, and some of each of its stretches.

    Args:
        job: the video.
        open_video: path -> reader, the loader's own.
        full: decode every frame as well, and note where the decoder complains. Damage that
            leaves a valid stream can't be told from a picture that is meant so.
    """
    facts = VideoFacts(job.path, state=_state_of(job.path), full=full)
    try:
        source = locate(job.path)
        facts = facts._replace(fingerprint=source.fingerprint())
        with open_video(job.path) as reader:
            facts = _describe(facts, reader, source)
            facts = facts._replace(stretches=tuple(_look(reader, part) for part in job.stretches))
            damage = _find_damage(source, reader) if full else ()
            return facts._replace(damage=damage)
    except DecodeError as error:
        return facts._replace(error=error.reason)
    except (OSError, MemoryError) as error:
        return facts._replace(error=str(error) or type(error).__name__)


def _state_of(path: str) -> str:
    """Return what changes when the file of a video does; "" if there is no such video."""
    try:
        source = locate(path)
        return f"{source.size}-{os.stat(source.file).st_mtime_ns}-{source.offset}"
    except (DecodeError, OSError):
        return ""


def _describe(facts: VideoFacts, reader: VideoReader, source: Source) -> VideoFacts:
    with opened(source) as (container, stream):
        promised, exact = _promised(container, stream)
        codec = stream.codec_context.name
    index = reader.index
    height, width = reader.size
    return facts._replace(
        num_frames=len(reader),
        promised=promised,
        exact=exact,
        fps=reader.fps,
        height=height,
        width=width,
        codec=codec,
        scan="packets" if index.label == "pts" and not len(index.checksums) else "frames",
    )


def _promised(container: InputContainer, stream: VideoStream) -> tuple[int, bool]:
    """Return how many frames the header tells of, 0 if it does not; and whether it counts them."""
    if stream.frames:
        return stream.frames, True
    if "matroska" not in container.format.name:
        return 0, False  # a duration that FFmpeg has estimated is no promise
    seconds = _seconds(stream.metadata.get("DURATION", ""))
    if not seconds and container.duration:
        seconds = container.duration / av.time_base
    return round(seconds * float(stream.average_rate or 0)), False


def _seconds(text: str) -> float:
    """Return the seconds of `01:02:03.5`, 0 if the text is of another kind."""
    parts = text.strip("\0 ").split(":")
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


def _look(reader: VideoReader, part: Stretch) -> StretchFacts:
    """Read some frames of a stretch, its first and its last among them, and compare them."""
    start, stop = part
    try:
        total = stretch(VideoRecord(reader.path, 0, start, stop), len(reader))
    except DecodeError:  # there is none of it; the number of frames tells so
        return StretchFacts(start, stop, None, "")
    numbers = sorted({start + round(share * (total - 1)) for share in _SAMPLED})
    try:
        return StretchFacts(start, stop, motion(reader.read(numbers, _MOTION_SIDE)), "")
    except DecodeError as error:
        return StretchFacts(start, stop, None, error.reason)


def motion(frames: Frames) -> float:
    """Return by how much the grey of pictures differs from the ones before, levels of 0 to 255.

    That is the difference that 99 % of the pixels stay below, of the two pictures that differ most:
    a small thing that moves counts, noise does not.

    Args:
        frames: (T, H, W, 3) uint8; one alone does not move.
    """
    if len(frames) < 2:
        return 0.0
    differences = np.abs(np.diff(frames @ np.array(_LUMA), axis=0))
    return round(float(np.percentile(differences, 99, axis=(1, 2)).max()), 1)


def _find_damage(source: Source, reader: VideoReader) -> tuple[Damage, ...]:
    """Decode a whole video with a decoder that does not conceal; return what is wrong or lacking.

    What comes after the frames that the index has is not used, so it does not matter.
    """
    index = reader.index
    stamps = index.stamps if index.label else np.arange(index.num_frames)
    bad: set[int] = set()
    with opened(source) as (container, stream):
        context = stream.codec_context
        context.options = {**context.options, "err_detect": "explode"}
        frames = _sound_frames(source.path, _packets(container, stream), index, bad)
        came = np.fromiter((stamp for stamp, _ in label_frames(frames, index.label)), np.int64)
    bad.update(np.flatnonzero(~np.isin(stamps, came)).tolist())
    return tuple(
        Damage(first, last, _is_readable(reader, first, last))
        for first, last in _ranges(sorted(number for number in bad if number < index.num_frames))
    )


def _packets(container: InputContainer, stream: VideoStream) -> "Iterator[Packet[VideoStream]]":
    """Yield the packets, up to where the container itself is damaged: nothing more comes then."""
    with suppress(av.FFmpegError):
        yield from container.demux(stream)


def _sound_frames(
    path: str, packets: "Iterable[Packet[VideoStream]]", index: FrameIndex, bad: set[int]
) -> Iterator[VideoFrame]:
    """Yield what decodes; the numbers of what does not are added to `bad`, as near as one knows."""
    deadline = Deadline(_FULL_SECONDS)
    came = 0
    for packet in packets:
        deadline.check(path)
        try:
            frames = packet.decode()
        except av.FFmpegError:
            stamp = packet.pts if index.label == "pts" else None
            bad.add(came if stamp is None else int(np.searchsorted(index.stamps, stamp)))
            continue
        came += len(frames)
        yield from frames


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Join ascending numbers that follow each other: 3 4 5 9 -> (3, 5), (9, 9)."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _is_readable(reader: VideoReader, first: int, last: int) -> bool:
    try:
        reader.read(range(first, min(last + 1, first + _TRIED)), _MOTION_SIDE)
    except DecodeError:
        return False
    return True


# --------------------------------------------------------------------------- many videos
def examine_all(jobs: Iterable[Job], examine: Examine, workers: int) -> Iterator[VideoFacts]:
    """Look at many videos in parallel processes; one over which its process dies is named.

    Args:
        jobs: asked for one by one, when a process is free.
        examine: done in the processes, so it must be possible to pickle it.
        workers: processes, at least 1.

    Yields:
        What was seen, in the order in which it is ready.
    """
    work = partial(_examine_quietly, examine=examine)
    for job, facts in work_through(jobs, work, workers, preload=__name__):
        if isinstance(facts, Died):  # not for good, as nothing was seen
            facts = VideoFacts(job.path, state=_state_of(job.path), error=describe_death(facts))
        yield facts


def _examine_quietly(job: Job, examine: Examine) -> VideoFacts:
    """Look at a video; what the loader would warn of is among what is seen."""
    logging.getLogger("vmp").setLevel(logging.ERROR)
    return examine(job)


# --------------------------------------------------------------------------- the journal
class Journal:
    """What was seen of videos, a line each in a file; safe against a kill at any time.

    Args:
        path: the file; what it holds is known from the start.

    Attributes:
        path: the file.
        facts: path of a video -> what was seen last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, VideoFacts] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+", encoding="utf-8", errors="replace")
        self._file.seek(0)
        line = "\n"
        for line in self._file:
            self._take(line)
        if not line.endswith("\n"):  # one that was cut off must not take the next one with it
            self._file.write("\n")

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
            if row.pop("version") != _VERSION:
                return
            facts = VideoFacts(**row)
            parts = tuple(StretchFacts(*part) for part in facts.stretches)
            damage = tuple(Damage(*part) for part in facts.damage)
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        self.facts[facts.path] = facts._replace(stretches=parts, damage=damage)

    def add(self, facts: VideoFacts) -> None:
        """Keep what was seen of a video."""
        self.facts[facts.path] = facts
        self._file.write(json.dumps({"version": _VERSION, **facts._asdict()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def knows(self, job: Job, full: bool) -> bool:
        """Say whether all that the job asks is known of the file as it is now.

        What was missing, could not be read at all, or took its process along, is tried again.
        """
        facts = self.facts.get(job.path)
        if facts is None or not facts.fingerprint or (full and not facts.full):
            return False
        seen = {(part.start, part.stop) for part in facts.stretches}
        complete = bool(facts.error) or seen.issuperset(job.stretches)
        return complete and facts.state == _state_of(job.path)
