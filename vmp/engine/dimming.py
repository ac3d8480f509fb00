"""How much of its clips a trained prompt dims: what tells a prompt from the identity."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vmp.data import ClipLoader
from vmp.data.loader import EvalPlan
from vmp.engine.evaluate import computing_with
from vmp.engine.transfer import ahead
from vmp.models import VideoModel
from vmp.models.video_model import take_frames
from vmp.prompts import MotionPrompt
from vmp.utils.distributed import gather_objects, is_main

logger = logging.getLogger(__name__)

CLIPS = 16
DIMMED = 0.9  # a pixel counts as dimmed where its attention is below
COLLAPSED = 0.01  # a prompt counts as the identity where it dims a smaller share of the pixels
RULE = (
    f"dimmed: the share of the pixels of {CLIPS} clips, evenly over the videos, with an attention "
    f"below {DIMMED}; collapsed: to the identity, dimmed is below {COLLAPSED}"
)

Dimming = dict[str, dict[str, float]]


@torch.inference_mode()
def measure_dimming(model: VideoModel, loader: ClipLoader, *, device: torch.device) -> Dimming:
    """Return for each prompted pathway the share of pixels that it dims, and if it has collapsed.

    All ranks call it, and get the same: whole numbers are added up, clip by clip, so that neither
    the number of ranks nor what was evaluated before changes a bit. It decodes CLIPS clips, shared
    among the ranks and their workers, and computes attention, no backbone. It changes what the
    loader's plan leaves out, which the next evaluation sets anew.

    Args:
        model: any of its prompts may use any kernel: their attention is computed without one.
        loader: of this rank, with an EvalPlan, between two evaluations.
        device: where the model is.

    Returns:
        By pathway "dimmed", 0 to 1, and "collapsed", True or False. Nothing for a model without
        prompts, or where none of the clips could be decoded.
    """
    if not len(model.prompts):
        return {}
    plan = loader.plan
    assert isinstance(plan, EvalPlan)
    views = loader.num_views
    step = -(-len(loader.records) // CLIPS)
    chosen = {video * views + views // 2 for video in range(0, len(loader.records), step)}
    plan.leave_out([item for item in range(plan.num_items) if item not in chosen])
    counts = torch.zeros(len(model.prompts), 2, dtype=torch.int64, device=device)
    # the last bits of an attention next to the limit depend on the threads
    with computing_with(1):
        for batch in ahead(loader.epoch(0), device):
            for clip in batch.clip.split(1):
                counts += torch.stack(list(_count(model, clip)))
    total = sum(torch.tensor(each) for each in gather_objects(counts.tolist()))
    assert isinstance(total, Tensor)
    return {
        pathway: {"dimmed": dimmed / pixels, "collapsed": dimmed / pixels < COLLAPSED}
        for pathway, (dimmed, pixels) in zip(model.prompts, total.tolist(), strict=True)
        if pixels
    }


def _count(model: VideoModel, clip: Tensor) -> Iterator[Tensor]:
    """Yield the pixels that each prompt dims, and how many there are: two whole numbers."""
    for pathway, prompt in model.prompts.items():
        assert isinstance(prompt, MotionPrompt)
        attention = prompt.attention(take_frames(clip, model.frames[int(pathway)]))
        dimmed = (attention < DIMMED).sum()
        yield torch.stack([dimmed, torch.full_like(dimmed, attention.numel())])


def join_dimming(prompts: Mapping[str, Mapping[str, Any]], found: Dimming) -> dict[str, Any]:
    """Return what `describe_prompts` says with what was measured beside it, by pathway."""
    return {pathway: {**said, **found.get(pathway, {})} for pathway, said in prompts.items()}


def log_dimming(found: Dimming) -> None:
    """Say, on rank 0, what was measured; a prompt that has collapsed is a warning."""
    for pathway, values in found.items() if is_main() else ():
        collapsed = bool(values["collapsed"])
        logger.log(
            logging.WARNING if collapsed else logging.INFO,
            "the prompt of pathway %s dims %.3g %% of the pixels (attention below %g)%s",
            *(pathway, 100 * values["dimmed"], DIMMED),
            ": it has collapsed to the identity" if collapsed else "",
        )
