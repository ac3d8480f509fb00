"""Write the recipes of a new data set: a backbone's file, and what the data set changes in it."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from preflight_doubts import directions

from vmp.config import load_cfg

VMP = """# The same with a motion prompt; nothing else differs.
_BASE_: {base}
PROMPT:
  ENABLE: True
  # lambda, the weight of the variation in the loss; 0 to 10
  PENALTY: 2.5
  # The attention of a still pixel starts at 0.994. Without these lines the start is drawn, as in
  # the paper, and may be dark.
  SIGMOID:
    M: 1.0
    N: -1.0
"""
FULL = """SOLVER:
  # from scratch take more epochs, and a rate that suits: nothing rescales it for another batch
  BASE_LR: 0.005
  MAX_EPOCH: 30
  WARMUP_EPOCHS: 2.0
"""
SMALL = """  # sizes that a CPU can train from scratch
  TRAIN_JITTER_SCALES: [64, 80]
  TRAIN_CROP_SIZE: 64
  TEST_CROP_SIZE: 64
SOLVER:
  OPTIMIZING_METHOD: adamw
  BASE_LR: 0.001
  MAX_EPOCH: 20
  WARMUP_EPOCHS: 2.0
  WEIGHT_DECAY: 0.05
TEST:
  NUM_ENSEMBLE_VIEWS: 2
  NUM_SPATIAL_CROPS: 1
"""


class Contents(NamedTuple):
    """What of a data set matters to a recipe.

    Attributes:
        folder: that holds the lists.
        classes: names.
        train: videos to train on.
        frames: of the median video.
        fps: likewise.
    """

    folder: Path
    classes: Sequence[str]
    train: int
    frames: int
    fps: float


def check_bases(names: Sequence[str], bases: Path) -> None:
    """Raise ValueError unless each name is that of a backbone's file in `bases`."""
    known = sorted(path.stem for path in bases.glob("*.yaml") if _names_a_backbone(path))
    for name in names:
        if name not in known:
            raise ValueError(f"--recipe {name}: no backbone of that name; {', '.join(known)}")


def _names_a_backbone(path: Path) -> bool:
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "_BASE_" in written:
        return isinstance(written["_BASE_"], str)
    return "NAME" in written.get("MODEL", {})


def recipe_files(names: Sequence[str]) -> list[str]:
    """Return the names of the files that `recipe_texts` gives."""
    return [f"{name}{twin}.yaml" for name in names for twin in ("", "_VMP")]


def recipe_texts(name: str, base: Path, contents: Contents, *, small: bool) -> dict[str, str]:
    """Return file name -> text of a recipe and of its twin with a motion prompt.

    Args:
        name: of the backbone.
        base: its file.
        contents: what the recipe is for.
        small: pixels and rates for a CPU.
    """
    return {
        f"{name}.yaml": baseline(base, contents, small=small),
        f"{name}_VMP.yaml": VMP.format(base=f"{name}.yaml"),
    }


def baseline(base: Path, contents: Contents, *, small: bool) -> str:
    """Return the text of a recipe without a prompt."""
    folder, checkout = contents.folder.absolute(), base.parents[2]
    where = os.path.relpath(base, folder) if folder.is_relative_to(checkout) else str(base)
    directed = directions(contents.classes)
    lines = [
        f"# {len(contents.classes)} classes, {contents.train} videos to train on. Weights to start "
        "from, see MODEL_ZOO.md,",
        "# go into TRAIN.INIT_FROM.",
        f"_BASE_: {_quoted(where)}",
        "TRAIN:",
        "  DATASET: csv",
        f"  BATCH_SIZE: {max(2, min(4 if small else 8, contents.train // 4))}",
        "  EVAL_PERIOD: 5",
        "MODEL:",
        f"  NUM_CLASSES: {len(contents.classes)}",
        *(["  DROPOUT_RATE: 0.0"] if small else []),
        "DATA:",
        f"  PATH_TO_DATA_DIR: {_quoted(str(folder))}",
        *_sampling(base, contents),
    ]
    if directed:
        lines += [
            f"  # mirrored, {directed[0]} would be another class",
            "  RANDOM_FLIP: False",
        ]
    return "\n".join(lines) + "\n" + (SMALL if small else FULL)


def _sampling(base: Path, contents: Contents) -> list[str]:
    """Return the distance of frames where the backbone's own is too long for the median video."""
    data = load_cfg(base, ["TRAIN.DATASET", "csv"]).DATA
    scale = contents.fps / data.TARGET_FPS if data.TARGET_FPS else 1.0
    # with the prompt's frame; frames closer than one of the source would repeat it
    longest = math.floor(contents.frames / (scale * (data.NUM_FRAMES + 1)))
    rate = max(min(data.SAMPLING_RATE, longest), math.ceil(1 / scale))
    if rate == data.SAMPLING_RATE:
        return []
    told = f"half of the videos have at most {contents.frames} frames, at {contents.fps:.4g} fps"
    return [
        f"  # the backbone's own is {data.SAMPLING_RATE}; {told}",
        f"  SAMPLING_RATE: {rate}",
    ]


def _quoted(text: str) -> str:
    """Return a text as YAML has it; JSON's form of one is YAML, too."""
    return json.dumps(text, ensure_ascii=False)
