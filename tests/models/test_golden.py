"""Each network, filled by the reference formula through our key maps, gives its outputs."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.foreign import expand
from vmp.models import BACKBONES, VideoModel
from vmp.models.key_maps import detect_layout, detect_source, to_ours

pytestmark = pytest.mark.data

FLOAT32 = {"rtol": 0, "atol": 2e-5}
FLOAT64 = {"rtol": 0, "atol": 1e-9}
CONVOLUTIONAL = {
    "SLOWFAST_8x8_R50": ("slowfast", {}),
    "C2D_8x8_R50": ("c2d", {}),
    "X3D_S": ("x3d", {}),
}
TIMESFORMER = "TIMESFORMER_divST_8x32_224"


class Reference(NamedTuple):
    fill: ModuleType
    spec: dict[str, Any]
    outputs: dict[str, np.ndarray]
    state: dict[str, np.ndarray]

    def clip(self, case: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the clip of a case, which is defined in float32."""
        values = self.fill.clip(self.spec["cases"][case]["key"], self.spec["cases"][case]["shape"])
        return torch.from_numpy(values).to(dtype)

    def output(self, name: str) -> Tensor:
        return torch.from_numpy(self.outputs[name])


def read_reference(fill: ModuleType, golden: Path, name: str) -> Reference:
    spec = json.loads((golden / f"{name}.json").read_text())
    with np.load(golden / f"{name}.npz") as outputs:
        state = fill.state(spec["params"])
        assert fill.digest(state) == spec["params_sha256"]
        return Reference(fill, spec, dict(outputs), state)


def make_model(
    name: str, reference: Reference, *, num_frames: int, crop: int, **kwargs
) -> VideoModel:
    """Build a model and fill it through our key map; every entry of both sides must be met."""
    make = BACKBONES.get(name)
    backbone = make(num_classes=400, num_frames=num_frames, crop_size=crop, **kwargs)
    model = VideoModel(backbone, num_frames=num_frames)
    names = key_map(model, reference.state)
    state = {names[key]: torch.from_numpy(value) for key, value in reference.state.items()}
    model.load_state_dict(state, strict=True)
    return model.eval()


def key_map(model: VideoModel, names: Iterable[str]) -> dict[str, str]:
    """Return {original name: ours} by our key map."""
    names = list(names)
    return to_ours(names, detect_source(names), detect_layout(model.state_dict()))


@pytest.fixture(scope="module", params=CONVOLUTIONAL)
def case(request, shared, fill):
    name, kwargs = CONVOLUTIONAL[request.param]
    reference = read_reference(fill, shared / "golden", request.param)
    config = reference.spec["config"]
    sizes = {"num_frames": config["num_frames"], "crop": config["train_crop"]}
    return name, reference, make_model(name, reference, **sizes, **kwargs)


