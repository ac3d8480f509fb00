"""run_net.py --dry-run: what it tells is so, what is doubtful is named, and nothing is written."""

import io
import math
import os
import sys
from types import SimpleNamespace

import preflight
import preflight_doubts as doubts
import preflight_look as look
import pytest
import run_net
import torch
import yaml
from preflight_disk import build_bytes
from torch import nn

from tests.conftest import ROOT
from tests.engine.conftest import BASE, MODELS
from vmp.config import load_cfg
from vmp.data import VideoRecord
from vmp.engine.build import build_learner
from vmp.models import build_model
from vmp.utils import boards
from vmp.utils.cli import run_cli

pytestmark = pytest.mark.usefixtures("_one_thread")

TINY = BASE | MODELS["x3d"] | {"X3D.DEPTH_FACTOR": 0.2, "X3D.DIM_C5": 64, "TENSORBOARD": True}
SURE = {"SOLVER.MAX_EPOCH": 30, "PROMPT.SIGMOID.M": 1.0, "PROMPT.SIGMOID.N": -1.0}


def cfg_of(**changes):
    values = TINY | SURE | {"OUTPUT_DIR": "run"}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_cfg(None, [str(word) for pair in values.items() for word in pair])


# Nothing is doubtful about this one.
GOOD = doubts.Seen(
    ranks=1,
    cores=4,
    bfloat16=True,
    train=tuple(range(8)) * 200,
    test=tuple(range(8)) * 20,
    leaks=0,
    excluded={},
    class_names=("leap", "run", "bright", "upright", "copyright", "cleft", "sit", "stand"),
    batches=200,
    frames=60,
    fps=30.0,
    short_side=240,
    span=40,
    still={"0": 0.994},
    norms=True,
    task_loss=2.1,
    variation=0.1,
    memory=2**30,
    memory_there=2**33,
    disk=10**8,
    disk_free=10**10,
    references={},
    other_run="",
    warnings=(),
)
FLIP, STEPS = {"DATA__RANDOM_FLIP": True}, "steps_with_relative_lrs"
# doubt, changes of the config, changes of what is seen, what it says
CASES = [
    ("rate_not_scaled", {}, {"references": {"r": cfg_of(TRAIN__BATCH_SIZE=32)}}, "(in proportion"),
    ("large_rate", {"SOLVER__BASE_LR": 2.0}, {}, "with sgd more than 0.5"),
    ("large_rate", {"SOLVER__BASE_LR": 0.1, "SOLVER__OPTIMIZING_METHOD": "adamw"}, {}, "adamw"),
    ("large_rate", {"SOLVER__BASE_LR": 0.0}, {}, "nothing is learned"),
    ("long_warmup", {"SOLVER__WARMUP_EPOCHS": 20.0}, {}, "20 of 30 epochs"),
    ("steps_never_reached", {"SOLVER__LR_POLICY": STEPS, "SOLVER__STEPS": [0, 11, 30]}, {}, "30"),
    ("few_updates", {"SOLVER__MAX_EPOCH": 2}, {"batches": 20}, "40 updates in 2 epochs"),
    ("slow_average", {"SOLVER__EMA_DECAY": 0.9999}, {}, "55% of the average"),
    ("batch_drops_clips", {"TRAIN__BATCH_SIZE": 900}, {"batches": 1}, "700 of 1600"),
    ("small_batch_for_norms", {}, {"ranks": 4}, "of 2 clip(s) at a time; raise TRAIN.BATCH_SIZE"),
    ("from_scratch", {}, {"train": tuple(range(8)) * 100, "batches": 100}, "on 800 clips"),
    (
        "weights_taken_away",
        {},
        {"references": {"r": cfg_of(TRAIN__INIT_FROM="x3d.pyth")}},
        "r starts from x3d.pyth",
    ),
    ("another_run_there", {}, {"other_run": "holds a run of another config: A"}, "be refused"),
    ("penalty_on_nothing", {"PROMPT__POWER_NORM": "identity"}, {"still": {}}, "V of the identity"),
    ("penalty_on_nothing", {"PROMPT__ENABLE": False}, {"still": {}}, "PROMPT.ENABLE is False"),
    ("penalty_leads", {"PROMPT__REDUCTION": "frobenius"}, {"variation": 90.0}, "sums V over"),
    (
        "dark_start",
        {"PROMPT__SIGMOID__M": None, "PROMPT__SIGMOID__N": None},
        {"still": {"0": 0.0039}},
        "0.0039 (pathway 0), as RNG_SEED 0 draws them",
    ),
    ("dark_start", {"PROMPT__SIGMOID__N": 1.0}, {"still": {"0": 0.004}}, "with these M and N"),
    ("frozen_draw", {"PROMPT__SIGMOID__N": None, "PROMPT__LR_MULT": 0.0}, {}, "do not learn"),
    ("decayed_prompt", {"PROMPT__WEIGHT_DECAY": 1e-4}, {}, "pulls the slope"),
    ("short_videos", {}, {"frames": 30}, "over 40 frames, the median video has 30"),
    ("repeated_frames", {"DATA__TARGET_FPS": 30.0}, {"fps": 10.0}, "0.67 source frames apart"),
    ("enlarged_frames", {}, {"short_side": 20}, "of 20 pixels are enlarged to 32"),
    ("mirrored_directions", FLIP, {"class_names": ("turn_left",) * 8}, "'turn_left'"),
    ("mirrored_directions", FLIP, {"class_names": ("Rotate Clockwise",) * 8}, "Clockwise"),
    ("empty_classes", {}, {"train": tuple(range(7)) * 230}, "1 of 8 classes have no train video"),
    ("empty_classes", {}, {"test": tuple(range(2)) * 50}, "6 of 8 classes have no test video"),
    ("uneven_classes", {}, {"train": (*range(8), *[0] * 1592)}, "1 to 1593 training videos"),
    ("leaks", {}, {"leaks": 3}, "3 test records are of frames that are trained on"),
    ("lost_test_records", {}, {"excluded": {"absent": 2}}, "not evaluated: 2 absent"),
    ("nothing_measured", {"TEST__ENABLE": False}, {}, "nothing tells how good"),
    ("rare_validation", {"TRAIN__EVAL_PERIOD": 50}, {}, "only the last is judged"),
    ("oversized_test_batch", {"TEST__BATCH_SIZE": 500}, {}, "there are 320 views"),
    ("no_workers", {"NUM_GPUS": 1}, {}, "the GPU waits"),
    ("too_many_workers", {"DATA_LOADER__NUM_WORKERS": 8}, {}, "8 workers"),
    ("slow_precision", {"TRAIN__PRECISION": "bfloat16"}, {"bfloat16": False}, "only imitates"),
    ("slow_precision", {"TRAIN__PRECISION": "float16"}, {}, "float16, which"),
    ("small_memory", {}, {"memory": 2**33}, "some 8.0 GiB, here it has 8.0"),
    ("small_disk", {}, {"disk": 2 * 10**10}, "take 20.00 GB, 10.00 GB are free"),
]


