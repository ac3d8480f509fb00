"""Pictures while a training goes on, and of a test."""

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.engine.conftest import log_of, results_of
from tests.utils.fake_wandb import install_fake_wandb
from vmp import engine
from vmp.engine.training import train
from vmp.utils import boards
from vmp.visualization.watch import confusion_pictures, prompt_pictures


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


def test_validations_and_the_test_give_confusion_matrices_and_the_test_its_metrics(make_cfg):
    cfg = make_cfg(TENSORBOARD=True, TRAIN__EVAL_PERIOD=1)
    train(cfg, chart=confusion_pictures)
    engine.test(cfg, confusion_pictures)
    last = log_of(cfg)[-1]["step"]
    images = images_of(cfg)
    assert [image.step for image in images["val/confusion"]] == [last // 2, last]
    assert [image.step for image in images["test/confusion"]] == [last]
    folder = Path(cfg.OUTPUT_DIR) / "tensorboard"
    (top1,) = EventAccumulator(str(folder)).Reload().Scalars("test/top1")
    assert top1.step == last
    assert top1.value == pytest.approx(results_of(cfg)["metrics"]["top1"])
    assert all(path.is_file() for path in folder.iterdir())


def test_wandb_shows_a_training_and_its_test_in_one_page_and_changes_no_number(
    make_cfg, monkeypatch
):
    wandb = install_fake_wandb(monkeypatch)
    plain = make_cfg(out="plain")
    shown = make_cfg(out="shown", WANDB__PROJECT="motion")
    train(plain)
    train(shown)
    engine.test(shown)
    one, two = last_state(plain)["model"], last_state(shown)["model"]
    assert all(torch.equal(one[name], two[name]) for name in one)
    training, test = wandb.runs
    assert training.facts["id"] == test.facts["id"]
    assert training.facts["config"]["SOLVER"]["BASE_LR"] == shown.SOLVER.BASE_LR
    losses = {each["step"]: each["train/loss"] for each in training.logged if "train/loss" in each}
    assert losses == {record["step"]: record["loss"] for record in log_of(shown)}
    top1 = results_of(shown)["metrics"]["top1"]
    assert test.logged[0]["test/top1"] == top1
    assert test.logged[0]["step"] == log_of(shown)[-1]["step"]


def test_without_the_package_a_run_ends_before_it_begins(make_cfg, monkeypatch):
    monkeypatch.setattr(boards, "find_spec", lambda name: None)
    cfg = make_cfg(WANDB__PROJECT="motion")
    for begin in (train, engine.test):
        with pytest.raises(ValueError, match=r"pip install 'vmp\[wandb\]'"):
            begin(cfg)
    assert not Path(cfg.OUTPUT_DIR).exists()


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
