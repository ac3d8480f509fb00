"""Full-size networks start from files of other projects and are trained on other classes."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.engine.conftest import log_of, results_of
from tests.models import foreign
from tests.models.tiny import TINY
from vmp import engine
from vmp.config import load_cfg
from vmp.engine.checkpoint import list_checkpoints
from vmp.models import build_backbone, build_model
from vmp.utils.files import read_tensors, sha256_of

pytestmark = pytest.mark.data

BASE = Path(__file__).parents[2] / "configs" / "base"
HERE = {
    "TRAIN.DATASET": "motionshapes",
    "TRAIN.BATCH_SIZE": 4,
    "TRAIN.EVAL_PERIOD": 0,
    "MODEL.NUM_CLASSES": 8,
    "DATA.SAMPLING_RATE": 1,
    "DATA.TARGET_FPS": 0,
    "DATA.TRAIN_CROP_SIZE": 64,
    "DATA.TEST_CROP_SIZE": 64,
    "DATA.TRAIN_JITTER_SCALES": [64, 72],
    "DATA.RANDOM_FLIP": False,
    "DATA_LOADER.NUM_WORKERS": 0,
    "TEST.BATCH_SIZE": 8,
    "TEST.NUM_ENSEMBLE_VIEWS": 1,
    "TEST.NUM_SPATIAL_CROPS": 1,
    "SOLVER.MAX_EPOCH": 1,
    "LOG_PERIOD": 1,
    "TENSORBOARD": False,
}
UPDATES = 2


class Start(NamedTuple):
    """A recipe and the file that its project publishes weights in.

    Attributes:
        recipe: of configs/base.
        family: of mapping.json, or "timesformer".
        golden: the file with the names of its entries.
        suffix: of the file: ".pkl" is Caffe2's, ".pyth" PySlowFast's or TimeSformer's.
        head: the layer that is replaced.
        arch: PySlowFast's MODEL.ARCH and MODEL.MODEL_NAME, for a ".pyth".
    """

    recipe: str
    family: str
    golden: str
    suffix: str
    head: str
    arch: tuple[str, str] = foreign.VIT

    @property
    def source(self) -> str:
        by_suffix = "caffe2" if self.suffix == ".pkl" else "pyslowfast"
        return "timesformer" if self.family == "timesformer" else by_suffix


STARTS = {
    "slowfast": Start("SLOWFAST_8x8_R50", "slowfast", "SLOWFAST_8x8_R50", ".pkl", "blocks.6.proj"),
    "c2d": Start("C2D_NOPOOL_8x8_R50", "resnet_nopool", "C2D_8x8_R50", ".pkl", "blocks.5.proj"),
    "i3d": Start("I3D_8x8_R50", "resnet_pool", "C2D_8x8_R50", ".pkl", "blocks.6.proj"),
    "x3d": Start("X3D_M", "x3d", "X3D_S", ".pyth", "blocks.5.proj", arch=("x3d", "X3D")),
    "timesformer": Start(
        *("TimeSformer_divST_8x32_224", "timesformer", "TIMESFORMER_divST_8x32_224"),
        suffix=".pyth",
        head="head",
    ),
}


@pytest.fixture(scope="module")
def few_videos(prepare, tmp_path_factory) -> Path:
    """Return a MotionShapes of as many training videos as it takes for UPDATES."""
    folder = tmp_path_factory.mktemp("few")
    counts = {"train": UPDATES * HERE["TRAIN.BATCH_SIZE"], "test": 8}
    prepare.make_dataset(folder, counts, seed=0, num_frames=12, size=32, workers=1)
    return folder


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """Return a folder whose large files do not outlive the test: pytest keeps those of three."""
    yield tmp_path
    for path in tmp_path.rglob("*.p*"):
        if path.suffix in (".pth", ".pyth", ".pkl"):
            path.unlink()


@pytest.fixture
def make_recipe(folder, few_videos) -> Callable[..., Any]:
    """Return a function (model, overrides) -> cfg: its recipe, on few small videos."""

    def make(model: str, overrides: dict[str, Any]) -> Any:
        values = HERE | {"DATA.PATH_TO_DATA_DIR": few_videos, "OUTPUT_DIR": folder / "run"}
        return load_cfg(BASE / f"{STARTS[model].recipe}.yaml", as_options(values | overrides))

    return make


class Published(NamedTuple):
    """A file of weights for 400 classes, and the same as our state dict."""

    path: Path
    expected: dict[str, torch.Tensor]


@pytest.fixture
def publish(shared, fill, folder) -> Callable[..., Published]:
    """Return a function (model, overrides of its recipe) -> a file as it is published."""
    golden = shared / "golden"
    mapping = foreign.read_mapping(golden)

    def make(model: str, overrides: dict[str, Any]) -> Published:
        start = STARTS[model]
        cfg = load_cfg(BASE / f"{start.recipe}.yaml", as_options(overrides))
        net = build_backbone(cfg).net
        rules, has = mapping["families"][start.family], set(net.state_dict())
        spec = json.loads((golden / f"{start.golden}.json").read_text())
        names = [name for name, _ in spec["params"] if foreign.expand(rules, name) in has]
        state = foreign.make_state(fill, names, rules, net)
        path = folder / f"{start.recipe}{start.suffix}"
        if start.suffix == ".pkl":
            foreign.write_caffe2(path, state, mapping)
        else:
            foreign.write_pyslowfast(path, state, start.arch)
        return Published(path, foreign.our_state(state, mapping, start.family))

    return make


def section(model: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a backbone as overrides of its section."""
    return {f"{model}.{key}".upper(): value for key, value in sizes.items()}


