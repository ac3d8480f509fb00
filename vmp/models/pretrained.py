"""Weights of others, and our own, into a model: weights only, checked before the first copy.

Sources: "vmp" (our checkpoints), "pyslowfast" (.pyth of its model zoo or of a training run),
"pytorchvideo" (its hub), "timesformer" (its model zoo, and the release of Video Motion Prompts).
Each has rules from its names to ours; a rule is (pattern, template) for `re.fullmatch`.
"""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vmp.models.timesformer import resize_positions, resize_times
from vmp.models.video_model import VideoModel
from vmp.prompts import MotionPrompt
from vmp.utils.files import read_tensors

logger = logging.getLogger(__name__)

Rules = list[tuple[str, str]]

NET = "backbone.net."
PROMPT = "prompts."
SOURCES = ("vmp", "pyslowfast", "pytorchvideo", "timesformer")
# where a checkpoint keeps its weights: ours, PySlowFast's and its kin's, many others'
CONTAINERS = ("model", "model_state", "state_dict")
# what tells a source by its names, most telling first
SIGNS = (
    ("vmp", r"(backbone|prompts)\..+"),
    ("pyslowfast", r"s[1-5]\.pathway\d_.+"),
    ("timesformer", r"(model\.)?(cls_token|patch_embed\.proj\.weight)"),
    ("pytorchvideo", r"blocks\.\d+\.(conv|norm|res_blocks|multipathway_blocks|pool|proj)\..+"),
)
_HEAD = re.compile(r"backbone\.net\.(head|blocks\.\d+\.proj)\.(weight|bias)")


class PretrainedReport(NamedTuple):
    """What became of a checkpoint; names are those of our model's state dict.

    Attributes:
        source: whose names the checkpoint has.
        used: entries that were copied, the resized ones too.
        missing: entries of the model that the checkpoint lacks; they keep their values.
        unexpected: entries of the checkpoint the model has no place for, by its names.
        resized: embeddings that were resized to the model's clip.
        dropped: entries of another shape, as the head for other classes; the model keeps its own.
    """

    source: str
    used: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    resized: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.used)} entries from a {self.source} checkpoint"]
        for what in ("missing", "unexpected", "resized", "dropped"):
            names = getattr(self, what)
            if names:
                lines.append(f"{what} ({len(names)}): {_listed(names)}")
        return "; ".join(lines)


def load_pretrained(
    model: VideoModel, path: str | Path, source: str = "auto", strict: bool = True
) -> PretrainedReport:
    """Copy the weights of a checkpoint into `model`.

    Head and prompt may be missing. A head for another number of classes is dropped. Embeddings of
    a TimeSformer for another clip are resized, nearest, positions as a grid (the original resizes
    them as one flat sequence, which scrambles them).

    Args:
        model: neither compiled nor wrapped.
        path: the file; it is read without running any code in it.
        source: one of SOURCES, or "auto" to tell it by the names.
        strict: refuse a checkpoint that does not fit the backbone exactly.

    Returns:
        What was used, missing, unexpected, resized and dropped. It is logged as well.

    Raises:
        ValueError: the file holds no weights, its source is unknown, none of them fit, or, if
            `strict`, the backbone lacks an entry, has none for one, or one of another shape. The
            model is then unchanged.
    """
    state = _read(path)
    if source == "auto":
        source = detect_source(state)
    names = key_map(model, source, state)
    fitted, report = _fit(model, {ours: state[theirs] for theirs, ours in names.items()}, source)
    strangers = tuple(name for name in state if name not in names)
    # an unknown name is only reported; one the backbone should have and has not changes the model
    misfits = [n for n in report.missing if not (_HEAD.fullmatch(n) or n.startswith(PROMPT))]
    misfits += [n for n in report.unexpected if n.startswith(NET) and not _HEAD.fullmatch(n)]
    misfits += [n for n in report.dropped if not _HEAD.fullmatch(n)]
    report = report._replace(unexpected=report.unexpected + strangers)
    if not fitted or (strict and misfits):
        raise ValueError(f"{path} does not fit the model: {_advice(report, misfits)}")
    own = model.state_dict()
    with torch.no_grad():
        for name, value in fitted.items():
            own[name].copy_(value)
    logger.info("%s: %s", path, report)
    _warn_of_luma(model, report)
    return report


def _warn_of_luma(model: VideoModel, report: PretrainedReport) -> None:
    learned = any(name.startswith(PROMPT) for name in report.used)
    lumas = [prompt.luma for prompt in model.prompts.values() if isinstance(prompt, MotionPrompt)]
    if report.source == "timesformer" and learned and "rgb" in lumas:
        logger.warning("the release learned its prompt on swapped grey weights: PROMPT.LUMA bgr")


