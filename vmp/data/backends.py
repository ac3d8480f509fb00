"""What decodes: one class a library, all with the same contract.

A backend is made of a file and its index and reads frames by their number in it. It is not asked
what the file holds: the index knows.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

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
)

# Frames that a seek must save to be worth it.
_SEEK_COST = 4
# Decoders that can be told with each packet to leave out a frame that no other depends on.
_SKIPPING = ("h264", "hevc", "mpeg4", "vp9")

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
        frames = np.empty((3, len(numbers), *size), dtype=np.uint8).transpose(1, 2, 3, 0)
        scaler = VideoReformatter()
        places = {number: place for place, number in enumerate(numbers)}
        with as_decode_errors(self.source.path):
            for run in plan_runs(self.index.keys, numbers):
                for number, frame in self._decode(run, deadline):
                    _to_rgb(scaler, frame, frames[places[number]])
                    del frame  # a full-size picture less while the next ones are decoded
        return frames

    def _decode(self, run: Run, deadline: Deadline) -> Iterator[tuple[int, VideoFrame]]:
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
        raise DecodeError(self.source.path, f"frame {wanted[0]} does not decode: {reason}")

    def _decode_from(
        self, key: int, whole: bool, wanted: Sequence[int], deadline: Deadline
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the wanted frames that come when decoding starts at a key frame.

        If not `whole`, it ends at the first sign of damage.
        """
        stamps = self.index.stamps
        if self.index.label:
            due = {int(stamps[number]): number for number in wanted}
        else:
            due = {number: number for number in wanted}
        last = max(due)
        first = True
        frames = self._frames(key, whole, due, deadline)
        for stamp, frame in label_frames(frames, self.index.label):
            if key >= 0 and stamp < stamps[self.index.keys[key]]:
                continue  # it may lack what it refers to
            if key >= 0 and first and not self._is_key(key, stamp, frame):
                return
            if frame.is_corrupt and not whole:
                return
            first = False
            if stamp in due:
                yield due[stamp], frame
            if stamp >= last:
                return

    def _is_key(self, key: int, stamp: int, frame: VideoFrame) -> bool:
        """Say whether a frame is that key frame."""
        if stamp != self.index.stamps[self.index.keys[key]] or not frame.key_frame:
            return False
        checks = self.index.checksums
        return not len(checks) or checksum(VideoReformatter(), frame) == checks[key]

    def _frames(
        self, key: int, whole: bool, due: dict[int, int], deadline: Deadline
    ) -> Iterator[VideoFrame]:
        """Yield what decodes from a key frame on.

        If not `whole`, frames that are not due and that no other depends on are left out, where
        packets tell.
        """
        container, stream = self._at(key)
        context = stream.codec_context
        context.skip_frame = "DEFAULT"
        skipping = context.name in _SKIPPING and not whole
        left = set(due)
        for packet in container.demux(stream):
            deadline.check(self.source.path)
            if not self._by_packet:
                yield from packet.decode()
                continue
            wanted = packet.pts in left or packet.pts is None or not skipping
            context.skip_frame = "DEFAULT" if wanted else "NONREF"
            yield from packet.decode()
            left.discard(packet.pts or 0)
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


def _to_rgb(scaler: VideoReformatter, frame: VideoFrame, out: Frames) -> None:
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
        interpolation="BILINEAR",
        **SCALER_THREADS,
    )
    if not scaled:
        out[:] = rgb.to_ndarray()
        return
    for plane, channel in zip(rgb.planes, (1, 2, 0), strict=True):
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
        out[:, :, channel] = rows[:height, :width]
