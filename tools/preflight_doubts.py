"""What a practised eye would ask about before a long run: each function one question.

Like the rules of `vmp.config.check` these read the config, since it is what they judge; but what
they find is allowed, and only doubtful. "" is: nothing to say.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fvcore.common.config import CfgNode

Doubt = Callable[[CfgNode, "Seen"], str]

FEW_CLIPS = 1000  # to learn a video network from nothing
FEW_UPDATES = 100
FEW_IN_BATCH = 4  # for the statistics of a batch norm
DIM = 0.5  # attention of still pixels, at the start
UNEVEN = 10  # times as many videos in one class as in another
LARGE_LR = {"sgd": 0.5, "adamw": 0.01}
DIRECTIONS = re.compile(
    r"(?:^|[^a-z])(?:left|right|leftwards?|rightwards?|(?:anti|counter-?)?clockwise)(?:[^a-z]|$)",
    re.IGNORECASE,
)


class Seen(NamedTuple):
    """What was seen of the data, the model and this machine.

    Attributes:
        ranks: processes of the run.
        cores: of this machine.
        bfloat16: this CPU multiplies in it.
        train: labels of the training records.
        test: labels of the test records.
        leaks: videos that are trained on and tested on.
        excluded: why test records are not to be read -> how many.
        class_names: index = label.
        batches: of an epoch.
        frames: of the median training record that was looked at.
        fps: of its video.
        short_side: of its picture, pixels.
        span: frames a clip reaches over in it.
        still: pathway -> f(0) at the start; none where a power normalisation has no such number.
        norms: the model has batch norms that learn.
        task_loss: of one batch, at the start.
        variation: likewise, V.
        memory: bytes that a rank needs, estimated.
        memory_there: bytes that this machine has for a rank; 0 if that is not known.
        disk: bytes that the checkpoints need.
        disk_free: bytes.
        references: name -> config that this one was made from.
        other_run: how the run in OUTPUT_DIR differs; "" if it does not, or there is none.
        warnings: what the program itself warned of.
    """

    ranks: int
    cores: int
    bfloat16: bool
    train: tuple[int, ...]
    test: tuple[int, ...]
    leaks: int
    excluded: Mapping[str, int]
    class_names: tuple[str, ...]
    batches: int
    frames: int
    fps: float
    short_side: int
    span: int
    still: Mapping[str, float]
    norms: bool
    task_loss: float
    variation: float
    memory: int
    memory_there: int
    disk: int
    disk_free: int
    references: Mapping[str, CfgNode]
    other_run: str
    warnings: tuple[str, ...]


def find_doubts(cfg: CfgNode, seen: Seen) -> list[str]:
    """Return every doubt about a run, a line each."""
    return [*(line for doubt in DOUBTS if (line := doubt(cfg, seen))), *seen.warnings]


# ---------------------------------------------------------------- optimisation


def rate_not_scaled(cfg: CfgNode, seen: Seen) -> str:
    """The batch is another than that of the recipe, the learning rate the same."""
    batch = effective_batch(cfg)
    for name, other in seen.references.items():
        factor = batch / effective_batch(other)
        if factor != 1 and cfg.SOLVER.BASE_LR == other.SOLVER.BASE_LR:
            return (
                f"an update takes {batch} clips, {effective_batch(other)} in {name}, and "
                f"SOLVER.BASE_LR is {cfg.SOLVER.BASE_LR:g} in both; nothing rescales it (in "
                f"proportion: {cfg.SOLVER.BASE_LR * factor:g})"
            )
    return ""


def effective_batch(cfg: CfgNode) -> int:
    """Return the clips of an update."""
    return int(cfg.TRAIN.GLOBAL_BATCH_SIZE or cfg.TRAIN.BATCH_SIZE)


def large_rate(cfg: CfgNode, seen: Seen) -> str:
    """The learning rate is far from what is usual."""
    method, rate = cfg.SOLVER.OPTIMIZING_METHOD, cfg.SOLVER.BASE_LR
    if rate == 0:
        return "SOLVER.BASE_LR is 0: nothing is learned"
    if rate <= LARGE_LR[method]:
        return ""
    return f"SOLVER.BASE_LR is {rate:g}; with {method} more than {LARGE_LR[method]:g} rarely learns"


def long_warmup(cfg: CfgNode, seen: Seen) -> str:
    """Most of the training is warm-up."""
    warmup, epochs = cfg.SOLVER.WARMUP_EPOCHS, cfg.SOLVER.MAX_EPOCH
    if warmup <= epochs / 2:
        return ""
    return f"SOLVER.WARMUP_EPOCHS is {warmup:g} of {epochs} epochs: most of them are warm-up"


def steps_never_reached(cfg: CfgNode, seen: Seen) -> str:
    """A step of the schedule comes after the end."""
    steps, epochs = list(cfg.SOLVER.STEPS), cfg.SOLVER.MAX_EPOCH
    if cfg.SOLVER.LR_POLICY != "steps_with_relative_lrs" or steps[-1] < epochs:
        return ""
    return f"SOLVER.STEPS {steps} go on after SOLVER.MAX_EPOCH {epochs}: the last is never reached"


def few_updates(cfg: CfgNode, seen: Seen) -> str:
    """The training is hardly one."""
    updates = updates_per_epoch(cfg, seen.batches) * cfg.SOLVER.MAX_EPOCH
    if updates >= FEW_UPDATES:
        return ""
    return (
        f"{updates} updates in {cfg.SOLVER.MAX_EPOCH} epochs are few; raise SOLVER.MAX_EPOCH, or "
        "lower the batch"
    )


def updates_per_epoch(cfg: CfgNode, batches: int) -> int:
    """Return the updates of an epoch of so many batches."""
    passes = effective_batch(cfg) // int(cfg.TRAIN.BATCH_SIZE)
    return -(-batches // passes)


def slow_average(cfg: CfgNode, seen: Seen) -> str:
    """The average of the weights still holds the start at the end."""
    decay = cfg.SOLVER.EMA_DECAY
    updates = updates_per_epoch(cfg, seen.batches) * cfg.SOLVER.MAX_EPOCH
    share = decay**updates if decay else 0.0
    if share < 0.05:
        return ""
    return (
        f"SOLVER.EMA_DECAY is {decay:g}: after {updates} updates {share:.0%} of the average, which "
        "is what is tested, is the start; lower it"
    )


def batch_drops_clips(cfg: CfgNode, seen: Seen) -> str:
    """Much of the training set is in no batch of an epoch."""
    used = seen.batches * cfg.TRAIN.BATCH_SIZE
    lost = len(seen.train) - used
    if lost <= len(seen.train) / 10:
        return ""
    return (
        f"{lost} of {len(seen.train)} training clips are in no batch of an epoch, other ones in "
        f"each: TRAIN.BATCH_SIZE is {cfg.TRAIN.BATCH_SIZE}, and the last batch is whole or dropped"
    )


def small_batch_for_norms(cfg: CfgNode, seen: Seen) -> str:
    """Batch norms see a handful of clips."""
    clips = cfg.TRAIN.BATCH_SIZE // (1 if cfg.BN.SYNC else seen.ranks)
    if clips >= FEW_IN_BATCH or not seen.norms:
        return ""
    advice = "raise TRAIN.BATCH_SIZE" + (", or set BN.SYNC True" if seen.ranks > 1 else "")
    return f"batch norms take their statistics of {clips} clip(s) at a time; {advice}"


# ---------------------------------------------------------------- what it starts from


def from_scratch(cfg: CfgNode, seen: Seen) -> str:
    """There are no weights to start from, and few clips."""
    if cfg.TRAIN.INIT_FROM or len(seen.train) >= FEW_CLIPS:
        return ""
    return (
        f"training from scratch on {len(seen.train)} clips; TRAIN.INIT_FROM takes weights to start "
        "from (MODEL_ZOO.md)"
    )


def weights_taken_away(cfg: CfgNode, seen: Seen) -> str:
    """The recipe is one for fine-tuning, and there is nothing to tune."""
    for name, other in seen.references.items():
        if other.TRAIN.INIT_FROM and not cfg.TRAIN.INIT_FROM:
            return (
                f"TRAIN.INIT_FROM is empty, and {name} starts from {other.TRAIN.INIT_FROM}: its "
                "rate and epochs are for fine-tuning"
            )
    return ""


def another_run_there(cfg: CfgNode, seen: Seen) -> str:
    """OUTPUT_DIR is not free."""
    if not seen.other_run:
        return ""
    return f"{cfg.OUTPUT_DIR} {seen.other_run}; the run will be refused: take another OUTPUT_DIR"


# ---------------------------------------------------------------- the prompt


def penalty_on_nothing(cfg: CfgNode, seen: Seen) -> str:
    """PENALTY weighs a variation that is 0."""
    if not cfg.PROMPT.PENALTY:
        return ""
    if not cfg.PROMPT.ENABLE:
        return f"PROMPT.PENALTY is {cfg.PROMPT.PENALTY:g}, and PROMPT.ENABLE is False: no effect"
    if cfg.PROMPT.POWER_NORM != "identity":
        return ""
    return f"PROMPT.PENALTY is {cfg.PROMPT.PENALTY:g}, but V of the identity is 0: no effect"


def penalty_leads(cfg: CfgNode, seen: Seen) -> str:
    """The penalty is more of the loss than the task."""
    penalty = cfg.PROMPT.PENALTY * seen.variation
    if penalty <= seen.task_loss or not cfg.PROMPT.ENABLE:
        return ""
    scale = ""
    if cfg.PROMPT.REDUCTION == "frobenius":
        scale = "; REDUCTION frobenius sums V over the pixels: PENALTY is to be as much smaller"
    return (
        f"PROMPT.PENALTY makes {penalty:.3g} of the first loss, the task {seen.task_loss:.3g}: the "
        f"prompt learns to be still{scale}"
    )


def dark_start(cfg: CfgNode, seen: Seen) -> str:
    """Still pixels begin blanked out."""
    dark = {pathway: value for pathway, value in seen.still.items() if value < DIM}
    drawn = cfg.PROMPT.SIGMOID.M is None or cfg.PROMPT.SIGMOID.N is None
    if not dark or cfg.PROMPT.POWER_NORM != "sigmoid":
        return ""
    told = ", ".join(f"{value:.2g} (pathway {pathway})" for pathway, value in dark.items())
    whose = f"as RNG_SEED {cfg.RNG_SEED} draws them" if drawn else "with these M and N"
    return (
        f"the attention of still pixels starts at {told}, {whose}: they are blanked out at first; "
        "PROMPT.SIGMOID.M 1.0 PROMPT.SIGMOID.N -1.0 starts near 1"
    )


def frozen_draw(cfg: CfgNode, seen: Seen) -> str:
    """Random m and n never learn."""
    sigmoid = cfg.PROMPT.SIGMOID
    frozen = cfg.PROMPT.LR_MULT == 0 or not sigmoid.LEARNABLE
    drawn = sigmoid.M is None or sigmoid.N is None
    used = cfg.PROMPT.ENABLE and cfg.PROMPT.POWER_NORM == "sigmoid" and not cfg.TRAIN.INIT_FROM
    if not (used and frozen and drawn):
        return ""
    return "m and n are drawn and do not learn; set PROMPT.SIGMOID.M and N, or let them"


def decayed_prompt(cfg: CfgNode, seen: Seen) -> str:
    """Weight decay pulls m and n towards 0."""
    decay = cfg.PROMPT.WEIGHT_DECAY
    if not (cfg.PROMPT.ENABLE and decay) or cfg.PROMPT.POWER_NORM != "sigmoid":
        return ""
    return f"PROMPT.WEIGHT_DECAY is {decay:g}: it pulls the slope a towards 50, the shift b to 0"


# ---------------------------------------------------------------- the clips


def short_videos(cfg: CfgNode, seen: Seen) -> str:
    """Half of the videos are shorter than a clip."""
    if seen.span <= seen.frames:
        return ""
    return (
        f"a clip reaches over {seen.span} frames, the median video has {seen.frames}: the rest is "
        f"DATA.SHORT_CLIP {cfg.DATA.SHORT_CLIP}, and the views in time of a test are alike; lower "
        "DATA.SAMPLING_RATE"
    )


def repeated_frames(cfg: CfgNode, seen: Seen) -> str:
    """Frames are sampled closer than the source has them: differences of 0."""
    if not cfg.DATA.TARGET_FPS:
        return ""
    step = cfg.DATA.SAMPLING_RATE * seen.fps / cfg.DATA.TARGET_FPS
    if step >= 0.99:
        return ""
    return (
        f"frames are sampled {step:.2g} source frames apart ({seen.fps:.4g} fps, DATA.TARGET_FPS "
        f"{cfg.DATA.TARGET_FPS:g}): some come twice, with a difference of 0; raise "
        "DATA.SAMPLING_RATE, or set DATA.TARGET_FPS 0"
    )


def enlarged_frames(cfg: CfgNode, seen: Seen) -> str:
    """Frames are blown up."""
    low = cfg.DATA.TRAIN_JITTER_SCALES[0]
    if low <= 1.5 * seen.short_side:
        return ""
    return (
        f"frames of {seen.short_side} pixels are enlarged to {low} (DATA.TRAIN_JITTER_SCALES): "
        "more work, no more to see"
    )


def mirrored_directions(cfg: CfgNode, seen: Seen) -> str:
    """A mirrored clip may be of another class."""
    named = directions(seen.class_names)
    if not (named and cfg.DATA.RANDOM_FLIP):
        return ""
    return f"DATA.RANDOM_FLIP mirrors half of the clips, and there is a class {named[0]!r}"


def directions(class_names: Sequence[str]) -> list[str]:
    """Return the names of classes that tell left from right, or a sense of rotation."""
    return [name for name in class_names if DIRECTIONS.search(name)]


def empty_classes(cfg: CfgNode, seen: Seen) -> str:
    """Classes without a video."""
    every = set(range(cfg.MODEL.NUM_CLASSES))
    lacking = {"train": every - set(seen.train), "test": every - set(seen.test)}
    told = [
        f"{len(labels)} of {len(every)} classes have no {part} video ({_names(labels, seen)})"
        for part, labels in lacking.items()
        if labels and (part == "train" or cfg.TEST.ENABLE or cfg.TRAIN.EVAL_PERIOD)
    ]
    return "; ".join(told)


def _names(labels: set[int], seen: Seen) -> str:
    listed = [seen.class_names[label] for label in sorted(labels)]
    return ", ".join(listed[:3]) + (", ..." if listed[3:] else "")


def uneven_classes(cfg: CfgNode, seen: Seen) -> str:
    """Some classes are rare."""
    counts = Counter(seen.train).values()
    if not counts or max(counts) < UNEVEN * min(counts):
        return ""
    return (
        f"classes have {min(counts)} to {max(counts)} training videos: look at the mean-class "
        "accuracy, not at top-1 alone"
    )


def leaks(cfg: CfgNode, seen: Seen) -> str:
    """A test that is no test."""
    if not seen.leaks:
        return ""
    return f"{seen.leaks} test records are of frames that are trained on"


def lost_test_records(cfg: CfgNode, seen: Seen) -> str:
    """Test records that are not evaluated; the program itself warns of training records."""
    if not seen.excluded:
        return ""
    counted = ", ".join(f"{count} {why}" for why, count in seen.excluded.items())
    return f"test records that are not evaluated: {counted}"


# ---------------------------------------------------------------- what is measured


def nothing_measured(cfg: CfgNode, seen: Seen) -> str:
    """Neither validation nor test."""
    if cfg.TRAIN.EVAL_PERIOD or cfg.TEST.ENABLE:
        return ""
    return "TRAIN.EVAL_PERIOD is 0 and TEST.ENABLE False: nothing tells how good the model is"


def rare_validation(cfg: CfgNode, seen: Seen) -> str:
    """A validation that only comes at the end."""
    period, epochs = cfg.TRAIN.EVAL_PERIOD, cfg.SOLVER.MAX_EPOCH
    if not period or period < epochs or epochs < 2:
        return ""
    return f"TRAIN.EVAL_PERIOD is {period}, and there are {epochs} epochs: only the last is judged"


def oversized_test_batch(cfg: CfgNode, seen: Seen) -> str:
    """A test batch that no test fills."""
    views = len(seen.test) * cfg.TEST.NUM_ENSEMBLE_VIEWS * cfg.TEST.NUM_SPATIAL_CROPS
    share = -(-views // seen.ranks)
    if share >= cfg.TEST.BATCH_SIZE or not cfg.TEST.ENABLE:
        return ""
    return (
        f"TEST.BATCH_SIZE is {cfg.TEST.BATCH_SIZE}, and there are {views} views for {seen.ranks} "
        "process(es): some have nothing to do, or less"
    )


# ---------------------------------------------------------------- the machine


def no_workers(cfg: CfgNode, seen: Seen) -> str:
    """A GPU waits for this process to decode."""
    if cfg.DATA_LOADER.NUM_WORKERS or not cfg.NUM_GPUS:
        return ""
    return "DATA_LOADER.NUM_WORKERS is 0: the GPU waits while the process decodes"


def too_many_workers(cfg: CfgNode, seen: Seen) -> str:
    """More decoding processes than cores; of this machine, which may not be the run's."""
    workers = cfg.DATA_LOADER.NUM_WORKERS * (cfg.NUM_GPUS or cfg.NUM_PROCESSES)
    if workers <= seen.cores:
        return ""
    return f"{workers} workers (DATA_LOADER.NUM_WORKERS a process) and {seen.cores} cores here"


