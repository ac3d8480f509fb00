"""Pictures while a training goes on, for TensorBoard and the like."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vmp.models import VideoModel
from vmp.models.video_model import take_frames
from vmp.prompts import MotionPrompt
from vmp.visualization.confusion import draw_confusion
from vmp.visualization.panel import Picture, picture_of, prompt_panel

STEPS = 6
DPI = 80


@torch.no_grad()
def prompt_pictures(model: VideoModel, clip: Tensor) -> dict[str, Picture]:
    """Return a panel of each prompt of a model, as it is now.

    Neither the model nor any random state is changed. It takes part of a second for each prompt.

    Args:
        model: on any device, in any mode; one without prompts gives no pictures.
        clip: (3, T+1, H, W) uint8 RGB, as the model takes it.

    Returns:
        (H, W, 3) uint8 by name: "prompt/0" for that of the slowest pathway.
    """
    pictures: dict[str, Any] = {}
    for pathway, layer in model.prompts.items():
        assert isinstance(layer, MotionPrompt)
        device = next((each.device for each in layer.state_dict().values()), torch.device("cpu"))
        part = take_frames(clip.unsqueeze(0), model.frames[int(pathway)])[0].to(device)
        figure = prompt_panel(layer, part, max_steps=STEPS)
        pictures[f"prompt/{pathway}"] = picture_of(figure, DPI)
    return pictures


def confusion_pictures(matrix: Tensor, class_names: Sequence[str], name: str) -> dict[str, Picture]:
    """Return a confusion matrix (C, C) as a picture (H, W, 3) uint8 under `name`."""
    figure = draw_confusion(matrix, class_names, name.partition("/")[0])
    return {name: picture_of(figure, DPI)}
