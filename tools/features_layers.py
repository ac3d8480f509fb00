"""The layers of a model by name: what each gives for a clip, and how to get hold of it."""

import difflib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vmp.models import VideoModel, build_model
from vmp.models.freeze import find_head
from vmp.prompts import MotionPrompt

FEATURES = "features"  # what the last layer makes logits of
Shapes = dict[str, list[list[tuple[int, ...]]]]  # name -> of each time it ran -> of each output
Take = Callable[[str, Sequence[Tensor]], None]  # (name of a module, its outputs)


class Layer(NamedTuple):
    """One output of a module, that the clips of a batch can be told apart in.

    Attributes:
        name: of the output: that of the module, with its place where there are several.
        module: name of the module.
        place: which of the module's outputs.
        kind: what the module is.
        shape: for one clip.
        batch: dimension of the clips; None where they are mixed with something else, so that the
            output has to be that of a single clip.
        channels: dimension of the channels in `shape`.
    """

    name: str
    module: str
    place: int
    kind: str
    shape: tuple[int, ...]
    batch: int | None
    channels: int


class _PromptSizes(nn.Module):
    """What a motion prompt does to sizes: there is no autocast on the meta device."""

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        return clip[:, :, 1:].float(), torch.zeros((), device=clip.device)


def build_layers(cfg: CfgNode) -> list[Layer]:
    """Return the layers of the model of a config, as they are for the crops of its test.

    Nothing is computed. A module that does not run just once a pass is left out, and so is what
    does not depend on the number of clips.
    """
    with torch.device("meta"):
        model = build_model(cfg).eval()
    for pathway in model.prompts:
        model.prompts[pathway] = _PromptSizes()
    side = cfg.DATA.TEST_CROP_SIZE
    sizes = 3, model.clip_frames, side, side
    one, two = (_shapes(model, torch.empty(number, *sizes, device="meta")) for number in (1, 2))
    layers: list[Layer] = []
    for name, module in modules_of(model).items():
        if len(one[name]) == 1:
            layers += _layers_of(name, module, one[name][0], two[name][0])
    return layers


def modules_of(model: VideoModel) -> dict[str, nn.Module]:
    """Return the modules of a backbone by name, its head as FEATURES, and the prompts."""
    prompts = {f"prompts.{pathway}": prompt for pathway, prompt in model.prompts.items()}
    inside = {name: module for name, module in model.backbone.net.named_modules() if name}
    return {FEATURES: find_head(model), **prompts, **inside}


def hook(name: str, module: nn.Module, take: Take) -> RemovableHandle:
    """Have `take` called with the name and the outputs of a module, each time it has run."""
    if name == FEATURES:
        return module.register_forward_pre_hook(
            lambda module, inputs: take(name, [_features(inputs[0])])
        )
    return module.register_forward_hook(lambda module, inputs, output: take(name, _tensors(output)))


def _features(values: Tensor) -> Tensor:
    """Return (B, C) or, of several places, (B, places, C) for what the head gets, (B, ..., C)."""
    places = values.reshape(values.shape[0], -1, values.shape[-1])
    return places.squeeze(1)


def _tensors(output: object) -> list[Tensor]:
    parts = output if isinstance(output, list | tuple) else [output]
    return [part for part in parts if isinstance(part, Tensor)]


def _shapes(model: VideoModel, clip: Tensor) -> Shapes:
    """Return the sizes of what each module gives, each time it runs."""
    ran: Shapes = defaultdict(list)

    def note(name: str, outputs: Sequence[Tensor]) -> None:
        ran[name].append([tuple(output.shape) for output in outputs])

    handles = [hook(name, module, note) for name, module in modules_of(model).items()]
    with torch.no_grad():
        model(clip)
    for handle in handles:
        handle.remove()
    return ran


def _layers_of(
    name: str,
    module: nn.Module,
    one: Sequence[tuple[int, ...]],
    two: Sequence[tuple[int, ...]],
) -> list[Layer]:
    """Return the layers of a module, given the sizes of its outputs for one clip and for two."""
    found = []
    for place, (shape, other) in enumerate(zip(one, two, strict=True)):
        grown = [i for i, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
        if len(grown) == 1:
            found.append(_layer(name, module, place, shape, grown[0]))
    if len(found) < 2:
        return found
    return [layer._replace(name=f"{name}[{layer.place}]") for layer in found]


def _layer(name: str, module: nn.Module, place: int, shape: tuple[int, ...], grown: int) -> Layer:
    # tokens have channels last, and so has what goes into a head; feature maps have them second
    is_map = isinstance(module, nn.Conv2d) or (
        len(shape) == 5 and name != FEATURES and not isinstance(module, nn.Linear)
    )
    channels = 1 if is_map else len(shape) - 1
    kind = type(module).__name__
    if name == FEATURES:
        kind = f"input of {kind}"
    elif isinstance(module, _PromptSizes):
        kind = MotionPrompt.__name__
    if shape[grown] != 1:
        return Layer(name, name, place, kind, shape, None, channels)
    rest = shape[:grown] + shape[grown + 1 :]
    return Layer(name, name, place, kind, rest, grown, channels - (grown < channels))


def pick_layers(layers: Sequence[Layer], wanted: Sequence[str]) -> list[Layer]:
    """Return the layers of some names; that of a module stands for all its outputs.

    Raises:
        ValueError: there is none of a name.
    """
    picked: dict[str, Layer] = {}
    for name in wanted:
        found = [layer for layer in layers if name in (layer.name, layer.module)]
        if not found:
            near = difflib.get_close_matches(name, [layer.name for layer in layers])
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(
                f"--layer {name}: there is no such layer that runs once a clip; {hint}"
                "--list-layers names them all"
            )
        picked |= {layer.name: layer for layer in found}
    return list(picked.values())


class Taps:
    """Hold on to what layers give while a model runs, until the end of a `with`.

    Args:
        model: in evaluation mode.
        layers: of this model.
        pool: "mean" averages all but the channels, "none" nothing.
    """

    def __init__(self, model: VideoModel, layers: Sequence[Layer], pool: str) -> None:
        self.layers = layers
        self.pool = pool
        self._values: dict[tuple[str, int], Tensor] = {}
        modules = modules_of(model)
        self._handles = [
            hook(name, modules[name], self._keep)
            for name in dict.fromkeys(layer.module for layer in layers)
        ]

    def __enter__(self) -> "Taps":
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str, outputs: Sequence[Tensor]) -> None:
        for layer in self.layers:
            if layer.module == name:
                # a copy: what comes next may work in place
                self._values[name, layer.place] = outputs[layer.place].detach().clone()

    def take(self) -> Mapping[str, Tensor]:
        """Return {name: (B, ...)} float32, on the CPU, of the pass just made."""
        return dict(self._taken())

    def _taken(self) -> Iterator[tuple[str, Tensor]]:
        for layer in self.layers:
            value = self._values.pop((layer.module, layer.place)).float()
            value = value.unsqueeze(0) if layer.batch is None else value.movedim(layer.batch, 0)
            if self.pool == "mean":
                channels = layer.channels + 1
                others = [dim for dim in range(1, value.ndim) if dim != channels]
                value = value.mean(others) if others else value
            yield layer.name, value.cpu()
