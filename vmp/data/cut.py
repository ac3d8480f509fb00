"""A stretch of a long video as a file of its own, exact to the frame and encoded once."""

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av

from vmp.data.archive import DecodeError, locate
from vmp.data.backends import Frames
from vmp.data.decode import VideoReader
from vmp.data.frame_index import describe_death
from vmp.utils.files import write_atomically
from vmp.utils.processes import Died, work_through

# The loss of the second encoding is then hard to see.
CRF = 16
# A key frame every second or so: a reader that wants the middle need not decode from the start.
KEY_FRAME_DISTANCE = 30
# Frames are held by so many bytes at a time, never a whole clip.
CHUNK_BYTES = 64 * 2**20
ENCODER = "libx264"


class Clip(NamedTuple):
    """A clip to be cut.

    Attributes:
        source: the video, as VideoReader takes it.
        start: first frame, 0 or more.
        stop: one past the last; None is the end of the video.
        out: the file to write.
    """

    source: str
    start: int
    stop: int | None
    out: Path


def cut(
    source: str, start: int, stop: int | None, out: Path, index_dir: str | Path | None = None
) -> int:
    """Write frames [start, stop) of a video to an mp4 file; the file is there whole or not at all.

    H.264 at the frame size and the (constant) frame rate of the source; sound is dropped. Even
    sizes have 4:2:0 colour, odd ones 4:4:4, as there is no half of an odd side. A clip that an
    earlier call has made of the same frames of the same file is left as it is.

    Args:
        source: the video, as VideoReader takes it.
        start: first frame, 0 or more.
        stop: one past the last; None, or a number past the end of the video, is its end.
        out: the clip; its folder is made if needed.
        index_dir: as VideoReader takes it.

    Returns:
        Number of frames in the clip, at least 1.

    Raises:
        DecodeError: the source can't be decoded, or has no frame in [start, stop).
        ValueError: this PyAV can't encode H.264.
        OSError: no room, or no permission.
    """
    assert start >= 0
    if ENCODER not in av.codecs_available:
        raise ValueError(f"this PyAV has no {ENCODER}; install av from PyPI to cut clips")
    video = locate(source)
    # kept in the clip: one that an earlier call made of other frames must not pass for this one
    origin = json.dumps([Path(source).name, video.size, start, stop])
    made = _num_frames_of(out, origin)
    if made:
        return made
    with VideoReader(source, index_dir=index_dir) as reader:
        last = len(reader) if stop is None else min(stop, len(reader))
        if last <= start:
            wanted = f"{start} to {'the end' if stop is None else stop}"
            raise DecodeError(source, f"no frame from {wanted}, it has {len(reader)}")
        write_atomically(out, lambda file: _encode(file, reader, range(start, last), origin))
    return last - start


def cut_all(
    clips: Sequence[Clip], index_dir: str | Path | None, workers: int
) -> Iterator[tuple[Clip, int | DecodeError]]:
    """Cut many clips in parallel processes; what an earlier, interrupted call has cut is kept.

    Yields:
        (clip, number of its frames or why there are none), in the order they are ready.

    Raises:
        ValueError: this PyAV can't encode H.264.
        OSError: no room, or no permission.
    """
    work = partial(_cut_or_error, index_dir=index_dir)
    if workers <= 1:
        yield from ((clip, work(clip)) for clip in clips)
        return
    for clip, made in work_through(clips, work, workers, preload=__name__):
        if isinstance(made, Died):
            made = DecodeError(clip.source, describe_death(made))
        yield clip, made


def _cut_or_error(clip: Clip, index_dir: str | Path | None) -> int | DecodeError:
    try:
        return cut(clip.source, clip.start, clip.stop, clip.out, index_dir)
    except DecodeError as error:
        return error


def _num_frames_of(out: Path, origin: str) -> int:
    """Return the number of frames of a clip that is done; 0 if there is none of that origin."""
    try:
        with out.open("rb") as file, av.open(file, metadata_errors="ignore") as container:
            same = container.metadata.get("comment") == origin
            return container.streams.video[0].frames if same else 0
    except (av.FFmpegError, OSError, IndexError):
        return 0


def _encode(file: BinaryIO, reader: VideoReader, numbers: range, origin: str) -> None:
    height, width = reader.size
    with av.open(file, "w", format="mp4") as container:
        container.metadata["comment"] = origin
        # 30000/1001 and its like come back from the float they were stored as
        stream = container.add_stream(ENCODER, rate=Fraction(reader.fps).limit_denominator(1001))
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        stream.codec_context.thread_count = 1  # clips are cut side by side
        # without B-frames the stamps begin at 0 and ascend, in every reader
        stream.options = {
            "crf": str(CRF),
            "preset": "veryfast",
            "bf": "0",
            "g": str(KEY_FRAME_DISTANCE),
        }
        for picture in _pictures(reader, numbers):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _pictures(reader: VideoReader, numbers: range) -> Iterator[Frames]:
    """Yield frames one after the other; those of a chunk are read in one go."""
    height, width = reader.size
    step = max(1, CHUNK_BYTES // (3 * height * width))
    for first in range(0, len(numbers), step):
        yield from reader.read(numbers[first : first + step])