@torch.no_grad()
def test_train_crop_gives_the_reference_logits(case):
    _, reference, model = case
    logits = model.float()(reference.clip("train_crop")).logits
    torch.testing.assert_close(logits, reference.output("train_crop_logits"), **FLOAT32)
    expected = reference.output("train_crop_eval_output")
    torch.testing.assert_close(logits.softmax(dim=1), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_train_crop_gives_the_reference_logits_in_float64(case):
    _, reference, model = case
    clip = reference.clip("train_crop", torch.float64)[:1]  # one of the two saves half the time
    logits = model.double()(clip).logits
    torch.testing.assert_close(logits, reference.output("train_crop_logits_f64")[:1], **FLOAT64)


@torch.no_grad()
def test_test_crop_gives_the_reference_logits_at_each_place_and_their_mean_softmax(case):
    _, reference, model = case
    model.float()
    clip = reference.clip("test_crop")
    places = []
    hook = model.backbone.net.register_forward_hook(lambda *args: places.append(args[2]))
    logits = model(clip).logits
    hook.remove()
    expected = reference.output("test_crop_logits").movedim(-1, 1)
    assert expected[0, 0].numel() > 1
    torch.testing.assert_close(places[0], expected, **FLOAT32)
    probabilities = reference.output("test_crop_eval_output")
    torch.testing.assert_close(logits.softmax(dim=1), probabilities, rtol=0, atol=1e-7)


def test_training_step_gives_the_reference_gradients_and_running_statistics_in_float64(case):
    name, reference, _ = case
    step = reference.spec["cases"]["train_step"]
    sizes = {"num_frames": reference.spec["config"]["num_frames"], "crop": step["shape"][-1]}
    model = make_model(name, reference, **sizes, dropout_rate=0.0).double().train()
    logits = model(reference.clip("train_step", torch.float64)).logits
    loss = F.cross_entropy(logits, torch.tensor(step["labels"]))
    loss.backward()
    torch.testing.assert_close(logits, reference.output("train_step_logits_f64"), **FLOAT64)
    assert loss.item() == pytest.approx(step["loss"], rel=1e-12)
    norms = grad_norms(model, reference)
    expected = reference.output("train_step_grad_norm_f64")
    torch.testing.assert_close(norms, expected, rtol=1e-9, atol=1e-12)
    means = buffer_means(model, reference)
    torch.testing.assert_close(means, reference.output("train_step_buffer_mean_f64"), **FLOAT64)


def grad_norms(model: nn.Module, reference: Reference) -> Tensor:
    """Return the norm of every parameter's gradient, in the order of the reference."""
    names = key_map(model, reference.state)
    parameters = dict(model.named_parameters())
    wanted = [parameters[names[key]] for key in reference.state if names[key] in parameters]
    return torch.stack([parameter.grad.norm() for parameter in wanted])


def buffer_means(model: nn.Module, reference: Reference) -> Tensor:
    names = key_map(model, reference.state)
    wanted = [key for key in reference.state if key.endswith(("running_mean", "running_var"))]
    return torch.stack([model.get_buffer(names[key]).mean() for key in wanted])


def test_key_map_is_that_of_the_reference(case, shared):
    _, reference, model = case
    mapping = json.loads((shared / "golden" / "mapping.json").read_text())
    rules = mapping["families"][mapping["models"][reference.spec["name"]]["family"]]
    names = key_map(model, reference.state)
    assert len(names) == len(reference.state)
    assert names == {key: f"backbone.net.{expand(rules, key)}" for key in reference.state}


def test_key_map_of_an_unpooled_resnet_is_that_of_the_reference(shared):
    spec = json.loads((shared / "golden" / "C2D_8x8_R50.json").read_text())
    mapping = json.loads((shared / "golden" / "mapping.json").read_text())
    with torch.device("meta"):
        backbone = BACKBONES.get("c2d")(
            num_classes=400, num_frames=8, crop_size=224, temporal_pool=False
        )
        model = VideoModel(backbone, num_frames=8)
    rules = mapping["families"]["resnet_nopool"]
    keys = [key for key, _ in spec["params"]]
    expected = {key: f"backbone.net.{expand(rules, key)}" for key in keys}
    assert key_map(model, keys) == expected
    assert set(expected.values()) == set(model.state_dict())


@pytest.fixture(scope="module")
def timesformer(shared, fill):
    reference = read_reference(fill, shared / "golden", TIMESFORMER)
    return reference, make_model("timesformer", reference, num_frames=8, crop=224, dropout_rate=0.0)


@torch.no_grad()
def test_timesformer_gives_the_reference_features_and_logits(timesformer):
    reference, model = timesformer
    net = model.float().backbone.net
    features = net.features(reference.clip("eval"))
    torch.testing.assert_close(features, reference.output("features"), **FLOAT32)
    torch.testing.assert_close(net.head(features), reference.output("logits"), **FLOAT32)


@torch.no_grad()
def test_timesformer_gives_the_reference_logits_in_float64(timesformer):
    reference, model = timesformer
    clip = reference.clip("eval", torch.float64)[:1]  # one of the two saves half the time
    logits = model.double()(clip).logits
    torch.testing.assert_close(logits, reference.output("logits_f64")[:1], **FLOAT64)


@torch.no_grad()
def test_timesformer_resizes_its_embeddings_as_the_reference_does(timesformer):
    reference, model = timesformer
    logits = model.float().backbone([reference.clip("resized")])
    torch.testing.assert_close(logits, reference.output("resized_logits"), **FLOAT32)


def test_timesformer_gives_the_reference_gradients_in_float64(timesformer):
    reference, model = timesformer
    step = reference.spec["cases"]["gradient"]
    logits = model.double().backbone([reference.clip("gradient", torch.float64)])
    loss = F.cross_entropy(logits, torch.tensor(step["labels"]))
    loss.backward()
    torch.testing.assert_close(logits, reference.output("grad_logits_f64"), **FLOAT64)
    assert loss.item() == pytest.approx(step["loss"], rel=1e-12)
    expected = reference.output("grad_norm_f64")
    torch.testing.assert_close(grad_norms(model, reference), expected, rtol=1e-9, atol=1e-12)
    model.zero_grad()
