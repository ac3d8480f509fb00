"""The first convolution of a ResNet, whose input has a gradient where a prompt comes before it.

A network without prompts never needs that gradient. On a CPU torch's way to it costs three times
the convolution itself, since what it writes has only three channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv3d_weight

SIDE, PADDING, STRIDE = 7, 3, 2  # of the kernels in space


class StemConv3d(nn.Conv3d):
    """A convolution of 7 x 7 pixels and stride 2 whose input's gradient comes quickly on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, C, T, H / 2, W / 2), rounded up, for (B, 3, T, H, W)."""
        wanted = torch.is_grad_enabled() and input.requires_grad and input.device.type == "cpu"
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if traced or not wanted:
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        out: Tensor = _StemConv.apply(input, weight)
        return out


def quicken_stems(net: nn.Module) -> nn.Module:
    """Make the first convolutions in `net`, of clips of three channels, such ones; return `net`."""
    for module in net.modules():
        if type(module) is nn.Conv3d and _is_stem(module):
            module.__class__ = StemConv3d  # the parameters stay where and what they are
    return net


def _is_stem(conv: nn.Conv3d) -> bool:
    frames = conv.kernel_size[0]
    return (
        (conv.in_channels, conv.groups, conv.bias) == (3, 1, None)
        and conv.padding_mode == "zeros"
        and frames % 2 == 1
        and conv.kernel_size == (frames, SIDE, SIDE)
        and conv.stride == (1, STRIDE, STRIDE)
        and conv.padding == (frames // 2, PADDING, PADDING)
        and conv.dilation == (1, 1, 1)
    )


class _StemConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, clip: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(clip, weight)
        padding = (weight.shape[2] // 2, PADDING, PADDING)
        return F.conv3d(clip, weight, stride=(1, STRIDE, STRIDE), padding=padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = grads
        clip, weight = ctx.saved_tensors
        grad_weight = None
        if ctx.needs_input_grad[1]:
            padding = (weight.shape[2] // 2, PADDING, PADDING)
            grad_weight = conv3d_weight(
                clip, weight.shape, grad, stride=(1, STRIDE, STRIDE), padding=padding
            )
        return input_gradient(grad, weight, clip.shape[3], clip.shape[4]), grad_weight


def input_gradient(grad: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    """Return the gradient (B, 3, T, height, width) of the clip.

    Pixels of even and of odd rows and columns meet different taps of a kernel of stride 2: each of
    the four kinds has a kernel of 4 x 4. They are twelve channels of one convolution of stride 1,
    which are then put in their places.

    Args:
        grad: of the output, (B, C, T, ceil(height / 2), ceil(width / 2)).
        weight: (C, 3, frames, 7, 7), an odd number of frames.
        height: of the clip, pixels.
        width: likewise.
    """
    taps = F.pad(weight.flip(2, 3, 4), (0, 1, 0, 1)).unflatten(4, (4, 2)).unflatten(3, (4, 2))
    # even pixels meet the odd taps: (C, 3, frames, 4, even or odd, 4, even or odd)
    kernels = taps.flip(4, 6).permute(1, 4, 6, 0, 2, 3, 5).flatten(0, 2)
    padding = (weight.shape[2] // 2, 2, 2)  # one more than needed before the first pixel
    kinds = F.conv3d(grad, kernels, padding=padding)[..., 1:, 1:].unflatten(1, (3, 2, 2))
    clip: Tensor = kinds.permute(0, 1, 4, 5, 2, 6, 3).flatten(5, 6).flatten(3, 4)
    return clip[..., :height, :width]
