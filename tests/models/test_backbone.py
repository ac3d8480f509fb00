"""Contracts over every registered backbone, and what happens at several places."""

import inspect
import pickle

import pytest
import torch
from pytorchvideo.models.hub.slowfast import slowfast_16x8_r101_50_50
from torch import nn

from tests.models.tiny import TINY
from vmp.config.defaults import get_cfg
from vmp.models import BACKBONES, Backbone, build_backbone
from vmp.utils.registry import section_kwargs

NAMES = [name for name, _ in BACKBONES]
SIZES = ["num_classes", "num_frames", "crop_size", "dropout_rate"]
CROP = 32


def make_tiny(name: str, *, num_frames: int = 8, crop_size: int = CROP, **kwargs) -> Backbone:
    arguments = {"num_classes": 5, "num_frames": num_frames, "crop_size": crop_size}
    return BACKBONES.get(name)(**arguments, **(TINY[name] | kwargs))


def wake(model: nn.Module) -> nn.Module:
    """Give every parameter a value, those that start at zero too, so that nothing hides."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def pathways(backbone: Backbone, *, num_frames: int = 8, crop: int = CROP) -> list[torch.Tensor]:
    return [torch.randn(2, 3, num_frames // stride, crop, crop) for stride in backbone.strides]


@pytest.mark.parametrize("name", NAMES)
def test_section_is_the_signature_in_names_and_defaults(name):
    parameters = inspect.signature(BACKBONES.get(name)).parameters
    assert list(parameters)[: len(SIZES)] == SIZES
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    own = {key: p.default for key, p in parameters.items() if key not in SIZES}
    assert own == section_kwargs(get_cfg()[name.upper()])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_gives_logits_and_not_probabilities(name, training):
    backbone = wake(make_tiny(name)).train(training)
    logits = backbone(pathways(backbone))
    assert logits.shape == (2, 5)
    assert (logits < 0).any()
    assert not torch.allclose(logits.sum(dim=1), torch.ones(2), atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_parameter(name):
    backbone = wake(make_tiny(name)).train()
    backbone(pathways(backbone)).square().sum().backward()
    dead = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("name", NAMES)
def test_training_crop_is_one_place_and_a_larger_one_works(name):
    backbone = wake(make_tiny(name)).eval()
    assert backbone.place_logits(pathways(backbone)).shape == (2, 5, 1, 1, 1)
    assert backbone(pathways(backbone, crop=CROP + 32)).shape == (2, 5)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "timesformer"])
@pytest.mark.parametrize("crop_size", [33, 64])
def test_pool_covers_the_feature_map_of_any_training_crop(name, crop_size):
    backbone = make_tiny(name, crop_size=crop_size).eval()
    places = backbone.place_logits(pathways(backbone, crop=crop_size))
    assert places.shape == (2, 5, 1, 1, 1)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "timesformer"])
def test_several_places_give_the_log_of_their_mean_softmax(name):
    backbone = wake(make_tiny(name)).eval()
    clips = pathways(backbone, crop=CROP + 32)
    places = backbone.place_logits(clips)
    assert places.shape == (2, 5, 1, 2, 2)
    mean_softmax = places.softmax(dim=1).mean(dim=(2, 3, 4))
    torch.testing.assert_close(backbone(clips).softmax(dim=1), mean_softmax)
    torch.testing.assert_close(backbone(clips).exp(), mean_softmax)


class Fixed(nn.Module):
    """Gives the same logits whatever the clip."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_one_place_gives_the_head_s_own_logits():
    logits = torch.randn(2, 5)
    backbone = Backbone(Fixed(logits.view(2, 5, 1, 1, 1)))
    assert torch.equal(backbone([torch.zeros(1)]), logits)


def test_extreme_and_half_precision_places_stay_finite():
    places = torch.tensor([[3e4, -3e4], [-3e4, 3e4]], dtype=torch.float16).view(1, 2, 1, 1, 2)
    logits = Backbone(Fixed(places))([torch.zeros(1)])
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.softmax(dim=1), torch.tensor([[0.5, 0.5]]))


def test_caller_s_list_of_pathways_is_not_overwritten():
    backbone = make_tiny("slowfast").eval()
    clips = pathways(backbone)
    before = list(clips)
    backbone(clips)
    assert all(clip is old for clip, old in zip(clips, before, strict=True))


def test_another_number_of_pathways_is_refused():
    backbone = make_tiny("slowfast")
    with pytest.raises(ValueError, match="1 clips were given; the backbone has 2 pathways"):
        backbone(pathways(backbone)[:1])


