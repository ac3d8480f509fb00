"""Weights of others, and our own, into a model: read safely, checked before the first copy.

Whose weights a file holds is told by its names (`vmp.models.key_maps`); what became of each entry
is in the report.
"""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmp.models.key_maps import (
    FRIENDLY,
    NET,
    PROMPT,
    detect_foreign_layout,
    detect_layout,
    detect_source,
    listed,
    strip_wrappers,
    to_ours,
)
from vmp.models.timesformer import resize_times
from vmp.models.video_model import VideoModel
from vmp.prompts import MotionPrompt
from vmp.utils.distributed import is_main
from vmp.utils.weights_file import WeightsFile, read_weights

logger = logging.getLogger(__name__)

RESIZES = ("interpolate", "original")
CATEGORIES = ("derived", "resized", "dropped", "missing", "unexpected", "ignored")
_HEAD = re.compile(r"backbone\.net\.(head|blocks\.\d+\.proj)\.(weight|bias)")
# What a file may hold beside the network: Caffe2's solver, and layers of an image ViT's head.
BESIDE = re.compile(r".*_momentum|lr|model_iter|pre_logits\..+|head_dist\..+")
# PySlowFast's names of networks without the temporal pool after the second stage, and with it.
_UNPOOLED = ("2d", "c2d_nopool", "i3d_nopool", "slow", "slow_c2d", "slow_i3d", "ResNet_nopool")
_POOLED = ("c2d", "i3d")


