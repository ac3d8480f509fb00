"""What a dry run sees: the data, the model, and one batch through both, all on the CPU."""

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from vmp.config.check import count_processes
from vmp.data import VideoRecord, build_loader
from vmp.data.archive import DecodeError
from vmp.data.build import build_reader, build_records
from vmp.data.clips import Batch, stretch
from vmp.engine.checkpoint import list_checkpoints
from vmp.engine.provenance import training_differences
from vmp.engine.step import Learner, train_step
from vmp.models import VideoModel, load_pretrained
from vmp.models.freeze import warn_of_frozen_start

CLIPS = 2  # of the first batch: enough for a batch norm
LOOKED_AT = 16  # training videos that are opened
QUICK = 5.0  # seconds: a step that took less is timed once more, warmed up


class Videos(NamedTuple):
    """The median of some training videos.

    Attributes:
        frames: of the record.
        fps: of its video.
        height: as shown, pixels.
        width: likewise.
    """

    frames: int
    fps: float
    height: int
    width: int


class Memory(NamedTuple):
    """What a process needs, bytes.

    Attributes:
        weights: parameters and statistics.
        gradients: of what is trained.
        optimizer: its state.
        average: of the weights, where there is one.
        activations: kept for the backward pass.
        clips: of a pass, as they come.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    clips: int


class Stepped(NamedTuple):
    """One update with some clips.

    Attributes:
        clips: how many.
        seconds: of forward, backward and update.
        load_seconds: of loading the clips, in this process.
        saved: bytes kept for the backward pass.
        loss: at the start.
        task_loss: likewise.
        variation: likewise, V.
    """

    clips: int
    seconds: float
    load_seconds: float
    saved: int
    loss: float
    task_loss: float
    variation: float


# ---------------------------------------------------------------- from cfg


def build_cpu_config(cfg: CfgNode) -> CfgNode:
    """Return a config for one process on the CPU with a few clips, else the same.

    float16 is looked at as bfloat16, which takes as much memory. Without ACT_CHECKPOINT, since what
    it does not keep is not seen either.
    """
    here = cfg.clone()
    here.defrost()
    here.NUM_GPUS, here.NUM_PROCESSES = 0, 1
    here.MODEL.COMPILE = here.MODEL.ACT_CHECKPOINT = False
    here.DATA_LOADER.NUM_WORKERS = 0
    here.TRAIN.BATCH_SIZE = min(CLIPS, cfg.TRAIN.BATCH_SIZE)
    here.TRAIN.GLOBAL_BATCH_SIZE = 0
    if cfg.PROMPT.KERNEL == "triton":
        here.PROMPT.KERNEL = "auto"
    if cfg.TRAIN.PRECISION == "float16":
        here.TRAIN.PRECISION = "bfloat16"
    here.freeze()
    return here


def build_batch_count(cfg: CfgNode) -> int:
    """Return the batches of an epoch.

    Raises:
        ValueError: as `build_loader`: there are fewer clips than in a batch, say.
    """
    plain = cfg.clone()
    plain.defrost()
    plain.DATA_LOADER.NUM_WORKERS = 0
    with build_loader(plain, "train") as loader:
        return len(loader)


def build_test_records(cfg: CfgNode) -> list[VideoRecord]:
    """Return the records of the test, none where nothing is tested."""
    if not (cfg.TEST.ENABLE or cfg.TRAIN.EVAL_PERIOD):
        return []
    return build_records(cfg, "test")


def build_start_report(cfg: CfgNode, model: VideoModel) -> list[str]:
    """Load the initial weights; return what they matched, a line each.

    Raises:
        ValueError: they can't be read or don't fit.
        OSError: likewise.
    """
    if not cfg.TRAIN.INIT_FROM:
        warn_of_frozen_start(model, model.state_dict())
        return [f"random, seed {cfg.RNG_SEED}"]
    report = load_pretrained(
        model,
        cfg.TRAIN.INIT_FROM,
        strict=cfg.TRAIN.INIT_STRICT,
        resize=cfg.TRAIN.INIT_RESIZE,
        sha256=cfg.TRAIN.INIT_SHA256,
    )
    warn_of_frozen_start(model, [*report.missing, *report.dropped])
    return report.lines()


def build_median_video(cfg: CfgNode, records: Sequence[VideoRecord]) -> Videos:
    """Return the median of some training videos.

    Raises:
        ValueError: none of them can be read.
    """
    open_video = build_reader(cfg)
    seen, reason = [], ""
    for record in records[:: max(1, len(records) // LOOKED_AT)]:
        try:
            with open_video(record.path) as reader:
                seen.append(Videos(stretch(record, len(reader)), reader.fps, *reader.size))
        except DecodeError as error:
            reason = f"{error.path}: {error.reason}"
    if not seen:
        raise ValueError(f"no training video can be read; {reason}")
    return sorted(seen, key=lambda video: video.frames / video.fps)[len(seen) // 2]


def build_other_run(cfg: CfgNode) -> tuple[str, str]:
    """Return (the checkpoint that a run would go on from, how the run there differs); "" each."""
    kept = list_checkpoints(cfg.OUTPUT_DIR)
    if not kept:
        return "", ""
    if not cfg.TRAIN.AUTO_RESUME:
        return "", "holds a run, and TRAIN.AUTO_RESUME is False"
    try:
        stored = Path(cfg.OUTPUT_DIR, "config.yaml").read_text(encoding="utf-8")
    except OSError:
        return str(kept[-1]), ""
    differences = training_differences(stored, cfg.dump())
    if differences:
        return "", f"holds a run of another config: {', '.join(differences[:3])}"
    return str(kept[-1]), ""


def build_memory(cfg: CfgNode, learner: Learner, stepped: Stepped, batch: Batch) -> Memory:
    """Return what a process of the run needs, from one update with a few clips."""
    share = cfg.TRAIN.BATCH_SIZE / count_processes(cfg) / stepped.clips
    state = list(learner.model.state_dict().values())
    trained = [p for p in learner.model.parameters() if p.requires_grad]
    kept = [
        value
        for states in learner.optimizer.state.values()
        for value in states.values()
        if isinstance(value, Tensor)
    ]
    return Memory(
        weights=_bytes(state),
        gradients=_bytes(trained),
        optimizer=_bytes(kept),
        average=0 if learner.ema is None else _bytes(state),
        activations=round(stepped.saved * share),
        clips=round(_bytes([batch.clip]) * share),
    )


def build_first_batch(here: CfgNode) -> tuple[Batch, float]:
    """Return a few clips of the training, and the seconds it took to load them."""
    with build_loader(here, "train") as loader:
        began = time.perf_counter()
        batch = next(iter(loader.epoch(0)))
        return batch, time.perf_counter() - began


def build_test_view(here: CfgNode, model: VideoModel) -> float | None:
    """Put one view of the test through the model; return the seconds, None if it can't be read."""
    with build_loader(here, "test") as loader:
        clip = loader.clip(0)
    if clip is None:
        return None
    began = time.perf_counter()
    model.eval()
    with torch.inference_mode():
        model(clip[None])
    return time.perf_counter() - began


