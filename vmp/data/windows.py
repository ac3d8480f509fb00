"""Clips of a stream that slide over it: frames in, a clip each time that one is whole."""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vmp.data.backends import Frames
from vmp.data.sampling import EPSILON, SpacedClips


class Window(NamedTuple):
    """One clip of a stream.

    Attributes:
        frames: (T, H, W, 3) uint8.
        start: seconds at which its first frame is shown.
        stop: seconds at which its last frame ends.
    """

    frames: Frames
    start: float
    stop: float


class SlidingWindows:
    """Clips at even distances, each given out as soon as its frames are there.

    No more frames are kept than a clip spans. The last clip ends with the stream; a stream shorter
    than a clip has one, filled up as in a test.

    Args:
        clips: how the frames of a clip lie, as in a test.
        fps: of the stream.
        stride: seconds from one clip to the next; None: half of what a clip spans.

    Attributes:
        span: frames from the first of a clip to past its last.
        step: frames from one clip to the next.

    Raises:
        ValueError: the stride is not above 0.
    """

    def __init__(self, clips: SpacedClips, fps: float, stride: float | None = None) -> None:
        if stride is not None and not 0 < stride < math.inf:
            raise ValueError(f"a stride of {stride} s was given; it must be above 0")
        self.clips, self.fps = clips, fps
        self.span = clips.span(fps)
        self.step = self.span / 2 if stride is None else stride * fps
        self._kept: deque[tuple[int, float, Frames]] = deque()  # number, seconds, frame
        self._given = 0
        self._start = 0.0  # of the last one given

    def add(self, number: int, seconds: float, frame: Frames) -> list[Window]:
        """Take a frame (H, W, 3), and return the clips that are whole with it, mostly none."""
        self._kept.append((number, seconds, frame))
        while self._kept[0][0] < number - math.ceil(self.span) - 2:
            self._kept.popleft()
        # one frame past the end, for a clip that ends between two may need it
        return self._whole(lambda start: math.floor(start + self.span - 1 + EPSILON) < number)

    def rest(self) -> list[Window]:
        """Return the clips that the end of the stream leaves.

        Raises:
            ValueError: the stream is shorter than a clip, and DATA.SHORT_CLIP is "error".
        """
        if not self._kept:
            return []
        total = self._kept[-1][0] + 1
        windows = self._whole(lambda start: start + self.span <= total + EPSILON)
        left = total - self.span
        if not self._given or left > self._start + EPSILON:
            windows.append(self._window(max(left, 0.0)))
        return windows

    def _whole(self, is_whole: Callable[[float], bool]) -> list[Window]:
        windows = []
        while is_whole(self._given * self.step):
            windows.append(self._window(self._given * self.step))
        return windows

    def _window(self, start: float) -> Window:
        self._given, self._start = self._given + 1, start
        numbers = [number for number, _, _ in self._kept]
        wanted = self.clips.numbers(numbers[-1] + 1, start, self.span)
        # of a frame that a camera has dropped, the one before
        picked = [self._kept[max(bisect_right(numbers, each) - 1, 0)] for each in wanted]
        frames: Frames = np.stack([frame for _, _, frame in picked])
        return Window(frames, picked[0][1], picked[-1][1] + 1 / self.fps)
