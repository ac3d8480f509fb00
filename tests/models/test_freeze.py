"""Exactly the named parts are trainable, and what is frozen is a fixed function in any mode."""

import copy
import logging
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from tests.models.tiny import TINY
from vmp.config import load_cfg
from vmp.models import BACKBONES, VideoModel, build_model
from vmp.models.freeze import build_freezing, describe_freezing, freeze, warn_of_frozen_start
from vmp.models.sync_batchnorm import convert_sync_batchnorm

pytestmark = pytest.mark.usefixtures("_one_thread")

NAMES = [name for name, _ in BACKBONES]
CONVOLUTIONAL = [name for name in NAMES if name != "timesformer"]
PROMPT = r"prompts\..*"
HEADS = {
    "slowfast": r"backbone\.net\.blocks\.6\.proj\..*",
    "c2d": r"backbone\.net\.blocks\.6\.proj\..*",
    "i3d": r"backbone\.net\.blocks\.6\.proj\..*",
    "x3d": r"backbone\.net\.blocks\.5\.proj\..*",
    "timesformer": r"backbone\.net\.head\..*",
}
# by the number of the last blocks; in C2D and I3D a pool is between the first two stages
TAILS = {
    "slowfast": {1: "[46]", 2: "[346]", 4: "[12346]"},
    "c2d": {1: "[56]", 2: "[456]", 4: "[13456]"},
    "i3d": {1: "[56]", 2: "[456]", 4: "[13456]"},
    "x3d": {1: "[45]", 2: "[345]", 4: "[12345]"},
    "timesformer": {1: "1", 2: "[01]"},
}


def make_cfg(name, prompted=True, **changes):
    values = {f"{name}.{key}".upper(): value for key, value in TINY[name].items()}
    values |= {"MODEL.NAME": name, "MODEL.NUM_CLASSES": 5, "PROMPT.ENABLE": prompted}
    values |= {"DATA.TRAIN_CROP_SIZE": 32, "DATA.TEST_CROP_SIZE": 32}
    if prompted and name == "slowfast":
        values["PROMPT.PATHWAYS"] = [0, 1]
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_cfg(None, [str(text) for pair in values.items() for text in pair])


def make(name, parts=(), last_blocks=1, prompted=True, **changes) -> VideoModel:
    torch.manual_seed(0)
    model = build_model(make_cfg(name, prompted, **changes))
    if parts:
        freeze(model, parts, last_blocks=last_blocks)
    return model


