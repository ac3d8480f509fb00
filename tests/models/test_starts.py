"""Where a prompt starts, and what that does to the network behind it: MODEL_ZOO.md tells of it."""

import pytest
import torch
from torch import nn

from tests.conftest import ROOT
from vmp.config import load_cfg
from vmp.models import build_model
from vmp.prompts.functional import shift, slope

DRAWS = 200_000


def attention_of_still_pixels():
    """Return f(0) of starts drawn as the paper draws them: m and n from N(1e-5, 1)."""
    generator = torch.Generator().manual_seed(0)
    m, n = 1e-5 + torch.randn(2, DRAWS, generator=generator, dtype=torch.float64)
    return torch.sigmoid(-slope(m) * shift(n))


@pytest.mark.parametrize(
    ("low", "high", "share"),
    [(0.0, 0.01, 0.27), (0.0, 0.1, 0.40), (0.1, 0.9, 0.21), (0.9, 1.0, 0.40), (0.99, 1.0, 0.27)],
)
def test_two_of_five_random_starts_blank_still_pixels_and_two_let_them_through(low, high, share):
    still = attention_of_still_pixels()
    found = ((still >= low) & (still < high)).double().mean().item()
    assert found == pytest.approx(share, abs=0.005)


def variance_into_the_first_norm(m, n):
    """Return the median variance of what the first batch norm sees of a moving square, and eps."""
    opts = ["PROMPT.SIGMOID.M", str(m), "PROMPT.SIGMOID.N", str(n)]
    torch.manual_seed(0)
    model = build_model(load_cfg(ROOT / "configs/UTInteraction/X3D_S_VMP.yaml", opts)).train()
    ramp = torch.linspace(0, 255, 48).expand(2, 3, 9, 48, 48)
    clip = ramp.to(torch.uint8).clone()
    for step in range(9):
        clip[:, :, step, 10:26, 3 * step : 3 * step + 12] = 200
    norm = next(each for each in model.modules() if isinstance(each, nn.BatchNorm3d))
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model(clip)
    return seen[0].var(dim=(0, 2, 3, 4)).median().item(), norm.eps


def test_a_start_that_blanks_still_pixels_leaves_less_than_the_first_norm_can_scale_up():
    blanked, eps = variance_into_the_first_norm(0.6723, 1.5)
    assert blanked < eps
    let_through, eps = variance_into_the_first_norm(1.0, -1.0)
    assert let_through > 100 * eps
