"""Numbers and pictures on boards, and that no board can hold up or end a run."""

import contextlib
import sys
import threading
import time
from importlib.util import find_spec

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.utils.fake_wandb import install_fake_wandb
from vmp.utils import boards
from vmp.utils.boards import SENDER, Boards, WeightsAndBiases, check_wandb, open_boards
from vmp.utils.signals import Interrupted


class Kept:
    """A board that keeps what it is shown, or fails."""

    def __init__(self, error=None):
        self.shown, self.error = [], error

    def scalars(self, step, values):
        if self.error:
            raise self.error
        self.shown.append((step, values))

    def picture(self, step, name, picture):
        self.shown.append((step, name))

    def close(self):
        self.shown.append("closed")


def test_numbers_of_nested_values_are_shown_under_their_kind():
    board = Kept()
    Boards({"one": board}).write("val", 3, {"top1": 50, "prompt": {"0": {"a": 9.5}}, "note": "x"})
    assert board.shown == [(3, {"val/top1": 50.0, "val/prompt/0/a": 9.5})]


def test_a_board_that_fails_is_told_of_once_and_the_others_go_on(caplog):
    good, bad = Kept(), Kept(OSError("no room"))
    both = Boards({"bad": bad, "good": good})
    for step in (1, 2):
        both.write("train", step, {"loss": 1.0})
    both.draw(2, lambda: {"picture": np.zeros((2, 2, 3), np.uint8)})
    both.close()
    assert caplog.text.count("bad gets no more of this run: no room") == 1
    assert good.shown == [
        (1, {"train/loss": 1.0}),
        (2, {"train/loss": 1.0}),
        (2, "picture"),
        "closed",
    ]


def test_tensorboard_has_hyper_parameters_and_metrics_in_one_folder(tmp_path):
    hparams = {
        "MODEL.NAME": "x3d",
        "DATA.STD": [1, 2],
        "PROMPT.ENABLE": True,
        "SOLVER.BASE_LR": 0.1,
    }
    shown = open_boards(tmp_path, tensorboard=True, hparams=hparams)
    shown.write("test", 7, {"top1": 50.0})
    shown.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert path.is_file()
    events = EventAccumulator(str(path)).Reload()
    assert events.Scalars("test/top1")[0].step == 7
    (content,) = events.PluginTagToContent("hparams").values()
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["SOLVER.BASE_LR"].number_value == 0.1
    assert found["MODEL.NAME"].string_value == "x3d"
    assert found["PROMPT.ENABLE"].string_value == "True"
    assert found["DATA.STD"].string_value == "[1, 2]"


def fail(*args, **kwargs):
    raise RuntimeError("no events today")


@pytest.mark.parametrize(
    ("broken", "told"), [("a file", "File exists"), ("the writer", "no events today")]
)
def test_a_tensorboard_that_cannot_be_opened_is_told_and_left_out(
    wandb, tmp_path, caplog, monkeypatch, broken, told
):
    if broken == "a file":
        (tmp_path / "tensorboard").touch()
    else:
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", fail)
    shown = open_boards(tmp_path, tensorboard=True, wandb="motion")
    shown.write("train", 4, {"loss": 2.0})
    shown.close()
    assert caplog.text.count("TensorBoard gets no more of this run: ") == 1
    assert told in caplog.text
    assert wandb.runs[0].logged == [{"train/loss": 2.0, "step": 4}]


def test_wandb_whose_id_cannot_be_kept_is_told_and_left_out(wandb, tmp_path, caplog):
    (tmp_path / "wandb_id.txt").mkdir()
    shown = open_boards(tmp_path, tensorboard=True, wandb="motion")
    shown.write("train", 4, {"loss": 2.0})
    shown.close()
    assert "Weights & Biases gets no more of this run: " in caplog.text
    assert not wandb.runs
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Scalars("train/loss")[0].step == 4


@pytest.fixture
def wandb(monkeypatch):
    return install_fake_wandb(monkeypatch)


def test_wandb_gets_config_numbers_and_pictures_at_their_steps(wandb, tmp_path):
    shown = open_boards(tmp_path, tensorboard=False, wandb="motion", config={"SOLVER": {"LR": 1}})
    shown.write("train", 4, {"loss": 2.0})
    shown.draw(4, lambda: {"val/confusion": "pixels"})
    shown.close()
    (run,) = wandb.runs
    assert run.facts["project"] == "motion"
    assert run.facts["config"] == {"SOLVER": {"LR": 1}}
    assert run.facts["dir"] == tmp_path
    assert run.logged == [
        {"train/loss": 2.0, "step": 4},
        {"val/confusion": ("image", "pixels"), "step": 4},
    ]
    assert ("*", {"step_metric": "step"}) in run.defined
    assert run.ended == 0


