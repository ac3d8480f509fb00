"""Files of weights as other projects write them.

They are made of arrays under the names of PySlowFast or TimeSformer, as golden/fill.py gives. Other
names follow from golden/mapping.json and never from our key maps, so that a wrong rule of ours
meets a right file. Every maker returns the path it was given.
"""

import json
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = Mapping[str, np.ndarray]
Rules = list[list[str]]

# What PySlowFast's X3D has and pytorchvideo's has not.
SHORTCUT_NORM = "s2.pathway0_res0.branch1_bn."
COUNTER = "num_batches_tracked"
# MODEL.ARCH and MODEL.MODEL_NAME of TimeSformer's configs.
VIT = ("vit", "vit_base_patch16_224")
CFG = """\
BN:
  NUM_BATCHES_PRECISE: 200
  USE_PRECISE_STATS: true
MODEL:
  ARCH: {arch}
  MODEL_NAME: {model_name}
  NUM_CLASSES: 400
NUM_GPUS: 8
"""


# ---------------------------------------------------------------- names


@cache
def read_mapping(golden: Path) -> dict[str, Any]:
    """Return mapping.json of the folder of reference data, with TimeSformer among the families.

    Its rules lead to the names within a network; TimeSformer's are ours behind another prefix.
    """
    mapping: dict[str, Any] = json.loads((golden / "mapping.json").read_text())
    mapping["families"]["timesformer"] = [[r"model\.(.+)", r"\1"]]
    return mapping


def expand(rules: Rules, name: str) -> str:
    """Return what the one rule that matches makes of a name."""
    matches = [(re.fullmatch(pattern, name), template) for pattern, template in rules]
    (other,) = (match.expand(template) for match, template in matches if match)
    return other


def rename(state: State, rules: Rules) -> dict[str, np.ndarray]:
    """Return the arrays under other names, of which no two are the same."""
    renamed = {expand(rules, name): value for name, value in state.items()}
    assert len(renamed) == len(state)
    return renamed


def make_state(
    fill: ModuleType, names: Iterable[str], rules: Rules, net: nn.Module
) -> dict[str, np.ndarray]:
    """Return the reference values for a network, under the original names.

    Args:
        fill: golden/fill.py.
        names: the original ones, of every entry that the network has.
        rules: from these to the network's own.
        net: has the shapes.
    """
    own = net.state_dict()
    inside = {name: expand(rules, name) for name in names}
    assert sorted(inside.values()) == sorted(own)
    state: dict[str, np.ndarray] = fill.state((n, own[other].shape) for n, other in inside.items())
    return state


def tensors(state: State) -> OrderedDict[str, Tensor]:
    return OrderedDict((name, torch.from_numpy(value)) for name, value in state.items())


# ---------------------------------------------------------------- PySlowFast and TimeSformer


def write_pyslowfast(path: Path, state: State, arch: tuple[str, str] = VIT) -> Path:
    """Write a checkpoint of PySlowFast, or of TimeSformer, which was made from it.

    Args:
        path: the file.
        state: under the project's names.
        arch: its config's MODEL.ARCH and MODEL.MODEL_NAME.
    """
    buffers = {i: {"momentum_buffer": torch.ones(3)} for i in range(2)}
    groups = [{"lr": 0.1, "weight_decay": 1e-4, "nesterov": True, "params": [0, 1]}]
    checkpoint = {
        "epoch": 299,
        "model_state": tensors(state),
        "optimizer_state": {"state": buffers, "param_groups": groups},
        "cfg": CFG.format(arch=arch[0], model_name=arch[1]),
    }
    torch.save(checkpoint, path)
    return path


def write_vmps(path: Path, state: State, *, m: float, n: float) -> Path:
    """Write a checkpoint of the authors' release: the prompt's m and n before a TimeSformer."""
    prompt = {"vmps.m": np.array([m], np.float32), "vmps.n": np.array([n], np.float32)}
    return write_pyslowfast(path, prompt | dict(state))


