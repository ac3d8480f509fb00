"""Rules between the keys of a configuration. Each failure says the value, the rule, the way out."""

import math
import os
from typing import Any

from fvcore.common.config import CfgNode

from vmp.utils.placement import find_placement

# Facts of the registries that the rules need; contract tests compare them with the registries.
NUM_PATHWAYS = {"slowfast": 2, "c2d": 1, "i3d": 1, "x3d": 1, "timesformer": 1}
# None: the data set's own files tell.
NUM_CLASSES = {
    "hmdb51": 51,
    "finegym": None,  # 99 or 288, by DATA.SPLIT
    "mpiicooking2": 67,
    "utinteraction": 6,
    "motionshapes": 8,
    "csv": None,
}

# Of TRAIN.PARTS.
PARTS = ("all", "prompt", "head", "last_blocks")

CHOICES: dict[str, tuple[Any, ...]] = {
    "MODEL.NAME": tuple(NUM_PATHWAYS),
    "TRAIN.DATASET": tuple(NUM_CLASSES),
    "TRAIN.PRECISION": ("float32", "bfloat16", "float16"),
    "TRAIN.INIT_RESIZE": ("interpolate", "original"),
    "TEST.ENSEMBLE": ("softmax", "logits"),
    "TEST.NUM_SPATIAL_CROPS": (1, 3),
    "DATA.SHORT_CLIP": ("hold", "loop", "spread", "error"),
    "DATA.DECODING_BACKEND": ("pyav", "decord", "torchcodec"),
    "PROMPT.REDUCTION": ("mean", "frobenius"),
    "PROMPT.LUMA": ("rgb", "bgr"),
    "PROMPT.KERNEL": ("auto", "eager", "cpu", "triton"),
    "PROMPT.POWER_NORM": ("sigmoid", "identity", "gamma", "maxexp", "sigme", "asinhe"),
    "SOLVER.OPTIMIZING_METHOD": ("sgd", "adamw"),
    "SOLVER.LR_POLICY": ("cosine", "steps_with_relative_lrs"),
    "TIMESFORMER.ATTENTION_TYPE": ("divided_space_time", "space_only", "joint_space_time"),
}
# key: (lowest, highest) allowed, both included
RANGES: dict[str, tuple[float, float]] = {
    "RNG_SEED": (0, math.inf),
    "NUM_GPUS": (0, math.inf),
    "NUM_PROCESSES": (1, math.inf),
    "LOG_PERIOD": (1, math.inf),
    "DIST_TIMEOUT": (1, math.inf),
    "DIST_INIT_TIMEOUT": (1, math.inf),
    "DATA.NUM_FRAMES": (1, math.inf),
    "DATA.SAMPLING_RATE": (1, math.inf),
    "DATA.TARGET_FPS": (0, math.inf),
    "DATA.DECODE_TIMEOUT": (1, math.inf),
    "DATA.TRAIN_CROP_SIZE": (1, math.inf),
    "DATA.TEST_CROP_SIZE": (1, math.inf),
    "DATA_LOADER.NUM_WORKERS": (0, math.inf),
    "DATA_LOADER.PREFETCH_FACTOR": (1, math.inf),
    "MODEL.NUM_CLASSES": (2, math.inf),
    "MODEL.DROPOUT_RATE": (0, 0.999),
    "SLOWFAST.ALPHA": (1, math.inf),
    "TIMESFORMER.PATCH_SIZE": (1, math.inf),
    "PROMPT.PENALTY": (0, math.inf),
    "PROMPT.LR_MULT": (0, math.inf),
    "PROMPT.WEIGHT_DECAY": (0, math.inf),
    "BN.NUM_BATCHES_PRECISE": (1, math.inf),
    "TRAIN.BATCH_SIZE": (1, math.inf),
    "TRAIN.EVAL_PERIOD": (0, math.inf),
    "TRAIN.CHECKPOINT_PERIOD": (1, math.inf),
    "TRAIN.CHECKPOINT_STEPS": (0, math.inf),
    "TRAIN.CHECKPOINT_MINUTES": (0, math.inf),
    "TRAIN.CHECKPOINT_KEEP": (0, math.inf),
    "TRAIN.LAST_BLOCKS": (1, math.inf),
    "TRAIN.MIXUP_ALPHA": (0, math.inf),
    "TRAIN.CUTMIX_ALPHA": (0, math.inf),
    "TEST.BATCH_SIZE": (1, math.inf),
    "TEST.CPU_THREADS": (1, math.inf),
    "TEST.NUM_ENSEMBLE_VIEWS": (1, math.inf),
    "SOLVER.BASE_LR": (0, math.inf),
    "SOLVER.MAX_EPOCH": (1, math.inf),
    "SOLVER.WARMUP_EPOCHS": (0, math.inf),
    "SOLVER.CLIP_GRAD_L2NORM": (0, math.inf),
    "SOLVER.EMA_DECAY": (0, 0.999999),
    "SOLVER.LABEL_SMOOTHING": (0, 0.999),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.WEIGHT_DECAY": (0, math.inf),
}


