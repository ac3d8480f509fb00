"""Which frames a video has, and where decoding can start: found once a file, cheaply, and kept.

What a container's header says about frames is not believed. Where it can be trusted, a pass over
the packets (nothing is decoded) lists the time stamp of every frame; decoding the beginning and the
end then confirms it. Where it can't (raw streams, B-frames packed into an AVI, placeholders for
frames that were dropped, an end that does not decode), the file is decoded once from end to end and
its frames are those before the first error.
"""

import logging
import os
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vmp.data.archive import DecodeError, Source, locate
from vmp.utils.files import write_atomically
from vmp.utils.processes import Died, work_through
from vmp.utils.threads import run_in_time

logger = logging.getLogger(__name__)

# Largest frame that is decoded: 8K UHD. A broken header can ask for any amount of memory.
MAX_PIXELS = 7680 * 4320
# Containers, by FFmpeg's names: those that hold pictures themselves. Playlists, which make FFmpeg
# open other files, are not among them.
_FORMATS = (
    "apng,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,"
    "mxf,nut,obu,ogg,rm,vc1,webm,wtv,yuv4mpegpipe"
)
# Containers that give every packet of these codecs its own time stamp and can seek by it, one
# packet a frame. VP8 is not among them: its packets may hold frames that are never shown.
_INDEXED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
_INDEXED_CODECS = ("h264", "hevc", "mpeg4", "vp9", "av1", "mjpeg")
# A packet of MPEG-4 of fewer bytes holds no picture: a placeholder for a frame that was dropped, or
# for one that is packed into another packet.
_SMALLEST_MPEG4_PACKET = 20
# Indexes a process keeps; those of long videos stay on the disk and are only mapped.
_CACHED = 16384
# A video with fewer frames is indexed faster than a file is opened on a network file system.
_STORED_FROM = 1024

# The scaler of PyAV 17 and later would else use every core.
SCALER_THREADS: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}

Numbers = npt.NDArray[np.int64]
_UNKNOWN = -(2**62)
_FPS_DENOMINATOR = 1_000_000
T = TypeVar("T")


class FrameIndex(NamedTuple):
    """The frames of a video, numbered from 0 in the order they are shown.

    Attributes:
        num_frames: at least 1.
        fps: frames per second, on average, by the stamps where they tell.
        height: of the first frame as coded, before any rotation, pixels.
        width: likewise.
        quarter_turns: counter-clockwise turns by 90 degrees to show it upright.
        label: by which of its stamps a decoded frame is known, "pts" or "dts"; "" by none: it is
            counted from the start of the file.
        time_base: seconds of a unit of the stamps.
        origin: stamp at which the file begins.
        stamps: (num_frames,) ascending; two may be the same where there are checksums. (0,) where
            `label` is "".
        keys: frames from which decoding can start, ascending. The start of the file always can.
        checksums: of the pictures at `keys`, to know them again after a seek; (0,) where the
            container's own stamps are enough.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    quarter_turns: int
    label: str
    time_base: Fraction
    origin: int
    stamps: Numbers
    keys: Numbers
    checksums: Numbers

    def frame_at(self, seconds: float) -> int:
        """Return the first frame shown at this time of the file or later.

        A frame that is due less than 1 ms earlier counts: some containers round to that.

        Returns:
            0 to num_frames; the latter if the file has ended by then.
        """
        due = seconds - 1e-3
        if self.label:
            return int(np.searchsorted(self.stamps, due / float(self.time_base) + self.origin))
        return int(min(max(np.ceil(due * self.fps), 0), self.num_frames))


class TookTooLongError(DecodeError):
    """Time ran out; another try would only take as long again."""


class Deadline:
    """A point in time after which decoding gives up.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self, path: str) -> None:
        """Raise TookTooLongError if the time is over."""
        if time.monotonic() > self._end:
            raise TookTooLongError(path, f"took more than {self.seconds:g} s")


