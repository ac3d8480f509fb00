import json
import math

import pytest

from vmp.config import load_cfg
from vmp.utils.logging import RunLog
from vmp.visualization import draw_history, read_history
from vmp.visualization.curves import M


def write_run(folder, penalty=0.0, pathways=("0",), steps=4, opts=()):
    """Write the log and config of a run as a training writes them."""
    cfg = load_cfg(None, ["PROMPT.ENABLE", "True", "PROMPT.PENALTY", str(penalty), *opts])
    log = RunLog(folder, enabled=True, tensorboard=False)
    log.write("start", 0, {"origin": "from scratch", "machine": {}})
    for step in range(1, steps + 1):
        prompt = {
            pathway: {"m": 1.0, "n": 0.1, "a": 10.0 + step + int(pathway), "b": -0.1 * step}
            for pathway in pathways
        }
        log.write("train", step, {"loss": 2.0, "prompt": prompt, "epoch": step / 2})
        log.write("val", step, {"top1": 50.0, "epoch": step})
    log.close()
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def test_a_and_b_are_read_at_their_epochs_with_what_the_config_says(tmp_path):
    (run,) = read_history(write_run(tmp_path / "run", penalty=2.5))
    assert run.epochs == [0.5, 1.0, 1.5, 2.0]
    assert run.a == [11.0, 12.0, 13.0, 14.0]
    assert run.b == pytest.approx([-0.1, -0.2, -0.3, -0.4])
    assert run.facts["λ"] == 2.5
    assert run.facts["backbone"] == load_cfg(None).MODEL.NAME


def test_each_pathway_has_a_history(tmp_path):
    slow, fast = read_history(write_run(tmp_path / "run", pathways=("0", "1")))
    assert (slow.pathway, fast.pathway) == ("0", "1")
    assert [two - one for one, two in zip(slow.a, fast.a, strict=True)] == [1.0] * 4


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines()
    records = [line for line in lines if json.loads(line)["kind"] == "train"]
    path.write_text("\n".join(lines) + "\n" + records[-1][:40])
    assert read_history(folder)[0].epochs == [0.5, 1.0, 1.5, 2.0]


def test_lines_lie_where_the_numbers_are_and_are_named_by_what_differs(tmp_path):
    runs = [write_run(tmp_path / name, penalty=value) for name, value in (("y", 2.5), ("x", 0))]
    figure = draw_history([each for run in runs for each in read_history(run)])
    slopes, shifts, learned = figure.axes
    assert slopes.lines[0].get_xydata().tolist() == [[0.5, 11], [1, 12], [1.5, 13], [2, 14]]
    assert shifts.lines[1].get_ydata() == pytest.approx([-0.1, -0.2, -0.3, -0.4])
    assert [line.get_label() for line in slopes.lines] == ["λ = 0", "λ = 2.5"]
    f = learned.lines[0].get_ydata()
    assert f[len(f) // 2] == pytest.approx(1 / (1 + math.exp(-14 * 0.4)))
    assert load_cfg(None).MODEL.NAME in figure.get_suptitle()
    assert slopes.lines[0].get_color() != slopes.lines[1].get_color()
    assert slopes.lines[0].get_linewidth() > slopes.lines[1].get_linewidth()


def test_backbones_and_pathways_are_told_apart(tmp_path):
    one = write_run(tmp_path / "one", pathways=("0", "1"), opts=("MODEL.NAME", "slowfast"))
    two = write_run(tmp_path / "two", opts=("MODEL.NAME", "c2d"))
    figure = draw_history([*read_history(one), *read_history(two)])
    lines = figure.axes[0].lines
    names = ["slowfast, pathway 0", "slowfast, pathway 1", "c2d, pathway 0"]
    assert [line.get_label() for line in lines] == names
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_equal_runs_are_named_by_their_folders(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("first", "second")]
    figure = draw_history([each for run in runs for each in read_history(run)])
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["first", "second"]


def test_what_is_no_run_with_a_prompt_is_refused_in_a_line(tmp_path):
    file = tmp_path / "log.txt"
    file.write_text("")
    baseline = write_run(tmp_path / "baseline", pathways=())
    for path, why in ((tmp_path, "no log.jsonl"), (file, "no folder"), (baseline, "PROMPT.ENABLE")):
        with pytest.raises(ValueError, match=why) as caught:
            read_history(path)
        assert "\n" not in str(caught.value)


def test_a_prompt_without_a_slope_is_refused(tmp_path):
    folder = write_run(tmp_path / "run", steps=0)
    with (folder / "log.jsonl").open("a") as file:
        record = {"kind": "train", "step": 1, "epoch": 1.0, "prompt": {"0": {"value": M}}}
        file.write(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match="POWER_NORM sigmoid"):
        read_history(folder)
