"""Windows that slide over a stream: where they lie, and which frames they have."""

import numpy as np
import pytest

from vmp.data.sampling import SpacedClips
from vmp.data.windows import SlidingWindows

FPS = 20.0


def clips(num_frames=4, rate=2, target_fps=0.0, policy="hold"):
    return SpacedClips(num_frames, rate, target_fps, policy, num_clips=1, num_crops=1)


def slide(sampler, total, stride=None, numbers=None):
    """Return (frames, start, stop) of the windows, and after which frame each came."""
    windows = SlidingWindows(sampler, FPS, stride)
    found, came = [], []
    for number in range(total) if numbers is None else numbers:
        for window in windows.add(number, number / FPS, np.full((1, 1, 3), number, np.uint8)):
            found.append(window)
            came.append(number)
    rest = windows.rest()
    came += [None] * len(rest)
    return [
        (each.frames[:, 0, 0, 0].tolist(), each.start, each.stop) for each in found + rest
    ], came


def test_windows_are_clips_half_a_clip_apart_and_the_last_ends_with_the_stream():
    found, came = slide(clips(), 22)
    assert [frames for frames, _, _ in found] == [
        [0, 2, 4, 7], [4, 6, 8, 11], [8, 10, 12, 15], [12, 14, 16, 19], [14, 16, 18, 21],
    ]  # fmt: skip
    assert came == [8, 12, 16, 20, None]
    assert [(start, stop) for _, start, stop in found] == [
        pytest.approx((frames[0] / FPS, (frames[-1] + 1) / FPS)) for frames, _, _ in found
    ]


def test_a_stream_that_ends_with_a_window_has_no_other():
    found, _ = slide(clips(), 12)
    assert [frames for frames, _, _ in found] == [[0, 2, 4, 7], [4, 6, 8, 11]]


@pytest.mark.parametrize("stride", [0.05, 0.13, 0.4, 1.7])
@pytest.mark.parametrize("target_fps", [0.0, 15.0])
@pytest.mark.parametrize("policy", ["hold", "loop", "error", "spread"])
def test_every_window_has_the_frames_that_a_test_clip_there_has(stride, target_fps, policy):
    sampler = clips(3, 3, target_fps, policy)
    span, total = sampler.span(FPS), 60
    starts = [i * stride * FPS for i in range(1000) if i * stride * FPS + span <= total + 1e-6]
    if starts[-1] + span < total - 1e-6:
        starts.append(total - span)
    wanted = [sampler.numbers(total, start, span) for start in starts]
    assert [frames for frames, _, _ in slide(sampler, total, stride)[0]] == wanted


@pytest.mark.parametrize("policy", ["hold", "loop", "spread"])
def test_a_short_stream_has_one_window_filled_up_as_in_a_test(policy):
    sampler = clips(policy=policy)
    ((frames, start, stop),), _ = slide(sampler, 5)
    assert frames == sampler(5, FPS, 0, np.random.default_rng(0))
    assert start == 0
    assert stop <= 5 / FPS + 1e-9


def test_a_short_stream_is_refused_where_the_policy_says_so():
    with pytest.raises(ValueError, match="set DATA.SHORT_CLIP"):
        slide(clips(policy="error"), 5)


def test_of_a_frame_that_is_not_there_the_one_before_is_taken():
    found, _ = slide(clips(), 0, numbers=[0, 1, 3, 4, 5, 8])
    assert found[0][0] == [0, 1, 4, 5]


def test_nothing_comes_of_nothing():
    assert slide(clips(), 0) == ([], [])


@pytest.mark.parametrize("stride", [0.0, -1.0, float("inf")])
def test_a_stride_that_does_not_go_on_is_refused(stride):
    with pytest.raises(ValueError, match="must be above 0"):
        SlidingWindows(clips(), FPS, stride)


def test_no_more_is_kept_of_a_long_stream_than_a_clip_spans():
    windows = SlidingWindows(clips(), FPS, stride=2.0)
    for number in range(1000):
        windows.add(number, number / FPS, np.zeros((1, 1, 3), np.uint8))
        assert len(windows._kept) <= windows.span + 3
