"""The motion prompt on a CPU: Eq. 1 to 6 and their gradients, a block of the clip at a time.

A block's intermediates stay in the cache and their buffers serve the next block, so that of several
blocks there is little new memory but the output's. The first write to a page of new memory takes
several times as long as the next: see the two copies of `tools/bench.py prompt`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vmp.prompts.functional import Scales

# Pixels that a block has for each thread, over all its frames: enough to hide what the call of an
# operation costs, few enough for the cache to hold some seven float32 of each.
BLOCK = 131_072
# With many threads it is no more than this part of the clips, so that the buffers stay small beside
# the output; unless it were less than one thread's.
SHARE = 16


class _Block(NamedTuple):
    """Some rows h of some clips b as views, the channels first, and buffers of that size."""

    clip: Tensor  # (3, b, T+1, h, W)
    prompts: Tensor  # (3, b, T, h, W), the prompts or their gradient
    pixels: Tensor  # (3, b, T+1, h, W) float32: the clip itself if it is of that type
    gray: Tensor  # (b, T+1, h, W)
    planes: list[Tensor]  # three (b, T, h, W)


def forward(prompts: Tensor, clip: Tensor, a: Tensor, b: Tensor, scales: Scales) -> Tensor:
    """Write the prompts, and return the sum of squares that V (Eq. 6) is made of, 0-d float64.

    Args:
        prompts: (B, 3, T, H, W), contiguous, of any type of floats: what is in it is overwritten.
        clip: (B, 3, T+1, H, W), uint8 or floats up to float32, of any strides.
        a: slope, (1,).
        b: shift, (1,).
        scales: of the clip.
    """
    total = 0.0
    for block in _blocks(clip, prompts):
        attention = _arguments(block, float(a), float(b), scales).sigmoid_()
        later, earlier = attention[:, 1:], attention[:, :-1]
        total += float(torch.sub(later, earlier, out=block.planes[1][:, 1:]).square_().sum())
        torch.mul(_values(block, scales), attention, out=block.prompts)
    return torch.tensor(total, dtype=torch.float64)


def backward(
    grad_prompts: Tensor, grad_sum: Tensor, clip: Tensor, a: Tensor, b: Tensor, scales: Scales
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a and b, 0-d float64, given those of what `forward` returned.

    Args:
        grad_prompts: (B, 3, T, H, W), of any strides.
        grad_sum: 0-d.
        clip: as in `forward`, and so the rest.
        a: slope.
        b: shift.
        scales: of the clip.
    """
    slope, twice = float(a), 2 * float(grad_sum)
    grad_a = grad_b = 0.0
    for block in _blocks(clip, grad_prompts):
        arguments = _arguments(block, slope, float(b), scales)
        attention = torch.sigmoid(arguments, out=block.planes[1])
        grad = block.gray[:, 1:]  # of the attention; the grey frames have served
        values, grads = _values(block, scales), block.prompts
        torch.mul(values[0], grads[0], out=grad)
        grad.addcmul_(values[1], grads[1]).addcmul_(values[2], grads[2])
        later, earlier = attention[:, 1:], attention[:, :-1]
        change = torch.sub(later, earlier, out=block.planes[2][:, 1:])
        grad[:, 1:].add_(change, alpha=twice)
        grad[:, :-1].sub_(change, alpha=twice)
        # f - f^2 is the derivative of a sigmoid f
        grad_arguments = attention.addcmul_(attention, attention, value=-1).mul_(grad)
        grad_b -= slope * float(grad_arguments.sum())
        grad_a += float(grad_arguments.mul_(arguments).sum()) / slope
    return torch.tensor(grad_a, dtype=torch.float64), torch.tensor(grad_b, dtype=torch.float64)


def _blocks(clip: Tensor, prompts: Tensor) -> Iterator[_Block]:
    """Yield the blocks of a clip, all with the same buffers but for a last one of another size."""
    buffers: list[Tensor] = []
    for clips, rows in _cuts(clip.shape):
        part = clip[clips, :, :, rows].transpose(0, 1)
        output = prompts[clips, :, :, rows].transpose(0, 1)
        if not buffers or buffers[0].shape != part.shape[1:]:
            shapes = [part.shape[1:], *3 * [output.shape[1:]]]
            shapes += [part.shape] if part.dtype != torch.float32 else []
            buffers = [torch.empty(shape, dtype=torch.float32) for shape in shapes]
        gray, *planes = buffers[:4]
        pixels = part if part.dtype == torch.float32 else buffers[4].copy_(part)
        yield _Block(part, output, pixels, gray, planes)


def _cuts(shape: torch.Size) -> Iterator[tuple[slice, slice]]:
    """Yield which clips and which of their rows a block has; several clips have all rows."""
    batch, _, frames, height, width = shape
    row = frames * width
    pixels = min(BLOCK * torch.get_num_threads(), max(BLOCK, batch * height * row // SHARE))
    rows = max(1, min(height, pixels // row))
    clips = max(1, pixels // (height * row))
    for clip in range(0, batch, clips):
        for top in range(0, height, rows):
            yield slice(clip, clip + clips), slice(top, top + rows)


def _arguments(block: _Block, slope: float, shift: float, scales: Scales) -> Tensor:
    """Return a (D - b) of a block, in its first plane."""
    pixels, gray, weights = block.pixels, block.gray, scales.luma
    torch.mul(pixels[0], weights[0], out=gray)
    gray.add_(pixels[1], alpha=weights[1]).add_(pixels[2], alpha=weights[2])
    differences = torch.sub(gray[:, 1:], gray[:, :-1], out=block.planes[0])
    return differences.sub_(shift / scales.unit).mul_(slope * scales.unit)


def _values(block: _Block, scales: Scales) -> Tensor:
    """Return the normalised frames that the attention multiplies, (3, b, T, h, W)."""
    values = block.pixels[:, :, 1:]
    if block.clip.is_floating_point():  # normalised already, and maybe not ours to write to
        return values
    gain, offset = (torch.tensor(each).view(3, 1, 1, 1, 1) for each in (scales.gain, scales.offset))
    return values.mul_(gain).add_(offset)
