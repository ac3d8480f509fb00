"""A file of every project's format, made of the reference values, gives the reference logits.

The files are those of `tests.models.foreign`, whose names do not come from our key maps.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from tests.models import foreign
from tests.models.test_golden import FLOAT32, read_reference
from tests.models.tiny import TINY
from vmp.config import load_cfg
from vmp.models import BACKBONES, PretrainedReport, VideoModel, build_model, load_pretrained
from vmp.models.convert import rename_to_theirs
from vmp.prompts import MotionPrompt

pytestmark = pytest.mark.data

BASE = Path(__file__).parents[2] / "configs" / "base"
SLOW = pytest.mark.slow


class Kind(NamedTuple):
    """A network: its recipe, and where its reference values come from.

    Attributes:
        recipe: of configs/base.
        family: of mapping.json, or "timesformer".
        golden: the file whose parameter names it has.
        built: its entry in mapping.json; "" where the golden file has its logits.
        arch: PySlowFast's MODEL.ARCH and MODEL.MODEL_NAME.
    """

    recipe: str
    family: str
    golden: str
    built: str = ""
    arch: tuple[str, str] = foreign.VIT


KINDS = {
    "SlowFast 8x8": Kind(
        "SLOWFAST_8x8_R50", "slowfast", "SLOWFAST_8x8_R50", arch=("slowfast", "SlowFast")
    ),
    "SlowFast 4x16": Kind(
        *("SLOWFAST_4x16_R50", "slowfast", "SLOWFAST_8x8_R50"),
        built="SLOWFAST_4x16_R50",
        arch=("slowfast", "SlowFast"),
    ),
    "C2D": Kind("C2D_8x8_R50", "resnet_pool", "C2D_8x8_R50", arch=("c2d", "ResNet")),
    "C2D no pool": Kind(
        *("C2D_NOPOOL_8x8_R50", "resnet_nopool", "C2D_8x8_R50"),
        built="C2D_NOPOOL_8x8_R50",
        arch=("c2d_nopool", "ResNet"),
    ),
    "I3D": Kind(
        *("I3D_8x8_R50", "resnet_pool", "C2D_8x8_R50"),
        built="I3D_8x8_R50",
        arch=("i3d", "ResNet"),
    ),
    "X3D-S": Kind("X3D_S", "x3d", "X3D_S", arch=("x3d", "X3D")),
    "X3D-M": Kind("X3D_M", "x3d", "X3D_S", built="X3D_M", arch=("x3d", "X3D")),
    "TimeSformer": Kind("TimeSformer_divST_8x32_224", "timesformer", "TIMESFORMER_divST_8x32_224"),
}
# Of 32, what PySlowFast's slow pathway sees with a stride of 8.
SLOW_FRAMES = [0, 10, 20, 31]


class Case(NamedTuple):
    """A network with its reference.

    Attributes:
        kind: which.
        mapping: mapping.json.
        state: the reference values under the original names.
        expected: the same as the state dict of our model.
        model: ours, to load into.
        clip: (1, 3, T, H, W).
        logits: (1, 400) of the clip, by the original code or by pytorchvideo.
    """

    kind: Kind
    mapping: dict[str, Any]
    state: dict[str, np.ndarray]
    expected: dict[str, Tensor]
    model: VideoModel
    clip: Tensor
    logits: Tensor


@pytest.fixture(scope="module")
def golden(shared) -> Path:
    return shared / "golden"


@pytest.fixture(scope="module")
def mapping(golden) -> dict[str, Any]:
    return foreign.read_mapping(golden)


@pytest.fixture(scope="module")
def make_case(golden, fill, mapping) -> Callable[[str], Case]:
    """Return a function from a name of KINDS to its case; it keeps the last, up to 2 GB."""

    @lru_cache(maxsize=1)
    def make(name: str) -> Case:
        kind = KINDS[name]
        reference = read_reference(fill, golden, kind.golden)
        model = build_model(load_cfg(BASE / f"{kind.recipe}.yaml")).eval()
        if kind.built:
            net = build_pytorchvideo(mapping["models"][kind.built])
            rules = mapping["families"][kind.family]
            state = foreign.make_state(fill, reference.state, rules, net)
            frames = model.num_frames
            clip = torch.from_numpy(fill.clip("input", (1, 3, frames, 224, 224)))
            logits = run_pytorchvideo(net, foreign.rename(state, rules), clip)
        else:
            state = reference.state
            video = "eval" if kind.family == "timesformer" else "train_crop"
            clip = reference.clip(video)[:1]  # one of the two saves half the time
            logits = reference.output("logits" if video == "eval" else f"{video}_logits")[:1]
        expected = foreign.our_state(state, mapping, kind.family)
        return Case(kind, mapping, state, expected, model, clip, logits)

    return make


@pytest.fixture
def case(request, make_case) -> Case:
    return make_case(request.param)


def build_pytorchvideo(entry: Mapping[str, Any]) -> nn.Module:
    """Build a network as mapping.json says, with pytorchvideo alone."""
    net: nn.Module = resolve(entry["builder"])(
        **{name: argument(value) for name, value in entry["arguments"].items()}
    )
    for step in entry["after_building"]:
        module = resolve(step["module"])(**step["args"])
        setattr(net.get_submodule(step["path"]), step["attribute"], module)
    return net.eval()


def resolve(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def argument(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(argument(inner) for inner in value)
    return resolve(value) if isinstance(value, str) else value


@torch.no_grad()
def run_pytorchvideo(net: nn.Module, state: Mapping[str, np.ndarray], clip: Tensor) -> Tensor:
    """Return the logits (1, classes) of pytorchvideo's network with these values."""
    net.load_state_dict(foreign.tensors(state), strict=True)
    two = hasattr(net.blocks[0], "multipathway_blocks")
    slow = clip[:, :, SLOW_FRAMES] if two else clip
    logits = net([slow, clip] if two else clip)
    assert logits.shape[2:] == (1, 1, 1)
    return logits.flatten(1)


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """Return a folder whose files do not outlive the test: pytest keeps those of three runs."""
    yield tmp_path
    for path in tmp_path.iterdir():
        path.unlink()


