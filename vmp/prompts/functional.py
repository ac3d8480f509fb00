"""Equations 1 to 6 of Video Motion Prompts (Chen et al., ACML 2024) as pure functions.

A clip has T+1 frames (B, 3, T+1, H, W); it gives T differences, T attention maps and T prompts.
The paper counts T frames and T-1 maps; the numbers below are those of the backbone's T frames.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Rec. 601 weights of red, green, blue. The release applies OpenCV's BGR order to RGB frames, so
# red and blue are swapped there; checkpoints of the release need "bgr".
LUMA = {"rgb": (0.299, 0.587, 0.114), "bgr": (0.114, 0.587, 0.299)}
REDUCTIONS = ("mean", "frobenius")


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1, 1)


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


def to_gray(pixels: Tensor, luma: str = "rgb") -> Tensor:
    """Return the grey frames F' (B, T, H, W) of RGB pixels (B, 3, T, H, W), same range."""
    red, green, blue = pixels.unbind(dim=1)
    weights = LUMA[luma]
    return weights[0] * red + weights[1] * green + weights[2] * blue


def frame_differences(gray: Tensor) -> Tensor:
    """Return D_t = F'_{t+1} - F'_t in [-1, 1], (B, T, H, W), of T+1 grey frames in [0, 1]."""
    return gray.diff(dim=1)


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
