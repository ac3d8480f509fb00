"""The Triton kernel: what it computes, through Triton's interpreter, and what becomes of it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.prompts.kernel_cases import (
    CASES,
    MEAN,
    STD,
    Case,
    Result,
    make_clip,
    make_grad,
    make_layer,
    misses,
    reference,
    run,
)
from vmp.prompts.functional import clip_scales

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Return the result of each case, and of "bytes" once more."""
    file = tmp_path_factory.mktemp("interpreted") / "results.pt"
    command = [sys.executable, "-m", "tests.prompts.run_interpreted", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    results = torch.load(file)
    return {name: Result(*result) for name, result in results.items()}


@pytest.mark.parametrize("name", CASES)
def test_it_agrees_with_the_paper_in_float64(interpreted, name):
    assert not misses(interpreted[name], *reference(CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_it_agrees_with_eager(interpreted, name):
    _, allowed = reference(CASES[name])
    assert not misses(interpreted[name], run(CASES[name], "eager"), allowed)


@pytest.mark.parametrize("name", CASES)
def test_prompts_have_autocasts_type_and_the_rest_is_float32(interpreted, name):
    result = interpreted[name]
    assert result.prompts.dtype == CASES[name].out
    assert {each.dtype for each in result[1:]} == {torch.float32}


def test_it_gives_the_same_bits_again(interpreted):
    assert all(map(torch.equal, interpreted["bytes"], interpreted["again"]))


@pytest.fixture(params=[80, 90], ids=["sm80", "sm90"])
def assemblies(request, monkeypatch, tmp_path):
    """Have launches compiled for a GPU that is not there, run nothing, and append the assembly."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from vmp.prompts import triton_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    target, found = GPUTarget("cuda", request.param, 32), []
    absent = SimpleNamespace(
        get_current_target=lambda: target,
        # kernels are kept by this number: one that no device has
        get_current_device=lambda: -request.param,
        get_current_stream=lambda device: 0,
    )
    for name in ("_forward", "_backward"):
        monkeypatch.setattr(triton_kernel, name, Compiled(getattr(triton_kernel, name), found))
    monkeypatch.setattr(driver, "_active", absent)
    return found


class Compiled:
    """Stands for a kernel: compiles what would be launched."""

    def __init__(self, kernel, found):
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.found.append(self.kernel.warmup(*args, grid=grid, **options).asm["ptx"])

        return launch


def moved(assembly, direction):
    return set(re.findall(direction + r"\.global\.((?:v\d\.)?b\d+)", assembly))


@pytest.mark.parametrize(
    ("case", "wide"),
    [
        (Case((2, 3, 5, 32, 48)), "v4.b32"),
        (Case((2, 3, 5, 32, 48), out=torch.bfloat16), "v2.b32"),
    ],
    ids=["float32", "bfloat16"],
)
def test_it_compiles_for_a_gpu_and_moves_four_pixels_at_once(case, wide, assemblies):
    launch_both(case)
    forward, backward = assemblies
    # b32 is four bytes of the clip, and the numbers a, b and the sums
    assert (moved(forward, "ld"), moved(forward, "st")) == ({"b32"}, {"b32", wide})
    assert (moved(backward, "ld"), moved(backward, "st")) == ({"b32", wide}, {"b32"})


@pytest.mark.parametrize("name", ["one pixel", "channels last", "cropped floats", "halves"])
def test_it_compiles_for_a_gpu_whatever_the_strides(name, assemblies):
    launch_both(CASES[name])
    assert len(assemblies) == 2


def launch_both(case):
    from vmp.prompts import triton_kernel

    clip, one = make_clip(case), torch.ones(1)
    scales = clip_scales(case.dtype, MEAN, STD)
    grad = make_grad(case)
    prompts = torch.empty(grad.shape, dtype=case.out)
    squares = triton_kernel.forward(prompts, clip, one, one, scales)
    triton_kernel.backward(grad, squares.float(), clip, one, one, scales)


gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


class TestOnAGPU:
    pytestmark = gpu

    @pytest.mark.parametrize("name", CASES)
    def test_it_agrees_with_the_paper_in_float64(self, name):
        assert not misses(run(CASES[name], "triton", "cuda"), *reference(CASES[name]))

    def test_it_gives_the_same_bits_again(self):
        first, second = (run(CASES["bytes"], "triton", "cuda") for _ in range(2))
        assert all(map(torch.equal, first, second))

    def test_it_makes_nothing_wait(self):
        layer = make_layer(CASES["bytes"], "auto").cuda()
        clip, grad = (make(CASES["bytes"], "cuda") for make in (make_clip, make_grad))
        try:
            for _ in range(2):  # the first compiles
                prompts, variation = layer(clip)
                torch.autograd.backward([prompts, variation], [grad, torch.ones_like(variation)])
                torch.cuda.set_sync_debug_mode("error")
        finally:
            torch.cuda.set_sync_debug_mode("default")