def test_a_good_recipe_has_no_doubtful_setting():
    assert doubts.find_doubts(cfg_of(), GOOD) == []


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"DATA__RANDOM_FLIP": True}, {}),  # "bright" and "cleft" are no directions
        ({"PROMPT__POWER_NORM": "gamma"}, {"still": {}}),
        ({"PROMPT__ENABLE": False, "PROMPT__PENALTY": 0.0}, {"still": {}}),
        ({"TRAIN__PRECISION": "bfloat16"}, {}),
        ({"SOLVER__EMA_DECAY": 0.999}, {}),
        ({"BN__SYNC": True, "DATA_LOADER__NUM_WORKERS": 1}, {"ranks": 4}),
        ({}, {"ranks": 4, "norms": False}),
        ({"TRAIN__INIT_FROM": "x3d.pyth"}, {"train": tuple(range(8)) * 200}),
        ({"SOLVER__BASE_LR": 0.04}, {"references": {"r": cfg_of(TRAIN__BATCH_SIZE=2)}}),
        ({}, {"references": {"r": cfg_of()}}),
        ({"TRAIN__EVAL_PERIOD": 5, "TEST__ENABLE": False}, {}),
        ({"DATA__TARGET_FPS": 30.0}, {"fps": 29.97, "span": 20}),
        ({}, {"memory": 2**40, "memory_there": 0}),  # of GPUs that are elsewhere
    ],
)
def test_other_good_recipes_have_none_either(changes, seen):
    assert doubts.find_doubts(cfg_of(**changes), GOOD._replace(**seen)) == []


@pytest.mark.parametrize(("name", "changes", "seen", "told"), CASES)
def test_a_doubtful_setting_is_named(name, changes, seen, told):
    cfg, there = cfg_of(**changes), GOOD._replace(**seen)
    line = getattr(doubts, name)(cfg, there)
    assert told in line
    assert line in doubts.find_doubts(cfg, there)
    assert "\n" not in line


