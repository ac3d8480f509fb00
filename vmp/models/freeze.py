"""Train only a part of a model: the prompts, the head, or the last blocks.

Whether a parameter is trained is its `requires_grad`, and nothing else is stored: the optimizer
takes what requires a gradient, and `VideoModel.train` keeps what is frozen in evaluation mode, with
its norms' statistics, its dropout and its drop path. A frozen layer is a fixed function; noise that
regularises weights has no weights to regularise there. The dropout before a trained head works.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from vmp.models.timesformer import TimeSformer
from vmp.models.video_model import VideoModel, frozen_modules
from vmp.utils.distributed import is_main

logger = logging.getLogger(__name__)

PARTS = ("all", "prompt", "head", "last_blocks")


def build_freezing(cfg: CfgNode, model: VideoModel) -> None:
    """Freeze what TRAIN.PARTS leaves out, and the prompts where PROMPT.LR_MULT is 0; say so.

    Call it before the optimizer is made and before the model is wrapped in
    DistributedDataParallel, both of which note what requires a gradient.

    Raises:
        ValueError: a part that is unknown or that the model does not have.
    """
    freeze(model, cfg.TRAIN.PARTS, last_blocks=cfg.TRAIN.LAST_BLOCKS)
    if cfg.PROMPT.LR_MULT == 0:
        model.prompts.requires_grad_(False)
    logger.info("trained: %s: %s", ", ".join(cfg.TRAIN.PARTS), describe_freezing(model))


def freeze(model: VideoModel, parts: Sequence[str], *, last_blocks: int = 1) -> None:
    """Make `parts` of the model trainable and freeze the rest, whatever was frozen before.

    Args:
        model: neither compiled nor wrapped; its mode stays, but for what is now frozen.
        parts: any of PARTS. "prompt" is all motion prompts, "head" the layer that gives the
            logits, "last_blocks" the last `last_blocks` blocks and everything after them, head
            included.
        last_blocks: blocks counted from the end. A block is a stage of a convolutional network (of
            both pathways, with their fusion) or one of TimeSformer's ViT blocks.

    Raises:
        ValueError: no part or an unknown one, no prompt that learns, or more blocks than there are.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(f"TRAIN.PARTS is {list(parts)}; it must name some of {', '.join(PARTS)}")
    modules = [module for part in parts for module in _modules_of(model, part, last_blocks)]
    model.requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)
    model.train(model.training)  # what is frozen now goes into evaluation mode


def _modules_of(model: VideoModel, part: str, last_blocks: int) -> list[nn.Module]:
    if part == "all":
        return [model]
    if part == "prompt":
        if not list(model.prompts.parameters()):
            raise ValueError(
                "TRAIN.PARTS names prompt, and the model has none that learns; set PROMPT.ENABLE "
                "True and its LEARNABLE True, or take prompt out"
            )
        return [model.prompts]
    layers, blocks = _layers(model.backbone.net)
    if part == "head":
        return [_head(layers[-1])]
    if not 1 <= last_blocks <= len(blocks):
        raise ValueError(
            f"TRAIN.LAST_BLOCKS is {last_blocks}; this backbone has {len(blocks)} blocks, so it "
            f"must be from 1 to {len(blocks)}"
        )
    return layers[blocks[-last_blocks] :]


def _layers(net: Any) -> tuple[list[nn.Module], list[int]]:
    """Return the last layers, all blocks and the head among them, and the indices of the blocks."""
    if isinstance(net, TimeSformer):
        return [*net.blocks, net.norm, net.head], list(range(len(net.blocks)))
    layers = list(net.blocks)  # pytorchvideo's: stem, stages, pools between them, head
    return layers, [i for i, layer in enumerate(layers) if _is_stage(layer)]


def _is_stage(layer: nn.Module) -> bool:
    """Say whether a layer of pytorchvideo's holds residual blocks, in any of its pathways."""
    return any(name.rpartition(".")[2] == "res_blocks" for name, _ in layer.named_modules())


def find_head(model: VideoModel) -> nn.Module:
    """Return the layer that gives the logits, of features (..., C) of every place the head sees."""
    return _head(_layers(model.backbone.net)[0][-1])


def _head(last: Any) -> nn.Module:
    """Return the linear layer of the last layer: itself, or within pytorchvideo's head."""
    head: nn.Module = last if isinstance(last, nn.Linear) else last.proj
    return head


def describe_freezing(model: VideoModel) -> str:
    """Return how much of the model is trained, and what that means for its norms."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    told = f"{trained:,} of {total:,} parameters"
    if trained == total:
        return told
    kept = sum(1 for _ in _frozen_norms(model))
    return f"{told}; the rest is frozen" + (f", {kept} norms keep their statistics" if kept else "")


def _frozen_norms(model: nn.Module) -> Iterator[nn.Module]:
    for frozen in frozen_modules(model):
        for module in frozen.modules():
            if isinstance(module, _NormBase) and module.running_mean is not None:
                yield module


def warn_of_frozen_start(model: VideoModel, fresh: Iterable[str]) -> None:
    """Warn, on rank 0, of frozen parameters that no weights were loaded into.

    Args:
        model: neither compiled nor wrapped.
        fresh: names, as in its state dict, of what keeps the values it was built with.
    """
    if all(parameter.requires_grad for parameter in model.backbone.parameters()):
        return  # at most the prompts are frozen, which PROMPT.LR_MULT 0 does on purpose
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    names = [name for name in fresh if name in frozen]
    if names and is_main():
        logger.warning(
            "frozen with the values they were built with, since no weights were loaded into them: "
            "%d tensors (%s%s); give TRAIN.INIT_FROM, or name more in TRAIN.PARTS",
            *(len(names), ", ".join(names[:3]), ", ..." if len(names) > 3 else ""),
        )
