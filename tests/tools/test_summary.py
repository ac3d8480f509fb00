"""Runs side by side: what differs, how far they are, what they reached."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from summary import main, parse_args
from summary_plot import Line, draw
from summary_read import find_state, read_runs
from summary_table import find_groups, find_settings, sort_runs

from tests.conftest import ROOT
from vmp.config import load_cfg
from vmp.engine.provenance import deciding_config, hash_config
from vmp.utils.cli import run_cli
from vmp.utils.logging import RunLog

PROMPT = ("PROMPT.ENABLE", "True")


def make_run(folder, *opts, epochs=2, top1=50.0, tested=True, a=10.0):
    """Write what a run of two epochs writes, as far as `epochs` and `tested` say."""
    words = ["TRAIN.DATASET", "motionshapes", "MODEL.NUM_CLASSES", "8", "SOLVER.MAX_EPOCH", "2"]
    words += ["SOLVER.WARMUP_EPOCHS", "0", *opts]
    cfg = load_cfg(None, words)
    text = cfg.dump()
    log = RunLog(folder, enabled=True, tensorboard=False)
    prompt = {"0": {"a": a, "b": -0.25, "f0": 0.9}} if cfg.PROMPT.ENABLE else {}
    log.write("start", 0, {"origin": "from scratch", "machine": {}})
    for step in range(2 * epochs):
        values = {"loss": 2.0 - step / 4, "epoch": step / 2, "prompt": prompt}
        log.write("train", step + 1, values)
        if step % 2:
            val = {"top1": top1 - 2 * (step == 3), "loss": 1.0, "epoch": (step + 1) // 2}
            log.write("val", step + 1, val)
    log.close()
    (folder / "config.yaml").write_text(text)
    if tested:
        results = {
            "metrics": {"top1": top1, "top5": 99.0, "mean_class_accuracy": 40.0, "loss": 1.5},
            "counts": {"videos": 16, "evaluated_videos": 15},
            "prompts": prompt,
            "config": deciding_config(text),
            "config_sha256": hash_config(text),
            "weights_sha256": "w" * 64,
            "trained": {"epoch": epochs, "step": 2 * epochs, "seed": cfg.RNG_SEED},
            "git_commit": "c" * 40,
        }
        (folder / "test_results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Return a folder with a baseline, and two seeds of a prompt."""
    top = tmp_path / "runs"
    make_run(top / "plain")
    for seed, top1 in ((0, 60.0), (1, 70.0)):
        opts = (*PROMPT, "PROMPT.PENALTY", "2.5", "RNG_SEED", str(seed))
        make_run(top / "vmp" / f"seed-{seed}", *opts, top1=top1, a=10.0 + seed)
    return top


def lines_of(text, name):
    return [line.split() for line in text.splitlines() if line.split()[:1] == [name]]


def test_what_all_runs_share_stands_above_and_what_differs_in_columns(runs, capsys):
    main([str(runs)])
    shown = capsys.readouterr().out
    first, heads = shown.splitlines()[0], shown.splitlines()[2].split()
    for fact in ("3 run(s)", "motionshapes", "x3d", "finished", "2 of 2", "15 of 16", "c" * 12):
        assert fact in first
    assert heads[:3] == ["run", "prompt", "seed"]
    assert "λ" not in heads  # the baseline has none, and the others have the same
    (plain,) = lines_of(shown, "plain")
    assert plain == ["plain", "no", "0", "48.0", "(best", "50.0)", "50.0"]
    (prompted,) = lines_of(shown, "vmp/seed-1")
    assert prompted[-6:] == ["a", "11.00,", "b", "-0.250,", "f0", "0.900"]


def test_seeds_of_a_setting_are_a_mean_with_its_spread(runs, capsys):
    main([str(runs)])
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("prompt  ")]
    assert "2, 65.0 ± 7.1" in line
    assert "1.5 to 128.5" in line  # 65 +- 12.706 * 7.07 / sqrt(2)


def test_runs_that_their_settings_do_not_tell_apart_are_named_by_their_folders(tmp_path):
    for name in ("one", "two"):
        make_run(tmp_path / name)
    found, _ = read_runs([str(tmp_path)])
    groups = find_groups(found, find_settings([run.config for run in found]))
    assert list(groups) == ["one", "two"]


def test_of_many_differences_those_that_follow_another_are_named_without_a_column():
    names = [f"SOLVER.K{number}" for number in range(12)]
    configs = [{"MODEL.NAME": model, **dict.fromkeys(names, model)} for model in ("x3d", "c2d")]
    settings = find_settings(configs)
    assert settings.columns == ["MODEL.NAME"]
    assert settings.along == sorted(names)
    few = find_settings([{key: each[key] for key in names[:3]} for each in configs])
    assert few.columns == names[:3]


@pytest.mark.parametrize("by", ["top1", "val", "RNG_SEED", "name", "loss"])
def test_the_order_is_the_one_asked_for(runs, by):
    names = [run.name for run in sort_runs(read_runs([str(runs)])[0], by)]
    if by in ("top1", "val"):
        assert names == ["vmp/seed-1", "vmp/seed-0", "plain"]
    else:
        assert names == ["plain", "vmp/seed-0", "vmp/seed-1"]


