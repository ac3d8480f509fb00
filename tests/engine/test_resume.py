"""Nothing lost: killed or stopped at any step, a run ends with the weights of one that was not."""

import json
import os
import re
import resource
import shutil
import signal
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from tests.engine.conftest import log_of
from vmp import engine
from vmp.engine import evaluate, training
from vmp.engine.agreement import LostRankError
from vmp.engine.checkpoint import best_path, list_checkpoints
from vmp.engine.lock import RunLock
from vmp.utils import signals
from vmp.utils.files import read_tensors
from vmp.utils.signals import Interrupted

pytestmark = pytest.mark.usefixtures("_one_thread")

# 4 updates an epoch, of two micro-batches of 4 clips; mixup, dropout and drop path are on
OPTIONS = {
    "TRAIN__BATCH_SIZE": 4,
    "TRAIN__GLOBAL_BATCH_SIZE": 8,
    "TRAIN__MIXUP_ALPHA": 0.4,
    "MODEL__DROPOUT_RATE": 0.3,
    "TIMESFORMER__DROP_PATH_RATE": 0.2,
    "TRAIN__CHECKPOINT_STEPS": 1,
    "TRAIN__CHECKPOINT_KEEP": 2,
    "SOLVER__MAX_EPOCH": 2,
}
STEPS = 8


def signal_at(step: int, name: str, rank: int = 0) -> None:
    """Have this process signal itself before it makes that update."""
    make_step = training.train_step

    def signalled(learner, batches, epoch):
        if learner.step + 1 == step and training.get_rank() == rank:
            os.kill(os.getpid(), signal.Signals[name])
        return make_step(learner, batches, epoch)

    training.train_step = signalled


def train_in_a_child(cfg, step: int = 0, name: str = "SIGKILL") -> int:
    """Train in a forked process that is signalled at `step` (0: never); return how it ended."""
    child = os.fork()
    if not child:
        signals.install(signals.DEFAULT)
        if step:
            signal_at(step, name)
        os._exit(train_here(cfg))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_here(cfg) -> int:
    """Train, and return the status that the process should end with."""
    try:
        engine.run(cfg)
    except Interrupted:
        return signals.EXIT_AGAIN
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def final(cfg) -> dict:
    return read_tensors(list_checkpoints(cfg.OUTPUT_DIR)[-1])


def assert_same_state(one, other) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same_state(value, other[name])
        elif isinstance(value, list):
            assert_same_state(dict(enumerate(value)), dict(enumerate(other[name])))
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name
        elif name != "config":  # has another OUTPUT_DIR
            assert value == other[name], name


@pytest.mark.parametrize("model", ["timesformer", "x3d"])
def test_killed_and_stopped_at_random_steps_a_run_ends_with_the_same_bits(make_cfg, model):
    options = OPTIONS | {"TEST__ENABLE": False}
    whole = make_cfg(model, "whole", **options)
    assert train_in_a_child(whole) == 0
    rng = np.random.default_rng(7)
    for trial in range(5):  # of two signals each, with two models: 20 in all
        # workers change between the lives of a run too
        workers = [int(w) for w in rng.integers(0, 3, 3)]
        names = [str(n) for n in rng.permutation(["SIGKILL", "SIGTERM"])]
        steps = sorted(int(s) for s in rng.choice(np.arange(1, STEPS + 1), 2, replace=False))
        cfgs = [
            make_cfg(model, f"parts{trial}", DATA_LOADER__NUM_WORKERS=w, **options) for w in workers
        ]
        for cfg, step, name in zip(cfgs, steps, names, strict=False):
            status = train_in_a_child(cfg, step, name)
            # asked to stop in the last step it is done
            assert status == (-9 if name == "SIGKILL" else 0 if step == STEPS else 75)
        assert train_in_a_child(cfgs[2]) == 0
        assert_same_state(final(whole), final(cfgs[2]))
        assert log_of(whole, "train")[-1]["step"] == log_of(cfgs[2], "train")[-1]["step"] == STEPS


def test_a_stopped_run_saves_the_very_step_and_says_how_to_go_on(make_cfg, caplog):
    caplog.set_level("INFO")
    cfg = make_cfg(**OPTIONS | {"TRAIN__CHECKPOINT_STEPS": 0})
    assert train_in_a_child(cfg, 3, "SIGUSR1") == 75
    assert [path.name for path in list_checkpoints(cfg.OUTPUT_DIR)] == [
        "epoch_00000_update_0000003.pth"
    ]
    assert final(cfg)["step"] == 3
    text = (Path(cfg.OUTPUT_DIR) / "log.txt").read_text()
    assert "stopped by SIGUSR1 after step 3; " in text
    assert "the same command goes on from it" in text
    assert train_in_a_child(cfg) == 0
    assert log_of(cfg, "start")[1]["origin"].endswith("step 3, 3 updates into the next")


