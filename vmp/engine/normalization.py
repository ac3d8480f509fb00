"""Running statistics of batch normalisation: over the ranks, and recomputed before evaluation.

Those of frozen norms are never touched, not even by an average of equal values: with three ranks
that can round to another one.
"""

import contextlib
from collections.abc import Callable, Iterator
from itertools import islice

import torch
import torch.distributed as dist
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from vmp.data.clips import Batch
from vmp.engine.agreement import get_on
from vmp.engine.stopping import stop_together
from vmp.engine.transfer import ahead
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


class _Stopped(Exception):  # noqa: N818  (no error)
    """Leaves fvcore's loop over the batches early."""


def recompute_statistics(
    model: nn.Module,
    batches: Iterator[Batch],
    count: int,
    *,
    device: torch.device,
    stop: Callable[[], str] = lambda: "",
) -> None:
    """Set the running statistics to the averages over `count` batches (precise BN).

    As PySlowFast does before an evaluation; the weights stay as they are, and so do norms that
    training mode leaves in evaluation mode: the frozen ones of a VideoModel. The ranks' results are
    averaged. Without any other norm no batch is read.

    Args:
        model: of which the running statistics are set.
        batches: at least `count` of them, on the host.
        count: batches to average over.
        device: of the model.
        stop: asked before each batch; with an answer other than "", the reason, the ranks go on no
            further.

    Raises:
        Interrupted: `stop` gave a reason on any rank; on all of them. The statistics are not to be
            used then.
    """
    training = model.training
    model.train()
    if get_bn_modules(model):
        reason = ""

        def clips() -> Iterator[Tensor]:
            nonlocal reason
            for batch in ahead(islice(batches, count), device):
                if reason := get_on(stop()):
                    raise _Stopped
                yield batch.clip

        counters = [module.num_batches_tracked.clone() for module in get_bn_modules(model)]
        with contextlib.suppress(_Stopped):
            update_bn_stats(model, clips(), num_iters=count)
        for module, counter in zip(get_bn_modules(model), counters, strict=True):
            module.num_batches_tracked.copy_(counter)  # of training: this may be done twice
        stop_together(reason, "while statistics were recomputed")
        average_buffers(model)
    model.train(training)
