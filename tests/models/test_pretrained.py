"""Checkpoints of four sources into a model: what is used, what is reported, what is refused."""

import re

import pytest
import torch
from torch import nn

from tests.models.tiny import TINY
from vmp.models import BACKBONES, VideoModel, load_pretrained
from vmp.models.pretrained import NET, SOURCES, _pyslowfast_rules, detect_source, key_map
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


def write(path, state, container="model_state"):
    torch.save({container: state, "epoch": 3, "cfg": "A: 1"} if container else state, path)
    return path


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
    assert report == ("pyslowfast", tuple(report.used), (), (), (), ())
    assert len(report.used) == len(model.state_dict())


def test_pooled_and_unpooled_c2d_take_each_other_s_weights(tmp_path):
    pooled, unpooled = make("c2d"), make("c2d", temporal_pool=False)
    path = write(tmp_path / "a.pyth", as_pyslowfast(pooled))
    load_pretrained(unpooled, path)
    expected = as_pyslowfast(pooled)
    loaded = as_pyslowfast(unpooled)
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_pytorchvideo_checkpoint_is_loaded_whole(name, tmp_path):
    other, model = make(name), make(name)
    report = load_pretrained(model, write(tmp_path / "a.pyth", inside(other)))
    assert_equal(model, other)
    assert report.source == "pytorchvideo"


@pytest.mark.parametrize("container", ["model_state", None])
def test_a_timesformer_checkpoint_is_loaded_whole(container, tmp_path):
    other, model = make("timesformer"), make("timesformer")
    state = {f"model.{name}": value for name, value in inside(other).items()}
    report = load_pretrained(model, write(tmp_path / "a.pyth", state, container))
    assert_equal(model, other)
    assert report.source == "timesformer"


def test_the_release_s_prompt_is_loaded_with_its_backbone(tmp_path):
    other, model = make("timesformer", prompt=True), make("timesformer", prompt=True)
    layer = other.prompts["0"].power_norm
    state = {"vmps.m": layer.m, "vmps.n": layer.n}
    state |= {f"model.{name}": value for name, value in inside(other).items()}
    report = load_pretrained(model, write(tmp_path / "a.pyth", state))
    assert_equal(model, other)
    assert {"prompts.0.power_norm.m", "prompts.0.power_norm.n"} < set(report.used)


def test_the_release_s_prompt_with_the_other_grey_is_warned_of(tmp_path, caplog):
    model = make("timesformer", prompt=True)
    state = {"vmps.m": torch.ones(1), "vmps.n": torch.ones(1)}
    state |= {f"model.{name}": value for name, value in inside(model).items()}
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


def test_a_prompt_may_be_missing_and_keeps_its_start(tmp_path):
    other, model = make("x3d"), make("x3d", prompt=True)
    start = model.prompts["0"].power_norm.m.clone()
    report = load_pretrained(model, write(tmp_path / "a.pt", other.state_dict(), "model"))
    assert set(report.missing) == {"prompts.0.power_norm.m", "prompts.0.power_norm.n"}
    assert torch.equal(model.prompts["0"].power_norm.m, start)


def test_a_prompt_the_model_has_not_is_reported(tmp_path):
    other, model = make("x3d", prompt=True), make("x3d")
    report = load_pretrained(model, write(tmp_path / "a.pt", other.state_dict(), "model"))
    assert set(report.unexpected) == {"prompts.0.power_norm.m", "prompts.0.power_norm.n"}


@pytest.mark.parametrize(("name", "head"), [("c2d", "blocks.6.proj"), ("timesformer", "head")])
def test_a_head_of_other_classes_is_dropped_and_reported(name, head, tmp_path):
    other, model = make(name, classes=7), make(name)
    fresh = model.state_dict()[f"{NET}{head}.weight"].clone()
    state = {f"model.{n}" if name == "timesformer" else n: v for n, v in inside(other).items()}
    report = load_pretrained(model, write(tmp_path / "a.pyth", state))
    assert report.dropped == (f"{NET}{head}.weight", f"{NET}{head}.bias")
    assert torch.equal(model.state_dict()[f"{NET}{head}.weight"], fresh)
    assert_equal(model, other, but=re.escape(head))


def test_a_head_may_be_missing(tmp_path):
    other, model = make("x3d"), make("x3d")
    state = {name: value for name, value in inside(other).items() if ".proj." not in name}
    report = load_pretrained(model, write(tmp_path / "a.pyth", state))
    assert report.missing == (f"{NET}blocks.5.proj.weight", f"{NET}blocks.5.proj.bias")


def test_embeddings_of_another_clip_are_resized_and_reported(tmp_path):
    other, model = make("timesformer"), make("timesformer", crop=64, frames=4)
    state = {f"model.{name}": value for name, value in inside(other).items()}
    report = load_pretrained(model, write(tmp_path / "a.pyth", state))
    assert report.resized == (f"{NET}pos_embed", f"{NET}time_embed")
    before, after = other.backbone.net, model.backbone.net
    assert torch.equal(after.time_embed, before.time_embed[:, [0, 2, 4, 6]])
    assert torch.equal(after.pos_embed[:, 0], before.pos_embed[:, 0])
    grid = after.pos_embed[:, 1:].unflatten(1, (4, 4))
    assert torch.equal(grid[:, ::2, 1::2], before.pos_embed[:, 1:].unflatten(1, (2, 2)))


