"""Which frames a clip is made of: integers in, integers out, nothing is decoded here.

The rule is PySlowFast's. A clip of T frames spans `rate * T / target_fps` seconds; its T frames
lie at `linspace(start, start + span - 1, T)`, truncated, `span` being in source frames. So the
distance of two frames is a little over `rate`, e.g. 9 where T = 8 and rate = 8. In training the
start is uniform over all places where the clip fits; in testing clip i of n starts at
`i / n` of the way, so a single clip is the first one.
"""

import math
from collections.abc import Callable

import numpy as np

# (frames, frames per second, view, random) -> frame numbers
PickFrames = Callable[[int, float, int, np.random.Generator], list[int]]

SHORT_CLIPS = ("hold", "loop", "spread", "error")
# Positions are computed in float64 and this much is added before truncation: where the exact
# position is a whole number, rounding may not make it the frame before.
EPSILON = 1e-6


def clip_span(num_frames: int, rate: int, fps: float, target_fps: float) -> float:
    """Return the length of a clip in source frames.

    Args:
        num_frames: frames of the clip, T >= 1.
        rate: distance of its frames at `target_fps`, >= 1.
        fps: frames per second of the source, > 0.
        target_fps: frames per second that `rate` refers to; 0: those of the source.
    """
    return rate * num_frames * (fps / target_fps if target_fps else 1.0)


def random_start(total: int, span: float, rng: np.random.Generator) -> float:
    """Draw the start of a training clip, uniform over [0, total - span], or 0 if it is longer."""
    return float(rng.uniform(0.0, max(total - span, 0.0)))


def spaced_start(total: int, span: float, index: int, num_clips: int) -> float:
    """Return the start of test clip `index` of `num_clips`: that share of what is left over."""
    return max(total - span, 0.0) * index / num_clips


def clip_frames(start: float, span: float, num_frames: int) -> list[int]:
    """Return the numbers of a clip's frames; they may lie past the end of the video."""
    step = (span - 1) / (num_frames - 1) if num_frames > 1 else 0.0
    # a clip shorter than a source frame stands still, it does not run backwards
    step = max(step, 0.0)
    return [math.floor(start + i * step + EPSILON) for i in range(num_frames)]


def fill_short(numbers: list[int], total: int, policy: str) -> list[int]:
    """Bring frame numbers past the end of a short video into [0, total).

    Args:
        numbers: frame numbers from 0, ascending.
        total: frames there are, >= 1.
        policy: "hold" repeats the last frame, so the differences are 0; "loop" starts again,
            which makes a false motion; "error" refuses.

    Raises:
        ValueError: the policy is "error" and a frame is past the end, or it is unknown.
    """
    if policy == "hold":
        return [min(number, total - 1) for number in numbers]
    if policy == "loop":
        return [number % total for number in numbers]
    check_policy(policy)
    if numbers[-1] >= total:
        raise ValueError(
            f"the clip needs {numbers[-1] + 1} frames, there are {total}; set DATA.SHORT_CLIP to "
            f"hold or loop, or lower DATA.SAMPLING_RATE"
        )
    return numbers


def spread_frames(total: int, start: float, span: float, num_frames: int) -> list[int]:
    """Return the numbers of a clip's frames as the authors' release picks them.

    Of the whole frames from `start` to the end of the span, and one more, it takes `num_frames` at
    a truncated linspace from the first to the last there is, or to the end of a span that these
    more than cover. So a short video is spread over the clip, without a jump in it; only one of
    fewer frames than the clip is repeated. A span of no whole number of frames, as at 29.4 frames
    per second, gets frames up to one later than `clip_frames` gives.

    Args:
        total: frames there are, >= 1.
        start: of the clip, in [0, total).
        span: its length in source frames.
        num_frames: frames of the clip, >= 1.
    """
    last = min(math.floor(start + span - 1 + EPSILON) + 1, total - 1)
    first = min(math.ceil(start - EPSILON), last)
    there = last - first + 1
    end = math.ceil(num_frames / there) * there - 1.0
    if num_frames <= there and span <= end:
        end = span - 1
    places = clip_frames(0.0, end + 1, num_frames)
    return [first + place % there for place in places]


def check_policy(policy: str) -> None:
    """Raise ValueError unless the policy for short videos is known."""
    if policy not in SHORT_CLIPS:
        raise ValueError(
            f"DATA.SHORT_CLIP {policy!r} is not known; there are: {', '.join(SHORT_CLIPS)}"
        )


class _Sampler:
    """What both ways to pick frames share: the length of a clip and the policy.

    Args:
        num_frames: frames of the clip, T >= 1.
        rate: distance of its frames, >= 1.
        target_fps: frames per second that `rate` refers to; 0: those of the source.
        short_clip: "hold", "loop" or "error", see `fill_short`; or "spread", see `spread_frames`.

    Raises:
        ValueError: a number out of range, or an unknown policy.
    """

    def __init__(self, num_frames: int, rate: int, target_fps: float, short_clip: str) -> None:
        check_policy(short_clip)
        if num_frames < 1 or rate < 1 or target_fps < 0:
            raise ValueError(
                f"{num_frames} frames at rate {rate} of {target_fps} fps wanted; "
                f"frames and rate must be at least 1, fps at least 0"
            )
        self.num_frames = num_frames
        self.rate = rate
        self.target_fps = target_fps
        self.short_clip = short_clip

    def span(self, fps: float) -> float:
        return clip_span(self.num_frames, self.rate, fps, self.target_fps)

    def numbers(self, total: int, start: float, span: float) -> list[int]:
        if self.short_clip == "spread":
            return spread_frames(total, start, span, self.num_frames)
        return fill_short(clip_frames(start, span, self.num_frames), total, self.short_clip)


class RandomClip(_Sampler):
    """Pick a clip anywhere in the video: training."""

    def __call__(self, total: int, fps: float, view: int, rng: np.random.Generator) -> list[int]:
        """Return T frame numbers in [0, total); `view` does not matter."""
        span = self.span(fps)
        return self.numbers(total, random_start(total, span, rng), span)


class SpacedClips(_Sampler):
    """Pick one of `num_clips` evenly spaced clips: testing.

    View v is clip `v // num_crops`, as in PySlowFast; nothing is random.
    """

    def __init__(
        self,
        num_frames: int,
        rate: int,
        target_fps: float,
        short_clip: str,
        *,
        num_clips: int,
        num_crops: int,
    ) -> None:
        super().__init__(num_frames, rate, target_fps, short_clip)
        self.num_clips = num_clips
        self.num_crops = num_crops

    def __call__(self, total: int, fps: float, view: int, rng: np.random.Generator) -> list[int]:
        """Return T frame numbers in [0, total); `rng` is not used."""
        span = self.span(fps)
        start = spaced_start(total, span, view // self.num_crops, self.num_clips)
        return self.numbers(total, start, span)
