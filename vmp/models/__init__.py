"""Backbones, the model that puts motion prompts before them, pretrained weights and costs."""

from vmp.models.backbone import BACKBONES, Backbone
from vmp.models.build import build_backbone, build_model
from vmp.models.cost import Cost, model_cost
from vmp.models.pretrained import PretrainedReport, load_pretrained
from vmp.models.sync_batchnorm import convert_sync_batchnorm
from vmp.models.video_model import ModelOutput, VideoModel

__all__ = [
    "BACKBONES",
    "Backbone",
    "Cost",
    "ModelOutput",
    "PretrainedReport",
    "VideoModel",
    "build_backbone",
    "build_model",
    "convert_sync_batchnorm",
    "load_pretrained",
    "model_cost",
]