def in_time(work: Callable[[Deadline], T], path: str, seconds: float) -> T:
    """Return what `work` does; a decoder that never comes back is left.

    The decoders check the deadline between packets, so that they end by themselves if they can.

    Raises:
        TookTooLongError: the time is over.
    """
    deadline = Deadline(seconds)
    try:
        return run_in_time(lambda: work(deadline), seconds + 1.0)
    except TimeoutError as error:
        reason = f"the decoder stalls: no answer in {seconds:g} s"
        raise TookTooLongError(path, reason) from error


# --------------------------------------------------------------------------- finding an index
_indexes: "OrderedDict[tuple[Any, ...], FrameIndex]" = OrderedDict()


def find_index(
    path: str | os.PathLike[str],
    index_dir: str | Path | None = None,
    *,
    seconds: float = 3600.0,
    unchanged: bool = False,
) -> FrameIndex:
    """Return the index of a video, from memory, from the disk, or made now.

    Args:
        path: the video, a file or in an archive.
        index_dir: folder that keeps the indexes of long videos; None keeps none. One that can't
            be written to is only read.
        seconds: longest time to make it.
        unchanged: take one from the disk only if the file was not written to since. Else a copy
            of the file will do, wherever it lies: its content is what is compared, in parts.

    Raises:
        DecodeError: it is missing, is no video, not one frame decodes, or the time is over.
    """
    source = locate(os.fspath(path))
    with as_decode_errors(source.path):
        key = (source.path, source.offset, source.size, _modified(source))
        if key not in _indexes:
            work = partial(_read_or_make, source, index_dir, unchanged=unchanged)
            _indexes[key] = in_time(work, source.path, seconds)
    _indexes.move_to_end(key)
    index = _indexes[key]
    if len(_indexes) > _CACHED:
        _indexes.popitem(last=False)
    return index


def scan_all(
    paths: Iterable[str], index_dir: str | Path | None, workers: int
) -> Iterator[tuple[str, FrameIndex | DecodeError]]:
    """Index many videos in parallel processes, and keep the indexes in `index_dir`.

    What is there from an earlier, interrupted call is not done again, unless the file was written
    to since. A video over which the process dies is told as an error.

    Args:
        paths: the videos.
        index_dir: as in `find_index`.
        workers: processes; 1 or less: this one.

    Yields:
        (path, its index or what is wrong with it), in the order they are ready.
    """
    work = partial(_index_or_error, index_dir=index_dir)
    if workers <= 1:
        yield from ((path, work(path)) for path in paths)
        return
    for path, found in work_through(paths, work, workers, preload=__name__):
        yield path, DecodeError(path, describe_death(found)) if isinstance(found, Died) else found


def _index_or_error(path: str, index_dir: str | Path | None) -> FrameIndex | DecodeError:
    try:
        return find_index(path, index_dir, unchanged=True)
    except DecodeError as error:
        return error


def describe_death(died: Died) -> str:
    """Return why a video can't be used over which a process died."""
    return (
        f"the process that read it died ({died.signal}): the decoder crashes, or no memory was left"
    )


def _modified(source: Source) -> int:
    return os.stat(source.file).st_mtime_ns


def _read_or_make(
    source: Source, index_dir: str | Path | None, deadline: Deadline, *, unchanged: bool
) -> FrameIndex:
    if index_dir is None:
        return make_index(source, deadline)
    stored, modified = Path(index_dir, f"{source.fingerprint()}.npy"), _modified(source)
    index = _load(stored, modified if unchanged else None)
    if index is None:
        index = make_index(source, deadline)
        if index.num_frames >= _STORED_FROM:
            _store(stored, index, modified)
            index = _load(stored) or index  # mapped from now on, not held in memory
    return index


# On the disk an index is one array of integers, so that it can be mapped: a checksum of all that
# follows, the version, scalars, then the three arrays.
_VERSION = 1
_LABELS = ("", "pts", "dts")
_HEAD = 16