# ---------------------------------------------------------------- every network, every format

# What a project's file is called, and whose names it must be said to have.
CONVOLUTIONAL = {
    "pyslowfast": "pyslowfast",
    "pytorchvideo": "pytorchvideo",
    "caffe2 by Python 2": "caffe2",
    "caffe2 by Python 3": "caffe2",
    "ours": "vmp",
    "safetensors": "vmp",
}
TRANSFORMER = {
    "timesformer": "timesformer",
    "vmps": "timesformer",
    "ours": "vmp",
    "safetensors": "vmp",
}
CONVOLUTIONAL_KINDS = [name for name, kind in KINDS.items() if kind.family != "timesformer"]
PAIRS = [
    (name, written)
    for name, kind in KINDS.items()
    for written in (TRANSFORMER if kind.family == "timesformer" else CONVOLUTIONAL)
    if not (kind.family == "x3d" and written.startswith("caffe2"))  # there are none
]
# The others have no name, layout or format that is not in one of these.
BY_DEFAULT = [
    *((name, "pyslowfast") for name in CONVOLUTIONAL_KINDS),
    *((name, "pytorchvideo") for name in CONVOLUTIONAL_KINDS if name != "SlowFast 4x16"),
    *((name, "caffe2 by Python 2") for name in CONVOLUTIONAL_KINDS if "X3D" not in name),
    ("C2D", "caffe2 by Python 3"),
    ("X3D-S", "ours"),
    ("X3D-S", "safetensors"),
    ("TimeSformer", "timesformer"),
]


def write(case: Case, written: str, folder: Path) -> Path:
    name = case.kind.recipe
    if written == "ours":
        return foreign.write_ours(folder / f"{name}.pth", case.expected)
    if written == "safetensors":
        return foreign.write_safetensors(folder / f"{name}.safetensors", case.expected)
    if written.startswith("caffe2"):
        path, python2 = folder / f"{name}.pkl", written.endswith("2")
        return foreign.write_caffe2(path, case.state, case.mapping, python2=python2)
    path = folder / f"{name}.pyth"
    if written == "pytorchvideo":
        return foreign.write_pytorchvideo(path, case.state, case.mapping, case.kind.family)
    if written == "vmps":
        return foreign.write_vmps(path, case.state, m=0.5, n=-0.3)
    return foreign.write_pyslowfast(path, case.state, case.kind.arch)


