"""X3D (Feichtenhofer, arXiv:2004.04730) on pytorchvideo's blocks."""

import operator
from typing import Any

from torch import nn

from vmp.models.backbone import BACKBONES, Backbone, check_at_least, head_side


@BACKBONES.register()
def x3d(
    *,
    num_classes: int,
    num_frames: int,
    crop_size: int,
    dropout_rate: float = 0.5,
    width_factor: float = 2.0,
    depth_factor: float = 2.2,
    bottleneck_factor: float = 2.25,
    dim_c1: int = 12,
    dim_c5: int = 2048,
    shortcut_norm: bool = True,
) -> Backbone:
    """Make an X3D network; the defaults are X3D-XS, S and M, which differ in the clip only.

    Widths are rounded to multiples of 8, which PySlowFast does not do: equal for XS, S, M and L.

    Args:
        num_classes: classes of the head.
        num_frames: frames of a clip.
        crop_size: side of the training crop, pixels, at least 32.
        dropout_rate: before the last layer.
        width_factor: expands channels.
        depth_factor: expands blocks per stage; 5.0 for X3D-L.
        bottleneck_factor: inner over outer channels of a block.
        dim_c1: channels of the stem before expansion.
        dim_c5: channels of the head's hidden layer.
        shortcut_norm: batch norm after a strided shortcut that keeps the channels, as PySlowFast
            has it. pytorchvideo has none there, nor have its checkpoints.

    Raises:
        ValueError: a size that does not fit the others.
    """
    check_at_least("DATA.NUM_FRAMES", num_frames, 1, "a clip has frames")
    for name, value in (("DIM_C1", dim_c1), ("DIM_C5", dim_c5)):
        check_at_least(f"X3D.{name}", value, 1, "channels")
    factors = {"WIDTH": width_factor, "DEPTH": depth_factor, "BOTTLENECK": bottleneck_factor}
    for name, factor in factors.items():
        if factor <= 0:
            raise ValueError(f"X3D.{name}_FACTOR is {factor}; it must be above 0")
    side = head_side(crop_size)

    # takes a second: torch's compiler and torchvision come with it
    from pytorchvideo.models.resnet import ResBlock
    from pytorchvideo.models.x3d import create_x3d

    net = create_x3d(
        input_clip_length=num_frames,
        input_crop_size=crop_size,
        model_num_class=num_classes,
        dropout_rate=dropout_rate,
        width_factor=width_factor,
        depth_factor=depth_factor,
        bottleneck_factor=bottleneck_factor,
        stem_dim_in=dim_c1,
        head_dim_out=dim_c5,
        inner_act=nn.SiLU,  # the same function as its Swish, which breaks torch.compile's graph
        head_activation=None,  # it defaults to Softmax, in training too
        head_output_with_global_average=False,  # that would average logits; Backbone does it right
    )
    # the same pool, of Python integers instead of NumPy's
    net.blocks[-1].pool.pool = nn.AvgPool3d((num_frames, side, side), stride=1)
    for block in net.modules():
        if isinstance(block, ResBlock):
            _amend(block, shortcut_norm)
    return Backbone(net, blocks=(ResBlock,))


def _amend(block: Any, shortcut_norm: bool) -> None:
    block.branch_fusion = operator.add  # instead of a lambda, which cannot be pickled
    strided = block.branch1_conv is not None and block.branch1_norm is None
    if shortcut_norm and strided:
        block.branch1_norm = nn.BatchNorm3d(block.branch1_conv.out_channels)
