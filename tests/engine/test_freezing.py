"""Train only a part, end to end: what is frozen comes out of a run to the bit as it went in."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.engine.conftest import log_of, results_of
from tests.models.tiny import TINY
from vmp import engine
from vmp.data.clips import Batch
from vmp.engine.build import build_learner
from vmp.engine.checkpoint import list_checkpoints
from vmp.engine.normalization import recompute_statistics
from vmp.engine.step import Learner, train_step
from vmp.models import BACKBONES, VideoModel
from vmp.utils.files import read_tensors

pytestmark = pytest.mark.usefixtures("_one_thread")

HEAD = ("backbone.net.blocks.5.proj", "backbone.net.head")
TAIL = ("backbone.net.blocks.4.", "backbone.net.blocks.5.")  # of X3D
PROMPT = ("prompts.",)
# whatever is trained moves, however small its gradient, and what is frozen must not decay
DECAY = {"SOLVER__WEIGHT_DECAY": 0.1, "BN__WEIGHT_DECAY": 0.1, "PROMPT__WEIGHT_DECAY": 0.1}


def state_of(cfg):
    return read_tensors(list_checkpoints(cfg.OUTPUT_DIR)[-1])


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def source(make_cfg):
    """Return a function (model) -> weights of a short training of it, with a prompt."""

    def make(model="x3d"):
        cfg = make_cfg(model, f"source_{model}", SOLVER__MAX_EPOCH=1)
        engine.train(cfg)
        return list_checkpoints(cfg.OUTPUT_DIR)[-1]

    return make


# ---------------------------------------------------------------- updates


def make_learner(make_cfg, name, parts, prompted) -> Learner:
    sizes = {f"{name}__{key}".upper(): value for key, value in TINY[name].items()}
    changes = sizes | {"MODEL__NAME": name, "PROMPT__ENABLE": prompted, "TRAIN__PARTS": parts}
    changes |= DECAY | {"DATA__NUM_FRAMES": 8, "MODEL__DROPOUT_RATE": 0.5}
    return build_learner(make_cfg(**changes))


def make_batch(model: VideoModel) -> Batch:
    clip = torch.randint(256, (3, 3, model.clip_frames, 32, 32), dtype=torch.uint8)
    return Batch(clip, torch.tensor([0, 3, 5]), torch.arange(3), torch.zeros(3).long(), ())


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("name", [name for name, _ in BACKBONES])
def test_updates_and_precise_statistics_touch_nothing_that_is_frozen(make_cfg, name, prompted):
    cases = [["head"], ["last_blocks"]]
    if prompted:
        cases += [["prompt"], ["prompt", "head"]]
    for parts in cases:
        learner = make_learner(make_cfg, name, parts, prompted)
        model = learner.model
        before = {key: value.clone() for key, value in model.state_dict().items()}
        batches = [make_batch(model) for _ in range(2)]
        for epoch in range(2):
            model.train()
            train_step(learner, batches, epoch)
        recompute_statistics(model, iter(batches), 2, device=learner.device)
        moved = changed(before, model.state_dict())
        weights = {key for key, value in model.named_parameters() if value.requires_grad}
        layers = {key.rpartition(".")[0] for key in weights}
        statistics = {key for key in moved if "running_" in key or "num_batches" in key}
        assert moved - statistics == weights
        assert {key.rpartition(".")[0] for key in statistics} <= layers
        assert bool(statistics) is (parts == ["last_blocks"] and name != "timesformer")
        held = learner.optimizer.state_dict()
        assert len(held["state"]) == sum(len(group["params"]) for group in held["param_groups"])
        assert len(held["state"]) == len(weights)


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize(
    ("model", "parts", "trained"),
    [
        ("x3d", ["prompt"], PROMPT),
        ("x3d", ["prompt", "last_blocks"], PROMPT + TAIL),
        ("timesformer", ["head"], HEAD),
    ],
)
def test_a_run_changes_what_its_parts_name_and_nothing_else(
    make_cfg, source, model, parts, trained, caplog
):
    weights = source(model)
    cfg = make_cfg(
        model,
        TRAIN__PARTS=parts,
        TRAIN__INIT_FROM=weights,
        BN__USE_PRECISE_STATS=True,
        BN__NUM_BATCHES_PRECISE=2,
        TRAIN__EVAL_PERIOD=1,
        **DECAY,
    )
    engine.run(cfg)
    before, after = read_tensors(weights)["model"], state_of(cfg)["model"]
    moved = changed(before, after)
    assert moved == {name for name in before if name.startswith(trained)}
    text = (Path(cfg.OUTPUT_DIR) / "log.txt").read_text()
    count = sum(before[name].numel() for name in moved if not is_statistic(name))
    assert f"trained: {', '.join(parts)}: {count:,} of " in text
    assert "frozen with the values" not in text
    assert results_of(cfg)["counts"]["evaluated_videos"] == 16


def is_statistic(name):
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_a_frozen_run_stopped_and_resumed_is_the_same_to_the_bit(make_cfg, source):
    weights = source()
    options = {"TRAIN__PARTS": ["prompt", "last_blocks"], "TRAIN__INIT_FROM": weights}
    options |= DECAY | {"MODEL__DROPOUT_RATE": 0.3, "BN__USE_PRECISE_STATS": True}
    whole, halves = make_cfg("x3d", "whole", **options), make_cfg("x3d", "halves", **options)
    for cfg in (whole, halves):
        engine.train(cfg)
    list_checkpoints(halves.OUTPUT_DIR)[-1].unlink()
    engine.train(halves)
    a, b = state_of(whole), state_of(halves)
    assert not changed(a["model"], b["model"])
    moved = changed(read_tensors(weights)["model"], b["model"])
    assert moved == {name for name in b["model"] if name.startswith(PROMPT + TAIL)}
    assert log_of(halves, "start")[1]["origin"] == "resumed after epoch 1, step 4"


def test_a_run_of_other_parts_is_not_resumed(make_cfg):
    engine.train(make_cfg(SOLVER__MAX_EPOCH=1))
    with pytest.raises(ValueError, match="TRAIN.PARTS .*another OUTPUT_DIR"):
        engine.train(make_cfg(SOLVER__MAX_EPOCH=1, TRAIN__PARTS=["head"]))


def test_a_compiled_model_leaves_frozen_statistics_alone(make_cfg, source, monkeypatch):
    def compile_eagerly(self):
        nn.Module.compile(self, backend="eager", fullgraph=True)

    monkeypatch.setattr(VideoModel, "compile", compile_eagerly)
    weights = source()
    options = {"TRAIN__PARTS": ["prompt", "last_blocks"], "TRAIN__INIT_FROM": weights} | DECAY
    cfg = make_cfg("x3d", MODEL__COMPILE=True, SOLVER__MAX_EPOCH=1, **options)
    engine.train(cfg)
    after = state_of(cfg)["model"]
    moved = changed(read_tensors(weights)["model"], after)
    assert moved == {name for name in after if name.startswith(PROMPT + TAIL)}


def test_more_blocks_than_the_backbone_has_end_the_run_in_one_line(make_cfg):
    cfg = make_cfg("x3d", TRAIN__PARTS=["last_blocks"], TRAIN__LAST_BLOCKS=5)
    with pytest.raises(ValueError, match="LAST_BLOCKS is 5; .* from 1 to 4"):
        engine.train(cfg)


def warnings_of(cfg):
    lines = (Path(cfg.OUTPUT_DIR) / "log.txt").read_text().splitlines()
    return [line for line in lines if "frozen with the values" in line]


def test_a_start_that_would_stay_random_is_warned_of(make_cfg):
    scratch = make_cfg(out="scratch", TRAIN__PARTS=["prompt"], SOLVER__MAX_EPOCH=1)
    engine.run(scratch)
    assert len(warnings_of(scratch)) == 1
    engine.run(scratch)  # resumed: said once
    assert len(warnings_of(scratch)) == 1


def test_a_frozen_head_that_the_weights_do_not_fit_is_warned_of(make_cfg, source):
    weights = source("timesformer")
    state = read_tensors(weights)
    for name in ("weight", "bias"):
        state["model"][f"backbone.net.head.{name}"] = torch.ones_like(
            state["model"][f"backbone.net.head.{name}"]
        )[:3]
    torch.save(state, weights)
    options = {"TRAIN__INIT_FROM": weights, "SOLVER__MAX_EPOCH": 1}
    fixed = make_cfg(out="fixed", TRAIN__PARTS=["prompt"], **options)
    engine.run(fixed)
    (line,) = warnings_of(fixed)
    assert "2 tensors (backbone.net.head.weight, backbone.net.head.bias)" in line
    learned = make_cfg(out="learned", TRAIN__PARTS=["prompt", "head"], **options)
    engine.run(learned)
    assert not warnings_of(learned)


# ---------------------------------------------------------------- several processes


def train_each(cfgs):
    for cfg in cfgs:
        engine.train(cfg)


@pytest.mark.dist
@pytest.mark.parametrize("processes", [2, 3])  # the mean of three equal numbers can be another
def test_ranks_leave_frozen_statistics_and_fixed_prompts_alone(make_cfg, source, processes):
    weights = source()
    cases = {"prompt": (["prompt"], PROMPT), "tail": (["prompt", "last_blocks"], PROMPT + TAIL)}
    cfgs = [
        make_cfg(
            "x3d",
            out,
            TRAIN__PARTS=parts,
            TRAIN__INIT_FROM=weights,
            NUM_PROCESSES=processes,
            TRAIN__BATCH_SIZE=4 * processes,
            TEST__BATCH_SIZE=processes,
            BN__SYNC=processes == 2,
            BN__USE_PRECISE_STATS=True,
            SOLVER__MAX_EPOCH=1,
            **DECAY,
        )
        for out, (parts, _) in cases.items()
    ]
    fixed = make_cfg(
        out="fixed",
        NUM_PROCESSES=processes,
        TRAIN__BATCH_SIZE=4 * processes,
        TEST__BATCH_SIZE=processes,
        SOLVER__MAX_EPOCH=1,
        PROMPT__SIGMOID__LEARNABLE=False,
        PROMPT__SIGMOID__M=0.85,  # a third of three times these is another float32
        PROMPT__SIGMOID__N=0.45,
    )
    engine.launch(train_each, [*cfgs, fixed], num_processes=processes, timeout=60)
    before = read_tensors(weights)["model"]
    for cfg, (_, trained) in zip(cfgs, cases.values(), strict=True):
        moved = changed(before, state_of(cfg)["model"])
        assert moved == {name for name in before if name.startswith(trained)}
    for name, start in (("m", 0.85), ("n", 0.45)):
        kept = state_of(fixed)["model"][f"prompts.0.power_norm.{name}"]
        assert torch.equal(kept, torch.tensor([start]))