def spoil(model: nn.Module) -> None:
    """Put values into a model of which none may be left: they would show in every logit."""
    for value in model.state_dict().values():
        value.fill_(math.nan if value.is_floating_point() else 7)


def assert_state(model: nn.Module, expected: Mapping[str, Tensor]) -> None:
    """Assert that each entry of a model is the expected one to the bit."""
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert [name for name in state if not torch.equal(state[name], expected[name])] == []


def assert_whole(report: PretrainedReport, model: nn.Module, *, derived: set[str]) -> None:
    assert set(report.used) == set(model.state_dict())
    assert set(report.derived) == derived
    assert report.missing + report.resized + report.dropped == ()


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "written"),
    [pytest.param(*pair, marks=[] if pair in BY_DEFAULT else [SLOW]) for pair in PAIRS],
    indirect=["case"],
)
def test_a_file_gives_the_reference_logits_and_its_values_to_the_bit(case, written, folder):
    spoil(case.model)
    report = load_pretrained(case.model, write(case, written, folder))
    assert report.source == (CONVOLUTIONAL | TRANSFORMER)[written]
    counters = {name for name in case.expected if name.endswith(foreign.COUNTER)}
    from_caffe2 = written.startswith("caffe2")
    assert_whole(report, case.model, derived=counters if from_caffe2 else set())
    assert set(report.ignored) == (solver_blobs(case) if from_caffe2 else set())
    prompt = ("prompts.0.power_norm.m", "prompts.0.power_norm.n")
    assert report.unexpected == (prompt if written == "vmps" else ())
    assert_state(case.model, case.expected)
    torch.testing.assert_close(case.model(case.clip).logits, case.logits, **FLOAT32)


def solver_blobs(case: Case) -> set[str]:
    blobs = foreign.blobs(case.state, case.mapping, squeezed=False)
    return {name for name in blobs if name.endswith("_momentum")} | {"lr", "model_iter"}


@pytest.mark.parametrize(
    ("case", "target"),
    [
        *((name, "pyslowfast") for name in ("SlowFast 8x8", "C2D", "C2D no pool", "X3D-S")),
        *((name, "pytorchvideo") for name in ("SlowFast 8x8", "C2D", "C2D no pool", "X3D-S")),
        pytest.param("TimeSformer", "timesformer", marks=SLOW),
    ],
    indirect=["case"],
)
def test_what_came_in_goes_out_under_the_same_names_to_the_bit(case, target):
    family, state, expected = case.kind.family, case.state, case.expected
    if target == "pytorchvideo":
        state = foreign.without_shortcut_norm(state)
        expected = foreign.our_state(state, case.mapping, family)
        state = foreign.rename(state, case.mapping["families"][family])
    out = rename_to_theirs(expected, target, family)
    assert out.keys() == state.keys()
    assert all(np.array_equal(out[name].numpy(), state[name]) for name in state)


@torch.no_grad()
@pytest.mark.parametrize("written", ["pyslowfast", "pytorchvideo"])
@pytest.mark.parametrize("case", ["X3D-S", "X3D-M"], indirect=True)
def test_an_x3d_file_without_the_shortcut_norm_gives_the_logits_of_one_built_without(
    case, written, folder
):
    bare = case._replace(state=foreign.without_shortcut_norm(case.state))
    path = write(bare, written, folder)
    spoil(case.model)
    report = load_pretrained(case.model, path)
    norm = "backbone.net.blocks.1.res_blocks.0.branch1_norm."
    assert_whole(report, case.model, derived={n for n in case.expected if n.startswith(norm)})
    logits = case.model(case.clip).logits
    without = build_model(
        load_cfg(BASE / f"{case.kind.recipe}.yaml", ["X3D.SHORTCUT_NORM", "False"])
    )
    spoil(without)
    assert_whole(load_pretrained(without, path), without, derived=set())
    assert torch.equal(without.eval()(case.clip).logits, logits)
    entry = case.mapping["models"][case.kind.built or "X3D_S"]
    net = build_pytorchvideo(entry | {"after_building": []})
    renamed = foreign.rename(bare.state, case.mapping["families"]["x3d"])
    torch.testing.assert_close(logits, run_pytorchvideo(net, renamed, case.clip), **FLOAT32)
    assert (logits - case.logits).abs().max() > 0.1  # the norm is no detail