def as_options(overrides: dict[str, Any]) -> list[str]:
    return [str(text) for pair in overrides.items() for text in pair]


@pytest.fixture
def first_state(monkeypatch) -> dict[str, torch.Tensor]:
    """Return what is empty now and, once a training runs, the state its first update meets."""
    runner = sys.modules["vmp.engine.training"]
    train_step, found = runner.train_step, {}

    def step(learner, batches, epoch):
        if not found:
            found.update({n: v.clone() for n, v in learner.model.state_dict().items()})
        return train_step(learner, batches, epoch)

    monkeypatch.setattr(runner, "train_step", step)
    return found


def check_finetuning(
    model: str, cfg: Any, published: Published, first_state: dict[str, torch.Tensor]
) -> None:
    """Run, and assert what a fine-tuning is: where it started, that it went on, what it says."""
    start = STARTS[model]
    fresh = build_fresh(cfg)
    engine.run(cfg)
    head = {f"backbone.net.{start.head}.{leaf}" for leaf in ("weight", "bias")}
    resized = {"backbone.net.pos_embed"} if model == "timesformer" else set()
    kept = published.expected.keys() - head - resized
    assert first_state.keys() == fresh.keys()
    assert [n for n in kept if not torch.equal(first_state[n], published.expected[n])] == []
    prompt = {name for name in fresh if name.startswith("prompts.")}
    assert bool(prompt) is cfg.PROMPT.ENABLE
    assert fresh.keys() == kept | head | resized | prompt
    assert all(torch.equal(first_state[name], fresh[name]) for name in head | prompt)
    assert not any(torch.equal(first_state[name], fresh[name]) for name in resized)

    report = json.loads((Path(cfg.OUTPUT_DIR) / "init_report.json").read_text())
    assert (report["source"], report["path"]) == (start.source, str(published.path))
    assert report["sha256"] == sha256_of(published.path)
    assert set(report["dropped"]) == head
    assert report["dropped"][f"backbone.net.{start.head}.bias"] == "(400,) -> (8,)"
    assert set(report["resized"]) == resized
    assert set(report["missing"]) == prompt
    assert report["unexpected"] == {}
    assert set(report["used"]) == kept | resized

    lines = log_of(cfg)
    assert len(lines) == UPDATES
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    assert results_of(cfg)["counts"]["evaluated_videos"] == 8
    after = read_tensors(list_checkpoints(cfg.OUTPUT_DIR)[-1])["model"]
    assert all(value.isfinite().all() for value in after.values())
    still = {name for name in after if torch.equal(after[name], first_state[name])}
    assert still == set()


def build_fresh(cfg: Any) -> dict[str, torch.Tensor]:
    """Return the state that the recipe itself starts from."""
    torch.manual_seed(cfg.RNG_SEED)
    return build_model(cfg).state_dict()


SLOW = ("slowfast", "timesformer")


@pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in STARTS],
)
def test_a_published_file_is_fine_tuned_with_its_head_replaced(
    model, make_recipe, publish, first_state
):
    published = publish(model, {})
    cfg = make_recipe(model, {"TRAIN.INIT_FROM": published.path})
    check_finetuning(model, cfg, published, first_state)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("model", STARTS)
def test_a_small_one_is_fine_tuned_with_a_prompt_before_it(
    model, make_recipe, publish, first_state
):
    sizes = section(model, TINY[model])
    published = publish(model, sizes)
    cfg = make_recipe(model, sizes | {"TRAIN.INIT_FROM": published.path, "PROMPT.ENABLE": True})
    check_finetuning(model, cfg, published, first_state)
