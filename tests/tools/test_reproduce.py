"""tools/reproduce.py: the runs of Table 1, from a list to a table, and what it never does."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reproduce
import reproduce_cells as cells
import reproduce_collect as collect
import reproduce_compare as compare
import reproduce_heldout as heldout
import reproduce_run
import reproduce_state as state
import reproduce_tables as tables
import torch
import yaml

from tests.conftest import ROOT, load_module
from tests.data import miniature_finegym, miniature_hmdb51, miniature_mpii_cooking2
from tests.models.test_pretrained import as_pyslowfast, make, write
from tests.test_model_zoo import ROWS
from vmp import engine
from vmp.config import load_cfg
from vmp.data import DATASETS, VideoRecord
from vmp.engine.provenance import deciding_config, hash_config
from vmp.metrics.student import student_t
from vmp.models import build_model
from vmp.models.freeze import build_freezing
from vmp.utils import signals

COLUMNS, TABLE = cells.read_paper()
MARK = re.compile(r"\[(P|C|Z|ours)\]")
STUDIES = ("table1", "lambda", "sensitivity", "power-norms", "ablations")
X3D = ("X3D_M", "X3D_M_VMP")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty folder to work in, and the default places in it."""
    monkeypatch.chdir(tmp_path)
    return cells.Places(Path("data"), Path("data/weights"), Path("runs/reproduce"))


@pytest.fixture
def tell(capsys):
    """Return a function that does a command and returns what it printed."""

    def call(*words):
        capsys.readouterr()
        reproduce.main([str(word) for word in words])
        return capsys.readouterr().out

    return call


def column(dataset, split, metric="top1"):
    return cells.Column(dataset, split, metric)


# ---------------------------------------------------------------- the paper's numbers


def test_the_paper_has_14_rows_of_8_numbers():
    assert len(TABLE) == 14
    assert {len(row.values) for row in TABLE} == {len(COLUMNS)} == {8}
    assert sum(bool(row.baseline) for row in TABLE) == 8


def test_the_means_over_splits_are_those_of_the_splits():
    for row in TABLE:
        assert row.values[3] == pytest.approx(sum(row.values[:3]) / 3, abs=0.1), row.name


def test_the_gains_are_those_that_the_paper_prints_but_for_its_one_misprint():
    by_recipe = {row.recipe: row for row in TABLE}
    misprints = []
    for row in (row for row in TABLE if row.baseline):
        plain = by_recipe[row.baseline].values
        for place, printed in enumerate(row.printed_gains):
            gain = round(row.values[place] - plain[place], 1)
            if gain != (printed or 0.0):
                misprints.append((row.recipe, COLUMNS[place].dataset, gain, printed))
    assert misprints == [("C2D_8x8_R50_VMP", "FineGym", 1.6, 0.6)]


# ---------------------------------------------------------------- the runs


def test_table_1_is_70_runs_a_seed_each_in_a_folder_of_its_own():
    found = cells.list_cells("table1")
    assert len(found) == 70
    assert len({cell.name for cell in found}) == 70
    assert len(cells.list_cells("table1", seeds=[0, 1, 2])) == 210
    assert len(cells.list_cells("table1", datasets=["HMDB51"])) == 42


@pytest.mark.parametrize(
    ("study", "settings"),
    [("lambda", 9), ("sensitivity", 13), ("power-norms", 10), ("ablations", 10)],
)
def test_a_study_is_its_settings_of_every_prompted_row(study, settings):
    found = cells.list_cells(study)
    assert len(found) == settings * 8 * 5
    assert len({cell.name for cell in found}) == len(found)
    assert all("_VMP" in cell.recipe for cell in found)


def test_only_lambda_is_chosen_on_what_is_held_out():
    held_out = {study: {cell.held_out for cell in cells.list_cells(study)} for study in STUDIES}
    assert held_out == {study: {study == "lambda"} for study in STUDIES}
    mpii = cells.list_cells("lambda", datasets=["MPIICooking2"])
    assert {cell.split for cell in mpii} == {"val"}


def test_the_recipe_itself_is_one_run_in_all_studies():
    as_it_is = [
        {cell for cell in cells.list_cells(study) if cell.setting == cells.Setting()}
        for study in ("sensitivity", "power-norms", "ablations")
    ]
    assert as_it_is[0] == as_it_is[1] == as_it_is[2] <= set(cells.list_cells("table1"))


def test_fixed_a_and_b_are_one_run_in_both_studies_that_have_them():
    fixed = [
        {cell for cell in cells.list_cells(study) if cell.setting.name == "sigmoid-fixed"}
        for study in ("power-norms", "ablations")
    ]
    assert fixed[0] == fixed[1]
    assert len(fixed[0]) == 8 * 5


# of pytorchvideo's networks the first layer, of TimeSformer what makes tokens of a clip
STEMS = {True: r"blocks\.0\..*", False: r"(patch_embed\..*|cls_token|pos_embed|time_embed)"}


