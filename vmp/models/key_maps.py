"""Names of weights: those of other projects, and ours for the same entries, both ways.

Ours are pytorchvideo's and TimeSformer's behind a prefix. A rule is a pair of templates (theirs,
ours), in which {p} is a pathway, {i} the number of a block, {l} a convolution of a residual block
and {rest} what follows. Names only: no tensor and no model is needed.
"""

import re
from collections.abc import Iterable
from functools import cache

NET = "backbone.net."
PROMPT = "prompts."

Rule = tuple[str, str]

# Whose names a file may have. "caffe2" is PySlowFast's zoo in Caffe2's blobs; "timm" an image ViT,
# "resnet" an image ResNet under torchvision's names.
SOURCES = ("vmp", "pyslowfast", "pytorchvideo", "caffe2", "timesformer", "timm", "resnet")
# What tells a source by its names.
SIGNS = {
    "vmp": r"(backbone\.net|prompts)\..+",
    "pyslowfast": r"s[1-5]\.pathway\d_.+",
    "caffe2": r"(t_)?(conv1|res\d_\d+_branch2[abc])_w",
    "timesformer": r"model\.cls_token|time_embed|blocks\.\d+\.temporal_.+",
    "timm": r"cls_token",
    "resnet": r"layer[1-4]\.\d+\.conv\d\.weight",
    "pytorchvideo": r"(model\.)?blocks\.\d+\.(conv|norm|res_blocks|multipathway_blocks|proj)\..+",
}
# What DistributedDataParallel and torch.compile put before every name.
WRAPPERS = ("module.", "_orig_mod.")
# How a network of ours is numbered; a ResNet's temporal pool is a block without entries.
LAYOUTS = ("slowfast", "x3d", "resnet_pool", "resnet_nopool", "timesformer")
FRIENDLY = {
    "slowfast": "a SlowFast",
    "x3d": "an X3D",
    "resnet": "a C2D or I3D",
    "resnet_pool": "a C2D or I3D with a temporal pool",
    "resnet_nopool": "a C2D without a temporal pool",
    "timesformer": "a TimeSformer",
}

_GROUPS = {"p": r"\d", "i": r"\d+", "l": "[abc]", "rest": ".+"}


