"""A file of weights under other names: those of another project in ours, and ours in theirs.

Values are never changed. What the other project's network has and ours has not, or the reverse, is
added or left out only where it changes nothing: an identity norm, and counters of batches.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vmp.models.key_maps import (
    NET,
    PROMPT,
    detect_foreign_layout,
    detect_source,
    listed,
    to_ours,
    to_theirs,
)
from vmp.models.pretrained import BESIDE, identity_norm, stated_pool, unwrapped
from vmp.utils.weights_file import WeightsFile

TARGETS = ("vmp", "pyslowfast", "pytorchvideo", "timesformer")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class Named(NamedTuple):
    """Weights under our names.

    Attributes:
        state: {name: value}.
        source: whose names the file had, one of `key_maps.SOURCES`.
        layout: of the network, one of `key_maps.LAYOUTS`, or "other" for a backbone of your own.
    """

    state: dict[str, Tensor]
    source: str
    layout: str


def rename_to_ours(file: WeightsFile, layout: str = "") -> Named:
    """Return the weights of a file under our names, every entry of it.

    Args:
        file: as it was read.
        layout: of the network, for a ResNet under PySlowFast's or Caffe2's names, which do not
            tell whether there is a temporal pool. "": as the file says.

    Raises:
        ValueError: an image network, which is inflated only into a model; an entry without a name
            of ours; a ResNet of which nothing says whether it has a pool; `layout` is another.
    """
    state = unwrapped(file)
    source = detect_source(state)
    if source in ("timm", "resnet"):
        raise ValueError(
            f"an image network ({source}) becomes one for video only in a model: name the file as "
            "TRAIN.INIT_FROM"
        )
    layout = _agree(_layout_of(file, list(state), source), layout)
    names = to_ours(state, source, layout)
    strangers = [name for name in state if name not in names and not BESIDE.fullmatch(name)]
    if strangers:
        raise ValueError(f"entries without a name of ours ({len(strangers)}): {listed(strangers)}")
    renamed = {ours: state[theirs] for theirs, ours in names.items()}
    return Named(renamed | _counters(renamed), source, layout)


def _layout_of(file: WeightsFile, names: list[str], source: str) -> str:
    layout = detect_foreign_layout(names, source)
    if layout != "resnet":
        return layout
    if any(tuple(value.shape[2:]) == (5, 7, 7) for value in file.tensors.values()):
        return "resnet_pool"  # an I3D's stem
    pooled, _ = stated_pool(file)
    return layout if pooled is None else ("resnet_pool" if pooled else "resnet_nopool")


def _agree(found: str, wanted: str) -> str:
    """Return the layout by what was found in the file and what is wanted of it ("": nothing)."""
    if found == "resnet" and not wanted.startswith("resnet"):
        raise ValueError(
            "nothing in it says whether its C2D has the temporal pool: name its recipe, --cfg "
            "configs/base/C2D_NOPOOL_8x8_R50.yaml (PySlowFast's zoo) or C2D_8x8_R50.yaml"
        )
    if found not in ("resnet", wanted) and wanted:
        raise ValueError(f"its network is {found}, the recipe's is {wanted}: name the right one")
    return wanted or found


def _counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the counters of batches that Caffe2's norms lack; they decide nothing."""
    norms = [name.rpartition(".")[0] for name in state if name.endswith(".running_mean")]
    counters = [f"{norm}.num_batches_tracked" for norm in norms]
    return {name: torch.zeros((), dtype=torch.int64) for name in counters if name not in state}


def rename_to_theirs(
    state: Mapping[str, Tensor], target: str, layout: str, *, drop_prompt: bool = False
) -> dict[str, Tensor]:
    """Return our weights under the names of another project, every entry of them.

    Args:
        state: under our names.
        target: one of TARGETS.
        layout: of the network.
        drop_prompt: leave the motion prompts out; the backbone alone then computes something else.

    Raises:
        ValueError: the project has no such network or no place for an entry, as for a prompt.
    """
    if target not in TARGETS:
        raise ValueError(f"the names of {target!r} are not written, those of {', '.join(TARGETS)}")
    state = dict(state)
    prompts = [name for name in state if name.startswith(PROMPT)]
    if prompts and drop_prompt:
        state = {name: value for name, value in state.items() if name not in prompts}
    elif prompts and target in ("pyslowfast", "pytorchvideo"):
        raise ValueError(
            f"{target} has no place for the motion prompt ({listed(prompts)}); --drop-prompt "
            "writes the backbone alone"
        )
    if target == "pyslowfast":
        state |= _shortcut_norms(state)
    if target == "pytorchvideo" and layout == "x3d":
        state = _without_shortcut_norms(state)
    names = to_theirs(state, target, layout)
    nameless = [name for name in state if name not in names]
    if nameless:
        raise ValueError(f"{target} has no name for {listed(nameless)}")
    return {theirs: state[ours] for ours, theirs in names.items()}


def _shortcuts(state: Mapping[str, Tensor]) -> list[str]:
    """Return the shortcuts that keep their channels; only an X3D has one."""
    pattern = re.compile(re.escape(NET) + r"blocks\.\d+\.res_blocks\.\d+\.branch1_conv\.weight")
    kept = (name for name, v in state.items() if pattern.fullmatch(name) and _is_square(v))
    return [name.removesuffix("_conv.weight") for name in kept]


def _is_square(weight: Tensor) -> bool:
    return weight.shape[0] == weight.shape[1]


def _shortcut_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the norms that PySlowFast's X3D has after such a shortcut, where ours has none."""
    norms: dict[str, Tensor] = {}
    for shortcut in _shortcuts(state):
        if f"{shortcut}_norm.weight" not in state:
            weight = state[f"{shortcut}_conv.weight"]
            norms |= {f"{shortcut}_norm.{leaf}": _identity(leaf, weight) for leaf in _NORM}
    return norms


def _identity(leaf: str, weight: Tensor) -> Tensor:
    if leaf == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    return identity_norm(leaf, weight.new_empty(weight.shape[0]))


def _without_shortcut_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the norms that pytorchvideo's X3D has not, if they change nothing."""
    for shortcut in _shortcuts(state):
        norm = {leaf: state.get(f"{shortcut}_norm.{leaf}") for leaf in _NORM[:-1]}
        for leaf, value in norm.items():
            if value is not None and not torch.equal(value, identity_norm(leaf, value)):
                raise ValueError(
                    f"pytorchvideo's X3D has no norm after its shortcut, this one has "
                    f"({shortcut}_norm): train with X3D.SHORTCUT_NORM False, or take pyslowfast"
                )
        state = {n: v for n, v in state.items() if not n.startswith(f"{shortcut}_norm.")}
    return state
