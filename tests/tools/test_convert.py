"""tools/convert.py: other projects' names in ours and back, bit for bit, and what it refuses."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from pytorchvideo.models.x3d import create_x3d

from tests.models.test_pretrained import (
    CONVOLUTIONAL,
    as_image_network,
    as_image_vit,
    as_pyslowfast,
    as_timesformer,
    inside,
    make,
    write,
)
from vmp.models import load_pretrained
from vmp.models.key_maps import NET
from vmp.utils.weights_file import read_weights

TOOL = Path(__file__).parents[2] / "tools" / "convert.py"


def convert(monkeypatch, *words) -> str:
    """Run the tool; return what it ended with, "" where it went well."""
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, words)])
    try:
        runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as end:
        return str(end)
    return ""


def foreign(name: str, source: str, **kwargs):
    model = make(name, **kwargs)
    if source == "timesformer":
        return model, as_timesformer(model)
    return model, as_pyslowfast(model) if source == "pyslowfast" else inside(model)


PAIRS = [(name, source) for name in CONVOLUTIONAL for source in ("pyslowfast", "pytorchvideo")]
PAIRS.append(("timesformer", "timesformer"))


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], value) for name, value in other.items())
    assert all(one[name].dtype == value.dtype for name, value in other.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(("name", "source"), PAIRS)
def test_there_and_back_is_bit_for_bit(name, source, suffix, tmp_path, monkeypatch):
    # a norm that pytorchvideo's X3D has not
    model, state = foreign(name, source, **({"shortcut_norm": False} if name == "x3d" else {}))
    if source == "pyslowfast" and name == "x3d":
        model, state = foreign(name, source)
    path = write(tmp_path / "in.pyth", state, cfg="MODEL:\n  ARCH: c2d\n")
    ours, back = tmp_path / f"ours{suffix}", tmp_path / "back.pyth"
    assert convert(monkeypatch, path, ours) == ""
    assert_same(read_weights(ours).tensors, model.state_dict())
    assert convert(monkeypatch, ours, back, "--to", source) == ""
    assert_same(read_weights(back).tensors, state)
    assert convert(monkeypatch, back, tmp_path / "again.safetensors", *recipe(name, source)) == ""
    assert_same(read_weights(tmp_path / "again.safetensors").tensors, model.state_dict())


def recipe(name, source):
    """Return what says that a C2D under PySlowFast's names has a pool."""
    if source != "pyslowfast" or name != "c2d":
        return ()
    sizes = ("DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32, "MODEL.NUM_CLASSES", 5)
    jitter = ("DATA.TRAIN_JITTER_SCALES", "[32,32]", "TRAIN.DATASET", "csv")
    base = TOOL.parents[1] / "configs" / "base" / "C2D_8x8_R50.yaml"
    return ("--cfg", base, "C2D.WIDTH", 8, *sizes, *jitter)


def test_what_is_written_says_where_it_comes_from(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "x3d_xs.pyth", as_pyslowfast(make("x3d")))
    out = tmp_path / "x3d_xs.safetensors"
    assert convert(monkeypatch, path, out) == ""
    facts = read_weights(out).facts
    digest = read_weights(path).sha256
    assert facts["source"] == "pyslowfast"
    assert facts["source_file"] == "x3d_xs.pyth"
    assert facts["source_sha256"] == digest
    assert facts["network"] == "x3d"
    assert digest in capsys.readouterr().out


def test_a_checkpoint_of_ours_keeps_what_it_says_of_its_training(tmp_path, monkeypatch):
    model = make("x3d", prompt=True)
    path = tmp_path / "epoch_00003.pth"
    content = {"model": model.state_dict(), "epoch": 3, "step": 12, "config": "RNG_SEED: 5\n"}
    torch.save(content | {"optimizer": {"state": {}}}, path)
    for out in (tmp_path / "a.safetensors", tmp_path / "a.pth"):
        assert convert(monkeypatch, path, out) == ""
        file = read_weights(out)
        assert (file.facts["epoch"], file.facts["step"]) == ("3", "12")
        assert file.facts["config"] == "RNG_SEED: 5\n"
        assert_same(file.tensors, model.state_dict())


def test_the_first_origin_is_kept_however_often_it_is_converted(tmp_path, monkeypatch):
    path = write(tmp_path / "x3d_xs.pyth", as_pyslowfast(make("x3d")))
    assert convert(monkeypatch, path, tmp_path / "a.safetensors") == ""
    assert convert(monkeypatch, tmp_path / "a.safetensors", tmp_path / "b.safetensors") == ""
    facts = read_weights(tmp_path / "b.safetensors").facts
    assert (facts["source"], facts["source_file"]) == ("pyslowfast", "x3d_xs.pyth")
    assert facts["source_sha256"] == read_weights(path).sha256


def test_values_that_are_not_equal_to_themselves_are_the_same_bits(tmp_path, monkeypatch):
    state = {name: value.clone() for name, value in as_pyslowfast(make("x3d")).items()}
    state["head.projection.bias"][:2] = torch.tensor([float("nan"), -0.0])
    path = write(tmp_path / "in.pyth", state)
    assert convert(monkeypatch, path, tmp_path / "out.safetensors") == ""


def test_a_recipe_is_checked_and_named(tmp_path, monkeypatch):
    path = write(tmp_path / "in.pyth", as_pyslowfast(make("c2d")))
    out = tmp_path / "out.safetensors"
    words = recipe("c2d", "pyslowfast")
    assert convert(monkeypatch, path, out, *words) == ""
    assert read_weights(out).facts["recipe"] == "C2D_8x8_R50"
    assert "blocks.6.proj.weight" in {name.removeprefix(NET) for name in read_weights(out).tensors}
    out.unlink()
    said = convert(monkeypatch, path, out, *words, "MODEL.NUM_CLASSES", 9)
    assert "2 entries differ from the recipe's (backbone.net.blocks.6.proj" in said
    said = convert(monkeypatch, path, out, "--cfg", TOOL.parents[1] / "configs/base/X3D_S.yaml")
    assert "nothing in it says" in said
    assert not out.exists()


def test_an_x3d_without_the_shortcut_norm_runs_in_pyslowfast_and_back(tmp_path, monkeypatch):
    model = make("x3d", shortcut_norm=False).eval()
    path = write(tmp_path / "ours.pth", model.state_dict(), "model")
    there, back = tmp_path / "there.pyth", tmp_path / "back.pyth"
    assert convert(monkeypatch, path, there, "--to", "pyslowfast") == ""
    with_norm = make("x3d").eval()
    report = load_pretrained(with_norm, there)
    assert report.derived == ()  # the file has the norm, as PySlowFast's strict loading wants it
    clip = torch.rand(1, 3, 8, 32, 32)
    assert torch.equal(with_norm(clip).logits, model(clip).logits)
    assert convert(monkeypatch, there, back, "--to", "pytorchvideo") == ""
    assert_same(read_weights(back).tensors, inside(model))


def test_a_model_trained_here_runs_in_pytorchvideo(tmp_path, monkeypatch):
    model = make("x3d", shortcut_norm=False).eval()
    path = write(tmp_path / "ours.pth", model.state_dict(), "model")
    assert convert(monkeypatch, path, tmp_path / "out.pyth", "--to", "pytorchvideo") == ""
    theirs = create_x3d(
        input_clip_length=8,
        input_crop_size=32,
        model_num_class=5,
        width_factor=1.0,
        depth_factor=1.0,
        head_dim_out=32,
        head_activation=None,
    ).eval()
    theirs.load_state_dict(torch.load(tmp_path / "out.pyth")["model_state"], strict=True)
    clip = torch.rand(2, 3, 8, 32, 32)
    torch.testing.assert_close(theirs(clip), model(clip).logits)


def test_a_learned_shortcut_norm_has_no_place_in_pytorchvideo(tmp_path, monkeypatch):
    path = write(tmp_path / "ours.pth", make("x3d").state_dict(), "model")
    said = convert(monkeypatch, path, tmp_path / "out.pyth", "--to", "pytorchvideo")
    assert "X3D.SHORTCUT_NORM False, or take pyslowfast" in said


def test_a_prompt_goes_to_the_release_or_is_dropped_on_demand(tmp_path, monkeypatch):
    model = make("timesformer", prompt=True)
    path = write(tmp_path / "ours.pth", model.state_dict(), "model")
    assert convert(monkeypatch, path, tmp_path / "out.pyth", "--to", "timesformer") == ""
    layer = model.prompts["0"].power_norm
    expected = {"vmps.m": layer.m, "vmps.n": layer.n} | as_timesformer(model)
    assert_same(read_weights(tmp_path / "out.pyth").tensors, expected)
    path = write(tmp_path / "x3d.pth", make("x3d", prompt=True).state_dict(), "model")
    words = (path, tmp_path / "x3d.pyth", "--to", "pyslowfast")
    assert "has no place for the motion prompt" in convert(monkeypatch, *words)
    assert convert(monkeypatch, *words, "--drop-prompt") == ""


WRONG = {
    "X3D.DEPTH_FACTOR 5.0 override a recipe": lambda folder: (
        *(folder / "in.pyth", folder / "out.pth", "X3D.DEPTH_FACTOR", "5.0"),
    ),
    "ends in nothing": lambda folder: (folder / "in.pyth", folder / "out"),
    "ends in .onnx": lambda folder: (folder / "in.pyth", folder / "out.onnx"),
    "exists; delete it": lambda folder: (folder / "in.pyth", folder / "in.pyth"),
    "nothing in it says whether its C2D": lambda folder: (c2d(folder), folder / "out.pth"),
    "becomes one for video only in a model": lambda folder: (vit(folder), folder / "out.pth"),
    "(resnet) becomes one for video": lambda folder: (resnet(folder), folder / "out.pth"),
    "entries without a name of ours (1): a.b": lambda folder: (odd(folder), folder / "out.pth"),
}


def c2d(folder):
    return write(folder / "c2d.pyth", as_pyslowfast(make("c2d")))


def vit(folder):
    return write(folder / "vit.pth", as_image_vit(make("timesformer")), None)


def resnet(folder):
    state = as_image_network({"layer1.0.conv1.weight": torch.ones(1, 1, 1, 1, 1)})
    return write(folder / "resnet.pth", state, None)


def odd(folder):
    return write(folder / "odd.pyth", as_pyslowfast(make("x3d")) | {"a.b": torch.ones(1)})


@pytest.mark.parametrize("message", WRONG)
def test_what_can_t_be_converted_ends_in_one_line(message, tmp_path, monkeypatch):
    write(tmp_path / "in.pyth", as_pyslowfast(make("x3d")))
    said = convert(monkeypatch, *WRONG[message](tmp_path))
    assert said.startswith("error: ")
    assert message in said
    assert "\n" not in said
    assert not list(tmp_path.glob("out*"))


def test_a_project_without_such_a_network_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "in.pyth", as_pyslowfast(make("x3d")))
    said = convert(monkeypatch, path, tmp_path / "out.pyth", "--to", "timesformer")
    assert "the names are timesformer's, which has no x3d network" in said


def test_a_pool_in_the_name_or_the_config_of_the_file_is_believed(tmp_path, monkeypatch):
    state = as_pyslowfast(make("c2d", temporal_pool=False))
    path = write(tmp_path / "C2D_NOPOOL_8x8_R50.pyth", state)
    assert convert(monkeypatch, path, tmp_path / "a.safetensors") == ""
    assert f"{NET}blocks.5.proj.weight" in read_weights(tmp_path / "a.safetensors").tensors
    said = convert(monkeypatch, path, tmp_path / "b.pth", *recipe("c2d", "pyslowfast"))
    assert "its network is resnet_nopool, the recipe's is resnet_pool" in said