def detect_source(names: Iterable[str]) -> str:
    """Return whose names these are, one of SOURCES.

    Raises:
        ValueError: nobody's we know.
    """
    names = list(names)
    for source, sign in SIGNS:
        if any(re.fullmatch(sign, name) for name in names):
            return source
    raise ValueError(
        f"the names of the checkpoint ({_listed(names)}) are none we know; "
        f"say whose they are: source is one of {', '.join(SOURCES)}"
    )


def key_map(model: nn.Module, source: str, names: Iterable[str]) -> dict[str, str]:
    """Return {name in the checkpoint: name in the state dict of `model`} for those we know.

    Args:
        model: says which network it is; pooled and unpooled ResNets number blocks differently.
        source: one of SOURCES.
        names: of the checkpoint.

    Raises:
        ValueError: an unknown source, or two names for one entry.
    """
    rules = _rules(source, list(model.state_dict()))
    mapped: dict[str, str] = {}
    for name in names:
        for pattern, template in rules:
            match = re.fullmatch(pattern, name)
            if match:
                mapped[name] = match.expand(template)
                break
    if len(set(mapped.values())) != len(mapped):
        raise ValueError(f"the checkpoint has two names for one entry, read as {source!r}")
    return mapped


def _rules(source: str, own: list[str]) -> Rules:
    if source == "vmp":
        return [(r"((backbone|prompts)\..+)", r"\1")]
    if source == "pytorchvideo":
        return [(r"(blocks\.\d+\..+)", NET + r"\1")]
    if source == "timesformer":
        return _TIMESFORMER
    if source == "pyslowfast":
        return [(pattern, NET + template) for pattern, template in _pyslowfast_rules(own)]
    raise ValueError(f"source is {source!r}; it must be 'auto' or one of {', '.join(SOURCES)}")


_TIMESFORMER: Rules = [
    (r"(?:model\.)?vmps\.([mn])", PROMPT + r"0.power_norm.\1"),
    (r"(?:model\.)?(cls_token|pos_embed|time_embed)", NET + r"\1"),
    (r"(?:model\.)?((?:patch_embed|blocks|norm|head)\..+)", NET + r"\1"),
]


def _pyslowfast_rules(own: list[str]) -> Rules:
    """Return the rules from PySlowFast's names to pytorchvideo's, for the network `own` names.

    pytorchvideo numbers blocks through: stem 0, stages, head. A pooled ResNet's pool is block 2 and
    has no entries; SlowFast's pool comes just before its head.
    """
    if NET + "blocks.0.multipathway_blocks.0.conv.weight" in own:
        return _family(_SLOWFAST_STEM, _RESIDUAL_BLOCK, (1, 2, 3, 4), 6, r"multipathway_blocks.\1.")
    if NET + "blocks.0.conv.conv_t.weight" in own:
        return _family(_X3D_STEM, _X3D_RESIDUAL_BLOCK, (1, 2, 3, 4), 5)
    pooled = not any(name.startswith(NET + "blocks.2.") for name in own)
    return _family(
        _RESNET_STEM, _RESIDUAL_BLOCK, *(((1, 3, 4, 5), 6) if pooled else ((1, 2, 3, 4), 5))
    )


def _family(
    stem: Rules, residual_block: Rules, stages: tuple[int, ...], head: int, pathway: str = ""
) -> Rules:
    rules = list(stem)
    for stage, block in enumerate(stages, start=2):
        theirs, ours = (
            rf"s{stage}\.pathway(\d)_res(\d+)\.",
            rf"blocks.{block}.{pathway}res_blocks.\2.",
        )
        rules += [(theirs + pattern, ours + template) for pattern, template in residual_block]
    return rules + [(pattern, f"blocks.{head}." + template) for pattern, template in _HEAD_RULES]