def strip_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Return {name: name without what wrapped the whole model} (WRAPPERS, in any order).

    Raises:
        ValueError: some names have such a prefix and others have not.
    """
    stripped = {name: name for name in names}
    while stripped:
        for wrapper in WRAPPERS:
            wrapped = [name for name, rest in stripped.items() if rest.startswith(wrapper)]
            if len(wrapped) == len(stripped):
                stripped = {name: rest[len(wrapper) :] for name, rest in stripped.items()}
                break
            if wrapped:
                raise ValueError(
                    f"{len(wrapped)} of {len(stripped)} names begin with {wrapper!r} "
                    f"({printable(wrapped[0])}) and the others do not: give all or none the prefix"
                )
        else:
            break
    return stripped


def detect_source(names: Iterable[str]) -> str:
    """Return whose names these are, one of SOURCES.

    Raises:
        ValueError: nobody's we know, or those of two projects.
    """
    names = list(names)
    found = {
        source: name for source, sign in SIGNS.items() for name in names if re.fullmatch(sign, name)
    }
    if "timesformer" in found:
        found.pop("timm", None)  # its names are a ViT's and more
    if len(found) == 1:
        return next(iter(found))
    if found:
        several = " and ".join(f"{source}'s ({printable(name)})" for source, name in found.items())
        raise ValueError(f"the names are {several}: one file holds the weights of one model")
    raise ValueError(
        f"the names ({listed(names)}) are none we know; rename them as one of these has them: "
        f"{', '.join(SOURCES)}"
    )


def detect_layout(names: Iterable[str]) -> str:
    """Return which of LAYOUTS a network of ours has, by its names; "other" for one of your own."""
    own = {name.removeprefix(NET).removeprefix("model.") for name in names}
    if "cls_token" in own:
        return "timesformer"
    if any(name.startswith("blocks.0.multipathway_blocks.") for name in own):
        return "slowfast"
    if "blocks.0.conv.conv_t.weight" in own:
        return "x3d"
    if "blocks.0.conv.weight" in own:
        pooled = not any(name.startswith("blocks.2.") for name in own)
        return "resnet_pool" if pooled else "resnet_nopool"
    return "other"


def detect_foreign_layout(names: Iterable[str], source: str) -> str:
    """Return the layout of a file's network as far as its names tell.

    "resnet" where they do not tell whether there is a temporal pool.
    """
    names = list(names)
    if source in ("vmp", "pytorchvideo"):
        return detect_layout(names)
    if source in ("timesformer", "timm"):
        return "timesformer"
    if any(re.match(r"s1\.pathway1_|t_conv1_w", name) for name in names):
        return "slowfast"
    return "x3d" if "s1.pathway0_stem.conv_xy.weight" in names else "resnet"


def to_ours(names: Iterable[str], source: str, layout: str) -> dict[str, str]:
    """Return {name in the file: name in our state dict} for the names that have one.

    Args:
        names: of the file, without WRAPPERS.
        source: one of SOURCES.
        layout: one of LAYOUTS, that of our network; any where `source` is "vmp".

    Raises:
        ValueError: an unknown source, one that has no such network, or two names for one entry.
    """
    named = {name: name for name in names}
    for rules in _chain(source, layout):
        named = _translate(named, rules)
    return _one_to_one(named)


def to_theirs(names: Iterable[str], source: str, layout: str) -> dict[str, str]:
    """Return {name in our state dict: its name in the other project} for those that have one.

    Raises:
        ValueError: as `to_ours`, or a source whose files we do not write.
    """
    if source in ("caffe2", "timm", "resnet"):
        raise ValueError(
            f"files named as {source} names them are read only; take vmp, pyslowfast, pytorchvideo "
            "or timesformer"
        )
    (rules,) = _chain(source, layout)
    reverse = tuple((ours, theirs) for theirs, ours in rules)
    return _one_to_one(_translate({name: name for name in names}, reverse))


def listed(names: Iterable[str], most: int = 4) -> str:
    """Return the first `most` names, and how many more there are, in one printable line."""
    names = [printable(name) for name in names]
    more = f", ... {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def printable(name: str) -> str:
    """Return a name that a file gave as one short line."""
    name = name if len(name) <= 200 else f"{name[:200]}..."
    return name if name.isprintable() else ascii(name)


def _one_to_one(names: dict[str, str]) -> dict[str, str]:
    seen: dict[str, str] = {}
    for name, other in names.items():
        if seen.setdefault(other, name) != name:
            raise ValueError(
                f"{listed((seen[other], name))} are two names for one entry, {printable(other)}"
            )
    return names


def _translate(names: dict[str, str], rules: tuple[Rule, ...]) -> dict[str, str]:
    """Return {name: translated} for {name: name so far}; those no rule knows are left out."""
    translated = {}
    for name, so_far in names.items():
        for pattern, template in rules:
            match = _pattern(pattern).fullmatch(so_far)
            if match:
                translated[name] = template.format(**match.groupdict())
                break
    return translated


@cache
def _pattern(template: str) -> re.Pattern[str]:
    literal = re.escape(template)
    for group, pattern in _GROUPS.items():
        literal = literal.replace(rf"\{{{group}\}}", f"(?P<{group}>{pattern})")
    return re.compile(literal)


@cache
def _chain(source: str, layout: str) -> tuple[tuple[Rule, ...], ...]:
    """Return the rules that lead from the names of `source` to ours, one step after the other."""
    if source == "vmp":
        return (((f"{NET}{{rest}}", f"{NET}{{rest}}"), (f"{PROMPT}{{rest}}", f"{PROMPT}{{rest}}")),)
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}; it must be 'auto' or one of {', '.join(SOURCES)}")
    fits = (source in ("timesformer", "timm")) == (layout == "timesformer")
    if not fits or layout not in LAYOUTS or (layout == "x3d" and source == "caffe2"):
        raise ValueError(
            f"the names are {source}'s, which has no {layout} network: take names and a network "
            "that go together"
        )
    if source == "pytorchvideo":
        # behind "model." where PySlowFast trained it (its PTVResNet and the like)
        return (
            tuple(
                (f"{prefix}blocks.{{rest}}", f"{NET}blocks.{{rest}}") for prefix in ("", "model.")
            ),
        )
    if source == "timesformer":
        return (_prefixed("model.") + _prefixed(""),)
    if source == "timm":
        return (_prefixed(""),)
    pyslowfast = _pyslowfast(layout)
    first = {"caffe2": _caffe2(), "resnet": _image_resnet()}.get(source)
    return (pyslowfast,) if first is None else (first, pyslowfast)


# ---------------------------------------------------------------- TimeSformer


def _prefixed(prefix: str) -> tuple[Rule, ...]:
    """Return the rules for a ViT under `prefix`; the release's prompt stands beside it."""
    whole = ("cls_token", "pos_embed", "time_embed")
    parts = ("patch_embed", "blocks", "norm", "head")
    return (
        *((f"vmps.{name}", f"{PROMPT}0.power_norm.{name}") for name in ("m", "n")),
        *((prefix + name, NET + name) for name in whole),
        *((f"{prefix}{name}.{{rest}}", f"{NET}{name}.{{rest}}") for name in parts),
    )


