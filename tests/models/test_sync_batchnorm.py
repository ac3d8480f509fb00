"""Two processes with half a batch each do what one does with the whole, in float64."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vmp.config.defaults import get_cfg
from vmp.models import build_model
from vmp.models.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm

SPLIT = (4, 2)  # clips of each rank: they need not be equal


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.BatchNorm3d(4, affine=False)
    ).double()


def make_batch() -> torch.Tensor:
    values = torch.randn(sum(SPLIT), 3, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    return values.double() * 3 + 100  # a mean that squares would cancel on


def run_steps(
    net: nn.Module, batch: torch.Tensor, weights: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Two training passes, then one in evaluation; the loss is a sum, so ranks' gradients add."""
    batch = batch.clone().requires_grad_()
    net.train()
    net(batch)
    out = net(batch)
    (out * weights).square().sum().backward()
    results = {f"grad.{name}": p.grad for name, p in net.named_parameters()}
    results |= {f"buffer.{name}": value for name, value in net.named_buffers()}
    return results | {"out": out.detach(), "grad": batch.grad, "eval": net.eval()(batch).detach()}


def make_weights() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(sum(SPLIT), 4, 2, 3, 3, generator=generator).double()


def run_rank(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    net = convert_sync_batchnorm(make_net())
    assert sum(isinstance(m, SyncBatchNorm) for m in net.modules()) == 2
    assert_built_models_obey_the_switch()
    part = slice(0, SPLIT[0]) if rank == 0 else slice(SPLIT[0], None)
    torch.save(run_steps(net, make_batch()[part], make_weights()[part]), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def assert_built_models_obey_the_switch() -> None:
    cfg = get_cfg()
    for cfg.BN.SYNC in (False, True):
        with torch.device("meta"):
            modules = list(build_model(cfg).modules())
        synchronised = [isinstance(m, SyncBatchNorm) for m in modules if isinstance(m, _BatchNorm)]
        assert synchronised == [cfg.BN.SYNC] * 84


@pytest.mark.dist
def test_two_processes_equal_one_on_the_whole_batch(tmp_path: Path):
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    whole = run_steps(make_net(), make_batch(), make_weights())
    close = {"rtol": 1e-9, "atol": 1e-9}
    for name, expected in whole.items():
        values = [part[name] for part in parts]
        if name in ("out", "grad", "eval"):
            torch.testing.assert_close(torch.cat(values), expected, **close)
        elif name.startswith("grad."):
            torch.testing.assert_close(values[0] + values[1], expected, **close)
        else:
            torch.testing.assert_close(values[0], expected, **close)
            torch.testing.assert_close(values[1], expected, **close)


def test_conversion_keeps_the_state_dict_and_the_tensors():
    net = make_net()
    before = net.state_dict()
    parameters = list(net.parameters())
    net = convert_sync_batchnorm(net)
    assert list(net.state_dict()) == list(before)
    assert all(new is old for new, old in zip(net.parameters(), parameters, strict=True))
    assert all(value.data_ptr() == before[n].data_ptr() for n, value in net.state_dict().items())


def test_one_process_does_what_the_ordinary_norm_does():
    ours = run_steps(convert_sync_batchnorm(make_net()), make_batch(), make_weights())
    for name, expected in run_steps(make_net(), make_batch(), make_weights()).items():
        assert torch.equal(ours[name], expected), name
