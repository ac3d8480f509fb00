"""Train and test end to end, in one process."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.engine.conftest import log_of, results_of
from vmp import engine
from vmp.data.clips import Batch
from vmp.engine.build import build_learner
from vmp.engine.checkpoint import list_checkpoints
from vmp.engine.normalization import recompute_statistics
from vmp.engine.progress import NonFiniteLossError
from vmp.models import VideoModel
from vmp.solver import ActionLoss
from vmp.utils.files import read_tensors, sha256_of

MEASURED = ("clips_per_second", "data_wait")  # what the clock decides


def without_clock(records):
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in records]


@pytest.mark.parametrize("model", ["x3d", "timesformer"])
def test_a_run_writes_everything_and_its_loss_falls(make_cfg, model):
    cfg = make_cfg(model, SOLVER__MAX_EPOCH=6, TRAIN__EVAL_PERIOD=3, TENSORBOARD=True)
    engine.run(cfg)
    out = Path(cfg.OUTPUT_DIR)
    train_lines = log_of(cfg)
    assert train_lines[-1]["task_loss"] < train_lines[0]["task_loss"]
    assert [record["epoch"] for record in log_of(cfg, "val")] == [3, 6]
    last = train_lines[-1]
    for name in ("loss", "variation", "lr", "grad_norm", "clips_per_second", "data_wait"):
        assert np.isfinite(last[name])
    assert set(last["prompt"]["0"]) == {"m", "n", "a", "b", "f0"}
    assert last["loss"] == pytest.approx(last["task_loss"] + 0.5 * last["variation"], rel=1e-5)

    results = results_of(cfg)
    counts = results["counts"]
    assert counts == {
        "videos": 16,
        "evaluated_videos": 16,
        "views_per_video": 2,
        "evaluated_views": 32,
    }
    assert {"top1", "top5", "mean_class_accuracy", "mean_average_precision", "loss"} <= set(
        results["metrics"]
    )
    assert np.sum(results["confusion_matrix"]) == 16
    assert [row["count"] for row in results["per_class"]] == [2] * 8
    for name in ("config", "config_sha256", "seed", "weights_sha256", "versions", "git_commit"):
        assert results[name] is not None
    stored = np.load(out / "predictions.npz", allow_pickle=False)
    assert stored["scores"].shape == (16, 8)
    np.testing.assert_allclose(stored["scores"].sum(1), 1)
    top1 = (stored["scores"].argmax(1) == stored["labels"]).mean() * 100
    assert results["metrics"]["top1"] == pytest.approx(top1)
    assert (out / "config.yaml").is_file()
    assert any((out / "tensorboard").iterdir())


@pytest.mark.parametrize("model", ["x3d", "timesformer"])
def test_stopped_and_resumed_is_the_same_run_to_the_bit(make_cfg, model):
    random = {"MODEL__DROPOUT_RATE": 0.3, "TRAIN__MIXUP_ALPHA": 0.4, "TRAIN__CUTMIX_ALPHA": 1.0}
    whole = make_cfg(model, "whole", **random)
    engine.train(whole)
    parts = make_cfg(model, "parts", **random)
    engine.train(parts)
    # as if killed late in the second epoch, before its checkpoint
    # (the lines beyond it are still there: the resumed run must take them out)
    list_checkpoints(parts.OUTPUT_DIR)[-1].unlink()
    engine.train(parts)

    a, b = (read_tensors(list_checkpoints(cfg.OUTPUT_DIR)[-1]) for cfg in (whole, parts))
    assert a["step"] == b["step"] == 8
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    assert without_clock(log_of(whole)) == without_clock(log_of(parts))


def test_workers_change_nothing_in_the_results(make_cfg):
    texts = []
    for workers in (0, 2, 4):
        cfg = make_cfg("x3d", f"workers{workers}", DATA_LOADER__NUM_WORKERS=workers)
        engine.run(cfg)
        texts.append((Path(cfg.OUTPUT_DIR) / "test_results.json").read_text())
    assert texts[0] == texts[1] == texts[2]


def test_another_seed_is_another_run(make_cfg):
    hashes = set()
    for seed in (0, 1):
        cfg = make_cfg(out=f"seed{seed}", RNG_SEED=seed)
        engine.run(cfg)
        hashes.add(results_of(cfg)["weights_sha256"])
    assert len(hashes) == 2


def test_accumulated_micro_batches_give_the_update_of_the_whole_batch(make_cfg):
    losses = []
    for batch in (8, 4):
        cfg = make_cfg(
            out=f"batch{batch}",
            TRAIN__BATCH_SIZE=batch,
            TRAIN__GLOBAL_BATCH_SIZE=8,
            SOLVER__MAX_EPOCH=1,
            PROMPT__PENALTY=2.0,
        )
        engine.train(cfg)
        losses.append([record["loss"] for record in log_of(cfg)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("model", ["x3d", "timesformer"])
def test_reduced_precision_trains_and_tests(make_cfg, model, precision):
    cfg = make_cfg(model, TRAIN__PRECISION=precision, SOLVER__MAX_EPOCH=1)
    engine.run(cfg)
    assert all(np.isfinite(record["loss"]) for record in log_of(cfg))
    state = read_tensors(list_checkpoints(cfg.OUTPUT_DIR)[-1])
    assert all(value.dtype != torch.float16 for value in state["model"].values())
    assert bool(state["scaler"]) is (precision == "float16")


def test_a_loss_that_is_not_finite_stops_with_step_paths_and_checkpoint(make_cfg, monkeypatch):
    cfg = make_cfg(SOLVER__MAX_EPOCH=3)
    forward = ActionLoss.forward
    calls = []

    def poisoned(self, logits, variation, target):
        loss, task = forward(self, logits, variation, target)
        calls.append(target)
        return (loss * float("nan"), task) if len(calls) == 7 else (loss, task)

    monkeypatch.setattr(ActionLoss, "forward", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"step 7; its clips: .*mp4.*epoch_00001\.pth"):
        engine.train(cfg)
    assert [path.name for path in list_checkpoints(cfg.OUTPUT_DIR)] == ["epoch_00001.pth"]


def test_weights_that_are_not_finite_are_not_written(make_cfg, monkeypatch):
    forward = ActionLoss.forward

    def bad_gradient(self, logits, variation, target):
        loss, task = forward(self, logits, variation, target)
        return loss + (logits * 0).sum().sqrt(), task  # adds 0, whose gradient is 0 * inf

    monkeypatch.setattr(ActionLoss, "forward", bad_gradient)
    cfg = make_cfg(SOLVER__MAX_EPOCH=1, TRAIN__BATCH_SIZE=32)
    with pytest.raises(NonFiniteLossError, match="weights are not finite after step 1"):
        engine.train(cfg)
    assert not list_checkpoints(cfg.OUTPUT_DIR)


def copy_with_a_broken_video(motionshapes, folder, split):
    shutil.copytree(motionshapes, folder)
    broken = sorted((folder / split).iterdir())[3]
    broken.write_bytes(b"not a video at all")
    return broken


def test_an_unreadable_test_video_is_reported_and_never_replaced(make_cfg, motionshapes, tmp_path):
    broken = copy_with_a_broken_video(motionshapes, tmp_path / "data", "test")
    cfg = make_cfg(SOLVER__MAX_EPOCH=1, DATA__PATH_TO_DATA_DIR=tmp_path / "data")
    engine.run(cfg)
    results = results_of(cfg)
    assert results["counts"]["videos"] == 16
    assert results["counts"]["evaluated_videos"] == 15
    assert {entry["path"] for entry in results["not_evaluated"]} == {str(broken)}
    assert str(broken) not in np.load(Path(cfg.OUTPUT_DIR) / "predictions.npz")["paths"]
    assert np.sum(results["confusion_matrix"]) == 15


def test_a_board_that_cannot_be_opened_ends_no_run_and_comes_after_what_was_found(
    make_cfg, motionshapes, tmp_path
):
    copy_with_a_broken_video(motionshapes, tmp_path / "data", "test")
    cfg = make_cfg(SOLVER__MAX_EPOCH=1, DATA__PATH_TO_DATA_DIR=tmp_path / "data", TENSORBOARD=True)
    out = Path(cfg.OUTPUT_DIR)
    out.mkdir()
    (out / "tensorboard").touch()
    engine.run(cfg)
    assert results_of(cfg)["counts"]["evaluated_videos"] == 15
    log = (out / "log.txt").read_text()
    unopened = "TensorBoard gets no more of this run"
    assert log.count(unopened) == 2  # of the training, of the test
    wrote = log.index(f"wrote {out / 'test_results.json'}")
    assert log.rindex("not evaluated: ") < wrote < log.rindex(unopened)


def test_an_unreadable_training_video_is_replaced_counted_and_logged(
    make_cfg, motionshapes, tmp_path, caplog
):
    broken = copy_with_a_broken_video(motionshapes, tmp_path / "data", "train")
    cfg = make_cfg(SOLVER__MAX_EPOCH=1, DATA__PATH_TO_DATA_DIR=tmp_path / "data")
    engine.train(cfg)
    assert sum(record["replaced"] for record in log_of(cfg)) == 1
    assert str(broken) in caplog.text


def test_resume_wins_over_init_from(make_cfg):
    cfg = make_cfg(out="source", SOLVER__MAX_EPOCH=1)
    engine.train(cfg)
    weights = list_checkpoints(cfg.OUTPUT_DIR)[-1]
    tuned = make_cfg(out="tuned", SOLVER__MAX_EPOCH=1, TRAIN__INIT_FROM=weights)
    engine.train(tuned)
    digest = sha256_of(weights)
    origin = f"weights of {weights} (SHA-256 {digest[:12]}...)"
    assert log_of(tuned, "start")[0]["origin"] == origin
    report = json.loads((Path(tuned.OUTPUT_DIR) / "init_report.json").read_text())
    assert (report["source"], report["sha256"]) == ("vmp", digest)
    assert report["used"].keys() == read_tensors(weights)["model"].keys()
    state = read_tensors(list_checkpoints(tuned.OUTPUT_DIR)[-1])
    assert (state["epoch"], state["step"]) == (1, 4)  # neither epoch nor step of the source
    engine.train(tuned)
    assert log_of(tuned, "start")[1]["origin"] == "resumed after epoch 1, step 4"


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(make_cfg, caplog):
    cfg = make_cfg()
    engine.train(cfg)
    newest = list_checkpoints(cfg.OUTPUT_DIR)[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    engine.train(cfg)
    assert "the one before it is taken" in caplog.text
    assert log_of(cfg, "start")[1]["origin"] == "resumed after epoch 1, step 4"
    assert read_tensors(newest)["epoch"] == 2


def test_nothing_is_begun_over_checkpoints_that_cannot_be_read(make_cfg):
    cfg = make_cfg(SOLVER__MAX_EPOCH=1)
    engine.train(cfg)
    (only,) = list_checkpoints(cfg.OUTPUT_DIR)
    only.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="none of the checkpoints in .* can be read"):
        engine.train(cfg)
    assert only.exists()


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_validation_that_a_kill_cut_off_is_done_by_the_resumed_run(make_cfg, monkeypatch):
    cfg = make_cfg(SOLVER__MAX_EPOCH=1, TRAIN__EVAL_PERIOD=1)
    runner = sys.modules["vmp.engine.training"]
    with monkeypatch.context() as patch:
        patch.setattr(runner, "predict", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.train(cfg)
    engine.train(cfg)
    assert [record["epoch"] for record in log_of(cfg, "val")] == [1]


def test_only_the_newest_checkpoints_are_kept(make_cfg):
    cfg = make_cfg(SOLVER__MAX_EPOCH=4, TRAIN__CHECKPOINT_KEEP=2)
    engine.train(cfg)
    names = [path.name for path in list_checkpoints(cfg.OUTPUT_DIR)]
    assert names == ["epoch_00003.pth", "epoch_00004.pth"]


def test_precise_statistics_replace_the_running_ones(make_cfg):
    states = []
    for precise in (False, True):
        cfg = make_cfg("x3d", f"p{precise}", BN__USE_PRECISE_STATS=precise, SOLVER__MAX_EPOCH=1)
        engine.train(cfg)
        states.append(read_tensors(list_checkpoints(cfg.OUTPUT_DIR)[-1])["model"])
    moved = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert moved
    assert all("running_" in name or "num_batches" in name for name in moved)


def test_precise_statistics_are_the_averages_over_the_batches():
    model = nn.Sequential(nn.BatchNorm3d(3))
    clips = [torch.randn(4, 3, 2, 5, 5) * 3 + 1 for _ in range(3)]
    batches = [Batch(clip, *[torch.zeros(4)] * 3, ()) for clip in clips]
    recompute_statistics(model, iter(batches), 3, device=torch.device("cpu"))
    means = torch.stack([clip.mean((0, 2, 3, 4)) for clip in clips])
    torch.testing.assert_close(model[0].running_mean, means.mean(0))


def test_prompts_with_a_rate_of_zero_keep_their_start(make_cfg):
    cfg = make_cfg(PROMPT__LR_MULT=0.0, PROMPT__SIGMOID__M=0.5, PROMPT__SIGMOID__N=-0.25)
    engine.train(cfg)
    assert log_of(cfg)[-1]["prompt"]["0"]["m"] == 0.5


def test_channels_last_is_another_layout_of_the_same_numbers(make_cfg):
    losses = []
    for switch in (False, True):
        cfg = make_cfg("x3d", f"c{switch}", MODEL__CHANNELS_LAST=switch, LOG_PERIOD=1)
        learner = build_learner(cfg)
        # kernels of one channel or one place lie the same in both layouts
        weights = [p for p in learner.model.parameters() if p.ndim == 5]
        weights = [p for p in weights if p.shape[1] > 1 and p.shape[2:].numel() > 1]
        layout = torch.channels_last_3d
        assert weights
        assert all(p.is_contiguous(memory_format=layout) is switch for p in weights)
        engine.train(cfg)
        losses.append([record["loss"] for record in log_of(cfg)])
    # the first update sees the same weights; after it, rounding may grow
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=5e-2)


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_an_output_folder_that_cannot_be_is_refused_in_words(make_cfg, tmp_path, kind):
    (tmp_path / "recipe.yaml").touch()
    out, told = {
        "a file": ("recipe.yaml", "is a file; name a folder"),
        "below a file": ("recipe.yaml/x", r"can't be made or written \(.*\); name another folder"),
    }[kind]
    with pytest.raises(ValueError, match=f"^OUTPUT_DIR .*{told}$"):
        engine.run(make_cfg(out=out))


def test_a_test_without_a_checkpoint_says_what_to_do(make_cfg):
    with pytest.raises(ValueError, match="train first"):
        engine.test(make_cfg(out="empty"))


def test_a_checkpoint_of_another_model_is_refused(make_cfg):
    cfg = make_cfg(SOLVER__MAX_EPOCH=1, PROMPT__ENABLE=False)
    engine.train(cfg)
    weights = list_checkpoints(cfg.OUTPUT_DIR)[-1]
    with pytest.raises(ValueError, match=r"differ in prompts\.0"):
        engine.test(make_cfg(out="other", TEST__CHECKPOINT_FILE_PATH=weights))


def test_a_prompted_checkpoint_is_not_tested_as_a_baseline(make_cfg):
    cfg = make_cfg(SOLVER__MAX_EPOCH=1)
    engine.train(cfg)
    weights = list_checkpoints(cfg.OUTPUT_DIR)[-1]
    baseline = make_cfg(out="b", PROMPT__ENABLE=False, TEST__CHECKPOINT_FILE_PATH=weights)
    with pytest.raises(ValueError, match=r"differ in prompts\.0"):
        engine.test(baseline)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"RNG_SEED": 1}, "RNG_SEED .0 there, 1 here."),
        ({"PROMPT__ENABLE": False}, "PROMPT.ENABLE"),
        ({"SOLVER__WEIGHT_DECAY": 0.5}, "SOLVER.WEIGHT_DECAY"),
    ],
)
def test_a_run_of_another_config_is_not_resumed(make_cfg, change, named):
    engine.train(make_cfg(SOLVER__MAX_EPOCH=1))
    with pytest.raises(ValueError, match=f"{named}.*another OUTPUT_DIR"):
        engine.train(make_cfg(SOLVER__MAX_EPOCH=1, **change))


def test_a_run_is_not_begun_over_another(make_cfg):
    cfg = make_cfg(SOLVER__MAX_EPOCH=1)
    engine.train(cfg)
    with pytest.raises(ValueError, match="holds a run and TRAIN.AUTO_RESUME is False"):
        engine.train(make_cfg(SOLVER__MAX_EPOCH=1, TRAIN__AUTO_RESUME=False))


def test_checkpoints_come_every_so_many_epochs_and_at_the_end(make_cfg):
    cfg = make_cfg(SOLVER__MAX_EPOCH=3, TRAIN__CHECKPOINT_PERIOD=2)
    engine.train(cfg)
    names = [path.name for path in list_checkpoints(cfg.OUTPUT_DIR)]
    assert names == ["epoch_00002.pth", "epoch_00003.pth"]


def test_averaged_logits_are_reported_as_probabilities(make_cfg):
    cfg = make_cfg(SOLVER__MAX_EPOCH=1, TEST__ENSEMBLE="logits")
    engine.run(cfg)
    scores = np.load(Path(cfg.OUTPUT_DIR) / "predictions.npz")["scores"]
    np.testing.assert_allclose(scores.sum(1), 1)


@pytest.mark.parametrize("model", ["x3d", "timesformer"])
def test_the_compile_switch_changes_nothing_but_the_speed(make_cfg, model, monkeypatch):
    # traced for real, then run as it is: generating code takes a minute
    compiled = []

    def compile_eagerly(self):
        compiled.append(self)
        nn.Module.compile(self, backend="eager", fullgraph=True)

    monkeypatch.setattr(VideoModel, "compile", compile_eagerly)
    losses = []
    for switch in (False, True):
        cfg = make_cfg(model, f"c{switch}", MODEL__COMPILE=switch, SOLVER__MAX_EPOCH=1)
        engine.train(cfg)
        losses.append([record["loss"] for record in log_of(cfg)])
    assert len(compiled) == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_no_readable_video_at_all_is_an_error_in_one_line(make_cfg, motionshapes, tmp_path):
    shutil.copytree(motionshapes, tmp_path / "data")
    for video in (tmp_path / "data" / "test").iterdir():
        video.write_bytes(b"not a video")
    cfg = make_cfg(SOLVER__MAX_EPOCH=1, DATA__PATH_TO_DATA_DIR=tmp_path / "data")
    engine.train(cfg)
    with pytest.raises(ValueError, match="none of the 16 videos could be read"):
        engine.test(cfg)
