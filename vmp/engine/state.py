"""All that a training goes on from: put together for a checkpoint, and set again."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from vmp.engine.step import Learner
from vmp.models import VideoModel
from vmp.utils.distributed import get_rank, get_world_size, is_main

logger = logging.getLogger(__name__)


def collect_state(learner: Learner, config: str, records: str) -> dict[str, Any]:
    """Return the content of a checkpoint; on all ranks, of which rank 0's is to be written.

    Keys: model (the weights to test and to start from: the averaged ones where there is an EMA),
    live (those that are trained, where there is), averaged (updates in the EMA), optimizer, scaler,
    epoch, update (of the next epoch), closing (what ends an epoch is still to be done), step, best
    (top-1 of the best validation), statistics (each rank's running statistics, where there are
    several ranks), threads, records (of the training set, described), config. Step randomness is a
    function of (seed, step, rank), and the order of the clips one of (seed, epoch): neither has a
    state.
    """
    state: dict[str, Any] = {
        "model": learner.evaluated.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "epoch": learner.epoch,
        "update": learner.update,
        "closing": learner.closing,
        "step": learner.step,
        "best": learner.best,
        "statistics": _gather(_statistics(learner.model)),
        "threads": torch.get_num_threads(),
        "records": records,
        "config": config,
    }
    if learner.ema is not None:
        state["live"] = learner.model.state_dict()
        state["averaged"] = int(learner.ema.n_averaged)
    return state


def restore_state(learner: Learner, state: Mapping[str, Any]) -> None:
    """Put a learner where the checkpoint was taken; on all ranks."""
    if learner.ema is not None:
        learner.ema.module.load_state_dict(state["model"])
        learner.ema.n_averaged.fill_(state["averaged"])
    learner.model.load_state_dict(state.get("live", state["model"]))
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scaler.load_state_dict(state["scaler"])
    learner.epoch, learner.step = state["epoch"], state["step"]
    learner.update, learner.best = state.get("update", 0), state.get("best", float("-inf"))
    learner.closing = state.get("closing", False)
    _set_statistics(learner.model, state.get("statistics") or [])
    threads = state.get("threads", torch.get_num_threads())
    if is_main() and threads != torch.get_num_threads():
        logger.warning(
            "the checkpoint was made with %d threads, there are %d: sums may differ in their last "
            "bits; set OMP_NUM_THREADS %d to go on to the bit",
            *(threads, torch.get_num_threads(), threads),
        )


def _statistics(model: VideoModel) -> dict[str, Tensor]:
    """Return the floating buffers of the norms, which each rank has of its own clips."""
    return {
        f"{prefix}.{name}": buffer
        for prefix, module in model.named_modules()
        if isinstance(module, _NormBase)
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }


def _gather(statistics: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return every rank's statistics on rank 0; nothing where one rank says it all."""
    if get_world_size() == 1 or not statistics:
        return []
    flat = torch.cat([value.flatten() for value in statistics.values()])
    flats = [torch.empty_like(flat) for _ in range(get_world_size())]
    dist.all_gather(flats, flat)
    sizes = [value.numel() for value in statistics.values()]
    return [
        {
            name: part.view_as(statistics[name])
            for name, part in zip(statistics, flat.split(sizes), strict=True)
        }
        for flat in flats
    ]


@torch.no_grad()
def _set_statistics(model: VideoModel, ranks: list[Mapping[str, Tensor]]) -> None:
    """Give this rank its own statistics, or the mean of all where their number has changed."""
    if not ranks:
        return
    own = _statistics(model)
    for name, buffer in own.items():
        if len(ranks) == get_world_size():
            buffer.copy_(ranks[get_rank()][name])
        else:
            buffer.copy_(torch.stack([rank[name] for rank in ranks]).mean(dim=0))
