"""What every backbone is: a network on one or two pathways that gives logits at one or more places.

A backbone is a registered function with keyword arguments only: `num_classes`, `num_frames`,
`crop_size`, `dropout_rate` and the keys of its config section in lower case. `crop_size` is that
of training; the head then sees one place. A larger crop gives several places (fully convolutional
testing).
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vmp.utils.registry import Registry

BACKBONES = Registry("backbone")

# Kernels of a residual block's first convolution, (T, H, W): they see one frame, or three.
FRAME, THREE = (1, 1, 1), (3, 1, 1)


class Backbone(nn.Module):
    """A network with its frame strides.

    Args:
        net: maps a clip (one pathway), or a list of clips that it may overwrite (several), to
            logits (B, classes, T', H', W'), never probabilities.
        strides: one per pathway, slowest first: a pathway of stride s sees one frame in s. (1,)
            for one pathway, (alpha, 1) for SlowFast.
        blocks: types of the modules in `net` that `recompute_blocks` is for, none in another.
    """

    def __init__(
        self,
        net: nn.Module,
        strides: tuple[int, ...] = (1,),
        blocks: tuple[type[nn.Module], ...] = (),
    ) -> None:
        super().__init__()
        assert strides
        self.net = net
        self.strides = strides
        self.blocks = blocks

    def place_logits(self, pathways: Sequence[Tensor]) -> Tensor:
        """Return the logits of every place the head sees.

        Args:
            pathways: one normalised clip (B, 3, T / stride, H, W) per pathway, slowest first.

        Returns:
            (B, classes, T', H', W'); one place at the training crop.

        Raises:
            ValueError: not as many clips as pathways.
        """
        if len(pathways) != len(self.strides):
            raise ValueError(
                f"{len(pathways)} clips were given; the backbone has {len(self.strides)} pathways"
            )
        # pytorchvideo's multi-pathway stages overwrite the list they get: it must be our own
        places: Tensor = self.net(list(pathways) if len(pathways) > 1 else pathways[0])
        return places

    def forward(self, pathways: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes) for one clip per pathway, see `place_logits`.

        With one place these are the head's own. With several they are the log of the mean of the
        places' probabilities, so that their softmax is PySlowFast's evaluation output (softmax per
        place, then mean); computed in float32 at least.
        """
        places = self.place_logits(pathways).flatten(2)  # (B, classes, places)
        count = places.shape[2]
        if count == 1:
            return places.squeeze(2)
        places = places.to(torch.promote_types(places.dtype, torch.float32))
        return places.log_softmax(dim=1).logsumexp(dim=2) - math.log(count)


def recompute_blocks(backbone: Backbone) -> None:
    """Have every block keep its inputs only, and compute the rest once more in the backward pass.

    This is activation checkpointing: less memory for one more forward pass. Names in the state
    dict, gradients, random draws and running statistics are those without.

    Raises:
        ValueError: a backbone that does not say what its blocks are.
    """
    blocks = [block for block in backbone.net.modules() if isinstance(block, backbone.blocks)]
    if not blocks:
        raise ValueError(
            "MODEL.ACT_CHECKPOINT is True, but this backbone names no blocks to compute again; "
            "give Backbone its `blocks`, or set ACT_CHECKPOINT False"
        )
    for block in blocks:
        # on the instance, since a module around it would change the names in the state dict
        block.forward = functools.partial(_forward_again, block)


def _forward_again(block: nn.Module, *inputs: Any, **kwargs: Any) -> Any:
    forward = type(block).forward
    if not torch.is_grad_enabled():
        return forward(block, *inputs, **kwargs)
    if not torch.compiler.is_compiling():  # a compiled graph changes statistics once by itself
        kwargs["context_fn"] = functools.partial(_contexts, block)
    return checkpoint(forward, block, *inputs, use_reentrant=False, **kwargs)


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Return what surrounds a block the first time and the second."""
    return contextlib.nullcontext(), _spare_buffers(block)


@contextlib.contextmanager
def _spare_buffers(block: nn.Module) -> Iterator[None]:
    """Give `block` copies of its buffers, so that norms don't count the same batch twice."""
    owners = [module for module in block.modules() if module._buffers]
    kept = [module._buffers for module in owners]
    for module in owners:
        module._buffers = {n: b if b is None else b.clone() for n, b in module._buffers.items()}
    try:
        yield
    finally:
        for module, buffers in zip(owners, kept, strict=True):
            module._buffers = buffers


def plain_strides(net: nn.Module) -> nn.Module:
    """Make the strides of convolutions Python's integers, and return `net`.

    pytorchvideo gives some of them as NumPy's, which torch.compile takes for variables.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = tuple(int(stride) for stride in module.stride)
    return net


def check_choice(key: str, value: object, allowed: Sequence[object]) -> None:
    """Raise ValueError if `value` is none of `allowed`; `key` names it."""
    if value not in allowed:
        known = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{key} is {value!r}; it must be one of {known}")


def check_at_least(key: str, value: float, least: float, why: str) -> None:
    """Raise ValueError if `value` is below `least`; `key` names it, `why` gives the reason."""
    if value < least:
        raise ValueError(f"{key} is {value}; it must be at least {least}: {why}")


def check_divides(divisor_key: str, divisor: int, key: str, value: int) -> None:
    """Raise ValueError unless `divisor` (at least 1) divides `value`; the keys name them."""
    check_at_least(divisor_key, divisor, 1, "it divides")
    rest = value % divisor
    if rest:
        raise ValueError(
            f"{divisor_key} is {divisor} and {key} is {value}; {divisor_key} must divide {key}: "
            f"take {key} {value - rest or divisor} or {value + divisor - rest}"
        )


SPATIAL_STRIDE = 32  # of all four convolutional backbones, from pixels to the head


def head_side(crop_size: int) -> int:
    """Return the side of the head's pool: the whole feature map of the training crop.

    Strided layers round up, so a crop that 32 does not divide still gives one place. PySlowFast
    rounds down for ResNets, which gives several and breaks its training; equal for all its configs.

    Raises:
        ValueError: a crop smaller than the network's stride.
    """
    check_at_least("DATA.TRAIN_CROP_SIZE", crop_size, SPATIAL_STRIDE, "the stride of the network")
    return math.ceil(crop_size / SPATIAL_STRIDE)
