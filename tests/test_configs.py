"""Every YAML file of configs/: it loads, its model can be built, and twins differ in the prompt."""

from pathlib import Path

import pytest
import torch
import yaml

from vmp.config import load_cfg
from vmp.models import build_model

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
RECIPES = [path for path in FILES if path.parent.name != "base"]
TWINS = [path for path in RECIPES if "_VMP" in path.stem]
# How many there are: raise it with each file you add, so that none can hide from these tests.
COUNTS = {"base": 24, "UTInteraction": 20, "MotionShapes": 16}
COUNTS |= {"HMDB51": 14, "FineGym": 14, "MPIICooking2": 14}  # the rows of the paper's Table 1
# A file of base/ does not choose a data set; a list of videos goes with any number of classes.
ANY_CLASSES = ["TRAIN.DATASET", "csv"]


def name(path):
    return path.relative_to(CONFIGS).as_posix()


def baseline(path):
    return path.with_name(path.stem.partition("_VMP")[0] + ".yaml")


def test_every_file_is_found():
    found = {folder: 0 for folder in COUNTS}
    for path in FILES:
        found[path.parent.name] = found.get(path.parent.name, 0) + 1
    assert found == COUNTS


def test_no_config_has_another_ending():
    others = [path for path in CONFIGS.rglob("*") if path.is_file() and path.suffix != ".yaml"]
    assert others == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_config_loads_and_its_model_can_be_built(path):
    cfg = load_cfg(path, ANY_CLASSES if path.parent.name == "base" else [])
    with torch.device("meta"):
        model = build_model(cfg)
    assert all(parameter.is_meta for parameter in model.backbone.parameters())
    assert len(model.prompts) == (len(cfg.PROMPT.PATHWAYS) if cfg.PROMPT.ENABLE else 0)


@pytest.mark.parametrize("path", TWINS, ids=name)
def test_a_prompted_recipe_is_its_baseline_and_a_prompt(path):
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert written.keys() <= {"_BASE_", "PROMPT", "OUTPUT_DIR"}
    assert written["_BASE_"] == baseline(path).name
    plain, prompted = load_cfg(baseline(path)), load_cfg(path)
    assert prompted.PROMPT.ENABLE
    assert not plain.PROMPT.ENABLE
    for key in plain:
        assert key in ("PROMPT", "OUTPUT_DIR") or plain[key] == prompted[key], key


@pytest.mark.parametrize("path", sorted(set(RECIPES) - set(TWINS)), ids=name)
def test_every_baseline_has_a_prompted_twin(path):
    assert [twin for twin in TWINS if baseline(twin) == path]


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipes_folder_is_the_data_set_it_is_for(path):
    assert path.parent.name.lower() == load_cfg(path).TRAIN.DATASET
