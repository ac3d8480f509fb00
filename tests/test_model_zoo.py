"""What MODEL_ZOO.md says: its recipes load, its sources are known, its figures hold.

`pytest -m slow -k parity tests/test_model_zoo.py` measures and prints the figures of parity.
"""

import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
import yaml

from tests.models import test_golden as golden
from vmp.config import get_cfg, load_cfg
from vmp.data.build import build_test_view
from vmp.models import build_model
from vmp.models.key_maps import SOURCES
from vmp.prompts import MotionPrompt

ROOT = Path(__file__).parents[1]
BASE = ROOT / "configs" / "base"
PAGE = (ROOT / "MODEL_ZOO.md").read_text(encoding="utf-8")
COLUMNS = ["checkpoint", "recipe", "source", "top-1 / top-5", "switches", "file"]
# The folder of each project's addresses.
PROJECTS = {
    "PySlowFast": "https://dl.fbaipublicfiles.com/pyslowfast/",
    "pytorchvideo": "https://dl.fbaipublicfiles.com/pytorchvideo/",
    "TimeSformer": "https://www.dropbox.com/s/",
}
RELEASE = BASE / "VMPs_release.yaml"


class Row(NamedTuple):
    section: str
    name: str
    recipe: str
    source: str
    published: str
    switches: tuple[str, ...]
    file: str
    url: str

    def opts(self) -> list[str]:
        return [word for switch in self.switches for word in switch.split(" ", 1)]