def test_every_doubt_has_a_case():
    assert {doubt.__name__ for doubt in doubts.DOUBTS} == {name for name, *_ in CASES}


def test_what_the_program_warns_of_is_a_doubt():
    assert doubts.find_doubts(cfg_of(), GOOD._replace(warnings=("mind",))) == ["mind"]


# ---------------------------------------------------------------- the whole


@pytest.fixture
def recipe(motionshapes, tmp_path):
    """A recipe on a data set large enough to raise no doubt: its videos are listed many times."""
    for part, times in (("train", 40), ("test", 1)):
        videos = sorted((motionshapes / part).rglob("*.mp4"))
        lines = [f"{video} {number % 8}\n" for number, video in enumerate(videos)]
        (tmp_path / f"{part}.csv").write_text("".join(lines * times))
    values = TINY | SURE | {"TRAIN.DATASET": "csv", "DATA.PATH_TO_DATA_DIR": str(tmp_path)}
    values |= {"OUTPUT_DIR": str(tmp_path / "run"), "DATA.SAMPLING_RATE": 1}
    sections: dict[str, object] = {}
    for name, value in values.items():
        *path, leaf = name.split(".")
        node = sections
        for section in path:
            node = node.setdefault(section, {})
        node[leaf] = value
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.fixture
def tell(recipe, monkeypatch, capsys):
    """Return a function: overrides -> (exit status, what is printed)."""

    def run(*words):
        argv = ["run_net.py", "--cfg", str(recipe), *map(str, words)]
        argv += [] if "--dry-run" in words else ["--dry-run"]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as caught:
            run_cli(run_net.main)
        return caught.value.code, capsys.readouterr().out

    return run


def line_of(text, topic):
    return next(line for line in text.splitlines() if line.startswith(topic))


def test_a_dry_run_tells_what_a_run_takes_and_writes_nothing(tell, recipe):
    before = sorted(recipe.parent.rglob("*"))
    status, text = tell("TRAIN.GLOBAL_BATCH_SIZE", 16, "SOLVER.BASE_LR", 0.02)
    assert status == 0
    assert sorted(recipe.parent.rglob("*")) == before
    assert "1,280 training and 16 test records, 8 classes" in line_of(text, "data")
    assert "8 clips x 1 process x 2 passes = 16 clips an update" in line_of(text, "batch")
    assert line_of(text, "updates").endswith("80 an epoch, 2,400 in 30 epochs")
    assert "0.02 at the start, 0.01 at 15, 0 at the end" in line_of(text, "rate")
    assert "█" in text
    assert "5 sampled by the loader, 1 apart" in line_of(text, "frames")
    assert "5 into the prompt, 4 to the backbone" in text
    assert "x 2 x 1 views" in line_of(text, "cost")
    assert "random, seed 0" in line_of(text, "weights")
    assert "f0 0.994" in line_of(text, "prompt")
    assert f"guessing gives {math.log(8):.3g}" in line_of(text, "loss")
    assert "MB of checkpoints" in line_of(text, "disk")
    assert "No doubtful setting." in text


def test_without_a_prompt_the_loader_samples_what_the_backbone_sees(tell):
    _, text = tell("PROMPT.ENABLE", False, "PROMPT.PENALTY", 0.0)
    assert "4 sampled by the loader" in line_of(text, "frames")
    assert "4 to the backbone, no prompt" in text
    assert "prompt  " not in text


def test_doubts_of_the_overrides_are_numbered(tell):
    _, text = tell("--dry-run", "TRAIN.BATCH_SIZE", 32, "PROMPT.POWER_NORM", "identity")
    assert "2 doubtful settings:" in text
    assert "  1. an update takes 32 clips, 8 in" in text
    assert "  2. PROMPT.PENALTY is 0.5, but V of the identity is 0" in text


