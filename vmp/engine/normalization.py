"""Running statistics of batch normalisation: over the ranks, and recomputed before evaluation.

Those of frozen norms are never touched, not even by an average of equal values: with three ranks
that can round to another one.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
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
from vmp.models.sync_batchnorm import SyncBatchNorm
from vmp.models.video_model import frozen_modules
from vmp.utils.distributed import gather_objects
from vmp.utils.signals import Interrupted

SYNCHRONISED = (SyncBatchNorm, nn.SyncBatchNorm)


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
        Interrupted: `stop` gave a reason on any rank; on all of them. The statistics are as before.
    """
    training = model.training
    model.train()
    modules = get_bn_modules(model)
    if modules:
        # those that see the clips of all ranks have them go in step: one can't leave alone
        together = any(isinstance(module, SYNCHRONISED) for module in modules)
        reason = ""

        def clips() -> Iterator[Tensor]:
            nonlocal reason
            for batch in ahead(islice(batches, count), device):
                reason = _first(gather_objects(stop())) if together else get_on(stop())
                if reason:
                    raise _Stopped
                yield batch.clip

        with _restoring(modules):
            with contextlib.suppress(_Stopped):
                update_bn_stats(model, clips(), num_iters=count)
            stop_together(reason, "while statistics were recomputed")
        average_buffers(model)
    model.train(training)


def _first(reasons: Sequence[str]) -> str:
    return next(filter(None, reasons), "")


@contextlib.contextmanager
def _restoring(norms: Sequence[_NormBase]) -> Iterator[None]:
    """Restore the counters of training, for this may be done twice; if interrupted, everything."""
    before = [
        (norm.momentum, {name: value.clone() for name, value in norm.named_buffers()})
        for norm in norms
    ]
    names = {"num_batches_tracked"}
    try:
        yield
    except Interrupted:
        names |= {"running_mean", "running_var"}
        raise
    finally:
        for norm, (momentum, buffers) in zip(norms, before, strict=True):
            norm.momentum = momentum
            for name in names & buffers.keys():
                norm.get_buffer(name).copy_(buffers[name])
