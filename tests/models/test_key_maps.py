"""Names: whose they are, which network's, and the same in both directions."""

import re

import pytest
import torch

from tests.models.tiny import TINY
from vmp.models import BACKBONES, VideoModel
from vmp.models.key_maps import (
    NET,
    SOURCES,
    detect_foreign_layout,
    detect_layout,
    detect_source,
    listed,
    strip_wrappers,
    to_ours,
    to_theirs,
)
from vmp.prompts import MotionPrompt

NETWORKS = {
    "slowfast": ("slowfast", {}),
    "c2d": ("resnet_pool", {}),
    "c2d without pool": ("resnet_nopool", {"temporal_pool": False}),
    "i3d": ("resnet_pool", {}),
    "x3d": ("x3d", {}),
    "timesformer": ("timesformer", {}),
}
CONVOLUTIONAL = [name for name in NETWORKS if name != "timesformer"]


def own_names(network: str, *, prompt: bool = False) -> list[str]:
    name = network.partition(" ")[0]
    with torch.device("meta"):
        backbone = BACKBONES.get(name)(
            num_classes=5, num_frames=8, crop_size=32, **(TINY[name] | NETWORKS[network][1])
        )
        prompts = {0: MotionPrompt()} if prompt else {}
        return list(VideoModel(backbone, num_frames=8, prompts=prompts).state_dict())


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_is_told_by_our_names(network):
    assert detect_layout(own_names(network)) == NETWORKS[network][0]


def test_a_network_of_your_own_is_told_as_such():
    assert detect_layout(["backbone.net.conv.weight"]) == "other"


@pytest.mark.parametrize("network", CONVOLUTIONAL)
def test_pytorchvideo_s_networks_trained_in_pyslowfast_are_behind_a_prefix(network):
    names, layout = own_names(network), NETWORKS[network][0]
    theirs = [name.replace(NET, "model.") for name in names]
    assert detect_source(theirs) == "pytorchvideo"
    assert detect_foreign_layout(theirs, "pytorchvideo") == layout
    assert list(to_ours(theirs, "pytorchvideo", layout).values()) == names


@pytest.mark.parametrize("network", CONVOLUTIONAL)
@pytest.mark.parametrize("source", ["vmp", "pyslowfast", "pytorchvideo"])
def test_names_there_and_back_are_the_same_and_their_source_is_told(network, source):
    names, layout = own_names(network), NETWORKS[network][0]
    there = to_theirs(names, source, layout)
    assert list(there) == names
    assert detect_source(there.values()) == source
    back = to_ours(there.values(), source, layout)
    assert back == {theirs: ours for ours, theirs in there.items()}
    told = detect_foreign_layout(there.values(), source)
    assert told == (layout if source != "pyslowfast" else re.sub("_.*", "", layout))


@pytest.mark.parametrize("prompt", [False, True])
def test_a_timesformer_s_names_there_and_back_are_the_same(prompt):
    names = own_names("timesformer", prompt=prompt)
    there = to_theirs(names, "timesformer", "timesformer")
    assert list(there) == names
    assert detect_source(there.values()) == "timesformer"
    assert there[NET + "cls_token"] == "model.cls_token"
    assert {"vmps.m", "vmps.n"} <= set(there.values()) or not prompt
    back = to_ours(there.values(), "timesformer", "timesformer")
    assert back == {theirs: ours for ours, theirs in there.items()}


def test_an_image_vit_is_told_from_a_timesformer_by_what_it_lacks():
    names = [name.removeprefix(NET) for name in own_names("timesformer")]
    assert detect_source(names) == "timesformer"
    still = [name for name in names if "temporal" not in name and name != "time_embed"]
    assert detect_source(still) == "timm"
    assert detect_foreign_layout(still, "timm") == "timesformer"
    assert set(to_ours(still, "timm", "timesformer").values()) == {NET + name for name in still}


def test_caffe2_s_names_are_told_and_the_stage_s_last_block_may_be_any():
    names = ["conv1_w", "res2_0_branch2a_w", "t_conv1_w", "t_res4_22_branch2c_bn_subsample_bn_riv"]
    assert detect_source(names) == "caffe2"
    assert detect_foreign_layout(names, "caffe2") == "slowfast"
    ours = to_ours(names, "caffe2", "slowfast")
    assert ours[names[-1]] == NET + "blocks.3.multipathway_fusion.norm.running_var"


def test_an_image_resnet_s_names_become_a_resnet_s():
    names = {
        "conv1.weight": "blocks.0.conv.weight",
        "bn1.running_var": "blocks.0.norm.running_var",
        "layer1.0.conv1.weight": "blocks.1.res_blocks.0.branch2.conv_a.weight",
        "layer1.2.bn3.bias": "blocks.1.res_blocks.2.branch2.norm_c.bias",
        "layer4.0.downsample.0.weight": "blocks.5.res_blocks.0.branch1_conv.weight",
        "layer4.0.downsample.1.weight": "blocks.5.res_blocks.0.branch1_norm.weight",
        "fc.bias": "blocks.6.proj.bias",
    }
    assert detect_source(names) == "resnet"
    assert to_ours(names, "resnet", "resnet_pool") == {n: NET + o for n, o in names.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.module."])
def test_what_wraps_the_whole_model_is_taken_off(prefix):
    assert strip_wrappers([f"{prefix}a", f"{prefix}b.module.c"]) == {
        f"{prefix}a": "a",
        f"{prefix}b.module.c": "b.module.c",
    }


def test_names_of_which_only_some_are_wrapped_are_refused():
    with pytest.raises(ValueError, match=r"1 of 2 names begin with 'module\.' \(module\.a\)"):
        strip_wrappers(["module.a", "b"])
    with pytest.raises(ValueError, match=r"1 of 2 names begin with '_orig_mod\.'"):
        strip_wrappers(["module._orig_mod.a", "module.b"])
    assert strip_wrappers([]) == {}


def test_names_of_two_projects_or_of_none_are_refused():
    with pytest.raises(ValueError, match=r"vmp's \(backbone\.net\.a\) and pyslowfast's \(s1\."):
        detect_source(["backbone.net.a", "s1.pathway0_stem.conv.weight"])
    with pytest.raises(ValueError, match=r"\(a\.b, c\.d\) are none we know"):
        detect_source(["a.b", "c.d"])


def test_two_names_for_one_entry_are_refused():
    with pytest.raises(ValueError, match="model.cls_token are two names for one entry"):
        to_ours(["cls_token", "model.cls_token"], "timesformer", "timesformer")


@pytest.mark.parametrize(
    ("source", "layout"),
    [("timesformer", "x3d"), ("pyslowfast", "timesformer"), ("caffe2", "x3d"), ("timm", "other")],
)
def test_a_source_without_such_a_network_is_refused(source, layout):
    with pytest.raises(ValueError, match=f"names are {source}'s, which has no {layout} network"):
        to_ours(["a"], source, layout)


def test_unknown_sources_and_those_that_are_only_read_are_refused():
    with pytest.raises(ValueError, match="source is 'keras'; it must be 'auto' or one of vmp"):
        to_ours(["a"], "keras", "x3d")
    for source in ("caffe2", "timm", "resnet"):
        with pytest.raises(ValueError, match=f"as {source} names them are read only"):
            to_theirs(["a"], source, "resnet_pool")
    assert len(SOURCES) == 7


def test_a_long_list_of_names_is_cut():
    assert listed("abcdef", most=2) == "a, b, ... 4 more"
    assert listed("ab", most=2) == "a, b"
