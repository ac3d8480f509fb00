"""Running statistics of batch normalisation: over the ranks, and recomputed before evaluation.

Those of frozen norms are never touched, not even by an average of equal values: with three ranks
that can round to another one.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from vmp.data.clips import Batch
from vmp.models.video_model import frozen_modules


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Average the running statistics of the norms that are not frozen over the ranks."""
    if not dist.is_initialized():
        return
    frozen = {id(module) for top in frozen_modules(model) for module in top.modules()}
    for module in model.modules():
        if not isinstance(module, _NormBase) or id(module) in frozen:
            continue
        for buffer in module.buffers(recurse=False):
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= dist.get_world_size()


def recompute_statistics(
    model: nn.Module, batches: Iterator[Batch], count: int, *, device: torch.device
) -> None:
    """Set the running statistics to the averages over `count` batches (precise BN).

    As PySlowFast does before an evaluation; the weights stay as they are, and so do norms that
    training mode leaves in evaluation mode: the frozen ones of a VideoModel. The ranks' results are
    averaged. Without any other norm no batch is read.
    """
    training = model.training
    model.train()
    if get_bn_modules(model):
        clips = (batch.clip.to(device, non_blocking=True) for batch in batches)
        update_bn_stats(model, clips, num_iters=count)
        average_buffers(model)
    model.train(training)