@dataclass(frozen=True)
class PretrainedReport:
    """What became of a file's weights; names are those of our state dict.

    Attributes:
        source: whose names the file has, one of `key_maps.SOURCES`.
        path: the file, or where it was downloaded from.
        sha256: of the file.
        used: entries of the model that were set, the derived and resized ones too.
        missing: entries of the model that the file lacks; they keep their values.
        unexpected: entries of the file the model has no place for; by its names where it has one
            of no known kind.
        resized: embeddings that were resized to the model's clip.
        dropped: entries of another shape, as the head for other classes; the model keeps its own.
        ignored: entries of the file that are no part of a video network: a solver's, and those of
            an image ViT's head.
        derived: entries the file lacks in this form, made from others: kernels inflated in time,
            temporal attention copied from spatial, zeros, an identity norm.
        details: of each of these, its shape in the file and in the model, and how it was made.
        facts: plain values the file holds beside the weights, as epoch and config.
    """

    source: str
    path: str
    sha256: str
    used: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def lines(self) -> list[str]:
        """Return what a log should say: the source, then a line for each kind of exception."""
        lines = [f"{len(self.used)} entries set from {self.path} ({self.source}'s names)"]
        for category in CATEGORIES:
            names = getattr(self, category)
            if names:
                told = listed((f"{name} {self.details[name]}" for name in names), most=3)
                lines.append(f"{category} ({len(names)}): {told}")
        return lines

    def __str__(self) -> str:
        return "; ".join(self.lines())

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the facts, for a JSON file."""
        return {
            "path": self.path,
            "source": self.source,
            "sha256": self.sha256,
            **{
                category: {name: self.details[name] for name in getattr(self, category)}
                for category in (*CATEGORIES, "used")
            },
        }


def load_pretrained(
    model: VideoModel,
    path: str | Path,
    source: str = "auto",
    *,
    strict: bool = True,
    resize: str = "interpolate",
    sha256: str = "",
) -> PretrainedReport:
    """Set the weights of `model` to those of a file.

    Head and prompt may be missing; a head for another number of classes is dropped. 2-D kernels are
    inflated (repeated in time, divided by their number). A ViT for images gives its attention and
    its norm to time as well, with temporal_fc and the time embedding zero, as TimeSformer does. An
    X3D without the shortcut norm (pytorchvideo's) gets an identity there: exact in evaluation; to
    fine-tune it as it was trained, build with `shortcut_norm=False`.

    Args:
        model: neither compiled nor wrapped.
        path: a file, or an http(s) URL, which is downloaded once. No code in it is run.
        source: one of `key_maps.SOURCES`, or "auto" to tell it by the names.
        strict: refuse a file that does not fit the backbone exactly.
        resize: how a TimeSformer's embeddings for another clip are resized. "interpolate":
            positions bicubic as a grid, times linear. "original": nearest as its code does,
            positions as one flat sequence, which scrambles rows and columns.
        sha256: what the file's begins with, 8 to 64 hexadecimal digits; "" checks nothing.

    Returns:
        What was used, derived, resized, dropped, missing and unexpected. It is logged as well.

    Raises:
        ValueError: the file can't be read, is not what `sha256` says, holds no weights, those of
            an unknown source or of another network, or, if `strict`, the backbone lacks an entry,
            has none for one, or one of another shape. The model is then unchanged.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize is {resize!r}; it must be one of {', '.join(RESIZES)}")
    file = read_weights(path, sha256)
    try:
        fitted, report = _fit_file(model, file, str(path), source, strict, resize)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    own = model.state_dict()
    with torch.no_grad():
        for name, value in fitted.items():
            own[name].copy_(value)
    for line in report.lines():
        logger.info("%s", line)
    _warn_of_prompt(model, report)
    return report


def _warn_of_prompt(model: VideoModel, report: PretrainedReport) -> None:
    if any(name.startswith(PROMPT) for name in report.unexpected):
        _warn("the file's backbone was trained behind a prompt, the model has none for it")
    learned = any(name.startswith(PROMPT) for name in report.used)
    lumas = [prompt.luma for prompt in model.prompts.values() if isinstance(prompt, MotionPrompt)]
    if report.source == "timesformer" and learned and "rgb" in lumas:
        _warn("the release learned its prompt on swapped grey weights: PROMPT.LUMA bgr")


def _warn(message: str, *arguments: object) -> None:
    if is_main():  # all ranks read the same
        logger.warning(message, *arguments)


def unwrapped(file: WeightsFile) -> dict[str, Tensor]:
    """Return the tensors of a file by their names without what wrapped the whole model."""
    return {short: file.tensors[name] for name, short in strip_wrappers(file.tensors).items()}


def _fit_file(
    model: nn.Module, file: WeightsFile, path: str, source: str, strict: bool, resize: str
) -> tuple[dict[str, Tensor], PretrainedReport]:
    """Return what to copy, as it is, and the report; nothing is copied yet."""
    state = unwrapped(file)
    if source == "auto":
        source = detect_source(state)
    own = model.state_dict()
    layout = detect_layout(own)
    still = _is_for_images(state) and not _states_a_video_network(file)
    _check_network(file, list(state), source, layout, still, strict)
    names = to_ours(state, source, layout)
    fit = _Fit(own, resize, still)
    for theirs, ours in names.items():
        fit.add(ours, state[theirs])
    fit.derive(source)
    strangers = {name: state[name] for name in state if name not in names}
    report = fit.report(source, path, file, strangers)
    misfits = _misfits(report)
    if not report.used or (strict and misfits):
        raise ValueError(_advice(report, misfits))
    for name, value in fit.fitted.items():
        if value.is_floating_point() and not value.to(own[name].dtype).isfinite().all():
            raise ValueError(f"{name} holds values that are not finite: take another checkpoint")
    return fit.fitted, report


class _Fit:
    """Entries of a file under our names, each given the form that the model has it in."""

    def __init__(self, own: Mapping[str, Tensor], resize: str, still: bool) -> None:
        self.own, self.resize, self.still = own, resize, still
        self.fitted: dict[str, Tensor] = {}
        self.details: dict[str, str] = {}
        self.resized: list[str] = []
        self.dropped: list[str] = []
        self.derived: list[str] = []
        self.unexpected: list[str] = []

    def add(self, name: str, value: Tensor) -> None:
        """Take one entry of the file."""
        shape = _shape(value)
        if name not in self.own:
            self.unexpected.append(name)
            self.details[name] = shape
            return
        wanted = self.own[name]
        if name.endswith(".num_batches_tracked") and not value.is_complex():
            value = value.to(wanted.dtype)  # some tools save every entry as a float
        if value.is_floating_point() != wanted.is_floating_point() or value.is_complex():
            raise ValueError(f"{name} is {value.dtype}, the model's is {wanted.dtype}")
        if value.shape == wanted.shape:
            self.fitted[name], self.details[name] = value, shape
            return
        self.details[name] = f"{shape} -> {_shape(wanted)}"
        forms: tuple[tuple[Tensor | None, list[str]], ...] = (
            (_inflated(value, wanted) if self.still else None, self.derived),
            (_without_ones(value, wanted), []),  # the same numbers, nothing to report
            (_resized(name, value, wanted, self.resize), self.resized),
        )
        for fitted, category in forms:
            if fitted is not None:
                self.fitted[name] = fitted
                category.append(name)
                return
        self.dropped.append(name)

    def derive(self, source: str) -> None:
        """Make from others what a file of this source lacks by its nature."""
        for name, wanted in self.own.items():
            if name in self.fitted or name in self.dropped:
                continue
            value, how = self._derived(name, wanted, source)
            if value is not None:
                self.fitted[name] = value
                self.details[name] = how
                self.derived.append(name)

    def _derived(self, name: str, wanted: Tensor, source: str) -> tuple[Tensor | None, str]:
        norm, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked" and f"{norm}.running_mean" in self.fitted:
            return torch.zeros_like(wanted), "zero: Caffe2 and old files do not count"
        if self._is_plain_shortcut(norm):
            return identity_norm(leaf, wanted), "identity: the file has no shortcut norm"
        if source != "timm":
            return None, ""
        if ".temporal_fc." in name or name == f"{NET}time_embed":
            return torch.zeros_like(wanted), "zero: an image has no time"
        spatial = name.replace(".temporal_", ".")
        if spatial != name and spatial in self.fitted:
            return self.fitted[spatial], f"copy of {spatial}"
        return None, ""

    def _is_plain_shortcut(self, norm: str) -> bool:
        """Say whether `norm` follows a shortcut that keeps its channels, and the file has none.

        PySlowFast's X3D has one there, pytorchvideo's has not.
        """
        convolution = self.fitted.get(norm.replace(".branch1_norm", ".branch1_conv") + ".weight")
        if not norm.endswith(".branch1_norm") or convolution is None:
            return False
        entries = [f"{norm}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
        given = [name for name in entries if name in self.fitted and name not in self.derived]
        return convolution.shape[0] == convolution.shape[1] and not given

    def report(
        self, source: str, path: str, file: WeightsFile, strangers: Mapping[str, Tensor]
    ) -> PretrainedReport:
        """Return the report; `strangers` are the entries of the file that have no name of ours."""
        present = self.fitted.keys() | set(self.dropped)
        missing = tuple(name for name in self.own if name not in present)
        details = {name: _shape(self.own[name]) for name in missing}
        details |= {name: _shape(value) for name, value in strangers.items()}
        return PretrainedReport(
            source=source,
            path=path,
            sha256=file.sha256,
            used=tuple(name for name in self.own if name in self.fitted),
            missing=missing,
            unexpected=(*self.unexpected, *(n for n in strangers if not BESIDE.fullmatch(n))),
            ignored=tuple(name for name in strangers if BESIDE.fullmatch(name)),
            resized=tuple(self.resized),
            dropped=tuple(self.dropped),
            derived=tuple(self.derived),
            details=self.details | details,
            facts=file.facts,
        )


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))