def _store(path: Path, index: FrameIndex, modified: int) -> None:
    fps = Fraction(index.fps).limit_denominator(_FPS_DENOMINATOR)
    scalars = [
        _VERSION,
        modified,
        len(index.stamps),
        len(index.keys),
        len(index.checksums),
        index.num_frames,
        fps.numerator,
        fps.denominator,
        index.height,
        index.width,
        index.quarter_turns,
        _LABELS.index(index.label),
        index.time_base.numerator,
        index.time_base.denominator,
        index.origin,
    ]
    head = np.array(scalars, dtype=np.int64)
    flat = np.concatenate([head, index.stamps, index.keys, index.checksums])
    whole = np.concatenate([[zlib.crc32(flat.data)], flat]).astype(np.int64)
    try:
        write_atomically(path, lambda file: np.save(file, whole, allow_pickle=False))
    except OSError as error:
        logger.warning("%s can't be written (%s); each process scans again", path, error)


def _load(path: Path, modified: int | None = None) -> FrameIndex | None:
    """Read an index; None if it is not there, damaged, or of another state of the file."""
    try:
        flat: Numbers = np.load(path, mmap_mode="r", allow_pickle=False)
        if flat.dtype != np.int64 or flat.ndim != 1 or len(flat) < _HEAD:
            return None
        if int(flat[0]) != zlib.crc32(flat[1:].data) or int(flat[1]) != _VERSION:
            return None
    except Exception:  # what a damaged file makes of numpy's reader has no common type
        return None
    if modified is not None and int(flat[2]) != modified:
        return None
    num_frames, numerator, denominator, height, width, turns, label, *time = flat[6:_HEAD].tolist()
    stamps, keys, checksums, _ = np.split(flat[_HEAD:], np.cumsum(flat[3:6]))
    return FrameIndex(
        num_frames=num_frames,
        fps=numerator / denominator,
        height=height,
        width=width,
        quarter_turns=turns,
        label=_LABELS[label],
        time_base=Fraction(time[0], time[1]),
        origin=time[2],
        stamps=stamps,
        keys=np.array(keys),
        checksums=np.array(checksums),
    )


# --------------------------------------------------------------------------- making an index
def make_index(source: Source, deadline: Deadline) -> FrameIndex:
    """Scan a video: its packets if they can be trusted, else all of its frames.

    Raises:
        DecodeError: it is no video, not one frame decodes, or the time is over.
    """
    with opened(source) as (container, stream):
        stamps, keys = _list_packets(source.path, container, stream, deadline)
    if len(stamps):
        with opened(source) as (container, stream):
            index = _confirm(source.path, container, stream, stamps, keys, deadline)
        if index is not None:
            return index
    with opened(source) as (container, stream):
        return _from_frames(source.path, container, stream, deadline)


def _list_packets(
    path: str, container: InputContainer, stream: VideoStream, deadline: Deadline
) -> tuple[Numbers, Numbers]:
    """Return the stamps of all packets and of key frames, ascending; none if they can't be used."""
    none = np.empty(0, dtype=np.int64)
    codec = _codec_family(stream.codec_context.name)
    if container.format.name not in _INDEXED_FORMATS or codec not in _INDEXED_CODECS:
        return none, none
    stamps: list[int] = []
    keys: list[int] = []
    # an AVI stores none: those of B-frames are worked out, which goes well for MPEG-4 only
    guessed = container.format.name == "avi" and codec != "mpeg4"
    try:
        for packet in container.demux(stream):
            deadline.check(path)
            if packet.dts is None and packet.pts is None and not packet.size:
                continue  # the flush at the end
            if packet.pts is None or packet.is_corrupt or packet.size < _smallest_packet(codec):
                return none, none
            if guessed and packet.pts != packet.dts:
                return none, none
            if packet.is_discard:  # before the beginning that an edit list sets
                continue
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    except av.FFmpegError:
        return none, none
    ordered = np.unique(np.array(stamps, dtype=np.int64))
    if len(ordered) != len(stamps):
        return none, none
    return ordered, np.sort(np.array(keys, dtype=np.int64))


