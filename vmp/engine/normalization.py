"""Running statistics of batch normalisation: over the ranks, and recomputed before evaluation."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from vmp.data.clips import Batch


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Average the floating buffers, the running statistics, over the ranks."""
    if not dist.is_initialized():
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


def recompute_statistics(
    model: nn.Module, batches: Iterator[Batch], count: int, *, device: torch.device
) -> None:
    """Set the running statistics to the averages over `count` batches (precise BN).

    As PySlowFast does before an evaluation; the weights stay as they are. The ranks' results are
    averaged.
    """
    if not get_bn_modules(model):
        return
    training = model.training
    model.train()
    clips = (batch.clip.to(device, non_blocking=True) for batch in batches)
    update_bn_stats(model, clips, num_iters=count)
    model.train(training)
    average_buffers(model)
