import numpy as np
import pytest
import torch

from vmp.config.defaults import get_cfg
from vmp.solver import Mixing, build_mixing
from vmp.solver.mixing import random_box


def generator(seed):
    return torch.Generator().manual_seed(seed)


def constant_clips(count, frames=3, height=7, width=9):
    """Clip i holds the value i in every pixel, so a mixed pixel shows its shares."""
    values = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1, 1)
    return values.expand(count, 3, frames, height, width).clone(), torch.arange(count)


@pytest.mark.parametrize("method", ["mixup_alpha", "cutmix_alpha"])
@pytest.mark.parametrize("seed", range(20))
def test_targets_hold_the_exact_share_of_every_clip_in_the_pixels(method, seed):
    clip, label = constant_clips(5)
    mixed, target = Mixing(num_classes=5, **{method: 1.0})(clip, label, generator(seed))
    mean = mixed.double().mean(dim=(1, 2, 3, 4))  # of the values i, weighted by their shares
    torch.testing.assert_close(target.double() @ label.double(), mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(5))
    assert target.min() >= 0


@pytest.mark.parametrize("method", ["mixup_alpha", "cutmix_alpha"])
def test_every_frame_and_channel_is_mixed_alike(method):
    clip, label = constant_clips(4)
    mixed, target = Mixing(num_classes=4, **{method: 1.0})(clip, label, generator(1))
    assert (mixed == mixed[:, :1, :1]).all()
    assert (target.amax(dim=1) < 1).any()  # it did mix


def test_cutmix_pastes_one_box_and_leaves_the_rest():
    clip, label = constant_clips(6, height=16, width=16)
    mixed, _ = Mixing(num_classes=6, cutmix_alpha=1.0)(clip, label, generator(3))
    picture = mixed[:, 0, 0]
    changed = (picture != label.view(-1, 1, 1)).any(dim=0)
    rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
    box = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.all()
    assert changed.sum() == box.numel()
    assert 0 < box.numel() < changed.numel()


def test_shares_are_drawn_from_the_beta_distribution():
    clip, label = constant_clips(2, frames=1, height=1, width=1)
    mixing, rng = Mixing(num_classes=2, mixup_alpha=0.3), generator(0)
    shares = [mixing(clip, label, rng)[0][0].mean().item() for _ in range(4000)]
    swapped = torch.tensor([share for share in shares if share > 0], dtype=torch.float64)
    # half of the permutations of two are the identity; Beta(a, a) has variance 1 / (4 (2a + 1))
    assert len(swapped) / 4000 == pytest.approx(0.5, abs=0.03)
    assert swapped.mean().item() == pytest.approx(0.5, abs=0.03)
    assert swapped.var().item() == pytest.approx(1 / (4 * 1.6), abs=0.015)


def test_the_generator_decides_everything():
    clip, label = torch.randn(4, 3, 2, 5, 5), torch.arange(4)
    mixing = Mixing(num_classes=4, mixup_alpha=0.8, cutmix_alpha=1.0)
    first, again, results = generator(7), generator(7), []
    for _ in range(10):
        one = mixing(clip, label, first)
        torch.rand(1)  # the global generator has no part in it
        other = mixing(clip, label, again)
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        results.append(one[0].abs().sum().item())
    assert len(set(results)) > 5


def test_with_both_on_each_is_drawn_half_of_the_time():
    clip, label = constant_clips(2, frames=1, height=8, width=8)
    mixing, rng = Mixing(num_classes=2, mixup_alpha=5.0, cutmix_alpha=5.0), generator(0)
    mixed = [mixing(clip, label, rng)[0][0] for _ in range(800)]
    mixed = [picture for picture in mixed if picture.max() > 0]
    pasted = sum(bool((picture == picture.round()).all()) for picture in mixed)
    assert pasted / len(mixed) == pytest.approx(0.5, abs=0.08)


def test_the_batch_given_is_not_changed():
    clip, label = torch.randn(4, 3, 2, 6, 6), torch.arange(4)
    before = clip.clone()
    for seed in range(10):
        Mixing(num_classes=4, mixup_alpha=1.0, cutmix_alpha=1.0)(clip, label, generator(seed))
    assert torch.equal(clip, before)


def test_boxes_stay_inside_and_have_the_wanted_area_unless_cut():
    draw = np.random.default_rng(0)
    for share in draw.uniform(size=500):
        top, bottom, left, right = random_box(50, 80, share, draw)
        assert 0 <= top <= bottom <= 50
        assert 0 <= left <= right <= 80
        if top > 0 and bottom < 50 and left > 0 and right < 80:
            wanted = np.sqrt(share) * np.array([50, 80])
            assert abs(bottom - top - wanted[0]) <= 1
            assert abs(right - left - wanted[1]) <= 1


def test_the_config_switches_mixing():
    cfg = get_cfg()
    assert build_mixing(cfg) is None
    cfg.MODEL.NUM_CLASSES, cfg.TRAIN.MIXUP_ALPHA = 6, 0.8
    mixing = build_mixing(cfg)
    assert (mixing.num_classes, mixing.alphas) == (6, {"mixup": 0.8})
    cfg.TRAIN.CUTMIX_ALPHA = 1.0
    assert build_mixing(cfg).alphas == {"mixup": 0.8, "cutmix": 1.0}
    cfg.TRAIN.CUTMIX_ALPHA = -1.0
    with pytest.raises(ValueError, match="CUTMIX_ALPHA -1"):
        build_mixing(cfg)


def test_uint8_clips_are_refused():
    clip = torch.zeros(2, 3, 2, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="normalise it to float"):
        Mixing(num_classes=2, mixup_alpha=1.0)(clip, torch.arange(2), generator(0))