def pathway_lines(model: VideoModel) -> list[str]:
    """Return, for each pathway, how many frames go into its prompt and to the backbone."""
    told = []
    names = ("slow pathway: ", "fast pathway: ") if len(model.frames) > 1 else ("",)
    for pathway, name in enumerate(names):
        frames = model.frames[pathway]
        count = len(range(model.clip_frames)[frames] if isinstance(frames, slice) else frames)
        if str(pathway) in model.prompts:
            told.append(f"{name}{count} into the prompt, {count - 1} to the backbone")
        else:
            told.append(f"{name}{count} to the backbone, no prompt")
    return told


# ---------------------------------------------------------------- one batch


def step_once(learner: Learner, batch: Batch, load_seconds: float) -> Stepped:
    """Update the model with a batch; see how long it takes and what it keeps meanwhile."""
    with kept_for_backward(learner.model) as kept:
        seconds, scalars = _timed_step(learner, batch)
    if seconds < QUICK:
        seconds = min(seconds, _timed_step(learner, batch)[0])
    values = {name: float(value) for name, value in scalars.items()}
    return Stepped(
        clips=len(batch.label),
        seconds=seconds,
        load_seconds=load_seconds,
        saved=sum(kept.values()),
        loss=values["loss"],
        task_loss=values["task_loss"],
        variation=values["variation"],
    )


def _timed_step(learner: Learner, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    learner.model.train()
    began = time.perf_counter()
    scalars = train_step(learner, [batch], 0.0)
    return time.perf_counter() - began, scalars


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[dict[int, int]]:
    """Yield where memory that autograd keeps begins -> its bytes, the model's own left aside."""
    kept: dict[int, int] = {}
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# ---------------------------------------------------------------- records and machine


def count_leaks(train: Sequence[VideoRecord], test: Sequence[VideoRecord]) -> int:
    """Return how many test records share frames with a training record."""
    trained: dict[str, list[VideoRecord]] = defaultdict(list)
    for record in train:
        trained[os.path.realpath(record.path)].append(record)
    return sum(
        any(_overlap(record, other) for other in trained.get(os.path.realpath(record.path), ()))
        for record in test
    )


def _overlap(one: VideoRecord, other: VideoRecord) -> bool:
    ends = [float("inf") if each.stop is None else each.stop for each in (one, other)]
    return max(one.start, other.start) < min(ends)


def count_excluded(records: Sequence[VideoRecord]) -> Mapping[str, int]:
    """Return why records are not to be read -> how many."""
    return Counter(record.excluded.partition(":")[0] for record in records if record.excluded)


def learns_batch_norms(model: nn.Module) -> bool:
    """Say whether there is a batch norm that takes its statistics of batches."""
    model.train()
    return any(isinstance(module, _NormBase) and module.training for module in model.modules())


def multiplies_bfloat16() -> bool:
    """Say whether this CPU multiplies in bfloat16."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def memory_there(num_gpus: int, ranks: int) -> int:
    """Return the bytes of memory that a process has here; 0 if the GPUs are elsewhere."""
    if num_gpus:
        return torch.cuda.mem_get_info(0)[1] if torch.cuda.is_available() else 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks


class Warnings(logging.Handler):
    """Keeps what the program warns of.

    Attributes:
        lines: each warning once.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        line = " ".join(record.getMessage().split())
        if line not in self.lines:
            self.lines.append(line)


@contextmanager
def gathered_warnings() -> Iterator[Warnings]:
    """Have the program's warnings gathered, and nothing of it printed."""
    log, handler = logging.getLogger("vmp"), Warnings()
    before = log.handlers, log.propagate, log.level
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.WARNING)
    try:
        yield handler
    finally:
        log.handlers, log.propagate = before[0], before[1]
        log.setLevel(before[2])