def test_gpus_that_this_machine_has_not_are_told_and_all_is_looked_at_on_the_cpu(tell, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    words = ("NUM_GPUS", 4, "DATA_LOADER.NUM_WORKERS", 2, "TRAIN.PRECISION", "float16")
    status, text = tell(*words, "MODEL.COMPILE", True, "PROMPT.KERNEL", "triton")
    assert status == 0
    assert "4 processes, a GPU each; this machine has none" in line_of(text, "run")
    assert "2 clips x 4 processes x 1 pass = 8 clips" in line_of(text, "batch")
    assert "batch norms take their statistics of 2 clip(s)" in text


def test_weights_that_are_not_there_fail_the_look_but_do_not_end_it(tell, tmp_path):
    status, text = tell("TRAIN.INIT_FROM", tmp_path / "no.pyth")
    assert status == 1
    assert "1 reason why the run would fail:" in text
    assert "no.pyth" in text.splitlines()[-1]
    assert "No doubtful setting." in text


def test_what_initial_weights_match_is_told(tell, recipe, tmp_path):
    model = build_model(load_cfg(recipe, ["MODEL.NUM_CLASSES", "5", "PROMPT.ENABLE", "False"]))
    torch.save({"model_state": model.state_dict()}, tmp_path / "weights.pth")
    status, text = tell("TRAIN.INIT_FROM", tmp_path / "weights.pth")
    assert status == 0
    assert "entries set from" in line_of(text, "weights")
    assert "dropped (2)" in text  # the head's weight and bias


def test_a_run_that_is_there_is_gone_on_with_or_refused(tell, recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(look, "list_checkpoints", lambda folder: [tmp_path / "epoch_00003.pth"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(load_cfg(recipe).dump())
    _, text = tell()
    assert "goes on from" in line_of(text, "weights")
    assert "No doubtful setting." in text
    _, text = tell("RNG_SEED", 7)
    assert "holds a run of another config: RNG_SEED (0 there, 7 here)" in text
    _, text = tell("TRAIN.AUTO_RESUME", False)
    assert "holds a run, and TRAIN.AUTO_RESUME is False" in text


def test_records_that_are_left_out_are_a_doubt(tell, recipe, tmp_path):
    first = (tmp_path / "test.csv").read_text().split()[0]
    trained = (tmp_path / "train.csv").read_text().split()[0]
    (tmp_path / "out.tsv").write_text(f"{first}\tbad\n{trained}\tbad\n")
    _, text = tell("DATA.QUARANTINE", tmp_path / "out.tsv")
    assert "training on 1240 of 1280 official records" in text
    assert "test records that are not evaluated: 1 quarantined" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DATA.PATH_TO_DATA_DIR", "/no/where"], "no list of the train videos"),
        (["MODEL.NUM_CLASSES", "5"], "class 5 is not in 0 to 4"),
        (["TRAIN.BATCH_SIZE", "5000"], "more than the 1280 training videos"),
        (["TRAIN.ENABLE", "False"], "--dry-run looks at a training"),
        (["TRAIN.BATCHSIZE", "5"], "did you mean TRAIN.BATCH_SIZE?"),
    ],
)
def test_what_ends_a_run_at_once_is_one_line(words, message, tell):
    status, _ = tell(*words)
    assert message in status
    assert len(status.splitlines()) == 1
    assert "--debug" not in status


def test_a_test_crop_that_the_frames_do_not_have_is_found_before_the_test(tell, monkeypatch):
    status, _ = tell("DATA.TEST_CROP_SIZE", 32, "DATA.SHORT_CLIP", "error", "DATA.SAMPLING_RATE", 9)
    assert "DATA.SHORT_CLIP" in status


def test_a_recipe_is_compared_with_its_base_and_its_file(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("MODEL: {NAME: x3d}\nTRAIN: {BATCH_SIZE: 64}\n")
    mine = tmp_path / "mine.yaml"
    mine.write_text("_BASE_: base.yaml\nTRAIN: {BATCH_SIZE: 32}\n")
    found = preflight.references(str(mine), ["TRAIN.BATCH_SIZE", "8"])
    assert {cfg.TRAIN.BATCH_SIZE for cfg in found.values()} == {32, 64}
    assert preflight.references(str(base), []) == {}


def test_a_base_that_is_no_recipe_is_left_out():
    path = ROOT / "configs" / "UTInteraction" / "X3D_S.yaml"
    assert [cfg.MODEL.NUM_CLASSES for cfg in preflight.references(str(path), []).values()] == [6]


def test_a_recipe_of_ours_is_compared_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = preflight.references("configs/UTInteraction/X3D_S_VMP.yaml", ["RNG_SEED", "1"])
    assert [cfg.PROMPT.ENABLE for cfg in found.values()] == [True, False]  # itself, its base


def test_a_recipe_of_ones_own_is_compared_with_ours_that_it_builds_on(tmp_path):
    (tmp_path / "mine.yaml").write_text("_BASE_: configs/MotionShapes/X3D_XS.yaml\n")
    (found,) = preflight.references(str(tmp_path / "mine.yaml"), []).values()
    assert found.MODEL.NUM_CLASSES == 8


def test_a_dry_run_takes_a_recipe_of_ours_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "build_look", lambda *args: preflight.Looked([], [], []))
    assert preflight.dry_run("configs/MotionShapes/X3D_XS_VMP.yaml", ["RNG_SEED", "1"]) == 0
    assert capsys.readouterr().err.splitlines() == [preflight.PROGRESS]  # no warning again


def test_what_can_not_be_read_is_no_reference(tmp_path):
    assert preflight.references(str(tmp_path / "gone.yaml"), ["RNG_SEED", "1"]) == {}


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)])  # the latter: a folder
def test_a_board_whose_package_is_not_there_fails_the_look(tell, monkeypatch, spec):
    for module in (preflight, boards):
        monkeypatch.setattr(module, "find_spec", lambda name: spec)
    status, text = tell("WANDB.PROJECT", "mine")
    assert status == 1
    assert "pip install 'vmp[wandb]'" in text.splitlines()[-1]


