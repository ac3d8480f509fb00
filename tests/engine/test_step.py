"""An update: nothing in it has the host wait for the device, and its parts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.engine.conftest import log_of
from vmp import engine
from vmp.engine import training
from vmp.engine.progress import Progress
from vmp.engine.saver import Saver
from vmp.engine.step import Learner, _average, _clip_gradients
from vmp.solver import optimizer

pytestmark = pytest.mark.usefixtures("_one_thread")

# what has the host wait for values of a GPU: scalars, and results whose size depends on values
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}


class HostWaitsError(Exception):
    pass


class NoWaiting(TorchDispatchMode):
    """Refuses, while it is `on`, what would have the host wait if the model were on a GPU.

    There the model, what was made of it and of the batch would be. Not so what is drawn or counted
    on the host, which may be read. A list made a tensor and used with them would be copied.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.kept: list[Tensor] = []  # so that no memory is used twice
        self.device: set[int] = set()
        self.lists: set[int] = set()

    def place(self, tensors: Any, there: set[int]) -> None:
        for tensor in tensors:
            self.kept.append(tensor)
            for where in (self.device, self.lists):
                where.discard(tensor.untyped_storage().data_ptr())
            there.add(tensor.untyped_storage().data_ptr())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.on:
            return result
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        places = {tensor.untyped_storage().data_ptr() for tensor in given}
        if places & self.device:
            masked = name in ("index", "index_put_") and torch.bool in {t.dtype for t in given}
            if name in READS or masked:
                raise HostWaitsError(f"{name} of {tuple(given[0].shape)}")
            if places & self.lists:
                raise HostWaitsError(f"{name} takes a list")
            self.place([*made, *(given if name.endswith("_") else [])], self.device)
        elif (name == "lift_fresh" and made[0].ndim) or places & self.lists:
            self.place(made, self.lists)
        return result


def train_without_waiting(cfg, monkeypatch):
    """Train, refusing to wait from the beginning of each update to its log line or checkpoint."""
    mode, step = NoWaiting(), training.train_step

    def watched(learner: Learner, batches, epoch):
        for module in (learner.model, *([learner.ema.module] if learner.ema else [])):
            mode.place([*module.parameters(), *module.buffers()], mode.device)
        mode.place([each for batch in batches for each in (batch.clip, batch.label)], mode.device)
        mode.on = True
        return step(learner, batches, epoch)

    monkeypatch.setattr(training, "train_step", watched)
    for owner, name in ((Progress, "flush"), (Saver, "save")):
        allowed = getattr(owner, name)

        def call(*args, allowed=allowed, **kwargs):
            mode.on = False
            return allowed(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)
    train_epoch = training._train_epoch

    def train_epoch_watched(*args):
        with mode:
            train_epoch(*args)

    monkeypatch.setattr(training, "_train_epoch", train_epoch_watched)
    engine.train(cfg)
    assert mode.kept


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("x3d", {"SOLVER__CLIP_GRAD_L2NORM": 1.0, "MODEL__DROPOUT_RATE": 0.5}),
        (
            "timesformer",
            {"TRAIN__PRECISION": "bfloat16", "SOLVER__OPTIMIZING_METHOD": "adamw"},
        ),
        ("timesformer", {"TRAIN__BATCH_SIZE": 4, "TRAIN__GLOBAL_BATCH_SIZE": 8}),
        ("x3d", {"TRAIN__MIXUP_ALPHA": 0.4, "SOLVER__EMA_DECAY": 0.9}),
        ("timesformer", {"TRAIN__CUTMIX_ALPHA": 1.0, "TIMESFORMER__DROP_PATH_RATE": 0.2}),
    ],
)
def test_the_host_waits_for_nothing_between_log_lines(make_cfg, monkeypatch, model, options):
    # on a GPU it does not look at the labels
    monkeypatch.setattr(F, "one_hot", lambda label, classes: torch.eye(classes).long()[label])
    cfg = make_cfg(model, **options, SOLVER__MAX_EPOCH=1)
    train_without_waiting(cfg, monkeypatch)
    assert [record["step"] for record in log_of(cfg)] == [2, 4]


@pytest.mark.parametrize("fused", [True, False])
def test_in_float16_the_host_waits_for_overflows_unless_the_optimizer_is_fused(
    make_cfg, monkeypatch, fused
):
    monkeypatch.setattr(optimizer, "_can_be_fused", lambda groups: fused or None)
    cfg = make_cfg(TRAIN__PRECISION="float16", SOLVER__MAX_EPOCH=1)
    if fused:
        train_without_waiting(cfg, monkeypatch)
        assert len(log_of(cfg)) == 2
    else:
        with pytest.raises(HostWaitsError, match="_local_scalar_dense"):
            train_without_waiting(cfg, monkeypatch)


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (lambda clip: clip * clip.float().mean().item(), "_local_scalar_dense"),
        (lambda clip: clip if clip.max() else clip, "_local_scalar_dense"),
        (lambda clip: clip[clip.sum((1, 2, 3, 4)) >= 0], "index of"),
        (lambda clip: clip + torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1), "takes a list"),
    ],
)
def test_planted_waiting_is_caught(make_cfg, monkeypatch, planted, message):
    cfg = make_cfg(SOLVER__MAX_EPOCH=1)

    class Planted:
        def __call__(self, clip, label, generator):
            return planted(clip), label

    build = training.build_learner

    def build_planted(cfg):
        learner = build(cfg)
        learner.mixing = Planted()
        return learner

    monkeypatch.setattr(training, "build_learner", build_planted)
    with pytest.raises(HostWaitsError, match=message):
        train_without_waiting(cfg, monkeypatch)


def test_the_average_of_the_weights_is_torchs_to_the_bit():
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4))
    averages = [AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for _ in range(2)]
    for _ in range(3):
        model(torch.randn(2, 3, 4, 5, 6))
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        averages[0].update_parameters(model)
        _average(averages[1], model)
        one, other = (average.state_dict() for average in averages)
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not torch.equal(averages[1].module[0].weight, model[0].weight)
    assert torch.equal(averages[1].module[1].running_mean, model[1].running_mean)


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_gradients_are_clipped_as_torch_does_and_left_alone_at_zero(max_norm):
    models = [nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)]
    for model in models:
        model.load_state_dict(models[0].state_dict())
        model(torch.ones(2, 3)).square().sum().backward()
    norm = _clip_gradients(models[0], max_norm)
    assert norm > 0.5
    assert torch.equal(norm, nn.utils.clip_grad_norm_(models[1].parameters(), 0.5))
    wanted = models[1] if max_norm else models[2]
    assert torch.equal(models[0].weight.grad, wanted.weight.grad)