def _without_ones(value: Tensor, wanted: Tensor) -> Tensor | None:
    """Return `value` in the shape wanted where they differ in ones at the end, as Caffe2's do."""
    shapes = [list(tensor.shape) for tensor in (value, wanted)]
    for shape in shapes:
        while shape and shape[-1] == 1:
            shape.pop()
    return value.reshape(wanted.shape) if shapes[0] == shapes[1] else None


def _is_for_images(state: Mapping[str, Tensor]) -> bool:
    """Say whether no kernel has a time, or each sees one frame and the classes are ImageNet's."""
    kernels = [value for value in state.values() if value.ndim == 5]
    head = re.compile(r"(.*\.)?(projection|proj|head|fc)\.weight|pred_w")
    heads = [v for name, v in state.items() if head.fullmatch(name) and v.ndim == 2]
    return not kernels or (_see_one_frame(kernels) and any(len(v) == 1000 for v in heads))


def _states_a_video_network(file: WeightsFile) -> bool:
    """Say whether the file's config names a network that only videos have."""
    return re.search(r"(c2d|i3d)_nopool|ResNet_nopool", str(file.facts.get("cfg", ""))) is not None


def _see_one_frame(kernels: Iterable[Tensor]) -> bool:
    return all(kernel.shape[2] == 1 for kernel in kernels)


