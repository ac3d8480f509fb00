"""load_cfg: what it takes, what it refuses, and what it says then."""

import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from vmp.config import defaults, get_cfg, load_cfg

CONFIGS = ROOT / "configs"


def write(folder, name="a.yaml", **values):
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return path


def test_file_then_overrides_over_defaults_and_frozen(tmp_path):
    path = write(tmp_path, SOLVER={"BASE_LR": 0.1, "MAX_EPOCH": 3})
    cfg = load_cfg(path, ["SOLVER.MAX_EPOCH", "7"])
    assert cfg.SOLVER.BASE_LR == 0.1
    assert cfg.SOLVER.MAX_EPOCH == 7
    assert cfg.SOLVER.MOMENTUM == get_cfg().SOLVER.MOMENTUM
    with pytest.raises(AttributeError):
        cfg.SOLVER.MAX_EPOCH = 8


def test_a_list_of_bases_is_read_in_order(tmp_path):
    write(tmp_path, "one.yaml", SOLVER={"BASE_LR": 0.1, "MAX_EPOCH": 3})
    write(tmp_path, "two.yaml", SOLVER={"MAX_EPOCH": 4}, RNG_SEED=5)
    path = write(tmp_path, _BASE_=["one.yaml", "two.yaml"], RNG_SEED=6)
    cfg = load_cfg(path)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_EPOCH, cfg.RNG_SEED) == (0.1, 4, 6)


def test_each_recipe_has_its_own_folder_unless_one_is_given(tmp_path):
    (tmp_path / "Set").mkdir()
    path = write(tmp_path / "Set", "X3D.yaml", RNG_SEED=1)
    assert load_cfg(path).OUTPUT_DIR == "runs/Set/X3D"
    assert load_cfg(path, ["OUTPUT_DIR", "elsewhere"]).OUTPUT_DIR == "elsewhere"


def test_every_default_has_a_comment_of_its_own():
    lines = Path(defaults.__file__).read_text().splitlines()
    keys = [
        number for number, line in enumerate(lines) if re.match(r"_C\.[\w.]+ = (?!CfgNode)", line)
    ]
    assert len(keys) > 100
    bare = [lines[number] for number in keys if not lines[number - 1].startswith("# ")]
    assert bare == []


def test_the_defaults_are_a_valid_config():
    load_cfg(None)


