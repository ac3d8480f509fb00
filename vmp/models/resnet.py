"""C2D and I3D ResNets on pytorchvideo's blocks."""

from typing import Any

from torch import nn

from vmp.models.backbone import (
    BACKBONES,
    FRAME,
    THREE,
    Backbone,
    check_at_least,
    check_choice,
    head_side,
    plain_strides,
)
from vmp.models.stem import quicken_stems

DEPTHS = (50, 101, 152)


@BACKBONES.register()
def c2d(
    *,
    num_classes: int,
    num_frames: int,
    crop_size: int,
    dropout_rate: float = 0.5,
    depth: int = 50,
    width: int = 64,
    temporal_pool: bool = True,
) -> Backbone:
    """Make a C2D ResNet (Wang et al., arXiv:1711.07971); the defaults are C2D_8x8_R50.

    No convolution sees more than one frame.

    Args:
        num_classes: classes of the head.
        num_frames: frames of a clip, at least 2 with `temporal_pool`.
        crop_size: side of the training crop, pixels, at least 32.
        dropout_rate: before the last layer.
        depth: layers of the ResNet: 50, 101 or 152.
        width: channels of the stem.
        temporal_pool: halve the frames by a max pool after the first stage. PySlowFast's zoo
            checkpoint has none; weights fit both without complaint.

    Raises:
        ValueError: a size that does not fit the others.
    """
    return _resnet(
        "C2D",
        num_frames=num_frames,
        crop_size=crop_size,
        depth=depth,
        width=width,
        temporal_pool=temporal_pool,
        model_num_class=num_classes,
        dropout_rate=dropout_rate,
        stem_conv_kernel_size=(1, 7, 7),
        stage_conv_a_kernel_size=(FRAME,) * 4,
    )


@BACKBONES.register()
def i3d(
    *,
    num_classes: int,
    num_frames: int,
    crop_size: int,
    dropout_rate: float = 0.5,
    depth: int = 50,
    width: int = 64,
) -> Backbone:
    """Make an I3D ResNet (Carreira & Zisserman, arXiv:1705.07750; the ResNet of 1711.07971).

    The defaults are I3D_8x8_R50.

    Args:
        num_classes: classes of the head.
        num_frames: frames of a clip, at least 2.
        crop_size: side of the training crop, pixels, at least 32.
        dropout_rate: before the last layer.
        depth: layers of the ResNet: 50, 101 or 152.
        width: channels of the stem.

    Raises:
        ValueError: a size that does not fit the others.
    """
    return _resnet(
        "I3D",
        num_frames=num_frames,
        crop_size=crop_size,
        depth=depth,
        width=width,
        temporal_pool=True,
        model_num_class=num_classes,
        dropout_rate=dropout_rate,
        stem_conv_kernel_size=(5, 7, 7),
        # temporal kernels alternate within a stage
        stage_conv_a_kernel_size=(THREE, [THREE, FRAME], [THREE, FRAME], [FRAME, THREE]),
    )


def _resnet(
    section: str,
    *,
    num_frames: int,
    crop_size: int,
    depth: int,
    width: int,
    temporal_pool: bool,
    **arguments: Any,
) -> Backbone:
    check_choice(f"{section}.DEPTH", depth, DEPTHS)
    check_at_least(f"{section}.WIDTH", width, 1, "channels")
    pool_stride = 2 if temporal_pool else 1
    check_at_least("DATA.NUM_FRAMES", num_frames, pool_stride, "what the temporal pool needs")
    side = head_side(crop_size)

    # takes a second: torch's compiler and torchvision come with it
    from pytorchvideo.models.resnet import ResBlock, create_resnet

    net = create_resnet(
        model_depth=depth,
        stem_dim_out=width,
        stage1_pool=nn.MaxPool3d if temporal_pool else None,
        stage1_pool_kernel_size=(2, 1, 1),
        head_pool_kernel_size=(num_frames // pool_stride, side, side),
        head_activation=None,
        head_output_with_global_average=False,  # that would average logits; Backbone does it right
        **arguments,
    )
    return Backbone(quicken_stems(plain_strides(net)), blocks=(ResBlock,))
