"""What is wrong with a data set: each video is looked at once, then each record is judged.

What was found about a video is a line of a journal, so that an audit can be stopped and goes on
where it was. Judging needs no video: whatever the config says of clips, nothing is read again.
"""

import hashlib
import json
import logging
import math
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vmp.data.archive import DecodeError, Source, locate
from vmp.data.backends import Frames
from vmp.data.clips import OpenVideo, stretch
from vmp.data.decode import VideoReader
from vmp.data.frame_index import Deadline, FrameIndex, find_index, label_frames, opened
from vmp.data.records import VideoRecord
from vmp.data.sampling import clip_frames, clip_span

# Records of the official releases: data set -> variant -> split; the first variant is the default.
# MPII Cooking 2 is not here: what its split files name are videos, and how many of their intervals
# count is told nowhere.
OFFICIAL_COUNTS: dict[str, dict[str, dict[str, int]]] = {
    "hmdb51": {split: {"train": 3570, "test": 1530} for split in ("1", "2", "3")},
    "finegym": {
        "gym99": {"train": 26320, "test": 8521},
        "gym288": {"train": 29334, "test": 9646},
    },
    "utinteraction": {"crossset": {"train": 60, "test": 60}},
}

# Where frames of a stretch are compared, shares of its length: unevenly spaced, or what repeats
# itself could look still.
_SAMPLED = (0.0, 0.2, 0.5, 0.7, 1.0)
# They are scaled to this short side, pixels, which evens out the noise of sensor and encoder.
_MOTION_SIDE = 64
# Weights of R, G and B in the grey that motion prompts take differences of.
_LUMA = (0.299, 0.587, 0.114)
# A stretch in which 99 % of the pixels differ by less, in levels of 0 to 255, shows no motion.
# A still picture, encoded, gives up to 3.3 (7 where the encoder is short of bits); eight frames in
# a row of UT-Interaction give at least 4.6, its whole clips at least 40.
STILL = 4.0
# More frames promised than decode: what headers of sound files do, being off by one or two, and
# what is missing. Durations are told less exactly than counts.
_SLACK_FRAMES, _SLACK_SHARE = 3, 0.02
_SLACK_SECONDS, _SLACK_DURATION_SHARE = 1.0, 0.05
# A damaged stretch is read, to see whether it can be, up to so many frames.
_TRIED = 32
# Seconds that decoding one whole video may take.
_FULL_SECONDS = 6 * 3600.0
# Bytes at both ends of a file that, with its size, tell whether two are the same.
_DIGEST_BYTES = 65536
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
        fingerprint: size and time of the file, to know whether it has changed; "" if missing.
        digest: of its content, to know copies; "" if that could not be read.
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
    fingerprint: str = ""
    digest: str = ""
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
        return not self.fingerprint


# --------------------------------------------------------------------------- one video
def plan_jobs(records: Iterable[VideoRecord]) -> list[Job]:
    """Return each video of the records once; what is excluded is not to be opened."""
    stretches: dict[str, set[Stretch]] = {}
    for record in records:
        if not record.excluded:
            stretches.setdefault(record.path, set()).add((record.start, record.stop))
    return [Job(path, tuple(sorted(found, key=_order))) for path, found in stretches.items()]


def _order(stretch: Stretch) -> tuple[int, float]:
    return stretch[0], math.inf if stretch[1] is None else stretch[1]


def examine(job: Job, *, open_video: OpenVideo, full: bool = False) -> VideoFacts:
    """Look at one video: how many frames there are, and some of each of its stretches.

    Args:
        job: the video.
        open_video: path -> reader, the loader's own.
        full: decode every frame as well, and note where the decoder complains. Damage that
            leaves a valid stream can't be told from a picture that is meant so.
    """
    facts = VideoFacts(job.path, full=full)
    try:
        source = locate(job.path)
        facts = facts._replace(fingerprint=_fingerprint(source), digest=_digest(source))
        with open_video(job.path) as reader:
            facts = _describe(facts, reader, source)
            facts = facts._replace(stretches=tuple(_look(reader, part) for part in job.stretches))
            damage = _find_damage(source, reader) if full else ()
            return facts._replace(damage=damage)
    except DecodeError as error:
        return facts._replace(error=error.reason)
    except (OSError, MemoryError) as error:
        return facts._replace(error=str(error) or type(error).__name__)


