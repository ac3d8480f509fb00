"""torch.compile takes each model whole, in training: one graph forward, one backward."""

import pytest
import torch

from tests.models.tiny import TINY
from vmp.config.defaults import get_cfg
from vmp.models import VideoModel, build_model

pytestmark = pytest.mark.usefixtures("_one_thread")


def slow_but(quick: tuple[str, ...]) -> list:
    """Return the names as parameters; each takes some seconds, so all but `quick` are slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in TINY]


def make(name: str, *, prompted: bool, **model) -> VideoModel:
    cfg = get_cfg()
    cfg.MODEL.NAME, cfg.MODEL.NUM_CLASSES, cfg.DATA.TRAIN_CROP_SIZE = name, 5, 32
    cfg.PROMPT.ENABLE = prompted
    for section, values in ((name.upper(), TINY[name]), ("MODEL", model)):
        for key, value in values.items():
            cfg[section][key.upper()] = value
    torch.manual_seed(1)
    return build_model(cfg).train()


def step(model: VideoModel) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    clip = torch.randint(256, (2, 3, model.clip_frames, 32, 32), dtype=torch.uint8)
    logits, variation = model(clip)
    (logits.square().sum() + variation).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"logits": logits, "variation": variation, **gradients, **dict(model.named_buffers())}


def assert_compiles_whole(model: VideoModel, plain: VideoModel) -> None:
    torch._dynamo.reset()
    model.compile(fullgraph=True, backend="aot_eager")  # fullgraph: a break is an error
    expected, found = step(plain), step(model)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", slow_but(("slowfast", "x3d", "timesformer")))
def test_a_prompted_training_step_is_one_graph_and_gives_what_the_eager_one_gives(name):
    assert_compiles_whole(make(name, prompted=True), make(name, prompted=True))


@pytest.mark.parametrize("name", slow_but(("timesformer",)))
def test_a_training_step_without_a_prompt_is_one_graph_too(name):
    assert_compiles_whole(make(name, prompted=False), make(name, prompted=False))


@pytest.mark.parametrize("name", slow_but(("timesformer",)))
def test_it_is_one_graph_with_blocks_computed_again(name):
    again = make(name, prompted=False, act_checkpoint=True)
    assert_compiles_whole(again, make(name, prompted=False))


def test_no_size_is_taken_for_a_variable():
    """NumPy's integers, as pytorchvideo has them in strides, would be: the graph gets slower."""
    for name in TINY:
        model = make(name, prompted=False)
        strides = [m.stride for m in model.modules() if isinstance(m, torch.nn.Conv3d)]
        assert all(type(stride) is int for each in strides for stride in each)
