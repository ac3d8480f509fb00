"""Small runs on a small MotionShapes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmp.config import load_cfg

BASE = {
    "TRAIN.DATASET": "motionshapes",
    "TRAIN.BATCH_SIZE": 8,
    "TRAIN.EVAL_PERIOD": 0,
    "MODEL.NUM_CLASSES": 8,
    "MODEL.DROPOUT_RATE": 0.0,
    "DATA.NUM_FRAMES": 4,
    "DATA.SAMPLING_RATE": 2,
    "DATA.TARGET_FPS": 0,
    "DATA.TRAIN_CROP_SIZE": 32,
    "DATA.TEST_CROP_SIZE": 32,
    "DATA.TRAIN_JITTER_SCALES": [32, 36],
    "DATA.RANDOM_FLIP": False,
    "DATA_LOADER.NUM_WORKERS": 0,
    "TEST.BATCH_SIZE": 8,
    "TEST.NUM_ENSEMBLE_VIEWS": 2,
    "TEST.NUM_SPATIAL_CROPS": 1,
    "SOLVER.MAX_EPOCH": 2,
    "SOLVER.BASE_LR": 0.01,
    "LOG_PERIOD": 2,
    "TENSORBOARD": False,
    "PROMPT.ENABLE": True,
    "PROMPT.PENALTY": 0.5,
}
MODELS = {
    "timesformer": {
        "MODEL.NAME": "timesformer",
        "TIMESFORMER.EMBED_DIM": 24,
        "TIMESFORMER.NUM_HEADS": 2,
        "TIMESFORMER.DEPTH": 2,
        "TIMESFORMER.DROP_PATH_RATE": 0.0,
    },
    "x3d": {"MODEL.NAME": "x3d", "X3D.WIDTH_FACTOR": 1.0, "X3D.DEPTH_FACTOR": 1.0},
}


@pytest.fixture
def make_cfg(motionshapes: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function (model, name of the output folder, overrides) -> cfg."""

    def make(model: str = "timesformer", out: str = "run", **overrides: Any) -> Any:
        values = BASE | MODELS[model] | {"DATA.PATH_TO_DATA_DIR": motionshapes}
        values |= {"OUTPUT_DIR": tmp_path / out}
        values |= {key.replace("__", "."): value for key, value in overrides.items()}
        return load_cfg(None, [str(text) for pair in values.items() for text in pair])

    return make


def results_of(cfg: Any) -> dict[str, Any]:
    return json.loads((Path(cfg.OUTPUT_DIR) / "test_results.json").read_text())


def log_of(cfg: Any, kind: str = "train") -> list[dict[str, Any]]:
    lines = (Path(cfg.OUTPUT_DIR) / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