def read_tables(page: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield (heading above, rows of cells, the first that of the titles) of each table."""
    section, rows = "", []
    for line in [*page.splitlines(), ""]:
        if line.startswith("#"):
            section = line.lstrip("# ")
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            yield section, [rows[0], *rows[2:]]
            rows = []


def read_rows() -> Iterator[Row]:
    for section, (titles, *rows) in read_tables(PAGE):
        if titles != COLUMNS:
            continue
        for name, recipe, source, published, switches, link in rows:
            found = re.fullmatch(r"\[([^]]+)\]\((\S+)\)", link)
            file, url = found.groups() if found else (link, "")
            named = tuple(re.findall(r"`([^`]+)`", switches))
            yield Row(section, name, recipe.strip("`"), source, published, named, file, url)


ROWS = list(read_rows())
LINKED = [row for row in ROWS if row.url]
# Each recipe once with each of its sets of switches.
SETTINGS = sorted({(row.recipe, row.switches): row for row in ROWS}.items())


def label(value):
    return "-".join([value.recipe, *value.switches]) if isinstance(value, Row) else None


def test_the_page_lists_checkpoints_of_each_kind():
    assert {row.section for row in ROWS} == {
        "Kinetics-400",
        "Other videos",
        "Images",
        "The authors' release",
    }
    assert len(ROWS) > 50


def test_every_source_is_one_that_is_told_by_its_names():
    assert {row.source for row in ROWS} == set(SOURCES) - {"vmp"}


@pytest.mark.parametrize("row", [row for _, row in SETTINGS], ids=label)
def test_the_recipe_of_a_row_loads_with_its_switches_and_can_be_built(row):
    path = BASE / f"{row.recipe}.yaml"
    cfg = load_cfg(path, ["TRAIN.DATASET", "csv", *row.opts()])
    with torch.device("meta"):
        build_model(cfg)
    plain = load_cfg(path, ["TRAIN.DATASET", "csv"])
    assert (cfg == plain) == (not row.switches)  # a switch changes something


def test_addresses_are_whole_and_named_as_their_files_are():
    assert len({row.url for row in LINKED}) == len(LINKED)
    for row in LINKED:
        url = urlsplit(row.url)
        assert url.scheme == "https", row
        assert url.path.rpartition("/")[2] == row.file, row
        assert url.query == ("dl=0" if row.source == "timesformer" else ""), row


def test_only_the_checkpoints_without_an_address_have_none():
    without = {row.name for row in ROWS if not row.url}
    assert {row.name for row in ROWS if row.section == "The authors' release"} <= without
    assert sum(row.section != "The authors' release" for row in ROWS if not row.url) == 3
    assert all("augreg" in name for name in without if name.startswith("ViT"))


def test_names_of_files_go_with_their_source():
    for row in LINKED:
        if row.source == "caffe2":
            assert row.file.endswith(".pkl"), row
        if row.source in ("timm", "resnet"):
            assert re.fullmatch(r".+-[0-9a-f]{8}\.pth", row.file), row
        pooled = load_cfg(BASE / f"{row.recipe}.yaml", ["TRAIN.DATASET", "csv"]).C2D.TEMPORAL_POOL
        assert pooled == ("NOPOOL" not in row.file), row


def test_the_shortcut_norm_is_switched_off_for_the_files_that_have_none():
    off = {row.file for row in ROWS if "X3D.SHORTCUT_NORM False" in row.switches}
    assert off == {
        row.file for row in ROWS if row.source == "pytorchvideo" and row.recipe.startswith("X3D")
    }
    assert len(off) == 4


def test_heads_have_the_classes_of_their_data_set():
    classes = {"K600": 600, "SSv2": 174, "Charades": 157, "MPII": 67}
    for row in ROWS:
        cfg = load_cfg(BASE / f"{row.recipe}.yaml", ["TRAIN.DATASET", "csv", *row.opts()])
        named = [
            n for word, n in classes.items() if word.lower() in f"{row.name} {row.url}".lower()
        ]
        assert (named[-1] if named else 400) == cfg.MODEL.NUM_CLASSES, row


def test_published_figures_are_those_of_the_comments_of_the_recipes():
    stated = {}
    for path in sorted(BASE.glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        text = " ".join(line.strip("# ") for line in lines if line.startswith("#"))
        pattern = r"(\w+)(?:'s)? model zoo(?: has weights of)?, Kinetics-400: ([\d.]+) top-1"
        for project, figure in re.findall(pattern, text):
            stated[path.stem, project] = figure
    assert len(stated) >= 11
    for (recipe, project), figure in stated.items():
        of_project = [
            row.published.partition(" / ")[0]
            for row in LINKED
            if row.section == "Kinetics-400"
            and row.recipe == recipe
            and row.url.startswith(PROJECTS[project])
        ]
        assert figure in of_project, (recipe, project)


def test_figures_are_percentages_and_top_5_is_the_larger():
    for row in ROWS:
        figures = [float(each) for each in re.findall(r"[\d.]+", row.published)]
        assert all(30 < each < 100 for each in figures), row
        assert figures == sorted(figures), row


# pytorchvideo's model zoo, millions
@pytest.mark.parametrize(
    ("recipe", "published"), [("SLOWFAST_8x8_R101", 62.83), ("SLOWFAST_16x8_R101_50_50", 53.77)]
)
def test_a_deeper_slowfast_has_the_published_number_of_parameters(recipe, published):
    with torch.device("meta"):
        model = build_model(load_cfg(BASE / f"{recipe}.yaml"))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(published, abs=5e-3)


@pytest.mark.parametrize(
    ("recipe", "frames", "places"),
    [("TimeSformer_divST_16x16_448", 16, 28 * 28), ("TimeSformer_divST_96x4_224", 96, 14 * 14)],
)
def test_a_larger_timesformer_differs_from_the_base_in_its_embeddings_alone(recipe, frames, places):
    with torch.device("meta"):
        base = build_model(load_cfg(BASE / "TimeSformer_divST_8x32_224.yaml")).state_dict()
        larger = build_model(load_cfg(BASE / f"{recipe}.yaml")).state_dict()
    changed = {
        name: tuple(larger[name].shape) for name in base if base[name].shape != larger[name].shape
    }
    expected = {
        "backbone.net.pos_embed": (1, 1 + places, 768),
        "backbone.net.time_embed": (1, frames, 768),
    }
    assert changed.items() <= expected.items()
    assert changed["backbone.net.time_embed"] == expected["backbone.net.time_embed"]
    assert larger.keys() == base.keys()


# ---------------------------------------------------------------- the authors' release


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_of(cfg: Mapping[str, Any], name: str) -> Any:
    for key in name.split("."):
        cfg = cfg[key]
    return cfg


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Return the config that MODEL_ZOO.md tells to write."""
    (recipe,) = re.findall(r"cat > release\.yaml <<'END'\n(.*?)END\n", PAGE, re.DOTALL)
    path = tmp_path_factory.mktemp("release") / "release.yaml"
    path.write_text(recipe.replace("- configs/", f"- {ROOT}/configs/"), encoding="utf-8")
    return load_cfg(path)


def test_the_preset_holds_nothing_but_keys_of_the_config_and_they_come_through(release):
    switches = {name for name, _ in leaves(yaml.safe_load(RELEASE.read_text(encoding="utf-8")))}
    assert "PROMPT.LUMA" in switches
    assert switches <= {name for name, _ in leaves(get_cfg())}
    alone = load_cfg(RELEASE)
    assert [name for name in switches if value_of(release, name) != value_of(alone, name)] == []


def test_the_preset_changes_what_it_must_and_leaves_the_network_alone(release):
    bases = [BASE / "TimeSformer_divST_8x32_224.yaml", BASE / "MPIICooking2.yaml"]
    plain = [load_cfg(path) for path in bases]
    assert {"LUMA": "bgr", "WEIGHT_DECAY": 1e-4, "ENABLE": True}.items() <= release.PROMPT.items()
    assert release.PROMPT.PENALTY == 0  # theirs too
    assert release.TIMESFORMER == plain[0].TIMESFORMER
    assert release.TRAIN == plain[1].TRAIN
    assert release.MODEL.NUM_CLASSES == 67


def test_a_model_of_the_preset_has_the_releases_prompt_and_classes(release):
    with torch.device("meta"):
        model = build_model(release)
    (prompt,) = model.prompts.values()
    assert isinstance(prompt, MotionPrompt)
    assert prompt.luma == "bgr"
    assert model.backbone.net.head.out_features == 67
    assert model.backbone.net.time_embed.shape[1] == 8


def release_frames(total: int, fps: float) -> list[int]:
    """Return the frames of the release's only test clip, by its decoder, from its description.

    Args:
        total: frames of the video.
        fps: of the video.
    """
    window = 32 * 9 / 30 * fps
    # from frame 0 to the last within the window, and one more
    frames = list(range(min(total, math.floor(window - 1) + 2)))
    if len(frames) < 9:
        frames = frames * math.ceil(9 / len(frames))
        end = len(frames) - 1.0
    elif len(frames) - 1 < window:
        end = len(frames) - 1.0
    else:
        end = window - 1
    return [frames[place] for place in torch.linspace(0, end, 9).long()]


def picked_frames(release, total: int, fps: float) -> list[list[int]]:
    """Return the frames of each of our views."""
    tests = release.TEST
    pick, _ = build_test_view(
        release, release.DATA.NUM_FRAMES + 1, tests.NUM_ENSEMBLE_VIEWS, tests.NUM_SPATIAL_CROPS
    )
    views = tests.NUM_ENSEMBLE_VIEWS * tests.NUM_SPATIAL_CROPS
    return [pick(total, fps, view, np.random.default_rng(0)) for view in range(views)]


def test_the_release_s_rule_is_known_in_simple_cases():
    assert release_frames(1000, 30.0) == [0, 35, 71, 107, 143, 179, 215, 251, 287]
    assert release_frames(9, 30.0) == list(range(9))
    assert release_frames(5, 30.0) == [0, 1, 2, 3, 4, 0, 1, 2, 4]


@pytest.mark.parametrize("fps", [15.0, 24.0, 25.0, 29.4, 30000 / 1001, 30.0, 60.0])
def test_every_view_has_the_release_s_frames_from_frame_0_for_long_and_short_videos(release, fps):
    for total in (*range(1, 600, 7), 8, 9, 240, 241, 282, 283, 284, 288, 289, 290, 5000):
        wanted = release_frames(total, fps)
        assert wanted[0] == 0
        assert picked_frames(release, total, fps) == [wanted] * 3, total


def test_other_policies_do_not_give_the_release_s_frames(release):
    assert release.DATA.SHORT_CLIP == "spread"
    for policy in ("hold", "loop"):
        other = release.clone()
        other.defrost()
        other.DATA.SHORT_CLIP = policy
        for total, fps in ((100, 30.0), (5000, 29.4)):
            assert picked_frames(other, total, fps)[0] != release_frames(total, fps)


# ---------------------------------------------------------------- parity


def read_parity() -> dict[str, list[float]]:
    """Return {network: [float32 training crop, float32 test crop, float64]} as the page has it."""
    figures = {}
    for section, (titles, *rows) in read_tables(PAGE):
        if section == "Parity" and titles[0] == "network":
            figures |= {row[0].strip("`"): [float(cell) for cell in row[2:5]] for row in rows}
    return figures


def test_the_parity_that_is_claimed_is_within_what_the_golden_tests_allow():
    figures = read_parity()
    assert len(figures) == 4
    for train, test, double in figures.values():
        assert 0 < train < 2e-5
        assert 0 < test < 2e-5
        assert 0 < double < 1e-9


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max())