def test_checkpoints_by_the_clock_cost_nothing_but_time(make_cfg):
    options = OPTIONS | {"TRAIN__CHECKPOINT_STEPS": 0, "TRAIN__CHECKPOINT_KEEP": 0}
    plain = make_cfg(out="plain", **options)
    clock = make_cfg(out="clock", **options, TRAIN__CHECKPOINT_MINUTES=1e-9)
    for cfg in (plain, clock):
        engine.train(cfg)
    assert len(list_checkpoints(plain.OUTPUT_DIR)) == 2
    assert len(list_checkpoints(clock.OUTPUT_DIR)) == STEPS
    assert_same_state(final(plain), final(clock))


def test_the_end_of_an_epoch_is_a_step_like_others_to_save(make_cfg):
    options = OPTIONS | {"TRAIN__CHECKPOINT_PERIOD": 100, "TRAIN__CHECKPOINT_KEEP": 0}
    names = [f"epoch_{epoch:05d}.pth" for epoch in (1, 2, 3)]
    for out, often in {
        "steps": {"TRAIN__CHECKPOINT_STEPS": 4},
        "clock": {"TRAIN__CHECKPOINT_STEPS": 0, "TRAIN__CHECKPOINT_MINUTES": 1e-9},
    }.items():
        options |= often | {"SOLVER__MAX_EPOCH": 3}
        if out == "clock":  # one update an epoch
            options |= {"TRAIN__BATCH_SIZE": 32, "TRAIN__GLOBAL_BATCH_SIZE": 32}
        cfg = make_cfg(out=out, **options)
        engine.train(cfg)
        assert [path.name for path in list_checkpoints(cfg.OUTPUT_DIR)] == names


@pytest.mark.parametrize("where", ["predict", "recompute_statistics"])
def test_what_ends_an_epoch_can_be_stopped_and_is_taken_up_again(make_cfg, monkeypatch, where):
    options = OPTIONS | {
        "TRAIN__CHECKPOINT_STEPS": 0,
        "TRAIN__EVAL_PERIOD": 1,
        "TEST__ENABLE": False,
    }
    options |= {"BN__USE_PRECISE_STATS": True, "BN__NUM_BATCHES_PRECISE": 2}
    whole, parts = make_cfg("x3d", "whole", **options), make_cfg("x3d", "parts", **options)
    assert train_in_a_child(whole) == 0
    work = getattr(training, where)

    def signalled(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return work(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training, where, signalled)
        assert train_in_a_child(parts) == 75
    assert final(parts)["closing"]
    assert final(parts)["step"] == 4
    assert log_of(parts, "val") == []
    assert train_in_a_child(parts) == 0
    assert_same_state(final(whole), final(parts))
    assert [record["step"] for record in log_of(parts, "val")] == [4, 8]


def test_while_nothing_can_be_written_it_trains_on_and_then_catches_up(make_cfg):
    options = OPTIONS | {"LOG_PERIOD": 1, "TENSORBOARD": True, "TEST__ENABLE": False}
    whole, parts = make_cfg(out="whole", **options), make_cfg(out="parts", **options)
    assert train_in_a_child(whole) == 0
    make_step = training.train_step

    def limited(learner, batches, epoch):
        """Let no file grow from the third step on, until the sixth."""
        if learner.step + 1 in (3, 6):
            size = 1 if learner.step + 1 == 3 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return make_step(learner, batches, epoch)

    child = os.fork()
    if not child:
        training.train_step = limited
        os._exit(train_here(parts))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_same_state(final(whole), final(parts))
    assert [record["step"] for record in log_of(parts, "train")] == list(range(1, STEPS + 1))


def test_the_average_of_the_weights_is_the_model_and_goes_on_to_the_bit(make_cfg):
    options = OPTIONS | {"SOLVER__EMA_DECAY": 0.9, "TEST__ENABLE": False}
    whole, parts = make_cfg("x3d", "whole", **options), make_cfg("x3d", "parts", **options)
    assert train_in_a_child(whole) == 0
    assert train_in_a_child(parts, 6) == -9
    assert train_in_a_child(parts) == 0
    assert_same_state(final(whole), final(parts))
    state = final(whole)
    assert state["averaged"] == STEPS
    plain = make_cfg("x3d", "plain", **options | {"SOLVER__EMA_DECAY": 0.0})
    engine.train(plain)
    trained = final(plain)["model"]
    assert all(torch.equal(value, trained[name]) for name, value in state["live"].items())
    assert any(not torch.equal(value, trained[name]) for name, value in state["model"].items())


def test_the_average_is_that_of_its_formula(make_cfg):
    cfg = make_cfg("x3d", **OPTIONS | {"SOLVER__EMA_DECAY": 0.5, "TRAIN__CHECKPOINT_KEEP": 0})
    engine.train(cfg)
    states = [read_tensors(path) for path in list_checkpoints(cfg.OUTPUT_DIR)]
    name = next(n for n, v in states[0]["model"].items() if v.ndim == 5)
    average = states[0]["live"][name].double()  # the first update begins it
    for state in states[1:]:
        average = 0.5 * average + 0.5 * state["live"][name].double()
        torch.testing.assert_close(state["model"][name].double(), average, atol=1e-6, rtol=1e-5)


def test_the_best_of_the_validations_is_kept(make_cfg):
    cfg = make_cfg(TRAIN__EVAL_PERIOD=1, TRAIN__CHECKPOINT_KEEP=1, SOLVER__MAX_EPOCH=3)
    engine.train(cfg)
    top1 = [record["top1"] for record in log_of(cfg, "val")]
    best = read_tensors(best_path(cfg.OUTPUT_DIR))
    assert best["best"] == max(top1)
    assert best["epoch"] == top1.index(max(top1)) + 1
    assert len(list_checkpoints(cfg.OUTPUT_DIR)) == 1


def test_the_best_is_the_best_of_those_that_were_written(make_cfg, monkeypatch):
    cfg = make_cfg(TRAIN__EVAL_PERIOD=1, TRAIN__CHECKPOINT_KEEP=1, SOLVER__MAX_EPOCH=4)
    top1 = iter([10.0, 90.0, 50.0, 40.0])
    monkeypatch.setattr(training, "_validate", lambda *args: next(top1))
    save = torch.save

    def full_at_the_second(state, file):
        if state["epoch"] == 2:
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full_at_the_second)
    engine.train(cfg)
    best = read_tensors(best_path(cfg.OUTPUT_DIR))
    assert (best["epoch"], best["best"]) == (3, 50.0)
    assert final(cfg)["best"] == 50.0