_RESNET_STEM: Rules = [
    (r"s1\.pathway0_stem\.conv\.weight", r"blocks.0.conv.weight"),
    (r"s1\.pathway0_stem\.bn\.(.+)", r"blocks.0.norm.\1"),
]
_SLOWFAST_STEM: Rules = [
    (r"s1\.pathway(\d)_stem\.conv\.weight", r"blocks.0.multipathway_blocks.\1.conv.weight"),
    (r"s1\.pathway(\d)_stem\.bn\.(.+)", r"blocks.0.multipathway_blocks.\1.norm.\2"),
    # the fusion after their stage K is part of our block K - 1
    *(
        (rf"s{k}_fuse\.{theirs}\.(.+)", rf"blocks.{k - 1}.multipathway_fusion.{ours}.\1")
        for k in (1, 2, 3, 4)
        for theirs, ours in (("conv_f2s", "conv_fast_to_slow"), ("bn", "norm"))
    ),
]
_X3D_STEM: Rules = [
    # crossed: pytorchvideo calls the spatial convolution "conv_t" and the temporal one "conv_xy"
    (r"s1\.pathway0_stem\.conv_xy\.weight", r"blocks.0.conv.conv_t.weight"),
    (r"s1\.pathway0_stem\.conv\.weight", r"blocks.0.conv.conv_xy.weight"),
    (r"s1\.pathway0_stem\.bn\.(.+)", r"blocks.0.norm.\1"),
]
# groups 1 and 2 are the pathway and the number of the block
_RESIDUAL_BLOCK: Rules = [
    (r"branch1\.weight", r"branch1_conv.weight"),
    (r"branch1_bn\.(.+)", r"branch1_norm.\3"),
    (r"branch2\.([abc])\.weight", r"branch2.conv_\3.weight"),
    (r"branch2\.([abc])_bn\.(.+)", r"branch2.norm_\3.\4"),
]
_X3D_RESIDUAL_BLOCK: Rules = [
    # the norm shares a Sequential with squeeze-and-excitation
    (r"branch2\.b_bn\.(.+)", r"branch2.norm_b.0.\3"),
    (r"branch2\.se\.fc1\.(.+)", r"branch2.norm_b.1.block.0.\3"),
    (r"branch2\.se\.fc2\.(.+)", r"branch2.norm_b.1.block.2.\3"),
    *_RESIDUAL_BLOCK,
]
_HEAD_RULES: Rules = [
    (r"head\.projection\.(.+)", r"proj.\1"),
    # the rest is X3D's
    (r"head\.conv_5\.weight", r"pool.pre_conv.weight"),
    (r"head\.conv_5_bn\.(.+)", r"pool.pre_norm.\1"),
    (r"head\.lin_5\.weight", r"pool.post_conv.weight"),
    (r"head\.lin_5_bn\.(.+)", r"pool.post_norm.\1"),
]


def _read(path: str | Path) -> dict[str, Tensor]:
    state = read_tensors(path)
    for container in CONTAINERS:
        if isinstance(state, Mapping) and isinstance(state.get(container), Mapping):
            state = state[container]
            break
    tensors = _tensors(state)
    if not tensors:
        raise ValueError(
            f"{path} holds no weights: a mapping from names to tensors is needed, by itself or "
            f"under {', '.join(CONTAINERS)}"
        )
    return tensors


def _tensors(state: Any) -> dict[str, Tensor]:
    if not isinstance(state, Mapping):
        return {}
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _fit(
    model: nn.Module, state: dict[str, Tensor], source: str
) -> tuple[dict[str, Tensor], PretrainedReport]:
    """Return what can be copied as it is, and the report; nothing is copied yet."""
    own = model.state_dict()
    fitted: dict[str, Tensor] = {}
    resized, dropped = [], []
    for name, value in state.items():
        if name not in own:
            continue
        if value.shape == own[name].shape:
            fitted[name] = value
            continue
        other = _resized(name, value, own[name])
        if other is None:
            dropped.append(name)
        else:
            fitted[name] = other
            resized.append(name)
    report = PretrainedReport(
        source=source,
        used=tuple(fitted),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        resized=tuple(resized),
        dropped=tuple(dropped),
    )
    return fitted, report


def _resized(name: str, value: Tensor, own: Tensor) -> Tensor | None:
    """Return a TimeSformer's embedding for the clip of ours, or None where it is no such thing."""
    if value.ndim != 3 or own.ndim != 3 or value.shape[2] != own.shape[2]:
        return None
    if name == NET + "time_embed":
        return resize_times(value, own.shape[1])
    sides = [math.isqrt(tensor.shape[1] - 1) for tensor in (value, own)]
    if name != NET + "pos_embed" or value.shape[1] != 1 + sides[0] ** 2:
        return None
    positions = resize_positions(value[:, 1:], sides[0], (sides[1], sides[1]))
    return torch.cat((value[:, :1], positions), dim=1)


def _listed(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f", ... {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _advice(report: PretrainedReport, misfits: list[str]) -> str:
    if not report.used:
        return (
            f"none of its entries is the model's (read as {report.source!r}): is it the backbone?"
        )
    hint = "check MODEL.NAME and the backbone's section, or allow it with strict=False"
    if all(".branch1_norm." in name for name in misfits):
        hint = f"set X3D.SHORTCUT_NORM {not any(n in report.missing for n in misfits)}"
    details = "; ".join(
        f"{what}: {_listed(names)}"
        for what in ("missing", "unexpected", "dropped")
        if (names := [name for name in getattr(report, what) if name in misfits])
    )
    return f"{details} (read as {report.source!r}); {hint}"