def test_a_missing_entry_is_refused_and_nothing_is_loaded(tmp_path):
    other, model = make("x3d"), make("x3d")
    state = as_pyslowfast(other)
    del state["s5.pathway0_res0.branch2.a.weight"]
    path = write(tmp_path / "a.pyth", state)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    name = f"{NET}blocks.4.res_blocks.0.branch2.conv_a.weight"
    with pytest.raises(ValueError, match=f"missing: {re.escape(name)} .*strict=False"):
        load_pretrained(model, path)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    assert load_pretrained(model, path, strict=False).missing == (name,)
    assert_equal(model, other, but=re.escape(name))


def test_an_entry_of_another_shape_is_refused_unless_allowed(tmp_path):
    other, model = make("x3d"), make("x3d")
    state = inside(other) | {"blocks.0.norm.weight": torch.ones(3)}
    path = write(tmp_path / "a.pyth", state)
    with pytest.raises(ValueError, match=r"dropped: backbone\.net\.blocks\.0\.norm\.weight"):
        load_pretrained(model, path)
    report = load_pretrained(model, path, strict=False)
    assert report.dropped == (f"{NET}blocks.0.norm.weight",)


@pytest.mark.parametrize(("has", "wants", "switch"), [(True, False, True), (False, True, False)])
def test_x3d_with_the_other_shortcut_norm_is_refused_and_the_switch_named(
    has, wants, switch, tmp_path
):
    other, model = make("x3d", shortcut_norm=has), make("x3d", shortcut_norm=wants)
    for state in (as_pyslowfast(other), inside(other)):
        with pytest.raises(ValueError, match=f"set X3D.SHORTCUT_NORM {switch}"):
            load_pretrained(model, write(tmp_path / "a.pyth", state))


def test_a_block_the_model_has_not_is_refused(tmp_path):
    other, model = make("timesformer", depth=3), make("timesformer")
    state = {f"model.{name}": value for name, value in inside(other).items()}
    with pytest.raises(ValueError, match=r"unexpected: backbone\.net\.blocks\.2\."):
        load_pretrained(model, write(tmp_path / "a.pyth", state))


def test_a_name_nobody_knows_is_reported(tmp_path):
    other, model = make("x3d"), make("x3d")
    state = as_pyslowfast(other) | {"ema.decay": torch.ones(1)}
    report = load_pretrained(model, write(tmp_path / "a.pyth", state))
    assert report.unexpected == ("ema.decay",)


def test_another_backbone_s_checkpoint_is_refused_even_when_not_strict(tmp_path):
    state = {f"model.{name}": value for name, value in inside(make("timesformer")).items()}
    with pytest.raises(
        ValueError, match="none of its entries is the model's .read as 'timesformer'"
    ):
        load_pretrained(make("x3d"), write(tmp_path / "a.pyth", state), strict=False)


class Evil:
    def __reduce__(self):
        return (exec, ("raise AssertionError('code of a checkpoint ran')",))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path = tmp_path / "a.pyth"
    torch.save({"model_state": {"blocks.0.norm.weight": torch.ones(1)}, "cfg": Evil()}, path)
    with pytest.raises(ValueError, match="damaged or no file of weights"):
        load_pretrained(make("x3d"), path)


@pytest.mark.parametrize("content", [{}, {"model_state": {}}, [1, 2], {"model_state": {"a": 1}}])
def test_a_file_without_weights_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "a.pyth")
    with pytest.raises(ValueError, match="holds no weights"):
        load_pretrained(make("x3d"), tmp_path / "a.pyth")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "a.pyth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or no file of weights"):
        load_pretrained(make("x3d"), path)
    with pytest.raises(ValueError, match="none.pyth can't be read: No such file"):
        load_pretrained(make("x3d"), tmp_path / "none.pyth")


def test_sources_that_are_unknown_are_refused():
    with pytest.raises(ValueError, match="a.b, c.d. are none we know"):
        detect_source(["a.b", "c.d"])
    with pytest.raises(ValueError, match="source is 'caffe2'; it must be 'auto' or one of vmp"):
        key_map(make("x3d"), "caffe2", ["a"])
    assert set(SOURCES) == {"vmp", "pyslowfast", "pytorchvideo", "timesformer"}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_exactly_one_rule_matches_each_name_and_no_two_names_meet(name):
    model = make(name)
    rules = _pyslowfast_rules(list(model.state_dict()))
    for key in as_pyslowfast(model):
        matches = [pattern for pattern, _ in rules if re.fullmatch(pattern, key)]
        ambiguous = matches[1:] if ".b_bn" not in key else []  # X3D's own rule comes first
        assert matches
        assert not ambiguous
    names = key_map(model, "pyslowfast", as_pyslowfast(model))
    assert set(names.values()) == set(model.state_dict())


def test_a_report_reads_as_one_line(tmp_path):
    other, model = make("timesformer", classes=7), make("timesformer", frames=4, prompt=True)
    state = {f"model.{name}": value for name, value in inside(other).items()}
    text = str(load_pretrained(model, write(tmp_path / "a.pyth", state)))
    assert "\n" not in text
    assert "entries from a timesformer checkpoint" in text
    assert "missing (2): prompts.0.power_norm.m" in text
    assert f"resized (1): {NET}time_embed" in text
    assert f"dropped (2): {NET}head.weight" in text
