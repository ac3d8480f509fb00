"""The bar of a training in a terminal, and of an evaluation."""

import io
import logging
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.engine.conftest import log_of
from tests.engine.test_step import train_without_waiting
from vmp.engine import progress
from vmp.engine.progress import TimeLeft, describe_pace, progress_bar
from vmp.utils.logging import setup_logging


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    """Return a function that puts a terminal at stderr; what logging was set up is undone."""

    def put():  # not before the test runs: until then stderr is pytest's
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    yield put
    logger = logging.getLogger("vmp")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True


def test_there_is_no_bar_outside_of_a_terminal_or_on_other_ranks(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress_bar(3, "epoch").disable
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(3, "epoch") as bar:
        assert not bar.disable
    monkeypatch.setattr(progress, "is_main", lambda: False)
    assert progress_bar(3, "epoch").disable


def test_in_a_terminal_tqdms_variables_decide_whether_it_shows(open_terminal, monkeypatch):
    open_terminal()
    given = {}
    monkeypatch.setattr(progress, "tqdm", lambda **options: given.update(options))
    progress_bar(3, "epoch")
    assert "disable" not in given  # the variables are tqdm's defaults: an argument would win


@pytest.mark.slow
def test_tqdms_variable_switches_it_off():
    code = "import sys; sys.stderr.isatty = lambda: True\n"
    code += "from vmp.engine.progress import progress_bar\nprint(progress_bar(3, 'x').disable)"
    env = os.environ | {"TQDM_DISABLE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True"]


def test_lines_stand_alone_above_the_bar_and_what_is_for_the_file_stays_there(
    open_terminal, tmp_path
):
    terminal = open_terminal()
    setup_logging(tmp_path)
    logger = logging.getLogger("vmp.somewhere")
    with progress_bar(3, "epoch 1/2") as bar:
        bar.update()
        logger.info("a line")
        logger.debug("a trace")
        bar.update()
    shown = terminal.getvalue()
    (line,) = [line for line in shown.split("\n") if "a line" in line]
    assert line.rpartition("\r")[2].split(" ", 1)[1] == "I a line"
    assert shown.index("a line") < shown.rindex("epoch 1/2")  # it is drawn again below
    assert "a trace" not in shown
    assert "a trace" in (tmp_path / "log.txt").read_text()


@pytest.mark.usefixtures("_one_thread")
def test_the_bar_tells_pace_loss_and_time_left_and_asks_the_device_for_nothing(
    open_terminal, make_cfg, monkeypatch
):
    terminal = open_terminal()
    cfg = make_cfg(SOLVER__MAX_EPOCH=1, TRAIN__EVAL_PERIOD=1)
    made = progress.tqdm
    monkeypatch.setattr(
        progress, "tqdm", lambda **given: made(**given | {"mininterval": 0, "ncols": 200})
    )
    monkeypatch.setattr(progress.tqdm, "format_interval", made.format_interval, raising=False)
    train_without_waiting(cfg, monkeypatch)
    shown = terminal.getvalue()
    loss = f"loss {log_of(cfg)[0]['loss']:.3g}"
    for told in ("epoch 1/1", "clips/s", "waits ", loss, "top1 ", "run left 00:", "evaluate"):
        assert told in shown


def test_pace_and_time_left_are_what_has_been_so_far(monkeypatch):
    assert describe_pace(30, 2.0, 0.5) == "15 clips/s, waits 25%"
    assert "0 clips/s" in describe_pace(0, 0.0, 0.0)
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    assert TimeLeft(step=50).describe(step=55, last=1855) == "1:00:00"