def test_running_failed_stopped_and_finished_runs_are_told_apart(runs):
    code = "import runpy\nRunLock = runpy.run_path('vmp/engine/lock.py')['RunLock']\n"
    code += f"with RunLock({str(runs / 'vmp' / 'seed-0')!r}): print('held', flush=True); input()"
    command = [sys.executable, "-W", "ignore", "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    make_run(runs / "killed", epochs=1, tested=False)
    broken = make_run(runs / "broken", epochs=1, tested=False)
    lines = ["10:00:00 I 1 process(es), {}", "10:00:01 D the run failed", "Traceback:", "  at x"]
    (broken / "log.txt").write_text("\n".join([*lines, "ValueError: no room", ""]))
    (broken / "run.lock").write_text("process 1 on gone\n")
    with subprocess.Popen(command, cwd=ROOT, **pipes) as owner:
        assert owner.stdout.readline() == "held\n"
        found = {run.name: run for run in read_runs([str(runs)])[0]}
        owner.communicate("\n")
    states = {name: run.state for name, run in found.items()}
    assert states == {
        "broken": "failed",
        "killed": "stopped",
        "plain": "finished",
        "vmp/seed-0": "running",
        "vmp/seed-1": "finished",
    }
    assert found["broken"].note == "ValueError: no room"
    assert found["vmp/seed-0"].note.startswith(f"process {owner.pid} on ")
    assert found["killed"].epochs == 1
    (broken / "log.txt").write_text("\n".join([*lines, "ValueError: x", lines[0], ""]))
    assert find_state(broken, finished=False) == ("stopped", "")  # of the last start


def test_what_is_damaged_or_no_run_is_named_and_the_rest_shown(runs, tmp_path, capsys):
    (make_run(runs / "cut") / "test_results.json").write_text('{"metrics": {')
    (make_run(runs / "odd") / "config.yaml").write_text("[1, 2")
    with (runs / "plain" / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    (tmp_path / "empty").mkdir()
    main([str(runs), str(tmp_path / "empty"), str(tmp_path / "nowhere")])
    shown = capsys.readouterr().out
    assert shown.startswith("3 run(s)")
    left = [line for line in shown.splitlines() if line.startswith("left out: ")]
    assert len(left) == 4
    for told in ("empty: no run", "nowhere: there is no", "cut/test_results.json", "odd/config"):
        assert any(told in line for line in left)


def test_a_pattern_and_a_folder_name_the_same_run_once(runs):
    found, complaints = read_runs([str(runs / "vmp" / "seed-*"), str(runs / "vmp")])
    assert [run.name for run in found] == ["seed-0", "seed-1"]
    assert not complaints


def test_the_curves_are_those_of_the_logs_with_a_band_over_seeds(runs):
    found, _ = read_runs([str(runs)])
    groups = find_groups(found, find_settings([run.config for run in found]))
    figure = draw([Line(name, members) for name, members in groups.items()], "top1")
    loss, val, slope, shift = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[0, 2], [0.5, 1.75], [1, 1.5], [1.5, 1.25]]
    assert val.lines[1].get_xydata().tolist() == [[1, 65], [2, 63]]
    assert (slope.lines[0].get_ydata() == 10.5).all()
    band = slope.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (10, 11)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "no prompt",
        "prompt (2 seeds)",
    ]
    assert len(shift.lines) == 1  # the baseline has none


def test_files_hold_what_the_screen_shows_and_more(runs, tmp_path, capsys):
    outs = [tmp_path / f"all.{kind}" for kind in ("md", "csv", "json", "png")]
    main([str(runs), "--out", *map(str, outs), "--dpi", "40"])
    table, rows, content, picture = outs
    assert "| vmp/seed-1 |" in table.read_text()
    first, *_ = csv.DictReader(rows.open())
    assert (first["run"], first["test top-1"], first["evaluated"]) == ("plain", "50", "15")
    assert first["commit"] == "c" * 40
    held = {run["run"]: run for run in json.loads(content.read_text())["runs"]}
    assert held["vmp/seed-1"]["differs"] == {"PROMPT.ENABLE": True, "RNG_SEED": 1}
    assert held["vmp/seed-1"]["val"] == {"1": 70.0, "2": 68.0}
    assert np.asarray(imread(picture)).std() > 0.05
    assert capsys.readouterr().out.count("wrote ") == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "there is no such folder"),
        ([str(ROOT / "README.md")], "it is a file"),
        (["{runs}", "--sort", "nothing"], "--sort nothing"),
    ],
)
def test_a_wrong_command_ends_in_a_line(runs, words, told):
    words = [word.format(runs=runs) for word in words]
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: main(words))
    assert told in ended.value.code
    assert "\n" not in ended.value.code


@pytest.mark.parametrize("words", [["--out", "x.txt"], ["--metric", "speed"], ["--out", "."]])
def test_a_wrong_option_is_refused_before_anything_is_read(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args(["runs", *words])
    assert ended.value.code == 2
    assert words[1] in capsys.readouterr().err
