"""The motion prompt on a GPU, in Triton: Eq. 1 to 6 in one pass, their gradients in another.

A program has a block of pixels of one clip and walks through its frames, the last grey frame and
attention in registers: forward reads each number of the clip once and writes each prompt once,
backward reads both once. V and the gradients are sums: each program leaves its own, in float32,
and these are added up in a fixed order, so that the same input gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmp.prompts.functional import Scales

# The arguments of a kernel are what its compiler makes of them: Triton has no types for them.
# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"
# ruff: noqa: N803, PLR0913

BLOCK = 512  # pixels of a program: 4 for each of its 128 threads, a word of bytes or 16 of floats


@triton.jit
def _offsets(pixel, width, strides, FLAT: tl.constexpr):
    if not FLAT:
        return (pixel // width) * strides[3] + (pixel % width) * strides[4]
    # rows follow each other, which the compiler could not know: it loads neighbours at once
    return pixel * strides[4]


@triton.jit
def _load(frame, strides, offsets, inside):
    red = tl.load(frame + offsets, mask=inside, other=0).to(tl.float32)
    frame += strides[1]
    green = tl.load(frame + offsets, mask=inside, other=0).to(tl.float32)
    frame += strides[1]
    blue = tl.load(frame + offsets, mask=inside, other=0).to(tl.float32)
    return red, green, blue


@triton.jit
def _forward(
    clip,
    prompts,  # contiguous
    sums,
    a,
    b,
    frames,
    pixels,
    width,
    strides,
    luma,
    unit,
    gain,
    offset,
    FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    offsets = _offsets(pixel, width, strides, FLAT)
    frame = clip + sample * strides[0]
    red_prompt = prompts + sample * 3 * (frames - 1) * pixels
    green_prompt = red_prompt + (frames - 1) * pixels
    blue_prompt = green_prompt + (frames - 1) * pixels
    slope, shift = tl.load(a), tl.load(b)

    red, green, blue = _load(frame, strides, offsets, inside)
    gray_before = luma[0] * red + luma[1] * green + luma[2] * blue
    attention_before = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for step in range(1, frames):
        frame += strides[2]
        red, green, blue = _load(frame, strides, offsets, inside)
        gray = luma[0] * red + luma[1] * green + luma[2] * blue
        attention = tl.sigmoid(slope * ((gray - gray_before) * unit - shift))
        tl.store(red_prompt + pixel, attention * (gain[0] * red + offset[0]), mask=inside)
        tl.store(green_prompt + pixel, attention * (gain[1] * green + offset[1]), mask=inside)
        tl.store(blue_prompt + pixel, attention * (gain[2] * blue + offset[2]), mask=inside)
        # pixels outside are 0 in every frame: their attention does not change
        change = tl.where(step > 1, attention - attention_before, 0.0)
        total += change * change
        gray_before, attention_before = gray, attention
        red_prompt += pixels
        green_prompt += pixels
        blue_prompt += pixels
    tl.store(sums + sample * tl.num_programs(0) + block, tl.sum(total))


@triton.jit
def _backward(
    clip,
    grad_prompts,
    grad_sum,
    sums,  # of a, then of b
    a,
    b,
    frames,
    pixels,
    width,
    strides,
    grad_strides,
    luma,
    unit,
    gain,
    offset,
    FLAT: tl.constexpr,
    GRAD_FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    offsets = _offsets(pixel, width, strides, FLAT)
    grad_offsets = _offsets(pixel, width, grad_strides, GRAD_FLAT)
    frame = clip + sample * strides[0]
    grad_frame = grad_prompts + sample * grad_strides[0]
    slope, shift, twice = tl.load(a), tl.load(b), 2 * tl.load(grad_sum)

    red, green, blue = _load(frame, strides, offsets, inside)
    gray_before = luma[0] * red + luma[1] * green + luma[2] * blue
    attention_before = tl.zeros([BLOCK], tl.float32)
    along_a_before = tl.zeros([BLOCK], tl.float32)
    along_b_before = tl.zeros([BLOCK], tl.float32)
    total_a = tl.zeros([BLOCK], tl.float32)
    total_b = tl.zeros([BLOCK], tl.float32)
    for step in range(1, frames):
        frame += strides[2]
        red, green, blue = _load(frame, strides, offsets, inside)
        grad_red, grad_green, grad_blue = _load(grad_frame, grad_strides, grad_offsets, inside)
        gray = luma[0] * red + luma[1] * green + luma[2] * blue
        distance = (gray - gray_before) * unit - shift
        attention = tl.sigmoid(slope * distance)
        # derivatives of the attention for a and b
        steepness = attention * (1 - attention)
        along_a, along_b = steepness * distance, -slope * steepness
        grad = grad_red * (gain[0] * red + offset[0])
        grad += grad_green * (gain[1] * green + offset[1])
        grad += grad_blue * (gain[2] * blue + offset[2])
        change = twice * tl.where(step > 1, attention - attention_before, 0.0)
        total_a += grad * along_a + change * (along_a - along_a_before)
        total_b += grad * along_b + change * (along_b - along_b_before)
        gray_before, attention_before = gray, attention
        along_a_before, along_b_before = along_a, along_b
        grad_frame += grad_strides[2]
    programs = tl.num_programs(0) * tl.num_programs(1)
    place = sums + sample * tl.num_programs(0) + block
    tl.store(place, tl.sum(total_a))
    tl.store(place + programs, tl.sum(total_b))


def forward(prompts: Tensor, clip: Tensor, a: Tensor, b: Tensor, scales: Scales) -> Tensor:
    """Write the prompts, and return the sum of squares that V (Eq. 6) is made of, 0-d float64.

    Args:
        prompts: (B, 3, T, H, W), contiguous, of any type of floats: what is in it is overwritten.
        clip: (B, 3, T+1, H, W), uint8 or floats up to float32, of any strides.
        a: slope, (1,).
        b: shift, (1,).
        scales: of the clip.
    """
    _, _, frames, height, width = clip.shape
    grid = _grid(clip)
    sums = clip.new_empty(grid, dtype=torch.float32)
    sizes = (frames, height * width, width)
    with torch.cuda.device_of(clip):
        _forward[grid](
            *(clip, prompts, sums, a, b),
            *sizes,
            clip.stride(),
            *scales,
            FLAT=_is_flat(clip),
            BLOCK=BLOCK,
            enable_fp_fusion=True,
        )
    return sums.sum(dtype=torch.float64)


def backward(
    grad_prompts: Tensor, grad_sum: Tensor, clip: Tensor, a: Tensor, b: Tensor, scales: Scales
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a and b, 0-d float64, given those of what `forward` returned.

    Args:
        grad_prompts: (B, 3, T, H, W), of any strides.
        grad_sum: 0-d float32.
        clip: as in `forward`, and so the rest.
        a: slope.
        b: shift.
        scales: of the clip.
    """
    _, _, frames, height, width = clip.shape
    grid = _grid(clip)
    sums = clip.new_empty((2, *grid), dtype=torch.float32)
    sizes = (frames, height * width, width)
    with torch.cuda.device_of(clip):
        _backward[grid](
            *(clip, grad_prompts, grad_sum, sums, a, b),
            *sizes,
            clip.stride(),
            grad_prompts.stride(),
            *scales,
            FLAT=_is_flat(clip),
            GRAD_FLAT=_is_flat(grad_prompts),
            BLOCK=BLOCK,
            enable_fp_fusion=True,
        )
    grad_a, grad_b = sums.sum(dim=(1, 2), dtype=torch.float64)
    return grad_a, grad_b


def _grid(clip: Tensor) -> tuple[int, int]:
    batch, _, _, height, width = clip.shape
    return triton.cdiv(height * width, BLOCK), batch


def _is_flat(clip: Tensor) -> bool:
    return clip.stride(3) == clip.shape[4] * clip.stride(4)
