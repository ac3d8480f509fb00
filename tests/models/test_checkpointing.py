"""MODEL.ACT_CHECKPOINT: blocks computed again in the backward pass change memory, nothing else."""

import copy
import pickle
from pathlib import Path

import bench_figures
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.models.tiny import TINY
from vmp.config.defaults import get_cfg
from vmp.models import (
    BACKBONES,
    Backbone,
    VideoModel,
    build_backbone,
    convert_sync_batchnorm,
    model_cost,
)
from vmp.models.backbone import recompute_blocks

pytestmark = pytest.mark.usefixtures("_one_thread")

NAMES = [name for name, _ in BACKBONES]


def make(name: str, *, crop: int = 32, **kwargs) -> Backbone:
    """Make a backbone whose draws are seeded, with a dropout and a drop path that do something."""
    torch.manual_seed(1)
    arguments = {"num_classes": 5, "num_frames": 8, "crop_size": crop, **TINY[name], **kwargs}
    backbone = BACKBONES.get(name)(**arguments)
    for parameter in backbone.parameters():  # temporal_fc starts at zero
        nn.init.normal_(parameter, std=0.1)
    return backbone.train()


def clips(backbone: Backbone, *, crop: int = 32) -> list[torch.Tensor]:
    torch.manual_seed(2)
    return [torch.randn(2, 3, 8 // stride, crop, crop) for stride in backbone.strides]


def step(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Return logits, gradients and buffers after a seeded forward and backward pass."""
    inputs = clips(backbone)
    torch.manual_seed(3)
    logits = backbone(inputs)
    logits.square().sum().backward()
    gradients = {f"grad {name}": p.grad for name, p in backbone.named_parameters()}
    return {"logits": logits, **gradients, **dict(backbone.named_buffers())}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_running_statistics_are_those_without_to_the_bit(name):
    plain, again = make(name), make(name)
    recompute_blocks(again)
    assert list(plain.state_dict()) == list(again.state_dict())
    assert_equal(step(plain), step(again))


@pytest.mark.parametrize("name", NAMES)
def test_it_saves_memory(name):
    size = {"crop": 64} | ({"depth": 6} if name == "timesformer" else {})
    plain, again = make(name, **size), make(name, **size)
    recompute_blocks(again)
    inputs = clips(plain, crop=64)
    peaks = [
        bench_figures.cpu_peak(lambda each=each: each(inputs).sum().backward())
        for each in (plain, again)
    ]
    assert peaks[1] < 0.8 * peaks[0]


@pytest.mark.parametrize("name", ["x3d", "timesformer"])
def test_a_copy_and_a_pickled_model_compute_their_own_blocks_again(name):
    again = make(name)
    recompute_blocks(again)
    for twin in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert_equal(step(copy.deepcopy(again)), step(twin))
        blocks = [block for block in twin.modules() if isinstance(block, twin.blocks)]
        assert blocks
        assert all(block.forward.args[0] is block for block in blocks)


def compare_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    results = []
    for switch in (False, True):
        backbone = make("x3d")
        if switch:
            recompute_blocks(backbone)
        convert_sync_batchnorm(backbone)
        parallel = DistributedDataParallel(backbone, broadcast_buffers=False)
        inputs = [clip[rank:] for clip in clips(backbone)]  # two clips on rank 0, one on rank 1
        parallel(inputs).square().sum().backward()
        gradients = {name: p.grad for name, p in backbone.named_parameters()}
        results.append(gradients | dict(backbone.named_buffers()))
    assert_equal(*results)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.dist
def test_ranks_whose_norms_are_synchronised_agree_too(tmp_path: Path):
    mp.spawn(compare_on_rank, args=(str(tmp_path),), nprocs=2)


def test_frozen_blocks_keep_their_statistics():
    backbone = make("x3d").requires_grad_(False).eval()
    recompute_blocks(backbone)
    inputs = [clip.requires_grad_() for clip in clips(backbone)]
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(inputs).sum().backward()
    assert inputs[0].grad.any()
    assert_equal(before, dict(backbone.named_buffers()))


def test_a_failing_block_leaves_no_spare_buffers():
    backbone = make("x3d")
    recompute_blocks(backbone)
    owned = {name: id(buffer) for name, buffer in backbone.named_buffers()}
    loss = backbone(clips(backbone)).sum()
    block = next(block for block in backbone.modules() if isinstance(block, backbone.blocks))

    def fail(*args):
        raise RuntimeError("planted")

    block.branch2.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        loss.backward()
    assert owned == {name: id(buffer) for name, buffer in backbone.named_buffers()}


@pytest.mark.parametrize("name", ["x3d", "timesformer"])
def test_the_cost_of_a_view_is_not_counted_twice(name):
    plain, again = make(name), make(name)
    recompute_blocks(again)
    costs = [model_cost(VideoModel(each, num_frames=8), 8, 32) for each in (plain, again)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("enabled", [False, True])
def test_the_switch_is_that_of_the_config(enabled):
    cfg = get_cfg()
    cfg.MODEL.NAME, cfg.MODEL.ACT_CHECKPOINT, cfg.DATA.TRAIN_CROP_SIZE = "x3d", enabled, 32
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    patched = [module for module in backbone.modules() if "forward" in vars(module)]
    assert len(patched) == (26 if enabled else 0)  # residual blocks of an X3D


def test_a_backbone_that_names_no_blocks_is_refused():
    with pytest.raises(ValueError, match="ACT_CHECKPOINT is True, but this backbone names no bloc"):
        recompute_blocks(Backbone(nn.Linear(2, 2)))