def slow_precision(cfg: CfgNode, seen: Seen) -> str:
    """A precision that a CPU only imitates."""
    precision = cfg.TRAIN.PRECISION
    if cfg.NUM_GPUS or precision == "float32" or (precision == "bfloat16" and seen.bfloat16):
        return ""
    return f"TRAIN.PRECISION is {precision}, which this CPU only imitates: slower, not faster"


def small_memory(cfg: CfgNode, seen: Seen) -> str:
    """It may not fit."""
    if not seen.memory_there or seen.memory <= 0.9 * seen.memory_there:
        return ""
    return (
        f"a process needs some {seen.memory / 2**30:.1f} GiB, here it has "
        f"{seen.memory_there / 2**30:.1f}; lower TRAIN.BATCH_SIZE and keep GLOBAL_BATCH_SIZE, or "
        "set MODEL.ACT_CHECKPOINT True"
    )


def small_disk(cfg: CfgNode, seen: Seen) -> str:
    """It does not fit."""
    if seen.disk <= seen.disk_free:
        return ""
    return (
        f"checkpoints take {seen.disk / 1e9:.2f} GB, {seen.disk_free / 1e9:.2f} GB are free in "
        f"{cfg.OUTPUT_DIR}; lower TRAIN.CHECKPOINT_KEEP"
    )


DOUBTS: tuple[Doubt, ...] = (
    rate_not_scaled,
    large_rate,
    long_warmup,
    steps_never_reached,
    few_updates,
    slow_average,
    batch_drops_clips,
    small_batch_for_norms,
    from_scratch,
    weights_taken_away,
    another_run_there,
    penalty_on_nothing,
    penalty_leads,
    dark_start,
    frozen_draw,
    decayed_prompt,
    short_videos,
    repeated_frames,
    enlarged_frames,
    mirrored_directions,
    empty_classes,
    uneven_classes,
    leaks,
    lost_test_records,
    nothing_measured,
    rare_validation,
    oversized_test_batch,
    no_workers,
    too_many_workers,
    slow_precision,
    small_memory,
    small_disk,
)
