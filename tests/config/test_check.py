"""The rules between keys: each breach ends in the value, the rule and the way out."""

import pytest

from vmp.config import load_cfg
from vmp.config.check import CHOICES, NUM_CLASSES, NUM_PATHWAYS, PARTS, RANGES
from vmp.data import CLASS_NAMES, DATASETS
from vmp.models import BACKBONES
from vmp.models.freeze import PARTS as PARTS_OF_MODELS
from vmp.prompts import POWER_NORMS


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ("NUM_PROCESSES 3 TRAIN.BATCH_SIZE 64", "TRAIN.BATCH_SIZE is 64.*3 processes.*63"),
        ("NUM_GPUS 8 TRAIN.BATCH_SIZE 12", "TRAIN.BATCH_SIZE is 12.*e.g. 8"),
        ("TEST.CPU_THREADS 0", "TEST.CPU_THREADS is 0; it must be at least 1"),
        ("TRAIN.GLOBAL_BATCH_SIZE 100", "GLOBAL_BATCH_SIZE is 100.*multiple.*64"),
        ("PROMPT.ENABLE True PROMPT.PATHWAYS [1]", "x3d has 1 pathway"),
        ("PROMPT.ENABLE True PROMPT.PATHWAYS []", "at least one"),
        ("PROMPT.ENABLE True PROMPT.PATHWAYS [0,0]", "at most once"),
        ("PROMPT.ENABLE True DATA.NUM_FRAMES 1", "at least two differences"),
        ("MODEL.NAME slowfast DATA.NUM_FRAMES 30", "ALPHA 4 does not divide.*28"),
        (
            "MODEL.NAME slowfast DATA.NUM_FRAMES 4 PROMPT.ENABLE True",
            "NUM_FRAMES is 4.*at least 8",
        ),
        ("DATA.TEST_CROP_SIZE 200", "TEST_CROP_SIZE is 200.*at least 224"),
        ("MODEL.NAME timesformer DATA.TEST_CROP_SIZE 250", "PATCH_SIZE 16 must divide it.*240"),
        ("DATA.TRAIN_JITTER_SCALES [200,320]", "TRAIN_CROP_SIZE 224 <= low"),
        ("DATA.TRAIN_CROP_SIZE 16 DATA.TRAIN_JITTER_SCALES [16,16]", "at least 32"),
        ("TRAIN.DATASET utinteraction", "NUM_CLASSES is 400, but utinteraction has 6.*6"),
        ("SOLVER.WARMUP_EPOCHS 30", "WARMUP_EPOCHS is 30; it must be below"),
        ("SOLVER.LR_POLICY steps_with_relative_lrs SOLVER.STEPS [1,2,3]", "must start at 0"),
        ("SOLVER.LR_POLICY steps_with_relative_lrs SOLVER.LRS [1]", "one of LRS for each"),
        ("MODEL.NAME resnet", "MODEL.NAME is 'resnet'; it must be one of slowfast"),
        ("TEST.NUM_SPATIAL_CROPS 2", "must be one of 1, 3"),
        ("SOLVER.LABEL_SMOOTHING 1.5", "must be from 0 to 0.999"),
        ("DATA.STD [1,0,1]", "must be above 0"),
        ("DATA.MEAN [1]", "three values"),
        ("DATA.TRAIN_JITTER_SCALES []", "must be .low, high."),
        ("MODEL.NAME slowfast SLOWFAST.ALPHA 0", "at least 1"),
        ("MODEL.NAME timesformer TIMESFORMER.PATCH_SIZE 0", "at least 1"),
        ("RNG_SEED -1", "at least 0"),
        (
            "MODEL.NAME i3d DATA.NUM_FRAMES 4 TRAIN.PRECISION bfloat16",
            "float32, or DATA.NUM_FRAMES",
        ),
        ("SOLVER.BETAS [0.9]", "two values"),
        ("TRAIN.PARTS ['neck','head']", "is .'neck', 'head'.*prompt, head, last_blocks"),
        ("TRAIN.PARTS []", r"PARTS is \[\]; it must be"),
        ("TRAIN.PARTS ['all','head']", "take all out"),
        ("TRAIN.PARTS ['prompt']", "ENABLE is False; set PROMPT.ENABLE True"),
        ("TRAIN.PARTS ['prompt'] PROMPT.ENABLE True PROMPT.LR_MULT 0", "LR_MULT is 0, which"),
        (
            "TRAIN.PARTS ['prompt'] PROMPT.ENABLE True PROMPT.POWER_NORM gamma",
            "PROMPT.GAMMA.LEARNABLE is False; set PROMPT.GAMMA.LEARNABLE True",
        ),
        (
            "TRAIN.PARTS ['prompt'] PROMPT.ENABLE True PROMPT.POWER_NORM identity",
            "identity, which learns nothing; set PROMPT.POWER_NORM sigmoid",
        ),
        ("TRAIN.LAST_BLOCKS 0", "LAST_BLOCKS is 0; it must be at least 1"),
    ],
)
def test_values_that_do_not_go_together_are_refused(opts, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_cfg(None, opts.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kernel", CHOICES["PROMPT.KERNEL"])
def test_the_identity_goes_with_every_kernel_that_the_machine_has(kernel):
    gpus = "1" if kernel == "triton" else "0"
    opts = ["PROMPT.ENABLE", "True", "PROMPT.POWER_NORM", "identity", "PROMPT.KERNEL", kernel]
    assert kernel == load_cfg(None, [*opts, "NUM_GPUS", gpus]).PROMPT.KERNEL


def test_batches_must_divide_among_the_launchers_ranks(monkeypatch):
    launcher = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 5, "MASTER_ADDR": "a", "MASTER_PORT": 1}
    for name, value in launcher.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match="5 processes"):
        load_cfg(None)


@pytest.mark.parametrize("name", [*CHOICES, *RANGES])
def test_every_rule_is_about_a_key_that_exists(name):
    node = load_cfg(None)
    for key in name.split("."):
        node = node[key]


def test_the_rules_know_what_is_registered():
    assert set(NUM_PATHWAYS) == {name for name, _ in BACKBONES}
    assert set(NUM_CLASSES) == {name for name, _ in DATASETS} == {name for name, _ in CLASS_NAMES}
    assert set(CHOICES["PROMPT.POWER_NORM"]) == {name for name, _ in POWER_NORMS}
    assert PARTS == PARTS_OF_MODELS


@pytest.mark.parametrize("name", NUM_PATHWAYS)
def test_the_rules_know_the_number_of_pathways(name):
    sizes = {"num_classes": 4, "num_frames": 8, "crop_size": 64}
    small = {"timesformer": {"depth": 1, "embed_dim": 12, "num_heads": 2}}
    backbone = BACKBONES.get(name)(**sizes, **small.get(name, {"dropout_rate": 0.5}))
    assert len(backbone.strides) == NUM_PATHWAYS[name]
