from copy import deepcopy

import pytest
import torch
from torch import nn

from vmp.config.defaults import get_cfg
from vmp.models import BACKBONES, build_backbone
from vmp.prompts import MotionPrompt
from vmp.solver import build_optimizer, set_learning_rate
from vmp.solver import optimizer as optimizer_module
from vmp.solver.optimizer import param_groups


class Net(nn.Module):
    """Norms of several types under names that do not say so, a bare embedding, a prompt."""

    def __init__(self):
        super().__init__()
        self.prompts = nn.ModuleDict({"0": MotionPrompt()})
        self.stem = nn.Conv3d(3, 4, 1)
        self.first = nn.BatchNorm3d(4)
        self.second = nn.SyncBatchNorm(4)
        self.third = nn.LayerNorm(4)
        self.fourth = nn.GroupNorm(2, 4)
        self.batchnorm_by_name = nn.Linear(4, 4, bias=False)
        self.attention = nn.MultiheadAttention(4, 2)
        self.time_embed = nn.Parameter(torch.zeros(1, 8, 4))

    def names(self, group):
        members = {id(parameter) for parameter in group["params"]}
        return {name for name, value in self.named_parameters() if id(value) in members}


def groups_of(model, **changes):
    decays = {"weight_decay": 1e-4, "norm_weight_decay": 1e-5, "prompt_weight_decay": 1e-6}
    found = param_groups(model, **({"lr": 0.1} | decays | changes))
    return {group["name"]: group for group in found}


def cfg_with(**keys):
    cfg = get_cfg()
    cfg.merge_from_list([part for key, value in keys.items() for part in (key, value)])
    return cfg


def test_groups_go_by_the_type_of_the_layer():
    net = Net()
    groups = groups_of(net)
    embedding_and_matrices = {"time_embed", "stem.weight", "batchnorm_by_name.weight"}
    attention = {"attention.in_proj_weight", "attention.out_proj.weight"}
    assert net.names(groups["weights"]) == embedding_and_matrices | attention
    prompt = {"prompts.0.power_norm.m", "prompts.0.power_norm.n"}
    assert net.names(groups["prompts"]) == prompt
    norms = {f"{name}.weight" for name in ("first", "second", "third", "fourth")}
    biases = {name for name, _ in net.named_parameters() if name.endswith("bias")}
    assert net.names(groups["norms and biases"]) == norms | biases
    decays = [group["weight_decay"] for group in groups.values()]
    assert decays == [1e-4, 1e-5, 1e-6]


def test_each_trainable_parameter_is_in_exactly_one_group():
    net = Net()
    net.tied = net.stem
    net.stem.weight.requires_grad_(False)
    grouped = [id(value) for group in groups_of(net).values() for value in group["params"]]
    trainable = {id(value) for value in net.parameters() if value.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trainable


def test_a_wrapper_does_not_hide_the_prompts():
    wrapper = nn.Module()
    wrapper.module = Net()
    assert len(groups_of(wrapper)["prompts"]["params"]) == 2


def test_a_model_without_prompts_has_no_group_for_them():
    assert list(groups_of(nn.Linear(2, 2))) == ["weights", "norms and biases"]


def test_the_multiplier_of_a_group_survives_every_change_of_the_rate():
    net = Net()
    cfg = cfg_with(**{"PROMPT.LR_MULT": 10.0, "SOLVER.BASE_LR": 0.2})
    optimizer = build_optimizer(cfg, net)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "weights": 0.2,
        "norms and biases": 0.2,
        "prompts": 2.0,
    }
    for rate in (0.1, 0.05):
        set_learning_rate(optimizer, rate)
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate, 10 * rate]


def test_what_is_frozen_is_in_no_group():
    net = Net()
    net.requires_grad_(False)
    net.prompts.requires_grad_(True)
    optimizer = build_optimizer(get_cfg(), net)
    assert [group["name"] for group in optimizer.param_groups] == ["prompts"]


def test_by_default_weights_decay_and_norms_biases_and_prompts_do_not():
    net = Net()
    optimizer = build_optimizer(get_cfg(), net)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"weights": 1e-4, "norms and biases": 0.0, "prompts": 0.0}


def test_the_settings_of_sgd_and_adamw_come_from_the_config():
    keys = {"SOLVER.MOMENTUM": 0.8, "SOLVER.NESTEROV": True, "SOLVER.BETAS": [0.8, 0.95]}
    sgd = build_optimizer(cfg_with(**keys), Net())
    assert isinstance(sgd, torch.optim.SGD)
    assert [(group["momentum"], group["nesterov"]) for group in sgd.param_groups] == [
        (0.8, True)
    ] * 3
    adamw = build_optimizer(cfg_with(**keys, **{"SOLVER.OPTIMIZING_METHOD": "adamw"}), Net())
    assert isinstance(adamw, torch.optim.AdamW)
    assert [group["betas"] for group in adamw.param_groups] == [(0.8, 0.95)] * 3


def test_an_update_of_sgd_is_nesterovs():
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1.0)
    cfg = cfg_with(**{"SOLVER.BASE_LR": 0.1, "SOLVER.WEIGHT_DECAY": 0.5})
    optimizer = build_optimizer(cfg, net)
    net.weight.grad = torch.tensor([[2.0]])
    optimizer.step()
    gradient = 2.0 + 0.5 * 1.0
    assert net.weight.item() == pytest.approx(1.0 - 0.1 * (gradient + 0.9 * gradient))