def _fingerprint(source: Source) -> str:
    return f"{source.size}-{os.stat(source.file).st_mtime_ns}-{source.offset}"


def _digest(source: Source) -> str:
    with source.open() as file:
        start = file.read(_DIGEST_BYTES)
        file.seek(max(source.size - _DIGEST_BYTES, 0))
        end = file.read(_DIGEST_BYTES)
    return hashlib.sha256(str(source.size).encode() + start + end).hexdigest()[:16]


def _describe(facts: VideoFacts, reader: VideoReader, source: Source) -> VideoFacts:
    index = find_index(facts.path)  # in memory, the reader has just found it
    with opened(source) as (container, stream):
        promised, exact = _promised(container, stream)
        codec = stream.codec_context.name
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
    index = find_index(source.path)
    stamps = index.stamps if index.label else np.arange(index.num_frames)
    bad: set[int] = set()
    with opened(source) as (container, stream):
        context = stream.codec_context
        context.options = {**context.options, "err_detect": "explode"}
        frames = _sound_frames(source.path, container, stream, index, bad)
        came = np.fromiter((stamp for stamp, _ in label_frames(frames, index.label)), np.int64)
    bad.update(np.flatnonzero(~np.isin(stamps, came)).tolist())
    return tuple(
        Damage(first, last, _is_readable(reader, first, last))
        for first, last in _ranges(sorted(number for number in bad if number < index.num_frames))
    )


def _sound_frames(
    path: str, container: InputContainer, stream: VideoStream, index: FrameIndex, bad: set[int]
) -> Iterator[VideoFrame]:
    """Yield what decodes; the numbers of what does not are added to `bad`, as near as one knows."""
    deadline = Deadline(_FULL_SECONDS)
    came = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # the container itself is damaged: nothing more will come
            return
        if packet is None:
            return
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
    """Look at many videos in parallel processes.

    A process has one video at a time, so nothing piles up, and one that dies over a video (a
    decoder that crashes, no memory left) tells which: it becomes that video's error, and another
    process goes on.

    Args:
        jobs: asked for one by one, when a process is free.
        examine: done in the processes, so it must be possible to pickle it.
        workers: processes, at least 1.

    Yields:
        What was seen, in the order in which it is ready.
    """
    context = multiprocessing.get_context("forkserver")  # the parent may have threads
    context.set_forkserver_preload([__name__])
    waiting = iter(jobs)
    busy: dict[Connection, tuple[BaseProcess, Job]] = {}
    idle: list[tuple[Connection, BaseProcess]] = []
    try:
        for job in islice(waiting, workers):
            pipe, process = _start(context, examine)
            busy[pipe] = process, job
            pipe.send(job)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                process, job = busy[ready]
                facts = _answer(ready, process, job)
                del busy[ready]
                following = next(waiting, None)
                if following is None:
                    idle.append((ready, process))
                else:
                    if not process.is_alive():
                        ready, process = _start(context, examine)
                    busy[ready] = process, following
                    ready.send(following)
                yield facts
    finally:
        for process in [process for process, _ in busy.values()] + [each for _, each in idle]:
            process.kill()  # they hold nothing that could be lost


def _start(context: Any, examine: Examine) -> tuple[Connection, BaseProcess]:
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, examine), daemon=True)
    process.start()
    there.close()  # or its end would not be noticed
    return here, process


def _serve(pipe: Connection, examine: Examine) -> None:
    """Answer each job with what was seen, or with the exception that is our own fault.

    What the loader would warn of is among what is seen.
    """
    logging.getLogger("vmp").setLevel(logging.ERROR)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    try:
        while True:
            pipe.send(_examine(pipe.recv(), examine))
    except (EOFError, OSError):  # the parent is gone
        return


def _examine(job: Job, examine: Examine) -> VideoFacts | Exception:
    try:
        return examine(job)
    except Exception as error:
        return error