def _confirm(
    path: str,
    container: InputContainer,
    stream: VideoStream,
    stamps: Numbers,
    keys: Numbers,
    deadline: Deadline,
) -> FrameIndex | None:
    """Return the index that the stamps make if the file's first and last frames bear them out."""
    last_key = int(keys[-1]) if len(keys) else int(stamps[0])
    decoded = container.decode(stream)
    try:
        first = next(decoded, None)
        if first is None or first.pts != stamps[0]:
            return None
        seen = [first.pts]
        if last_key > stamps[0]:
            container.seek(last_key, stream=stream)
            seen, decoded = [], container.decode(stream)
        for frame in decoded:
            deadline.check(path)
            if frame.pts is None or frame.pts >= last_key:
                seen.append(frame.pts)
    except av.FFmpegError:
        return None
    if seen != stamps[np.searchsorted(stamps, last_key) :].tolist():
        return None
    index = _describe(path, container, stream, first)._replace(
        num_frames=len(stamps), label="pts", stamps=stamps, keys=np.searchsorted(stamps, keys)
    )
    return index._replace(fps=_rate(index))


def _from_frames(
    path: str, container: InputContainer, stream: VideoStream, deadline: Deadline
) -> FrameIndex:
    """Decode a file from end to end, up to the first error: what follows could be damaged."""
    scaler = VideoReformatter()
    first: VideoFrame | None = None
    pts: list[int] = []
    dts: list[int] = []
    keys: list[int] = []
    checksums: list[int] = []
    try:
        for number, frame in enumerate(container.decode(stream)):
            deadline.check(path)
            first = first or frame
            pts.append(_stamp(frame, "pts", pts[-1:]))
            dts.append(_stamp(frame, "dts", dts[-1:]))
            if frame.key_frame or not number:
                keys.append(number)
                checksums.append(checksum(scaler, frame))
    except av.FFmpegError as error:
        if first is None:
            raise
        logger.warning("%s: breaks off after %d frames: %s", path, len(pts), error.strerror)
    if first is None:
        raise DecodeError(path, "not one frame decodes")
    index = _describe(path, container, stream, first)._replace(num_frames=len(pts))
    for label, stamps in (("pts", pts), ("dts", dts)):
        # two frames may have one stamp where a container rounds them
        if (np.diff(stamps) >= 0).all() and _UNKNOWN not in stamps:
            # a seek could not tell a key frame from another frame of the same stamp; the start of
            # the file is always one, and needs no seek
            _, same, counts = np.unique(stamps, return_inverse=True, return_counts=True)
            alone = (counts[same][keys] == 1) | (np.array(keys) == 0)
            index = index._replace(
                label=label,
                stamps=np.array(stamps, dtype=np.int64),
                keys=np.array(keys, dtype=np.int64)[alone],
                checksums=np.array(checksums, dtype=np.int64)[alone],
            )
            return index._replace(fps=_rate(index))
    return index  # it can only be decoded from the start


def _describe(
    path: str, container: InputContainer, stream: VideoStream, first: VideoFrame
) -> FrameIndex:
    """Return an index that holds what the header and the first frame say."""
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    if not rate:
        raise DecodeError(path, "the stream has no frame rate")
    base = stream.time_base or 1 / rate
    begin = container.start_time
    none = np.empty(0, dtype=np.int64)
    return FrameIndex(
        num_frames=0,
        fps=float(Fraction(rate).limit_denominator(_FPS_DENOMINATOR)),
        height=first.height,
        width=first.width,
        quarter_turns=round(first.rotation / 90) % 4,
        label="",
        time_base=base,
        origin=round(Fraction(begin, av.time_base) / base) if begin is not None else first.pts or 0,
        stamps=none,
        keys=none,
        checksums=none,
    )


