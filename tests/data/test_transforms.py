import numpy as np
import pytest

from vmp.data.transforms import RandomCrop, ViewCrop, crop


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def coordinates(height, width):
    """Two frames whose pixels are (row, column, frame)."""
    frames = np.zeros((2, height, width, 3), np.uint8)
    frames[..., 0] = np.arange(height)[:, None]
    frames[..., 1] = np.arange(width)
    frames[1, ..., 2] = 1
    return frames


def corner(cut):
    return tuple(int(value) for value in cut[0, 0, 0, :2])


@pytest.mark.parametrize(
    ("size", "corners"),
    [
        ((10, 21), [(0, 0), (0, 6), (0, 11)]),  # (21 - 10) / 2 = 5.5, rounded up
        ((21, 10), [(0, 0), (6, 0), (11, 0)]),
        ((10, 10), [(0, 0), (0, 0), (0, 0)]),
    ],
)
def test_three_views_go_along_the_long_side(size, corners, rng):
    transform = ViewCrop(10, 3)
    cuts = [transform(coordinates(*size), view, rng) for view in range(3, 6)]
    assert [corner(cut) for cut in cuts] == corners
    assert all(cut.shape == (2, 10, 10, 3) for cut in cuts)


def test_a_single_view_is_the_centre(rng):
    assert corner(ViewCrop(10, 1)(coordinates(14, 20), 4, rng)) == (2, 5)
    assert ViewCrop(10, 1).short_side(rng) == 10
    with pytest.raises(ValueError, match="1 or 3"):
        ViewCrop(10, 2)


def test_a_crop_larger_than_the_frame_is_refused(rng):
    for transform in (ViewCrop(12, 3), RandomCrop((12, 12), 12, False)):
        with pytest.raises(ValueError, match="12 x 12"):
            transform(coordinates(10, 20), 0, rng)
    with pytest.raises(ValueError, match="not within"):
        crop(coordinates(10, 10), 5, 5, 6)


def test_random_crops_reach_every_place_and_flip_half(rng):
    transform = RandomCrop((10, 12), 10, True)
    cuts = [transform(coordinates(12, 14), 0, rng) for _ in range(600)]
    flipped = [int(cut[0, 0, 0, 1]) > int(cut[0, 0, -1, 1]) for cut in cuts]
    assert 240 < sum(flipped) < 360
    places = {(int(cut[0, 0, 0, 0]), int(min(cut[0, 0, 0, 1], cut[0, 0, -1, 1]))) for cut in cuts}
    assert places == {(top, left) for top in range(3) for left in range(5)}
    # the same for all frames of the clip
    assert all((cut[0, ..., :2] == cut[1, ..., :2]).all() for cut in cuts)


def test_no_flip_means_none(rng):
    transform = RandomCrop((10, 10), 10, False)
    cuts = [transform(coordinates(10, 14), 0, rng) for _ in range(50)]
    assert all(cut[0, 0, 0, 1] < cut[0, 0, -1, 1] for cut in cuts)


def test_every_scale_of_the_range_is_drawn(rng):
    transform = RandomCrop((10, 13), 10, False)
    assert {transform.short_side(rng) for _ in range(200)} == {10, 11, 12, 13}
    for scales in ((9, 12), (13, 12)):
        with pytest.raises(ValueError, match="TRAIN_JITTER_SCALES"):
            RandomCrop(scales, 10, False)