def check_cfg(cfg: CfgNode) -> None:
    """Raise ValueError where a value is out of its range or values do not go together."""
    _check_choices_and_ranges(cfg)
    _check_classes(cfg)
    _check_batches(cfg)
    _check_prompt(cfg)
    _check_initial_weights(cfg)
    _check_parts(cfg)
    _check_frames(cfg)
    _check_crops(cfg)
    _check_schedule(cfg)
    _check_precision(cfg)


def _get(cfg: CfgNode, name: str) -> Any:
    value = cfg
    for key in name.split("."):
        value = value[key]
    return value


def _check_choices_and_ranges(cfg: CfgNode) -> None:
    for name, choices in CHOICES.items():
        value = _get(cfg, name)
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; it must be one of {_listed(choices)}")
    for name, (low, high) in RANGES.items():
        value = _get(cfg, name)
        if not low <= value <= high:
            rule = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ValueError(f"{name} is {value}; it must be {rule}")
    for name in ("DATA.MEAN", "DATA.STD"):
        if len(_get(cfg, name)) != 3:
            raise ValueError(f"{name} is {_get(cfg, name)}; it must have three values: R, G, B")
    if min(cfg.DATA.STD) <= 0:
        raise ValueError(f"DATA.STD is {cfg.DATA.STD}; each value must be above 0")


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(str(value) for value in values)


def _check_classes(cfg: CfgNode) -> None:
    wanted = NUM_CLASSES[cfg.TRAIN.DATASET]
    if wanted is not None and wanted != cfg.MODEL.NUM_CLASSES:
        raise ValueError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but {cfg.TRAIN.DATASET} has {wanted} "
            f"classes; set MODEL.NUM_CLASSES {wanted}"
        )


def count_processes(cfg: CfgNode) -> int:
    """Return the number of processes of the run: the launcher's, or those that we start."""
    placement = find_placement(os.environ)
    if placement is not None:
        return placement.world_size
    return int(cfg.NUM_GPUS or cfg.NUM_PROCESSES)