# ---------------------------------------------------------------- PySlowFast

# its stages 2 to 5 are these blocks, the head follows; SlowFast pools in a block of its own
_STAGES = {
    "slowfast": ((1, 2, 3, 4), 6),
    "x3d": ((1, 2, 3, 4), 5),
    "resnet_pool": ((1, 3, 4, 5), 6),
    "resnet_nopool": ((1, 2, 3, 4), 5),
}
_RESNET_STEM: tuple[Rule, ...] = (
    ("s1.pathway0_stem.conv.weight", "blocks.0.conv.weight"),
    ("s1.pathway0_stem.bn.{rest}", "blocks.0.norm.{rest}"),
)
_SLOWFAST_STEM: tuple[Rule, ...] = (
    ("s1.pathway{p}_stem.conv.weight", "blocks.0.multipathway_blocks.{p}.conv.weight"),
    ("s1.pathway{p}_stem.bn.{rest}", "blocks.0.multipathway_blocks.{p}.norm.{rest}"),
    # the fusion after their stage K is part of our block K - 1
    *(
        (f"s{k}_fuse.{theirs}.{{rest}}", f"blocks.{k - 1}.multipathway_fusion.{ours}.{{rest}}")
        for k in (1, 2, 3, 4)
        for theirs, ours in (("conv_f2s", "conv_fast_to_slow"), ("bn", "norm"))
    ),
)
_X3D_STEM: tuple[Rule, ...] = (
    # crossed: pytorchvideo calls the spatial convolution "conv_t" and the temporal one "conv_xy"
    ("s1.pathway0_stem.conv_xy.weight", "blocks.0.conv.conv_t.weight"),
    ("s1.pathway0_stem.conv.weight", "blocks.0.conv.conv_xy.weight"),
    ("s1.pathway0_stem.bn.{rest}", "blocks.0.norm.{rest}"),
)
_STEMS = {
    "slowfast": _SLOWFAST_STEM,
    "x3d": _X3D_STEM,
    "resnet_pool": _RESNET_STEM,
    "resnet_nopool": _RESNET_STEM,
}
_RESIDUAL_BLOCK: tuple[Rule, ...] = (
    ("branch1.weight", "branch1_conv.weight"),
    ("branch1_bn.{rest}", "branch1_norm.{rest}"),
    ("branch2.{l}.weight", "branch2.conv_{l}.weight"),
    ("branch2.{l}_bn.{rest}", "branch2.norm_{l}.{rest}"),
)
_X3D_RESIDUAL_BLOCK: tuple[Rule, ...] = (
    # the norm shares a Sequential with squeeze-and-excitation; before the general rules
    ("branch2.b_bn.{rest}", "branch2.norm_b.0.{rest}"),
    ("branch2.se.fc1.{rest}", "branch2.norm_b.1.block.0.{rest}"),
    ("branch2.se.fc2.{rest}", "branch2.norm_b.1.block.2.{rest}"),
    *_RESIDUAL_BLOCK,
)
_HEAD: tuple[Rule, ...] = (
    ("head.projection.{rest}", "proj.{rest}"),
    # the rest is X3D's
    ("head.conv_5.weight", "pool.pre_conv.weight"),
    ("head.conv_5_bn.{rest}", "pool.pre_norm.{rest}"),
    ("head.lin_5.weight", "pool.post_conv.weight"),
    ("head.lin_5_bn.{rest}", "pool.post_norm.{rest}"),
)