def optimizer_of(net, method, *, fused, monkeypatch):
    """Make an optimizer as on a GPU, or as on a CPU; torch's fused kernels run on this one too."""
    monkeypatch.setattr(optimizer_module, "_can_be_fused", lambda groups: fused or None)
    return build_optimizer(cfg_with(**{"SOLVER.OPTIMIZING_METHOD": method}), net)


def update(net, optimizer, scaler, clip, factor=1.0):
    """Update as `train_step` does."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(net(clip).square().mean() * factor).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    scaler.step(optimizer)
    scaler.update()
    return norm


def test_updates_are_fused_on_a_gpu_and_not_on_a_cpu():
    class Parameter:
        def __init__(self, is_cuda):
            self.is_cuda = is_cuda

    for places, fused in [([True, True], True), ([True, False], None), ([False], None)]:
        groups = [{"params": [Parameter(place)]} for place in places]
        assert optimizer_module._can_be_fused(groups) is fused
    assert build_optimizer(get_cfg(), Net()).param_groups[0]["fused"] is None


@pytest.mark.parametrize("method", ["sgd", "adamw"])
def test_fused_or_not_updates_clip_and_skip_what_overflows_alike_the_first_one_too(
    method, monkeypatch
):
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        net = nn.Linear(4, 3)
        start = net.weight.detach().clone()
        optimizer = optimizer_of(net, method, fused=fused, monkeypatch=monkeypatch)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        clip = torch.randn(5, 4)
        for number, factor in enumerate([1e38, 1.0, 1.0, 1e38, 1.0]):
            norm = update(net, optimizer, scaler, clip, factor)
            assert norm.isfinite() == (factor == 1.0)
            assert torch.equal(net.weight, start) == (number == 0)
            if factor == 1.0:
                assert norm > 0.1  # so the clipping counts
        assert scaler.get_scale() == 2.0**8
        ends.append(net.weight.detach())
    torch.testing.assert_close(*ends)


def test_a_run_that_has_not_begun_its_momentum_is_gone_on_from(monkeypatch):
    net = nn.Linear(4, 3)
    weight, clip = net.weight.detach().clone(), torch.randn(5, 4)
    fresh = optimizer_of(net, "sgd", fused=False, monkeypatch=monkeypatch).state_dict()
    optimizer = optimizer_of(net, "sgd", fused=True, monkeypatch=monkeypatch)
    optimizer.load_state_dict(fresh)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    update(net, optimizer, scaler, clip, 1e38)  # overflows
    assert all(not each["momentum_buffer"].any() for each in optimizer.state.values())
    assert torch.equal(net.weight, weight)


def test_the_state_of_another_optimizer_is_refused():
    two = build_optimizer(get_cfg(), nn.Linear(4, 3))
    state = build_optimizer(get_cfg(), Net()).state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        two.load_state_dict(state)


@pytest.mark.parametrize("method", ["sgd", "adamw"])
@pytest.mark.parametrize("fused", [True, False])
def test_the_state_of_another_device_goes_on_in_the_way_of_this_one(method, fused, monkeypatch):
    net = nn.Linear(4, 3)
    clip, scaler = torch.randn(5, 4), torch.amp.GradScaler("cpu", enabled=False)
    there = optimizer_of(net, method, fused=not fused, monkeypatch=monkeypatch)
    update(net, there, scaler, clip)
    copy = deepcopy(net)
    here = optimizer_of(copy, method, fused=fused, monkeypatch=monkeypatch)
    here.load_state_dict(deepcopy(there.state_dict()))
    assert [group["fused"] for group in here.param_groups] == [fused or None] * 2
    assert there.param_groups[0]["fused"] == (not fused or None)
    for model, optimizer in ((net, there), (copy, here)):
        update(model, optimizer, scaler, clip)
    torch.testing.assert_close(net.weight, copy.weight)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"SOLVER.OPTIMIZING_METHOD": "lamb"}, "lamb'; there are: sgd, adamw"),
        ({"PROMPT.LR_MULT": -1.0}, "LR_MULT is -1"),
        ({"SOLVER.MOMENTUM": 0.0}, "NESTEROV False"),
    ],
)
def test_what_makes_no_optimizer_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(cfg_with(**keys), Net())


def test_a_frozen_model_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(get_cfg(), nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.parametrize("name", [name for name, _ in BACKBONES])
def test_no_norm_and_no_bias_of_a_real_backbone_is_decayed(name):
    cfg = cfg_with(**{"MODEL.NAME": name, "PROMPT.ENABLE": True})
    with torch.device("meta"):
        net = build_backbone(cfg)
    model = nn.ModuleDict({"backbone": net, "prompts": nn.ModuleDict({"0": MotionPrompt()})})
    groups = groups_of(model)
    assert len(groups["prompts"]["params"]) == 2
    # in all of them what has one dimension is a norm's parameter or a bias, and nothing else is
    assert {value.ndim for value in groups["norms and biases"]["params"]} == {1}
    assert min(value.ndim for value in groups["weights"]["params"]) >= 2
    grouped = sum(len(group["params"]) for group in groups.values())
    assert grouped == len(list(model.parameters()))
