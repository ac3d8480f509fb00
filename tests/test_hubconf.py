"""torch.hub: every backbone by its recipe, and the layer, from a checkout that is not installed."""

import logging
import shutil
import subprocess
import sys

import pytest
import torch
from fvcore.common.config import CfgNode

from tests.conftest import ROOT
from vmp.config import load_cfg
from vmp.models import build_model
from vmp.prompts import MotionPrompt

RECIPES = {
    path.stem.lower(): path
    for path in sorted((ROOT / "configs" / "base").glob("*.yaml"))
    if "NAME" in CfgNode.load_yaml_with_base(str(path)).get("MODEL", {})
}
TINY = {"X3D.WIDTH_FACTOR": 1.0, "X3D.DEPTH_FACTOR": 0.2, "X3D.DIM_C5": 64}
TINY["DATA.TRAIN_CROP_SIZE"] = 32


def load(name: str, **options):
    return torch.hub.load(str(ROOT), name, source="local", **options)


@pytest.fixture
def _local(monkeypatch):
    """Have torch.hub find this checkout where it would download a repository."""
    monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda *args, **kwargs: str(ROOT))


@pytest.mark.usefixtures("_local")
def test_every_recipe_of_a_backbone_is_listed_and_the_layer_and_nothing_else():
    assert len(RECIPES) > 10
    assert set(torch.hub.list("anybody/vmp")) == {"motion_prompt", *RECIPES}


@pytest.mark.usefixtures("_local")
@pytest.mark.parametrize("name", ["motion_prompt", *RECIPES])
def test_help_says_what_an_entry_is_and_takes(name):
    text = torch.hub.help("anybody/vmp", name)
    told = ["MotionPrompt"]
    if name in RECIPES:
        first = RECIPES[name].read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        told = [first, "num_classes:", "prompt:", "checkpoint:", "overrides:"]
    assert [each for each in told if each not in text] == []
    assert "_BASE_" not in text


@pytest.mark.parametrize("name", RECIPES)
def test_an_entry_is_the_model_of_its_recipe(name):
    with torch.device("meta"):  # no memory, no random numbers
        model = load(name, num_classes=7, prompt=True)
        opts = ["MODEL.NUM_CLASSES", "7", "PROMPT.ENABLE", "True"]
        wanted = build_model(load_cfg(RECIPES[name], opts))
    shapes = {key: value.shape for key, value in wanted.state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    assert (model.clip_frames, str(model)) == (wanted.clip_frames, str(wanted))


def test_a_backbone_has_400_classes_and_no_prompt_unless_told():
    with torch.device("meta"):
        model = load("x3d_xs")
    assert model.backbone.net.blocks[-1].proj.out_features == 400
    assert (len(model.prompts), model.clip_frames) == (0, 4)


def test_the_layer_takes_its_own_options():
    torch.manual_seed(1)
    found = load("motion_prompt", luma="bgr", std=(0.2, 0.3, 0.4))
    torch.manual_seed(1)
    wanted = MotionPrompt(luma="bgr", std=(0.2, 0.3, 0.4))
    clip = torch.randint(0, 256, (1, 3, 4, 8, 8), dtype=torch.uint8)
    for one, other in zip(found(clip), wanted(clip), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_gives_the_weights_and_what_it_lacks_is_told(tmp_path, caplog):
    options = {"num_classes": 5, "prompt": True, "overrides": TINY}
    trained = load("x3d_xs", **options).eval()
    path = tmp_path / "trained.pth"
    torch.save(trained.state_dict(), path)
    clip = torch.randint(0, 256, (2, 3, 5, 32, 32), dtype=torch.uint8)
    loaded = load("x3d_xs", checkpoint=path, **options).eval()
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
    for one, other in zip(loaded(clip), trained(clip), strict=True):
        assert torch.equal(one, other)
    other_head = load("x3d_xs", checkpoint=str(path), **{**options, "num_classes": 6})
    assert "random values start backbone.net.blocks.5.proj.weight" in caplog.text
    assert torch.equal(other_head.prompts["0"].power_norm.m, trained.prompts["0"].power_norm.m)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "nowhere.pth"}, "nowhere.pth does not exist"),
        ({"checkpoint": "."}, "is a folder"),
        ({"checkpoint": "hubconf.py"}, "no known format"),
        ({"num_classes": "five"}, "NUM_CLASSES wants a whole number"),
        ({"num_classes": 1}, "must be at least 2"),
        ({"prompt": "yes"}, "PROMPT.ENABLE wants True or False"),
        ({"overrides": {"DATA.NUM_FRAME": 3}}, "did you mean DATA.NUM_FRAMES"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(options, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=message) as error:
        load("x3d_xs", **{**options, "overrides": {**TINY, **options.get("overrides", {})}})
    assert "\n" not in str(error.value)


ELSEWHERE = """
import sys
import torch
root = sys.argv[1]
sys.meta_path = [each for each in sys.meta_path if "editable" not in str(each).lower()]

layer = torch.hub.load(root, "motion_prompt", source="local")
assert sys.modules["vmp"].__file__.startswith(root), sys.modules["vmp"].__file__
clip = torch.randint(0, 256, (1, 3, 5, 32, 32), dtype=torch.uint8)
layer(clip)[0].sum().backward()

fvcore = sys.modules["fvcore"] = None  # as if it were not installed
try:
    torch.hub.load(root, "x3d_xs", source="local")
except ImportError as error:
    assert str(error) == f"x3d_xs needs fvcore, which is not installed: pip install {root}", error
else:
    raise AssertionError("it does without")
del sys.modules["fvcore"]

tiny = OPTIONS
model = torch.hub.load(root, "x3d_xs", source="local", num_classes=5, prompt=True, overrides=tiny)
assert not [path for path in sys.path if path.startswith(root)]
assert model(clip).logits.shape == (1, 5)
"""


def test_a_checkout_that_is_not_installed_will_do_from_any_folder(tmp_path):
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in ("vmp", "configs/base"):
        shutil.copytree(ROOT / folder, checkout / folder)
    shutil.copy(ROOT / "hubconf.py", checkout)
    code = ELSEWHERE.replace("OPTIONS", repr(TINY))
    command = [sys.executable, "-W", "ignore", "-c", code, str(checkout)]
    ended = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