@pytest.mark.parametrize("recipe", [row.recipe for row in TABLE if row.baseline])
def test_with_the_stem_frozen_everything_else_is_trained(recipe, places):
    found = cells.list_cells("ablations", rows=[recipe], splits=["gym99"])
    (cell,) = (cell for cell in found if cell.setting.name == "stem-frozen")
    cfg = cells.build_cell_config(cell, places, [])
    with torch.device("meta"):
        model = build_model(cfg)
    build_freezing(cfg, model)
    stem = re.compile(r"backbone\.net\." + STEMS[not recipe.startswith("TimeSformer")])
    names = {name: value.requires_grad for name, value in model.named_parameters()}
    assert {name for name, trained in names.items() if not trained} == set(
        filter(stem.fullmatch, names)
    )


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_has_a_config_that_loads_and_says_what_the_run_is(study, places):
    seen = set()
    chosen = {} if study == "table1" else {"rows": ["SLOWFAST*_slow"], "splits": ["2", "gym99"]}
    found = cells.list_cells(study, seeds=[3], **chosen)
    for cell in found:
        cfg = cells.build_cell_config(cell, places, ["NUM_GPUS", "1"])
        said, prompted = (cfg.DATA.SPLIT, cfg.RNG_SEED), cfg.PROMPT.ENABLE
        assert said == (cell.split, 3)
        assert Path(cfg.TRAIN.INIT_FROM).parent == places.weights
        assert prompted == ("_VMP" in cell.recipe)
        seen.add((hash_config(cfg.dump()), cfg.DATA.PATH_TO_DATA_DIR))
    assert len(seen) == len(found)  # no two settings are the same training


def test_rows_are_chosen_with_wildcards_and_a_wrong_one_is_refused():
    chosen = cells.list_cells("table1", rows=["X3D*", "*_K600"], splits=["2"], datasets=["HMDB51"])
    assert [cell.recipe for cell in chosen] == [*X3D, "TimeSformer_divST_8x32_224_K600"]
    with pytest.raises(ValueError, match="--rows X3D_XL is none of these: SLOWFAST"):
        cells.list_cells("table1", rows=["X3D_M", "X3D_XL"])
    with pytest.raises(ValueError, match="--splits 4 is none of these: 1, 2, 3"):
        cells.list_cells("table1", splits=["4"], datasets=["HMDB51"])
    with pytest.raises(ValueError, match="names one twice"):
        cells.list_cells("table1", seeds=[1, 1])


@pytest.mark.parametrize("key", ["RNG_SEED", "DATA.SPLIT", "OUTPUT_DIR", "PROMPT.PENALTY"])
def test_a_key_that_is_the_runs_own_can_not_be_given(key, places):
    cell = cells.list_cells("lambda")[0]
    with pytest.raises(ValueError, match=f"{key} is given, but set by"):
        cells.options_of(cell, places, [key, "1"])


# ---------------------------------------------------------------- the recipes


def recipes():
    return sorted(path for name in cells.PAPER_SETS for path in (cells.CONFIGS / name).iterdir())


def test_each_data_set_has_the_14_recipes_and_no_other():
    assert len(recipes()) == 3 * 14
    for name in cells.PAPER_SETS:
        found = {path.stem for path in (cells.CONFIGS / name).iterdir()}
        assert found == {row.recipe for row in TABLE}


def named(path):
    """Yield (key, whether its line, or the comment above it, says what is behind its value)."""
    above = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            above += line
            continue
        key, _, value = line.partition(":")
        if line.startswith(" ") and value:
            yield key.strip(), bool(MARK.search(line) or MARK.search(above))
        above = ""


@pytest.mark.parametrize(
    "path", [*cells.CONFIGS.glob("base/FineTune_*.yaml"), *recipes()], ids=lambda path: path.stem
)
def test_every_value_says_what_is_behind_it(path):
    assert [key for key, told in named(path) if not told and key != "ENABLE"] == []


def test_the_two_files_of_fine_tuning_are_what_every_recipe_is_made_of():
    assert len(list(cells.CONFIGS.glob("base/FineTune_*.yaml"))) == 2
    for path in recipes():
        base = yaml.safe_load(path.read_text(encoding="utf-8"))["_BASE_"]
        if isinstance(base, list):
            kind = "TimeSformer" if path.stem.startswith("TimeSformer") else "CNN"
            assert base[1:] == [f"../base/{path.parent.name}.yaml", f"../base/FineTune_{kind}.yaml"]
            assert base[0] == f"../base/{path.stem}.yaml"


def test_the_weights_of_every_recipe_are_a_row_of_the_model_zoo_for_its_backbone():
    rows = {row.url.replace("dl=0", "dl=1"): row for row in ROWS if row.url}
    for path in recipes():
        row = rows[load_cfg(path).TRAIN.INIT_FROM]
        assert path.stem.startswith(row.recipe)
        assert ("K600" in row.name) == ("K600" in path.stem)
        assert "X3D.SHORTCUT_NORM False" not in row.switches


def test_what_the_paper_states_is_what_the_recipes_do():
    for path in recipes():
        cfg = load_cfg(path)
        assert (cfg.SOLVER.OPTIMIZING_METHOD, cfg.SOLVER.MOMENTUM) == ("sgd", 0.9)
        assert cfg.SOLVER.BASE_LR == 0.005
        assert cfg.TRAIN.GLOBAL_BATCH_SIZE == 64
        assert cfg.TRAIN.EVAL_PERIOD == 0
    stated = load_cfg(cells.CONFIGS / "FineGym" / "TimeSformer_divST_8x32_224_K600_VMP.yaml")
    assert stated.PROMPT.PENALTY == 2.5


# ---------------------------------------------------------------- the list