@pytest.mark.parametrize("name", NAMES)
def test_builds_on_the_meta_device(name):
    with torch.device("meta"):
        backbone = make_tiny(name)
    assert all(parameter.is_meta for parameter in backbone.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_can_be_pickled(name):
    backbone = make_tiny(name).eval()
    clips = pathways(backbone)
    again = pickle.loads(pickle.dumps(backbone))
    assert torch.equal(again(clips), backbone(clips))


@pytest.mark.parametrize("name", NAMES)
def test_dropout_rate_is_that_of_the_last_layer(name):
    rates = [m.p for m in make_tiny(name, dropout_rate=0.3).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.3]


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("slowfast", {"num_frames": 9}, "SLOWFAST.ALPHA must divide DATA.NUM_FRAMES"),
        ("slowfast", {"num_frames": 0}, "DATA.NUM_FRAMES is 0"),
        ("slowfast", {"width": 20}, "SLOWFAST.BETA_INV must divide SLOWFAST.WIDTH"),
        ("slowfast", {"depth": 34}, "SLOWFAST.DEPTH is 34; it must be one of 18, 50, 101, 152"),
        ("slowfast", {"alpha": 0}, "SLOWFAST.ALPHA is 0; it must be at least 1"),
        ("slowfast", {"fusion_kernel_sz": 4}, "FUSION_KERNEL_SZ is 4; it must be odd"),
        ("slowfast", {"fusion_conv_channel_ratio": 0}, "FUSION_CONV_CHANNEL_RATIO is 0"),
        ("slowfast", {"crop_size": 31}, "DATA.TRAIN_CROP_SIZE is 31; it must be at least 32"),
        ("c2d", {"num_frames": 1}, "DATA.NUM_FRAMES is 1; it must be at least 2"),
        ("c2d", {"depth": 18}, "C2D.DEPTH is 18; it must be one of 50, 101, 152"),
        ("c2d", {"crop_size": 16}, "DATA.TRAIN_CROP_SIZE is 16"),
        ("i3d", {"num_frames": 1}, "DATA.NUM_FRAMES is 1; it must be at least 2"),
        ("i3d", {"width": 0}, "I3D.WIDTH is 0"),
        ("x3d", {"crop_size": 24}, "DATA.TRAIN_CROP_SIZE is 24"),
        ("x3d", {"num_frames": 0}, "DATA.NUM_FRAMES is 0"),
        ("x3d", {"depth_factor": 0.0}, "X3D.DEPTH_FACTOR is 0.0; it must be above 0"),
        ("x3d", {"dim_c5": 0}, "X3D.DIM_C5 is 0"),
        ("timesformer", {"crop_size": 40}, "PATCH_SIZE must divide DATA.TRAIN_CROP_SIZE"),
        ("timesformer", {"num_heads": 5}, "NUM_HEADS must divide TIMESFORMER.EMBED_DIM"),
        ("timesformer", {"attention_type": "divided"}, "ATTENTION_TYPE is 'divided'; it must be"),
        ("timesformer", {"drop_path_rate": 1.0}, "DROP_PATH_RATE is 1.0"),
        ("timesformer", {"depth": 0}, "TIMESFORMER.DEPTH is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        make_tiny(name, **sizes)


def test_c2d_without_temporal_pool_takes_one_frame():
    backbone = make_tiny("c2d", num_frames=1, temporal_pool=False).eval()
    assert backbone(pathways(backbone, num_frames=1)).shape == (2, 5)


@pytest.mark.parametrize("shortcut_norm", [True, False])
def test_x3d_shortcut_norm_is_a_switch(shortcut_norm):
    backbone = make_tiny("x3d", shortcut_norm=shortcut_norm)
    strided = [m for m in backbone.modules() if getattr(m, "branch1_conv", None) is not None]
    without = [block for block in strided if block.branch1_norm is None]
    assert len(without) == (0 if shortcut_norm else 1)


def test_build_backbone_reads_its_section_and_names_what_is_registered():
    cfg = get_cfg()
    cfg.MODEL.NAME, cfg.MODEL.NUM_CLASSES, cfg.DATA.TRAIN_CROP_SIZE = "timesformer", 7, 32
    cfg.TIMESFORMER.EMBED_DIM, cfg.TIMESFORMER.DEPTH = 24, 3
    net = build_backbone(cfg).net
    assert (net.head.out_features, len(net.blocks), net.pos_embed.shape) == (7, 3, (1, 5, 24))
    cfg.MODEL.NAME = "resnet3d"
    with pytest.raises(ValueError, match="'resnet3d' is not registered; there are: c2d, i3d"):
        build_backbone(cfg)


def test_only_so_many_blocks_of_res4_see_other_frames():
    with torch.device("meta"):
        theirs = slowfast_16x8_r101_50_50(pretrained=False)
        net = BACKBONES.get("slowfast")(
            num_classes=400,
            num_frames=64,
            crop_size=224,
            depth=101,
            fusion_kernel_sz=5,
            res4_temporal_blocks=6,
        ).net
    ours = {name: value.shape for name, value in net.state_dict().items()}
    assert ours == {name: value.shape for name, value in theirs.state_dict().items()}


@pytest.mark.parametrize("blocks", [-1, 7])
def test_more_temporal_blocks_than_res4_has_are_refused(blocks):
    with pytest.raises(ValueError, match=f"RES4_TEMPORAL_BLOCKS is {blocks}; res4 has 6 blocks"):
        BACKBONES.get("slowfast")(
            num_classes=4, num_frames=8, crop_size=32, res4_temporal_blocks=blocks
        )
