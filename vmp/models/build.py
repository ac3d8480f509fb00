"""From a config to a model, on the CPU; these functions alone read cfg here."""

import torch.distributed as dist
from fvcore.common.config import CfgNode

from vmp.models import resnet, slowfast, timesformer, x3d  # noqa: F401  (they register themselves)
from vmp.models.backbone import BACKBONES, Backbone, recompute_blocks
from vmp.models.sync_batchnorm import convert_sync_batchnorm
from vmp.models.video_model import VideoModel
from vmp.prompts import POWER_NORMS, MotionPrompt
from vmp.utils.registry import section_kwargs


def build_backbone(cfg: CfgNode) -> Backbone:
    """Make the backbone MODEL.NAME from the section that bears its name.

    Raises:
        ValueError: an unknown name, sizes that do not fit each other, or MODEL.ACT_CHECKPOINT for
            one of your own that does not say what its blocks are.
    """
    make = BACKBONES.get(cfg.MODEL.NAME)
    backbone: Backbone = make(
        num_classes=cfg.MODEL.NUM_CLASSES,
        num_frames=cfg.DATA.NUM_FRAMES,
        crop_size=cfg.DATA.TRAIN_CROP_SIZE,
        dropout_rate=cfg.MODEL.DROPOUT_RATE,
        **section_kwargs(cfg[cfg.MODEL.NAME.upper()]),
    )
    if cfg.MODEL.ACT_CHECKPOINT:
        recompute_blocks(backbone)
    return backbone


def build_prompt(cfg: CfgNode) -> MotionPrompt:
    """Make one motion prompt, with its own power normalisation, from the section PROMPT."""
    make = POWER_NORMS.get(cfg.PROMPT.POWER_NORM)
    return MotionPrompt(
        make(**section_kwargs(cfg.PROMPT[cfg.PROMPT.POWER_NORM.upper()])),
        luma=cfg.PROMPT.LUMA,
        reduction=cfg.PROMPT.REDUCTION,
        mean=cfg.DATA.MEAN,
        std=cfg.DATA.STD,
        kernel=cfg.PROMPT.KERNEL,
    )


def build_model(cfg: CfgNode) -> VideoModel:
    """Make the model: the backbone, and with PROMPT.ENABLE a prompt for each PROMPT.PATHWAYS.

    The backbone is made first, so with one seed it starts from the same weights with and without
    prompts. BN.SYNC takes effect where several processes run.

    Raises:
        ValueError: an unknown name, or sizes that do not fit each other.
    """
    backbone = build_backbone(cfg)
    pathways = cfg.PROMPT.PATHWAYS if cfg.PROMPT.ENABLE else ()
    model = VideoModel(
        backbone,
        num_frames=cfg.DATA.NUM_FRAMES,
        mean=cfg.DATA.MEAN,
        std=cfg.DATA.STD,
        prompts={pathway: build_prompt(cfg) for pathway in pathways},
    )
    if cfg.BN.SYNC and dist.is_initialized() and dist.get_world_size() > 1:
        convert_sync_batchnorm(model)
    return model
