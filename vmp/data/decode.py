"""Exact frames of a video file by index.

What a container's header says about frames is not believed: the first time a file is opened, it is
decoded once from end to end, and that gives the number of frames, their time stamps and the key
frames from which decoding can start. A small cache in each process keeps this index.
"""

import bisect
import itertools
import logging
import operator
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, cast

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

BACKENDS = ("pyav",)
# Indexes a process keeps, about 3 kB each for a video of 300 frames.
CACHED_INDEXES = 16384
# A short video's frames are kept from the pass that makes its index until the reader is closed, so
# that its first clip costs one pass and not two. Bytes of a video's frames as decoded.
KEPT_BYTES = 64 * 2**20
# The workers are the parallelism; the scaler of PyAV 17 and later would else use every core.
_SCALER_THREADS: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}

Frames = npt.NDArray[np.uint8]


class DecodeError(Exception):
    """A file from which the frames wanted can't be had.

    Attributes:
        path: the file.
        reason: what went wrong, one line.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it can be pickled by a worker
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class KeyFrame(NamedTuple):
    """A frame from which decoding can start.

    Attributes:
        number: its index.
        pts: its time stamp.
        checksum: of its luma, to know it again after a seek.
    """

    number: int
    pts: int
    checksum: int


class FrameIndex(NamedTuple):
    """What one decoding pass over a file has found.

    Attributes:
        num_frames: frames that really decode, at least 1.
        fps: frames per second, on average.
        height: of the first frame as coded, before any rotation.
        width: likewise.
        quarter_turns: counter-clockwise turns by 90 degrees to show it upright.
        keys: where decoding can start, ascending; frame 0 is not among them.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    quarter_turns: int
    keys: tuple[KeyFrame, ...]


class VideoReader:
    """Frames of a video by index, exactly, whatever its container claims.

    The number of frames is the number that decodes: a file that breaks off counts as far as it
    goes. A stored rotation by quarter turns is applied. No file is open between two calls.

    Args:
        path: the video file.
        backend: "pyav".

    Attributes:
        path: the video file.
        fps: frames per second, on average.
        size: (height, width) as shown, pixels; non-square pixels are not stretched.

    Raises:
        DecodeError: the file is missing, is no video, or not one frame decodes.
        ValueError: an unknown backend.
    """

    def __init__(self, path: str | os.PathLike[str], backend: str = "pyav") -> None:
        if backend not in BACKENDS:
            raise ValueError(
                f"decoding backend {backend!r} is not known; there are: {', '.join(BACKENDS)}"
            )
        self.path = os.fspath(path)
        self._index, self._kept = _find_index(self.path)
        self.fps = self._index.fps
        size = self._index.height, self._index.width
        self.size = size[::-1] if self._index.quarter_turns % 2 else size

    def __len__(self) -> int:
        return self._index.num_frames

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the frames kept since the file was indexed."""
        self._kept = []

    def read(self, indices: Sequence[int], short_side: int | None = None) -> Frames:
        """Decode frames.

        Args:
            indices: frame numbers from 0, in any order, also repeated.
            short_side: length the short side is scaled to, pixels, bilinear, by the scaler that
                makes RGB of the frame; the long side follows, rounded down. None: as coded.

        Returns:
            (T, H, W, 3) uint8 RGB, in the order of `indices`.

        Raises:
            IndexError: a number is negative or past the last frame.
            ValueError: no indices, or a short side below 1.
            DecodeError: the file does not decode any more as it did before.
        """
        numbers = np.asarray([operator.index(number) for number in indices], dtype=np.int64)
        if numbers.size == 0:
            raise ValueError("no frames wanted; give at least one index")
        if numbers.min() < 0 or numbers.max() >= len(self):
            raise IndexError(
                f"{self.path}: frames {numbers.min()} to {numbers.max()} wanted, "
                f"{len(self)} decode (0 to {len(self) - 1})"
            )
        height, width = scaled_size(self._index.height, self._index.width, short_side)
        frames = np.empty((len(numbers), height, width, 3), dtype=np.uint8)
        scaler = VideoReformatter()
        for number, frame in self._decode(sorted(set(numbers.tolist()))):
            frames[numbers == number] = _to_rgb(scaler, frame, height, width)
        turned = np.rot90(frames, self._index.quarter_turns, axes=(1, 2))
        return np.ascontiguousarray(turned)

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the wanted frames, ascending; skip ahead where a key frame lies in between."""
        if self._kept:
            yield from ((number, self._kept[number]) for number in wanted)
            return
        frames: Iterator[tuple[int, VideoFrame]] | None = None
        position = -1
        for number in wanted:
            key = self._key_before(number)
            if frames is None or (key is not None and key.number > position):
                frames = self._decode_from(key)
            frame = None
            while position != number or frame is None:
                position, frame = next(frames, (number, None))
                if frame is None:
                    raise DecodeError(self.path, f"frame {number} does not decode any more")
            yield number, frame

    def _key_before(self, number: int) -> KeyFrame | None:
        """Return the last key frame at or before `number`; None is the start of the file."""
        place = bisect.bisect_right(self._index.keys, number, key=lambda key: key.number)
        return self._index.keys[place - 1] if place else None

    def _decode_from(self, key: KeyFrame | None) -> Iterator[tuple[int, VideoFrame]]:
        """Yield numbered frames from `key` on, or from the start of the file."""
        if key is not None:
            with _opened(self.path) as (container, stream):
                frames = _seek(container, stream, key)
                if frames is not None:
                    yield from enumerate(frames, key.number)
                    return
            logger.debug("%s: no exact seek to frame %d, decoded from 0", self.path, key.number)
        with _opened(self.path) as (container, stream):
            yield from enumerate(container.decode(stream))