def _rate(index: FrameIndex) -> float:
    """Return frames per second: the header's, unless the stamps tell another rate."""
    seconds = float((index.stamps[-1] - index.stamps[0]) * index.time_base)
    if index.label != "pts" or seconds <= 0:
        return index.fps
    rate = (len(index.stamps) - 1) / seconds
    if abs(rate - index.fps) <= 0.01 * rate:  # one that is rounded, in milliseconds perhaps
        return index.fps
    return float(Fraction(rate).limit_denominator(_FPS_DENOMINATOR))


def label_frames(frames: Iterable[VideoFrame], label: str) -> Iterator[tuple[int, VideoFrame]]:
    """Yield each frame with the stamp it is known by, as `FrameIndex.label` says."""
    before: list[int] = []
    for number, frame in enumerate(frames):
        before = [_stamp(frame, label, before)] if label else [number]
        yield before[0], frame


def _stamp(frame: VideoFrame, label: str, before: Sequence[int]) -> int:
    """Return a frame's stamp. What a decoder still holds at the end comes without: count on."""
    stamp = frame.pts if label == "pts" else frame.dts
    if stamp is not None:
        return stamp
    return before[0] + 1 if before else _UNKNOWN


def _codec_family(decoder: str) -> str:
    """Return the name of the format that a decoder is for."""
    return {"libdav1d": "av1", "libaom-av1": "av1", "libvpx-vp9": "vp9"}.get(decoder, decoder)


def _smallest_packet(codec: str) -> int:
    return _SMALLEST_MPEG4_PACKET if codec == "mpeg4" else 1


# --------------------------------------------------------------------------- PyAV
@contextmanager
def opened(source: Source) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the first video stream of a file; PyAV's errors become DecodeError."""
    with as_decode_errors(source.path):
        container, stream = open_video(source)
        with container:
            yield container, stream


@contextmanager
def as_decode_errors(path: str) -> Iterator[None]:
    """Turn what PyAV raises into DecodeError."""
    try:
        yield
    except av.ArgumentError as error:  # what FFmpeg says of a container that is not in the list
        raise DecodeError(path, "no container of video, or a playlist") from error
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(path, error.strerror or str(error)) from error
    except MemoryError as error:
        raise DecodeError(path, "no memory for its frames") from error


def open_video(source: Source) -> tuple[InputContainer, VideoStream]:
    """Open a file and its first video stream, single-threaded: the workers are the parallelism.

    Raises:
        DecodeError: there is no video stream, or its frames are larger than MAX_PIXELS.
        av.FFmpegError: it can't be opened.
    """
    # the names of tracks need not be UTF-8, nor do they matter
    container = av.open(
        source.url or source.open(),
        metadata_errors="ignore",
        options={"max_pixels": str(MAX_PIXELS), "format_whitelist": _FORMATS},
    )
    assert isinstance(container, InputContainer)  # opened for reading
    # the cover of a song or film comes as a video stream too
    pictures = Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        container.close()
        raise DecodeError(source.path, "no video stream")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        container.close()
        raise DecodeError(source.path, "there is no decoder for its video stream")
    if context.width * context.height > MAX_PIXELS:
        container.close()
        raise DecodeError(
            source.path,
            f"frames of {context.width} x {context.height} pixels, at most {MAX_PIXELS} are read",
        )
    context.options = {"max_pixels": str(MAX_PIXELS)}
    context.thread_count = 1  # starts faster
    return container, stream


def checksum(scaler: VideoReformatter, frame: VideoFrame) -> int:
    """Return a checksum of a thumbnail of the frame."""
    thumbnail = scaler.reformat(
        frame, width=64, height=64, format="gray", interpolation="AREA", **SCALER_THREADS
    )
    return zlib.crc32(thumbnail.to_ndarray().tobytes())