def make_clip(model: VideoModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, model.clip_frames, 32, 32)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def trained(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


def matching(model: nn.Module, *patterns: str) -> set[str]:
    pattern = re.compile("|".join(patterns))
    return {name for name, _ in model.named_parameters() if pattern.fullmatch(name)}


def tail_pattern(name: str, last_blocks: int) -> str:
    after = r"|backbone\.net\.(norm|head)\..*" if name == "timesformer" else ""
    return rf"backbone\.net\.blocks\.{TAILS[name][last_blocks]}\..*{after}"


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def assert_norms_learn_with_their_weights(model: nn.Module) -> None:
    assert [m.training for m in norms(model)] == [m.weight.requires_grad for m in norms(model)]


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_exactly_what_the_parts_name_is_trainable(name, prompted):
    head = HEADS[name]
    cases = [(["all"], 1, [".*"]), (["head"], 1, [head])]
    cases += [(["last_blocks"], count, [tail_pattern(name, count)]) for count in TAILS[name]]
    cases += [(["last_blocks", "head"], 1, [tail_pattern(name, 1)])]
    if prompted:
        cases += [(["prompt"], 1, [PROMPT]), (["prompt", "head"], 1, [PROMPT, head])]
        cases += [(["prompt", "last_blocks"], 2, [PROMPT, tail_pattern(name, 2)])]
    model = make(name, prompted=prompted)
    for parts, last_blocks, patterns in cases:  # one after another: nothing is left of the last
        freeze(model, parts, last_blocks=last_blocks)
        expected = matching(model, *patterns)
        assert expected
        assert trained(model) == expected, parts


@pytest.mark.parametrize("prompted", [False, True])
def test_the_tail_of_slowfast_has_both_pathways_and_their_fusion(prompted):
    names = trained(make("slowfast", ["last_blocks"], last_blocks=2, prompted=prompted))
    for part in ("multipathway_blocks.0.", "multipathway_blocks.1.", "multipathway_fusion.conv"):
        assert any(name.startswith(f"backbone.net.blocks.3.{part}") for name in names)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_norm_learns_statistics_if_and_only_if_its_weights_are_trained(name):
    model = make(name)
    for parts in (["all"], ["prompt"], ["head"], ["last_blocks"], ["prompt", "last_blocks"]):
        freeze(model, parts)
        assert_norms_learn_with_their_weights(model)
        learning = sum(module.training for module in norms(model))
        assert (learning > 0) is ("all" in parts or "last_blocks" in parts)
        model.eval()
        assert not any(module.training for module in model.modules())
        model.train()
        assert_norms_learn_with_their_weights(model)


def test_freezing_does_not_change_the_mode_of_a_model_in_evaluation():
    model = make("x3d").eval()
    freeze(model, ["head"])
    assert not any(module.training for module in model.modules())


@pytest.fixture
def _alone():
    """Have a process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_alone")
def test_no_wrapper_and_no_copy_wakes_a_frozen_norm():
    model = make("x3d", ["last_blocks", "prompt"])
    convert_sync_batchnorm(model)
    compiled = torch.compile(model, backend="eager")
    for outer in (DistributedDataParallel(model), compiled, copy.deepcopy(model)):
        outer.eval()
        outer.train()
        assert any(module.training for module in norms(outer))
        assert_norms_learn_with_their_weights(outer)


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_backbone_is_the_same_function_in_training_as_in_evaluation(name):
    noise = {"MODEL__DROPOUT_RATE": 0.5, "TIMESFORMER__DROP_PATH_RATE": 0.5}
    model = make(name, ["prompt"], **noise)
    clip = make_clip(model)
    with torch.no_grad():
        in_training = model.train()(clip).logits
        again = model(clip).logits
        assert torch.equal(in_training, model.eval()(clip).logits)
        assert torch.equal(in_training, again)
        # and it is the freezing that makes it so
        freeze(model, ["all"])
        assert not torch.equal(in_training, model.train()(clip).logits)


@pytest.mark.parametrize("name", NAMES)
def test_of_all_noise_a_trained_head_alone_keeps_the_dropout_before_it(name):
    noise = {"TIMESFORMER__DROP_PATH_RATE": 0.5}
    with torch.no_grad():
        for rate in (0.0, 0.5):
            model = make(name, ["head"], MODEL__DROPOUT_RATE=rate, **noise)
            clip = make_clip(model)
            same = torch.equal(model.train()(clip).logits, model.eval()(clip).logits)
            assert same is (rate == 0)


def prompt_gradients(model: VideoModel) -> list[torch.Tensor]:
    logits, variation = model(make_clip(model))
    loss = nn.functional.cross_entropy(logits, torch.tensor([1, 3])) + 2.5 * variation
    loss.backward()
    return [parameter.grad for parameter in model.prompts.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_prompts_get_the_gradient_that_they_get_in_training_all(name):
    quiet = {"MODEL__DROPOUT_RATE": 0.0, "TIMESFORMER__DROP_PATH_RATE": 0.0}
    whole, part = make(name, **quiet).train(), make(name, ["prompt"], **quiet).train()
    for norm in norms(whole):  # a gradient through batch statistics is another one
        norm.eval()
    expected, found = prompt_gradients(whole), prompt_gradients(part)
    assert len(found) == (4 if name == "slowfast" else 2)
    assert all(gradient.abs() > 0 for gradient in found)
    # exactly: the same operations, fewer of them
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
    assert all(value.grad is None for value in part.backbone.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_of_zero_freezes_the_prompts_as_parts_without_them_do(name):
    for parts, patterns in ((["all"], [r"backbone\..*"]), (["head"], [HEADS[name]])):
        cfg = make_cfg(name, PROMPT__LR_MULT=0.0, TRAIN__PARTS=parts)
        model = build_model(cfg)
        build_freezing(cfg, model)
        assert trained(model) == matching(model, *patterns)


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (["all"], "trained: all: 268,601 of 268,601 parameters"),
        (
            ["prompt", "head"],
            "trained: prompt, head: 167 of 268,601 parameters; the rest is frozen, "
            "39 norms keep their statistics",
        ),
        (
            ["last_blocks"],
            "trained: last_blocks: 182,045 of 268,601 parameters; the rest is frozen, "
            "28 norms keep their statistics",
        ),
    ],
)
def test_a_line_says_what_is_trained_with_the_right_numbers(parts, line, caplog):
    cfg = make_cfg("x3d", TRAIN__PARTS=parts)
    model = build_model(cfg)
    with caplog.at_level(logging.INFO, "vmp.models.freeze"):
        build_freezing(cfg, model)
    assert caplog.messages == [line]
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    assert f"{sum(sizes[name] for name in trained(model)):,} of {sum(sizes.values()):,} " in line
    kept = [norm for norm in norms(model) if not norm.weight.requires_grad]
    assert not kept or f"{len(kept)} norms keep" in line


def test_a_transformer_has_no_statistics_to_keep():
    model = make("timesformer", ["head"])
    assert describe_freezing(model).endswith("; the rest is frozen")


@pytest.mark.parametrize("name", NAMES)
def test_more_blocks_than_there_are_is_refused_with_the_largest_number(name):
    most = max(TAILS[name])
    model = make(name)
    for count in (0, most + 1):
        with pytest.raises(ValueError, match=f"LAST_BLOCKS is {count}; .* from 1 to {most}"):
            freeze(model, ["last_blocks"], last_blocks=count)
    assert trained(model) == matching(model, ".*")  # as it was
    freeze(model, ["head"], last_blocks=most + 1)  # plays no part
    assert trained(model) == matching(model, HEADS[name])


@pytest.mark.parametrize(
    ("parts", "prompted", "message"),
    [
        ([], True, "it must name some of all, prompt, head, last_blocks"),
        (["neck"], True, r"PARTS is \['neck'\]"),
        (["prompt"], False, "the model has none that learns"),
    ],
)
def test_parts_that_a_model_does_not_have_are_refused(parts, prompted, message):
    model = make("timesformer", prompted=prompted)
    with pytest.raises(ValueError, match=message) as caught:
        freeze(model, parts)
    assert "\n" not in str(caught.value)


def test_a_prompt_whose_power_normalisation_is_fixed_cannot_be_trained():
    model = make("timesformer", PROMPT__POWER_NORM="gamma")
    with pytest.raises(ValueError, match="LEARNABLE True"):
        freeze(model, ["prompt", "head"])


def test_what_is_frozen_without_weights_is_named_in_a_warning(caplog):
    model = make("timesformer", ["head"])
    warn_of_frozen_start(model, ["backbone.net.head.weight"])  # it will learn
    assert not caplog.messages
    warn_of_frozen_start(model, ["prompts.0.power_norm.m", "backbone.net.head.bias"])
    assert "1 tensors (prompts.0.power_norm.m)" in caplog.messages[0]
    warn_of_frozen_start(model, model.state_dict())
    assert f"{len(model.state_dict()) - 2} tensors" in caplog.messages[1]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_prompts_fixed_on_purpose_are_no_reason_for_a_warning(caplog):
    cfg = make_cfg("timesformer", PROMPT__LR_MULT=0.0)
    model = build_model(cfg)
    build_freezing(cfg, model)
    warn_of_frozen_start(model, model.state_dict())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
