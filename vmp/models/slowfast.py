"""SlowFast (Feichtenhofer et al., arXiv:1812.03982) on pytorchvideo's blocks."""

from vmp.models.backbone import (
    BACKBONES,
    FRAME,
    THREE,
    Backbone,
    check_at_least,
    check_choice,
    check_divides,
    head_side,
    plain_strides,
)
from vmp.models.stem import quicken_stems

# Blocks of the stage res4, by depth.
RES4_BLOCKS = {18: 1, 50: 6, 101: 23, 152: 36}
DEPTHS = tuple(RES4_BLOCKS)


@BACKBONES.register()
def slowfast(
    *,
    num_classes: int,
    num_frames: int,
    crop_size: int,
    dropout_rate: float = 0.5,
    depth: int = 50,
    width: int = 64,
    beta_inv: int = 8,
    alpha: int = 4,
    fusion_kernel_sz: int = 7,
    fusion_conv_channel_ratio: int = 2,
    res4_temporal_blocks: int = 0,
) -> Backbone:
    """Make a SlowFast network, pathways (slow, fast); the defaults are SLOWFAST_8x8_R50.

    Args:
        num_classes: classes of the head.
        num_frames: frames of the fast pathway; `alpha` divides it.
        crop_size: side of the training crop, pixels, at least 32.
        dropout_rate: before the last layer.
        depth: layers of the ResNet: 18, 50, 101 or 152. 18 is pytorchvideo's: one bottleneck a
            stage.
        width: channels of the slow pathway's stem; `beta_inv` divides it.
        beta_inv: how many times fewer channels the fast pathway has.
        alpha: the slow pathway sees one frame in `alpha`.
        fusion_kernel_sz: odd temporal kernel of the fusion.
        fusion_conv_channel_ratio: channels the fusion adds, over those of the fast pathway.
        res4_temporal_blocks: how many blocks of res4, from its first on, see three frames, in both
            pathways; 0: all. 6 for the zoo's R101_50_50.

    Raises:
        ValueError: a size that does not fit the others.
    """
    check_choice("SLOWFAST.DEPTH", depth, DEPTHS)
    check_divides("SLOWFAST.BETA_INV", beta_inv, "SLOWFAST.WIDTH", width)
    check_divides("SLOWFAST.ALPHA", alpha, "DATA.NUM_FRAMES", num_frames)
    check_at_least("DATA.NUM_FRAMES", num_frames, alpha, "one frame of the slow pathway")
    check_at_least("SLOWFAST.FUSION_CONV_CHANNEL_RATIO", fusion_conv_channel_ratio, 1, "channels")
    if fusion_kernel_sz < 1 or fusion_kernel_sz % 2 == 0:
        raise ValueError(
            f"SLOWFAST.FUSION_KERNEL_SZ is {fusion_kernel_sz}; it must be odd, so that the fused "
            "frames are those of the slow pathway: take 5 or 7"
        )
    blocks = RES4_BLOCKS[depth]
    if not 0 <= res4_temporal_blocks <= blocks:
        raise ValueError(
            f"SLOWFAST.RES4_TEMPORAL_BLOCKS is {res4_temporal_blocks}; res4 has {blocks} blocks: "
            f"take 0 (all) to {blocks}"
        )
    temporal = res4_temporal_blocks or blocks
    res4 = (THREE,) * temporal + (FRAME,) * (blocks - temporal)
    side = head_side(crop_size)

    # takes a second: torch's compiler and torchvision come with it
    from pytorchvideo.models.resnet import ResBlock
    from pytorchvideo.models.slowfast import create_slowfast

    net = create_slowfast(
        stage_conv_a_kernel_sizes=((FRAME, FRAME, res4, THREE), (THREE, THREE, res4, THREE)),
        slowfast_channel_reduction_ratio=(beta_inv,),
        slowfast_conv_channel_fusion_ratio=fusion_conv_channel_ratio,
        slowfast_fusion_conv_kernel_size=(fusion_kernel_sz, 1, 1),
        slowfast_fusion_conv_stride=(alpha, 1, 1),
        model_depth=depth,
        model_num_class=num_classes,
        dropout_rate=dropout_rate,
        stem_dim_outs=(width, width // beta_inv),
        head_pool_kernel_sizes=((num_frames // alpha, side, side), (num_frames, side, side)),
        head_activation=None,
        head_output_with_global_average=False,  # that would average logits; Backbone does it right
    )
    return Backbone(quicken_stems(plain_strides(net)), strides=(alpha, 1), blocks=(ResBlock,))
