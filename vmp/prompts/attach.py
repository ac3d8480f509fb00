"""A motion prompt before a model of your own, however that takes its clips."""

import inspect
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vmp.prompts.layer import MotionPrompt

LAYOUTS = {"BCTHW": "(B, 3, T+1, H, W)", "BTCHW": "(B, T+1, 3, H, W)"}


class PromptedOutput(NamedTuple):
    """What a prompted model gives for a batch.

    Attributes:
        output: what the model itself returned.
        variation: V (Eq. 6), a scalar, for the loss.
    """

    output: Any
    variation: Tensor


def attach(
    model: nn.Module,
    prompt: MotionPrompt | None = None,
    *,
    layout: str = "BCTHW",
    per_frame: bool = False,
    argument: str = "",
) -> "PromptedModel":
    """Put a motion prompt before a model; what comes out gives the model's output, and V.

    The clip has one frame more than the model is to see. It is uint8 in 0..255, or floats that are
    normalised as the model wants them, by the mean and std of the prompt. All other arguments go to
    the model as they are.

    Args:
        model: takes clips of RGB frames, normalised. It is not copied.
        prompt: with the mean and std that the model was trained on; None is the paper's, with 0.45
            and 0.225.
        layout: of the clip, both what comes in and what the model gets: "BCTHW" or "BTCHW".
        per_frame: the model is one of images and gets the frames (B T, 3, H, W); the output is the
            mean over time of what it gives for them.
        argument: name of the model's argument that takes the clip; "" is its first. The clip can be
            given by position or by name, as to the model itself.

    Raises:
        ValueError: an unknown layout, or the model has no such argument.
    """
    prompt = MotionPrompt() if prompt is None else prompt
    return PromptedModel(model, prompt, layout=layout, per_frame=per_frame, argument=argument)


class PromptedModel(nn.Module):
    """A model with a motion prompt before it, see `attach`.

    In a state dict the model's own names begin with `model.`, the prompt's with `prompts.`; weights
    of the model alone are loaded into `.model`.
    """

    def __init__(
        self, model: nn.Module, prompt: MotionPrompt, *, layout: str, per_frame: bool, argument: str
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
        self.argument, self.position = _find_argument(model, argument)
        self.layout, self.per_frame = layout, per_frame
        self.prompts = prompt  # the name by which vmp.solver tells what not to decay
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> PromptedOutput:
        """Return what the model gives for the prompts of a clip, and V.

        Args:
            args: the model's, with the clip of T+1 frames in its place.
            kwargs: likewise.

        Raises:
            ValueError: no clip, one of another shape or type, or a model of images that does not
                return a tensor with a row for each frame.
        """
        named = self.argument in kwargs
        if not named and len(args) <= self.position:
            how = f"by the name {self.argument!r}" if self.argument else "by position"
            raise ValueError(f"no clip was given to {type(self.model).__name__}; give it {how}")
        clip = kwargs[self.argument] if named else args[self.position]
        inputs, variation = self._inputs(clip)
        if named:
            kwargs = {**kwargs, self.argument: inputs}
        else:
            args = (*args[: self.position], inputs, *args[self.position + 1 :])
        output = self.model(*args, **kwargs)
        if self.per_frame:
            frames = clip.shape[self.layout.index("T")] - 1
            output = _mean(output, len(clip), frames)
        return PromptedOutput(output, variation)

    def train(self, mode: bool = True) -> "PromptedModel":
        """Set the mode; a model that is frozen as a whole stays in evaluation mode.

        Its batch norms would else move, and its dropout drop, though nothing in it learns.
        """
        super().train(mode)
        if mode and any(True for _ in self.model.parameters()) and not _trainable(self.model):
            self.model.eval()
        return self

    def param_groups(self) -> list[dict[str, Any]]:
        """Return what is trainable as an optimizer takes it: m and n are not to be decayed."""
        groups: list[dict[str, Any]] = [
            {"params": _trainable(self.model)},
            {"params": _trainable(self.prompts), "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def extra_repr(self) -> str:
        """Return what the repr shows besides the prompt and the model."""
        return f"layout={self.layout!r}, per_frame={self.per_frame}, argument={self.argument!r}"

    def _inputs(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prompts as the model takes them, and V."""
        _check_clip(clip, self.layout)
        time_first = self.layout == "BTCHW"
        prompts, variation = self.prompts(clip.transpose(1, 2) if time_first else clip)
        if time_first or self.per_frame:
            # in memory too: some models take views of what they get
            prompts = prompts.transpose(1, 2).contiguous()
        if self.per_frame:
            prompts = prompts.flatten(0, 1)
        if not torch.is_autocast_enabled(clip.device.type):
            prompts = prompts.to(_parameter_type(self.model, prompts.dtype))
        return prompts, variation


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _find_argument(model: nn.Module, name: str) -> tuple[str, int]:
    """Return name and position of the argument that takes the clip; "" if it has no name."""
    try:
        parameters = inspect.signature(model.forward).parameters
    except ValueError:  # a traced module tells nothing of its arguments
        return name, 0
    kinds = {parameter.kind for parameter in parameters.values()}
    takes = [
        each.name
        for each in parameters.values()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if not name:
        return (takes[0] if takes else "", 0)
    if name not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise ValueError(
            f"{type(model).__name__} has no argument {name!r}; it has: {', '.join(parameters)}"
        )
    if name in takes:
        return name, takes.index(name)
    return name, sys.maxsize if takes else 0  # by name only, or first of any


def _check_clip(clip: Tensor, layout: str) -> None:
    shape = tuple(clip.shape)
    if clip.ndim != 5 or shape[layout.index("C")] != 3:
        raise ValueError(
            f"a clip of shape {shape} was given; layout {layout!r} is {LAYOUTS[layout]}, RGB"
        )
    if clip.dtype != torch.uint8 and not clip.is_floating_point():
        raise ValueError(f"a clip of {clip.dtype} was given; it must be uint8 or normalised floats")


def _parameter_type(model: nn.Module, default: torch.dtype) -> torch.dtype:
    """Return the type that a model computes in, as far as its first parameter tells."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return default


def _mean(output: Any, batch: int, frames: int) -> Tensor:
    """Return the mean over time of what a model of images gave for the frames of all clips."""
    shape = tuple(output.shape) if isinstance(output, Tensor) else None
    if not isinstance(output, Tensor) or output.shape[:1] != (batch * frames,):
        what = type(output).__name__ if shape is None else f"one of shape {shape}"
        raise ValueError(
            f"with per_frame a model must return a tensor of {batch * frames} rows, one a frame, "
            f"not {what}; wrap it in a module that does"
        )
    mean: Tensor = output.unflatten(0, (batch, frames)).mean(dim=1)
    return mean