def test_a_dry_run_lists_70_runs_that_lack_data_and_weights_alone(places, tell):
    printed = tell("table1", "--dry-run")
    lines = [line for line in printed.splitlines() if "seed-0 " in line]
    assert len(lines) == 70
    assert {line.partition("lacks ")[2] for line in lines} == {"data, weights"}
    assert "70 runs: 70 new; 0 can run now" in printed
    for name in ("hmdb51", "finegym", "mpii_cooking2"):
        assert f"data: no index.json in data/{name}" in printed
    assert printed.count("weights: data/weights/") == 6
    assert not list(places.data.parent.iterdir())  # nothing is written


def test_hours_follow_from_the_rate_by_the_formula_that_is_printed(places, tell, monkeypatch):
    monkeypatch.setattr(state, "model_cost", lambda model, frames, crop: FakeCost(crop * 1e7))
    printed = tell(
        "table1", "--dataset", "HMDB51", "MPIICooking2", "--rows", *X3D, "--rate", "1e12"
    )
    # 3,570 clips of 25 epochs, 1,600 of precise statistics after epochs 5, 10 ... 25; 30 views
    views = 224e7 * (3 * 3570 * 25 + 5 * 1600) + 256e7 * 30 * 1530
    hours = [float(each) for each in re.findall(r"weights +([\d.]+) h$", printed, re.MULTILINE)]
    assert hours == [round(views / 1e12 / 3600, 1)] * 6
    assert state.FORMULA in printed
    # nobody knows how many clips of MPII count before it is prepared
    assert len(re.findall(r"^MPII.*weights$", printed, re.MULTILINE)) == 2
    assert "for 6 of the 8 runs to do" in printed


class FakeCost:
    def __init__(self, multiply_adds):
        self.multiply_adds = multiply_adds


@pytest.fixture(autouse=True)
def _sizes_are_looked_up_anew(monkeypatch):
    monkeypatch.setattr(state, "_multiply_adds", {})


def test_key_value_pairs_may_follow_a_list_of_options():
    args = reproduce.parse_args(
        ["table1", "--rows", "X3D", "X3D_M", "NUM_GPUS", "1", "X3D.DIM_C5", "2"]
    )
    assert args.rows == ["X3D", "X3D_M"]
    assert args.opts == ["NUM_GPUS", "1", "X3D.DIM_C5", "2"]


def test_without_a_rate_no_hours_are_told(places, tell):
    printed = tell("table1", "--rows", "C2D*")
    assert " h\n" not in printed
    assert "not told without --rate" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table1", "--rate", "0"], "--rate is 0"),
        (["table1", "NUM_GPUS"], "'NUM_GPUS' has no partner"),
        (["table1", "NUM_GPUS", "1", "--run"], "--run comes after a KEY"),
        (["table1", "--slurm", "--time 1:00:00"], "without --submit"),
        (["table1", "--rows", "X3D_M", "--run"], "NUM_GPUS is not given"),
        (["table1", "--run", "--rows", "X3D_M", "NUM_GPUS", "0"], "no run can be done"),
        (["compare", "a", "b", "NUM_GPUS", "0"], "NUM_GPUS is given to compare"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(words, message, places):
    with pytest.raises(ValueError, match=message):
        reproduce.main(words)


def test_the_arguments_are_read_before_torch_is_imported():
    code = "import sys; sys.argv[1:] = ['table1']; import reproduce; reproduce.parse_args()"
    script = f"{code}; assert 'torch' not in sys.modules, 'torch'"
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}
    subprocess.run([sys.executable, "-c", script], check=True, env=env)


# ---------------------------------------------------------------- held-out parts


def clips(count, sources):
    return [VideoRecord(f"{n}.avi", n % 3, id=f"film{n % sources:02d}/{n}") for n in range(count)]


def film(record):
    return record.id.partition("/")[0]


def test_a_held_out_part_is_a_fifth_whole_films_and_the_same_each_time():
    records = clips(500, 50)
    train, held_out = heldout.hold_out(records, film)
    assert len(held_out) == 100
    assert sorted(train + held_out, key=records.index) == records
    assert not {film(each) for each in train} & {film(each) for each in held_out}
    assert heldout.hold_out(list(reversed(records)), film)[1] == held_out[::-1]


def test_it_takes_no_more_films_than_it_needs():
    records = clips(90, 9)  # two of nine films are 22 %
    assert len(heldout.hold_out(records, film)[1]) == 20


def test_one_film_alone_can_not_be_divided():
    with pytest.raises(ValueError, match="none is left to train on"):
        heldout.hold_out(clips(10, 1), film)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("kick/FOOT_2009_(REMI_GAILLARD)_kick_f_cm_np1_ba_med_5.avi", "FOOT_2009_(REMI_GAILLARD)"),
        ("sit/50_FIRST_DATES_sit_f_cm_np1_fr_med_24.avi", "50_FIRST_DATES"),
        ("kick/50_FIRST_DATES_kick_f_cm_np1_ba_med_19.avi", "50_FIRST_DATES"),
        ("draw_sword/A_point_draw_sword_draw_sword_u_nm_np1_fr_med_0.avi", "A_point_draw_sword"),
    ],
)
def test_the_film_of_a_clip_of_hmdb51_is_told_by_its_name(name, wanted):
    assert heldout.hmdb51_source(VideoRecord("x", 0, id=name)) == wanted


