"""The motion prompt layer: a plug-in with two parameters before any video backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vmp.prompts import functional as F
from vmp.prompts.fused import KERNELS, motion_prompt, pick_kernel
from vmp.prompts.power_norm import PowerNorm, identity, sigmoid


class MotionPrompt(nn.Module):
    """Turn a clip into motion prompts (Chen et al. 2024, Fig. 2, Eq. 1 to 6).

    Everything is done in float32 (float64 for a float64 clip), whatever autocast says: exp and
    differences of pixels do not survive half precision. Only the prompts that come out of it are
    rounded to autocast's type.

    Args:
        power_norm: maps differences in [-1, 1] to attention in [0, 1]; None is the paper's
            learnable sigmoid with its constants.
        luma: grey weights, "rgb" or, as the release has it on RGB frames, "bgr".
        reduction: how V sums: "mean" as the release does, "frobenius" as Eq. 6 is printed.
        mean: per channel, of pixels in [0, 1]; the scale of a float clip and of the prompts.
        std: likewise.
        kernel: what computes it: "auto", "eager" for plain operations, or for the paper's sigmoid
            and clips that need no gradient "cpu" or "triton". The identity needs none of them.
            Second derivatives and torch.func take "eager", and so does a clip that is changed
            between forward and backward.

    Raises:
        ValueError: an unknown luma, reduction or kernel.
    """

    def __init__(
        self,
        power_norm: PowerNorm | None = None,
        *,
        luma: str = "rgb",
        reduction: str = "mean",
        mean: Sequence[float] = (0.45, 0.45, 0.45),
        std: Sequence[float] = (0.225, 0.225, 0.225),
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        if luma not in F.LUMA:
            raise ValueError(f"luma is {luma!r}, it must be one of {', '.join(F.LUMA)}")
        if reduction not in F.REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}, it must be one of {F.REDUCTIONS}")
        if kernel not in KERNELS:
            raise ValueError(f"kernel is {kernel!r}, it must be one of {', '.join(KERNELS)}")
        self.power_norm = power_norm if power_norm is not None else sigmoid()
        self.luma, self.reduction = luma, reduction
        self.mean, self.std = tuple(mean), tuple(std)
        self.kernel = kernel

    def differences(self, clip: Tensor) -> Tensor:
        """Return the T frame differences D (B, T, H, W) in [-1, 1] of a clip of T+1 frames."""
        _check_clip(clip)
        with torch.autocast(clip.device.type, enabled=False):
            scales = F.clip_scales(clip.dtype, self.mean, self.std, self.luma)
            return F.frame_differences(clip, scales)

    def attention(self, clip: Tensor) -> Tensor:
        """Return the attention f(D) (B, T, H, W) in [0, 1] (Eq. 3) of a clip of T+1 frames."""
        differences = self.differences(clip)
        with torch.autocast(clip.device.type, enabled=False):
            attention: Tensor = self.power_norm(differences)
        return attention

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prompts Z (Eq. 4) and the variation V of their attention (Eq. 6).

        Args:
            clip: (B, 3, T+1, H, W) RGB, T >= 2: uint8 in 0..255, or floats normalised by the
                layer's mean and std.

        Returns:
            prompts (B, 3, T, H, W) in the normalised scale, of autocast's type where it is on,
            else float32 (float64 for a float64 clip), and V, a scalar, at least float32; in
            [0, 1] for the reduction "mean".

        Raises:
            ValueError: not five dimensions, not three channels, or fewer than three frames; a
                clip that the kernel asked for cannot take.
        """
        _check_clip(clip)
        dtype = _output_dtype(clip)
        if type(self.power_norm) is identity:
            return self._frames(clip, dtype)
        kernel = pick_kernel(self.kernel, clip, is_sigmoid=type(self.power_norm) is sigmoid)
        if kernel == "eager":
            prompts, variation = self._eager(clip)
            return prompts.to(dtype), variation
        assert isinstance(self.power_norm, sigmoid)
        with torch.autocast(clip.device.type, enabled=False):
            a, b = self.power_norm.coefficients(torch.float32)
        options = (self.luma, self.mean, self.std, self.reduction)
        fused: tuple[Tensor, Tensor] = motion_prompt(clip, a, b, *options, dtype, kernel)
        return fused

    def _eager(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        attention = self.attention(clip)
        with torch.autocast(clip.device.type, enabled=False):
            values = F.normalize(clip, self.mean, self.std)
            prompts = F.motion_prompts(attention, values.to(attention.dtype))
            return prompts, F.attention_variation(attention, self.reduction)

    def _frames(self, clip: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return what `_eager` does for an attention of 1, to the bit, without a step for it."""
        values = F.normalize(clip[:, :, 1:], self.mean, self.std)
        still = clip.new_zeros((), dtype=torch.promote_types(clip.dtype, torch.float32))
        return values.to(dtype), still

    def extra_repr(self) -> str:
        """Return what the repr shows besides the power normalisation."""
        return f"luma={self.luma!r}, reduction={self.reduction!r}"


def _output_dtype(clip: Tensor) -> torch.dtype:
    if clip.dtype == torch.float64:  # which autocast leaves alone
        return torch.float64
    device = clip.device.type
    autocast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else torch.float32


def _check_clip(clip: Tensor) -> None:
    shape = tuple(clip.shape)
    if clip.ndim != 5 or shape[1] != 3:
        raise ValueError(f"a clip of shape {shape} was given; it must be (B, 3, T+1, H, W) RGB")
    if shape[2] < 3:
        raise ValueError(
            f"a clip of {shape[2]} frames was given; a motion prompt needs at least 3 "
            "(two differences, one variation): raise DATA.NUM_FRAMES to 2 or more"
        )