def _pyslowfast(layout: str) -> tuple[Rule, ...]:
    stages, head = _STAGES[layout]
    block = _X3D_RESIDUAL_BLOCK if layout == "x3d" else _RESIDUAL_BLOCK
    pathway, inside = ("{p}", "multipathway_blocks.{p}.") if layout == "slowfast" else ("0", "")
    rules = list(_STEMS[layout])
    for stage, number in enumerate(stages, start=2):
        theirs = f"s{stage}.pathway{pathway}_res{{i}}."
        ours = f"blocks.{number}.{inside}res_blocks.{{i}}."
        rules += [(theirs + left, ours + right) for left, right in block]
    rules += [(left, f"blocks.{head}.{right}") for left, right in _HEAD]
    return tuple((left, NET + right) for left, right in rules)


# ---------------------------------------------------------------- to PySlowFast's names


def _caffe2() -> tuple[Rule, ...]:
    """Return the rules from Caffe2's blobs; "t_" is the fast pathway, "riv" the variance itself."""
    entries = (("s", "weight"), ("b", "bias"), ("rm", "running_mean"), ("riv", "running_var"))
    rules = [("pred_w", "head.projection.weight"), ("pred_b", "head.projection.bias")]
    # the fusion is named for the pool, or for the last convolution of a stage, before it
    fusions = {1: "t_pool1_subsample"}
    fusions |= {k: f"t_res{k}_{{i}}_branch2c_bn_subsample" for k in (2, 3, 4)}
    for k, blob in fusions.items():
        rules.append((f"{blob}_w", f"s{k}_fuse.conv_f2s.weight"))
        rules += [(f"{blob}_bn_{b}", f"s{k}_fuse.bn.{entry}") for b, entry in entries]
    for pathway, t in enumerate(("", "t_")):
        stem = f"s1.pathway{pathway}_stem"
        rules.append((f"{t}conv1_w", f"{stem}.conv.weight"))
        rules += [(f"{t}res_conv1_bn_{b}", f"{stem}.bn.{entry}") for b, entry in entries]
        for k in (2, 3, 4, 5):
            blob, block = f"{t}res{k}_{{i}}_branch", f"s{k}.pathway{pathway}_res{{i}}.branch"
            rules.append((f"{blob}1_w", f"{block}1.weight"))
            rules.append((f"{blob}2{{l}}_w", f"{block}2.{{l}}.weight"))
            rules += [(f"{blob}1_bn_{b}", f"{block}1_bn.{entry}") for b, entry in entries]
            rules += [
                (f"{blob}2{{l}}_bn_{b}", f"{block}2.{{l}}_bn.{entry}") for b, entry in entries
            ]
    return tuple(rules)


def _image_resnet() -> tuple[Rule, ...]:
    """Return the rules from torchvision's ResNet (bottlenecks, strides on the 3 x 3)."""
    rules = [
        ("conv1.weight", "s1.pathway0_stem.conv.weight"),
        ("bn1.{rest}", "s1.pathway0_stem.bn.{rest}"),
        ("fc.{rest}", "head.projection.{rest}"),
    ]
    for k in (1, 2, 3, 4):
        theirs, block = f"layer{k}.{{i}}.", f"s{k + 1}.pathway0_res{{i}}."
        rules.append((f"{theirs}downsample.0.weight", f"{block}branch1.weight"))
        rules.append((f"{theirs}downsample.1.{{rest}}", f"{block}branch1_bn.{{rest}}"))
        for number, letter in enumerate("abc", start=1):
            rules.append((f"{theirs}conv{number}.weight", f"{block}branch2.{letter}.weight"))
            rules.append((f"{theirs}bn{number}.{{rest}}", f"{block}branch2.{letter}_bn.{{rest}}"))
    return tuple(rules)
