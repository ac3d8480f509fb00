"""Equations 1 to 6 of Video Motion Prompts (Chen et al., ACML 2024) as pure functions.

A clip has T+1 frames (B, 3, T+1, H, W); it gives T differences, T attention maps and T prompts.
The paper counts T frames and T-1 maps; the numbers below are those of the backbone's T frames.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Rec. 601 weights of red, green, blue, in thousandths. The release applies OpenCV's BGR order to
# RGB frames, so red and blue are swapped there; checkpoints of the release need "bgr".
LUMA = {"rgb": (299, 587, 114), "bgr": (114, 587, 299)}
REDUCTIONS = ("mean", "frobenius")


class Scales(NamedTuple):
    """What the numbers x of a clip stand for; three each are red, green, blue.

    Attributes:
        luma: the grey frame F' is unit * sum(luma * x), but for a constant.
        unit: see `luma`.
        gain: the normalised frame is gain * x + offset.
        offset: see `gain`.
    """

    luma: tuple[float, ...]
    unit: float
    gain: tuple[float, ...]
    offset: tuple[float, ...]


def clip_scales(
    dtype: torch.dtype, mean: Sequence[float], std: Sequence[float], luma: str = "rgb"
) -> Scales:
    """Return the scales of a clip of bytes, or of floats, which are normalised already."""
    thousandths = LUMA[luma]
    if dtype == torch.uint8:
        # sums of thousandths of bytes are whole numbers below 2^24: exact in float32
        gain = tuple(1 / (255 * s) for s in std)
        offset = tuple(-m / s for m, s in zip(mean, std, strict=True))
        return Scales(tuple(map(float, thousandths)), 1 / 255_000, gain, offset)
    # the mean is the constant that differences do not see
    weights = tuple(weight * s / 1000 for weight, s in zip(thousandths, std, strict=True))
    return Scales(weights, 1.0, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    # each is filled on its device: a tensor made of a list is copied there, and is waited for
    return torch.stack([like.new_full((), value) for value in values]).view(-1, 1, 1, 1)


def normalize(clip: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (pixels in [0, 1] - mean) / std in float32 for uint8 clips (..., 3, T, H, W).

    A clip of floats is taken as normalised already and returned as it is.
    """
    if clip.dtype != torch.uint8:
        return clip
    pixels = clip.float() / 255
    return (pixels - _per_channel(mean, pixels)) / _per_channel(std, pixels)


def to_pixels(clip: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo `normalize`: pixels in [0, 1], of at least float32; not clamped, as in the release."""
    if clip.dtype == torch.uint8:
        return clip.float() / 255
    clip = clip.to(torch.promote_types(clip.dtype, torch.float32))
    return clip * _per_channel(std, clip) + _per_channel(mean, clip)


def frame_differences(clip: Tensor, scales: Scales) -> Tensor:
    """Return D_t = F'_{t+1} - F'_t of the grey frames F' in [0, 1], at least float32.

    Args:
        clip: (B, 3, T+1, H, W) RGB.
        scales: of the clip, from `clip_scales`.

    Returns:
        (B, T, H, W), in [-1, 1].
    """
    red, green, blue = clip.to(torch.promote_types(clip.dtype, torch.float32)).unbind(dim=1)
    weights = scales.luma
    gray = (weights[0] * red).add(green, alpha=weights[1]).add(blue, alpha=weights[2])
    return gray.diff(dim=1) * scales.unit


def slope(m: Tensor, alpha: float = 5.0, beta: float = 0.45, eps: float = 0.1) -> Tensor:
    """Return a(m) = alpha / (beta |tanh m| + eps) (Eq. 2), in (alpha/(beta+eps), alpha/eps].

    |.| has no derivative at m = 0; autograd gives 0 there, so an m of exactly 0 never moves.
    """
    return alpha / (beta * m.tanh().abs() + eps)


def shift(n: Tensor, gamma: float = 0.6) -> Tensor:
    """Return b(n) = gamma tanh n (Eq. 2), in (-gamma, gamma)."""
    return gamma * n.tanh()


def power_normalization(differences: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return f(D) = 1 / (1 + exp(-a (D - b))) (Eq. 1 and 3), in [0, 1], by a stable sigmoid."""
    return torch.sigmoid(a * (differences - b))


def motion_prompts(attention: Tensor, values: Tensor) -> Tensor:
    """Return Z_t = f(D_t) * F_{t+1} (Eq. 4 and 5).

    Args:
        attention: (B, T, H, W), in [0, 1].
        values: (B, 3, T+1, H, W); the normalised frames, as the release has it.

    Returns:
        (B, 3, T, H, W), in the scale of `values`.
    """
    return attention.unsqueeze(1) * values[:, :, 1:]


def attention_variation(attention: Tensor, reduction: str = "mean") -> Tensor:
    """Return V (Eq. 6), a scalar: how much the attention changes from frame to frame.

    Args:
        attention: (B, T, H, W) with T >= 2.
        reduction: "mean" averages the T-1 squared changes over pixels and batch as the release
            does, in [0, 1]; "frobenius" sums over pixels, as Eq. 6 is printed, and averages over
            the batch: H * W times larger.
    """
    squares = attention.diff(dim=1).square()
    if reduction == "frobenius":
        return squares.sum(dim=(2, 3)).mean()
    return squares.mean()