def test_a_board_that_is_there_is_not_asked(tell, monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: SimpleNamespace(origin="wandb.py"))
    monkeypatch.setattr(preflight, "check_wandb", lambda project: pytest.fail("it was asked"))
    assert tell("WANDB.PROJECT", "mine")[0] == 0


@pytest.mark.parametrize("place", ["file", "file/below/it", "link"])
def test_an_output_folder_that_is_none_fails_the_look(tell, tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    status, text = tell("OUTPUT_DIR", tmp_path / place, "TRAIN.INIT_FROM", "no.pyth")
    assert status == 1
    assert "2 reasons why the run would fail:" in text
    assert f"{tmp_path / place.split('/')[0]} is no folder" in text.splitlines()[-1]


def test_an_output_folder_that_can_not_be_made_fails_the_look(tell, tmp_path, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: allowed(path, mode) and path != tmp_path
    )  # root may write anywhere
    status, text = tell("OUTPUT_DIR", tmp_path / "not" / "there")
    assert status == 1
    assert f"the folder {tmp_path} is not writable" in text.splitlines()[-1]


# ---------------------------------------------------------------- the numbers


def test_what_is_kept_for_the_backward_pass_is_counted_once_without_the_weights():
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    clip = torch.rand(4, 10)
    with look.kept_for_backward(net) as kept:
        net(clip).sum().backward()
    assert sum(kept.values()) == 4 * (4 * 10 + 4 * 20)  # the input, and what comes out of the ReLU


def test_the_parts_of_the_memory_are_those_of_the_learner(motionshapes):
    values = {"DATA__PATH_TO_DATA_DIR": motionshapes, "SOLVER__OPTIMIZING_METHOD": "adamw"}
    cfg = cfg_of(**values, SOLVER__EMA_DECAY=0.9)
    here = look.build_cpu_config(cfg)
    learner = build_learner(here)
    batch, seconds = look.build_first_batch(here)
    stepped = look.step_once(learner, batch, seconds)
    memory = look.build_memory(cfg, learner, stepped, batch)
    numbers = sum(parameter.numel() for parameter in learner.model.parameters())
    assert memory.gradients == 4 * numbers
    steps = 4 * len(list(learner.model.parameters()))  # AdamW counts them for each
    assert memory.optimizer == 2 * 4 * numbers + steps
    assert memory.average == memory.weights >= memory.gradients
    assert memory.activations == 4 * stepped.saved  # 8 clips, of which 2 were looked at
    assert memory.clips == 8 * 3 * 5 * 32 * 32
    assert build_bytes(cfg) >= 2 * memory.weights


def test_leaks_are_frames_on_both_sides():
    train = [VideoRecord("a.mp4", 0, 0, 50), VideoRecord("b.mp4", 0)]
    test = [VideoRecord("a.mp4", 0, 50, 90), VideoRecord("a.mp4", 0, 49, 90)]
    test += [VideoRecord("b.mp4", 0, 500), VideoRecord("c.mp4", 0)]
    assert look.count_leaks(train, test) == 2


def test_bars_grow_with_the_values():
    assert preflight.sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert preflight.sparkline([0.0, 0.0]) == "▁▁"


def test_a_terminal_without_bars_gets_something_else(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    preflight.say("rate ▁▅█")
    screen.flush()
    assert screen.buffer.getvalue() == b"rate ???\n"
