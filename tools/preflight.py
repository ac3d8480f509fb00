"""What `tools/run_net.py --dry-run` does: look at a run before it starts, and say what is doubtful.

All is built on the CPU; one batch goes through data, model, loss and backward pass. Nothing is
written to OUTPUT_DIR.
"""

import math
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from fvcore.common.config import CfgNode
from preflight_disk import build_bytes, free_bytes, why_not_writable
from preflight_doubts import Seen, effective_batch, find_doubts, updates_per_epoch
from preflight_look import (
    Memory,
    Stepped,
    Videos,
    build_batch_count,
    build_cpu_config,
    build_first_batch,
    build_median_video,
    build_memory,
    build_other_run,
    build_start_report,
    build_test_records,
    build_test_view,
    count_excluded,
    count_leaks,
    gathered_warnings,
    learns_batch_norms,
    memory_there,
    multiplies_bfloat16,
    pathway_lines,
    step_once,
)

from vmp.config import load_cfg
from vmp.config.check import count_processes
from vmp.config.load import find_recipe
from vmp.data import VideoRecord
from vmp.data.audit import build_clip
from vmp.data.build import build_class_names, build_records
from vmp.engine.build import build_learner
from vmp.engine.provenance import describe_prompts
from vmp.models import VideoModel, model_cost
from vmp.models.freeze import describe_freezing
from vmp.solver import build_schedule
from vmp.utils.boards import check_wandb
from vmp.utils.processes import cores

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 50  # of the learning rate's picture
PASSES = 3  # forward and backward pass, in forward passes
PROGRESS = "looking at the data, then at one batch; a large network takes a minute ..."

Lines = list[tuple[str, str]]


class Looked(NamedTuple):
    """What there is to tell.

    Attributes:
        lines: (topic, text).
        doubts: settings.
        failures: what the run would end with.
    """

    lines: Lines
    doubts: list[str]
    failures: list[str]