@pytest.mark.parametrize("case", ["SlowFast 8x8", "X3D-S"], indirect=True)
def test_kernels_squeezed_to_two_dimensions_are_inflated_to_their_sum(case, folder):
    flat = {n: v.sum(axis=2) if v.ndim == 5 else v for n, v in case.state.items()}
    spoil(case.model)
    report = load_pretrained(case.model, write(case._replace(state=flat), "pyslowfast", folder))
    kernels = {name: value for name, value in case.expected.items() if value.ndim == 5}
    assert_whole(report, case.model, derived=set(kernels))
    state = case.model.state_dict()
    assert {kernel.shape[2] for kernel in kernels.values()} >= {1, 3, 5}
    for name, kernel in kernels.items():
        frames = kernel.shape[2]
        each = kernel.sum(dim=2, keepdim=True) / frames
        torch.testing.assert_close(state[name], each.expand_as(kernel), rtol=1e-5, atol=1e-7)
    rest = [name for name in state if name not in kernels]
    assert all(torch.equal(state[name], case.expected[name]) for name in rest)


# ---------------------------------------------------------------- image networks


@pytest.fixture(scope="module")
def image_resnet() -> nn.Module:
    """Return torchvision's ResNet-50 with statistics as a training leaves them."""
    torch.manual_seed(0)
    net = torchvision.models.resnet50(weights=None, num_classes=10).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


def load_image_resnet(
    name: str, net: nn.Module, folder: Path, *, num_frames: int, crop: int = 64, **kwargs: Any
) -> VideoModel:
    sizes = {"num_classes": 10, "num_frames": num_frames, "crop_size": crop}
    model = VideoModel(BACKBONES.get(name)(**sizes, **kwargs), num_frames=num_frames).eval()
    spoil(model)
    path = folder / "resnet50.pth"
    torch.save(net.state_dict(), path)
    report = load_pretrained(model, path)
    assert report.source == "resnet"
    kernels = {n for n, value in model.state_dict().items() if value.ndim == 5}
    assert_whole(report, model, derived=kernels)
    assert report.unexpected + report.ignored == ()
    return model