def test_the_video_of_an_instance_of_finegym_may_hold_any_sign():
    name = f"{miniature_finegym.TRICKY}_E_000001_000007_A_0000_0005"
    assert heldout.finegym_source(VideoRecord("x", 0, id=name)) == miniature_finegym.TRICKY


# ---------------------------------------------------------------- made-up results


def make_run(cell, places, top1, opts=(), *, epoch=None, changes=None, **more):
    """Write a test_results.json as a run of the cell would, with made-up numbers."""
    cfg = cells.build_cell_config(cell, places, opts)
    config = deciding_config(cfg.dump()) | (changes or {})
    results = {
        "metrics": {"top1": top1, "top5": top1 + 10, "loss": 1.0},
        "counts": {"videos": 1530, "evaluated_videos": 1528, "views_per_video": 30},
        "prompts": {"0": {"m": 1.0, "n": 0.1, "a": 11.5, "b": 0.06, "f0": 0.33}},
        "seed": cell.seed,
        "config": config,
        "config_sha256": "c" * 64,
        "weights_sha256": "w" * 64,
        "git_commit": "0123456789abcdef+changes",
        "trained": {"epoch": epoch or cfg.SOLVER.MAX_EPOCH, "config_sha256": "c" * 64},
    } | more
    folder = places.out / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test_results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def hmdb(recipe, seed, split):
    return cells.Cell("HMDB51", recipe, split, seed)


def make_runs(places, values):
    """Make runs of {(recipe, seed): top-1 in each split}; return what is collected."""
    made = []
    for (recipe, seed), by_split in values.items():
        for split, top1 in by_split.items():
            made.append(hmdb(recipe, seed, split))
            make_run(made[-1], places, top1)
    return collect.build_results(made, places, ())[0]


def entry_of(entries, recipe, where):
    (found,) = [each for each in entries if (each.row.recipe, each.column) == (recipe, where)]
    return found


def test_the_mean_is_over_splits_within_a_seed_then_over_seeds(places):
    values = {
        ("X3D_M", 0): {"1": 70.0, "2": 72.0, "3": 74.0},
        ("X3D_M", 1): {"1": 71.0, "2": 71.0, "3": 77.0},
        ("X3D_M", 2): {"1": 90.0, "2": 90.0},  # split 3 is not there: no mean
    }
    entries = collect.make_entries(make_runs(places, values))
    mean = entry_of(entries, "X3D_M", column("HMDB51", "mean"))
    assert mean.ours.n == 2
    assert mean.ours.mean == pytest.approx(72.5)  # of 72 and 73
    assert mean.ours.sd == pytest.approx(math.sqrt(0.5))
    assert mean.ours.high == pytest.approx(72.5 + student_t(1) * 0.5)
    assert (mean.evaluated, mean.official) == (3 * 1528, 3 * 1530)
    first = entry_of(entries, "X3D_M", column("HMDB51", "1"))
    assert (first.ours.n, first.ours.mean) == (3, 77.0)
    assert first.paper == 75.0


def test_a_gain_is_over_the_seeds_that_both_have(places):
    values = {
        ("X3D_M", 0): {"1": 70.0},
        ("X3D_M", 1): {"1": 72.0},
        ("X3D_M_VMP", 1): {"1": 75.0},
        ("X3D_M_VMP", 2): {"1": 99.0},
    }
    gains = collect.make_gains(make_runs(places, values))
    gain = entry_of(gains, "X3D_M_VMP", column("HMDB51", "1"))
    assert gain.ours == (1, 3.0, None, None, None)
    assert gain.paper == 0.8
    assert entry_of(gains, "X3D_M_VMP", column("HMDB51", "2")).ours is None


