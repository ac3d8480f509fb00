"""Equations 1 to 6 against float64 NumPy, written from the paper."""

import numpy as np
import pytest
import torch

from vmp.prompts import functional as F

ALPHA, BETA, GAMMA, EPS = 5.0, 0.45, 0.6, 0.1


def paper(pixels, values, m, n):
    """Eq. 1 to 6 for one video: pixels and values (T+1, H, W, 3) float64."""
    gray = pixels @ np.array([0.299, 0.587, 0.114])
    maps = []
    for earlier, later in zip(gray[:-1], gray[1:], strict=True):
        a = ALPHA / (BETA * abs(np.tanh(m)) + EPS)
        b = GAMMA * np.tanh(n)
        maps.append(1 / (1 + np.exp(-a * ((later - earlier) - b))))
    prompts = [f[..., None] * frame for f, frame in zip(maps, values[1:], strict=True)]
    pairs = zip(maps[:-1], maps[1:], strict=True)
    variation = sum(np.sum((later - earlier) ** 2) for earlier, later in pairs) / (len(maps) - 1)
    return np.stack(maps), np.stack(prompts), variation


@pytest.mark.parametrize(("m", "n"), [(0.7, -0.4), (-2.0, 1.5), (1e-5, 1e-5), (30.0, -30.0)])
def test_equations_agree_with_the_paper_in_float64(m, n):
    rng = np.random.default_rng(0)
    videos = rng.random((2, 6, 5, 7, 3))
    scaled = (videos - 0.45) / 0.225
    wanted = [paper(video, value, m, n) for video, value in zip(videos, scaled, strict=True)]

    pixels = torch.from_numpy(videos).permute(0, 4, 1, 2, 3)
    values = torch.from_numpy(scaled).permute(0, 4, 1, 2, 3)
    a = F.slope(torch.tensor([m], dtype=torch.float64))
    b = F.shift(torch.tensor([n], dtype=torch.float64))
    scales = F.clip_scales(torch.float64, mean=(0.0,) * 3, std=(1.0,) * 3)
    attention = F.power_normalization(F.frame_differences(pixels, scales), a, b)
    prompts = F.motion_prompts(attention, values)

    np.testing.assert_allclose(attention, np.stack([w[0] for w in wanted]), atol=1e-13)
    channels_last = prompts.permute(0, 2, 3, 4, 1)
    np.testing.assert_allclose(channels_last, np.stack([w[1] for w in wanted]), atol=1e-13)
    printed = np.mean([w[2] for w in wanted])
    assert float(F.attention_variation(attention, "frobenius")) == pytest.approx(printed, rel=1e-12)
    averaged = printed / (5 * 7)
    assert float(F.attention_variation(attention)) == pytest.approx(averaged, rel=1e-12)


def test_slope_and_shift_keep_to_the_ranges_the_paper_states():
    m = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    a, b = F.slope(m), F.shift(m)
    assert a.min() >= ALPHA / (BETA + EPS) - 1e-12
    assert a.max() <= ALPHA / EPS
    assert b.abs().max() <= GAMMA


def test_gradient_of_slope_is_the_closed_form():
    m = torch.tensor([0.3, -1.1, 2.0], dtype=torch.float64, requires_grad=True)
    F.slope(m).sum().backward()
    value = m.detach().numpy()
    below = BETA * np.abs(np.tanh(value)) + EPS
    wanted = -ALPHA * BETA * np.sign(value) / np.cosh(value) ** 2 / below**2
    np.testing.assert_allclose(m.grad, wanted, rtol=1e-12)


def test_attention_of_equation_3_is_half_at_the_shift_and_grows():
    a, b = torch.tensor([12.0]), torch.tensor([0.2])
    differences = torch.linspace(-1, 1, 201)
    attention = F.power_normalization(differences, a, b)
    assert (attention.diff() >= 0).all()
    assert F.power_normalization(b, a, b) == 0.5


def test_normalize_and_to_pixels_are_inverse():
    clip = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    pixels = F.to_pixels(F.normalize(clip, mean, std), mean, std)
    torch.testing.assert_close(pixels, clip.float() / 255)
    assert torch.equal(F.to_pixels(clip, mean, std), clip.float() / 255)


def test_luma_of_the_release_swaps_red_and_blue():
    pixels = torch.rand(1, 3, 3, 4, 4)
    rgb, bgr = (F.clip_scales(torch.float32, (0.5,) * 3, (0.2,) * 3, luma) for luma in F.LUMA)
    swapped = F.frame_differences(pixels.flip(1), bgr)
    torch.testing.assert_close(F.frame_differences(pixels, rgb), swapped)
    assert not torch.allclose(swapped, F.frame_differences(pixels.flip(1), rgb))


def test_differences_of_bytes_and_of_normalised_frames_are_those_of_the_grey_pixels():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    clip = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    red, green, blue = (clip.double() / 255).unbind(1)
    wanted = (0.299 * red + 0.587 * green + 0.114 * blue).diff(dim=1)
    bytes_, floats = clip, F.normalize(clip, mean, std)
    for given, error in ((bytes_, 6e-8), (floats, 3e-7)):
        differences = F.frame_differences(given, F.clip_scales(given.dtype, mean, std))
        assert differences.dtype == torch.float32
        assert (differences - wanted).abs().max() <= error


def test_the_largest_sum_of_bytes_is_exact():
    clip = torch.full((1, 3, 2, 1, 1), 255, dtype=torch.uint8)
    clip[:, :, 0] = 0
    clip[:, 2, 1] = 254  # 114 thousandths of a 255th less
    difference = F.frame_differences(clip, F.clip_scales(torch.uint8, (0.5,) * 3, (0.2,) * 3))
    assert difference == torch.tensor(254_886 / 255_000)