def test_a_best_that_a_kill_left_without_its_name_gets_it(make_cfg):
    cfg = make_cfg(TRAIN__EVAL_PERIOD=1, SOLVER__MAX_EPOCH=1)
    engine.train(cfg)
    best_path(cfg.OUTPUT_DIR).unlink()
    engine.train(cfg)
    assert read_tensors(best_path(cfg.OUTPUT_DIR))["epoch"] == 1


def test_a_training_set_that_has_changed_is_refused(make_cfg, motionshapes, tmp_path):
    cfg = make_cfg(SOLVER__MAX_EPOCH=1)
    engine.train(cfg)
    smaller = tmp_path / "smaller"
    shutil.copytree(motionshapes, smaller)
    index = json.loads((smaller / "index.json").read_text())
    index["train"] = index["train"][:-8]
    (smaller / "index.json").write_text(json.dumps(index))
    elsewhere = make_cfg(SOLVER__MAX_EPOCH=2, DATA__PATH_TO_DATA_DIR=smaller)
    with pytest.raises(ValueError, match=r"on other videos: 32 videos .* there, 24 videos .* here"):
        engine.train(elsewhere)


def test_a_disk_that_is_full_at_the_end_is_an_error_and_what_was_saved_stays(make_cfg, monkeypatch):
    cfg = make_cfg(**OPTIONS)
    save = torch.save

    def full_at_the_end(state, file):
        if state["step"] == STEPS:
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full_at_the_end)
    with pytest.raises(OSError, match=r"can't be written .*make room, and the same command goes"):
        engine.train(cfg)
    assert final(cfg)["step"] == STEPS - 1


def test_another_number_of_threads_is_said(make_cfg, caplog):
    cfg = make_cfg(SOLVER__MAX_EPOCH=1)
    engine.train(cfg)
    torch.set_num_threads(2)
    engine.train(cfg)
    assert "made with 1 threads, there are 2" in caplog.text


