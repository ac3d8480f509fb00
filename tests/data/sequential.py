"""A video decoded from end to end, as plainly as PyAV allows: what every reader must agree with."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from vmp.data.backends import to_rgb
from vmp.data.frame_index import MAX_PIXELS, FrameIndex


class Known(NamedTuple):
    """What decoding a file from end to end gives, past all errors.

    Attributes:
        pictures: the frames in the order they come, (H, W, 3) uint8 RGB, as coded.
        stamps: their time stamps.
        whole: how many of them come before the first error.
        turns: by 90 degrees, counter-clockwise, to show the first one upright.
        complete: False if the decode was given up.
    """

    pictures: list[np.ndarray]
    stamps: list[int | None]
    whole: int
    turns: int
    complete: bool


def decode_all(
    path: Path,
    size: tuple[int, int] | None = None,
    *,
    most: int = 10_000,
    seconds: float = 600.0,
) -> Known:
    """Decode the first video stream that is no cover, single-threaded.

    Args:
        path: the file.
        size: (height, width) the frames are scaled to; None: that of the first one.
        most: frames after which it is given up.
        seconds: time after which it is given up.
    """
    pictures: list[np.ndarray] = []
    stamps: list[int | None] = []
    whole = -1
    turns = 0
    end = time.monotonic() + seconds
    scaler = VideoReformatter()
    options = {"max_pixels": str(MAX_PIXELS)}
    with av.open(str(path), metadata_errors="ignore", options=options) as container:
        stream = next(
            s for s in container.streams.video if not s.disposition & Disposition.attached_pic
        )
        stream.codec_context.options = options
        stream.codec_context.thread_count = 1  # or else damage is mended in another way
        packets = container.demux(stream)
        packet: av.Packet | None = av.Packet()
        while packet and len(pictures) <= most and time.monotonic() < end:
            try:
                packet = next(packets, None)
                for frame in packet.decode() if packet else []:
                    turns = turns if pictures else round(frame.rotation / 90) % 4
                    size = size or (frame.height, frame.width)
                    pictures.append(_picture(scaler, frame, size))
                    stamps.append(frame.pts)
            except av.FFmpegError:
                whole = len(pictures) if whole < 0 else whole
    return Known(pictures, stamps, len(pictures) if whole < 0 else whole, turns, packet is None)


def _picture(scaler: VideoReformatter, frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    if (frame.height, frame.width) == size:
        return frame.to_ndarray(format="rgb24")
    scaled = np.empty((*size, 3), np.uint8)
    to_rgb(scaler, frame, scaled)
    return scaled


def place_of(known: Known, index: FrameIndex, number: int) -> int | str:
    """Return which frame of the sequential decode a number stands for, or why there is none."""
    stamped = index.label == "pts" and not len(index.checksums)
    # numbers are places where nothing is lost
    if not stamped or known.whole == len(known.pictures) == index.num_frames:
        if number < len(known.pictures):
            return number
        return "the sequential decode ends before"
    stamp = int(index.stamps[number])
    return known.stamps.index(stamp) if stamp in known.stamps else "no frame has its time stamp"


def nearer_to_another(
    pictures: Sequence[np.ndarray], place: int, picture: np.ndarray, margin: float = 0.5
) -> str:
    """Say if a picture is another one of the sequential decode than that at `place`.

    What a decoder leaves where a file is damaged is not always the same: it may be what the memory
    held before. So the picture need not be equal, but no other may be more like it, by a margin in
    grey levels.
    """
    if np.array_equal(pictures[place], picture):
        return ""
    distances = [float(np.abs(other.astype(np.int16) - picture).mean()) for other in pictures]
    nearest = int(np.argmin(distances))
    if distances[nearest] + margin < distances[place]:
        return f"it is {nearest}: {distances[nearest]:.2f} off, {distances[place]:.2f} off its own"
    return ""
