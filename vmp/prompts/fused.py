"""The motion prompt with the paper's sigmoid as one operator, and the choice of its kernel.

For its backward pass the operator keeps the clip, which it reads again, and the two numbers a and
b. To torch.compile it is one opaque step, on a GPU it makes nothing wait.
"""

import functools
import logging
import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vmp.prompts import cpu_kernel
from vmp.prompts.functional import clip_scales

KERNELS = ("auto", "eager", "cpu", "triton")
# What the fused kernels take; they compute in float32.
DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float16)
HAS_TRITON = find_spec("triton") is not None
TRITON_CAPABILITY = (8, 0)  # the oldest that the kernel is compiled for in the tests

logger = logging.getLogger(__name__)


def pick_kernel(kernel: str, clip: Tensor, *, is_sigmoid: bool) -> str:
    """Return the kernel for a clip, "eager", "cpu" or "triton"; each that is new is logged.

    Args:
        kernel: one of KERNELS; "auto" takes the fastest that can do it.
        clip: the clip.
        is_sigmoid: the power normalisation is the paper's; there are no kernels for others.

    Raises:
        ValueError: the kernel asked for cannot do it.
    """
    device = clip.device.type
    fastest = {"cpu": "cpu", "cuda": "triton"}.get(device, "eager")
    picked = fastest if kernel == "auto" else kernel
    obstacle = _obstacle(picked, clip, is_sigmoid) if picked != "eager" else ""
    if obstacle and kernel != "auto":
        raise ValueError(
            f"the kernel of the motion prompt is {kernel!r}, but {obstacle}; "
            "set PROMPT.KERNEL to 'auto'"
        )
    picked = "eager" if obstacle else picked
    if picked == "eager" and not torch.compiler.is_compiling():  # the operator tells of the others
        _announce(picked, device, obstacle)
    return picked


def _obstacle(kernel: str, clip: Tensor, is_sigmoid: bool) -> str:
    """Return why `kernel` cannot do it, "" if it can."""
    device = clip.device.type
    interpreted = kernel == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if not is_sigmoid:
        return "the power normalisation is not the paper's sigmoid"
    if clip.dtype not in DTYPES:
        return f"the clip is {clip.dtype}"
    if clip.requires_grad and torch.is_grad_enabled():
        return "the clip is to have a gradient"
    if _is_exporting():
        return "an exported program must run without vmp"
    if device != {"cpu": "cpu", "triton": "cuda"}[kernel] and not interpreted:
        return f"the clip is on the device {device}"
    if kernel == "triton" and not HAS_TRITON:
        return "triton is not installed"
    if kernel == "triton" and not interpreted:
        return _triton_lacks(clip.device)
    return ""


def _is_exporting() -> bool:
    # the compiler of torch 2.9 takes the function for true whatever it compiles for
    return torch.compiler.is_exporting() and getattr(torch.compiler, "_is_exporting_flag", True)


@functools.cache
def _triton_lacks(device: torch.device) -> str:
    """Return what Triton lacks to compile a kernel for a GPU, "" if nothing."""
    if torch.cuda.get_device_capability(device) < TRITON_CAPABILITY:
        return "Triton takes newer GPUs"
    # it makes the launcher of a kernel when that is first used
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "there is no C compiler for Triton (install gcc or set CC)"
    return ""


@functools.cache
def _announce(kernel: str, device: str, obstacle: str) -> None:
    because = f", since {obstacle}" if obstacle else ""
    logger.info("motion prompt on %s: kernel %s%s", device, kernel, because)


def _kernel(name: str) -> ModuleType:
    if name == "cpu":
        return cpu_kernel
    # not before it is needed: a CPU does without triton, and its import takes a second
    from vmp.prompts import triton_kernel

    return triton_kernel


@torch.library.custom_op("vmp::motion_prompt", mutates_args=())
def motion_prompt(
    clip: Tensor,
    a: Tensor,
    b: Tensor,
    luma: str,
    mean: Sequence[float],
    std: Sequence[float],
    reduction: str,
    dtype: torch.dtype,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    """Return the prompts (Eq. 4) in `dtype` and the variation V (Eq. 6) in float32.

    Args:
        clip: (B, 3, T+1, H, W), T >= 2, of one of DTYPES; it gets no gradient.
        a: slope (Eq. 2), (1,) float32.
        b: shift (Eq. 2), likewise.
        luma: a key of functional.LUMA.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        reduction: one of functional.REDUCTIONS.
        dtype: of the prompts.
        kernel: "cpu" or "triton".
    """
    _announce(kernel, clip.device.type, "")
    scales = clip_scales(clip.dtype, mean, std, luma)
    prompts = _new_prompts(clip, dtype)
    squares = _kernel(kernel).forward(prompts, clip, a, b, scales)
    return prompts, (squares / _terms(clip, reduction)).float()


@torch.library.custom_op("vmp::motion_prompt_backward", mutates_args=())
def motion_prompt_backward(
    grad_prompts: Tensor,
    grad_variation: Tensor,
    clip: Tensor,
    a: Tensor,
    b: Tensor,
    luma: str,
    mean: Sequence[float],
    std: Sequence[float],
    reduction: str,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a and b, given those of what `motion_prompt` returned."""
    scales = clip_scales(clip.dtype, mean, std, luma)
    grad_squares = grad_variation / _terms(clip, reduction)
    grad_a, grad_b = _kernel(kernel).backward(grad_prompts, grad_squares, clip, a, b, scales)
    return grad_a.to(a.dtype).view_as(a), grad_b.to(b.dtype).view_as(b)


def _new_prompts(clip: Tensor, dtype: torch.dtype) -> Tensor:
    """Return room for the prompts of a clip, one frame fewer, contiguous."""
    batch, channels, frames, height, width = clip.shape
    return clip.new_empty((batch, channels, frames - 1, height, width), dtype=dtype)


def _terms(clip: Tensor, reduction: str) -> int:
    """Return by what the sum of the squared changes of the attention is divided to give V."""
    batch, _, frames, height, width = clip.shape
    averaged = batch * (frames - 2)
    return averaged if reduction == "frobenius" else averaged * height * width


@motion_prompt.register_fake
def _(clip: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return _new_prompts(clip, dtype=options[-2]), clip.new_empty((), dtype=torch.float32)


@motion_prompt_backward.register_fake
def _(
    grad_prompts: Tensor, grad_variation: Tensor, clip: Tensor, a: Tensor, b: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(b)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    clip, a, b, *how, _dtype, kernel = inputs
    ctx.save_for_backward(clip, a, b)
    ctx.how = (*how, kernel)


def _differentiate(ctx: Any, grad_prompts: Tensor, grad_variation: Tensor) -> tuple[Any, ...]:
    grads = motion_prompt_backward(grad_prompts, grad_variation, *ctx.saved_tensors, *ctx.how)
    return (None, *grads, *6 * [None])


motion_prompt.register_autograd(_differentiate, setup_context=_save)
