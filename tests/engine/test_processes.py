"""Several processes: the same numbers as one, whoever starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.multiprocessing.spawn import ProcessRaisedException

from tests.engine.conftest import log_of, results_of
from vmp import engine

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
    for name in ("counts", "seed", "config", "config_sha256", "checkpoint", "unreadable"):
        assert one[name] == two[name]
    assert one["metrics"]["loss"] == pytest.approx(two["metrics"]["loss"], rel=1e-3)


def test_testing_on_two_processes_counts_every_view_once(make_cfg):
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


def test_a_loss_that_is_not_finite_stops_all_processes(make_cfg):
    cfg = make_cfg(NUM_PROCESSES=2, SOLVER__BASE_LR=1e30, SOLVER__MAX_EPOCH=1)
    with pytest.raises(ProcessRaisedException, match=r"NonFiniteLossError.*step \d+; its clips: "):
        launch(cfg)


def test_torchrun_starts_the_same_program(make_cfg):
    cfg = make_cfg(SOLVER__MAX_EPOCH=1)
    path = Path(cfg.OUTPUT_DIR).with_suffix(".yaml")
    path.write_text(cfg.dump())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", str(ROOT / "tools" / "run_net.py"), "--cfg", str(path)]
    environment = {k: v for k, v in os.environ.items() if not re.match("RANK|WORLD|MASTER", k)}
    done = subprocess.run(
        command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
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