@torch.no_grad()
def test_a_c2d_from_an_image_resnet_gives_the_mean_of_its_logits_over_the_frames(
    image_resnet, folder
):
    model = load_image_resnet("c2d", image_resnet, folder, num_frames=4, temporal_pool=False)
    clip = torch.randn(2, 3, 4, 64, 64)
    frames = image_resnet(clip.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 4))
    assert frames.std(dim=1).mean() > 1e-3  # frames differ
    torch.testing.assert_close(model(clip).logits, frames.mean(dim=1), rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("temporal_pool", [False, True])
def test_a_c2d_from_an_image_resnet_gives_its_logits_on_a_still_clip(
    temporal_pool, image_resnet, folder
):
    model = load_image_resnet(
        "c2d", image_resnet, folder, num_frames=4, temporal_pool=temporal_pool
    )
    image = torch.randn(2, 3, 64, 64)
    logits = model(image.unsqueeze(2).repeat(1, 1, 4, 1, 1)).logits
    torch.testing.assert_close(logits, image_resnet(image), rtol=0, atol=2e-5)


@torch.no_grad()
def test_an_i3d_from_an_image_resnet_gives_its_features_on_a_still_clip(image_resnet, folder):
    # zeros beyond its ends reach 5 frames inwards before the temporal pool, and 9 of 22 after it
    model = load_image_resnet("i3d", image_resnet, folder, num_frames=44, crop=32)
    image = torch.randn(1, 3, 32, 32)
    features = []
    model.backbone.net.blocks[5].register_forward_hook(lambda *args: features.append(args[2]))
    model(image.unsqueeze(2).repeat(1, 1, 44, 1, 1))
    trunk = nn.Sequential(*list(image_resnet.children())[:-2])
    expected = trunk(image).unsqueeze(2)
    inner = features[0][:, :, 9:-9]
    assert inner.shape[2] == 4
    scale = expected.abs().max()
    torch.testing.assert_close(inner, expected.expand_as(inner), rtol=0, atol=1e-5 * scale)
    assert (features[0][:, :, :1] - expected).abs().max() > 1e-2 * scale  # the border tells


def test_an_i3d_s_kernels_from_an_image_resnet_sum_to_its_kernels_over_time(image_resnet, folder):
    model = load_image_resnet("i3d", image_resnet, folder, num_frames=8)
    kernels = [value for value in model.state_dict().values() if value.ndim == 5]
    images = [value for value in image_resnet.state_dict().values() if value.ndim == 4]
    assert {kernel.shape[2] for kernel in kernels} == {1, 3, 5}
    by_sum = sorted(kernel.sum(dim=2).flatten()[:100].tolist() for kernel in kernels)
    by_image = sorted(kernel.flatten()[:100].tolist() for kernel in images)
    assert len(by_sum) == len(by_image)
    np.testing.assert_allclose(np.array(by_sum), np.array(by_image), rtol=1e-5, atol=1e-8)
    for kernel in kernels:
        assert torch.equal(kernel, kernel[:, :, :1].expand_as(kernel))


# ---------------------------------------------------------------- small TimeSformers


def small(
    num_frames: int = 8, crop: int = 64, classes: int = 5, prompt: bool = False
) -> VideoModel:
    backbone = BACKBONES.get("timesformer")(
        num_classes=classes, num_frames=num_frames, crop_size=crop, **TINY["timesformer"]
    )
    prompts = {0: MotionPrompt(luma="bgr")} if prompt else {}
    model = VideoModel(backbone, num_frames=num_frames, prompts=prompts).eval()
    spoil(model)
    return model


def small_state(fill: ModuleType, golden: Path, **sizes: int) -> dict[str, np.ndarray]:
    """Return values under TimeSformer's own names for a network of the sizes of `small`."""
    spec = json.loads((golden / f"{KINDS['TimeSformer'].golden}.json").read_text())
    net = small(**sizes).backbone.net
    has = {f"model.{name}" for name in net.state_dict()}
    names = [name for name, _ in spec["params"] if name in has]  # it has fewer blocks
    rules = foreign.read_mapping(golden)["families"]["timesformer"]
    return foreign.make_state(fill, names, rules, net)


def test_the_release_s_file_sets_prompt_and_backbone(fill, golden, mapping, folder):
    state = small_state(fill, golden)
    model = small(prompt=True)
    report = load_pretrained(model, foreign.write_vmps(folder / "a.pyth", state, m=0.25, n=-0.5))
    assert report.source == "timesformer"
    assert_whole(report, model, derived=set())
    assert report.unexpected == ()
    prompt = {"m": torch.tensor([0.25]), "n": torch.tensor([-0.5])}
    expected = foreign.our_state(state, mapping, "timesformer")
    assert_state(model, expected | {f"prompts.0.power_norm.{n}": v for n, v in prompt.items()})


def image_logits(state: foreign.State, clip: Tensor, heads: int) -> Tensor:
    """Return the logits (B, classes) of an image ViT whose frames have one class token in common.

    Naively, in float64: each frame of the clip (B, 3, T, H, W) is an image; what its attention adds
    to the class token is averaged over the frames. With one frame it is the image ViT itself.
    """
    values = {name: torch.from_numpy(value).double() for name, value in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ values[f"{name}.weight"].flatten(1).T + values[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        spread = (x.var(dim=-1, correction=0, keepdim=True) + 1e-6).sqrt()
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred / spread * values[f"{name}.weight"] + values[f"{name}.bias"]

    def attention(name: str, x: Tensor) -> Tensor:
        # (..., tokens, 3 heads d) -> three of (..., heads, tokens, d)
        parts = linear(f"{name}.qkv", x).unflatten(-1, (3, heads, -1)).transpose(-4, -2)
        query, key, value = parts.unbind(-3)
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
        return linear(f"{name}.proj", (weights @ value).transpose(-2, -3).flatten(-2))

    def mlp(name: str, x: Tensor) -> Tensor:
        hidden = linear(f"{name}.fc1", x)
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        return linear(f"{name}.fc2", hidden)

    batch, _, frames, _, _ = clip.shape
    images = clip.double().transpose(1, 2).flatten(0, 1)
    pixels = F.unfold(images, 16, stride=16).transpose(1, 2).unflatten(0, (batch, frames))
    positions = values["pos_embed"][0]
    patches = linear("patch_embed.proj", pixels) + positions[1:]  # (B, T, N, D)
    token = (values["cls_token"] + positions[:1]).expand(batch, 1, -1)  # (B, 1, D)
    depth = sum(name.endswith(".norm1.weight") for name in values)
    for block in (f"blocks.{i}" for i in range(depth)):
        rows = torch.cat((token.unsqueeze(1).expand(-1, frames, -1, -1), patches), dim=2)
        update = attention(f"{block}.attn", norm(f"{block}.norm1", rows))
        token = token + update[:, :, 0].mean(dim=1, keepdim=True)
        patches = patches + update[:, :, 1:]
        token = token + mlp(f"{block}.mlp", norm(f"{block}.norm2", token))
        patches = patches + mlp(f"{block}.mlp", norm(f"{block}.norm2", patches))
    return linear("head", norm("norm", token[:, 0]))


@torch.no_grad()
@pytest.mark.parametrize("container", ["", "model"])
def test_an_image_vit_gives_the_logits_of_a_naive_one_averaged_over_frames(
    container, fill, golden, folder
):
    state = small_state(fill, golden)
    model = small()
    path = foreign.write_timm(folder / "vit.pth", state, container=container)
    report = load_pretrained(model, path)
    assert report.source == "timm"
    derived = {n for n in model.state_dict() if "temporal" in n or n.endswith("time_embed")}
    assert_whole(report, model, derived=derived)
    assert report.unexpected + report.ignored == ()
    vit = foreign.image_vit(state)
    clip = torch.from_numpy(fill.clip("input", (2, 3, 8, 64, 64))).double()
    logits = model.double()(clip).logits
    expected = image_logits(vit, clip, TINY["timesformer"]["num_heads"])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    still = clip[:, :, :1]
    one = image_logits(vit, still, TINY["timesformer"]["num_heads"])
    torch.testing.assert_close(model(still.repeat(1, 1, 8, 1, 1)).logits, one, rtol=0, atol=1e-10)
    assert (one - expected).abs().max() > 1e-4


def test_an_image_vit_s_attention_is_copied_to_time_to_the_bit(fill, golden, mapping, folder):
    state = small_state(fill, golden)
    model = small()
    load_pretrained(model, foreign.write_timm(folder / "vit.pth", state))
    assembled = dict(state)
    for name, value in state.items():
        if ".temporal_fc." in name or name == "model.time_embed":
            assembled[name] = np.zeros_like(value)
        elif ".temporal_" in name:
            assembled[name] = state[name.replace(".temporal_", ".")]
    assert_state(model, foreign.our_state(assembled, mapping, "timesformer"))


def test_a_head_of_600_classes_serves_600_and_is_dropped_for_400(fill, golden, mapping, folder):
    state = small_state(fill, golden, classes=600)
    path = foreign.write_pyslowfast(folder / "k600.pyth", state)
    same, other = small(classes=600), small(classes=400)
    assert_whole(load_pretrained(same, path), same, derived=set())
    expected = foreign.our_state(state, mapping, "timesformer")
    assert_state(same, expected)
    head = ("backbone.net.head.weight", "backbone.net.head.bias")
    assert load_pretrained(other, path).dropped == head
    loaded = other.state_dict()
    assert all(loaded[name].isnan().all() for name in head)
    rest = expected.keys() - set(head)
    assert all(torch.equal(loaded[name], expected[name]) for name in rest)


def loaded_embeddings(
    fill: ModuleType, golden: Path, folder: Path, resize: str, num_frames: int, crop: int, **values
) -> tuple[Tensor, Tensor]:
    """Return times (T, D) and positions (1 + N, D) of a network loaded from an 8 x 224 file.

    Args:
        fill: the formula of the other entries.
        golden: the folder of reference data.
        folder: where the file goes.
        resize: by which rule.
        num_frames: of the network.
        crop: of the network.
        values: `time` (8, channels) and `places` (196, channels), put into the first channels.
    """
    state = small_state(fill, golden, num_frames=8, crop=224)
    time, places = values["time"], values["places"]
    state["model.time_embed"][0, :, : time.shape[1]] = time
    state["model.pos_embed"][0, 1:, : places.shape[1]] = places
    model = small(num_frames=num_frames, crop=crop)
    path = foreign.write_pyslowfast(folder / "a.pyth", state)
    report = load_pretrained(model, path, resize=resize)
    changed = {"time_embed": num_frames != 8, "pos_embed": crop != 224}
    assert set(report.resized) == {f"backbone.net.{name}" for name in changed if changed[name]}
    net = model.backbone.net
    assert np.array_equal(net.pos_embed[0, 0].detach().numpy(), state["model.pos_embed"][0, 0])
    return net.time_embed[0].detach(), net.pos_embed[0].detach()


def nearest(count: int, size: int) -> list[int]:
    return [i * count // size for i in range(size)]


@pytest.mark.parametrize(("frames", "crop"), [(4, 224), (9, 448), (16, 112), (96, 224), (8, 448)])
def test_the_original_s_rule_takes_exactly_its_entries(frames, crop, fill, golden, folder):
    facts = json.loads((golden / "timesformer_loading.json").read_text())
    numbers = {"time": np.arange(8)[:, None], "places": np.arange(196)[:, None]}
    times, positions = loaded_embeddings(fill, golden, folder, "original", frames, crop, **numbers)
    taken = times[:, 0].tolist()
    assert taken == nearest(8, frames)
    assert taken == facts["time_embed_source_frame"].get(f"8->{frames}", taken)
    places = positions[1:, 0].tolist()
    assert len(places) == (crop // 16) ** 2
    assert places == nearest(196, len(places))
    measured = facts["pos_embed_at_load"].get(f"224->{crop} first 8 sources", places[:8])
    assert places[:8] == measured


def test_the_measured_entries_of_the_original_are_all_compared(golden):
    facts = json.loads((golden / "timesformer_loading.json").read_text())
    assert set(facts["time_embed_source_frame"]) == {"8->4", "8->8", "8->9", "8->16"}
    sizes = {key for key in facts["pos_embed_at_load"] if "first 8" in key}
    assert sizes == {"224->448 first 8 sources", "224->112 first 8 sources"}


@pytest.mark.parametrize(("frames", "crop"), [(96, 448), (4, 112), (16, 320)])
def test_interpolation_keeps_a_ramp_a_ramp_in_each_direction(frames, crop, fill, golden, folder):
    rows, columns = np.divmod(np.arange(196), 14)
    places = np.stack((rows, columns, np.full(196, 3)), axis=1)
    times, positions = loaded_embeddings(
        fill, golden, folder, "interpolate", frames, crop, time=np.arange(8)[:, None], places=places
    )
    # the centre of an entry is where it was; beyond the outermost centres nothing is known
    where = centres(8, frames)
    torch.testing.assert_close(times[:, 0], where.clamp(0, 7), rtol=0, atol=1e-5)
    side = crop // 16
    row, column, constant = positions[1:, :3].T.unflatten(1, (side, side))
    where = centres(14, side)
    inner = (where >= 4) & (where <= 9)  # the filter sees no border there
    assert inner.sum() >= 3
    for ramp in (row[inner], column.T[inner]):
        expected = where[inner].unsqueeze(1).expand_as(ramp)
        torch.testing.assert_close(ramp, expected, rtol=0, atol=1e-4)
    assert (row.diff(dim=0) > 0).all()
    assert (column.diff(dim=1) > 0).all()
    torch.testing.assert_close(constant, torch.full_like(constant, 3))


def centres(count: int, size: int) -> Tensor:
    """Return where the centres of `size` entries lie among those of `count` on the same span."""
    return (torch.arange(size) + 0.5) * count / size - 0.5
