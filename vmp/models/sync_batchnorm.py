"""Batch norm over the batches of all processes, on any device.

`torch.nn.SyncBatchNorm` refuses CPU tensors; the module here is correct on every backend and is
used where the processes talk by something else than NCCL.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks; the gradient of a sum that all ranks use is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum of `value` over all ranks, differentiable; every rank must call it."""
    total: Tensor = _SumOverRanks.apply(value)
    return total


class SyncBatchNorm(nn.BatchNorm3d):
    """Batch norm with the statistics of the batches of all ranks, which may differ in size.

    In evaluation, and in a single process, it is the ordinary one. A BatchNorm3d, so that what
    looks for batch norms (fvcore's precise statistics) finds it, though it takes other shapes too.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(
                f"a tensor of {input.ndim} dimensions was given; (B, C, ...) is needed"
            )

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised (B, C, ...), in the type it came in."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        with torch.autocast(input.device.type, enabled=False):
            values = input.to(torch.promote_types(input.dtype, torch.float32))
            return self._normalise(values).to(input.dtype)

    def _normalise(self, values: Tensor) -> Tensor:
        dims = [dim for dim in range(values.ndim) if dim != 1]
        shape = [1, -1] + [1] * (values.ndim - 2)
        # two passes, mean and then squared distances: sums of squares would cancel
        local = torch.cat((values.sum(dims), values.new_tensor([values.numel() / values.shape[1]])))
        total = sum_over_ranks(local)
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = values - mean.view(shape)
        var = sum_over_ranks(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self._update(mean.detach(), var.detach() * count / (count - 1))
        out = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # momentum None is torch's cumulative average
        weight = self.momentum
        if weight is None:
            weight = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), weight)


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replace the batch norms in `module` by synchronised ones, in place, and return it.

    Parameters and buffers stay the same tensors, so the state dict and an optimizer are unaffected.
    With NCCL these are `nn.SyncBatchNorm`, else ours. A module that is itself a batch norm is
    returned as a new module.
    """
    if dist.is_initialized() and dist.get_backend() == "nccl":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return converted
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
        return _converted(module)
    for name, child in module.named_children():
        setattr(module, name, convert_sync_batchnorm(child))
    return module


def _converted(norm: _BatchNorm) -> SyncBatchNorm:
    sync = SyncBatchNorm(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
        device="meta",
    )
    sync._parameters = norm._parameters
    sync._buffers = norm._buffers
    return sync.train(norm.training)