def test_a_second_run_in_the_same_folder_is_refused(make_cfg):
    cfg = make_cfg(SOLVER__MAX_EPOCH=1)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        lock = RunLock(cfg.OUTPUT_DIR)
        os.write(write, b"x")
        signal.pause()
        os._exit(lock is None)
    os.read(read, 1)
    try:
        with pytest.raises(ValueError, match=f"is in use by process {child} on "):
            engine.run(cfg)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    engine.run(cfg)


@pytest.mark.slow
def test_two_hundred_interrupted_starts_leave_one_whole_run_and_nothing_else(make_cfg):
    options = OPTIONS | {"SOLVER__MAX_EPOCH": 1000, "TRAIN__CHECKPOINT_KEEP": 3, "LOG_PERIOD": 1}
    cfg = make_cfg(**options, TEST__ENABLE=False)
    rng, folder = np.random.default_rng(3), Path(cfg.OUTPUT_DIR)
    steps = []
    for start in range(200):
        child = os.fork()
        if not child:
            signals.install(signals.DEFAULT)
            try:
                engine.run(cfg)
            finally:
                os._exit(signals.EXIT_AGAIN)
        time.sleep(float(rng.uniform(0.0, 1.2)))  # anywhere, the writing of a checkpoint included
        os.kill(child, signal.SIGKILL if start % 2 else signal.SIGTERM)
        os.waitpid(child, 0)
        if list_checkpoints(cfg.OUTPUT_DIR):
            steps.append(final(cfg)["step"])  # the newest is whole
            assert len(list_checkpoints(cfg.OUTPUT_DIR)) <= 4  # one may be on its way out
    assert steps == sorted(steps)
    assert steps[-1] > steps[0]
    assert train_in_a_child(cfg, steps[-1] + 1, "SIGTERM") == 75  # no lock is left, it goes on
    kept = [path.name for path in (folder / "checkpoints").iterdir()]
    assert sorted(kept) == [path.name for path in list_checkpoints(cfg.OUTPUT_DIR)]
    assert len(kept) == 3
    recorded = [record["step"] for record in log_of(cfg, "train")]
    assert recorded == list(range(1, steps[-1] + 2))  # each step once, none lost


# ---------------------------------------------------------------- several ranks


def run_signalled(cfg):
    """Run, as told in the folder: a line `step signal rank`."""
    signals.install(signals.DEFAULT)
    told = Path(cfg.OUTPUT_DIR).with_suffix(".signal")
    if told.exists():
        step, name, rank = told.read_text().split()
        signal_at(int(step), name, int(rank))
    engine.run(cfg)


def launch(cfg, told: str = "") -> None:
    path = Path(cfg.OUTPUT_DIR).with_suffix(".signal")
    path.write_text(told) if told else path.unlink(missing_ok=True)
    engine.launch(run_signalled, cfg, num_processes=cfg.NUM_PROCESSES, timeout=60)


def check_ranks(make_cfg, ranks: int) -> dict:
    options = OPTIONS | {"NUM_PROCESSES": ranks, "TEST__ENABLE": False, "BN__SYNC": False}
    if ranks == 3:
        options |= {"TRAIN__BATCH_SIZE": 6, "TRAIN__GLOBAL_BATCH_SIZE": 12}
    whole, parts = make_cfg("x3d", "whole", **options), make_cfg("x3d", "parts", **options)
    launch(whole)
    with pytest.raises(LostRankError, match="rank 1 was ended by SIGKILL"):  # and the others end
        launch(parts, "2 SIGKILL 1")
    with pytest.raises(ProcessRaisedException, match="Interrupted"):  # one alone is told
        launch(parts, "3 SIGTERM 1")
    launch(parts)
    assert_same_state(final(whole), final(parts))
    return final(whole)


@pytest.mark.dist
def test_signalled_in_the_last_step_one_rank_has_both_leave_before_the_test(make_cfg):
    cfg = make_cfg("x3d", **OPTIONS, NUM_PROCESSES=2)
    with pytest.raises(ProcessRaisedException, match="Interrupted: stopped by SIGTERM before the"):
        launch(cfg, f"{STEPS} SIGTERM 1")
    assert final(cfg)["step"] == STEPS
    assert not Path(cfg.OUTPUT_DIR, "test_results.json").exists()
    launch(cfg)
    assert Path(cfg.OUTPUT_DIR, "test_results.json").exists()


@pytest.mark.dist
def test_two_ranks_end_with_the_same_bits_whichever_is_killed_or_stopped(make_cfg):
    state = check_ranks(make_cfg, 2)
    assert len(state["statistics"]) == 2