def _answer(pipe: Connection, process: BaseProcess, job: Job) -> VideoFacts:
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        return _crashed(job, process.exitcode or 0)
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, VideoFacts)
    return answer


def _crashed(job: Job, status: int) -> VideoFacts:
    """Blame a video for the death of the process that read it; without its digest, so not for good.

    Raises:
        RuntimeError: no signal has killed it: it is no fault of the video.
    """
    if status >= 0:
        raise RuntimeError(f"the process that read {job.path} ended with status {status}")
    name = signal.Signals(-status).name
    reason = f"the process that read it died ({name}): the decoder crashes, or no memory was left"
    try:
        fingerprint = _fingerprint(locate(job.path))
    except (DecodeError, OSError):
        fingerprint = ""
    return VideoFacts(job.path, fingerprint=fingerprint, error=reason)


# --------------------------------------------------------------------------- the journal
class Journal:
    """What was seen of videos, a line each in a file; safe against a kill at any time.

    Args:
        path: the file; what it holds is known from the start.

    Attributes:
        facts: path of a video -> what was seen last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, VideoFacts] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        ended = True
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    ended = line.endswith("\n")
                    self._take(line)
        self._file = path.open("a", encoding="utf-8")
        if not ended:  # a line that was cut off must not take the next one with it
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
        if facts is None or not facts.digest or (full and not facts.full):
            return False
        try:
            same = _fingerprint(locate(job.path)) == facts.fingerprint
        except (DecodeError, OSError):
            return False
        seen = {(part.start, part.stop) for part in facts.stretches}
        return same and (bool(facts.error) or seen.issuperset(job.stretches))


# --------------------------------------------------------------------------- judging records
class Clip(NamedTuple):
    """What the loader cuts out.

    Attributes:
        num_frames: of a clip, that of the prompt included.
        rate: distance of its frames at `target_fps`.
        target_fps: frames per second that `rate` refers to; 0: those of the source.
        policy: DATA.SHORT_CLIP, what happens where a record is shorter.
    """

    num_frames: int
    rate: int
    target_fps: float
    policy: str

    def frames_needed(self, fps: float) -> int:
        """Return how many frames of a video of `fps` a clip reaches over."""
        span = clip_span(self.num_frames, self.rate, fps, self.target_fps)
        return clip_frames(0.0, span, self.num_frames)[-1] + 1


class Problem(NamedTuple):
    """Something that is wrong with a record.

    Attributes:
        kind: one of KINDS.
        reason: what exactly, one line.
    """

    kind: str
    reason: str


# Kind of problem -> what it means, and what can be done. The first ones make a record unusable.
KINDS = {
    "excluded": "The index or DATA.QUARANTINE says not to read them; they were not opened.",
    "label": "Their class is not one of the model's; correct the list or MODEL.NUM_CLASSES.",
    "missing": "There is no such file.",
    "unreadable": "Not one frame can be had.",
    "beyond": "They begin after the last frame of their video: it is cut off, or another one.",
    "broken": "Frames within them do not decode.",
    "refused": "They are shorter than a clip, and DATA.SHORT_CLIP error ends the run at the first "
    "of them; set it to hold.",
    "damaged": "The decoder finds errors in them and gives wrong pictures; up to the next key "
    "frame what follows may be wrong as well. Get these files again.",
    "truncated": "Their file promises notably more frames than decode; it is read as far as it "
    "goes. Get these files again.",
    "overrun": "They end after the last frame of their video; they are read as far as it goes.",
    "still": "No motion, which is all that a motion prompt sees: between frames here and there "
    f"99 % of the pixels change by less than {STILL:g} of 255. Look at some.",
    "short": "They are shorter than a clip.",
}
UNUSABLE = ("excluded", "label", "missing", "unreadable", "beyond", "broken", "refused")
# What reading can't mend. The others are no matter of the file.
QUARANTINED = ("missing", "unreadable", "beyond", "broken")
POLICIES = {
    "hold": "DATA.SHORT_CLIP hold repeats the last frame, which adds no motion.",
    "loop": "DATA.SHORT_CLIP loop starts them again, and the jump back is a motion that is not "
    "there; hold repeats the last frame instead.",
    "error": "",
}


class Split(NamedTuple):
    """The records of a split and what is wrong with each.

    Attributes:
        name: "train" or "test".
        records: all of them.
        problems: for each record.
        lengths: frames of each record, 0 where it is not known.
        official: number of records that the release has; None if that is not known.
    """

    name: str
    records: list[VideoRecord]
    problems: list[tuple[Problem, ...]]
    lengths: list[int]
    official: int | None

    def usable(self) -> list[bool]:
        """Return of each record whether it can be used."""
        return [is_usable(found) for found in self.problems]


def is_usable(problems: Iterable[Problem]) -> bool:
    """Say whether a record with these problems gives clips."""
    return not any(problem.kind in UNUSABLE for problem in problems)


def official_count(dataset: str, variant: str, split: str) -> int | None:
    """Return the number of records of an official split; None if it is not known."""
    variants = OFFICIAL_COUNTS.get(dataset, {})
    return variants.get(variant or next(iter(variants), ""), {}).get(split)


def judge_split(
    name: str,
    records: Sequence[VideoRecord],
    facts: Mapping[str, VideoFacts],
    *,
    clip: Clip,
    num_classes: int,
    official: int | None = None,
) -> Split:
    """Return what is wrong with each record of a split.

    Args:
        name: of the split.
        records: all of them.
        facts: path -> what was seen, of every record that is not excluded.
        clip: what the loader cuts out.
        num_classes: labels are below.
        official: number of records that the release has, if known.
    """
    problems, lengths = [], []
    for record in records:
        seen = facts.get(record.path)
        problems.append(tuple(_judge(record, seen, clip, num_classes)))
        lengths.append(0 if record.excluded or seen is None else _length(record, seen))
    return Split(name, list(records), problems, lengths, official)


def _length(record: VideoRecord, facts: VideoFacts) -> int:
    return max(0, min(facts.num_frames, _stop(record, facts)) - record.start)


def _stop(record: VideoRecord, facts: VideoFacts) -> int:
    return facts.num_frames if record.stop is None else record.stop


def _judge(
    record: VideoRecord, facts: VideoFacts | None, clip: Clip, num_classes: int
) -> Iterator[Problem]:
    if not 0 <= record.label < num_classes:
        yield Problem("label", f"class {record.label} is not in 0 to {num_classes - 1}")
    if record.excluded:
        yield Problem("excluded", record.excluded)
        return
    assert facts is not None, record.path
    if facts.error:
        yield Problem("missing" if facts.missing else "unreadable", facts.error)
        return
    if lacks_frames(facts):
        yield Problem(
            "truncated", f"the header promises {facts.promised} frames, {facts.num_frames} decode"
        )
    yield from _judge_stretch(record, facts, clip)


def lacks_frames(facts: VideoFacts) -> bool:
    """Say whether a video has notably fewer frames than its header promises."""
    slack = max(_SLACK_FRAMES, _SLACK_SHARE * facts.promised)
    if not facts.exact:
        slack = max(_SLACK_SECONDS * facts.fps, _SLACK_DURATION_SHARE * facts.promised)
    return facts.promised - facts.num_frames > slack


def _judge_stretch(record: VideoRecord, facts: VideoFacts, clip: Clip) -> Iterator[Problem]:
    length, stop = _length(record, facts), _stop(record, facts)
    where = f"frames [{record.start}, {stop}) of {facts.num_frames}"
    if not length:
        yield Problem("beyond", where)
        return
    if stop > facts.num_frames:
        yield Problem("overrun", where)
    yield from _judge_damage(record, facts)
    seen = next(
        part for part in facts.stretches if (part.start, part.stop) == (record.start, record.stop)
    )
    if seen.motion is not None and seen.motion < STILL:
        told = f"changes by {seen.motion:g} of 255" if length > 1 else "a single frame"
        yield Problem("still", told)
    needed = clip.frames_needed(facts.fps)
    if length < needed:
        kind = "refused" if clip.policy == "error" else "short"
        yield Problem(kind, f"a clip reaches over {needed} frames, there are {length}")


def _judge_damage(record: VideoRecord, facts: VideoFacts) -> Iterator[Problem]:
    for part in facts.stretches:
        if part.error and (part.start, part.stop) == (record.start, record.stop):
            yield Problem("broken", part.error)
    stop = _stop(record, facts)
    within = [each for each in facts.damage if each.first < stop and each.last >= record.start]
    for kind, readable in (("broken", False), ("damaged", True)):
        named = [_range(each) for each in within if each.readable == readable]
        if named:
            yield Problem(kind, f"frames {', '.join(named)}")


def _range(damage: Damage) -> str:
    return str(damage.first) if damage.first == damage.last else f"{damage.first}-{damage.last}"


# --------------------------------------------------------------------------- records side by side
class Pair(NamedTuple):
    """Two records of the same frames.

    Attributes:
        first: a record.
        second: another, of the same split or the other one.
        kind: "same" frames, or frames that "overlap".
    """

    first: VideoRecord
    second: VideoRecord
    kind: str


def find_duplicates(split: Split, facts: Mapping[str, VideoFacts]) -> list[Pair]:
    """Return each record of frames that an earlier one has already, with that one.

    Videos of the same content are the same video, whatever their names.
    """
    first: dict[tuple[str, int, int], VideoRecord] = {}
    pairs = []
    for record, length in zip(split.records, split.lengths, strict=True):
        if length:
            key = facts[record.path].digest, record.start, length
            if key in first:
                pairs.append(Pair(first[key], record, "same"))
            first.setdefault(key, record)
    return pairs


def find_leaks(train: Split, test: Split, facts: Mapping[str, VideoFacts]) -> list[Pair]:
    """Return each test record of frames that are trained on, with one training record of them."""
    trained: dict[str, list[tuple[int, int, VideoRecord]]] = {}
    for record, length in zip(train.records, train.lengths, strict=True):
        if length:
            known = trained.setdefault(facts[record.path].digest, [])
            known.append((record.start, record.start + length, record))
    pairs = []
    for record, length in zip(test.records, test.lengths, strict=True):
        near = trained.get(facts[record.path].digest, []) if length else []
        pair = _worst_overlap(record, record.start + length, near)
        if pair is not None:
            pairs.append(pair)
    return pairs


def _worst_overlap(
    record: VideoRecord, stop: int, near: Sequence[tuple[int, int, VideoRecord]]
) -> Pair | None:
    """Return the record with that of `near` which shares the most frames; None if none does."""
    shared = [(min(stop, end) - max(record.start, start), start, end, r) for start, end, r in near]
    most = max(shared, key=lambda entry: entry[0], default=None)
    if most is None or most[0] <= 0:
        return None
    return Pair(most[3], record, "same" if most[1:3] == (record.start, stop) else "overlap")


# --------------------------------------------------------------------------- what to write
def quarantine_lines(splits: Sequence[Split]) -> list[str]:
    """Return the list for DATA.QUARANTINE: what can't be read, and what was on the list before.

    A record without an id can't be named in it.
    """
    reasons: dict[str, str] = {}
    for split in splits:
        for record, problems in zip(split.records, split.problems, strict=True):
            reason = _reason_to_quarantine(record, problems)
            if reason and record.id:
                reasons.setdefault(record.id, reason)
    return [f"{name}\t{_one_line(reason)}\n" for name, reason in reasons.items()]


def _reason_to_quarantine(record: VideoRecord, problems: Iterable[Problem]) -> str:
    listed, _, reason = record.excluded.partition(": ")
    if listed == "quarantined":
        return reason
    found = (problem for problem in problems if problem.kind in QUARANTINED)
    return "; ".join(f"{problem.kind}: {problem.reason}" for problem in found)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def summarize(
    splits: Sequence[Split], facts: Mapping[str, VideoFacts], class_names: Sequence[str]
) -> dict[str, Any]:
    """Return all that is to be told of an audit, ready for JSON."""
    named = {split.name: split for split in splits}
    both = "train" in named and "test" in named
    leaks = find_leaks(named["train"], named["test"], facts) if both else []
    used = dict.fromkeys(r.path for split in splits for r in split.records if not r.excluded)
    return {
        "videos": _summarize_videos([facts[path] for path in used]),
        "splits": {split.name: _summarize_split(split, facts, class_names) for split in splits},
        "leaks": [_pair(pair) for pair in leaks] if both else None,
        "verdict": verdict(named["test"]) if "test" in named else None,
    }


def _summarize_videos(videos: Sequence[VideoFacts]) -> dict[str, Any]:
    read = [video for video in videos if not video.error]
    lacking = Counter(
        "not told" if not video.promised else str(video.promised - video.num_frames)
        for video in read
        if video.exact or not video.promised
    )
    return {
        "count": len(videos),
        "readable": len(read),
        "fully_decoded": sum(video.full for video in read),
        "frames": _spread([video.num_frames for video in read]),
        "fps": _most_common(f"{video.fps:.4g}" for video in read),
        "sizes": _most_common(f"{video.width}x{video.height}" for video in read),
        "codecs": _most_common(video.codec for video in read),
        "frames_found_by": _most_common(video.scan for video in read),
        "promised_less_decoded": dict(lacking.most_common()),
    }


def _most_common(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]}


def _summarize_split(
    split: Split, facts: Mapping[str, VideoFacts], class_names: Sequence[str]
) -> dict[str, Any]:
    usable = split.usable()
    listed = _list_problems(split)
    lengths = [length for length, fine in zip(split.lengths, usable, strict=True) if fine]
    seconds = [
        length / facts[record.path].fps
        for record, length, fine in zip(split.records, split.lengths, usable, strict=True)
        if fine
    ]
    excluded = (record.excluded.partition(":")[0] for record in split.records if record.excluded)
    return {
        "records": len(split.records),
        "official": split.official,
        "usable": sum(usable),
        "excluded": _most_common(excluded),
        "problems": {kind: listed[kind] for kind in KINDS if kind in listed},
        "duplicates": [_pair(pair) for pair in find_duplicates(split, facts)],
        "frames": _spread(lengths),
        "seconds": _spread([round(value, 3) for value in seconds]),
        "classes": _count_labels(split, usable, class_names),
    }


def _list_problems(split: Split) -> dict[str, list[dict[str, Any]]]:
    """Return the records that have each kind of problem; of those too short the shortest first."""
    listed: dict[str, list[dict[str, Any]]] = {}
    for record, problems, length in zip(split.records, split.problems, split.lengths, strict=True):
        entry = {"id": record.id, "path": record.path, "frames": length}
        for problem in problems:
            listed.setdefault(problem.kind, []).append(entry | {"reason": problem.reason})
    for kind in ("short", "refused"):
        listed.get(kind, []).sort(key=lambda entry: int(entry["frames"]))
    return listed


def _count_labels(
    split: Split, usable: Sequence[bool], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    total = Counter(record.label for record in split.records)
    there = Counter(
        record.label for record, fine in zip(split.records, usable, strict=True) if fine
    )
    return [
        {"label": label, "name": name, "records": total[label], "usable": there[label]}
        for label, name in enumerate(class_names)
    ]


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "kind": pair.kind,
        "first": _named(pair.first),
        "second": _named(pair.second),
        "labels": [pair.first.label, pair.second.label],
    }


def _named(record: VideoRecord) -> str:
    return record.id or f"{record.path} [{record.start}, {record.stop})"


def verdict(test: Split) -> dict[str, Any]:
    """Say whether the evaluation set is whole, and in one line what is lacking."""
    total, usable = len(test.records), sum(test.usable())
    lacking = []
    if test.official is not None and total != test.official:
        lacking.append(f"{total:,} records are listed, {test.official:,} are official")
    if usable < total:
        first = [
            next(each for each in found if each.kind in UNUSABLE)
            for found in test.problems
            if not is_usable(found)
        ]
        kinds = Counter(
            problem.reason.partition(":")[0] if problem.kind == "excluded" else problem.kind
            for problem in first
        )
        counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        lacking.append(f"{total - usable:,} of {total:,} records can't be evaluated ({counted})")
    if not total:
        lacking.append("it has no record")
    text = f"The evaluation set is whole: all {total:,} records can be read."
    if lacking:
        text = f"The evaluation set is not whole: {'; '.join(lacking)}."
    return {"whole": not lacking, "text": text}
