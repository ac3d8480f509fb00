"""What the figures of `tools/visualize.py` are drawn of: frames of a video, given m and n."""

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from visualize import FRAMES, MPII_M, MPII_N, STRIDE

from vmp.data import VideoReader
from vmp.data.sampling import fill_short
from vmp.prompts import POWER_NORMS
from vmp.prompts.power_norm import PowerNorm, sigmoid


def pick_numbers(args: argparse.Namespace) -> list[tuple[float, float]]:
    """Return the pairs of m and n that the command line gives, MPII's if it gives none.

    Raises:
        ValueError: no m and n give an a and b of it.
    """
    if args.a:
        return [solve(a, b) for a, b in zip(args.a, args.b, strict=True)]
    return list(zip(args.m or [MPII_M], args.n or [MPII_N], strict=True))


def solve(a: float, b: float) -> tuple[float, float]:
    """Return m >= 0 and n that give slope `a` and shift `b` (Eq. 2).

    Raises:
        ValueError: no m and n do.
    """
    paper = fixed_norm(MPII_M, MPII_N)
    lowest, highest = paper.alpha / (paper.beta + paper.eps), paper.alpha / paper.eps
    if not (lowest < a <= highest and abs(b) < paper.gamma):
        raise ValueError(
            f"no m and n give a = {a}, b = {b}; a must be above {lowest:.4g} and at most "
            f"{highest:g}, b between {-paper.gamma:g} and {paper.gamma:g}"
        )
    return math.atanh((paper.alpha / a - paper.eps) / paper.beta), math.atanh(b / paper.gamma)


def fixed_norm(m: float, n: float) -> sigmoid:
    """Return the paper's power normalisation with these m and n."""
    return sigmoid(m=m, n=n, learnable=False)


def all_norms(m: float, n: float) -> dict[str, PowerNorm]:
    """Return every power normalisation by its name, the paper's, with these m and n, first."""
    others = {name: make() for name, make in POWER_NORMS if name not in ("sigmoid", "identity")}
    return {"sigmoid": fixed_norm(m, n)} | others


def spaced(args: argparse.Namespace) -> list[int]:
    """Return the frames of the video that --start, --frames and --stride ask for."""
    stride = args.stride or STRIDE
    return [args.start + step * stride for step in range((args.frames or FRAMES) + 1)]


def read_clip(video: VideoReader, numbers: Sequence[int], short_side: int) -> Tensor:
    """Return frames (3, T+1, H, W) uint8; past the end of the video the last one is held.

    Raises:
        ValueError: the video ends before the first two of them.
    """
    if numbers[1] >= len(video):
        raise ValueError(
            f"{video.path}: frames {numbers[0]} and {numbers[1]} wanted, it has {len(video)}; "
            "lower --start or --stride"
        )
    frames = video.read(fill_short(list(numbers), len(video), "hold"), short_side=short_side)
    return torch.as_tensor(frames).movedim(-1, 0)
