"""The training of a model, epoch by epoch."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import simplejson
import yaml
from fvcore.common.config import CfgNode
from torch import Tensor

from vmp.data import ClipLoader, build_loader
from vmp.engine.agreement import check_agreement
from vmp.engine.build import build_learner
from vmp.engine.checkpoint import keep_best, list_checkpoints, read_newest
from vmp.engine.dimming import join_dimming, log_dimming, measure_dimming
from vmp.engine.evaluate import compute_metrics, count_videos, predict
from vmp.engine.normalization import average_buffers, recompute_statistics
from vmp.engine.progress import (
    NonFiniteLossError,
    Progress,
    TimeLeft,
    Waiting,
    log_cost,
    progress_bar,
)
from vmp.engine.provenance import (
    deciding_config,
    describe_machine,
    describe_prompts,
    describe_records,
    training_differences,
)
from vmp.engine.saver import Plan, Saver, check_weights
from vmp.engine.state import restore_state
from vmp.engine.step import Learner, train_step
from vmp.engine.transfer import ahead
from vmp.metrics import confusion_matrix
from vmp.models import PretrainedReport, VideoModel, load_pretrained
from vmp.models.freeze import warn_of_frozen_start
from vmp.utils.boards import check_wandb
from vmp.utils.distributed import broadcast_object, get_rank, get_world_size, is_main
from vmp.utils.files import read_tensors, write_text
from vmp.utils.logging import RunLog, readable
from vmp.utils.signals import stop_requested

logger = logging.getLogger(__name__)

# (model, clip (3, T, H, W) uint8 as the model takes it) -> pictures (H, W, 3) uint8 by name
Watch = Callable[[VideoModel, Tensor], Mapping[str, Any]]
# (confusion matrix (C, C), names of the classes, name of the picture) -> pictures likewise
Chart = Callable[[Tensor, Sequence[str], str], Mapping[str, Any]]


def build_plan(cfg: CfgNode, records: str) -> Plan:
    """Take what the epochs need out of the config; `records` describes the training set."""
    return Plan(
        output_dir=Path(cfg.OUTPUT_DIR),
        max_epoch=cfg.SOLVER.MAX_EPOCH,
        accumulate=max(1, cfg.TRAIN.GLOBAL_BATCH_SIZE // cfg.TRAIN.BATCH_SIZE),
        log_period=cfg.LOG_PERIOD,
        eval_period=cfg.TRAIN.EVAL_PERIOD,
        checkpoint_period=cfg.TRAIN.CHECKPOINT_PERIOD,
        checkpoint_steps=cfg.TRAIN.CHECKPOINT_STEPS,
        checkpoint_minutes=cfg.TRAIN.CHECKPOINT_MINUTES,
        checkpoint_keep=cfg.TRAIN.CHECKPOINT_KEEP,
        precise_batches=cfg.BN.NUM_BATCHES_PRECISE if cfg.BN.USE_PRECISE_STATS else 0,
        timeout=cfg.DIST_TIMEOUT,
        records=records,
        config=cfg.dump(),
    )


def train(cfg: CfgNode, watch: Watch | None = None, chart: Chart | None = None) -> None:
    """Train a model from scratch, from TRAIN.INIT_FROM, or from where the run stopped.

    Args:
        cfg: of the run.
        watch: draws pictures for the boards after each epoch, on rank 0, always of one clip.
        chart: draws the confusion matrix of each validation for them, on rank 0.

    Raises:
        Interrupted: a signal asked to stop; a checkpoint of this very step is written.
        OSError: the last checkpoint can't be written.
        NonFiniteLossError: the loss or the weights became NaN or infinite; on all ranks.
        ValueError: data, weights or what lies in OUTPUT_DIR do not fit the config, or
            WANDB.PROJECT is set and `wandb` is not there.
    """
    require_wandb(cfg.WANDB.PROJECT)
    with (
        build_loader(cfg, "train", get_rank(), get_world_size()) as loader,
        build_validation(cfg) as validation,
    ):
        records = describe_records(loader.records)
        check_agreement({"the training set": records})
        learner = build_learner(cfg)
        log_cost(learner.model, cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE)
        if cfg.MODEL.COMPILE:  # after its cost was traced, which can't be done to a compiled model
            learner.model.compile()
        plan = build_plan(cfg, records)
        resumed = _resume(learner, plan, allowed=cfg.TRAIN.AUTO_RESUME)
        origin = resumed or build_start(cfg, learner.model)
        logger.info(origin)
        if is_main():
            write_text(plan.output_dir / "config.yaml", plan.config)
        log = RunLog(
            plan.output_dir,
            enabled=is_main(),
            tensorboard=cfg.TENSORBOARD,
            wandb=cfg.WANDB.PROJECT,
            config=yaml.safe_load(plan.config),
            hparams=deciding_config(plan.config),
            step=learner.step,
            again=("val",) if learner.closing else (),
        )
        log.write("start", learner.step, {"origin": origin, "machine": describe_machine()})
        _train_epochs(learner, loader, validation, plan, log, watch, chart)


def require_wandb(project: str) -> None:
    """Raise ValueError, on all ranks, where rank 0 can't show the run in `project`; "" is none."""
    missing = broadcast_object(check_wandb(project) if is_main() else "")
    if missing:
        raise ValueError(missing)


