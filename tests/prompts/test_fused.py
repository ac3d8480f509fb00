"""The fused motion prompt: the CPU kernel, the choice of a kernel, and what torch makes of it."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.prompts.kernel_cases import (
    CASES,
    make_clip,
    make_grad,
    make_layer,
    misses,
    reference,
    run,
)
from vmp.config import get_cfg
from vmp.config.check import CHOICES, check_cfg
from vmp.models.build import build_prompt
from vmp.prompts import POWER_NORMS, MotionPrompt, cpu_kernel, fused
from vmp.prompts.power_norm import sigmoid

BLOCKS = {"one block": cpu_kernel.BLOCK, "many blocks": 40}


@pytest.fixture(params=BLOCKS)
def _blocks(request, monkeypatch):
    """Have the CPU kernel cut these small clips into few and into many blocks."""
    monkeypatch.setattr(cpu_kernel, "BLOCK", BLOCKS[request.param])


# ---------------------------------------------------------------- what it computes


@pytest.mark.parametrize("name", CASES)
def test_eager_agrees_with_the_paper_in_float64(name):
    assert not misses(run(CASES[name], "eager"), *reference(CASES[name]))


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("name", CASES)
def test_the_cpu_kernel_agrees_with_the_paper_in_float64(name):
    assert not misses(run(CASES[name], "cpu"), *reference(CASES[name]))


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("name", CASES)
def test_the_cpu_kernel_agrees_with_eager(name):
    _, allowed = reference(CASES[name])
    assert not misses(run(CASES[name], "cpu"), run(CASES[name], "eager"), allowed)


@pytest.mark.parametrize("name", ["floats", "steepest of floats", "cropped floats"])
def test_eager_of_a_float64_clip_is_good_to_twelve_digits(name):
    layer = make_layer(CASES[name], "auto").double()
    prompts, variation = layer(make_clip(CASES[name]).double())
    torch.autograd.backward([prompts, variation], [make_grad(CASES[name]), torch.tensor(3.0)])
    wanted, _ = reference(CASES[name])
    assert prompts.dtype == variation.dtype == torch.float64
    assert (prompts - wanted.prompts).abs().max() <= 1e-12
    assert (variation - wanted.variation).abs() <= 1e-12
    grads = (layer.power_norm.m.grad, layer.power_norm.n.grad)
    torch.testing.assert_close(grads, (wanted.grad_m, wanted.grad_n), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_blocks")
def test_the_cpu_kernel_gives_the_same_bits_again():
    assert all(map(torch.equal, run(CASES["bytes"], "cpu"), run(CASES["bytes"], "cpu")))


@pytest.mark.parametrize("output", [0, 1], ids=["prompts", "variation"])
def test_a_loss_on_one_of_the_outputs_alone_has_its_gradients(output):
    clip, grads = make_clip(CASES["bytes"]), []
    for kernel in ("eager", "cpu"):
        layer = make_layer(CASES["bytes"], kernel)
        layer(clip)[output].square().sum().backward()
        grads.append([each.grad for each in layer.parameters()])
    assert all(each.abs() > 1e-3 for each in grads[0])
    torch.testing.assert_close(*grads)


# ---------------------------------------------------------------- what it keeps


def test_backward_keeps_the_clip_and_two_numbers():
    clip = make_clip(CASES["bytes"])
    prompts, variation = make_layer(CASES["bytes"], "cpu")(clip)
    kept = prompts.grad_fn.saved_tensors
    assert kept[0] is clip
    assert [each.numel() for each in kept[1:]] == [1, 1]
    assert variation.grad_fn is prompts.grad_fn


def test_the_clip_is_not_written_to():
    for name in ("bytes", "floats", "halves"):
        before = make_clip(CASES[name])
        clip = before.clone()
        prompts, variation = make_layer(CASES[name], "cpu")(clip)
        (prompts.sum() + variation).backward()
        assert torch.equal(clip, before)


# ---------------------------------------------------------------- torch's machinery


@pytest.mark.parametrize("kernel", ["cpu", "eager"])
def test_torch_compile_takes_it_whole(kernel):
    clip, results = make_clip(CASES["bytes"]), []
    for wrap in (lambda layer: layer, compiled):
        layer = make_layer(CASES["bytes"], kernel)
        with torch.autocast("cpu", torch.bfloat16):
            prompts, variation = wrap(layer)(clip)
        (prompts.float().square().mean() + variation).backward()
        results.append([prompts, variation, *(each.grad for each in layer.parameters())])
    assert all(map(torch.equal, *results))


def compiled(layer):
    return torch.compile(layer, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_keeps_torchs_rules(dtype):
    numbers = (torch.tensor([value], requires_grad=True) for value in (12.0, -0.2))
    how = ("rgb", (0.4, 0.5, 0.6), (0.2, 0.2, 0.2), "mean", dtype, "cpu")
    clip = make_clip(CASES["every fourth frame"])
    torch.library.opcheck(fused.motion_prompt, (clip, *numbers, *how))


def test_an_exported_program_has_no_operator_of_ours():
    program = torch.export.export(make_layer(CASES["bytes"], "auto"), (make_clip(CASES["bytes"]),))
    assert "vmp" not in str([node.target for node in program.graph.nodes])


def test_importing_the_package_imports_neither_triton_nor_a_compiler():
    heavy = ("triton", "torch._dynamo", "torch._inductor")
    code = f"import sys, vmp.prompts; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"


# ---------------------------------------------------------------- the choice


def a_clip(device="cpu", dtype=torch.uint8, requires_grad=False):
    device = SimpleNamespace(type=device)
    return SimpleNamespace(device=device, dtype=dtype, requires_grad=requires_grad)


@pytest.mark.parametrize(
    ("clip", "is_sigmoid", "picked"),
    [
        (a_clip(), True, "cpu"),
        (a_clip(dtype=torch.bfloat16), True, "cpu"),
        (a_clip("cuda"), True, "triton"),
        (a_clip("mps"), True, "eager"),
        (a_clip(dtype=torch.float64), True, "eager"),
        (a_clip("cuda", torch.float32, requires_grad=True), True, "eager"),
        (a_clip("cuda"), False, "eager"),
    ],
)
def test_auto_picks_what_can_do_it(clip, is_sigmoid, picked, monkeypatch):
    monkeypatch.setattr(fused, "HAS_TRITON", True)
    monkeypatch.setattr(fused, "_triton_lacks", lambda device: "")
    assert fused.pick_kernel("auto", clip, is_sigmoid=is_sigmoid) == picked
    assert fused.pick_kernel("eager", clip, is_sigmoid=is_sigmoid) == "eager"


@pytest.mark.parametrize(
    ("capability", "programs", "lacks"),
    [
        ((9, 0), ["gcc"], ""),
        ((9, 0), ["clang"], ""),
        ((9, 0), [], "there is no C compiler for Triton (install gcc or set CC)"),
        ((7, 0), ["gcc"], "Triton takes newer GPUs"),
    ],
)
def test_what_triton_needs_to_compile_is_looked_for(capability, programs, lacks, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)
    device = torch.device("cuda", 7)
    fused._triton_lacks.cache_clear()
    assert fused._triton_lacks(device) == lacks
    fused._triton_lacks.cache_clear()


def test_without_triton_a_gpu_has_plain_operations(monkeypatch):
    monkeypatch.setattr(fused, "HAS_TRITON", False)
    assert fused.pick_kernel("auto", a_clip("cuda"), is_sigmoid=True) == "eager"
    with pytest.raises(ValueError, match="triton is not installed; set PROMPT.KERNEL to 'auto'"):
        fused.pick_kernel("triton", a_clip("cuda"), is_sigmoid=True)


def test_a_gradient_nobody_can_ask_for_changes_nothing():
    with torch.no_grad():
        clip = a_clip(dtype=torch.float32, requires_grad=True)
        assert fused.pick_kernel("auto", clip, is_sigmoid=True) == "cpu"


@pytest.mark.parametrize(
    ("kernel", "clip", "is_sigmoid", "message"),
    [
        ("triton", a_clip(), True, "'triton', but the clip is on the device cpu"),
        ("cpu", a_clip("cuda"), True, "'cpu', but the clip is on the device cuda"),
        ("cpu", a_clip(dtype=torch.float64), True, "the clip is torch.float64"),
        ("cpu", a_clip(requires_grad=True), True, "the clip is to have a gradient"),
        ("cpu", a_clip(), False, "the power normalisation is not the paper's sigmoid"),
    ],
)
def test_a_kernel_that_cannot_do_it_is_refused(kernel, clip, is_sigmoid, message):
    with pytest.raises(ValueError, match=message):
        fused.pick_kernel(kernel, clip, is_sigmoid=is_sigmoid)


def test_a_power_norm_made_from_the_sigmoid_has_no_kernel():
    class Doubled(sigmoid):
        def forward(self, differences):
            return super().forward(2 * differences)

    clip = make_clip(CASES["bytes"])
    plain, doubled = (MotionPrompt(kind(m=0.5, n=-0.3)) for kind in (sigmoid, Doubled))
    attention = doubled.attention(clip)
    torch.testing.assert_close(
        doubled(clip)[0], plain(clip)[0] * (attention / plain.attention(clip))[:, None]
    )


def test_the_choice_is_logged_once_with_its_reason(caplog):
    fused._announce.cache_clear()
    clip = make_clip(CASES["bytes"])
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            make_layer(CASES["bytes"], "auto")(clip)
            MotionPrompt(POWER_NORMS.get("gamma")())(clip)
    assert caplog.messages == [
        "motion prompt on cpu: kernel cpu",
        "motion prompt on cpu: kernel eager, since the power normalisation is not the paper's "
        "sigmoid",
    ]


def test_a_compiled_layer_logs_its_kernel_too(caplog):
    fused._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="vmp"):
        compiled(make_layer(CASES["bytes"], "auto"))(make_clip(CASES["bytes"]))
    assert "motion prompt on cpu: kernel cpu" in caplog.messages


# ---------------------------------------------------------------- the config


def test_the_kernels_of_the_config_are_those_there_are():
    assert CHOICES["PROMPT.KERNEL"] == fused.KERNELS


@pytest.mark.parametrize("kernel", fused.KERNELS)
def test_the_config_chooses_the_kernel(kernel):
    cfg = get_cfg()
    cfg.PROMPT.KERNEL = kernel
    assert build_prompt(cfg).kernel == kernel


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["KERNEL", "triton"], "'triton', which is for a GPU, and NUM_GPUS is 0"),
        (["KERNEL", "cpu", "POWER_NORM", "gamma"], "for the power normalisation 'sigmoid', not"),
    ],
)
def test_a_kernel_that_cannot_do_what_the_config_says_is_refused(options, message):
    cfg = get_cfg()
    cfg.PROMPT.merge_from_list(["ENABLE", True, *options])
    with pytest.raises(ValueError, match=message):
        check_cfg(cfg)