def _inflated(value: Tensor, wanted: Tensor) -> Tensor | None:
    """Return a 2-D kernel (O, I, H, W) as a 3-D one (O, I, T, H, W) that sums to it over time.

    As PySlowFast's TRAIN.CHECKPOINT_INFLATE does; one of (O, I, 1, H, W) is taken as well.
    """
    if wanted.ndim != 5 or value.ndim not in (4, 5):
        return None
    frames = wanted.shape[2]
    kernel = value.unsqueeze(2) if value.ndim == 4 else value
    inflated = kernel.repeat(1, 1, frames, 1, 1) / frames
    return inflated if inflated.shape == wanted.shape else None


def identity_norm(leaf: str, wanted: Tensor) -> Tensor:
    """Return the entry of a batch norm that changes nothing in evaluation, to the last bit."""
    scale = math.sqrt(1 + nn.BatchNorm3d(1).eps) if leaf == "weight" else float(leaf[-3:] == "var")
    return torch.full_like(wanted, scale)


def _resized(name: str, value: Tensor, wanted: Tensor, resize: str) -> Tensor | None:
    """Return a TimeSformer's embedding for the model's clip, None where it is no such thing."""
    if value.ndim != 3 or wanted.ndim != 3 or value.shape[2] != wanted.shape[2]:
        return None
    value = value.to(wanted.dtype)  # half precision can't be interpolated everywhere
    if name == f"{NET}time_embed":
        frames = wanted.shape[1]
        return resize_times(value, frames, "nearest" if resize == "original" else "linear")
    sides = [math.isqrt(tensor.shape[1] - 1) for tensor in (value, wanted)]
    if name != f"{NET}pos_embed" or value.shape[1] != 1 + sides[0] ** 2:
        return None
    class_entry, places = value[:, :1], value[:, 1:].transpose(1, 2)  # (1, D, places)
    if resize == "original":
        places = F.interpolate(places, size=sides[1] ** 2, mode="nearest")
    else:
        grid = places.unflatten(2, (sides[0], sides[0]))
        size = (sides[1], sides[1])
        places = F.interpolate(grid, size=size, mode="bicubic", antialias=True).flatten(2)
    return torch.cat((class_entry, places.transpose(1, 2)), dim=1)


# ---------------------------------------------------------------- what does not fit


def _check_network(
    file: WeightsFile, names: list[str], source: str, layout: str, still: bool, strict: bool
) -> None:
    """Refuse a file of another kind of network, and a C2D whose temporal pool differs.

    Not `strict`, the first may give a part of its weights, and the second is a warning.
    """
    theirs = detect_foreign_layout(names, source)
    if "other" in (theirs, layout):  # a backbone of your own
        return
    if theirs.partition("_")[0] != layout.partition("_")[0]:
        if not strict:
            return
        raise ValueError(
            f"it holds {FRIENDLY[theirs]}, the model is {FRIENDLY[layout]}: set MODEL.NAME and the "
            "recipe to what the file holds"
        )
    if not theirs.startswith("resnet") or still:
        return
    try:
        _check_pool(file, theirs, layout)
    except ValueError as error:
        if strict:
            raise
        _warn("%s: %s", file.path, error)


def _check_pool(file: WeightsFile, theirs: str, layout: str) -> None:
    """Refuse weights of a ResNet with a temporal pool for one without, and the reverse.

    They fit, whatever the pool: by PySlowFast's and Caffe2's names nothing would be noticed.
    """
    wanted = layout == "resnet_pool"
    pooled, told = theirs == "resnet_pool", "the numbers of its blocks say so"
    if theirs == "resnet":
        stated, told = stated_pool(file)
        if stated is None:
            kernels = (value for value in file.tensors.values() if value.ndim == 5)
            if _see_one_frame(kernels):  # a C2D
                _warn(
                    "%s does not say whether its C2D has the temporal pool, which the model has%s: "
                    "the weights fit both. PySlowFast's zoo has only one without (C2D_NOPOOL)",
                    *(file.path, "" if wanted else " not"),
                )
            return
        pooled = stated
    if pooled != wanted:
        has, other = ("a", "none") if pooled else ("no", "one")
        raise ValueError(
            f"its network has {has} temporal pool after the first stage ({told}), the model has "
            f"{other}: the weights would fit, and compute something else. Set C2D.TEMPORAL_POOL "
            f"{pooled}"
        )