def build_validation(cfg: CfgNode) -> contextlib.AbstractContextManager[ClipLoader | None]:
    """Make the loader of this rank for validation, None where TRAIN.EVAL_PERIOD is 0."""
    if not cfg.TRAIN.EVAL_PERIOD:
        return contextlib.nullcontext()
    return build_loader(cfg, "val", get_rank(), get_world_size())


def build_start(cfg: CfgNode, model: VideoModel) -> str:
    """Give the model the weights of TRAIN.INIT_FROM, or leave it its random ones.

    Returns:
        Where the weights come from.
    """
    if not cfg.TRAIN.INIT_FROM:
        warn_of_frozen_start(model, model.state_dict())
        return f"from scratch, seed {cfg.RNG_SEED}"
    report = load_pretrained(
        model,
        cfg.TRAIN.INIT_FROM,
        strict=cfg.TRAIN.INIT_STRICT,
        resize=cfg.TRAIN.INIT_RESIZE,
        sha256=cfg.TRAIN.INIT_SHA256,
    )
    check_agreement({f"{report.path} (SHA-256)": report.sha256})
    _keep_report(report, Path(cfg.OUTPUT_DIR))
    warn_of_frozen_start(model, [*report.missing, *report.dropped])
    return f"weights of {cfg.TRAIN.INIT_FROM} (SHA-256 {report.sha256[:12]}...)"


def _train_epochs(
    learner: Learner,
    loader: ClipLoader,
    validation: ClipLoader | None,
    plan: Plan,
    log: RunLog,
    watch: Watch | None,
    chart: Chart | None,
) -> None:
    saver = Saver(learner, plan)
    left = TimeLeft(learner.step)
    try:
        while learner.epoch < plan.max_epoch or learner.closing:
            if not learner.closing:
                _train_epoch(learner, loader, plan, log, saver, left)
            _finish_epoch(learner, loader, validation, plan, log, saver, chart)
            if watch is not None:
                log.draw(learner.step, partial(_watch, watch, learner, loader))
        saver.finish()
    except NonFiniteLossError as error:  # on all ranks
        saver.wait()
        kept = list_checkpoints(plan.output_dir)
        good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise NonFiniteLossError(
            f"{error}; {good}. Start again in another OUTPUT_DIR, from it with TRAIN.INIT_FROM if "
            "you like, with a lower SOLVER.BASE_LR, SOLVER.CLIP_GRAD_L2NORM or float32"
        ) from None
    finally:
        saver.writer.wait()
        log.close()


def _watch(watch: Watch, learner: Learner, loader: ClipLoader) -> Mapping[str, Any]:
    """Return the pictures of the first clip of the training set, none if it can't be read."""
    clip = loader.clip(0)
    return {} if clip is None else watch(learner.evaluated, clip)


def _keep_report(report: PretrainedReport, output_dir: Path) -> None:
    """Write what became of the initial weights to init_report.json; on rank 0."""
    if is_main():
        path = output_dir / "init_report.json"
        write_text(path, simplejson.dumps(report.as_dict(), indent=1) + "\n")
        logger.info("wrote %s", path)


def _resume(learner: Learner, plan: Plan, *, allowed: bool) -> str:
    """Put the learner where the run in `plan.output_dir` stopped; say where, "" if there is none.

    Rank 0 chooses the checkpoint, so that all ranks go on from the same.

    Raises:
        ValueError: there is a run and `allowed` is False, or it was made with another config.
    """
    if not allowed:
        if broadcast_object(bool(list_checkpoints(plan.output_dir))):
            raise ValueError(
                f"{plan.output_dir} holds a run and TRAIN.AUTO_RESUME is False; take another "
                "OUTPUT_DIR or delete it"
            )
        return ""
    found = read_newest(plan.output_dir) if is_main() else None
    path = broadcast_object(None if found is None else found[0])
    if path is None:
        return ""
    state = read_tensors(path) if found is None else found[1]
    if "config" not in state:
        raise ValueError(f"{path} is no checkpoint of a training; take it out of there")
    trained_on = state.get("records", plan.records)
    if trained_on != plan.records:
        raise ValueError(
            f"{plan.output_dir} holds a run on other videos: {trained_on} there, {plan.records} "
            "here; bring its training set back, or take another OUTPUT_DIR"
        )
    differences = training_differences(state["config"], plan.config)
    if differences:
        raise ValueError(
            f"{plan.output_dir} holds a run of another config: {', '.join(differences)}; give the "
            f"same values, take another OUTPUT_DIR, or start from its weights there with "
            "TRAIN.INIT_FROM"
        )
    restore_state(learner, state)
    if is_main() and state.get("is_best"):
        try:
            keep_best(path)  # a kill may have come between
        except OSError as error:
            logger.warning("%s can't be kept as the best: %s", path, error)
    more = f", {learner.update} updates into the next" if learner.update else ""
    return f"resumed after epoch {learner.epoch}, step {learner.step}{more}"


