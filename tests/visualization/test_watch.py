import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from vmp.models import VideoModel
from vmp.models.backbone import Backbone
from vmp.prompts import MotionPrompt
from vmp.visualization import watch
from vmp.visualization.watch import prompt_pictures


def make_model(pathways):
    prompts = {pathway: MotionPrompt() for pathway in pathways}
    model = VideoModel(Backbone(nn.Linear(2, 2), strides=(4, 1)), num_frames=8, prompts=prompts)
    return model.train()


def random_clip():
    return torch.randint(0, 256, (3, 9, 16, 24), dtype=torch.uint8)


def test_there_is_a_picture_of_each_prompt_of_the_frames_its_pathway_sees(monkeypatch):
    seen = []
    real = watch.prompt_panel

    def spy(prompt, clip, **options):
        seen.append((prompt, clip))
        return real(prompt, clip, **options)

    monkeypatch.setattr(watch, "prompt_panel", spy)
    model, clip = make_model((0, 1)), random_clip()
    pictures = prompt_pictures(model, clip)
    assert list(pictures) == ["prompt/0", "prompt/1"]
    assert [prompt for prompt, _ in seen] == list(model.prompts.values())
    assert torch.equal(seen[0][1], clip[:, ::4])
    assert torch.equal(seen[1][1], clip)
    for picture in pictures.values():
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert picture.std() > 10


def test_a_model_without_prompts_gives_no_pictures():
    assert prompt_pictures(make_model(()), random_clip()) == {}


def test_neither_the_model_nor_any_random_state_changes():
    model, clip = make_model((1,)), random_clip()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, kept = copy.deepcopy(model), clip.clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    prompt_pictures(model, clip)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(states[0], after[0])
    assert states[1] == after[1]
    assert all(np.array_equal(one, two) for one, two in zip(states[2], after[2], strict=True))
    assert torch.equal(clip, kept)
    assert model.training
    for one, two in zip(before.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)
        assert (two.grad == 1).all()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_picture_is_the_same_under_autocast(dtype):
    model, clip = make_model((1,)), random_clip()
    plain = prompt_pictures(model, clip)["prompt/1"].astype(int)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        other = prompt_pictures(model, clip)["prompt/1"].astype(int)
    assert np.abs(plain - other).mean() < 0.5


def test_tensorboard_takes_the_picture(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (name, picture), *_ = prompt_pictures(make_model((1,)), random_clip()).items()
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_image(name, picture, 7, dataformats="HWC")
    events = EventAccumulator(str(tmp_path)).Reload()
    (image,) = events.Images(name)
    assert (image.step, image.height, image.width) == (7, *picture.shape[:2])
