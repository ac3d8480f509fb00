"""Panels of the prompts while a training goes on."""

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.engine.conftest import log_of
from vmp.engine.training import train
from vmp.visualization.watch import prompt_pictures


def images_of(cfg):
    events = EventAccumulator(str(Path(cfg.OUTPUT_DIR) / "tensorboard")).Reload()
    return {name: events.Images(name) for name in events.Tags()["images"]}


def last_state(cfg):
    (path,) = (Path(cfg.OUTPUT_DIR) / "checkpoints").glob("epoch_00002.pth")
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_gives_a_panel_and_changes_no_number(make_cfg, workers):
    plain = make_cfg(out="plain", DATA_LOADER__NUM_WORKERS=workers, MODEL__DROPOUT_RATE=0.3)
    drawn = make_cfg(
        out="drawn", DATA_LOADER__NUM_WORKERS=workers, MODEL__DROPOUT_RATE=0.3, TENSORBOARD=True
    )
    train(plain)
    train(drawn, prompt_pictures)
    steps = [record["step"] for record in log_of(drawn)]
    (images,) = images_of(drawn).values()
    assert [image.step for image in images] == [steps[-1] // 2, steps[-1]]
    one, two = last_state(plain), last_state(drawn)
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    losses = [[record["loss"] for record in log_of(cfg)] for cfg in (plain, drawn)]
    assert losses[0] == losses[1]


def test_the_clip_is_the_same_in_every_epoch(make_cfg):
    seen = []

    def watch(model, clip):
        seen.append(hashlib.sha256(clip.numpy().tobytes()).hexdigest())
        return {}

    train(make_cfg(TENSORBOARD=True), watch)
    assert len(seen) == 2
    assert len(set(seen)) == 1


def test_nothing_is_drawn_without_tensorboard(make_cfg):
    train(make_cfg(), lambda model, clip: pytest.fail("drawn"))


def test_a_picture_that_fails_is_a_warning(make_cfg, caplog):
    def watch(model, clip):
        raise RuntimeError("no paint")

    cfg = make_cfg(TENSORBOARD=True, SOLVER__MAX_EPOCH=1)
    with caplog.at_level(logging.WARNING, "vmp"):
        train(cfg, watch)
    assert "no paint" in caplog.text
    assert list((Path(cfg.OUTPUT_DIR) / "checkpoints").glob("epoch_00001.pth"))
