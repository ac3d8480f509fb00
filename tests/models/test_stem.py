import copy

import pytest
import torch
from torch import nn

from tests.conftest import ROOT
from vmp.config import load_cfg
from vmp.models import build_model
from vmp.models.stem import StemConv3d, quicken_stems


def pair(frames, dtype=torch.float64):
    """Return a convolution and the same one quickened."""
    padding = (frames // 2, 3, 3)
    conv = nn.Conv3d(3, 5, (frames, 7, 7), stride=(1, 2, 2), padding=padding, bias=False)
    conv = conv.to(dtype)
    quick = quicken_stems(nn.Sequential(copy.deepcopy(conv)))[0]
    assert type(quick) is StemConv3d
    return conv, quick


@pytest.mark.parametrize("frames", [1, 3, 5])
@pytest.mark.parametrize("size", [(8, 8), (9, 12), (15, 11), (7, 1)])
def test_output_and_gradients_are_those_of_torch(frames, size):
    conv, quick = pair(frames)
    clip = torch.randn(2, 3, 4, *size, dtype=torch.float64, requires_grad=True)
    wanted, out = conv(clip), quick(clip)
    assert torch.equal(out, wanted)
    assert "_StemConv" in type(out.grad_fn).__name__
    grad = torch.randn_like(out)
    for one, other in zip(
        torch.autograd.grad(wanted, [clip, conv.weight], grad),
        torch.autograd.grad(out, [clip, quick.weight], grad),
        strict=True,
    ):
        torch.testing.assert_close(other, one)


def test_under_autocast_they_are_of_its_type_and_the_weights_gradient_is_not():
    conv, quick = pair(5, torch.float32)
    clip = torch.randn(1, 3, 4, 16, 16, requires_grad=True)
    gradients = []
    for module in (conv, quick):
        with torch.autocast("cpu", torch.bfloat16):
            out = module(clip)
        assert out.dtype == torch.bfloat16
        gradients.append(torch.autograd.grad(out.float().square().sum(), [clip, module.weight]))
    for one, other in zip(*gradients, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, one, rtol=2e-2, atol=2e-2 * float(one.abs().max()))


def test_a_clip_without_gradient_and_a_frozen_weight_take_nothing_more():
    _, quick = pair(1)
    clip = torch.randn(1, 3, 2, 8, 8, dtype=torch.float64)
    assert "_StemConv" not in type(quick(clip).grad_fn).__name__
    quick.weight.requires_grad_(False)
    clip.requires_grad_()
    quick(clip).sum().backward()
    assert clip.grad.abs().sum() > 0
    assert quick.weight.grad is None


@pytest.mark.parametrize(
    ("recipe", "stems"), [("C2D_VMP", 1), ("I3D_VMP", 1), ("SLOWFAST_VMP_slowfast", 2)]
)
def test_the_first_convolution_of_each_pathway_is_quickened_and_no_other(recipe, stems):
    model = build_model(load_cfg(ROOT / "configs" / "MotionShapes" / f"{recipe}.yaml"))
    assert sum(isinstance(module, StemConv3d) for module in model.modules()) == stems


@pytest.mark.parametrize("other", [{"padding": 0}, {"stride": 2}, {"groups": 3}, {"bias": True}])
def test_another_convolution_stays_as_it_is(other):
    options = {"stride": (1, 2, 2), "padding": (0, 3, 3), "bias": False} | other
    net = quicken_stems(nn.Sequential(nn.Conv3d(3, 6, (1, 7, 7), **options)))
    assert type(net[0]) is nn.Conv3d