def run_signalled_in_the_test(cfg):
    """Run, and have rank 1 signalled in its first batch of a test whose batches take long."""
    signals.install(signals.DEFAULT)
    start = evaluate._start

    def slow(*args):
        time.sleep(0.5)
        if training.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return start(*args)

    evaluate._start = slow
    engine.run(cfg)


@pytest.mark.dist
def test_signalled_in_a_test_one_rank_has_both_stop_soon(make_cfg):
    cfg = make_cfg("x3d", SOLVER__MAX_EPOCH=1, NUM_PROCESSES=2, TEST__BATCH_SIZE=1)
    with pytest.raises(ProcessRaisedException, match="Interrupted: stopped by SIGTERM during"):
        engine.launch(run_signalled_in_the_test, cfg, num_processes=2, timeout=60)
    launch(cfg)
    text = Path(cfg.OUTPUT_DIR, "log.txt").read_text()
    (kept,) = re.findall(r"(\d+) of 32 views are there already", text)
    assert 0 < int(kept) < 20  # rank 0 alone would have come to 16


def run_signalled_between_epochs(cfg):
    """Run, and have rank 1 signalled at the second batch that statistics are recomputed with."""
    signals.install(signals.DEFAULT)
    recompute = training.recompute_statistics

    def signalled(model, batches, count, **kwargs):
        def signalling():
            for number, batch in enumerate(batches):
                if number == 1 and training.get_rank() == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return recompute(model, signalling(), count, **kwargs)

    training.recompute_statistics = signalled
    engine.run(cfg)


@pytest.mark.dist
def test_norms_over_both_ranks_are_stopped_together_and_saved_as_they_were(make_cfg):
    options = OPTIONS | {"NUM_PROCESSES": 2, "TEST__ENABLE": False, "BN__SYNC": True}
    options |= {"BN__USE_PRECISE_STATS": True, "BN__NUM_BATCHES_PRECISE": 4}
    options |= {"TRAIN__CHECKPOINT_STEPS": 0, "TRAIN__CHECKPOINT_KEEP": 0}
    whole, parts = make_cfg("x3d", "whole", **options), make_cfg("x3d", "parts", **options)
    launch(whole)
    with pytest.raises(ProcessRaisedException, match="Interrupted: stopped by"):
        engine.launch(run_signalled_between_epochs, parts, num_processes=2, timeout=20)
    interrupted = final(parts)
    assert (interrupted["step"], interrupted["closing"]) == (4, True)
    batches = [v for n, v in interrupted["model"].items() if n.endswith("num_batches_tracked")]
    assert {int(count) for count in batches} == {8}  # two micro-batches an update, none besides
    launch(parts)
    assert_same_state(final(whole), final(parts))


def run_with_a_slow_disk(cfg):
    """Run, and have what is written to the disk be there some seconds later, or not at all."""
    seconds = float(Path(cfg.OUTPUT_DIR).with_suffix(".disk").read_text())

    def fsync(file):
        if "checkpoints" in os.readlink(f"/proc/self/fd/{file}"):
            time.sleep(abs(seconds))
            if seconds < 0:
                raise OSError(28, "No space left on device")

    os.fsync = fsync
    run_signalled(cfg)


def launch_with_a_slow_disk(cfg, seconds: float, told: str) -> None:
    Path(cfg.OUTPUT_DIR).with_suffix(".disk").write_text(str(seconds))
    Path(cfg.OUTPUT_DIR).with_suffix(".signal").write_text(told)
    engine.launch(run_with_a_slow_disk, cfg, num_processes=2, timeout=5)


@pytest.mark.dist
def test_no_rank_leaves_before_all_is_on_the_disk(make_cfg):
    options = OPTIONS | {"NUM_PROCESSES": 2, "TRAIN__CHECKPOINT_STEPS": 0, "DIST_TIMEOUT": 5}
    cfg = make_cfg("x3d", **options)
    # longer than a rank is waited for that does not get on, and than others are left to end
    with pytest.raises(ProcessRaisedException, match="Interrupted: stopped by"):
        launch_with_a_slow_disk(cfg, 12, "2 SIGTERM 1")
    assert final(cfg)["step"] == 3  # one rank learns of it a step later
    with pytest.raises(ProcessRaisedException, match="can't be written"):
        launch_with_a_slow_disk(cfg, -0.1, "5 SIGTERM 1")
    assert final(cfg)["step"] == 3


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, 4])
def test_more_ranks_end_with_the_same_bits(make_cfg, ranks):
    check_ranks(make_cfg, ranks)
