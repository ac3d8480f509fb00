"""Pictures one after another as an MP4 that browsers and slides play, with the sound they had."""

import logging
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import av
from av.audio.stream import AudioStream
from av.packet import Packet

from vmp.utils.files import write_atomically
from vmp.visualization.panel import Picture

logger = logging.getLogger(__name__)

CRF = 18
UNITS = 512  # of time, from one picture to the next
# Sound that players of MP4 take as it is; other sound is encoded as AAC, in pieces of so many
# samples and at no higher rate.
COPIED = ("aac", "ac3", "alac", "eac3", "mp3", "opus")
AAC_SAMPLES, AAC_RATE = 1024, 48000


class MovieWriter:
    """An MP4 that is written picture by picture; no more is held than the encoder looks ahead.

    Args:
        file: open for writing; it must be possible to go back in it.
        fps: pictures a second, on average.
        sound: the stream of sound of the source, which goes along; None: silent.
        preset: of x264: the faster, the larger the file.
    """

    def __init__(
        self,
        file: BinaryIO,
        fps: float,
        *,
        sound: AudioStream | None = None,
        preset: str = "medium",
    ) -> None:
        self._container = av.open(file, "w", format="mp4")
        self._rate = Fraction(fps).limit_denominator(1001)  # of 30000/1001
        self._options = {"crf": str(CRF), "preset": preset}
        self._video: Any = None
        self._last = -1
        self._sound = None if sound is None else _Sound(self._container, sound)

    def __enter__(self) -> "MovieWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()
        self._container.close()

    def add(self, picture: Picture, seconds: float) -> None:
        """Add a picture (H, W, 3) uint8, all of one even height and width.

        Args:
            picture: the picture.
            seconds: when it is shown; rising.
        """
        if self._video is None:
            self._begin(*picture.shape[:2])
        self._last = max(round(seconds * self._rate * UNITS), self._last + 1)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = self._last, 1 / (self._rate * UNITS)
        self._container.mux(self._video.encode(frame))

    def add_sound(self, packet: "Packet[Any]") -> None:
        """Add a packet of the source's sound, which is changed; not before the first picture.

        Its time counts from that picture, like those of the others.
        """
        assert self._video is not None  # the file begins with what its streams are
        if self._sound is not None:
            self._sound.add(packet)

    def _begin(self, height: int, width: int) -> None:
        self._video = self._container.add_stream("libx264", rate=self._rate, options=self._options)
        self._video.height, self._video.width = height, width
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = 1 / (self._rate * UNITS)

    def _finish(self) -> None:
        if self._video is not None:
            self._container.mux(self._video.encode())
            if self._sound is not None:
                self._sound.finish()


class _Sound:
    """The sound of a source on its way into a movie: copied, or encoded where it has to be."""

    def __init__(self, container: Any, source: AudioStream) -> None:
        self._container = container
        self._last: int | None = None
        self._resampler: av.AudioResampler | None = None
        if source.codec_context.codec.canonical_name in COPIED:
            self._stream = container.add_stream_from_template(source)
            return
        rate = min(source.rate, AAC_RATE)
        # a container need not say where the speakers stand
        layout = "mono" if source.channels == 1 else "stereo"
        self._stream = container.add_stream("aac", rate=rate)
        self._stream.layout, self._stream.format = layout, "fltp"
        self._resampler = av.AudioResampler("fltp", layout, rate, AAC_SAMPLES)

    def add(self, packet: "Packet[Any]") -> None:
        if packet.dts is None or packet.pts is None:  # the one that says that no more come
            return
        if self._resampler is None:
            self._copy(packet)
            return
        try:
            frames: list[Any] = packet.decode()
        except av.FFmpegError as error:
            logger.warning("a piece of the sound is left out: %s", error.strerror)
            return
        for frame in frames:
            self._encode(self._resampler.resample(frame))

    def _copy(self, packet: "Packet[Any]") -> None:
        assert packet.dts is not None
        if self._last is None or packet.dts > self._last:  # else the file would be refused
            self._last = packet.dts
            packet.stream = self._stream
            self._container.mux(packet)

    def _encode(self, frames: Iterable[av.AudioFrame]) -> None:
        for frame in frames:
            self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        if self._resampler is not None:
            self._encode(self._resampler.resample(None))
            self._container.mux(self._stream.encode())


def write_movie(pictures: Iterable[Picture], path: str | Path, fps: float) -> None:
    """Write pictures (H, W, 3) uint8, of one even height and width, whole or not at all.

    Args:
        pictures: at least one.
        path: of the MP4.
        fps: pictures a second.

    Raises:
        OSError: it can't be written.
    """
    write_atomically(path, lambda file: _write_all(pictures, file, fps))


def _write_all(pictures: Iterable[Picture], file: BinaryIO, fps: float) -> None:
    with MovieWriter(file, fps) as movie:
        for number, picture in enumerate(pictures):
            movie.add(picture, number / fps)
