"""What a run writes for people and for programs."""

import contextlib
import json
import logging
import os
import resource
import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from vmp.utils.logging import RunLog, readable, setup_logging


def test_a_record_is_one_json_line_and_its_numbers_are_scalars(tmp_path):
    log = RunLog(tmp_path, enabled=True, tensorboard=True)
    log.write("train", 7, {"loss": 1.5, "prompt": {"0": {"m": 0.25}}, "note": "text"})
    log.write("train", 8, {"loss": float("nan")})
    log.close()
    first, second = (json.loads(line) for line in (tmp_path / "log.jsonl").open())
    assert first["step"] == 7
    assert first["prompt"]["0"]["m"] == 0.25
    assert second["loss"] is None  # strict JSON has no NaN
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/prompt/0/m"}
    assert events.Scalars("train/prompt/0/m")[0].value == 0.25


def test_without_a_board_that_opens_the_records_are_still_written(tmp_path, caplog):
    (tmp_path / "tensorboard").touch()
    log = RunLog(tmp_path, enabled=True, tensorboard=True)
    log.write("train", 1, {"loss": 1.0})
    log.close()
    assert json.loads((tmp_path / "log.jsonl").read_text())["step"] == 1
    assert caplog.text.count("TensorBoard gets no more of this run") == 1


def test_other_ranks_write_nothing(tmp_path):
    log = RunLog(tmp_path, enabled=False, tensorboard=True)
    log.write("train", 1, {"loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())


def test_a_second_run_appends(tmp_path):
    for step in (1, 2):
        log = RunLog(tmp_path, enabled=True, tensorboard=False, step=step - 1)
        log.write("train", step, {"loss": 1.0})
        log.close()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_resumed_run_takes_out_what_a_kill_left_beyond_its_checkpoint(tmp_path):
    log = RunLog(tmp_path, enabled=True, tensorboard=False)
    for step in (1, 2, 3):
        log.write("train", step, {"loss": float(step)})
    log.close()
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text() + '{"kind": "train", "step": 2, "lo')  # cut off by the kill
    log = RunLog(tmp_path, enabled=True, tensorboard=False, step=2)
    log.write("train", 3, {"loss": 30.0})
    log.close()
    assert [json.loads(line)["loss"] for line in path.open()] == [1.0, 2.0, 30.0]


def test_what_will_be_recorded_again_at_the_very_step_is_taken_out_too(tmp_path):
    log = RunLog(tmp_path, enabled=True, tensorboard=False)
    for kind in ("train", "val"):
        log.write(kind, 4, {"loss": 1.0})
    log.close()
    RunLog(tmp_path, enabled=True, tensorboard=False, step=4, again=("val",)).close()
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["kind"] == "train"


@contextlib.contextmanager
def files_limited_to(size):
    """Have a write that makes a file longer fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lines_that_find_no_room_wait_for_it_and_are_told_once(tmp_path, caplog):
    log = RunLog(tmp_path, enabled=True, tensorboard=False)
    log.write("train", 1, {"loss": 1.0})
    with files_limited_to((tmp_path / "log.jsonl").stat().st_size + 5):  # the next is cut off
        for step in (2, 3):
            log.write("train", step, {"loss": 1.0})
    assert caplog.text.count("can't be written") == 1
    log.write("train", 4, {"loss": 1.0})
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()] == [1, 2, 3, 4]


@pytest.fixture
def _reset():
    yield
    logger = logging.getLogger("vmp")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True


@pytest.mark.usefixtures("_reset")
def test_a_full_disk_does_not_make_every_line_a_traceback(tmp_path, capsys):
    setup_logging(tmp_path)
    with files_limited_to(1):
        for _ in range(3):
            logging.getLogger("vmp.somewhere").debug("into the file alone")
    assert capsys.readouterr().err.count("log.txt can't be written") == 1


@pytest.mark.usefixtures("_reset")
def test_a_process_that_dies_over_a_line_does_not_hold_up_the_others(tmp_path):
    setup_logging(tmp_path)
    logging.getLogger("vmp").warning("one before, as what is shared is made by the first")
    child = os.fork()
    if not child:
        with tqdm.external_write_mode():
            os._exit(0)
    os.waitpid(child, 0)
    line = threading.Thread(target=logging.getLogger("vmp").warning, args=("on",), daemon=True)
    line.start()
    line.join(10)
    assert not line.is_alive()


@pytest.mark.usefixtures("_reset")
def test_a_log_that_cannot_be_written_is_told_and_leaves_the_old_one(tmp_path):
    setup_logging(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        setup_logging(tmp_path / "file")
    (tmp_path / "log.rank1.txt").mkdir()
    with pytest.raises(ValueError, match=r"can't be made or written \(Is a directory\)"):
        setup_logging(tmp_path, rank=1)
    logging.getLogger("vmp.somewhere").info("still here")
    assert "still here" in (tmp_path / "log.txt").read_text()


@pytest.mark.usefixtures("_reset")
def test_lines_go_to_the_file_of_the_rank_once(tmp_path):
    for _ in range(2):
        setup_logging(tmp_path, rank=1)
    logging.getLogger("vmp.somewhere").info("hello")
    assert (tmp_path / "log.rank1.txt").read_text().count("hello") == 1


def test_readable_is_one_short_line():
    assert readable({"loss": 1.23456, "prompt": {"0": {"a": 9.0}}}) == "loss 1.235  prompt/0/a 9"