def test_a_dumped_config_loads_to_the_same(tmp_path):
    cfg = load_cfg(None, ["PROMPT.ENABLE", "True", "DATA.MEAN", "[0.1,0.2,0.3]"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert load_cfg(tmp_path / "config.yaml") == cfg


@pytest.mark.parametrize(
    ("opts", "key", "value"),
    [
        (["SOLVER.BASE_LR", "1e-4"], "BASE_LR", 1e-4),
        (["SOLVER.BASE_LR", "1"], "BASE_LR", 1.0),
        (["SOLVER.NESTEROV", "false"], "NESTEROV", False),
        (["SOLVER.STEPS", "[0, 5, 9]"], "STEPS", [0, 5, 9]),
        (["SOLVER.LRS", "(1, .5, .1)"], "LRS", [1.0, 0.5, 0.1]),
    ],
)
def test_text_becomes_the_type_of_the_default(opts, key, value):
    loaded = load_cfg(None, opts).SOLVER[key]
    assert loaded == value
    assert type(loaded) is type(value)


def test_yaml_numbers_without_a_point_are_numbers(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("SOLVER: {WEIGHT_DECAY: 1e-5, BASE_LR: 1}\n")  # YAML 1.1 reads 1e-5 as text
    assert load_cfg(path).SOLVER.WEIGHT_DECAY == 1e-5


def test_paths_made_of_digits_stay_text():
    assert load_cfg(None, ["OUTPUT_DIR", "2024"]).OUTPUT_DIR == "2024"


def test_a_default_of_none_takes_a_number():
    cfg = load_cfg(None, ["PROMPT.SIGMOID.M", "0.5"])
    assert cfg.PROMPT.SIGMOID.M == 0.5
    assert cfg.PROMPT.SIGMOID.N is None


def test_a_value_of_a_file_does_not_change_what_the_key_wants(tmp_path):
    path = write(tmp_path, PROMPT={"SIGMOID": {"M": 0.5}, "PATHWAYS": []})
    cfg = load_cfg(path, ["PROMPT.SIGMOID.M", "None", "PROMPT.PATHWAYS", "[0]"])
    assert cfg.PROMPT.SIGMOID.M is None
    assert cfg.PROMPT.PATHWAYS == [0]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.NUM_CLASES", "6"], "did you mean MODEL.NUM_CLASSES?"),
        (["BASE_LR", "1"], "did you mean SOLVER.BASE_LR?"),
        (["PROMT.ENABLE", "True"], "did you mean PROMPT?"),
        (["TRAIN.BATCH_SIZE", "x"], "wants a whole number, 'x' was given"),
        (["TRAIN.BATCH_SIZE", "2.5"], "wants a whole number"),
        (["PROMPT.ENABLE", "1"], "wants True or False"),
        (["SOLVER.BASE_LR", "fast"], "wants a number"),
        (["DATA.MEAN", "0.5"], "wants a list"),
        (["DATA.MEAN", "[a, b]"], "wants"),
        (["MODEL", "3"], "is a section"),
        (["RNG_SEED"], "no partner"),
    ],
)
def test_wrong_keys_and_types_say_what_is_wanted(opts, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
        load_cfg(None, opts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "OUTPUT_DIR: !!python/object/apply:os.system ['touch {marker}']\n",
        "OUTPUT_DIR: !!python/name:os.system\n",
        "RNG_SEED: [1, 2\n",
        "just text\n",
        "",
    ],
)
def test_what_is_not_plain_yaml_is_refused_and_nothing_runs(tmp_path, text):
    marker = tmp_path / "ran"
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace("{marker}", str(marker)))
    with pytest.raises(ValueError, match=r"bad\.yaml"):
        load_cfg(path)
    assert not marker.exists()


def test_python_files_are_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "config.py"
    path.write_text(f"open({str(marker)!r}, 'w')\ncfg = {{}}\n")
    with pytest.raises(ValueError, match="never executed"):
        load_cfg(path)
    write(tmp_path, "base.yaml", _BASE_="config.py")
    with pytest.raises(ValueError, match="a config is a mapping"):
        load_cfg(tmp_path / "base.yaml")
    assert not marker.exists()


def test_missing_files_and_circles_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        load_cfg(tmp_path / "none.yaml")
    path = write(tmp_path, _BASE_="gone.yaml")
    with pytest.raises(ValueError, match=r"gone\.yaml"):
        load_cfg(path)
    circle = write(tmp_path, "circle.yaml", _BASE_="circle.yaml")
    with pytest.raises(ValueError, match="leads back to itself"):
        load_cfg(circle)


