"""Where on the frames a clip is cut out, on uint8; pixels become floats on the device, not here.

A transform has two parts, as the scaler of the decoder does the resizing: it names the short side
the frames are wanted at, then it crops them.
"""

import math
from typing import Protocol

import numpy as np

from vmp.data.backends import Frames


class Transform(Protocol):
    """What is done to the frames of a view."""

    def short_side(self, rng: np.random.Generator) -> int:
        """Return the short side the frames are wanted at, pixels."""

    def __call__(self, frames: Frames, view: int, rng: np.random.Generator) -> Frames:
        """Return the crop (T, size, size, 3) of frames (T, H, W, 3)."""


def crop(frames: Frames, top: int, left: int, size: int) -> Frames:
    """Cut a square out of frames (T, H, W, 3) -> (T, size, size, 3), without a copy.

    Raises:
        ValueError: the square is not within the frame.
    """
    height, width = frames.shape[1:3]
    if min(top, left) < 0 or top + size > height or left + size > width:
        raise ValueError(
            f"a crop of {size} x {size} at ({top}, {left}) is not within the frame of "
            f"{height} x {width}; lower the crop size or raise the scale of the frames"
        )
    return frames[:, top : top + size, left : left + size]


class RandomCrop:
    """Training: a random scale, place and mirror image, the same for all frames of a clip.

    Args:
        scales: range of the short side, pixels, both ends included.
        size: side of the crop, pixels, at most the smallest scale.
        flip: mirror half of the clips left to right.

    Raises:
        ValueError: the range is empty or begins below `size`.
    """

    def __init__(self, scales: tuple[int, int], size: int, flip: bool) -> None:
        low, high = scales
        if not size <= low <= high:
            raise ValueError(
                f"DATA.TRAIN_JITTER_SCALES {list(scales)} must ascend and begin at "
                f"DATA.TRAIN_CROP_SIZE {size} or above"
            )
        self.scales = (low, high)
        self.size = size
        self.flip = flip

    def short_side(self, rng: np.random.Generator) -> int:
        """Draw a scale, each pixel count equally likely."""
        return int(rng.integers(self.scales[0], self.scales[1] + 1))

    def __call__(self, frames: Frames, view: int, rng: np.random.Generator) -> Frames:
        """Cut out a random square, perhaps mirrored; `view` does not matter.

        Raises:
            ValueError: the frames are smaller than the crop.
        """
        height, width = frames.shape[1:3]
        top = int(rng.integers(0, max(height - self.size, 0) + 1))
        left = int(rng.integers(0, max(width - self.size, 0) + 1))
        cut = crop(frames, top, left, self.size)
        if self.flip and rng.random() < 0.5:
            cut = cut[:, :, ::-1]
        return cut


class ViewCrop:
    """Testing: one of 1 (centre) or 3 squares along the long side, at full height.

    View v is crop `v % num_crops`, as in PySlowFast: left, centre, right, or top, centre, bottom
    where the frame is taller than wide.

    Args:
        size: side of the crop and short side of the frames, pixels.
        num_crops: 1 or 3.

    Raises:
        ValueError: another number of crops.
    """

    def __init__(self, size: int, num_crops: int) -> None:
        if num_crops not in (1, 3):
            raise ValueError(f"TEST.NUM_SPATIAL_CROPS is {num_crops}, it must be 1 or 3")
        self.size = size
        self.num_crops = num_crops

    def short_side(self, rng: np.random.Generator) -> int:
        """Return the size of the crop; `rng` is not used."""
        return self.size

    def __call__(self, frames: Frames, view: int, rng: np.random.Generator) -> Frames:
        """Cut out the square of `view`; `rng` is not used.

        Raises:
            ValueError: the frames are smaller than the crop.
        """
        height, width = frames.shape[1:3]
        # half pixels are rounded up, as in PySlowFast
        top, left = math.ceil((height - self.size) / 2), math.ceil((width - self.size) / 2)
        place = view % self.num_crops if self.num_crops == 3 else 1
        if height > width:
            top = (0, top, height - self.size)[place]
        else:
            left = (0, left, width - self.size)[place]
        return crop(frames, top, left, self.size)
