"""The study from scratch, what is kept of its runs, and the page that is made of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import reproduce
import reproduce_cells as cells
import reproduce_pictures as pictures
import reproduce_run
import reproduce_scratch as scratch
import reproduce_summary as summary
import reproduce_zoo as zoo
from reproduce_collect import Result

from tests.conftest import ROOT
from vmp import engine
from vmp.config import load_cfg
from vmp.metrics.student import student_t
from vmp.utils import signals

PLACES = cells.Places(Path("data"), Path("weights"), Path("out"))


def find(recipe, setting="", seed=0, dataset="UTInteraction", split="crossset"):
    found = cells.list_cells("scratch", datasets=[dataset], splits=[split], seeds=[seed])
    (cell,) = (each for each in found if (each.recipe, each.setting.name) == (recipe, setting))
    return cell


def result(top1, f0=None, official=60, **learned):
    prompts = {} if f0 is None else {"0": {"f0": f0, **learned}}
    return Result({"top1": top1, "top5": 90.0}, 60, official, "abc", "c", "w", "", prompts)


def kept(cell, made, loss=1.2):
    machine = {"torch": "2.15.0", "gpu": "none", "threads": "1"}
    learned = {"0": {"a": [10.0, 11.0], "f0": [0.2, 0.3]}}
    curve = summary.Curve([0.5, 1.0], [1.8, loss], [20.0, 50.0], learned)
    return summary.RunSummary(cell, made, curve, machine)


# ---------------------------------------------------------------- which runs


def test_it_runs_every_setting_on_both_data_sets_and_all_their_splits():
    found = cells.list_cells("scratch", seeds=range(5))
    assert {(cell.dataset, cell.split) for cell in found} == {
        ("MotionShapes", ""),
        ("UTInteraction", "crossset"),
        ("UTInteraction", "seq"),
    }
    # X3D: the baseline, identity, lambda 0 and 2.5, another start, a higher rate, four power
    # normalisations; SlowFast: the baseline, slow, fast, and both with three settings
    assert len(found) == 5 * 3 * (10 + 6)
    assert len({cell.name for cell in found}) == len(found)
    assert not any("//" in cell.name or cell.name.endswith("split-") for cell in found)


def test_a_prompt_differs_from_lambda_0_in_one_thing():
    plain = cells.build_cell_config(find("X3D_S_VMP", "lambda-0"), PLACES, []).PROMPT
    for name, keys in (
        ("identity", {"POWER_NORM"}),
        ("lambda-2.5", {"PENALTY"}),
        ("lr-10", {"LR_MULT"}),
        ("start-open", {"SIGMOID"}),
        ("gamma-learned", {"POWER_NORM", "GAMMA"}),  # learned, which is not its default
    ):
        other = cells.build_cell_config(find("X3D_S_VMP", name), PLACES, []).PROMPT
        assert {key for key in plain if other[key] != plain[key]} == keys


def test_it_starts_from_no_weights():
    for cell in cells.list_cells("scratch"):
        assert cells.build_cell_config(cell, PLACES, []).TRAIN.INIT_FROM == ""


def test_a_data_set_of_another_study_is_refused():
    with pytest.raises(ValueError, match="--dataset HMDB51 is none of scratch's: MotionShapes"):
        cells.list_cells("scratch", datasets=["HMDB51"])
    with pytest.raises(ValueError, match="--dataset MotionShapes is none of table1's"):
        cells.list_cells("table1", datasets=["MotionShapes"])


# ---------------------------------------------------------------- what came out


def test_gains_are_paired_by_seed():
    made = {
        find("X3D_S"): result(40.0),
        find("X3D_S", seed=1): result(50.0),
        find("X3D_S", seed=2): result(99.0),  # no prompted run of this seed
        find("X3D_S_VMP", "lambda-0"): result(43.0, 0.5),
        find("X3D_S_VMP", "lambda-0", seed=1): result(57.0, 0.5),
        find("X3D_S_VMP", "identity", seed=1): result(60.0, 1.0),
    }
    seen = cells.list_cells("scratch", datasets=["UTInteraction"], seeds=range(3))
    trials = scratch.make_trials(seen, made)[scratch.Group("UTInteraction", "crossset", "X3D_S")]
    by_name = {each.setting.name: each for each in trials}
    over = by_name["lambda-0"].over_baseline
    assert (over.n, over.mean, over.sd) == (2, 5.0, pytest.approx(8**0.5))
    assert over.high == pytest.approx(5.0 + student_t(1) * 8**0.5 / 2**0.5)
    assert by_name["lambda-0"].over_identity.mean == -3.0
    assert by_name["lambda-0"].over_identity.sd is None
    assert by_name[""].top1.n == 3
    assert by_name[""].over_baseline is None
    assert by_name[""].over_identity is None
    assert by_name["identity"].over_identity is None
    assert by_name["lambda-2.5"].top1 is None


def test_a_row_that_nobody_has_run_is_empty_and_a_table_without_runs_is_not_there():
    seen = cells.list_cells("scratch", datasets=["UTInteraction"])
    trials = scratch.make_trials(seen, {find("X3D_S"): result(40.0)})
    text = scratch.tables(trials)
    assert text.count("###") == 1
    assert "| `X3D_S` | as the recipe | 40.0 | 1 |  |" in text
    (empty,) = (line for line in text.splitlines() if "lambda-2.5" in line)
    assert set(empty.replace("`X3D_S_VMP` | lambda-2.5", "")) == {"|", " "}


def test_what_was_learned_is_told_with_the_spread_over_the_seeds():
    learned = {0: {"0": {"a": 9.9, "b": -0.5, "f0": 0.9}}, 1: {"0": {"a": 20, "b": 0.1, "f0": 0.1}}}
    assert scratch.learned_ranges(learned) == "a 9.9 to 20.0, b -0.50 to 0.10"
    assert scratch.stills(learned) == "0.900 0.100"


# ---------------------------------------------------------------- what is kept of a run


def test_summaries_come_back_as_they_were(tmp_path):
    made = [
        kept(find("X3D_S"), result(40.0)),
        kept(find("X3D_S_VMP", "start-open", seed=3), result(41.2, 0.99, a=9.9, b=-0.4)),
    ]
    summary.write_summaries(tmp_path / "scratch.json", made)
    assert summary.read_summaries(tmp_path / "scratch.json") == made


@pytest.mark.parametrize("text", ["", "{}", '[{"run": 1}]', "[1]"])
def test_a_file_that_holds_no_summaries_is_refused_in_a_line(tmp_path, text):
    path = tmp_path / "scratch.json"
    path.write_text(text)
    if text == "{}":  # no runs
        assert summary.read_summaries(path) == []
        return
    with pytest.raises(ValueError, match=r"scratch.json can't be read as summaries"):
        summary.read_summaries(path)


def test_of_a_step_that_was_logged_twice_the_last_counts_and_a_long_log_is_thinned(tmp_path):
    def line(step, loss):
        numbers = {"epoch": step / 100, "task_loss": loss, "top1": 10.0}
        prompt = {"0": {"m": 0.1, "a": 20.0, "collapsed": False}}
        return json.dumps({"kind": "train", "step": step, **numbers, "prompt": prompt})

    start = json.dumps({"kind": "start", "step": 0, "machine": {"torch": "2.15.0"}})
    lines = [start, *(line(step, 2.0) for step in range(1, 101)), line(100, 1.23456789)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    found, machine = summary.read_log(tmp_path / "log.jsonl")
    assert machine == {"torch": "2.15.0"}
    assert len(found.epoch) == summary.POINTS
    assert (found.epoch[0], found.epoch[-1], found.loss[-1]) == (0.01, 1.0, 1.2346)
    assert found.prompts["0"].keys() == {"m", "a"}
    assert len(found.prompts["0"]["a"]) == summary.POINTS


# ---------------------------------------------------------------- the page


def test_the_model_zoo_is_what_the_summaries_in_the_repository_give():
    """After a change of either: `python tools/reproduce.py zoo`."""
    text = zoo.PAGE.read_text(encoding="utf-8")
    assert zoo.fill(text, zoo.RUNS) == text
    names = [name for _, name, _ in zoo.PART.findall(text)]
    assert sorted(names) == sorted(zoo.PARTS)


def test_what_is_around_a_part_stays_and_a_part_nobody_makes_is_refused(tmp_path):
    text = "above\n<!-- runs: scratch -->\nold\n<!-- end -->\nbelow\n"
    summary.write_summaries(tmp_path / "scratch.json", [kept(find("X3D_S"), result(40.0))])
    filled = zoo.fill(text, tmp_path)
    assert filled.startswith("above\n<!-- runs: scratch -->\n### UT-Interaction")
    assert filled.endswith("\n<!-- end -->\nbelow\n")
    assert "old" not in filled
    assert "1 runs (UT-Interaction), every test video was evaluated" in filled
    with pytest.raises(ValueError, match="runs: nobody -->` is not known; there are: table1"):
        zoo.fill(text.replace("scratch", "nobody"), tmp_path)


def test_the_numbers_of_table_1_come_from_its_summaries(tmp_path):
    cell = cells.list_cells("table1", datasets=["FineGym"], rows=["X3D_M"])[0]
    summary.write_summaries(tmp_path / "table1.json", [kept(cell, result(83.25, official=8521))])
    filled = zoo.fill("<!-- runs: table1 -->\n<!-- end -->", tmp_path)
    (row,) = (line for line in filled.splitlines() if line.startswith("| X3D |"))
    assert row.split(" | ")[5] == "83.0 / 83.2"
    assert "some test videos were not evaluated" in filled


def test_every_setting_is_explained():
    named = {cell.setting.name for cell in cells.list_cells("scratch")}
    assert named == set(zoo.SETTINGS)


def test_the_pictures_show_each_group_and_each_gain():
    made = [kept(find("X3D_S", seed=seed), result(40.0)) for seed in range(2)]
    made += [
        kept(find("X3D_S_VMP", "lambda-0", seed=seed), result(44.0 + seed, 0.1), 1.0 + seed)
        for seed in range(2)
    ]
    (axes,) = pictures.draw_curves(made).axes
    assert [line.get_label() for line in axes.lines] == ["baseline", "lambda-0"]
    assert axes.lines[1].get_ydata()[-1] == pytest.approx(1.5)  # the mean of two seeds
    (axes,) = pictures.draw_starts(made).axes
    (points,) = axes.collections
    assert points.get_offsets().tolist() == [[0.1, 4.0], [0.1, 5.0]]


# ---------------------------------------------------------------- from the command to the table


def test_a_run_from_scratch_is_done_collected_and_kept(tmp_path, monkeypatch, capsys):
    prepare = [sys.executable, str(ROOT / "datasets" / "motionshapes" / "prepare.py")]
    sizes = ["--train", "16", "--test", "8"]
    subprocess.run([*prepare, "--out", str(tmp_path / "data/motionshapes"), *sizes], check=True)
    monkeypatch.setattr(reproduce_run, "_run", run_here)
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.chdir(tmp_path)
    words = ["scratch", "--dataset", "MotionShapes", "--rows", "X3D_XS", "--out", "out"]
    opts = ["SOLVER.MAX_EPOCH", "1", "LOG_PERIOD", "1", "TENSORBOARD", "False", "NUM_GPUS", "0"]
    opts += ["X3D.DIM_C5", "32", "DATA_LOADER.NUM_WORKERS", "0"]
    reproduce.main([*words, "--run", *opts])
    reproduce.main([*words, "--collect", *opts])
    assert "1 of 1 runs are in it" in capsys.readouterr().out
    (only,) = summary.read_summaries(tmp_path / "out" / "scratch_runs.json")
    assert only.cell.name == "MotionShapes/X3D_XS/seed-0"
    assert only.result.evaluated == 8
    assert only.curve.epoch == [0.0, 0.5]  # where each update begins
    assert only.machine["gpu"] == "none"


def run_here(command):
    engine.run(load_cfg(command[3], command[4:]))
    return 0