def test_recipes_are_found_from_any_folder_and_the_log_says_which(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    cfg = load_cfg("configs/MotionShapes/X3D_XS_VMP.yaml")
    assert cfg == load_cfg(CONFIGS / "MotionShapes" / "X3D_XS_VMP.yaml")
    (told,) = caplog.messages
    assert told.endswith(f"{CONFIGS}/MotionShapes/X3D_XS_VMP.yaml is read")


def test_a_recipe_of_ones_own_builds_on_ours_from_any_folder(tmp_path):
    (tmp_path / "mine.yaml").write_text("_BASE_: [configs/base/X3D_M.yaml]\nRNG_SEED: 7\n")
    cfg = load_cfg(tmp_path / "mine.yaml")
    assert (cfg.MODEL.NAME, cfg.RNG_SEED) == ("x3d", 7)


def test_a_file_that_is_there_comes_before_ours(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "configs" / "MotionShapes"
    own.mkdir(parents=True)
    (own / "X3D_XS.yaml").write_text("RNG_SEED: 7\n")
    assert load_cfg("configs/MotionShapes/X3D_XS.yaml").RNG_SEED == 7
    assert not caplog.messages


@pytest.mark.parametrize("path", ["configs/base/NONE.yaml", "/configs/MotionShapes/X3D_XS.yaml"])
def test_no_other_recipe_stands_in_for_one_that_nobody_has(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{path}: there is no file {path}"):
        load_cfg(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "it is empty"),
        (b"# RNG_SEED: 1\n", "it is empty"),
        (b"- RNG_SEED\n", "a config is a mapping of keys to values, this is 'a list'"),
        (b"3\n", "a config is a mapping of keys to values, this is '3'"),
        (b"_BASE_: 3\n", "line 1: _BASE_ is the name of a .yaml file, or a list of names"),
        (b"RNG_SEED: 1\n_BASE_: [a.yaml, 3]\n", "line 2: _BASE_ is the name"),
        (b"_BASE_:\n", "line 1: _BASE_ is the name"),
        (b"_BASE_: folder\n", "folder is a folder; name a .yaml file in it"),
        (b"\x80\x02}q\x00", "not a text file in UTF-8"),
        (b"RNG_SEED: \x00\n", "not a text file in UTF-8"),
        (b"SOLVER:\n\tBASE_LR: 1\n", "line 2, column 1); indent with blanks, not tabs"),
        (b"SOLVER:\n  BASE_LR: 1\n\tMAX_EPOCH: 2\n", "line 3, column 1); indent with blanks"),
        (b"RNG_SEED: [1, \xe2\x80\xa8 2\n", "line 3, column 1)"),
        (b"RNG_SEED: 1\nRNG_SEED: 2\n", "line 2: RNG_SEED is in line 1 already"),
        (b"RNG_SEED: 1\n'RNG_SEED': 2\n", "line 2: RNG_SEED is in line 1 already"),
        (b"SOLVER:\n  BASE_LR: 1\nSOLVER: {MAX_EPOCH: 2}\n", "line 3: SOLVER is in line 1 already"),
        (b"PROMPT: {SIGMOID: {M: 1,\n  M: 2}}\n", "line 2: PROMPT.SIGMOID.M is in line 1 already"),
        (b"RNG_SEED: 2001-99-99\n", "month must be in 1..12"),
    ],
)
@pytest.mark.parametrize("in_base", [False, True])
def test_a_mistake_in_a_file_or_its_base_is_one_line_that_names_it(
    in_base, text, message, tmp_path
):
    (tmp_path / "folder").mkdir()
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(text)
    path = write(tmp_path, "mine.yaml", _BASE_="bad.yaml") if in_base else bad
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_cfg(path)
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith(f"{path}: ")
    if "month" not in message and "folder is" not in message:  # which fvcore is the one to find
        assert str(bad) in told


@pytest.mark.parametrize("name", ["configs", "folder.yaml"])
def test_a_folder_in_place_of_a_file_is_told(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is a folder; name a .yaml file in it"):
        load_cfg(tmp_path / name)


def test_a_base_and_its_file_may_have_the_same_keys_and_so_may_merged_mappings(tmp_path):
    write(tmp_path, "base.yaml", RNG_SEED=1)
    path = tmp_path / "mine.yaml"
    path.write_text(
        "_BASE_: base.yaml\nRNG_SEED: 2\nSOLVER: {BASE_LR: &rate 0.5}\n"
        "PROMPT: {LR_MULT: *rate, WEIGHT_DECAY: 0.5}\nBN: &bn {SYNC: False}\n"
    )
    cfg = load_cfg(path)
    assert (cfg.RNG_SEED, cfg.PROMPT.LR_MULT) == (2, 0.5)
    path.write_text("SOLVER:\n  <<: {BASE_LR: 0.5}\n  <<: {MAX_EPOCH: 7}\n  BASE_LR: 0.25\n")
    cfg = load_cfg(path)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_EPOCH) == (0.25, 7)


def test_an_alias_that_holds_itself_ends(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("SOLVER: &solver\n  STEPS: [*solver]\n")
    with pytest.raises(ValueError, match=r"a\.yaml"):
        load_cfg(path)
