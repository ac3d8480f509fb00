"""What the kernels of the motion prompt are tried on, and the same in float64 from the paper."""

from typing import NamedTuple

import torch
from torch import Tensor

from vmp.prompts import MotionPrompt
from vmp.prompts.power_norm import sigmoid

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
LUMA = {"rgb": (0.299, 0.587, 0.114), "bgr": (0.114, 0.587, 0.299)}
GRAD_VARIATION = 3.0


class Case(NamedTuple):
    shape: tuple[int, ...]  # of the clip that the layer gets
    dtype: torch.dtype = torch.uint8
    layout: str = "contiguous"
    m: float = 0.5
    n: float = -0.3
    luma: str = "rgb"
    reduction: str = "mean"
    out: torch.dtype = torch.float32


CASES = {
    "bytes": Case((2, 3, 5, 23, 37)),
    "T of 2": Case((3, 3, 3, 5, 7)),
    "T of 64": Case((1, 3, 65, 3, 5)),
    "one pixel": Case((2, 3, 4, 1, 1)),
    "whole blocks": Case((1, 3, 4, 32, 32)),
    "floats": Case((2, 3, 5, 23, 37), torch.float32, n=0.4),
    "halves": Case((2, 3, 5, 9, 11), torch.float16),
    "brain floats": Case((2, 3, 5, 9, 11), torch.bfloat16),
    "steepest": Case((2, 3, 5, 23, 37), m=1e-5, n=0.3),
    "steepest of floats": Case((2, 3, 5, 23, 37), torch.float32, m=-1e-5, n=-0.3),
    "all shut": Case((1, 3, 5, 9, 11), m=1e-5, n=30.0),
    "all open": Case((1, 3, 5, 9, 11), m=1e-5, n=-30.0),
    "flattest": Case((1, 3, 5, 9, 11), m=-30.0, n=1e-5),
    "black and white": Case((2, 3, 6, 8, 8), layout="flashing", m=1e-4, n=-0.7),
    "still": Case((2, 3, 6, 8, 8), layout="still"),
    "every fourth frame": Case((2, 3, 4, 9, 11), layout="strided"),
    "cropped": Case((2, 3, 4, 9, 11), layout="cropped"),
    "cropped floats": Case((2, 3, 4, 9, 11), torch.float32, layout="cropped"),
    "channels last": Case((2, 3, 4, 9, 11), layout="channels last"),
    "a strided gradient": Case((2, 3, 4, 9, 11), layout="strided gradient"),
    "frobenius": Case((2, 3, 4, 9, 11), reduction="frobenius"),
    "luma of the release": Case((2, 3, 4, 9, 11), luma="bgr"),
    "out in bfloat16": Case((2, 3, 4, 9, 11), out=torch.bfloat16),
    "out in float16": Case((2, 3, 4, 9, 11), torch.float32, out=torch.float16),
}


class Result(NamedTuple):
    prompts: Tensor
    variation: Tensor
    grad_m: Tensor
    grad_n: Tensor


def make_clip(case: Case, device: str = "cpu") -> Tensor:
    """Return the clip; it gets its layout on the device, since a copy would be contiguous."""
    torch.manual_seed(7)
    batch, channels, frames, height, width = case.shape
    size = list(case.shape)
    if case.layout == "strided":
        size[2] = 4 * frames - 3
    if case.layout == "cropped":
        size[3:] = [height + 5, width + 3]
    clip = torch.randint(0, 256, size, dtype=torch.uint8).to(device)
    if case.layout == "flashing":
        flashes = torch.arange(frames, device=device).remainder(2).mul(255).byte()
        clip = flashes.view(1, 1, -1, 1, 1).expand(size)
    if case.layout == "still":
        clip = clip[:, :, :1].expand(size)
    if case.dtype != torch.uint8:
        mean, std = (torch.tensor(each, device=device).view(3, 1, 1, 1) for each in (MEAN, STD))
        clip = ((clip / 255 - mean) / std).to(case.dtype)
    return {
        "strided": clip[:, :, ::4],
        "cropped": clip[..., 2 : 2 + height, 3:],
        "channels last": clip.to(memory_format=torch.channels_last_3d),
    }.get(case.layout, clip)


