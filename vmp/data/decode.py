"""Exact frames of a video file by index."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np

from vmp.data.archive import DecodeError, Source, locate
from vmp.data.backends import Backend, Decord, Frames, PyAV, TorchCodec
from vmp.data.frame_index import FrameIndex, TookTooLongError, find_index, in_time

BACKENDS: dict[str, Callable[[Source, FrameIndex], Backend]] = {
    "pyav": PyAV,
    "decord": Decord,
    "torchcodec": TorchCodec,
}
# Seconds that indexing a file, or reading a clip, may take.
TIMEOUT = 120.0
# Times the short side that the long one may be, where frames are scaled: a strip of 65520 x 2
# pixels would become gigabytes.
LONGEST_SIDE = 16


class VideoReader:
    """Frames of a video by index, exactly, whatever its container claims.

    The number of frames is the number that decodes: a file that breaks off counts as far as it
    goes. A stored rotation by quarter turns is applied. The file stays open until `close`.

    Args:
        path: the video file; it may lie in an archive, see `vmp.data.archive`.
        backend: "pyav", "decord" or "torchcodec". All give the same frames; one that can't, for a
            file, raises DecodeError.
        index_dir: folder that keeps what was found out about long files; None: none does.
        timeout: seconds that opening, and each call of `read`, may take.

    Attributes:
        path: the video file.
        fps: frames per second, on average.
        size: (height, width) as shown, pixels; non-square pixels are not stretched.
        index: which frames there are.

    Raises:
        DecodeError: the file is missing, is no video, is larger than MAX_PIXELS, or not one frame
            decodes in time.
        ValueError: an unknown backend.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: str = "pyav",
        *,
        index_dir: str | Path | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(
                f"decoding backend {backend!r} is not known; there are: {', '.join(BACKENDS)}"
            )
        self.path = os.fspath(path)
        self.timeout = timeout
        self.index = find_index(self.path, index_dir, seconds=timeout)
        self._make_backend: Callable[[], Backend] = partial(
            BACKENDS[backend], locate(self.path), self.index
        )
        self._backend = self._make_backend()
        self.fps = self.index.fps
        size = self.index.height, self.index.width
        self.size = size[::-1] if self.index.quarter_turns % 2 else size

    def __len__(self) -> int:
        return self.index.num_frames

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
        """Close the file; it opens again when it is read."""
        self._backend.close()

    def read(self, indices: Sequence[int], short_side: int | None = None) -> Frames:
        """Decode frames.

        Args:
            indices: frame numbers from 0, in any order, also repeated.
            short_side: length the short side is scaled to, pixels, by the scaler that makes RGB of
                the frame: bilinear, or the mean over an area where it halves the frame or more. The
                long side follows, rounded down. None: as coded.

        Returns:
            (T, H, W, 3) uint8 RGB, in the order of `indices`.

        Raises:
            IndexError: a number is negative or past the last frame.
            ValueError: no indices, or a short side below 1.
            DecodeError: a frame does not decode, or not in time, or is too long a strip to scale.
        """
        numbers = np.asarray([int(number) for number in indices], dtype=np.int64)
        if numbers.size == 0:
            raise ValueError("no frames wanted; give at least one index")
        if numbers.min() < 0 or numbers.max() >= len(self):
            raise IndexError(
                f"{self.path}: frames {numbers.min()} to {numbers.max()} wanted, "
                f"{len(self)} decode (0 to {len(self) - 1})"
            )
        size = scaled_size(self.index.height, self.index.width, short_side)
        if short_side is not None and max(size) > LONGEST_SIDE * min(size):
            shape = f"{self.index.width} x {self.index.height}"
            raise DecodeError(
                self.path, f"frames of {shape}: one side is over {LONGEST_SIDE} times the other"
            )
        wanted, places = np.unique(numbers, return_inverse=True)
        try:
            frames = in_time(
                lambda deadline: self._backend.read(wanted.tolist(), size, deadline),
                self.path,
                self.timeout,
            )
        except TookTooLongError:
            self._backend = self._make_backend()  # the thread left behind has the other one
            raise
        if len(wanted) < len(numbers) or (places[:-1] > places[1:]).any():
            frames = frames[places]
        if self.index.quarter_turns:
            frames = np.ascontiguousarray(np.rot90(frames, self.index.quarter_turns, axes=(1, 2)))
        return frames


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
