"""What a model costs: parameters, and multiply-adds of one view."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from vmp.models.video_model import VideoModel

with warnings.catch_warnings():  # it scripts its losses when imported, of which newer torch warns
    warnings.filterwarnings("ignore", ".*torch.jit.script.*")
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape


class Cost(NamedTuple):
    """The size of a model.

    Attributes:
        parameters: numbers that are learned, the prompt's and frozen ones included.
        multiply_adds: of one view (one clip, one crop) in evaluation, as fvcore counts them.
    """

    parameters: int
    multiply_adds: int

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.2f} M parameters, "
            f"{self.multiply_adds / 1e9:.2f} G multiply-adds per view"
        )


def model_cost(model: VideoModel, num_frames: int, crop_size: int) -> Cost:
    """Count `model` by running it once on one view, in evaluation mode.

    Convolutions, linear layers and attention's two products are counted, as in the published
    figures; norms, sums, activations, pools and the prompt (a few operations a pixel) are not.

    Args:
        model: on any device; its mode is restored.
        num_frames: frames the backbone sees (DATA.NUM_FRAMES).
        crop_size: side of the crop, pixels (DATA.TEST_CROP_SIZE for what a test costs).
    """
    parameters = sum(p.numel() for p in model.parameters())
    frames = num_frames + (1 if len(model.prompts) else 0)
    # not on the meta device: torch 2.15 cannot trace its convolutions
    device = next(model.parameters()).device
    clip = torch.zeros(1, 3, frames, crop_size, crop_size, device=device)
    training = model.training
    model.eval()  # no running statistics are touched
    try:
        analysis = FlopCountAnalysis(_Logits(model), clip)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_multiply_adds)
        for norm in ("batch_norm", "layer_norm"):  # the published figures are without
            analysis.set_op_handle(f"aten::{norm}", _nothing)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
        multiply_adds = round(analysis.total())
    finally:
        model.train(training)
    return Cost(parameters, multiply_adds)


class _Logits(nn.Module):
    """The model without its variation: what is traced gives one tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(clip).logits
        return logits


def _nothing(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    return 0


def _attention_multiply_adds(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count the products of queries with keys, and of weights with values; fvcore knows neither."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    assert query is not None
    assert key is not None
    assert value is not None
    pairs = math.prod(query[:-1]) * key[-2]
    return int(pairs * (query[-1] + value[-1]))
