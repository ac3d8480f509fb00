"""Several processes: the same numbers as one, whoever starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from tests.engine.conftest import log_of, results_of
from vmp import engine
from vmp.engine.checkpoint import list_checkpoints
from vmp.engine.progress import NonFiniteLossError
from vmp.solver import ActionLoss
from vmp.utils.distributed import get_rank
from vmp.utils.files import read_tensors

pytestmark = pytest.mark.dist

ROOT = Path(__file__).resolve().parents[2]


def launch(cfg):
    engine.launch(engine.run, cfg, num_processes=cfg.NUM_PROCESSES, timeout=60)


@pytest.mark.parametrize("model", ["timesformer", "x3d"])
def test_two_processes_give_the_results_of_one(make_cfg, model):
    # x3d: with the batch statistics of all ranks; each rank's own would be another training
    results, losses, scores = [], [], []
    for processes in (1, 2):
        cfg = make_cfg(
            model, f"processes{processes}", NUM_PROCESSES=processes, BN__SYNC=True, LOG_PERIOD=1
        )
        launch(cfg)
        results.append(results_of(cfg))
        losses.append([record["loss"] for record in log_of(cfg)])
        scores.append(np.load(Path(cfg.OUTPUT_DIR) / "predictions.npz")["scores"])
    one, two = results
    # what is counted is equal, what is summed is equal up to the order of summation in float32
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    np.testing.assert_allclose(scores[0], scores[1], atol=2e-3)
    for name in ("counts", "seed", "config", "config_sha256", "checkpoint", "not_evaluated"):
        assert one[name] == two[name]
    assert one["metrics"]["loss"] == pytest.approx(two["metrics"]["loss"], rel=1e-3)


def test_testing_on_three_processes_counts_every_view_once(make_cfg):
    cfg = make_cfg("x3d", SOLVER__MAX_EPOCH=1)
    engine.run(cfg)
    weights = Path(cfg.OUTPUT_DIR) / "checkpoints" / "epoch_00001.pth"
    # 3 does not divide 32 views: some ranks have one more, and nothing is padded
    split = make_cfg(
        "x3d",
        "split",
        NUM_PROCESSES=3,
        TEST__BATCH_SIZE=9,
        TRAIN__BATCH_SIZE=9,
        TRAIN__ENABLE=False,
        TEST__CHECKPOINT_FILE_PATH=weights,
    )
    launch(split)
    one, three = results_of(cfg), results_of(split)
    assert three["counts"] == one["counts"]
    assert three["confusion_matrix"] == one["confusion_matrix"]
    assert three["weights_sha256"] == one["weights_sha256"]
    a, b = (np.load(Path(c.OUTPUT_DIR) / "predictions.npz") for c in (cfg, split))
    assert (a["paths"] == b["paths"]).all()
    np.testing.assert_allclose(a["scores"], b["scores"], atol=1e-6)


def poison_rank_1(cfg):
    """Run with a loss that is not a number on rank 1 alone, at its third update."""
    forward, calls = ActionLoss.forward, []

    def poisoned(self, logits, variation, target):
        loss, task = forward(self, logits, variation, target)
        calls.append(target)
        return (loss * float("nan"), task) if get_rank() == 1 and len(calls) == 3 else (loss, task)

    ActionLoss.forward = poisoned
    try:
        engine.run(cfg)
    except NonFiniteLossError as error:
        (Path(cfg.OUTPUT_DIR) / f"raised{get_rank()}").write_text(str(error))
        raise


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_with_that_ranks_clips(make_cfg):
    cfg = make_cfg(NUM_PROCESSES=2, SOLVER__MAX_EPOCH=1, LOG_PERIOD=4)
    with pytest.raises(ProcessRaisedException, match="NonFiniteLossError"):
        engine.launch(poison_rank_1, cfg, num_processes=2, timeout=60)
    messages = [path.read_text() for path in sorted(Path(cfg.OUTPUT_DIR).glob("raised?"))]
    assert messages  # the first to raise may end the other before it has written
    for message in messages:
        assert "step 3; its clips: " in message
        assert message.count(".mp4") == 4  # of 8, which both ranks have together


def test_two_processes_resume_with_precise_statistics_of_all_ranks(make_cfg):
    options = {"NUM_PROCESSES": 2, "BN__SYNC": True, "BN__USE_PRECISE_STATS": True}
    whole, parts = make_cfg("x3d", "whole", **options), make_cfg("x3d", "parts", **options)
    for cfg in (whole, parts):
        launch(cfg)
    list_checkpoints(parts.OUTPUT_DIR)[-1].unlink()
    launch(parts)
    one = make_cfg("x3d", "one", **(options | {"NUM_PROCESSES": 1}))
    engine.run(one)
    states = [
        read_tensors(list_checkpoints(cfg.OUTPUT_DIR)[-1])["model"] for cfg in (whole, parts, one)
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        if "running_mean" in name:  # of the same batches, though each rank saw a part of them
            torch.testing.assert_close(value, states[2][name], atol=2e-3, rtol=1e-2)


def test_torchrun_starts_the_same_program(make_cfg):
    cfg = make_cfg(SOLVER__MAX_EPOCH=1)
    path = Path(cfg.OUTPUT_DIR).with_suffix(".yaml")
    path.write_text(cfg.dump())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(ROOT / "tools" / "run_net.py"), "--cfg", str(path)]
    environment = {k: v for k, v in os.environ.items() if not re.match("RANK|WORLD|MASTER", k)}
    done = subprocess.run(
        command,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in (Path(cfg.OUTPUT_DIR) / "log.txt").read_text()
    assert results_of(cfg)["counts"]["evaluated_views"] == 32


def test_an_error_of_the_user_is_one_line_and_status_1(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "run_net.py"), "--cfg", "none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: none.yaml: there is no file")
    assert "Traceback" not in done.stderr
