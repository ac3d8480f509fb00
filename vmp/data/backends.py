"""What decodes: one class a library, all with the same contract.

A backend is made of a file and its index and reads frames by their number in it. It is not asked
what the file holds: the index knows. A library that numbers or stamps the frames of a file
otherwise is not used for it.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vmp.data.archive import DecodeError, Source
from vmp.data.frame_index import (
    SCALER_THREADS,
    Deadline,
    FrameIndex,
    as_decode_errors,
    checksum,
    label_frames,
    open_video,
    opened,
)

# Frames that a seek must save to be worth it.
_SEEK_COST = 4
# Decoders that can be told with each packet to leave out a frame that no other depends on.
_SKIPPING = ("h264", "hevc", "mpeg4", "vp9")
# Mean difference of what two scalers make of the same frame at full size, grey levels of 255, at
# most: 0.6 was the largest seen, in odd sizes. Consecutive frames that move differ by more.
SAME_PICTURE = 1.5

Frames = npt.NDArray[np.uint8]


class Backend(Protocol):
    """Decodes one file."""

    def read(self, numbers: Sequence[int], size: tuple[int, int], deadline: Deadline) -> Frames:
        """Return frames (T, height, width, 3) as coded, for ascending distinct numbers.

        Raises:
            DecodeError: one does not decode, or not in time.
        """

    def close(self) -> None:
        """Let go of the file; reading opens it again."""


class Run(NamedTuple):
    """Frames that are decoded in one go.

    Attributes:
        key: place in the index's keys where decoding starts; -1 is the start of the file.
        numbers: the frames wanted, ascending.
    """

    key: int
    numbers: list[int]


def plan_runs(keys: npt.NDArray[np.int64], numbers: Sequence[int]) -> list[Run]:
    """Part ascending frame numbers into runs: seek ahead where that decodes less."""
    runs: list[Run] = []
    places = np.searchsorted(keys, numbers, side="right") - 1
    for place, number in zip(places.tolist(), numbers, strict=True):
        start = int(keys[place]) if place >= 0 else 0
        if runs and start - runs[-1].numbers[-1] <= _SEEK_COST:
            runs[-1].numbers.append(number)
        else:
            runs.append(Run(place if start else -1, [number]))
    return runs


class PyAV:
    """Decodes with PyAV: the wanted frames and what they depend on, nothing else.

    Frames are known by their time stamps, never by counting after a seek.

    Args:
        source: the file.
        index: its frames.
    """

    def __init__(self, source: Source, index: FrameIndex) -> None:
        self.source = source
        self.index = index
        # the packets' stamps are those of the frames
        self._by_packet = index.label == "pts" and not len(index.checksums)
        self._opened: tuple[InputContainer, VideoStream] | None = None

    def close(self) -> None:
        """Close the file; reading opens it again."""
        if self._opened is not None:
            self._opened[0].close()
        self._opened = None

    def read(self, numbers: Sequence[int], size: tuple[int, int], deadline: Deadline) -> Frames:
        """Return frames (T, height, width, 3) as coded, for ascending distinct numbers.

        Raises:
            DecodeError: one does not decode, or not in time.
        """
        # in memory channel by channel, as the scaler makes them and as clips are laid out
        frames: Frames = np.empty((3, len(numbers), *size), dtype=np.uint8).transpose(1, 2, 3, 0)
        scaler = VideoReformatter()
        places = {number: place for place, number in enumerate(numbers)}
        with as_decode_errors(self.source.path):
            for run in plan_runs(self.index.keys, numbers):
                for number, frame in self.decode(run, deadline):
                    to_rgb(scaler, frame, frames[places[number]])
                    del frame  # a full-size picture less while the next ones are decoded
        return frames

    def decode(self, run: Run, deadline: Deadline) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the frames of a run; again from further back where a seek does not do.

        A decoder mends a damaged frame with what it saw before. At the first sign of damage the
        frames are decoded as a player does: from the start of the file, and nothing left out.
        """
        wanted = list(run.numbers)
        reason = "its time stamp never comes"
        starts = sorted({run.key, max(run.key - 1, -1)}, reverse=True)
        for key, whole in [*((start, False) for start in starts), (-1, True)]:
            try:
                for number, frame in self._decode_from(key, whole, wanted, deadline):
                    yield number, frame
                    wanted.remove(number)
                    del frame  # damage shows what a buffer held before: hold as many as a player
            except av.FFmpegError as error:
                reason = error.strerror or str(error)
            if not wanted:
                return
            self.close()  # a decoder remembers pictures, and may mend others with them
        raise DecodeError(self.source.path, f"frame {wanted[0]} does not decode: {reason}")

    def _decode_from(
        self, key: int, whole: bool, wanted: Sequence[int], deadline: Deadline
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the wanted frames that come when decoding starts at a key frame.

        If not `whole`, it ends at the first sign of damage.
        """
        index, left, last = self.index, set(wanted), max(wanted)
        begin = int(index.keys[key]) if key >= 0 else 0
        keys_due = index.keys[(index.keys > begin) & (index.keys <= last)].tolist()
        frames = label_frames(self._frames(key, whole, wanted, deadline), index.label)
        if key >= 0:
            frames = self._from_key(key, frames)
        numbered = self._by_stamp(frames) if self._by_packet else self._by_count(begin, frames)
        for number, frame in numbered:
            lost = _is_key_lost(keys_due, number)
            if (frame.is_corrupt or lost) and not whole:
                return
            if number in left:
                left.remove(number)
                yield number, frame
            if number >= last:
                return

    def _from_key(
        self, key: int, frames: Iterator[tuple[int, VideoFrame]]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Leave out what comes before a key frame: it may lack what it refers to.

        Nothing is yielded if the key frame is not the one that the index knows.
        """
        stamp_of_key = int(self.index.stamps[self.index.keys[key]])
        for stamp, frame in frames:
            if stamp < stamp_of_key:
                continue
            checks = self.index.checksums
            same = not len(checks) or checksum(VideoReformatter(), frame) == checks[key]
            if stamp == stamp_of_key and frame.key_frame and same:
                yield stamp, frame
                del frame
                yield from frames
            return

    def _by_stamp(
        self, frames: Iterator[tuple[int, VideoFrame]]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the number of each frame by its time stamp."""
        stamps = self.index.stamps
        for stamp, frame in frames:
            number = int(np.searchsorted(stamps, stamp))
            if number < len(stamps) and stamps[number] == stamp:
                yield number, frame
            del frame

    def _by_count(
        self, begin: int, frames: Iterator[tuple[int, VideoFrame]]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the number of each frame by counting, up to one that is not as it was when indexed.

        Two frames may have one time stamp, or all of them none.
        """
        stamps = self.index.stamps
        for number, (stamp, frame) in enumerate(frames, begin):
            if number >= self.index.num_frames or (len(stamps) and stamps[number] != stamp):
                return
            yield number, frame
            del frame

    def _frames(
        self, key: int, whole: bool, wanted: Sequence[int], deadline: Deadline
    ) -> Iterator[VideoFrame]:
        """Yield what decodes from a key frame on.

        If not `whole`, frames that are not wanted and that no other depends on are left out, where
        packets tell.
        """
        container, stream = self._at(key)
        context = stream.codec_context
        context.skip_frame = "DEFAULT"
        skipping = context.name in _SKIPPING and not whole
        left = set(self.index.stamps[list(wanted)].tolist()) if self._by_packet else set()
        for packet in container.demux(stream):
            deadline.check(self.source.path)
            if not self._by_packet:
                yield from packet.decode()
                continue
            needed = packet.pts in left or packet.pts is None or not skipping
            context.skip_frame = "DEFAULT" if needed else "NONREF"
            yield from packet.decode()
            left.discard(packet.pts)
            if not left:  # the decoder has all it needs: no more packets, only what it holds back
                yield from context.decode(None)
                return

    def _at(self, key: int) -> tuple[InputContainer, VideoStream]:
        """Return the file, opened, at a key frame; -1 is its start."""
        if key < 0:
            self.close()  # not every container can be brought back to its start
        if self._opened is None:
            self._opened = open_video(self.source)
        container, stream = self._opened
        if key >= 0:
            container.seek(int(self.index.stamps[self.index.keys[key]]), stream=stream)
        return container, stream


def _is_key_lost(keys_due: list[int], number: int) -> bool:
    """Say if a key frame should have come before this one; one that comes now is due no more."""
    lost = bool(keys_due) and number > keys_due[0]
    if keys_due and number >= keys_due[0]:
        keys_due.pop(0)
    return lost


def to_rgb(scaler: VideoReformatter, frame: VideoFrame, out: Frames) -> None:
    """Convert to RGB in `out` (H, W, 3) while scaling; one scaler does all frames of a clip.

    At full size it is what PyAV's own `to_rgb` gives, bit for bit; in planes, scaling is faster.
    """
    height, width = out.shape[:2]
    scaled = (height, width) != (frame.height, frame.width)
    rgb = scaler.reformat(
        frame,
        width=width,
        height=height,
        format="gbrp" if scaled else "rgb24",
        # both average over what falls into a pixel, by a box or a triangle; the box reads half as
        # much
        interpolation="AREA" if frame.height >= 2 * height else "BILINEAR",
        **SCALER_THREADS,
    )
    if not scaled:
        out[:] = rgb.to_ndarray()
        return
    for plane, channel in zip(rgb.planes, (1, 2, 0), strict=True):
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
        out[:, :, channel] = rows[:height, :width]


# --------------------------------------------------------------------------- torchcodec
class TorchCodec:
    """Decodes with torchcodec, which is told the frames of the index and finds them by time stamp.

    Where time stamps or key frames can't be relied on after a seek, every frame from the start of
    the file is decoded and compared with the index.

    Args:
        source: the file.
        index: its frames.

    Raises:
        DecodeError: the frames have no time stamps.
        ValueError: torchcodec or FFmpeg is not installed.
    """

    def __init__(self, source: Source, index: FrameIndex) -> None:
        _import_torchcodec()
        if not index.label:
            raise _not_with("torchcodec", source, "its frames have no time stamps")
        self.source = source
        self.index = index
        self._opened: tuple[tuple[int, int], Any] | None = None
        self._stream = 0
        self._from_start = False
        self._mapping = ""

    def close(self) -> None:
        """Close the file; reading opens and inspects it again."""
        self._opened = None
        self._mapping = ""

    def read(self, numbers: Sequence[int], size: tuple[int, int], deadline: Deadline) -> Frames:
        """Return frames (T, height, width, 3) as coded, for ascending distinct numbers.

        Raises:
            DecodeError: one does not decode, or not in time, or torchcodec stamps it otherwise.
        """
        frames = np.empty((len(numbers), *size, 3), dtype=np.uint8)
        places = {number: place for place, number in enumerate(numbers)}
        with _as_decode_errors("torchcodec", self):
            if not self._mapping:
                self._inspect()
            decoder = self._decoder(size)
            for number in range(numbers[-1] + 1) if self._from_start else numbers:
                deadline.check(self.source.path)
                frame = self._frame(decoder, number, size)
                if number in places:
                    frames[places[number]] = frame
        return frames

    def _inspect(self) -> None:
        """Find out how the file is to be read."""
        index = self.index
        with opened(self.source) as (container, stream):
            self._stream = stream.index
            # an AVI has no time stamps of its own, and those of B-frames are guesses
            guessed = container.format.name == "avi" and stream.codec_context.has_b_frames
            shown = np.empty((index.height, index.width, 3), np.uint8)
            to_rgb(VideoReformatter(), next(container.decode(stream)), shown)
        self._from_start = bool(len(index.checksums)) or index.label != "pts" or guessed
        keys = {0} if self._from_start else set(index.keys.tolist())
        stamps = enumerate(index.stamps.tolist())
        frames = [{"pts": pts, "duration": 1, "key_frame": int(n in keys)} for n, pts in stamps]
        self._mapping = json.dumps({"frames": frames})
        first = self._frame(self._decoder(shown.shape[:2]), 0, shown.shape[:2])
        if not are_same_pictures([(first, shown)]):
            raise _not_with("torchcodec", self.source, "it begins with another frame")

    def _decoder(self, size: tuple[int, int]) -> Any:
        """Return a decoder that scales to this size."""
        if self._opened is not None and self._opened[0] == size and not self._from_start:
            return self._opened[1]
        decoders, resize = _import_torchcodec()
        turned = size[::-1] if self.index.quarter_turns % 2 else size
        same = size == (self.index.height, self.index.width)
        decoder = decoders.VideoDecoder(
            self.source.url or self.source.open(),
            stream_index=self._stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            device="cpu",
            transforms=[] if same else [resize(turned)],
            custom_frame_mappings=self._mapping,
        )
        self._opened = size, decoder
        return decoder

    def _frame(self, decoder: Any, number: int, size: tuple[int, int]) -> Frames:
        """Return one frame, as coded: torchcodec has turned it."""
        frame = decoder.get_frame_at(number)
        stamp = frame.pts_seconds / float(self.index.time_base)
        if abs(stamp - int(self.index.stamps[number])) > 0.5:
            raise _not_with("torchcodec", self.source, f"it stamps frame {number} otherwise")
        picture: Frames = np.rot90(frame.data.numpy(), -self.index.quarter_turns)
        if picture.shape[:2] != size:
            raise _not_with("torchcodec", self.source, "its frames change their size")
        return picture


def _import_torchcodec() -> tuple[Any, Any]:
    """Return torchcodec.decoders and what scales while decoding."""
    try:
        import torchcodec
        from torchcodec import decoders
        from torchcodec.transforms import Resize

        missing = torchcodec.ffmpeg_major_version is None
    except ImportError as error:
        raise ValueError(
            f"DATA.DECODING_BACKEND torchcodec needs torchcodec >= 0.10 ({error}): "
            "pip install 'vmp[torchcodec]', and FFmpeg with its shared libraries; or use pyav"
        ) from error
    except (RuntimeError, OSError):  # how older versions say that FFmpeg is missing
        missing = True
    if missing:
        raise ValueError(
            "torchcodec finds no shared libraries of FFmpeg 4 to 9 that it can load: install them "
            "(apt install ffmpeg, conda install ffmpeg), or use DATA.DECODING_BACKEND pyav"
        )
    return decoders, Resize


# --------------------------------------------------------------------------- decord
class Decord:
    """Decodes with decord, which counts frames from the key frame it has sought.

    So it is used only for files whose frames and key frames it counts as the index does. And as a
    frame that is lost shifts all that follow, a stretch of a file that this process reads for the
    first time is decoded by PyAV too, and compared.

    Args:
        source: the file.
        index: its frames.

    Raises:
        ValueError: decord is not installed.
    """

    def __init__(self, source: Source, index: FrameIndex) -> None:
        _import_decord()
        self.source = source
        self.index = index
        self._opened: tuple[tuple[int, int], Any] | None = None

    def close(self) -> None:
        """Close the file and free what decord holds; reading opens it again."""
        self._opened = None

    def read(self, numbers: Sequence[int], size: tuple[int, int], deadline: Deadline) -> Frames:
        """Return frames (T, height, width, 3) as coded, for ascending distinct numbers.

        Raises:
            DecodeError: one does not decode, or not in time, or decord counts otherwise.
        """
        frames = np.empty((len(numbers), *size, 3), dtype=np.uint8)
        places = np.searchsorted(self.index.keys, numbers, side="right") - 1
        with _as_decode_errors("decord", self):
            for place in np.unique(places).tolist():
                wanted = [number for number, at in zip(numbers, places, strict=True) if at == place]
                self._compare(place, wanted[-1], deadline)
                frames[places == place] = list(self._run(wanted, size, deadline))
        return frames

    def _run(
        self, numbers: Sequence[int], size: tuple[int, int], deadline: Deadline
    ) -> Iterator[Frames]:
        """Yield frames, as coded, that are decoded from the same key frame."""
        reader = self._reader(size)
        key = self.index.keys[self.index.keys <= numbers[0]][-1:]
        reader.seek(0)  # where the next seek lands depends on where it was, and on what is sought
        if len(key) and key[0] < numbers[0]:
            reader[int(key[0])]
        height, width = size[::-1] if self.index.quarter_turns % 2 else size
        for number in numbers:
            deadline.check(self.source.path)
            rows: Frames = reader[number].asnumpy().reshape(height, -1)
            # what pads a row, decord takes for more channels
            picture = rows[:, : 3 * width].reshape(height, width, 3)
            yield np.rot90(picture, -self.index.quarter_turns)

    def _compare(self, place: int, last: int, deadline: Deadline) -> None:
        """Compare the frames from a key frame to `last` with PyAV's, once a process."""
        modified = os.stat(self.source.file).st_mtime_ns
        compared = _compared(self.source.file, self.source.offset, modified)
        if compared.get(place, -1) >= last:
            return
        size = self.index.height, self.index.width
        first = int(self.index.keys[place]) if place >= 0 else 0
        numbers = list(range(first, last + 1))
        exact = PyAV(self.source, self.index)
        frames = exact.decode(Run(place, numbers), deadline)
        scaler = VideoReformatter()
        pairs: list[tuple[Frames, Frames]] = []
        for picture, (number, frame) in zip(
            self._run(numbers, size, deadline), frames, strict=True
        ):
            if frame.is_corrupt or (frame.height, frame.width) != size:
                reason = "its frames are damaged or change their size"
                raise _not_with("decord", self.source, reason)
            right = np.empty((*size, 3), np.uint8)
            to_rgb(scaler, frame, right)
            pairs = [*pairs[-1:], (picture, right)]
            if not are_same_pictures(pairs):
                raise _not_with("decord", self.source, f"it gives another frame {number}")
        exact.close()
        compared[place] = last

    def _reader(self, size: tuple[int, int]) -> Any:
        """Return a reader that scales to this size."""
        if self._opened is not None and self._opened[0] == size:
            return self._opened[1]
        decord = _import_decord()
        if self._opened is None:
            self._check_header()
        height, width = size[::-1] if self.index.quarter_turns % 2 else size
        reader = decord.VideoReader(
            self.source.url or self.source.open(),
            ctx=decord.cpu(0),
            width=width,
            height=height,
            num_threads=1,
            fault_tol=1e-9,  # else a frame that does not decode is replaced by another one
        )
        if self._opened is None:
            self._check(reader)
        self._opened = size, reader
        return reader

    def _check_header(self) -> None:
        """Raise DecodeError if the header claims so many frames that decord ends the process."""
        with opened(self.source) as (container, stream):
            seconds = (container.duration or 0) / av.time_base
            claimed = max(stream.frames, int(seconds * (stream.average_rate or 0)))
        if claimed > 10 * self.index.num_frames + 10_000:
            reason = f"its header claims {claimed} frames, {self.index.num_frames} decode"
            raise _not_with("decord", self.source, reason)

    def _check(self, reader: Any) -> None:
        """Raise DecodeError unless decord and the index agree about the file."""
        total = self.index.num_frames
        if len(reader) != total:
            reason = f"it counts {len(reader)} frames, {total} decode"
            raise _not_with("decord", self.source, reason)
        # those of open groups of pictures are numbered by their place in the file
        if reader.get_key_indices() != self.index.keys.tolist():
            raise _not_with("decord", self.source, "it counts other key frames")


@lru_cache(maxsize=16384)
def _compared(file: str, offset: int, modified: int) -> dict[int, int]:
    """Return what was compared of a file, to be added to: place of a key frame to last frame."""
    return {}


def _import_decord() -> Any:
    try:
        import decord
    except (ImportError, OSError) as error:
        raise ValueError(
            f"DATA.DECODING_BACKEND decord needs the package decord ({error}), which there is for "
            "Linux on x86_64 only; use pyav"
        ) from error
    decord.logging.set_level(decord.logging.QUIET)  # FFmpeg tells about every damaged byte
    return decord


# --------------------------------------------------------------------------- both
def difference(one: Frames, other: Frames) -> float:
    """Return the mean difference of two frames of one size, grey levels of 255."""
    return float(np.abs(one.astype(np.int16) - other).mean())


def are_same_pictures(pairs: Sequence[tuple[Frames, Frames]]) -> bool:
    """Say if each pair is of the same frame, for one or two consecutive frames."""
    own = [difference(one, other) for one, other in pairs]
    if max(own) > SAME_PICTURE or len(own) == 1 or not any(own):
        return max(own) <= SAME_PICTURE
    # where little moves, a shift by one frame shows only in that it is more like the other one
    (one, right), (next_one, next_right) = pairs
    return difference(one, next_right) >= own[0] and difference(next_one, right) >= own[1]


def _not_with(library: str, source: Source, reason: str) -> DecodeError:
    return DecodeError(
        source.path, f"can't be read with {library}: {reason}; use DATA.DECODING_BACKEND pyav"
    )


@contextmanager
def _as_decode_errors(library: str, backend: TorchCodec | Decord) -> Iterator[None]:
    """Turn what a library raises about a file into DecodeError, and close the file."""
    try:
        yield
    except DecodeError:
        backend.close()
        raise
    except Exception as error:  # decord's own error is of no common kind
        backend.close()
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # decord begins with the time and a place in its code
        reason = re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", lines[0])
        raise _not_with(library, backend.source, reason) from error
