"""Clips into pathways: frames, normalisation, prompts, and what is refused."""

import pytest
import torch
from torch import Tensor, nn

from vmp.config.defaults import get_cfg
from vmp.models import BACKBONES, Backbone, VideoModel, build_model
from vmp.prompts import MotionPrompt
from vmp.prompts.functional import normalize
from vmp.prompts.power_norm import sigmoid

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Recorder(nn.Module):
    """Keeps the clips it gets, and gives the mean of each channel of the first as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.clips: list[Tensor] = []
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, clips):
        self.clips = list(clips) if isinstance(clips, list) else [clips]
        return self.clips[0].mean(dim=(2, 3, 4), keepdim=True) * self.scale


def prompt(m: float = 0.7, n: float = 0.2) -> MotionPrompt:
    return MotionPrompt(sigmoid(m=m, n=n), mean=MEAN, std=STD)


def make(strides=(1,), num_frames=8, prompts=()) -> tuple[VideoModel, Recorder]:
    recorder = Recorder()
    own = {pathway: prompt(0.7 + pathway) for pathway in prompts}
    backbone = Backbone(recorder, strides)
    model = VideoModel(backbone, num_frames=num_frames, mean=MEAN, std=STD, prompts=own)
    return model, recorder


def counting_clip(frames: int) -> Tensor:
    """Frame t is grey level t + 1 everywhere, already normalised."""
    return torch.arange(1.0, frames + 1).view(1, 1, -1, 1, 1).expand(2, 3, -1, 4, 4).contiguous()


def levels(clip: Tensor) -> list[int]:
    return [round(level) - 1 for level in clip[0, 0, :, 0, 0].tolist()]


def test_one_pathway_without_a_prompt_sees_the_normalised_clip():
    model, recorder = make()
    clip = torch.randint(256, (2, 3, 8, 4, 4), dtype=torch.uint8)
    logits, variation = model(clip)
    expected = (clip / 255 - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1, 1
    )
    torch.testing.assert_close(recorder.clips[0], expected)
    assert recorder.clips[0].dtype == torch.float32
    assert logits.shape == (2, 3)
    assert variation.shape == ()
    assert variation == 0


def test_a_float_clip_is_taken_as_normalised_and_not_copied():
    model, recorder = make()
    clip = torch.randn(2, 3, 8, 4, 4)
    model(clip)
    assert torch.equal(recorder.clips[0], clip)
    assert recorder.clips[0].data_ptr() == clip.data_ptr()


def test_bytes_and_normalised_floats_give_the_same():
    model, _ = make((4, 1), prompts=[0])
    clip = torch.randint(256, (2, 3, 9, 4, 4), dtype=torch.uint8)
    from_bytes, from_floats = model(clip), model(normalize(clip, MEAN, STD))
    torch.testing.assert_close(from_bytes.logits, from_floats.logits)
    torch.testing.assert_close(from_bytes.variation, from_floats.variation)


@pytest.mark.parametrize(
    ("num_frames", "stride", "expected"),
    [
        (32, 4, [0, 4, 8, 13, 17, 22, 26, 31]),
        (32, 8, [0, 10, 20, 31]),
        (8, 8, [0]),
        (8, 1, list(range(8))),
    ],
)
def test_slow_pathway_without_prompts_has_pyslowfast_s_frames(num_frames, stride, expected):
    model, recorder = make((stride, 1), num_frames)
    model(counting_clip(num_frames))
    assert [levels(clip) for clip in recorder.clips] == [expected, list(range(num_frames))]


@pytest.mark.parametrize("prompted", [[0], [1]])
def test_a_pathway_without_a_prompt_has_the_last_frames_beside_one_that_has(prompted):
    model, recorder = make((4, 1), 32, prompts=prompted)
    model(counting_clip(33))
    slow, fast = recorder.clips
    if prompted == [1]:
        assert levels(slow) == [1 + i for i in (0, 4, 8, 13, 17, 22, 26, 31)]
    else:
        assert levels(fast) == list(range(1, 33))


@pytest.mark.parametrize("prompted", [[0], [1], [0, 1]])
def test_prompts_are_the_layer_s_own_at_the_exact_stride_and_variations_add_up(prompted):
    model, recorder = make((4, 1), 8, prompts=prompted)
    clip = torch.rand(2, 3, 9, 4, 4)
    variation = model(clip).variation
    total = torch.zeros(())
    for pathway in prompted:
        frames = clip[:, :, [0, 4, 8]] if pathway == 0 else clip
        expected, part = prompt(0.7 + pathway)(frames)
        torch.testing.assert_close(recorder.clips[pathway], expected)
        total = total + part
    torch.testing.assert_close(variation, total)
    assert [clip.shape[2] for clip in recorder.clips] == [2, 8]


def test_each_prompted_pathway_has_its_own_parameters():
    model, _ = make((4, 1), 8, prompts=[0, 1])
    names = {name for name, _ in model.named_parameters()} - {"backbone.net.scale"}
    assert names == {f"prompts.{i}.power_norm.{p}" for i in "01" for p in "mn"}
    assert sorted(model.prompts) == ["0", "1"]


@pytest.mark.parametrize(("prompts", "wanted"), [([], 8), ([0], 9)])
@pytest.mark.parametrize("given", [7, 8, 9, 10])
def test_any_other_number_of_frames_is_refused_and_both_are_named(prompts, wanted, given):
    model, _ = make(prompts=prompts)
    if given == wanted:
        model(counting_clip(given))
        return
    with pytest.raises(ValueError, match=f"a clip of {given} frames was given.* takes {wanted} "):
        model(counting_clip(given))


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(2, 1, 8, 4, 4), r"\(2, 1, 8, 4, 4\) was given"),
        (torch.zeros(3, 8, 4, 4), r"\(3, 8, 4, 4\) was given"),
        (torch.zeros(2, 3, 8, 4, 4, dtype=torch.int64), "torch.int64 was given"),
    ],
)
def test_a_clip_of_another_kind_is_refused(clip, message):
    model, _ = make()
    with pytest.raises(ValueError, match=message):
        model(clip)


def test_a_prompt_for_no_pathway_or_for_one_frame_is_refused():
    with pytest.raises(ValueError, match="names pathway 1; the backbone has 1"):
        make(prompts=[1])
    with pytest.raises(ValueError, match="pathway 0 has 1 frame; a motion prompt needs at least 2"):
        make((8, 1), 8, prompts=[0])


def small_cfg(name: str):
    cfg = get_cfg()
    cfg.MODEL.NAME, cfg.MODEL.NUM_CLASSES, cfg.DATA.TRAIN_CROP_SIZE = name, 5, 32
    cfg.SLOWFAST.DEPTH, cfg.SLOWFAST.WIDTH = 18, 16
    cfg.C2D.WIDTH = cfg.I3D.WIDTH = 8
    cfg.X3D.WIDTH_FACTOR = cfg.X3D.DEPTH_FACTOR = 1.0
    cfg.TIMESFORMER.EMBED_DIM, cfg.TIMESFORMER.DEPTH, cfg.TIMESFORMER.NUM_HEADS = 24, 2, 2
    return cfg


@pytest.mark.parametrize("name", [name for name, _ in BACKBONES])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_any_backbone_trains_with_a_prompt(name, bfloat16):
    cfg = small_cfg(name)
    cfg.PROMPT.ENABLE = True
    # not 8: oneDNN's bfloat16 weight gradient of a temporal kernel of 3 on just 2 frames is wrong
    # on the CPU (torch 2.15), and SlowFast's slow pathway would have 2
    cfg.DATA.NUM_FRAMES = 16
    model = build_model(cfg).train()
    clip = torch.randint(256, (2, 3, 17, 32, 32), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits, variation = model(clip)
    assert logits.shape == (2, 5)
    assert variation.dtype == torch.float32
    (logits.square().mean() + variation).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.prompts["0"].power_norm.m.grad.abs() > 0


def test_a_baseline_and_its_prompted_twin_start_from_the_same_backbone():
    cfg = small_cfg("slowfast")
    torch.manual_seed(3)
    baseline = build_model(cfg).state_dict()
    cfg.PROMPT.ENABLE, cfg.PROMPT.PATHWAYS = True, [0, 1]
    torch.manual_seed(3)
    twin = build_model(cfg).state_dict()
    assert set(twin) - set(baseline) == {f"prompts.{i}.power_norm.{p}" for i in "01" for p in "mn"}
    assert all(torch.equal(twin[name], value) for name, value in baseline.items())
    assert twin["prompts.0.power_norm.m"] != twin["prompts.1.power_norm.m"]


@pytest.mark.parametrize("name", ["x3d", "timesformer"])
def test_with_the_identity_for_a_prompt_a_model_is_its_baseline_one_frame_later(name):
    cfg = small_cfg(name)
    torch.manual_seed(3)
    baseline = build_model(cfg).eval()
    cfg.PROMPT.ENABLE, cfg.PROMPT.POWER_NORM = True, "identity"
    torch.manual_seed(3)
    model = build_model(cfg).eval()
    assert model.state_dict().keys() == baseline.state_dict().keys()
    clip = torch.randint(256, (2, 3, 9, 32, 32), dtype=torch.uint8)
    logits, variation = model(clip)
    assert torch.equal(logits, baseline(clip[:, :, 1:]).logits)
    assert variation == 0


def test_build_model_reads_the_prompt_s_section():
    cfg = small_cfg("timesformer")
    cfg.PROMPT.ENABLE, cfg.PROMPT.POWER_NORM, cfg.PROMPT.LUMA = True, "maxexp", "bgr"
    cfg.PROMPT.MAXEXP.ETA, cfg.PROMPT.REDUCTION = 2.5, "frobenius"
    cfg.DATA.MEAN, cfg.DATA.STD = list(MEAN), list(STD)
    model = build_model(cfg)
    layer = model.prompts["0"]
    assert layer.power_norm.value().item() == pytest.approx(2.5)
    assert (layer.luma, layer.reduction, layer.mean, layer.std) == ("bgr", "frobenius", MEAN, STD)
    assert (model.mean, model.std, model.num_frames, model.clip_frames) == (MEAN, STD, 8, 9)