def test_a_number_that_nobody_has_run_is_empty_in_every_format(places, tell):
    make_run(hmdb("X3D_M", 0, "1"), places, 74.25)
    printed = tell("table1", "--collect")
    assert "| X3D | 75.0 / 74.2 | 72.6 / | 73.4 / | 73.7 / |" in printed
    assert "| C2D | 67.7 / | 66.9 / |" in printed
    with (places.out / "table1.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14 * 8
    filled = [row for row in rows if row["mean"]]
    assert [(row["recipe"], row["split"], row["mean"]) for row in filled] == [
        ("X3D_M", "1", "74.25")
    ]
    assert filled[0]["sd"] == filled[0]["low"] == ""  # one seed tells no spread
    assert all(not any(list(row.values())[6:]) for row in rows if not row["mean"])
    latex = (places.out / "table1.tex").read_text(encoding="utf-8")
    assert "X3D & 75.0 / 74.2 & 72.6 / & " in latex
    assert (places.out / "table1.md").read_text(encoding="utf-8") in printed


def test_a_table_without_any_run_holds_the_papers_numbers_alone(places, tell):
    printed = tell("table1", "--collect")
    assert "0 of 70 runs are in it" in printed
    with (places.out / "table1.csv").open(encoding="utf-8") as file:
        assert not any(row["mean"] or row["n"] for row in csv.DictReader(file))


def test_the_table_tells_commit_config_weights_and_how_much_was_evaluated(places, tell):
    folder = make_run(hmdb("X3D_M_VMP", 0, "1"), places, 74.2)
    (folder / "init_report.json").write_text('{"sha256": "' + "i" * 64 + '"}', encoding="utf-8")
    printed = tell("table1", "--collect")
    (line,) = [line for line in printed.splitlines() if line.startswith("| HMDB51/X3D_M_VMP")]
    told = "1528 of 1530 | a 11.50, b 0.060, f0 0.330 | 0123456789ab+changes"
    assert told in line
    assert f"{'c' * 12} | {'w' * 12} | {'i' * 12}" in line
    with (places.out / "table1_runs.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["weights_sha256"], row["init_sha256"]) == ("w" * 64, "i" * 64)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"changes": {"SOLVER.BASE_LR": 0.1}}, "another config: SOLVER.BASE_LR (0.1 there, 0.005"),
        ({"changes": {"RNG_SEED": 9}}, "RNG_SEED (9 there, 0 here)"),
        ({"changes": {"TRAIN.INIT_FROM": ""}}, "TRAIN.INIT_FROM ( there, x3d_m.pyth here)"),
        ({"changes": {"TRAIN.INIT_FROM": "else/x3d_s.pyth"}}, "(x3d_s.pyth there, x3d_m.pyth"),
        ({"epoch": 7}, "tested after epoch 7 of 25"),
        ({"trained": {}}, "does not tell of which"),
        ({"trained": {"epoch": 25, "config_sha256": "d" * 64}}, "weights are of another training"),
    ],
)
def test_results_of_another_run_are_named_and_not_taken(more, message, places, tell):
    make_run(hmdb("X3D_M", 0, "1"), places, 74.2, **more)
    some = ["table1", "--dataset", "HMDB51", "--rows", "X3D_M"]
    printed = tell(*some, "--collect")
    assert "0 of 3 runs are in it" in printed
    assert message in printed
    listed = tell(*some)
    assert re.search(r"X3D_M/split-1_seed-0 +other\n", listed)
    assert message in listed
    with pytest.raises(ValueError, match=r"X3D_M/split-1_seed-0 holds results of"):
        reproduce.main([*some, "--run", "NUM_GPUS", "0"])


def test_weights_and_scans_may_lie_elsewhere_and_a_key_may_be_younger_than_the_run(places):
    cell = hmdb("X3D_M", 0, "1")
    moved = {"TRAIN.INIT_FROM": "/old/place/x3d_m.pyth", "DATA.FRAME_INDEX_DIR": "/old"}
    path = make_run(cell, places, 74.2, changes=moved) / "test_results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    del results["config"]["SOLVER.EMA_DECAY"]
    path.write_text(json.dumps(results), encoding="utf-8")
    assert list(collect.build_results([cell], places, ())[0]) == [cell]


def test_a_run_with_other_overrides_is_collected_with_the_same_overrides(places):
    cell, opts = hmdb("X3D_M", 0, "1"), ["SOLVER.MAX_EPOCH", "5"]
    make_run(cell, places, 74.2, opts)
    assert list(collect.build_results([cell], places, opts)[0]) == [cell]
    assert list(collect.build_results([cell], places, ())[0]) == []


def test_a_study_names_the_best_setting_of_a_split_and_leaves_the_others_empty(places, tell):
    found = cells.list_cells("lambda", datasets=["HMDB51"], rows=["X3D*"], seeds=[0, 1])
    values = {"lambda-0": (70.0, 71.0), "lambda-2.5": (72.0, 76.0)}
    for cell in (cell for cell in found if cell.split == "1"):
        if cell.setting.name in values:
            make_run(cell, places, values[cell.setting.name][cell.seed])
    words = ["lambda", "--dataset", "HMDB51", "--rows", "X3D*", "--seeds", "0", "1", "--collect"]
    printed = tell(*words)
    half = student_t(1) * math.sqrt(8) / math.sqrt(2)
    best = f"| **lambda-2.5** | 74.0 ± 2.8 | 84.0 ± 2.8 | 2 | {74 - half:.1f} to {74 + half:.1f} |"
    assert best in printed
    assert "| lambda-0 | 70.5 ± 0.7 |" in printed
    assert "| lambda-10 |  |  |  |  |  |" in printed
    assert printed.count("**") == 2


def test_a_study_tells_how_much_the_prompts_dim_where_all_seeds_have_it(places, tell):
    found = cells.list_cells("ablations", datasets=["HMDB51"], rows=["X3D*"], seeds=[0, 1])
    for cell in (cell for cell in found if cell.split == "1"):
        dims = {"dimmed": 0.25 * (1 + cell.seed), "collapsed": False}
        prompts = {
            "identity": {"f0": 1.0, "dimmed": 0.0, "collapsed": True},
            "sigmoid-fixed": {"a": 9.5, "f0": 0.5} | dims,
            "start-open": {"f0": 0.5} | (dims if cell.seed else {}),
        }.get(cell.setting.name)
        if prompts:
            make_run(cell, places, 70.0, prompts={"0": prompts})
    words = ["--dataset", "HMDB51", "--rows", "X3D*", "--seeds", "0", "1"]
    lines = tell("ablations", *words, "--collect").splitlines()
    shown = {line.split(" | ")[3].strip("*"): line for line in lines if "70.0 ±" in line}
    assert shown["identity"].endswith("| f0 1.000, dimmed 0.0% |")
    assert shown["sigmoid-fixed"].endswith("| a 9.50, f0 0.500, dimmed 37.5% |")
    assert shown["start-open"].endswith("| f0 0.500 |")


# ---------------------------------------------------------------- comparing two runs


def write_predictions(folder, hits, ids=None, videos=None):
    """Write predictions.npz of a model of 6 classes, right where `hits` is 1."""
    number = len(hits)
    labels = np.arange(number) % 6
    scores = np.full((number, 6), 0.1)
    scores[np.arange(number), (labels + 1 - np.array(hits)) % 6] = 0.5
    ids = ids or [f"class/{each}.avi" for each in range(number)]
    folder.mkdir(parents=True)
    np.savez_compressed(
        folder / "predictions.npz",
        scores=scores,
        labels=labels,
        ids=np.array(ids),
        paths=np.array([f"/data/{each}" for each in videos or ids]),
        starts=np.zeros(number, int),
        stops=np.full(number, -1),
    )
    return folder


def take(path, places):
    """Keep some samples of a predictions.npz, in this order."""
    with np.load(path) as arrays:
        kept = {name: values[places] for name, values in arrays.items()}
    np.savez_compressed(path, **kept)


def test_two_runs_are_compared_on_the_samples_that_both_have(tmp_path, tell):
    first = write_predictions(tmp_path / "a", [1, 1, 0, 0, 1, 0] * 50)
    second = write_predictions(tmp_path / "b", [1, 1, 1, 0, 0, 1] * 50)
    take(second / "predictions.npz", np.random.default_rng(0).permutation(240))
    printed = tell("compare", first, second, "--draws", "500")
    assert "240 samples of 240 videos in common (300 and 240 evaluated); 500 draws" in printed
    assert "top1  50.00 -> 66.67  difference +16.67  95 % interval" in printed
    assert "(right in the first alone 40, in the second alone 80)" in printed
    assert tell("compare", first, second, "--draws", "500") == printed


def test_stretches_of_a_long_video_are_drawn_together(tmp_path):
    videos = [f"{n // 10}.mp4" for n in range(60)]
    names = [f"{n}" for n in range(60)]
    runs = [
        write_predictions(tmp_path / name, hits, names, videos)
        for name, hits in (("a", [0] * 60), ("b", [1] * 30 + [0] * 30))
    ]
    first, second = map(compare.read_predictions, runs)
    (top1, _) = compare.compare(first, second, replicates=200, seed=0)
    assert top1.percent.groups == 6
    assert top1.percent.difference == pytest.approx(50)


def test_runs_of_other_splits_or_without_predictions_are_refused(tmp_path):
    first = compare.read_predictions(write_predictions(tmp_path / "a", [1, 0]))
    other = compare.read_predictions(write_predictions(tmp_path / "b", [1, 0], ids=["x", "y"]))
    with pytest.raises(ValueError, match="no test sample in common"):
        compare.compare(first, other, replicates=10, seed=0)
    relabelled = first._replace(labels=first.labels.flip(0))
    with pytest.raises(ValueError, match="other labels"):
        compare.compare(first, relabelled, replicates=10, seed=0)
    with pytest.raises(ValueError, match="run the test of that run"):
        compare.read_predictions(tmp_path)


# ---------------------------------------------------------------- small runs, end to end

SMALL = {
    "MODEL.DROPOUT_RATE": 0.0,
    "X3D.WIDTH_FACTOR": 1.0,
    "X3D.DEPTH_FACTOR": 1.0,
    "X3D.DIM_C5": 32,
    "DATA.NUM_FRAMES": 4,
    "DATA.SAMPLING_RATE": 2,
    "DATA.TRAIN_CROP_SIZE": 32,
    "DATA.TEST_CROP_SIZE": 32,
    "DATA.TRAIN_JITTER_SCALES": "[32,36]",
    "DATA_LOADER.NUM_WORKERS": 0,
    "TRAIN.BATCH_SIZE": 4,
    "TRAIN.GLOBAL_BATCH_SIZE": 4,
    "TEST.NUM_ENSEMBLE_VIEWS": 1,
    "TEST.NUM_SPATIAL_CROPS": 1,
    "SOLVER.MAX_EPOCH": 1,
    "SOLVER.WARMUP_EPOCHS": 0,
    "BN.NUM_BATCHES_PRECISE": 1,
    "TENSORBOARD": "False",
    "NUM_GPUS": 0,
}
OPTS = [str(word) for pair in SMALL.items() for word in pair]


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """A folder with the three data sets, prepared from their miniature releases, and weights."""
    folder = tmp_path_factory.mktemp("releases")
    videos, splits = miniature_hmdb51.write_release(folder / "hmdb51")
    gym = miniature_finegym.write_release(folder / "finegym")
    mpii = miniature_mpii_cooking2.write_release(folder / "mpii")
    parts = {
        "hmdb51": ["--videos", videos, "--splits", splits],
        "finegym": ["--videos", gym / "videos", "--annotations", gym / "annotations"],
        "mpii_cooking2": [
            *("--videos", mpii / "videos", "--annotation", mpii / miniature_mpii_cooking2.MAT),
            *("--setup", mpii / "experimentalSetup"),
        ],
    }
    for name, words in parts.items():
        script = ROOT / "datasets" / name / "prepare.py"
        (module,) = load_module(f"prepare_{name}", script)
        more = [] if name == "hmdb51" else ["--workers", 1]
        out = ["--out", folder / "data" / name, "--any-count", *more]
        module.main([str(word) for word in (*words, *out)])
    name_all_classes(folder / "data" / "finegym" / "index.json")
    model = make("x3d", classes=400, frames=4)
    (folder / "weights").mkdir()
    write(folder / "weights" / "x3d_m.pyth", as_pyslowfast(model))
    return folder


def name_all_classes(index):
    """Give the miniature of FineGym, which has five classes, as many as Gym99 has."""
    content = json.loads(index.read_text(encoding="utf-8"))
    names = content["classes"]["gym99"]
    names += [f"class {number}" for number in range(len(names), 99)]
    index.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def words(releases, tmp_path, monkeypatch):
    """Return a function (study, way) -> the command of its small runs, which write to `out`."""
    monkeypatch.chdir(tmp_path)

    def make_words(study, *way, rows=X3D, datasets=tuple(cells.PAPER_SETS), seeds=(0,)):
        given = [study, "--dataset", *datasets, "--rows", *rows, "--seeds", *seeds, "--out", "out"]
        return [*given, "--data", releases / "data", "--weights", releases / "weights", *way, *OPTS]

    return make_words


def places_of(words):
    """Return the places that a command of `words` names."""
    given = [str(word) for word in words("table1")]
    options = (given[given.index(name) + 1] for name in ("--data", "--weights", "--out"))
    return cells.Places(*map(Path, options))


@pytest.fixture
def _in_process(monkeypatch):
    """Do the runs in this process, which is faster."""

    def run(command):
        assert command[:3] == [sys.executable, str(reproduce_run.RUN_NET), "--cfg"]
        engine.run(load_cfg(command[3], command[4:]))
        return 0

    monkeypatch.setattr(reproduce_run, "_run", run)
    monkeypatch.setattr(signals, "install", lambda: None)


@pytest.mark.usefixtures("_in_process", "_one_thread")
def test_a_small_table_comes_out_from_releases_and_weights_of_others(words, tell):
    listed = tell(*words("table1"))
    assert "10 runs: 10 new; 10 can run now" in listed
    assert "data: HMDB51 split 1: 20 of 3570 records to train on, 8 of 1530 to test on" in listed
    tell(*words("table1", "--run"))
    printed = tell(*words("table1", "--collect"))
    assert "10 of 10 runs are in it" in printed
    with Path("out/table1.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    filled = [row for row in rows if row["mean"]]
    assert {row["recipe"] for row in filled} == set(X3D)
    assert len(filled) == 2 * 8
    by_split = {row["split"]: float(row["mean"]) for row in filled if row["recipe"] == "X3D_M"}
    assert by_split["mean"] == pytest.approx(sum(by_split[each] for each in "123") / 3, abs=1e-3)
    evaluated = {(row["split"], row["evaluated"], row["official"]) for row in filled}
    assert {("1", "8", "1530"), ("mean", "30", "4590"), ("gym99", "6", "8521")} <= evaluated
    with Path("out/table1_runs.csv").open(encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    assert {len(run["init_sha256"]) for run in runs} == {64}
    assert all(("f0" in run["learned"]) == ("_VMP" in run["recipe"]) for run in runs)
    twins = [f"out/HMDB51/{recipe}/split-1_seed-0" for recipe in X3D]
    assert "8 samples of 8 videos in common" in tell("compare", *twins, "--draws", "50")


def test_a_run_that_is_done_is_not_done_again_and_a_stopped_one_goes_on(words, tell, monkeypatch):
    some = {"rows": ["X3D_M"], "datasets": ["HMDB51"]}
    done = []

    def run(command):
        """Write the results, but stop the second run after a checkpoint."""
        folder = Path(command[command.index("OUTPUT_DIR") + 1])
        done.append(folder.name)
        begun = folder / "checkpoints" / "epoch_00000_update_0000001.pth"
        if len(done) == 2:
            begun.parent.mkdir(parents=True)
            begun.touch()
            return signals.EXIT_AGAIN
        assert begun.exists() == (len(done) == 3)
        split = folder.name[len("split-")]
        make_run(hmdb("X3D_M", 0, split), places_of(words), 50.0, OPTS)
        return 0

    monkeypatch.setattr(reproduce_run, "_run", run)
    monkeypatch.setattr(signals, "install", lambda: None)
    with pytest.raises(signals.Interrupted, match="the same command goes on"):
        tell(*words("table1", "--run", **some))
    listed = tell(*words("table1", **some))
    assert "3 runs: 1 finished, 1 started, 1 new; 2 can run now" in listed
    tell(*words("table1", "--run", **some))
    assert done == [f"split-{split}_seed-0" for split in ("1", "2", "2", "3")]
    assert "3 runs: 3 finished; 0 can run now" in tell(*words("table1", "--run", **some))
    assert len(done) == 4


def test_a_run_that_fails_is_named_at_the_end_and_the_others_are_done(words, tell, monkeypatch):
    done = []
    monkeypatch.setattr(reproduce_run, "_run", lambda command: len(done.append(command) or done))
    monkeypatch.setattr(signals, "install", lambda: None)
    some = {"rows": ["X3D_M"], "datasets": ["HMDB51"]}
    with pytest.raises(ValueError, match=r"3 of 3 runs failed: HMDB51/X3D_M/split-1_seed-0, "):
        tell(*words("table1", "--run", **some))
    assert len(done) == 3


def test_runs_that_do_not_fit_on_the_disk_are_said_to_lack_it(words, tell, monkeypatch):
    some = {"rows": ["X3D_M"], "datasets": ["HMDB51"]}
    (size,) = re.findall(r"disk: ([\d.]+) GB for those to do", tell(*words("table1", **some)))
    assert float(size) < 0.1
    (one, *_) = state.build_states(
        cells.list_cells("table1", rows=["X3D_M"]), cells.Places(*map(Path, "abc")), OPTS
    )
    monkeypatch.setattr(state, "free_bytes", lambda folder: int(2.5 * one.bytes))
    listed = tell(*words("table1", **some))
    assert [line.split()[1:] for line in listed.splitlines()[:3]] == [
        ["new"],
        ["new"],
        ["new", "lacks", "disk"],
    ]


@pytest.mark.usefixtures("_in_process", "_one_thread")
def test_lambda_is_tested_on_films_that_it_was_not_trained_on(words, tell, releases, monkeypatch):
    monkeypatch.setattr(cells, "PENALTIES", (0.0, 2.5))
    some = {"rows": ["X3D_M_VMP"], "datasets": ["HMDB51"]}
    listed = tell(*words("lambda", "--splits", "1", **some))
    assert "16 of 16 records to train on, 4 of 4 to test on, the test part held out" in listed
    assert not Path("out").exists()
    tell(*words("lambda", "--splits", "1", "--run", **some))
    held = {
        split: DATASETS.get("hmdb51")("out/held_out/hmdb51", split, "1")
        for split in ("train", "test")
    }
    official = DATASETS.get("hmdb51")(str(releases / "data" / "hmdb51"), "train", "1")
    assert sorted(each.id for part in held.values() for each in part) == sorted(
        each.id for each in official
    )
    assert {each.path for part in held.values() for each in part} == {
        each.path for each in official
    }
    films = [{heldout.hmdb51_source(each) for each in part} for part in held.values()]
    assert not films[0] & films[1]
    printed = tell(*words("lambda", "--splits", "1", "--collect", **some))
    assert "2 of 2 runs are in it" in printed
    assert "4 of 4" in printed


# ---------------------------------------------------------------- SLURM

SLURM = ["--submit", "--slurm", "--gpus-per-node 0 --time 60"]


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Put a SLURM on PATH that takes every job; return the file that notes what it was given."""
    for name, text in {"sbatch": f'echo "$@" >>{tmp_path}/calls; echo 41'}.items() | {
        "squeue": "",
        "sinfo": "echo main",
    }.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "calls"


def test_what_is_not_finished_is_submitted_as_one_array_with_whole_configs(words, tell, sbatch):
    some = {"rows": X3D, "datasets": ["HMDB51"]}
    make_run(hmdb("X3D_M", 0, "2"), places_of(words), 50.0, OPTS)
    printed = tell(*words("table1", *SLURM, **some))
    assert printed.count("job 41_") == 5
    (script,) = Path("out/slurm").glob("*_reproduce/job.sh")
    assert "#SBATCH --array=0-4\n" in script.read_text(encoding="utf-8")
    names = sorted(path.stem for path in script.parent.glob("*.yaml"))
    assert not any("X3D_M_split-2" in name for name in names)
    for path in script.parent.glob("*.yaml"):
        cfg = load_cfg(path)
        assert Path(cfg.OUTPUT_DIR).parts[:2] == ("out", "HMDB51")
        assert f"split-{cfg.DATA.SPLIT}_seed-0" in path.stem
        assert cfg.SOLVER.MAX_EPOCH == 1
    assert sbatch.read_text(encoding="utf-8").count("job.sh") == 1


def test_a_dry_submission_prints_the_script_and_leaves_nothing(words, tell):
    printed = tell(*words("table1", "--dry-run", *SLURM, rows=["X3D_M"], datasets=["FineGym"]))
    assert "#!/bin/bash\n#SBATCH --job-name=reproduce\n" in printed
    assert not Path("out").exists()


# ---------------------------------------------------------------- processes of their own


@pytest.mark.slow
def test_a_signal_stops_a_run_after_its_step_and_the_command_goes_on(words, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, ROOT / "tools" / "reproduce.py"]
    given = words("table1", "--splits", "1", "--run", rows=["X3D_M_VMP"], datasets=["HMDB51"])
    given = [str(word) for word in (*command, *given)]
    given[given.index("SOLVER.MAX_EPOCH") + 1] = "15"
    process = subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if "epoch 2" in line:
            process.terminate()
            break
    process.stdout.read()
    assert process.wait() == signals.EXIT_AGAIN
    again = subprocess.run(given, capture_output=True, text=True, check=True)
    assert "resumed after" in again.stdout + again.stderr
    assert Path("out/HMDB51/X3D_M_VMP/split-1_seed-0/test_results.json").is_file()
    third = subprocess.run(given, capture_output=True, text=True, check=True)
    assert "1 runs: 1 finished; 0 can run now" in third.stdout


def test_a_title_of_the_table_is_as_in_the_paper():
    assert [tables.title_of(each) for each in COLUMNS] == [
        *("HMDB-51 split 1", "HMDB-51 split 2", "HMDB-51 split 3", "HMDB-51 mean"),
        *("FineGym top-1", "FineGym top-5", "MPII Cooking 2 top-1", "MPII Cooking 2 top-5"),
    ]