def scaled_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return (height, width) with the short side as wanted and the long side rounded down.

    Raises:
        ValueError: `short_side` is below 1.
    """
    if short_side is None:
        return height, width
    if short_side < 1:
        raise ValueError(f"short side {short_side} wanted, it must be at least 1 pixel")
    if height <= width:
        return short_side, width * short_side // height
    return height * short_side // width, short_side


# --------------------------------------------------------------------------- index of a file
_indexes: "OrderedDict[tuple[str, int, int], FrameIndex]" = OrderedDict()


def _find_index(path: str) -> tuple[FrameIndex, list[VideoFrame]]:
    """Return a file's index, and its frames if they have just been decoded and are not many."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DecodeError(path, error.strerror or str(error)) from error
    key = (path, status.st_size, status.st_mtime_ns)
    if key in _indexes:
        _indexes.move_to_end(key)
        return _indexes[key], []
    index, kept = _make_index(path)
    _indexes[key] = index
    if len(_indexes) > CACHED_INDEXES:
        _indexes.popitem(last=False)
    return index, kept


def _make_index(path: str) -> tuple[FrameIndex, list[VideoFrame]]:
    scaler = VideoReformatter()
    first: VideoFrame | None = None
    stamps: list[int | None] = []
    keys: list[KeyFrame] = []
    kept: list[VideoFrame] = []
    with _opened(path) as (container, stream):
        for number, frame in enumerate(_until_broken(path, container.decode(stream))):
            first = first or frame
            stamps.append(frame.pts)
            if number and frame.key_frame and frame.pts is not None:
                keys.append(KeyFrame(number, frame.pts, _checksum(scaler, frame)))
            kept.append(frame)
            if len(stamps) * _num_bytes(frame) > KEPT_BYTES:
                kept.clear()
        if first is None:
            raise DecodeError(path, "not one frame decodes")
        fps = _frame_rate(path, stream)
    index = FrameIndex(
        num_frames=len(stamps),
        fps=fps,
        height=first.height,
        width=first.width,
        quarter_turns=round(first.rotation / 90) % 4,
        # packed B-frames in an AVI come with shuffled stamps, some streams with none: a seek by
        # stamp could land anywhere, so those files are always decoded from the start
        keys=tuple(keys) if _ascend(stamps) else (),
    )
    return index, kept if len(kept) == len(stamps) else []


def _until_broken(path: str, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """Yield frames until the first error; what follows it could be damaged."""
    number = 0
    try:
        for frame in frames:
            yield frame
            number += 1
    except av.FFmpegError as error:
        if number == 0:
            raise
        logger.warning("%s: breaks off after %d frames: %s", path, number, error)


def _ascend(stamps: Sequence[int | None]) -> bool:
    known = [stamp for stamp in stamps if stamp is not None]
    return len(known) == len(stamps) and all(a < b for a, b in itertools.pairwise(known))


def _frame_rate(path: str, stream: VideoStream) -> float:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    if not rate:
        raise DecodeError(path, "the stream has no frame rate")
    return float(rate)


def _num_bytes(frame: VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)


# --------------------------------------------------------------------------- PyAV
@contextmanager
def _opened(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the first video stream of a file, single-threaded; PyAV's errors become DecodeError."""
    try:
        # the names of tracks need not be UTF-8, nor do they matter
        with av.open(path, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise DecodeError(path, "no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # starts faster; the workers are the parallelism
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(path, error.strerror or str(error)) from error


def _seek(
    container: InputContainer, stream: VideoStream, key: KeyFrame
) -> Iterator[VideoFrame] | None:
    """Return the frames from `key` on, or None if the container can't be brought there.

    What decodes before the key frame is dropped: it may lack what it refers to. The key frame
    must have the stamp and the picture seen when the file was indexed.
    """
    container.seek(key.pts, stream=stream)
    frames = container.decode(stream)
    first = next((frame for frame in frames if frame.pts is None or frame.pts >= key.pts), None)
    if first is None or first.pts != key.pts:
        return None
    if _checksum(VideoReformatter(), first) != key.checksum:
        return None
    return itertools.chain([first], frames)


def _checksum(scaler: VideoReformatter, frame: VideoFrame) -> int:
    """Return a checksum of a thumbnail of the frame."""
    thumbnail = scaler.reformat(
        frame, width=64, height=64, format="gray", interpolation="AREA", **_SCALER_THREADS
    )
    return zlib.crc32(thumbnail.to_ndarray().tobytes())


def _to_rgb(scaler: VideoReformatter, frame: VideoFrame, height: int, width: int) -> Frames:
    """Convert to (H, W, 3) uint8 RGB while scaling; one scaler does all frames of a clip."""
    rgb = scaler.reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        interpolation="BILINEAR",
        **_SCALER_THREADS,
    )
    return cast(Frames, rgb.to_ndarray())  # other pixel formats have other types