def test_a_resumed_run_goes_on_in_the_same_page(wandb, tmp_path):
    for _ in range(2):
        WeightsAndBiases(tmp_path, "motion", {}).close()
    one, two = wandb.runs
    assert one.facts["id"] == two.facts["id"] == (tmp_path / "wandb_id.txt").read_text().strip()
    assert two.facts["resume"] == "allow"


def test_a_run_that_an_error_ends_is_shown_as_failed(wandb, tmp_path):
    board = WeightsAndBiases(tmp_path, "motion", {})
    try:
        raise RuntimeError
    except RuntimeError:
        board.close()
    assert wandb.runs[0].ended == 1


def test_a_run_that_was_asked_to_stop_is_not_shown_as_failed(wandb, tmp_path):
    with (
        contextlib.suppress(Interrupted),
        contextlib.closing(WeightsAndBiases(tmp_path, "motion", {})),
    ):
        raise Interrupted
    assert wandb.runs[0].ended == 0


def wait_for_the_sender():
    for thread in threading.enumerate():
        if thread.name == SENDER:
            thread.join(30)


def test_without_a_network_it_is_kept_for_later(wandb, tmp_path, caplog):
    def refuse(facts):
        if facts.get("mode") != "offline":
            raise ConnectionError("nobody there")

    wandb.refuse = refuse
    board = WeightsAndBiases(tmp_path, "motion", {})
    board.scalars(1, {"train/loss": 2.0})
    board.close()
    assert wandb.runs[0].logged == [{"train/loss": 2.0, "step": 1}]
    assert "can't be reached (nobody there)" in caplog.text
    assert "wandb sync" in caplog.text


def test_a_network_that_never_answers_holds_up_nothing(wandb, tmp_path, caplog):
    answer = threading.Event()
    wandb.refuse = lambda facts: answer.wait(30)
    board = WeightsAndBiases(tmp_path, "motion", {}, finish_seconds=0.2)
    shown, began = Boards({"Weights & Biases": board}), time.monotonic()
    for step in range(100):
        shown.write("train", step, {"loss": 2.0})
    assert time.monotonic() - began < 0.2
    shown.close()
    assert time.monotonic() - began < 5
    assert "not all was sent" in caplog.text
    answer.set()
    wait_for_the_sender()


def test_a_second_run_is_not_begun_while_the_first_is_still_sent(wandb, tmp_path, caplog):
    answer = threading.Event()
    wandb.refuse = lambda facts: answer.wait(30)
    training = WeightsAndBiases(tmp_path, "motion", {}, finish_seconds=0.1)
    Boards({"Weights & Biases": training}).close()
    caplog.clear()
    for_test = open_boards(tmp_path, tensorboard=False, wandb="motion")
    answer.set()
    for_test.write("test", 1, {"top1": 50.0})
    for_test.close()
    wait_for_the_sender()
    assert len(wandb.runs) == 1
    assert caplog.text.count("Weights & Biases gets no more of this run: what came before") == 1
    WeightsAndBiases(tmp_path, "motion", {}).close()
    assert len(wandb.runs) == 2


def test_what_is_missing_is_told_in_a_line_before(wandb, monkeypatch):
    def nobody(**options):
        raise ValueError("no key")

    wandb.login = nobody
    assert check_wandb("") == ""
    told = check_wandb("motion")
    assert "wandb login" in told
    assert "no key" in told
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert check_wandb("motion") == ""
    monkeypatch.setattr(boards, "find_spec", lambda name: None)
    told = check_wandb("motion")
    assert "pip install 'vmp[wandb]'" in told
    assert "\n" not in told


def test_a_plain_folder_of_its_name_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert find_spec("wandb") is not None
    assert "pip install 'vmp[wandb]'" in check_wandb("motion")


def test_the_package_itself_keeps_a_run_that_is_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        board = WeightsAndBiases(tmp_path, "motion", {"A": {"B": step}}, finish_seconds=120)
        board.scalars(step, {"train/loss": 2.0})
        board.picture(step, "picture", np.zeros((8, 8, 3), np.uint8))
        board.close()
        time.sleep(1.1)  # its folders are named by the second
    kept = (tmp_path / "wandb_id.txt").read_text().strip()
    runs = list((tmp_path / "wandb").glob(f"offline-run-*-{kept}"))
    assert len(runs) == 2
    assert all(list(run.glob("run-*.wandb")) and list(run.rglob("*.png")) for run in runs)