def dry_run(path: str, opts: Sequence[str]) -> int:
    """Look at a run and print what is seen.

    Returns:
        0, or 1 where the run would fail.

    Raises:
        ValueError: the run would fail at once: data, model or config.
    """
    with gathered_warnings():  # who called has loaded it before, so they are told
        cfg = load_cfg(path, opts)
        made_from = references(path, opts)
    print(PROGRESS, file=sys.stderr, flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries; the program's own are doubts
        looked = build_look(cfg, made_from)
    say(f"{path} -> {cfg.OUTPUT_DIR} (nothing is written there)\n")
    for topic, text in looked.lines:
        say(f"{topic:9} {text}")
    tell_list(looked.doubts, "doubtful setting{}", "No doubtful setting.")
    tell_list(looked.failures, "reason{} why the run would fail", "")
    return 1 if looked.failures else 0


def tell_list(lines: Sequence[str], what: str, none: str) -> None:
    """Print numbered lines under a heading, `what` with its plural's s at {}, or that none are."""
    if not lines:
        say(f"\n{none}" if none else "")
        return
    say(f"\n{len(lines)} {what.format('s' if len(lines) > 1 else '')}:")
    for number, line in enumerate(lines, start=1):
        say(f"{number:3}. {line}")


def say(text: str) -> None:
    """Print a text; what the terminal can't show is replaced."""
    coding = sys.stdout.encoding or "utf-8"
    print(text.encode(coding, "replace").decode(coding))


def references(path: str, opts: Sequence[str]) -> dict[str, CfgNode]:
    """Return what a config was made from: its file without the overrides, and its `_BASE_`.

    What can't stand alone, as a backbone's file without a data set, is left out; so is what can't
    be read, since these are for hints alone.
    """
    found: dict[str, CfgNode] = {}
    if opts:
        found |= dict(_loaded(path, path))
    file = Path(find_recipe(path))
    try:
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:
        return found
    bases = written.get("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if bases:
        # load_cfg takes each from where vmp has its recipes, if it is not there
        places = [str(file.absolute().parent / Path(base).expanduser()) for base in bases]
        with tempfile.TemporaryDirectory() as folder:
            joined = Path(folder, "base.yaml")
            joined.write_text(yaml.safe_dump({"_BASE_": places}), encoding="utf-8")
            found |= dict(_loaded(", ".join(bases), str(joined)))
    return found


def _loaded(name: str, path: str) -> Iterator[tuple[str, CfgNode]]:
    try:
        yield name, load_cfg(path, ["OUTPUT_DIR", "unused"])
    except (ValueError, OSError):
        return


# ---------------------------------------------------------------- looking


class Trial(NamedTuple):
    """What came of building all of a run and putting a batch through it.

    Attributes:
        train: records to train on.
        test: records to test on.
        batches: of an epoch.
        video: the median of some training videos.
        model: after an update or two.
        start: what the initial weights matched, a line each.
        prompts: pathway -> what its power normalisation starts with.
        norms: the model has batch norms that learn.
        stepped: an update.
        memory: that a process needs.
        view_seconds: of a view of the test; None without one.
        warnings: of the program.
        failures: what the run would end with.
    """

    train: Sequence[VideoRecord]
    test: Sequence[VideoRecord]
    batches: int
    video: Videos
    model: VideoModel
    start: list[str]
    prompts: dict[str, dict[str, float]]
    norms: bool
    stepped: Stepped
    memory: Memory
    view_seconds: float | None
    warnings: tuple[str, ...]
    failures: list[str]


def build_look(cfg: CfgNode, references: dict[str, CfgNode]) -> Looked:
    """Look at all of a run.

    Raises:
        ValueError: it would fail at once.
    """
    if not cfg.TRAIN.ENABLE:
        raise ValueError(
            "TRAIN.ENABLE is False; --dry-run looks at a training. For the data of a test there "
            "is tools/doctor.py data"
        )
    trial = build_trial(cfg)
    resumed, other_run = build_other_run(cfg)
    seen = build_seen(cfg, trial, references, other_run)
    failures = [*trial.failures, *build_output_failures(cfg)]
    return Looked(build_lines(cfg, trial, seen, resumed), find_doubts(cfg, seen), failures)


def build_output_failures(cfg: CfgNode) -> list[str]:
    """Return why a run can't put its results where the config says, a line each."""
    told = [why_not_writable(Path(cfg.OUTPUT_DIR))]
    spec = find_spec("wandb")
    if spec is None or spec.origin is None:  # else check_wandb might ask who is there
        told.append(check_wandb(cfg.WANDB.PROJECT))
    return [line for line in told if line]


def build_trial(cfg: CfgNode) -> Trial:
    """Build all of a run, on the CPU, and put a batch through it.

    Raises:
        ValueError: that can't be done.
    """
    here = build_cpu_config(cfg)
    failures = []
    with gathered_warnings() as warned:
        train, test = build_records(cfg, "train"), build_test_records(cfg)
        batches = build_batch_count(cfg)
        video = build_median_video(cfg, train)
        learner = build_learner(here)
        try:
            start = build_start_report(cfg, learner.model)
        except (ValueError, OSError) as error:
            failures.append(str(error))
            start = ["not to be had, see below; random ones for now"]
        prompts, norms = describe_prompts(learner.model), learns_batch_norms(learner.model)
        batch, load_seconds = build_first_batch(here)
        stepped = step_once(learner, batch, load_seconds)
        view_seconds = build_test_view(here, learner.model) if test else None
    if not math.isfinite(stepped.loss):
        failures.append(f"the loss of the first batch is {stepped.loss}")
    return Trial(
        train=train,
        test=test,
        batches=batches,
        video=video,
        model=learner.model,
        start=start,
        prompts=prompts,
        norms=norms,
        stepped=stepped,
        memory=build_memory(cfg, learner, stepped, batch),
        view_seconds=view_seconds,
        warnings=tuple(warned.lines),
        failures=failures,
    )


def build_seen(cfg: CfgNode, trial: Trial, references: dict[str, CfgNode], other_run: str) -> Seen:
    """Return what the doubts go by."""
    ranks, video = count_processes(cfg), trial.video
    prompts = trial.prompts.items()
    return Seen(
        ranks=ranks,
        cores=cores(),
        bfloat16=multiplies_bfloat16(),
        train=tuple(record.label for record in trial.train),
        test=tuple(record.label for record in trial.test if not record.excluded),
        leaks=count_leaks(trial.train, trial.test),
        excluded=count_excluded(trial.test),
        class_names=build_class_names(cfg),
        batches=trial.batches,
        frames=video.frames,
        fps=video.fps,
        short_side=min(video.height, video.width),
        span=build_clip(cfg).frames_needed(video.fps),
        still={pathway: values["f0"] for pathway, values in prompts if "f0" in values},
        norms=trial.norms,
        task_loss=trial.stepped.task_loss,
        variation=trial.stepped.variation,
        memory=sum(trial.memory),
        memory_there=memory_there(cfg.NUM_GPUS, ranks),
        disk=build_bytes(cfg),
        disk_free=free_bytes(Path(cfg.OUTPUT_DIR)),
        references=references,
        other_run=other_run,
        warnings=trial.warnings,
    )


def build_lines(cfg: CfgNode, trial: Trial, seen: Seen, resumed: str) -> Lines:
    """Return what there is to tell of a run; `resumed` is where it would go on from."""
    frames, crops = cfg.DATA.NUM_FRAMES, (cfg.DATA.TEST_CROP_SIZE, cfg.DATA.TRAIN_CROP_SIZE)
    views = {crop: model_cost(trial.model, frames, crop).multiply_adds for crop in set(crops)}
    test_view, train_view = (views[crop] for crop in crops)
    prompts = [_prompt_line(pathway, values) for pathway, values in trial.prompts.items()]
    goes_on = [f"goes on from {resumed}"] if resumed else []
    return [
        ("run", build_run_line(cfg)),
        ("data", _data_line(trial, seen)),
        *build_batch_lines(cfg, seen),
        *build_rate_lines(cfg),
        *_together("frames", [build_clip_line(cfg, seen), *pathway_lines(trial.model)]),
        ("model", describe_freezing(trial.model)),
        *_together("cost", build_cost_lines(cfg, seen, test_view, train_view)),
        *_together("memory", build_memory_lines(cfg, trial.memory)),
        *_together("weights", [*goes_on, *trial.start]),
        *_together("prompt", prompts),
        ("loss", build_loss_line(cfg, trial.stepped)),
        ("disk", f"{_size(seen.disk)} of checkpoints, {_size(seen.disk_free)} free"),
        *_together("time", build_time_lines(cfg, seen, trial)),
    ]


def _together(topic: str, texts: Sequence[str]) -> Lines:
    return [(topic if number == 0 else "", text) for number, text in enumerate(texts)]


# ---------------------------------------------------------------- telling


def build_run_line(cfg: CfgNode) -> str:
    """Return where it is to run, and where it was looked at."""
    ranks, gpus = count_processes(cfg), torch.cuda.device_count()
    if not cfg.NUM_GPUS:
        return f"{_count(ranks, 'process')} on the CPU"
    here = f"this machine has {gpus or 'none'}"
    return f"{_count(ranks, 'process')}, a GPU each; {here}, and all below is of its CPU"


def _data_line(trial: Trial, seen: Seen) -> str:
    video = trial.video
    return (
        f"{len(trial.train):,} training and {len(trial.test):,} test records, "
        f"{len(seen.class_names)} classes; the median video: {video.frames} frames at "
        f"{video.fps:.4g} fps, {video.width} x {video.height} pixels"
    )


def build_batch_lines(cfg: CfgNode, seen: Seen) -> Lines:
    """Return what an update takes, and how many there are."""
    share, passes = cfg.TRAIN.BATCH_SIZE // seen.ranks, effective_batch(cfg) // cfg.TRAIN.BATCH_SIZE
    updates = updates_per_epoch(cfg, seen.batches)
    epochs = cfg.SOLVER.MAX_EPOCH
    return [
        (
            "batch",
            f"{share} clips x {_count(seen.ranks, 'process')} x {_count(passes, 'pass')} = "
            f"{effective_batch(cfg)} clips an update",
        ),
        ("updates", f"{updates:,} an epoch, {updates * epochs:,} in {epochs} epochs"),
    ]


def build_rate_lines(cfg: CfgNode) -> Lines:
    """Return the learning rate at the places that matter, and its picture."""
    schedule, end, warmup = build_schedule(cfg), cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.WARMUP_EPOCHS
    epochs = [end * i / (COLUMNS - 1) for i in range(COLUMNS)]
    rates = [schedule(epoch) for epoch in epochs]
    peak = max(epochs, key=schedule)
    told = [f"{schedule(0.0):.3g} at the start"]
    if warmup:
        told.append(f"{schedule(warmup):.3g} after {warmup:g} epochs of warm-up")
    if schedule(peak) > schedule(warmup):
        told.append(f"{schedule(peak):.3g} at its highest")
    told.append(f"{schedule(end / 2):.3g} at {end / 2:g}, {schedule(end):.3g} at the end")
    return _together("rate", [", ".join(told), sparkline(rates)])


def sparkline(values: Sequence[float]) -> str:
    """Return values as bars, from 0 to the largest."""
    top = max(values) or 1.0
    return "".join(BARS[round(value / top * (len(BARS) - 1))] for value in values)


def build_clip_line(cfg: CfgNode, seen: Seen) -> str:
    """Return what the loader samples."""
    clip = build_clip(cfg)
    rate = f"{clip.target_fps:g} fps" if clip.target_fps else "the video's own rate"
    return (
        f"{clip.num_frames} sampled by the loader, {clip.rate} apart at {rate}: "
        f"{seen.span} frames of the median video"
    )


def build_cost_lines(cfg: CfgNode, seen: Seen, view: int, train_view: int) -> list[str]:
    """Return the multiply-adds of views, of the test and of the training."""
    views = cfg.TEST.NUM_ENSEMBLE_VIEWS * cfg.TEST.NUM_SPATIAL_CROPS
    clips = seen.batches * cfg.TRAIN.BATCH_SIZE * cfg.SOLVER.MAX_EPOCH
    return [
        f"test: {_giga(view)} multiply-adds a view x {cfg.TEST.NUM_ENSEMBLE_VIEWS} x "
        f"{cfg.TEST.NUM_SPATIAL_CROPS} views = {_giga(view * views)} a video",
        f"training: {PASSES} x {_giga(train_view)} a clip x {clips:,} clips = "
        f"{_giga(PASSES * train_view * clips)}",
    ]


def build_memory_lines(cfg: CfgNode, memory: Memory) -> list[str]:
    """Return what a process needs."""
    parts = ", ".join(f"{name} {_size(size)}" for name, size in memory._asdict().items() if size)
    share = cfg.TRAIN.BATCH_SIZE // count_processes(cfg)
    less = "; less with MODEL.ACT_CHECKPOINT" if cfg.MODEL.ACT_CHECKPOINT else ""
    return [
        f"some {_size(sum(memory))} a process: {parts}",
        f"an estimate: activations of a few clips on the CPU, scaled to {share}; libraries and "
        f"their workspaces come on top{less}",
    ]


def _prompt_line(pathway: str, values: dict[str, float]) -> str:
    told = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    return f"pathway {pathway} starts with {told}"


def build_loss_line(cfg: CfgNode, stepped: Stepped) -> str:
    """Return the loss of the first batch."""
    guess = math.log(cfg.MODEL.NUM_CLASSES)
    told = f"{stepped.loss:.3g} at the start; guessing gives {guess:.3g}"
    if not cfg.PROMPT.ENABLE:
        return told
    weighed = cfg.PROMPT.PENALTY * stepped.variation
    return f"{told}; V is {stepped.variation:.3g}, lambda V {weighed:.3g} of it"


def build_time_lines(cfg: CfgNode, seen: Seen, trial: Trial) -> list[str]:
    """Return how long it takes on this CPU; of a GPU that tells nothing."""
    stepped, view_seconds = trial.stepped, trial.view_seconds
    load = stepped.load_seconds / stepped.clips
    lines = [f"{load:.3g} s to load a clip, in one process"]
    if cfg.NUM_GPUS:
        return lines
    step = stepped.seconds / stepped.clips
    workers = max(1, math.ceil(load / step))
    lines[0] += f"; DATA_LOADER.NUM_WORKERS {workers} keeps up with the model"
    clips = seen.batches * cfg.TRAIN.BATCH_SIZE
    epoch = step * clips
    lines.append(
        f"{step:.3g} s to train on one: {_duration(epoch)} an epoch, "
        f"{_duration(epoch * cfg.SOLVER.MAX_EPOCH)} in all, with "
        f"{_count(torch.get_num_threads(), 'thread')} of this CPU"
    )
    if view_seconds is not None and cfg.TEST.ENABLE:
        views = len(seen.test) * cfg.TEST.NUM_ENSEMBLE_VIEWS * cfg.TEST.NUM_SPATIAL_CROPS
        lines.append(
            f"{view_seconds:.3g} s a test view: {_duration(view_seconds * views)} the test"
        )
    return lines


def _giga(count: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e6:.3g} M"


def _size(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def _count(number: int, what: str) -> str:
    ending = "es" if what.endswith("s") else "s"
    return f"{number} {what}{'' if number == 1 else ending}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