def places_of(model, run) -> torch.Tensor:
    """Return what the network gives while `run()` runs: logits at each place, before their mean."""
    given = []
    hook = model.backbone.net.register_forward_hook(lambda *args: given.append(args[2]))
    run()
    hook.remove()
    return given[0]


def measure_convolutional(reference, name: str) -> list[float]:
    config, (kind, kwargs) = reference.spec["config"], golden.CONVOLUTIONAL[name]
    sizes = {"num_frames": config["num_frames"], "crop": config["train_crop"]}
    model = golden.make_model(kind, reference, **sizes, **kwargs)
    train = model(reference.clip("train_crop")).logits
    places = places_of(model, lambda: model(reference.clip("test_crop")))
    double = model.double()(reference.clip("train_crop", torch.float64)[:1]).logits
    return [
        gap(train, reference.output("train_crop_logits")),
        gap(places, reference.output("test_crop_logits").movedim(-1, 1)),
        gap(double, reference.output("train_crop_logits_f64")[:1]),
    ]


def measure_timesformer(reference) -> list[float]:
    model = golden.make_model("timesformer", reference, num_frames=8, crop=224, dropout_rate=0.0)
    train = model(reference.clip("eval")).logits
    resized = model.backbone([reference.clip("resized")])
    double = model.double()(reference.clip("eval", torch.float64)[:1]).logits
    return [
        gap(train, reference.output("logits")),
        gap(resized, reference.output("resized_logits")),
        gap(double, reference.output("logits_f64")[:1]),
    ]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.usefixtures("_one_thread")
@torch.no_grad()
@pytest.mark.parametrize("name", read_parity())
def test_parity_measured_is_of_the_size_that_is_claimed(capsys, shared, fill, name):
    transformer = name.startswith("TimeSformer")
    filed = golden.TIMESFORMER if transformer else name
    reference = golden.read_reference(fill, shared / "golden", filed)
    if transformer:
        measured = measure_timesformer(reference)
    else:
        measured = measure_convolutional(reference, name)
    with capsys.disabled():
        sys.stdout.write(f"\n{name}: {', '.join(f'{each:.1e}' for each in measured)}")
    for ours, claimed in zip(measured, read_parity()[name], strict=True):
        assert ours < 10 * claimed  # rounding differs from one processor to the next