def _train_epoch(
    learner: Learner,
    loader: ClipLoader,
    plan: Plan,
    log: RunLog,
    saver: Saver,
    left: TimeLeft,
) -> None:
    """Make the updates of an epoch, from where a checkpoint within it was taken."""
    epoch, done = learner.epoch, learner.update
    updates = -(-len(loader) // plan.accumulate)
    learner.model.train()
    progress = Progress(loader.records)
    waiting = Waiting(loader.epoch(epoch, start=done * plan.accumulate))
    coming = ahead(waiting, learner.device, per_update=plan.accumulate)
    groups = iter(lambda: list(islice(coming, plan.accumulate)), [])
    title, last = f"epoch {epoch + 1}/{plan.max_epoch}", plan.max_epoch * updates
    told = ""  # of the last log line: the bar asks the device for nothing
    with progress_bar(updates, title, done) as bar:
        for number, batches in enumerate(groups, start=done):
            where = epoch + number / updates
            progress.add(batches, train_step(learner, batches, where))
            if not bar.disable:
                pace = progress.describe_pace(waiting.seconds)
                rest = left.describe(learner.step, last)
                bar.set_postfix_str(f"{pace}{told}, run left {rest}", refresh=False)
            bar.update()
            if learner.step % plan.log_period == 0 or number == updates - 1:
                values: dict[str, Any] = dict(progress.flush(learner.step, waiting.take_seconds()))
                values["lr"] = learner.schedule(where)
                values["prompt"] = describe_prompts(learner.model)
                log.write("train", learner.step, values | {"epoch": round(where, 4)})
                rest = left.describe(learner.step, last)
                line = readable(values)
                logger.info("epoch %.2f  step %d  %s  left %s", where, learner.step, line, rest)
                told = "".join(
                    f", {name} {values[name]:.3g}" for name in ("loss", "top1") if name in values
                )
            if number < updates - 1:  # the last is saved after what ends an epoch
                learner.update = number + 1
                saver.after_step()
    learner.epoch, learner.update = epoch + 1, 0


def _finish_epoch(
    learner: Learner,
    loader: ClipLoader,
    validation: ClipLoader | None,
    plan: Plan,
    log: RunLog,
    saver: Saver,
    chart: Chart | None,
) -> None:
    """Bring the ranks' statistics together, validate and write a checkpoint when it is time."""
    last = learner.epoch == plan.max_epoch
    if not learner.closing:  # else it is done: the run was saved within this function
        average_buffers(learner.model)
        if learner.ema is not None:
            average_buffers(learner.ema)
        learner.closing = True
    save = last or learner.epoch % plan.checkpoint_period == 0
    validate = validation is not None and (last or learner.epoch % plan.eval_period == 0)
    best = False
    if plan.precise_batches and (save or validate):
        with saver.stoppable():
            count = min(plan.precise_batches, len(loader))
            batches = loader.epoch(learner.epoch)
            recompute_statistics(
                learner.evaluated, batches, count, device=learner.device, stop=stop_requested
            )
    # first, so that a kill in between cannot lose the record: the resumed run validates again
    if validate and validation is not None:
        with saver.stoppable():
            check_weights(learner)
            top1 = _validate(learner, validation, log, chart)
        best = saver.beats_best(top1)
    learner.closing = False
    if save or best:
        saver.save(best=best)
    saver.after_epoch(saved=save or best)


def _validate(learner: Learner, validation: ClipLoader, log: RunLog, chart: Chart | None) -> float:
    """Log the metrics of the validation set, and return the top-1."""
    predictions = predict(
        learner.evaluated,
        validation,
        device=learner.device,
        precision=learner.precision,
        stop=stop_requested,
    )
    metrics = compute_metrics(predictions)
    dimming = measure_dimming(learner.evaluated, validation, device=learner.device)
    values: dict[str, Any] = metrics | count_videos(predictions, validation)
    if dimming:
        values["prompt"] = join_dimming(describe_prompts(learner.evaluated), dimming)
    log.write("val", learner.step, values | {"epoch": learner.epoch})
    logger.info("epoch %d  validation  %s", learner.epoch, readable(metrics))
    log_dimming(dimming)
    if chart is not None:
        matrix = confusion_matrix(predictions.scores, predictions.labels)
        log.draw(learner.step, partial(chart, matrix, validation.class_names, "val/confusion"))
    return metrics["top1"]