def _check_batches(cfg: CfgNode) -> None:
    ranks = count_processes(cfg)
    batch, effective = cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.GLOBAL_BATCH_SIZE
    if batch % ranks:
        near = max(ranks, batch // ranks * ranks)
        raise ValueError(
            f"TRAIN.BATCH_SIZE is {batch}, which does not divide among {ranks} processes; it "
            f"counts the clips of all of them: set a multiple of {ranks}, e.g. {near}"
        )
    if effective and (effective < batch or effective % batch):
        raise ValueError(
            f"TRAIN.GLOBAL_BATCH_SIZE is {effective}; it must be 0 or a multiple of "
            f"TRAIN.BATCH_SIZE {batch}, e.g. {max(1, effective // batch) * batch}"
        )


def _check_prompt(cfg: CfgNode) -> None:
    if not cfg.PROMPT.ENABLE:
        return
    pathways, count = list(cfg.PROMPT.PATHWAYS), NUM_PATHWAYS[cfg.MODEL.NAME]
    fits = pathways and len(set(pathways)) == len(pathways)
    if not fits or not all(0 <= pathway < count for pathway in pathways):
        raise ValueError(
            f"PROMPT.PATHWAYS is {pathways}; {cfg.MODEL.NAME} has {count} pathway(s), numbered "
            f"from 0, slowest first: name each at most once, and at least one"
        )
    slowest = cfg.SLOWFAST.ALPHA if cfg.MODEL.NAME == "slowfast" and 0 in pathways else 1
    if cfg.DATA.NUM_FRAMES // slowest < 2:
        raise ValueError(
            f"DATA.NUM_FRAMES is {cfg.DATA.NUM_FRAMES}; a motion prompt needs at least two "
            f"differences, so at least {2 * slowest} frames here"
        )
    _check_kernel(cfg)


def _check_kernel(cfg: CfgNode) -> None:
    kernel, power_norm = cfg.PROMPT.KERNEL, cfg.PROMPT.POWER_NORM
    if kernel in ("auto", "eager"):
        return
    misfits = {
        # the identity needs no kernel: an ablation of a recipe leaves the recipe's where it is
        f"is for the power normalisation 'sigmoid', not {power_norm!r}": power_norm
        not in ("sigmoid", "identity"),
        f"is for a GPU, and NUM_GPUS is {cfg.NUM_GPUS}": kernel == "triton" and not cfg.NUM_GPUS,
        f"is for a CPU, and NUM_GPUS is {cfg.NUM_GPUS}": kernel == "cpu" and cfg.NUM_GPUS,
    }
    for misfit in [text for text, holds in misfits.items() if holds]:
        raise ValueError(f"PROMPT.KERNEL is {kernel!r}, which {misfit}; set it to 'auto'")


def _check_initial_weights(cfg: CfgNode) -> None:
    if cfg.TRAIN.INIT_SHA256 and not cfg.TRAIN.INIT_FROM:
        raise ValueError(
            f"TRAIN.INIT_SHA256 is {cfg.TRAIN.INIT_SHA256!r} and TRAIN.INIT_FROM names no file; "
            "set INIT_FROM, or take the hash out"
        )


def _check_parts(cfg: CfgNode) -> None:
    parts = list(cfg.TRAIN.PARTS)
    if not parts or not set(parts) <= set(PARTS):
        raise ValueError(
            f"TRAIN.PARTS is {parts}; it must be ['all'] or name some of {_listed(PARTS[1:])}"
        )
    if "all" in parts and len(parts) > 1:
        raise ValueError(f"TRAIN.PARTS is {parts}; all is every part: set ['all'], or take all out")
    if "prompt" in parts:
        _check_trained_prompt(cfg.PROMPT)


def _check_trained_prompt(prompt: CfgNode) -> None:
    section = prompt.POWER_NORM.upper()
    rules = (
        (prompt.ENABLE, "PROMPT.ENABLE is False", "PROMPT.ENABLE True"),
        (
            prompt.POWER_NORM != "identity",
            "PROMPT.POWER_NORM is identity, which learns nothing",
            "PROMPT.POWER_NORM sigmoid",
        ),
        (prompt.LR_MULT > 0, "PROMPT.LR_MULT is 0, which freezes it", "PROMPT.LR_MULT 1.0"),
        (
            prompt[section].get("LEARNABLE", True),
            f"PROMPT.{section}.LEARNABLE is False",
            f"PROMPT.{section}.LEARNABLE True",
        ),
    )
    for holds, state, remedy in rules:
        if not holds:
            raise ValueError(
                f"TRAIN.PARTS names prompt, but {state}; set {remedy}, or take prompt out of PARTS"
            )


def _check_frames(cfg: CfgNode) -> None:
    frames = cfg.DATA.NUM_FRAMES
    if cfg.MODEL.NAME == "slowfast" and frames % cfg.SLOWFAST.ALPHA:
        alpha = cfg.SLOWFAST.ALPHA
        raise ValueError(
            f"DATA.NUM_FRAMES is {frames}, which SLOWFAST.ALPHA {alpha} does not divide; "
            f"set NUM_FRAMES to a multiple, e.g. {max(1, frames // alpha) * alpha}"
        )


def _check_crops(cfg: CfgNode) -> None:
    train, test = cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TEST_CROP_SIZE
    scales = list(cfg.DATA.TRAIN_JITTER_SCALES)
    if len(scales) != 2 or not train <= scales[0] <= scales[1]:
        raise ValueError(
            f"DATA.TRAIN_JITTER_SCALES is {scales}; it must be [low, high] "
            f"with DATA.TRAIN_CROP_SIZE {train} <= low <= high"
        )
    if cfg.MODEL.NAME == "timesformer":
        patch = cfg.TIMESFORMER.PATCH_SIZE
        for name, value in (("TRAIN_CROP_SIZE", train), ("TEST_CROP_SIZE", test)):
            if value % patch:
                raise ValueError(
                    f"DATA.{name} is {value}; TIMESFORMER.PATCH_SIZE {patch} must divide it, "
                    f"e.g. {max(1, value // patch) * patch}"
                )
        return
    if test < train:
        raise ValueError(
            f"DATA.TEST_CROP_SIZE is {test}; the head of {cfg.MODEL.NAME} pools over what "
            f"DATA.TRAIN_CROP_SIZE {train} leaves, so it must be at least {train}"
        )
    if train < 32:
        raise ValueError(
            f"DATA.TRAIN_CROP_SIZE is {train}; {cfg.MODEL.NAME} halves it five times, so it must "
            "be at least 32"
        )


def _check_schedule(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if len(solver.BETAS) != 2 or not all(0 <= beta < 1 for beta in solver.BETAS):
        raise ValueError(f"SOLVER.BETAS is {solver.BETAS}; it must be two values in [0, 1)")
    if solver.WARMUP_EPOCHS >= solver.MAX_EPOCH:
        raise ValueError(
            f"SOLVER.WARMUP_EPOCHS is {solver.WARMUP_EPOCHS:g}; it must be below SOLVER.MAX_EPOCH "
            f"{solver.MAX_EPOCH}"
        )
    if solver.LR_POLICY == "steps_with_relative_lrs":
        steps, lrs = list(solver.STEPS), list(solver.LRS)
        if not steps or steps[0] != 0 or sorted(set(steps)) != steps or len(steps) != len(lrs):
            raise ValueError(
                f"SOLVER.STEPS is {steps} and SOLVER.LRS {lrs}; STEPS must start at 0 and grow, "
                "with one of LRS for each"
            )


def _check_precision(cfg: CfgNode) -> None:
    """Refuse what torch 2.15 gets wrong on a CPU.

    The bfloat16 weight gradient of a (3, 1, 1) convolution over exactly two frames is off by 1e37;
    over other numbers of frames it is right.
    """
    frames = {
        "slowfast": cfg.DATA.NUM_FRAMES // cfg.SLOWFAST.ALPHA,  # in the slow pathway
        "i3d": cfg.DATA.NUM_FRAMES // 2,  # after the temporal pool
    }
    on_cpu = cfg.TRAIN.PRECISION == "bfloat16" and not cfg.NUM_GPUS
    if on_cpu and frames.get(cfg.MODEL.NAME) == 2:
        raise ValueError(
            f"TRAIN.PRECISION is bfloat16, whose gradients are wrong on a CPU where "
            f"{cfg.MODEL.NAME} sees two frames; set TRAIN.PRECISION float32, or DATA.NUM_FRAMES "
            f"other than {cfg.DATA.NUM_FRAMES}"
        )
