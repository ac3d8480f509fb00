"""Weights into a model: what is used, derived and reported, and what is refused."""

import json
import re

import pytest
import torch
from torch import nn

from tests.models.tiny import TINY
from vmp.models import BACKBONES, VideoModel, load_pretrained
from vmp.models.key_maps import NET
from vmp.prompts import MotionPrompt


def make(name: str, *, classes: int = 5, crop: int = 32, frames: int = 8, prompt=False, **kwargs):
    """Return a model whose every entry has a value of its own."""
    make_backbone = BACKBONES.get(name)
    sizes = {"num_classes": classes, "num_frames": frames, "crop_size": crop}
    prompts = {0: MotionPrompt(luma="bgr")} if prompt else {}
    backbone = make_backbone(**sizes, **(TINY[name] | kwargs))
    model = VideoModel(backbone, num_frames=frames, prompts=prompts)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 1)
    return model


def inside(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n.removeprefix(NET): v for n, v in model.state_dict().items() if n.startswith(NET)}


def as_pyslowfast(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict under PySlowFast's names, as another code base would write it."""
    own = inside(model)
    slowfast = "blocks.0.multipathway_blocks.0.conv.weight" in own
    x3d = "blocks.0.conv.conv_t.weight" in own
    pooled = not any(name.startswith("blocks.2.") for name in own)
    stages = {1: 2, 3: 3, 4: 4, 5: 5} if pooled else {1: 2, 2: 3, 3: 4, 4: 5}
    return {theirs(name, stages, slowfast, x3d): value for name, value in own.items()}


def theirs(name: str, stages: dict[int, int], slowfast: bool, x3d: bool) -> str:
    fused = re.fullmatch(r"blocks\.(\d)\.multipathway_fusion\.(conv_fast_to_slow|norm)\.(.+)", name)
    if fused:
        part = {"conv_fast_to_slow": "conv_f2s", "norm": "bn"}[fused[2]]
        return f"s{int(fused[1]) + 1}_fuse.{part}.{fused[3]}"
    if re.match(r"blocks\.\d\.proj\.", name):
        return "head.projection." + name.split("proj.")[1]
    head = {"pool.pre_conv": "conv_5", "pool.pre_norm": "conv_5_bn", "pool.post_conv": "lin_5"}
    for ours, other in head.items():
        if f".{ours}." in name:
            return f"head.{other}." + name.split(f"{ours}.")[1]
    if slowfast:
        block, pathway, rest = re.fullmatch(r"blocks\.(\d)\.\w+\.(\d)\.(.+)", name).groups()
    else:
        block, rest = re.fullmatch(r"blocks\.(\d)\.(.+)", name).groups()
        pathway = "0"
    if block == "0":
        crossed = {"conv.conv_t": "conv_xy", "conv.conv_xy": "conv"} if x3d else {"conv": "conv"}
        for ours, other in (crossed | {"norm": "bn"}).items():
            rest = re.sub(rf"^{ours}\.(weight|bias|running_\w+|num_\w+)$", rf"{other}.\1", rest)
        return f"s1.pathway{pathway}_stem.{rest}"
    number, rest = re.fullmatch(r"res_blocks\.(\d+)\.(.+)", rest).groups()
    for ours, other in (
        (r"branch1_conv", "branch1"),
        (r"branch1_norm", "branch1_bn"),
        (r"branch2\.conv_(\w)", r"branch2.\1"),
        (r"branch2\.norm_b\.0", r"branch2.b_bn"),
        (r"branch2\.norm_b\.1\.block\.0", r"branch2.se.fc1"),
        (r"branch2\.norm_b\.1\.block\.2", r"branch2.se.fc2"),
        (r"branch2\.norm_(\w)", r"branch2.\1_bn"),
    ):
        rest = re.sub(rf"^{ours}\.", f"{other}.", rest)
    return f"s{stages[int(block)]}.pathway{pathway}_res{number}.{rest}"


def write(path, state, container="model_state", cfg="A: 1"):
    torch.save({container: state, "epoch": 3, "cfg": cfg} if container else state, path)
    return path


def as_timesformer(model: nn.Module) -> dict[str, torch.Tensor]:
    return {f"model.{name}": value for name, value in inside(model).items()}


def as_image_vit(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what of a TimeSformer an image ViT has, under timm's names."""
    still = {n: v for n, v in inside(model).items() if "temporal" not in n and n != "time_embed"}
    return still | {"pre_logits.fc.weight": torch.ones(2, 2)}


def as_image_network(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict whose kernels are 2-D: the sums over time."""
    return {name: v.sum(dim=2) if v.ndim == 5 else v for name, v in state.items()}


def assert_equal(model: nn.Module, other: nn.Module, but: str = "^$") -> None:
    expected = other.state_dict()
    for name, value in model.state_dict().items():
        if not re.search(but, name):
            assert torch.equal(value, expected[name]), name


CONVOLUTIONAL = ["slowfast", "c2d", "i3d", "x3d"]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_pyslowfast_checkpoint_is_loaded_whole(name, tmp_path):
    other, model = make(name), make(name)
    report = load_pretrained(model, write(tmp_path / "a.pyth", as_pyslowfast(other)))
    assert_equal(model, other)
    assert report.source == "pyslowfast"
    assert set(report.used) == set(model.state_dict())
    assert not report.missing + report.unexpected + report.resized + report.dropped
    assert report.derived == ()
    assert report.facts["epoch"] == 3


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_pytorchvideo_checkpoint_is_loaded_whole(name, tmp_path):
    other, model = make(name), make(name)
    report = load_pretrained(model, write(tmp_path / "a.pyth", inside(other)))
    assert_equal(model, other)
    assert report.source == "pytorchvideo"


@pytest.mark.parametrize("container", ["model_state", None])
def test_a_timesformer_checkpoint_is_loaded_whole(container, tmp_path):
    other, model = make("timesformer"), make("timesformer")
    report = load_pretrained(model, write(tmp_path / "a.pyth", as_timesformer(other), container))
    assert_equal(model, other)
    assert report.source == "timesformer"


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrapped_the_saved_model_does_not_matter(wrapper, tmp_path):
    other, model = make("x3d"), make("x3d")
    state = {wrapper + name: value for name, value in as_pyslowfast(other).items()}
    load_pretrained(model, write(tmp_path / "a.pyth", state))
    assert_equal(model, other)


def test_the_release_s_prompt_is_loaded_with_its_backbone(tmp_path):
    other, model = make("timesformer", prompt=True), make("timesformer", prompt=True)
    layer = other.prompts["0"].power_norm
    state = {"vmps.m": layer.m, "vmps.n": layer.n} | as_timesformer(other)
    report = load_pretrained(model, write(tmp_path / "a.pyth", state))
    assert_equal(model, other)
    assert {"prompts.0.power_norm.m", "prompts.0.power_norm.n"} < set(report.used)


def test_the_release_s_prompt_with_the_other_grey_is_warned_of(tmp_path, caplog):
    model = make("timesformer", prompt=True)
    state = {"vmps.m": torch.ones(1), "vmps.n": torch.ones(1)} | as_timesformer(model)
    path = write(tmp_path / "a.pyth", state)
    load_pretrained(model, path)
    assert "PROMPT.LUMA" not in caplog.text
    model.prompts["0"].luma = "rgb"
    load_pretrained(model, path)
    assert "PROMPT.LUMA" in caplog.text


def test_our_own_checkpoint_is_loaded_with_its_prompt(tmp_path):
    other, model = make("x3d", prompt=True), make("x3d", prompt=True)
    report = load_pretrained(model, write(tmp_path / "a.pt", other.state_dict(), "model"))
    assert_equal(model, other)
    assert report.source == "vmp"


def test_a_backbone_of_your_own_is_loaded_from_our_names(tmp_path):
    other, model = make("x3d"), make("x3d")
    for one in (other, model):
        one.backbone.net = nn.Sequential(nn.Conv3d(3, 2, 1))
    load_pretrained(model, write(tmp_path / "a.pt", other.state_dict(), "model"))
    assert_equal(model, other)


def test_a_prompt_may_be_missing_and_keeps_its_start(tmp_path):
    other, model = make("x3d"), make("x3d", prompt=True)
    start = model.prompts["0"].power_norm.m.clone()
    report = load_pretrained(model, write(tmp_path / "a.pt", other.state_dict(), "model"))
    assert set(report.missing) == {"prompts.0.power_norm.m", "prompts.0.power_norm.n"}
    assert torch.equal(model.prompts["0"].power_norm.m, start)


def test_a_prompt_the_model_has_not_is_reported_and_warned_of(tmp_path, caplog):
    other, model = make("x3d", prompt=True), make("x3d")
    report = load_pretrained(model, write(tmp_path / "a.pt", other.state_dict(), "model"))
    assert set(report.unexpected) == {"prompts.0.power_norm.m", "prompts.0.power_norm.n"}
    assert "trained behind a prompt" in caplog.text


@pytest.mark.parametrize(("name", "head"), [("c2d", "blocks.6.proj"), ("timesformer", "head")])
def test_a_head_of_other_classes_is_dropped_and_reported(name, head, tmp_path):
    other, model = make(name, classes=7), make(name)
    fresh = model.state_dict()[f"{NET}{head}.weight"].clone()
    state = as_timesformer(other) if name == "timesformer" else inside(other)
    report = load_pretrained(model, write(tmp_path / "a.pyth", state))
    assert report.dropped == (f"{NET}{head}.weight", f"{NET}{head}.bias")
    assert report.details[f"{NET}{head}.bias"] == "(7,) -> (5,)"
    assert torch.equal(model.state_dict()[f"{NET}{head}.weight"], fresh)
    assert_equal(model, other, but=re.escape(head))


def test_a_head_may_be_missing(tmp_path):
    other, model = make("x3d"), make("x3d")
    state = {name: value for name, value in inside(other).items() if ".proj." not in name}
    report = load_pretrained(model, write(tmp_path / "a.pyth", state))
    assert report.missing == (f"{NET}blocks.5.proj.weight", f"{NET}blocks.5.proj.bias")


# ---------------------------------------------------------------- embeddings of another clip


def resized(tmp_path, resize, **sizes):
    other, model = make("timesformer", crop=64), make("timesformer", **sizes)
    path = write(tmp_path / "a.pyth", as_timesformer(other))
    report = load_pretrained(model, path, resize=resize)
    assert report.resized == (f"{NET}pos_embed", f"{NET}time_embed")
    before, after = other.backbone.net, model.backbone.net
    assert torch.equal(after.pos_embed[:, 0], before.pos_embed[:, 0])
    return before, after


def test_embeddings_are_resized_by_the_original_s_rule(tmp_path):
    before, after = resized(tmp_path, "original", crop=32, frames=16)
    assert torch.equal(after.time_embed, before.time_embed.repeat_interleave(2, dim=1))
    assert torch.equal(after.pos_embed[:, 1:], before.pos_embed[:, 1::4])  # one flat sequence


def test_embeddings_are_interpolated_as_a_grid_and_along_time(tmp_path):
    before, after = resized(tmp_path, "interpolate", crop=128, frames=16)
    old, new = before.time_embed[0], after.time_embed[0]
    torch.testing.assert_close(new[1], 0.75 * old[0] + 0.25 * old[1])
    torch.testing.assert_close(new[2], 0.25 * old[0] + 0.75 * old[1])


@pytest.mark.parametrize("axis", [0, 1])
def test_interpolated_positions_keep_rows_and_columns_apart(axis, tmp_path):
    other, model = make("timesformer", crop=64), make("timesformer", crop=128)
    with torch.no_grad():  # the same along one axis
        grid = other.backbone.net.pos_embed[0, 1:].unflatten(0, (4, 4))
        grid.copy_(grid.mean(dim=axis, keepdim=True).expand_as(grid).clone())
    load_pretrained(model, write(tmp_path / "a.pyth", as_timesformer(other)))
    grid = model.backbone.net.pos_embed.detach()[0, 1:].unflatten(0, (8, 8))
    torch.testing.assert_close(grid, grid.mean(dim=axis, keepdim=True).expand_as(grid))
    assert grid.std(dim=1 - axis).min() > 1e-3


def test_positions_of_no_square_grid_are_refused(tmp_path):
    other, model = make("timesformer", crop=64), make("timesformer")
    state = as_timesformer(other) | {"model.pos_embed": torch.rand(1, 18, 24)}
    with pytest.raises(ValueError, match=r"dropped \(1\): backbone\.net\.pos_embed \(1, 18, 24\)"):
        load_pretrained(model, write(tmp_path / "a.pyth", state))


def test_an_unknown_way_to_resize_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="resize is 'flat'; it must be one of interpolate, original"
    ):
        load_pretrained(make("x3d"), tmp_path / "a.pyth", resize="flat")


# ---------------------------------------------------------------- derived entries


def test_an_image_vit_gives_its_attention_to_time_and_starts_without_it(tmp_path):
    other, model = make("timesformer", classes=7), make("timesformer")
    report = load_pretrained(model, write(tmp_path / "a.pth", as_image_vit(other), None))
    assert report.source == "timm"
    assert_equal(model, other, but="temporal|time_embed|head")
    for block in model.backbone.net.blocks:
        pairs = ((block.temporal_attn, block.attn), (block.temporal_norm1, block.norm1))
        for ours, theirs in pairs:
            assert_equal(ours, theirs)
        assert not any(value.any() for value in block.temporal_fc.state_dict().values())
    assert not model.backbone.net.time_embed.any()
    assert len(report.derived) == 2 * (6 + 2) + 1
    name = f"{NET}blocks.1.temporal_attn.qkv.weight"
    assert report.details[name] == f"copy of {NET}blocks.1.attn.qkv.weight"
    assert report.ignored == ("pre_logits.fc.weight",)
    assert report.unexpected == ()


@pytest.mark.parametrize("attention", ["space_only", "joint_space_time"])
def test_an_image_vit_fits_the_other_kinds_of_attention(attention, tmp_path):
    other = make("timesformer", attention_type="space_only")
    model = make("timesformer", attention_type=attention)
    report = load_pretrained(model, write(tmp_path / "a.pth", as_image_vit(other), None))
    assert_equal(model, other, but="time_embed")
    assert report.derived == ((f"{NET}time_embed",) if attention == "joint_space_time" else ())


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_kernels_of_an_image_network_are_inflated(name, tmp_path):
    other, model = make(name), make(name)
    state = as_image_network(as_pyslowfast(other))
    report = load_pretrained(model, write(tmp_path / "a.pyth", state))
    expected, own = as_image_network(other.state_dict()), model.state_dict()
    kernels = [key for key, value in own.items() if value.ndim == 5]
    assert set(report.derived) == set(kernels)
    for key in kernels:
        torch.testing.assert_close(own[key].sum(dim=2), expected[key])
        assert torch.equal(own[key], own[key][:, :, :1].expand_as(own[key]))
    assert_equal(model, other, but="conv|pool")


def test_an_image_network_of_3_d_kernels_is_inflated_into_any_pool(tmp_path):
    other, model = make("c2d", classes=1000), make("i3d")
    path = write(tmp_path / "a.pyth", as_pyslowfast(other), cfg="MODEL:\n  ARCH: 2d\n")
    report = load_pretrained(model, path)
    own, given = model.state_dict(), other.state_dict()
    grown = [name for name in own if own[name].ndim == 5 and own[name].shape[2] > 1]
    assert set(report.derived) == set(grown)
    for name in grown:
        torch.testing.assert_close(own[name].sum(dim=2), given[name].sum(dim=2))
    assert "its kernels span other frames" in refusal(
        make("i3d"), as_pyslowfast(make("c2d")), tmp_path
    )


def refusal(model, state, folder) -> str:
    with pytest.raises(ValueError, match="a.pyth") as error:
        load_pretrained(model, write(folder / "a.pyth", state))
    return str(error.value)


@pytest.mark.parametrize("name", ["c2d", "i3d"])
def test_torchvision_s_names_of_a_resnet_are_known(name, tmp_path):
    other, model = make(name), make(name)
    numbers = {"a": "1", "b": "2", "c": "3"}
    state = {}
    for key, value in as_image_network(as_pyslowfast(other)).items():
        key = re.sub(r"^s1\.pathway0_stem\.(conv|bn)\.", r"\g<1>1.", key)
        key = re.sub(r"^head\.projection", "fc", key)
        stage = re.match(r"s(\d)\.pathway0_res", key)
        if stage:
            key = key.replace(stage[0], f"layer{int(stage[1]) - 1}.")
        key = re.sub(r"branch2\.(\w)_bn", lambda m: f"bn{numbers[m[1]]}", key)
        key = re.sub(r"branch2\.(\w)\.", lambda m: f"conv{numbers[m[1]]}.", key)
        key = key.replace("branch1.", "downsample.0.").replace("branch1_bn.", "downsample.1.")
        state[key] = value
    assert "layer1.0.conv1.weight" in state
    report = load_pretrained(model, write(tmp_path / "a.pth", state, None))
    assert report.source == "resnet"
    assert_equal(model, other, but="conv")


def test_a_missing_counter_of_batches_is_zero(tmp_path):
    other, model = make("c2d"), make("c2d")
    for buffer in model.buffers():
        if not buffer.is_floating_point():
            buffer.fill_(5)
    state = {n: v for n, v in inside(other).items() if not n.endswith("num_batches_tracked")}
    report = load_pretrained(model, write(tmp_path / "a.pyth", state))
    assert_equal(model, other)
    assert len(report.derived) == len(inside(other)) - len(state)


@pytest.mark.parametrize("convert", [as_pyslowfast, inside])
def test_an_x3d_without_the_shortcut_norm_gets_an_identity(convert, tmp_path):
    other, model = make("x3d", shortcut_norm=False).eval(), make("x3d").eval()
    report = load_pretrained(model, write(tmp_path / "a.pyth", convert(other)))
    norm = f"{NET}blocks.1.res_blocks.0.branch1_norm."
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert report.derived == tuple(norm + leaf for leaf in leaves)
    clip = torch.rand(2, 3, 8, 32, 32)
    assert torch.equal(model(clip).logits, other(clip).logits)


def test_a_norm_that_is_only_partly_there_is_no_identity(tmp_path):
    other, model = make("x3d"), make("x3d")
    state = inside(other)
    del state["blocks.1.res_blocks.0.branch1_norm.bias"]
    with pytest.raises(ValueError, match=r"missing \(1\): .*branch1_norm\.bias"):
        load_pretrained(model, write(tmp_path / "a.pyth", state))


# ---------------------------------------------------------------- refused


def unchanged(model):
    """Return a function that says whether every entry is still what it is now."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    return lambda: all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_a_missing_entry_is_refused_and_nothing_is_loaded(tmp_path):
    other, model = make("x3d"), make("x3d")
    state = as_pyslowfast(other)
    del state["s5.pathway0_res0.branch2.a.weight"]
    path = write(tmp_path / "a.pyth", state)
    same = unchanged(model)
    name = f"{NET}blocks.4.res_blocks.0.branch2.conv_a.weight"
    with pytest.raises(ValueError, match=rf"missing \(1\): {re.escape(name)} \("):
        load_pretrained(model, path)
    assert same()
    assert load_pretrained(model, path, strict=False).missing == (name,)
    assert_equal(model, other, but=re.escape(name))


def test_an_entry_of_another_shape_is_refused_unless_allowed(tmp_path):
    other, model = make("x3d"), make("x3d")
    state = inside(other) | {"blocks.0.norm.weight": torch.ones(3)}
    path = write(tmp_path / "a.pyth", state)
    with pytest.raises(ValueError, match=r"dropped \(1\): backbone\.net\.blocks\.0\.norm\.weight"):
        load_pretrained(model, path)
    report = load_pretrained(model, path, strict=False)
    assert report.dropped == (f"{NET}blocks.0.norm.weight",)


def test_an_entry_of_another_kind_of_number_is_refused(tmp_path):
    model = make("x3d")
    for wrong in (torch.ones(12, dtype=torch.int64), torch.ones(12, dtype=torch.complex64)):
        state = inside(model) | {"blocks.0.norm.weight": wrong}
        with pytest.raises(ValueError, match=rf"norm\.weight is {wrong.dtype}, the model's is"):
            load_pretrained(model, write(tmp_path / "a.pyth", state), strict=False)


def test_half_precision_is_taken_as_it_is(tmp_path):
    other, model = make("x3d").half(), make("x3d")
    load_pretrained(model, write(tmp_path / "a.pyth", inside(other)))
    assert_equal(model, other.float())


def test_values_that_are_not_finite_are_refused(tmp_path):
    model = make("x3d")
    same = unchanged(model)
    state = {name: value.clone() for name, value in inside(model).items()}
    state["blocks.3.res_blocks.0.branch1_conv.weight"][0] = float("nan")
    with pytest.raises(ValueError, match=r"branch1_conv\.weight holds values that are not finite"):
        load_pretrained(model, write(tmp_path / "a.pyth", state), strict=False)
    assert same()


def test_an_x3d_with_a_shortcut_norm_the_model_has_not_is_refused(tmp_path):
    other, model = make("x3d"), make("x3d", shortcut_norm=False)
    for state in (as_pyslowfast(other), inside(other)):
        with pytest.raises(ValueError, match="set X3D.SHORTCUT_NORM True"):
            load_pretrained(model, write(tmp_path / "a.pyth", state))


POOL = {
    "its config says ARCH c2d_nopool": {"cfg": "MODEL:\n  ARCH: c2d_nopool\n  NUM_CLASSES: 400\n"},
    "its config says ARCH 2d": {"cfg": "MODEL:\n  ARCH: '2d'\n"},
    "its config says MODEL_NAME ResNet_nopool": {"cfg": "MODEL:\n  MODEL_NAME: ResNet_nopool\n"},
    "its name says so": {"name": "C2D_NOPOOL_8x8_R50.pyth"},
}


@pytest.mark.parametrize("told", POOL)
def test_weights_of_a_c2d_without_the_pool_are_refused_by_one_with_it(told, tmp_path):
    name = POOL[told].get("name", "a.pyth")
    unpooled, pooled = make("c2d", temporal_pool=False), make("c2d")
    state = as_pyslowfast(unpooled)
    path = write(tmp_path / name, state, cfg=POOL[told].get("cfg", ""))
    match = rf"has no temporal pool .*\({told}\).*Set C2D\.TEMPORAL_POOL False"
    with pytest.raises(ValueError, match=match):
        load_pretrained(pooled, path)
    load_pretrained(make("c2d", temporal_pool=False), path)


@pytest.mark.parametrize("convert", [inside, lambda model: model.state_dict()])
def test_the_numbers_of_blocks_tell_of_the_pool(convert, tmp_path):
    for has in (False, True):
        other, model = make("c2d", temporal_pool=has), make("c2d", temporal_pool=not has)
        path = write(tmp_path / "a.pyth", convert(other))
        match = rf"numbers of its blocks.*Set C2D\.TEMPORAL_POOL {has}"
        with pytest.raises(ValueError, match=match):
            load_pretrained(model, path)


def test_weights_of_a_c2d_with_the_pool_are_refused_by_one_without(tmp_path):
    state = as_pyslowfast(make("c2d"))
    path = write(tmp_path / "a.pyth", state, cfg="MODEL:\n  ARCH: c2d\n  NUM_CLASSES: 400\n")
    with pytest.raises(ValueError, match=r"has a temporal pool .*Set C2D\.TEMPORAL_POOL True"):
        load_pretrained(make("c2d", temporal_pool=False), path)


def test_a_c2d_that_does_not_say_whether_it_has_the_pool_is_warned_of(tmp_path, caplog):
    for has in (False, True):
        model = make("c2d", temporal_pool=has)
        load_pretrained(model, write(tmp_path / "a.pyth", as_pyslowfast(make("c2d"))))
        assert "does not say whether its C2D has the temporal pool" in caplog.text
        caplog.clear()
    load_pretrained(make("i3d"), write(tmp_path / "a.pyth", as_pyslowfast(make("i3d"))))
    assert "temporal pool" not in caplog.text


OTHERS = [(a, b) for a in [*CONVOLUTIONAL, "timesformer"] for b in TINY if {a, b} != {"c2d", "i3d"}]


@pytest.mark.parametrize(("holds", "wanted"), [(a, b) for a, b in OTHERS if a != b])
def test_another_network_s_checkpoint_is_refused_and_both_are_named(holds, wanted, tmp_path):
    other, model = make(holds), make(wanted)
    state = as_timesformer(other) if holds == "timesformer" else as_pyslowfast(other)
    same = unchanged(model)
    with pytest.raises(ValueError, match=r"it holds an? [\w ]+, the model is an? .*MODEL\.NAME"):
        load_pretrained(model, write(tmp_path / "a.pyth", state))
    assert same()


@pytest.mark.parametrize(("holds", "wanted"), [("c2d", "i3d"), ("i3d", "c2d")])
def test_c2d_and_i3d_are_told_apart_by_their_kernels(holds, wanted, tmp_path):
    path = write(tmp_path / "a.pyth", as_pyslowfast(make(holds)))
    with pytest.raises(ValueError, match=r"its kernels span other frames or widths \(C2D, I3D\)"):
        load_pretrained(make(wanted), path)


def test_the_fusion_of_the_other_slowfast_is_told(tmp_path):
    other, model = make("slowfast", fusion_kernel_sz=5), make("slowfast")
    path = write(tmp_path / "a.pyth", as_pyslowfast(other))
    with pytest.raises(ValueError, match=r"spans 5 frames: set SLOWFAST\.FUSION_KERNEL_SZ 5"):
        load_pretrained(model, path)


@pytest.mark.parametrize(("depths", "word"), [((3, 2), "deeper"), ((2, 3), "shallower")])
def test_another_depth_is_told(depths, word, tmp_path):
    other, model = (make("timesformer", depth=depth) for depth in depths)
    path = write(tmp_path / "a.pyth", as_timesformer(other))
    with pytest.raises(ValueError, match=rf"blocks\.2\..*its network is {word}"):
        load_pretrained(model, path)


def test_non_local_blocks_and_other_strangers_are_refused_unless_allowed(tmp_path):
    other, model = make("c2d"), make("c2d")
    stranger = {"s3.pathway0_nonlocal1.conv_theta.weight": torch.ones(1)}
    path = write(tmp_path / "a.pyth", as_pyslowfast(other) | stranger)
    with pytest.raises(ValueError, match=r"unexpected \(1\): s3\.pathway0_nonlocal1.*non-local"):
        load_pretrained(model, path)
    assert load_pretrained(model, path, strict=False).unexpected == tuple(stranger)
    path = write(tmp_path / "b.pyth", as_pyslowfast(other) | {"predictor.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"predictor\.weight .*TRAIN\.INIT_STRICT False"):
        load_pretrained(model, path)


def test_names_of_which_only_some_are_wrapped_are_refused(tmp_path):
    state = {f"module.{name}": value for name, value in as_pyslowfast(make("x3d")).items()}
    state["head.projection.bias"] = state.pop("module.head.projection.bias")
    with pytest.raises(ValueError, match=r"names begin with 'module\.' .*all or none"):
        load_pretrained(make("x3d"), write(tmp_path / "a.pyth", state), strict=False)


@pytest.mark.parametrize("state", [{"a.b": torch.ones(1)}, {"encoder.layer.0": torch.ones(1)}])
def test_names_nobody_knows_are_refused(state, tmp_path):
    with pytest.raises(ValueError, match=r"a\.pyth: the names \(.*\) are none we know"):
        load_pretrained(make("x3d"), write(tmp_path / "a.pyth", state))


def test_another_backbone_s_checkpoint_is_refused_even_when_not_strict(tmp_path):
    path = write(tmp_path / "a.pyth", as_timesformer(make("timesformer")))
    with pytest.raises(ValueError, match="names are timesformer's, which has no x3d network"):
        load_pretrained(make("x3d"), path, strict=False)
    path = write(tmp_path / "a.pyth", {"backbone.net.conv.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="none of its entries is the model's .read as 'vmp'"):
        load_pretrained(make("x3d"), path, strict=False)


def test_a_source_that_is_not_the_file_s_is_refused(tmp_path):
    path = write(tmp_path / "a.pyth", as_pyslowfast(make("x3d")))
    with pytest.raises(ValueError, match="source is 'keras'; it must be 'auto' or one of vmp"):
        load_pretrained(make("x3d"), path, source="keras")
    with pytest.raises(ValueError, match="none of its entries is the model's .read as 'vmp'"):
        load_pretrained(make("x3d"), path, source="vmp")


class Evil:
    def __reduce__(self):
        return (exec, ("raise AssertionError('code of a checkpoint ran')",))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path = tmp_path / "a.pyth"
    torch.save({"model_state": {"blocks.0.norm.weight": torch.ones(1)}, "cfg": Evil()}, path)
    with pytest.raises(ValueError, match=r"a\.pyth"):
        load_pretrained(make("x3d"), path)


# ---------------------------------------------------------------- the report


def test_a_report_says_what_became_of_each_entry(tmp_path, caplog):
    caplog.set_level("INFO")
    other, model = make("timesformer", classes=7), make("timesformer", frames=4, prompt=True)
    path = write(tmp_path / "a.pyth", as_timesformer(other))
    report = load_pretrained(model, path)
    lines = [
        f"{len(report.used)} entries set from {path} (timesformer's names)",
        f"resized (1): {NET}time_embed (1, 8, 24) -> (1, 4, 24)",
        f"dropped (2): {NET}head.weight (7, 24) -> (5, 24), {NET}head.bias (7,) -> (5,)",
        "missing (2): prompts.0.power_norm.m (1,), prompts.0.power_norm.n (1,)",
    ]
    assert report.lines() == lines
    assert all(line in caplog.messages for line in lines)
    written = json.loads(json.dumps(report.as_dict()))
    assert written["source"] == "timesformer"
    assert written["dropped"] == {
        f"{NET}head.weight": "(7, 24) -> (5, 24)",
        f"{NET}head.bias": "(7,) -> (5,)",
    }
    assert written["used"][f"{NET}cls_token"] == "(1, 1, 24)"
    assert set(written["used"]) | set(written["missing"]) | set(written["dropped"]) == set(
        model.state_dict()
    )


# ---------------------------------------------------------------- found by trying to break it


def test_a_name_in_a_file_can_t_forge_lines_of_the_log(tmp_path):
    state = as_pyslowfast(make("x3d")) | {"evil\nroot: all good": torch.ones(1)}
    said = refusal(make("x3d"), state, tmp_path)
    assert "\n" not in said
    assert r"evil\nroot: all good" in said


def test_not_strict_the_other_pool_is_a_warning(tmp_path, caplog):
    state = as_pyslowfast(make("c2d", temporal_pool=False))
    path = write(tmp_path / "a.pyth", state, cfg="MODEL:\n  ARCH: c2d_nopool\n")
    load_pretrained(make("c2d"), path, strict=False)
    assert "Set C2D.TEMPORAL_POOL False" in caplog.text


def test_a_video_network_of_a_thousand_classes_is_not_taken_for_an_image_network(tmp_path):
    state = as_pyslowfast(make("c2d", classes=1000, temporal_pool=False))
    path = write(tmp_path / "a.pyth", state, cfg="MODEL:\n  ARCH: c2d_nopool\n")
    with pytest.raises(ValueError, match="Set C2D.TEMPORAL_POOL False"):
        load_pretrained(make("c2d", classes=1000), path)


def test_half_a_prompt_is_refused(tmp_path):
    model = make("timesformer", prompt=True)
    state = {"vmps.m": torch.ones(1)} | as_timesformer(model)
    assert "missing (1): prompts.0.power_norm.n" in refusal(model, state, tmp_path)


def test_values_too_large_for_the_model_s_numbers_are_refused(tmp_path):
    state = {name: value.double() for name, value in inside(make("x3d")).items() if value.ndim}
    state["blocks.0.norm.weight"] = state["blocks.0.norm.weight"] * 1e300
    assert "blocks.0.norm.weight holds values that are not" in refusal(make("x3d"), state, tmp_path)


def test_counters_saved_as_floats_are_taken(tmp_path):
    other, model = make("x3d"), make("x3d")
    state = {name: value.float() for name, value in inside(other).items()}
    load_pretrained(model, write(tmp_path / "a.pyth", state))
    assert_equal(model, other)


@pytest.mark.parametrize("stranger", ["blocks.0.ls1.gamma", "reg_token"])
def test_parts_of_other_vits_are_not_taken_for_another_depth(stranger, tmp_path):
    state = as_image_vit(make("timesformer")) | {stranger: torch.ones(1)}
    said = refusal(make("timesformer"), state, tmp_path)
    assert "unexpected (1): " in said
    assert "deeper" not in said
