"""Exact frames of a video file by index."""

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from vmp.data.archive import DecodeError, Source, locate
from vmp.data.backends import Backend, Frames, PyAV
from vmp.data.frame_index import Deadline, FrameIndex, index_of

BACKENDS: dict[str, Callable[[Source, FrameIndex], Backend]] = {"pyav": PyAV}
# Seconds that indexing a file, or reading a clip, may take.
TIMEOUT = 120.0

T = TypeVar("T")


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
        source = locate(self.path)
        self._index = self._in_time(lambda deadline: index_of(source, index_dir, deadline))
        self._make_backend: Callable[[], Backend] = partial(
            BACKENDS[backend], source, self._index
        )
        self._backend = self._make_backend()
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
        """Close the file; it opens again when it is read."""
        self._backend.close()

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
            DecodeError: a frame does not decode, or not in time.
        """
        numbers = np.asarray([int(number) for number in indices], dtype=np.int64)
        if numbers.size == 0:
            raise ValueError("no frames wanted; give at least one index")
        if numbers.min() < 0 or numbers.max() >= len(self):
            raise IndexError(
                f"{self.path}: frames {numbers.min()} to {numbers.max()} wanted, "
                f"{len(self)} decode (0 to {len(self) - 1})"
            )
        size = scaled_size(self._index.height, self._index.width, short_side)
        wanted, places = np.unique(numbers, return_inverse=True)
        frames = self._in_time(lambda deadline: self._backend.read(wanted.tolist(), size, deadline))
        if len(wanted) < len(numbers) or (places[:-1] > places[1:]).any():
            frames = frames[places]
        return np.ascontiguousarray(np.rot90(frames, self._index.quarter_turns, axes=(1, 2)))

    def _in_time(self, work: Callable[[Deadline], T]) -> T:
        """Return what `work` does, in a thread of its own, so that a stalled decoder is left.

        The decoders check the deadline between packets; one that never comes back keeps its thread.
        """
        results: list[T] = []
        errors: list[BaseException] = []
        deadline = Deadline(self.timeout)

        def target() -> None:
            try:
                results.append(work(deadline))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        thread.join(self.timeout + 1.0)
        if errors:
            raise errors[0]
        if not results:
            self._backend = self._make_backend()  # the thread has the other one
            raise DecodeError(self.path, f"the decoder stalls: no answer in {self.timeout:g} s")
        return results[0]


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
