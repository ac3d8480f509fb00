"""Frames of a file, a pipe or a camera one after another: nothing is sought, nothing kept."""

import logging
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vmp.data.archive import DecodeError, Source, locate
from vmp.data.backends import Frames, to_rgb
from vmp.data.decode import LONGEST_SIDE, scaled_size
from vmp.data.frame_index import as_decode_errors, find_index, open_video
from vmp.data.sampling import EPSILON

logger = logging.getLogger(__name__)

CAMERA_FORMAT = "v4l2"
# Of the time between two frames: what a rounded time may be off, no more than a frame's own.
SHARE = 0.25


class Shown(NamedTuple):
    """A frame of a stream.

    Attributes:
        number: from 0. Of a camera by the time, so that frames it has dropped leave a gap.
        seconds: since the first frame.
        frame: as decoded.
    """

    number: int
    seconds: float
    frame: VideoFrame


class FrameStream:
    """The frames of an opened video in the order they come, once.

    Args:
        container: with the video.
        video: the stream in it.
        name: for messages.
        fps: frames per second; 0: as the header says.
        stamps: times of the frames, in the stream's units, where they are known.
        live: the frames come as they happen, so that those not taken in time are lost.

    Attributes:
        name: as given.
        fps: frames per second.
        live: as given.
        sound: the stream of sound beside them, None if there is none.

    Raises:
        DecodeError: the header has no frame rate, and none is given.
    """

    def __init__(
        self,
        container: InputContainer,
        video: VideoStream,
        name: str,
        *,
        fps: float = 0.0,
        stamps: Sequence[int] = (),
        live: bool = False,
    ) -> None:
        rate = fps or video.average_rate or video.guessed_rate or video.base_rate
        if not rate:
            container.close()
            raise DecodeError(name, "the stream has no frame rate")
        self.name = name
        self.fps = float(rate)
        self.live = live
        self._unit: Fraction = video.time_base or 1 / Fraction(rate).limit_denominator(1000)
        self.sound = next((s for s in container.streams.audio if s.codec_context), None)
        self._container, self._video, self._stamps = container, video, stamps
        # an AVI stores the order of its packets alone, and what else is told of B-frames is a guess
        self._by_packet = container.format.name == "avi"
        self._first: int | None = None
        self._last = -1

    def __enter__(self) -> "FrameStream":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, pipe or camera."""
        self._container.close()

    def frames(self, on_sound: "Callable[[Packet[Any]], object] | None" = None) -> Iterator[Shown]:
        """Yield the frames; where the stream breaks off, that is its end.

        Args:
            on_sound: takes the packets of sound that come between them, none before the first
                frame, with times that count from that, as the frames' do.

        Raises:
            DecodeError: not one frame decodes.
        """
        wanted: list[VideoStream | AudioStream] = [self._video]
        if on_sound is not None and self.sound is not None:
            wanted.append(self.sound)
        early: list[Packet[Any]] = []
        for item in self._decode(wanted):
            if isinstance(item, Shown):
                yield item
            else:
                early.append(item)
            if on_sound is not None and self._last >= 0:
                for packet in early:
                    on_sound(self._shift(packet))
                early.clear()

    def _decode(
        self, wanted: Sequence[VideoStream | AudioStream]
    ) -> "Iterator[Shown | Packet[Any]]":
        """Yield frames of the video and packets of the sound as they come."""
        try:
            for packet in self._container.demux(*wanted):
                if packet.stream is self._video:
                    yield from (self._stamp(cast(VideoFrame, each)) for each in packet.decode())
                else:
                    yield packet
        except (av.FFmpegError, OSError) as error:
            reason = error.strerror or str(error)
            if self._last < 0:
                raise DecodeError(self.name, f"not one frame decodes: {reason}") from error
            logger.warning("%s: breaks off after %d frames: %s", self.name, self._last + 1, reason)
        if self._last < 0:
            raise DecodeError(self.name, "not one frame decodes")

    def _shift(self, packet: "Packet[Any]") -> "Packet[Any]":
        """Have a packet of sound count from the first frame."""
        if packet.time_base is None:
            return packet
        begin = round((self._first or 0) * self._unit / packet.time_base)
        packet.pts = None if packet.pts is None else packet.pts - begin
        packet.dts = None if packet.dts is None else packet.dts - begin
        return packet

    def _stamp(self, frame: VideoFrame) -> Shown:
        number = self._last + 1
        stamp = frame.dts if self._by_packet else frame.pts
        if number < len(self._stamps):
            stamp = self._stamps[number]
        seconds = even = number / self.fps
        if stamp is not None:
            self._first = stamp if self._first is None else self._first
            seconds = float((stamp - self._first) * self._unit)
            if self.live:
                number = max(number, round(seconds * self.fps))
            # a container that rounds, to milliseconds perhaps
            if abs(seconds - even) <= min(float(self._unit) + EPSILON, SHARE / self.fps):
                seconds = even
        self._last = number
        return Shown(number, seconds, frame)


class _Pipe(Source):
    """Bytes that come but once, where others have a file."""

    file_object: BinaryIO

    @property
    def url(self) -> None:
        return None

    def open(self) -> BinaryIO:
        return self.file_object


def open_file(path: str) -> FrameStream:
    """Open a video file, which may lie in an archive.

    Its frames are those of `VideoReader` of the same numbers, up to where it is damaged.

    Raises:
        DecodeError: it is missing, is no video, or not one frame decodes.
    """
    index = find_index(path)
    with as_decode_errors(path):
        container, video = open_video(locate(path))
    return FrameStream(container, video, path, fps=index.fps, stamps=index.stamps.tolist())


def open_pipe(file: BinaryIO, name: str) -> FrameStream:
    """Open a video that comes through a pipe, as MPEG-TS, Matroska or MP4 with its index in front.

    Args:
        file: open for reading.
        name: for messages.

    Raises:
        DecodeError: it is no video, or one that can't be read without going back.
    """
    source = _Pipe(name, name, 0, 0)
    source.file_object = file
    with as_decode_errors(name):
        container, video = open_video(source)
    return FrameStream(container, video, name)


def open_camera(device: str, input_format: str = CAMERA_FORMAT) -> FrameStream:
    """Open a camera.

    Args:
        device: as /dev/video0.
        input_format: of FFmpeg's devices, the one that reads it.

    Raises:
        DecodeError: there is no such camera, or it gives no frames.
    """
    with as_decode_errors(device):
        container = av.open(device, format=input_format)
        assert isinstance(container, InputContainer)  # opened for reading
    return FrameStream(container, container.streams.video[0], device, live=True)


class Scaler:
    """Makes RGB of frames as `VideoReader.read` does, all of the size of the first.

    Args:
        name: of the video, for messages.
        short_side: as there.
    """

    def __init__(self, name: str, short_side: int | None) -> None:
        self.name, self.short_side = name, short_side
        self._scaler = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._turns = 0

    def __call__(self, frame: VideoFrame) -> Frames:
        """Return (H, W, 3) uint8.

        Raises:
            DecodeError: the frame is too long a strip to scale.
        """
        if self._size is None:
            self._size = scaled_size(frame.height, frame.width, self.short_side)
            self._turns = round(frame.rotation / 90) % 4
            if max(self._size) > LONGEST_SIDE * min(self._size):
                shape = f"{frame.width} x {frame.height}"
                reason = f"frames of {shape}: one side is over {LONGEST_SIDE} times the other"
                raise DecodeError(self.name, reason)
        rgb: Frames = np.empty((3, *self._size), dtype=np.uint8).transpose(1, 2, 0)
        to_rgb(self._scaler, frame, rgb)
        return np.rot90(rgb, self._turns)
