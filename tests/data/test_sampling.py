import numpy as np
import pytest

from vmp.data.sampling import (
    RandomClip,
    SpacedClips,
    clip_frames,
    clip_span,
    fill_short,
    random_start,
    spaced_start,
    spread_frames,
)

RNG = np.random.default_rng(0)


def test_a_clip_spans_rate_times_frames_at_the_target_rate():
    assert clip_span(8, 8, 30.0, 30.0) == 64
    assert clip_span(8, 8, 15.0, 30.0) == 32  # the same seconds of a slower video
    assert clip_span(13, 6, 25.0, 30.0) == pytest.approx(65)
    assert clip_span(8, 2, 15.0, 0.0) == 16  # source frames


def test_frames_lie_at_a_truncated_linspace():
    # linspace(0, 63, 8) is 0, 9, ..., 63: 9 apart, not 8
    assert clip_frames(0.0, 64.0, 8) == [0, 9, 18, 27, 36, 45, 54, 63]
    # linspace(2.5, 17.5, 4) = 2.5, 7.5, 12.5, 17.5
    assert clip_frames(2.5, 16.0, 4) == [2, 7, 12, 17]
    assert clip_frames(3.9, 64.0, 1) == [3]


def test_whole_positions_are_not_truncated_to_the_frame_before():
    for num_frames in range(2, 65):
        for step in range(1, 20):
            for start in (0.0, 7.0):
                frames = clip_frames(start, step * (num_frames - 1) + 1.0, num_frames)
                assert frames == [int(start) + step * i for i in range(num_frames)]


def test_a_clip_shorter_than_a_frame_stands_still():
    assert clip_frames(4.0, 0.5, 3) == [4, 4, 4]


def test_training_starts_are_uniform_over_where_the_clip_fits():
    starts = [random_start(100, 64.0, RNG) for _ in range(2000)]
    assert min(starts) >= 0
    assert max(starts) <= 36
    assert np.mean(starts) == pytest.approx(18, abs=1)
    assert random_start(50, 64.0, RNG) == 0


def test_test_clips_are_spaced_by_a_share_of_what_is_left():
    assert [spaced_start(100, 64.0, i, 4) for i in range(4)] == [0, 9, 18, 27]
    assert spaced_start(100, 64.0, 0, 1) == 0  # a single clip is the first
    assert spaced_start(40, 64.0, 3, 4) == 0


@pytest.mark.parametrize(
    ("policy", "filled"), [("hold", [0, 3, 4, 4, 4]), ("loop", [0, 3, 1, 4, 2])]
)
def test_short_videos_follow_the_named_policy(policy, filled):
    assert fill_short([0, 3, 6, 9, 12], 5, policy) == filled
    assert fill_short([0, 1, 2], 3, policy) == [0, 1, 2]


def test_the_error_policy_refuses_and_says_what_to_do():
    with pytest.raises(ValueError, match=r"needs 13 frames, there are 5; set DATA\.SHORT_CLIP"):
        fill_short([0, 3, 6, 9, 12], 5, "error")
    assert fill_short([0, 4], 5, "error") == [0, 4]
    with pytest.raises(ValueError, match="hold, loop, spread, error"):
        fill_short([0], 5, "wrap")
    with pytest.raises(ValueError, match="hold, loop, spread, error"):
        RandomClip(8, 8, 30.0, "wrap")
    with pytest.raises(ValueError, match="at least 1"):
        RandomClip(0, 8, 30.0, "hold")


def test_spreading_takes_the_frames_of_a_short_video_closer_together():
    assert spread_frames(9, 0.0, 288.0, 9) == list(range(9))
    # linspace(0, 19, 5) = 0, 4.75, 9.5, 14.25, 19
    assert spread_frames(20, 0.0, 64.0, 5) == [0, 4, 9, 14, 19]
    # 5 frames twice: linspace(0, 9, 9) = 0, 1.125, ..., 7.875, 9
    assert spread_frames(5, 0.0, 288.0, 9) == [0, 1, 2, 3, 4, 0, 1, 2, 4]
    assert spread_frames(1, 0.0, 288.0, 3) == [0, 0, 0]


def test_spreading_changes_a_long_video_only_where_the_span_is_no_whole_number():
    assert spread_frames(1000, 0.0, 288.0, 9) == clip_frames(0.0, 288.0, 9)
    # 29.4 frames a second: linspace(0, 282, 9), not linspace(0, 281.24, 9)
    assert spread_frames(1000, 0.0, 282.24, 9) == [0, 35, 70, 105, 141, 176, 211, 246, 282]
    assert clip_frames(0.0, 282.24, 9) == [0, 35, 70, 105, 140, 175, 210, 246, 281]


def test_a_spread_random_clip_stays_within_the_video():
    pick = RandomClip(9, 32, 30.0, "spread")
    for total in (1, 8, 9, 100, 288, 289, 700):
        for fps in (25.0, 29.4, 30.0):
            for _ in range(50):
                frames = pick(total, fps, 0, RNG)
                assert len(frames) == 9
                assert 0 <= min(frames) <= max(frames) < total


def test_a_random_clip_stays_within_the_video():
    pick = RandomClip(9, 6, 30.0, "error")
    for total in (54, 55, 200):
        for _ in range(200):
            frames = pick(total, 30.0, 0, RNG)
            assert len(frames) == 9
            assert frames[0] >= 0
            assert frames[-1] < total


def test_views_go_through_the_crops_of_each_clip():
    pick = SpacedClips(4, 4, 30.0, "hold", num_clips=2, num_crops=3)
    clips = [pick(100, 30.0, view, RNG) for view in range(6)]
    assert clips[:3] == [[0, 5, 10, 15]] * 3
    assert clips[3:] == [[42, 47, 52, 57]] * 3  # (100 - 16) / 2 = 42