def make_grad(case: Case, device: str = "cpu") -> Tensor:
    torch.manual_seed(8)
    batch, _, frames, height, width = case.shape
    extra = 3 if case.layout == "strided gradient" else 0
    grad = torch.randn(batch, 3, frames - 1, height, width + extra).to(device, case.out)
    if case.layout == "channels last":
        return grad.to(memory_format=torch.channels_last_3d)
    return grad[..., extra:]


def make_layer(case: Case, kernel: str) -> MotionPrompt:
    options = {"luma": case.luma, "reduction": case.reduction, "mean": MEAN, "std": STD}
    return MotionPrompt(sigmoid(m=case.m, n=case.n), kernel=kernel, **options)


def run(case: Case, kernel: str, device: str = "cpu") -> Result:
    layer, clip = make_layer(case, kernel).to(device), make_clip(case, device)
    with torch.autocast(device, case.out, enabled=case.out != torch.float32):
        prompts, variation = layer(clip)
    grads = [make_grad(case, device), torch.tensor(GRAD_VARIATION, device=device)]
    torch.autograd.backward([prompts, variation], grads)
    power_norm = layer.power_norm
    results = (prompts.detach(), variation.detach(), power_norm.m.grad, power_norm.n.grad)
    return Result(*(each.cpu() for each in results))


def reference(case: Case) -> tuple[Result, Result]:
    """Return Eq. 1 to 6 and their gradients in float64, and by how much float32 may miss them.

    A gradient is a sum over pixels, and each term may be off by float32's rounding of a factor at
    its largest: that of the derivative f (1 - f), of which the rest of the term makes a multiple.
    """
    clip = make_clip(case).double()
    mean, std = (torch.tensor(each, dtype=torch.float64).view(3, 1, 1, 1) for each in (MEAN, STD))
    if case.dtype == torch.uint8:
        clip = (clip / 255 - mean) / std
    red, green, blue = (clip * std + mean).unbind(1)
    weights = LUMA[case.luma]
    differences = (weights[0] * red + weights[1] * green + weights[2] * blue).diff(dim=1)
    # the layer's own m and n are float32
    m, n = (torch.tensor([start]).double().requires_grad_() for start in (case.m, case.n))
    a, b = 5 / (0.45 * m.tanh().abs() + 0.1), 0.6 * n.tanh()
    attention = torch.sigmoid(a * (differences - b))
    attention.retain_grad()
    prompts = attention[:, None] * clip[:, :, 1:]
    pixels = case.shape[3] * case.shape[4] if case.reduction == "frobenius" else 1
    variation = attention.diff(dim=1).square().mean() * pixels
    grads = [make_grad(case).double(), torch.tensor(GRAD_VARIATION).double()]
    slopes = torch.autograd.grad([a, b], [m, n], [torch.ones(1).double()] * 2, retain_graph=True)
    torch.autograd.backward([prompts, variation], grads)

    wanted = Result(prompts.detach(), variation.detach(), m.grad, n.grad)
    pull = attention.grad.abs()
    rounding = 0 if case.out == torch.float32 else torch.finfo(case.out).eps
    allowed = Result(
        2e-6 + rounding * wanted.prompts.abs(),
        2e-6 * wanted.variation.clamp(min=1),
        1e-7 * slopes[0].abs() * (pull * (differences - b).detach().abs()).sum(),
        1e-7 * slopes[1].abs() * a.detach() * pull.sum(),
    )
    return wanted, allowed


def misses(result: Result, wanted: Result, allowed: Result) -> dict[str, float]:
    """Return by how much `result` is further from `wanted` than allowed, where it is."""
    excess = {
        name: float(((value - right).abs() - most).max())
        for name, value, right, most in zip(Result._fields, result, wanted, allowed, strict=True)
    }
    # written so that NaN is a miss
    return {name: value for name, value in excess.items() if not value <= 0}
