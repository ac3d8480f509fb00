"""The optimizer and its parameter groups: weights, norms and biases, prompts."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD, AdamW, Optimizer

logger = logging.getLogger(__name__)

# Batch norms (SyncBatchNorm too) and instance norms share the first base. By type, not by name:
# pytorchvideo calls them norm_*, PySlowFast bn, TimeSformer norm1.
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    norm_weight_decay: float = 0.0,
    prompt_weight_decay: float = 0.0,
    prompt_lr_mult: float = 1.0,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters of `model` into groups for an optimizer.

    Groups without parameters are left out. Everything that is neither of a norm layer nor a bias
    nor of a prompt gets `weight_decay`: TimeSformer's class token and its position and time
    embeddings are decayed, as in its release.

    Args:
        model: its prompts are the modules called `prompts`, at the top or under the prefix that
            DistributedDataParallel and torch.compile put before it.
        lr: learning rate.
        weight_decay: of all other parameters.
        norm_weight_decay: of norm layers' parameters and of every bias.
        prompt_weight_decay: of the prompts' parameters.
        prompt_lr_mult: their learning rate relative to `lr`, above 0.

    Returns:
        Groups with the keys name, params, lr, lr_mult and weight_decay. Each trainable parameter
        is in exactly one, also where two modules share it.

    Raises:
        ValueError: nothing is trainable.
    """
    decays = {"weights": weight_decay, "norms and biases": norm_weight_decay}
    decays["prompts"] = prompt_weight_decay
    members: dict[str, list[nn.Parameter]] = {kind: [] for kind in decays}
    for kind, parameter in _sorted_by_kind(model):
        members[kind].append(parameter)
    groups = []
    for kind, params in members.items():
        lr_mult = prompt_lr_mult if kind == "prompts" else 1.0
        group = {"name": kind, "params": params, "lr": lr * lr_mult, "lr_mult": lr_mult}
        groups.append(group | {"weight_decay": decays[kind]})
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("the model has no trainable parameter; unfreeze some of it to train")
    return groups


def _sorted_by_kind(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield each trainable parameter once, with the name of its group."""
    seen = set()
    for parameter in _prompt_parameters(model):
        seen.add(id(parameter))
        if parameter.requires_grad:
            yield "prompts", parameter
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            plain = isinstance(module, NORMS) or name.endswith("bias")
            yield "norms and biases" if plain else "weights", parameter


def _prompt_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of every module called `prompts`; none where there is no such."""
    found = {
        id(parameter): parameter
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "prompts"
        for parameter in module.parameters()
    }
    return list(found.values())


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """Return the optimizer SOLVER.OPTIMIZING_METHOD over the trainable parameters of `model`.

    Call it after moving the model to its device, giving its weights their layout in memory, and
    freezing what is not to be trained.

    Raises:
        ValueError: an unknown method, a negative PROMPT.LR_MULT, Nesterov without momentum, or
            nothing to train.
    """
    solver, lr_mult = cfg.SOLVER, cfg.PROMPT.LR_MULT
    if lr_mult < 0:
        raise ValueError(f"PROMPT.LR_MULT is {lr_mult}, it must be 0 (frozen) or above")
    groups = param_groups(
        model,
        lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        norm_weight_decay=cfg.BN.WEIGHT_DECAY,
        prompt_weight_decay=cfg.PROMPT.WEIGHT_DECAY,
        prompt_lr_mult=lr_mult,
    )
    for group in groups:
        logger.info(
            "%s: %d tensors, weight decay %g, learning rate x %g",
            *(group["name"], len(group["params"]), group["weight_decay"], group["lr_mult"]),
        )
    if solver.OPTIMIZING_METHOD not in ("sgd", "adamw"):
        raise ValueError(
            f"SOLVER.OPTIMIZING_METHOD is {solver.OPTIMIZING_METHOD!r}; there are: sgd, adamw"
        )
    fused = _can_be_fused(groups)
    optimizer: Optimizer
    if solver.OPTIMIZING_METHOD == "sgd":
        optimizer = _sgd(groups, solver.BASE_LR, solver.MOMENTUM, solver.NESTEROV, fused)
    else:
        optimizer = AdamW(groups, lr=solver.BASE_LR, betas=tuple(solver.BETAS), fused=fused)
    optimizer.register_load_state_dict_pre_hook(_stay_as_built)
    return optimizer


def _can_be_fused(groups: list[dict[str, Any]]) -> bool | None:
    """Say whether one kernel may do an update: on a GPU; None leaves it to torch.

    It also skips an update that overflowed in float16 by itself; else the host waits for each, to
    know. Not on a CPU, where it counts for nothing in a step, and where torch's kernel takes memory
    in the order in which it lies: wrong, without a word, where a gradient is laid out otherwise.
    """
    return all(parameter.is_cuda for group in groups for parameter in group["params"]) or None


def _sgd(
    groups: list[dict[str, Any]], lr: float, momentum: float, nesterov: bool, fused: bool | None
) -> SGD:
    if nesterov and momentum <= 0:
        raise ValueError(
            f"SOLVER.NESTEROV needs SOLVER.MOMENTUM above 0, it is {momentum}; set NESTEROV False"
        )
    optimizer = SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
    if fused and momentum:
        _begin_momentum(optimizer)
        # a checkpoint may be of a run that has not begun it yet
        optimizer.register_load_state_dict_post_hook(_begin_momentum)
    return optimizer


def _begin_momentum(optimizer: Optimizer) -> None:
    """Begin with zeros, as it does anyway: a first update that overflows would leave any memory."""
    for parameter in (each for group in optimizer.param_groups for each in group["params"]):
        state = optimizer.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)


def _stay_as_built(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Have a checkpoint of another device change nothing in how this one computes."""
    if len(state["param_groups"]) != len(optimizer.param_groups):
        return state  # torch refuses it
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    return state | {"param_groups": [group | {"fused": own["fused"]} for group, own in pairs]}


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times the group's own "lr_mult" (1 if none)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)