def image_vit(state: State) -> dict[str, np.ndarray]:
    """Return what of a TimeSformer an image ViT has, under timm's names."""
    return {
        name.removeprefix("model."): value
        for name, value in state.items()
        if "temporal" not in name and "time_embed" not in name
    }


def write_timm(path: Path, state: State, *, container: str = "") -> Path:
    """Write the image ViT of a TimeSformer: as timm does, or DeiT with `container` "model"."""
    weights = tensors(image_vit(state))
    torch.save({container: weights} if container else weights, path)
    return path


# ---------------------------------------------------------------- Caffe2


def blobs(state: State, mapping: Mapping[str, Any], *, squeezed: bool) -> dict[str, np.ndarray]:
    """Return Caffe2's blobs of a model: no counters, and beside the weights what its solver left.

    Args:
        state: under PySlowFast's names.
        mapping: mapping.json.
        squeezed: leave out a kernel's last dimensions of size 1.
    """
    counted = {name: value for name, value in state.items() if not name.endswith(COUNTER)}
    weights = rename(counted, mapping["caffe2"]["rules"])
    if squeezed:
        weights = {name: _without_last_ones(value) for name, value in weights.items()}
    momentum = {
        f"{name}_momentum": np.full_like(value, 0.5)
        for name, value in weights.items()
        if not name.endswith(("_rm", "_riv"))
    }
    solver: State = {"lr": np.array([1e-5], np.float32), "model_iter": np.array([240000], np.int64)}
    return {**weights, **momentum, **solver}


def _without_last_ones(value: np.ndarray) -> np.ndarray:
    shape = list(value.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    return value.reshape(shape)


def write_caffe2(
    path: Path, state: State, mapping: Mapping[str, Any], *, python2: bool = True
) -> Path:
    """Write a file of the Caffe2 zoo: as Python 2 did, or the same saved again by Python 3."""
    content = {"blobs": blobs(state, mapping, squeezed=python2)}
    with path.open("wb") as file:
        if python2:
            _Python2Pickler(file, protocol=2).dump(content)
        else:
            pickle.dump(content, file, protocol=2)
    return path


class _Python2Pickler(pickle._Pickler):
    """Writes texts and bytes alike, as Python 2's `str`, and numpy by its old names."""

    write: Callable[[bytes], object]
    memoize: Callable[[object], None]
    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def save_text(self, text: str | bytes) -> None:
        raw = text.encode("latin1") if isinstance(text, str) else text
        short = len(raw) < 256
        head = b"U" + bytes([len(raw)]) if short else b"T" + struct.pack("<i", len(raw))
        self.write(head + raw)
        self.memoize(text)

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{name or value.__name__}\n".encode())
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


# ---------------------------------------------------------------- pytorchvideo, and our own


def write_pytorchvideo(path: Path, state: State, mapping: Mapping[str, Any], family: str) -> Path:
    """Write a file of pytorchvideo's hub; its own X3D are `without_shortcut_norm`."""
    torch.save({"model_state": tensors(rename(state, mapping["families"][family]))}, path)
    return path


def without_shortcut_norm(state: State) -> dict[str, np.ndarray]:
    """Return an X3D's arrays but for the norm that pytorchvideo's has not."""
    return {name: value for name, value in state.items() if not name.startswith(SHORTCUT_NORM)}


def our_state(state: State, mapping: Mapping[str, Any], family: str) -> OrderedDict[str, Tensor]:
    """Return the state dict that a model of ours has with these weights."""
    renamed = rename(state, mapping["families"][family])
    return tensors({f"backbone.net.{name}": value for name, value in renamed.items()})


def write_ours(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Write a checkpoint of ours: `state` is a model's state dict."""
    checkpoint = {"model": dict(state), "optimizer": {}, "scaler": {}, "epoch": 2, "step": 8}
    torch.save(checkpoint | {"config": "MODEL:\n  NAME: x3d\n"}, path)
    return path


def write_safetensors(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Write a model's state dict as safetensors, by that project's own function."""
    save_file(dict(state), path, metadata={"format": "pt"})
    return path
