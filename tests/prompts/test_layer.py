"""The motion prompt layer: claims of the paper, inputs it takes and refuses, precision."""

import pytest
import torch

from vmp.prompts import POWER_NORMS, MotionPrompt
from vmp.prompts.functional import normalize
from vmp.prompts.fused import KERNELS
from vmp.prompts.power_norm import PowerNorm, identity, sigmoid

MEAN, STD = (0.45,) * 3, (0.225,) * 3


@pytest.fixture
def layer():
    return MotionPrompt(sigmoid(m=0.5, n=-0.3))


def bytes_clip(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_one_frame_more_gives_as_many_prompts_as_the_backbone_wants(layer):
    prompts, variation = layer(bytes_clip(2, 3, 9, 8, 10))
    assert prompts.shape == (2, 3, 8, 8, 10)
    assert variation.shape == ()


def test_bytes_and_normalised_floats_give_the_same(layer):
    clip = bytes_clip(2, 3, 5, 8, 8)
    from_bytes, variation = layer(clip)
    from_floats, other = layer(normalize(clip, MEAN, STD))
    torch.testing.assert_close(from_bytes, from_floats, atol=1e-5, rtol=0)
    torch.testing.assert_close(variation, other, atol=1e-6, rtol=0)


def test_bytes_and_floats_agree_for_another_mean_and_deviation():
    layer = MotionPrompt(sigmoid(m=0.5, n=-0.3), mean=(0.485, 0.456, 0.406), std=(0.3, 0.2, 0.1))
    clip = bytes_clip(1, 3, 4, 8, 8)
    floats = normalize(clip, layer.mean, layer.std)
    torch.testing.assert_close(layer.attention(clip), layer.attention(floats), atol=1e-5, rtol=0)


def test_a_still_video_has_no_variation_and_constant_attention(layer):
    still = bytes_clip(2, 3, 1, 6, 6).expand(2, 3, 5, 6, 6)
    prompts, variation = layer(still)
    assert variation == 0
    attention = layer.attention(still)
    assert (attention == layer.power_norm.describe()["f0"]).all()
    wanted = attention[:, None] * normalize(still, MEAN, STD)[:, :, 1:]
    torch.testing.assert_close(prompts, wanted, atol=2e-6, rtol=0)
    layer.kernel = "eager"
    assert torch.equal(layer(still)[0], wanted)


def test_full_attention_gives_the_frames_back():
    clip = bytes_clip(1, 3, 4, 6, 6)
    layer = MotionPrompt(One())
    prompts, variation = layer(clip)
    assert torch.equal(prompts, normalize(clip, MEAN, STD)[:, :, 1:])
    assert variation == 0


class One(PowerNorm):
    def forward(self, differences):
        return torch.ones_like(differences)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_prompts_of_the_identity_are_the_frames_to_the_bit(kernel, dtype, autocast):
    clip = bytes_clip(2, 3, 5, 7, 9)
    if dtype != torch.uint8:
        clip = normalize(clip, MEAN, STD).to(dtype)
    one, plain = (
        MotionPrompt(norm, kernel=how) for norm, how in ((identity(), kernel), (One(), "eager"))
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        prompts, variation = one(clip)
        wanted, still = plain(clip)
    assert prompts.dtype == wanted.dtype
    assert torch.equal(prompts, wanted)
    assert torch.equal(prompts, normalize(clip, MEAN, STD)[:, :, 1:].to(prompts.dtype))
    assert (variation, variation.dtype) == (0, still.dtype)
    assert (one.attention(clip) == 1).all()


@pytest.mark.parametrize("reduction", ["mean", "frobenius"])
def test_gradients_of_m_and_n_are_those_of_finite_differences(reduction):
    clip = normalize(bytes_clip(1, 3, 4, 3, 3), MEAN, STD).double()

    def loss(m, n):
        layer = MotionPrompt(sigmoid(m=0.5, n=0.2).double(), reduction=reduction)
        values = {"power_norm.m": m, "power_norm.n": n}
        prompts, variation = torch.func.functional_call(layer, values, (clip,))
        return prompts.square().mean() + 2.5 * variation

    start = [
        torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.6, -0.2)
    ]
    assert torch.autograd.gradcheck(loss, start)


def test_the_input_gets_a_gradient_too(layer):
    clip = torch.randn(1, 3, 4, 5, 5, requires_grad=True)
    prompts, variation = layer(clip)
    (prompts.sum() + variation).backward()
    assert clip.grad.abs().sum() > 0


def test_m_and_n_start_from_the_papers_distribution():
    layers = [sigmoid() for _ in range(2000)]
    for name in ("m", "n"):
        drawn = torch.cat([getattr(layer, name).detach() for layer in layers])
        assert abs(drawn.mean()) < 0.1
        assert abs(drawn.std() - 1) < 0.1


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("m", "n"), [(1e-4, 5.0), (1e-4, -5.0), (1e-4, 0.0)])
def test_extreme_clips_stay_finite_under_autocast(half, m, n):
    layer = MotionPrompt(sigmoid(m=m, n=n))
    clip = torch.zeros(1, 3, 6, 8, 8, dtype=torch.uint8)
    clip[:, :, ::2] = 255  # differences of -1 and 1 everywhere
    with torch.autocast("cpu", half):
        prompts, variation = layer(clip)
        loss = prompts.square().mean() + variation
    loss.backward()
    assert prompts.dtype == half
    assert variation.dtype == torch.float32
    for value in (prompts, variation, layer.power_norm.m.grad, layer.power_norm.n.grad):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("power_norm", [sigmoid, POWER_NORMS.get("gamma")])
def test_autocast_rounds_the_prompts_and_changes_nothing_else(half, power_norm):
    layer, clip = MotionPrompt(power_norm()), bytes_clip(1, 3, 5, 8, 8)
    plain = layer(clip)
    with torch.autocast("cpu", half):
        cast = layer(clip)
    assert torch.equal(plain[0].to(half), cast[0])
    assert torch.equal(plain[1], cast[1])


def test_autocast_leaves_float64_alone(layer):
    with torch.autocast("cpu", torch.bfloat16):
        prompts, variation = layer.double()(torch.rand(1, 3, 4, 5, 5, dtype=torch.float64))
    assert prompts.dtype == variation.dtype == torch.float64


def test_half_precision_clips_are_computed_in_float32(layer):
    clip = normalize(bytes_clip(1, 3, 5, 8, 8), MEAN, STD).half()
    prompts, variation = layer(clip)
    assert prompts.dtype == variation.dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 3, 2, 8, 8), "2 frames"), ((2, 1, 9, 8, 8), "RGB"), ((3, 9, 8, 8), "RGB")],
)
def test_clips_of_another_shape_are_refused(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer(torch.rand(shape))


@pytest.mark.parametrize("options", [{"luma": "hsv"}, {"reduction": "sum"}, {"kernel": "cuda"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="must be one of"):
        MotionPrompt(**options)


def test_no_parameters_but_m_and_n():
    names = [name for name, _ in MotionPrompt().named_parameters()]
    assert names == ["power_norm.m", "power_norm.n"]
