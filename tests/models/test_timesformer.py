"""TimeSformer: the three kinds of attention, stochastic depth, initialisation, resizing."""

import json

import pytest
import torch

from vmp.models import BACKBONES
from vmp.models.timesformer import DropPath, TimeSformer, resize_positions, resize_times

KINDS = ["divided_space_time", "space_only", "joint_space_time"]
SIZES = {"num_classes": 5, "num_frames": 4, "crop_size": 32, "dropout_rate": 0.0}
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 16}


def make_net(kind: str = "divided_space_time", **kwargs) -> TimeSformer:
    backbone = BACKBONES.get("timesformer")(**SIZES, **(TINY | kwargs), attention_type=kind)
    return backbone.net.eval()


def wake(net: TimeSformer) -> TimeSformer:
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_only_attention_over_time_sees_the_order_of_frames(kind):
    net = wake(make_net(kind))
    clip = torch.randn(1, 3, 4, 32, 32)
    differs = not torch.allclose(net(clip), net(clip.flip(2)), atol=1e-5)
    assert differs == (kind != "space_only")


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_and_place_counts(kind):
    net = wake(make_net(kind))
    clip = torch.randn(1, 3, 4, 32, 32)
    logits = net(clip)
    for frame in range(4):
        changed = clip.clone()
        changed[:, :, frame, :16, 16:] += 1
        assert not torch.allclose(net(changed), logits, atol=1e-5)


@torch.no_grad()
def test_joint_attention_is_a_vit_over_all_patches_of_the_clip():
    """With equal time embeddings, one tall frame of all patches gives the same."""
    net = wake(make_net("joint_space_time"))
    net.time_embed.zero_()
    positions = net.pos_embed[:, 1:].repeat(1, 4, 1)
    clip = torch.randn(1, 3, 4, 32, 32)
    patches = net.patch_embed(clip[0].transpose(0, 1)).flatten(2).transpose(1, 2).flatten(0, 1)
    tokens = torch.cat((net.cls_token + net.pos_embed[:, :1], patches[None] + positions), dim=1)
    for block in net.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(net.features(clip), net.norm(tokens[:, 0]))


@torch.no_grad()
def test_fresh_temporal_layers_add_nothing():
    net = make_net()
    assert not any(block.temporal_fc.weight.any() for block in net.blocks)
    clip = torch.randn(1, 3, 4, 32, 32)
    before = net(clip)
    for block in net.blocks:
        block.temporal_attn.proj.weight.normal_()
    assert torch.equal(net(clip), before)


@pytest.mark.parametrize("training", [False, True])
def test_the_last_block_leaves_out_only_what_nobody_reads(training):
    block = wake(make_net(drop_path_rate=0.3)).double().train(training).blocks[-1]
    class_token, patches = torch.randn(8, 24).double(), torch.randn(4, 8, 4, 24).double()
    results = []
    for class_only in (False, True):
        torch.manual_seed(1)
        out = block(class_token, patches, class_only=class_only)[0]
        grads = torch.autograd.grad(out.square().sum(), list(block.parameters()))
        results.append([out, *grads])
    for full, spared in zip(*results, strict=True):
        torch.testing.assert_close(spared, full)


def test_a_clip_s_class_token_and_patches_skip_the_mlp_together():
    block = wake(make_net(drop_path_rate=0.5)).blocks[-1].train()
    for parameter in (*block.attn.proj.parameters(), *block.temporal_fc.parameters()):
        torch.nn.init.zeros_(parameter)
    class_token, patches = torch.randn(16, 24), torch.randn(4, 16, 4, 24)
    after_class, after_patches = block(class_token, patches)
    skipped = (after_class == class_token).all(dim=1)
    assert 0 < skipped.sum() < 16
    assert torch.equal((after_patches == patches).all(dim=3).all(dim=2).all(dim=0), skipped)


def test_fresh_weights_are_those_of_the_original():
    net = make_net(embed_dim=192)
    assert not net.time_embed.any()
    for weight in (net.pos_embed, net.blocks[0].attn.qkv.weight, net.blocks[1].mlp.fc1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(p.any() for n, p in net.named_parameters() if n.endswith("qkv.bias"))


def test_drop_path_drops_rows_and_keeps_the_mean():
    drop = DropPath(0.25)
    rows = torch.ones(40000, 3)
    out = drop.train()(rows)
    assert sorted(set(out.flatten().tolist())) == pytest.approx([0, 1 / 0.75])
    assert torch.equal(out[:, 0], out[:, 2])
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(drop.eval()(rows), rows)


def test_stochastic_depth_grows_from_zero_to_its_rate():
    net = make_net(depth=5, drop_path_rate=0.2)
    rates = [block.drop_path.rate for block in net.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert make_net(depth=1, drop_path_rate=0.2).blocks[0].drop_path.rate == 0


@pytest.mark.data
def test_times_are_resized_to_the_nearest_frame(shared):
    loading = json.loads((shared / "golden" / "timesformer_loading.json").read_text())
    times = torch.arange(8.0).view(1, 8, 1)
    for name, sources in loading["time_embed_source_frame"].items():
        target = int(name.split("->")[1])
        assert resize_times(times, target).flatten().tolist() == sources


def test_positions_are_resized_as_a_grid():
    grid = torch.arange(4.0).view(1, 4, 1)  # 0 1 / 2 3
    out = resize_positions(grid, 2, (4, 2)).flatten().tolist()
    assert out == [0, 1, 0, 1, 2, 3, 2, 3]


def test_a_crop_that_patches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="40 x 32 pixels was given; TIMESFORMER.PATCH_SIZE 16"):
        make_net()(torch.zeros(1, 3, 4, 40, 32))
