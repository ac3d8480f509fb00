"""One update of a model: forward and backward over micro-batches, clip, optimizer."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from vmp.data.clips import Batch
from vmp.models.video_model import VideoModel
from vmp.prompts.functional import normalize
from vmp.solver import ActionLoss, Mixing, set_learning_rate
from vmp.utils.distributed import get_rank


@dataclass
class Learner:
    """A model and all that an update of it needs."""

    model: VideoModel
    parallel: nn.Module  # `model` itself, or wrapped for several processes
    loss: ActionLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # switched off unless the precision is float16
    schedule: Callable[[float], float]  # epoch -> learning rate
    mixing: Mixing | None
    device: torch.device
    precision: torch.dtype
    max_norm: float  # of the gradient; 0: not clipped
    seed: int
    ema: AveragedModel | None = None  # averages the weights
    epoch: int = 0  # epochs done
    update: int = 0  # updates of the next epoch done
    closing: bool = False  # the updates of an epoch are done, what ends it is not
    step: int = 0  # updates done in all
    best: float = float("-inf")  # top-1 of the best validation

    @property
    def evaluated(self) -> VideoModel:
        """The model that is validated, tested and started from."""
        return self.model if self.ema is None else cast(VideoModel, self.ema.module)


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Return the context in which a model runs in `precision`; float32 changes nothing."""
    enabled = precision != torch.float32
    return torch.autocast(device.type, precision if enabled else None, enabled=enabled)


def train_step(learner: Learner, batches: Sequence[Batch], epoch: float) -> dict[str, Tensor]:
    """Update the model once, by the mean gradient of `batches`.

    Args:
        learner: what is updated; its step is counted up.
        batches: this rank's micro-batches, of equal size, on its device (see `ahead`).
        epoch: fractional epoch, which fixes the learning rate.

    Returns:
        Scalars that stay on the device, so that nothing waits for them: loss, task loss,
        variation, gradient norm (before clipping), and top1 in percent where clips are not mixed.
    """
    set_learning_rate(learner.optimizer, learner.schedule(epoch))
    learner.optimizer.zero_grad(set_to_none=True)
    parts = []
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        with contextlib.nullcontext() if last else _without_reduction(learner.parallel):
            parts.append(_backward(learner, batch, number, share=1 / len(batches)))
    learner.scaler.unscale_(learner.optimizer)
    norm = _clip_gradients(learner.model, learner.max_norm)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    if learner.ema is not None:
        _average(learner.ema, learner.model)
    learner.step += 1
    means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
    return means | {"grad_norm": norm}


def _clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients to a norm of at most `max_norm` (0: leave them), return that before."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([cast(Tensor, parameter.grad) for parameter in parameters])
    if max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


@torch.no_grad()
def _average(ema: AveragedModel, model: nn.Module) -> None:
    """Take the model into its average.

    As AveragedModel does itself, but that copies its count to the device, and the host waits.
    """
    averaged: list[Tensor] = list(ema.module.parameters())
    present: list[Tensor] = list(model.parameters())
    copied = list(zip(ema.module.buffers(), model.buffers(), strict=True))
    if int(ema.n_averaged):
        assert ema.multi_avg_fn is not None
        ema.multi_avg_fn(averaged, present, ema.n_averaged)
    else:
        copied += zip(averaged, present, strict=True)
    for own, other in copied:
        own.copy_(other)
    ema.n_averaged += 1


def _without_reduction(parallel: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Keep gradients on their rank for now, where there are several ranks."""
    if isinstance(parallel, DistributedDataParallel):
        return parallel.no_sync()
    return contextlib.nullcontext()


def _backward(learner: Learner, batch: Batch, number: int, share: float) -> dict[str, Tensor]:
    model = learner.model
    seed_step(learner.seed, learner.step, number, get_rank())
    clip, label = batch.clip, batch.label
    target = label
    if learner.mixing is not None:
        generator = torch.Generator().manual_seed(torch.initial_seed())
        clip, target = learner.mixing(normalize(clip, model.mean, model.std), label, generator)
    with autocast(learner.device, learner.precision):
        output = learner.parallel(clip)
        loss, task = learner.loss(output.logits, output.variation, target)
    learner.scaler.scale(loss * share).backward()
    scalars = {"loss": loss, "task_loss": task, "variation": output.variation}
    if learner.mixing is None:
        scalars["top1"] = (output.logits.argmax(1) == label).float().mean() * 100
    return {name: value.detach() for name, value in scalars.items()}


def seed_step(*numbers: int) -> None:
    """Make dropout, drop path and mixing a function of (seed, step, micro-batch, rank).

    A resumed run then draws what the uninterrupted one would have, without any state in files.
    """
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1)