def stated_pool(file: WeightsFile) -> tuple[bool | None, str]:
    """Return whether a PySlowFast file's network has the pool, None if unsaid, and who says so."""
    text = str(file.facts.get("cfg", ""))
    for key, value in re.findall(r"^\s*(ARCH|MODEL_NAME):\s*['\"]?(\w+)", text, re.MULTILINE):
        if value in _UNPOOLED:
            return False, f"its config says {key} {value}"
        if value in _POOLED:
            return True, f"its config says {key} {value}"
    if "nopool" in file.path.name.lower():
        return False, "its name says so"
    return None, ""


def _misfits(report: PretrainedReport) -> list[str]:
    """Return the names that a strict load refuses."""
    prompts = {_pathway(name) for name in report.used if name.startswith(PROMPT)}
    misfits = [n for n in report.missing if not n.startswith(PROMPT) or _pathway(n) in prompts]
    misfits += [n for n in report.unexpected if not n.startswith(PROMPT)]
    return [n for n in (*misfits, *report.dropped) if not _HEAD.fullmatch(n)]


def _pathway(name: str) -> str:
    """Return the number of the pathway that a prompt's entry is of."""
    return name.removeprefix(PROMPT).partition(".")[0]


def _advice(report: PretrainedReport, misfits: list[str]) -> str:
    if not report.used:
        return (
            f"none of its entries is the model's (read as {report.source!r}): is it the backbone?"
        )
    parts = []
    for category in CATEGORIES:
        names = [name for name in getattr(report, category) if name in misfits]
        if names:
            told = (f"{name} {report.details[name]}" for name in names)
            parts.append(f"{category} ({len(names)}): {listed(told, most=3)}")
    return (
        f"it does not fit the model, {'; '.join(parts)} (read as {report.source!r}); "
        f"{_hint(report, misfits)}"
    )


def _hint(report: PretrainedReport, misfits: Iterable[str]) -> str:
    """Return the way out for the mix-ups that are known."""
    misfits = list(misfits)

    def among(pattern: str, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in misfits and re.search(pattern, name)]

    if len(among(r"\.branch1_norm\.", report.unexpected)) == len(misfits):
        return "set X3D.SHORTCUT_NORM True"
    fusion = among(r"\.conv_fast_to_slow\.", report.dropped)
    if fusion and len(fusion) == len(misfits):
        kernel = report.details[fusion[0]].split(",")[2].strip()
        return (
            f"its fusion spans {kernel} frames: set SLOWFAST.FUSION_KERNEL_SZ {kernel} (4x16 has 5 "
            "with ALPHA 8, 8x8 has 7 with ALPHA 4)"
        )
    if among(r"\.conv_a\.weight$", report.dropped) and not among("", report.missing):
        return "its kernels span other frames or widths (C2D, I3D): check MODEL.NAME and the recipe"
    if among(r"nonlocal", report.unexpected):
        return "non-local networks are not among our backbones"
    present = _blocks(report.used)
    deeper = _blocks(report.unexpected) - present - _blocks(report.missing)
    shallower = _blocks(report.missing) - present
    if bool(deeper) != bool(shallower):
        return f"its network is {'deeper' if deeper else 'shallower'}: set the depth of the recipe"
    return "check MODEL.NAME and the recipe, or allow it with TRAIN.INIT_STRICT False"


def _blocks(names: Iterable[str]) -> set[str]:
    """Return the residual and ViT blocks that entries are of."""
    found = (re.match(r".*\.(res_blocks|blocks)\.\d+(?=\.)", name) for name in names)
    return {match[0] for match in found if match}
