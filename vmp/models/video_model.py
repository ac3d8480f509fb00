"""The model that is trained: a clip in, split into pathways, prompted, through a backbone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vmp.models.backbone import Backbone
from vmp.prompts import MotionPrompt
from vmp.prompts.functional import normalize

Frames = slice | tuple[int, ...]


class ModelOutput(NamedTuple):
    """What a model gives for a batch.

    Attributes:
        logits: (B, classes), never probabilities.
        variation: V (Eq. 6), a scalar, summed over the prompted pathways; 0 without prompts.
    """

    logits: Tensor
    variation: Tensor


class VideoModel(nn.Module):
    """A backbone, with motion prompts before any of its pathways.

    With a prompt the clip has one frame more than the backbone sees: prompt t belongs to frame
    t + 1, so a pathway without a prompt takes the last `num_frames` frames.

    Args:
        backbone: the backbone.
        num_frames: T, frames the backbone's fastest pathway sees.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        prompts: one per prompted pathway, by its index, slowest first.

    Raises:
        ValueError: a prompt for a pathway that does not exist or that has fewer than two frames.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_frames: int,
        mean: Sequence[float] = (0.45, 0.45, 0.45),
        std: Sequence[float] = (0.225, 0.225, 0.225),
        prompts: Mapping[int, MotionPrompt] = {},
    ) -> None:
        super().__init__()
        strides = backbone.strides
        _check_prompted(prompts, [num_frames // stride for stride in strides])
        self.backbone = backbone
        self.prompts = nn.ModuleDict({str(i): prompts[i] for i in sorted(prompts)})
        self.num_frames = num_frames
        self.clip_frames = num_frames + (1 if prompts else 0)
        self.mean, self.std = tuple(mean), tuple(std)
        self.frames: tuple[Frames, ...] = tuple(
            _prompted_frames(num_frames, stride)
            if pathway in prompts
            else _plain_frames(num_frames, stride, offset=self.clip_frames - num_frames)
            for pathway, stride in enumerate(strides)
        )

    def forward(self, clip: Tensor) -> ModelOutput:
        """Return logits and variation.

        Args:
            clip: (B, 3, T, H, W) RGB, T + 1 frames with a prompt: uint8 in 0..255, or floats
                already normalised by mean and std.

        Raises:
            ValueError: another number of frames, another shape, or an integer type but uint8.
        """
        self._check(clip)
        pathways, variations = [], []
        for pathway, frames in enumerate(self.frames):
            part = take_frames(clip, frames)
            if str(pathway) in self.prompts:
                part, variation = self.prompts[str(pathway)](part)
                variations.append(variation)
            pathways.append(normalize(part, self.mean, self.std))
        total = torch.stack(variations).sum() if variations else torch.zeros((), device=clip.device)
        return ModelOutput(self.backbone(pathways), total)

    def train(self, mode: bool = True) -> "VideoModel":
        """Set the mode; what is frozen stays in evaluation mode, see `frozen_modules`."""
        super().train(mode)
        if mode:
            for frozen in frozen_modules(self):
                frozen.eval()
        return self

    def _check(self, clip: Tensor) -> None:
        shape = tuple(clip.shape)
        if clip.ndim != 5 or shape[1] != 3:
            raise ValueError(f"a clip of shape {shape} was given; it must be (B, 3, T, H, W) RGB")
        if shape[2] != self.clip_frames:
            extra = "one more for the prompt" if self.prompts else "no prompt"
            raise ValueError(
                f"a clip of {shape[2]} frames was given; this model takes {self.clip_frames} "
                f"(DATA.NUM_FRAMES {self.num_frames}, {extra})"
            )
        if clip.dtype != torch.uint8 and not clip.is_floating_point():
            raise ValueError(
                f"a clip of {clip.dtype} was given; it must be uint8 or normalised floats"
            )


def frozen_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules that have parameters, none of which requires a gradient."""
    trained = [parameter.requires_grad for parameter in module.parameters()]
    if trained and not any(trained):
        yield module
        return
    for child in module.children():
        yield from frozen_modules(child)


def take_frames(clip: Tensor, frames: Frames) -> Tensor:
    """Return the `frames` of a clip (B, C, T, H, W); a view where they are a slice.

    Stacking selected frames, unlike indexing with a list, copies no index to the device.
    """
    if isinstance(frames, slice):
        return clip[:, :, frames]
    return torch.stack([clip[:, :, frame] for frame in frames], dim=2)


def _plain_frames(num_frames: int, stride: int, offset: int) -> Frames:
    """Return PySlowFast's frames of a pathway, of the last `num_frames`: T // stride of them."""
    if stride == 1:
        return slice(offset, offset + num_frames)
    # on the CPU, whatever the default device: 0, 4, 8, 13, 17, 22, 26, 31 for T 32 and stride 4
    index = torch.linspace(0, num_frames - 1, num_frames // stride, device="cpu").long()
    return tuple(int(i) + offset for i in index)


def _prompted_frames(num_frames: int, stride: int) -> Frames:
    """Return T // stride + 1 of the T + 1 frames, exactly `stride` apart: T // stride prompts."""
    return slice(0, (num_frames // stride) * stride + 1, stride)


def _check_prompted(prompts: Mapping[int, MotionPrompt], frames: Sequence[int]) -> None:
    for pathway in prompts:
        if not 0 <= pathway < len(frames):
            raise ValueError(
                f"PROMPT.PATHWAYS names pathway {pathway}; the backbone has {len(frames)}, "
                "counted from 0, slowest first"
            )
        if frames[pathway] < 2:
            raise ValueError(
                f"pathway {pathway} has {frames[pathway]} frame; a motion prompt needs at least 2: "
                "raise DATA.NUM_FRAMES"
            )
