"""The layer against reference outputs of the authors' layer and of a float64 transcription."""

import json

import numpy as np
import pytest
import torch

from vmp.prompts import MotionPrompt
from vmp.prompts.power_norm import sigmoid

pytestmark = pytest.mark.data

PENALTY = 2.5
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
# grey order of ours: what golden calls the section, and the suffix of its arrays
ORDERS = {"bgr": "authors_gray", "rgb": "rgb_gray"}


@pytest.fixture(scope="module")
def golden(shared, fill):
    folder = shared / "golden"
    spec = json.loads((folder / "motion_prompt_layer.json").read_text())
    return fill, spec, np.load(folder / "motion_prompt_layer.npz")


def run(fill, case, luma, dtype):
    """Return the layer's outputs and gradients for one case in `dtype`."""
    shape = case["clip_shape"]
    clip = torch.from_numpy(fill.clip(case["clip_key"], shape)).to(dtype)
    layer = MotionPrompt(sigmoid(m=0.5, n=0.0), luma=luma).to(dtype)
    with torch.no_grad():
        layer.power_norm.m.fill_(case["m"])
        layer.power_norm.n.fill_(case["n"])
    prompts, variation = layer(clip)
    probe = fill.unit(case["clip_key"] + ":probe", prompts.numel()).astype(np.float32)
    probe = torch.from_numpy(probe).to(dtype).view_as(prompts)
    loss = (prompts * probe).mean() + PENALTY * variation
    loss.backward()
    return {
        "attention": layer.attention(clip),
        "prompts": prompts,
        "reg": PENALTY * variation,  # the release weights it inside the layer
        "loss": loss,
        "grad_m": layer.power_norm.m.grad,
        "grad_n": layer.power_norm.n.grad,
    }


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("luma", ORDERS)
def test_scalars_and_gradients_agree_in_every_case(golden, luma, dtype):
    fill, spec, _ = golden
    assert len(spec["cases"]) == 14
    for case in spec["cases"]:
        ours = run(fill, case, luma, dtype)
        wanted = case["equations_f64"][ORDERS[luma]]
        for name in ("reg", "loss", "grad_m", "grad_n"):
            difference = abs(float(ours[name].detach()) - wanted[name])
            assert difference <= TOLERANCE[dtype] * max(1.0, abs(wanted[name])), (case, name)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_stored_attention_and_prompts_agree(golden, dtype):
    # the arrays are the authors' own float32 results, so their rounding bounds both precisions
    fill, spec, arrays = golden
    stored = [
        (luma, ours, case, arrays[case[key]])
        for case in spec["cases"]
        for luma, ours, key in (
            ("bgr", "attention", "attention"),
            ("bgr", "prompts", "prompt"),
            ("rgb", "attention", "attention_rgb_gray"),
        )
        if key in case
    ]
    assert len(stored) == len(arrays.files) == 10
    for luma, ours, case, wanted in stored:
        result = run(fill, case, luma, dtype)[ours].detach().double().numpy()
        assert np.abs(result - wanted).max() <= TOLERANCE[torch.float32], (case, ours)


@pytest.mark.parametrize("luma", ORDERS)
def test_frobenius_reduction_agrees_with_equation_6_as_printed(golden, luma):
    fill, spec, _ = golden
    for case in spec["cases"]:
        clip = torch.from_numpy(fill.clip(case["clip_key"], case["clip_shape"])).double()
        power_norm = sigmoid(m=case["m"], n=case["n"], learnable=False).double()
        power_norm.m.fill_(case["m"])
        power_norm.n.fill_(case["n"])
        _, variation = MotionPrompt(power_norm, luma=luma, reduction="frobenius")(clip)
        kind = "authors_gray" if luma == "bgr" else "rgb_gray"
        summed = case["equations_f64"][f"V_paper_eq6_summed_over_batch_{kind}"]
        assert float(variation) * len(clip) == pytest.approx(summed, rel=1e-12)
