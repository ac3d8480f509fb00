"""Train and test as a config says.

cfg is read here in `run`, `train`, `test` and the `build_*` functions, and nowhere else; the
rest take plain arguments.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import simplejson
import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.contrib.logging import logging_redirect_tqdm

import vmp
from vmp.data import ClipLoader, build_loader
from vmp.engine.agreement import check_agreement
from vmp.engine.checkpoint import (
    CheckpointWriter,
    checkpoint_path,
    list_checkpoints,
    read_newest,
    snapshot,
)
from vmp.engine.evaluate import (
    compute_metrics,
    count_videos,
    describe_test,
    predict,
    write_results,
)
from vmp.engine.lock import RunLock
from vmp.engine.normalization import average_buffers, recompute_statistics
from vmp.engine.progress import NonFiniteLossError, Progress, Waiting, progress_bar
from vmp.engine.provenance import (
    build_provenance,
    describe_machine,
    describe_prompts,
    hash_config,
    training_differences,
)
from vmp.engine.score_store import ScoreStore
from vmp.engine.state import collect_state, restore_state
from vmp.engine.step import Learner, train_step
from vmp.engine.stopping import Decisions
from vmp.models import PretrainedReport, VideoModel, build_model, load_pretrained, model_cost
from vmp.models.freeze import build_freezing, warn_of_frozen_start
from vmp.solver import ActionLoss, build_mixing, build_optimizer, build_schedule
from vmp.utils.distributed import (
    any_rank,
    barrier,
    broadcast_object,
    gather_objects,
    get_rank,
    get_world_size,
    is_main,
)
from vmp.utils.files import read_tensors, write_text
from vmp.utils.logging import RunLog, readable, setup_logging
from vmp.utils.signals import Interrupted, stop_requested

logger = logging.getLogger(__name__)


def run(cfg: CfgNode) -> None:
    """Train, then test, as TRAIN.ENABLE and TEST.ENABLE say; in every process of the run.

    Raises:
        Interrupted: a signal asked to stop; all is saved, and the same run goes on from there.
        ValueError: another run is alive in OUTPUT_DIR, or as `train` and `test`.
    """
    lock = lock_folder(cfg.OUTPUT_DIR)
    setup_logging(cfg.OUTPUT_DIR, rank=get_rank())
    logger.info("%d process(es), %s", get_world_size(), describe_machine())
    facts = {"the config (SHA-256)": hash_config(cfg.dump()), "vmp": vmp.__version__}
    try:
        check_agreement(facts | {"torch": torch.__version__}, seconds=cfg.DIST_TIMEOUT)
        if cfg.TRAIN.ENABLE:
            train(cfg)
            barrier()
            if stop_requested():
                raise Interrupted(f"stopped by {stop_requested()} after the training")
        if cfg.TEST.ENABLE:
            test(cfg)
    except Interrupted as error:
        logger.info("%s", error)
        raise
    except Exception:
        logger.debug("the run failed", exc_info=True)  # into the file
        raise
    finally:
        if lock is not None:
            lock.release()


def lock_folder(output_dir: str) -> RunLock | None:
    """Have rank 0 take the folder for this run, or fail on all ranks."""
    lock, refusal = None, ""
    if is_main():
        try:
            lock = RunLock(output_dir)
        except (ValueError, OSError) as error:
            refusal = str(error)
    refusal = broadcast_object(refusal)
    if refusal:
        raise ValueError(refusal)
    return lock


# ---------------------------------------------------------------- training


class Plan(NamedTuple):
    """When what happens in a training, and where it is written."""

    output_dir: Path
    max_epoch: int
    accumulate: int  # micro-batches of an update
    log_period: int  # updates
    eval_period: int  # epochs, 0: never
    checkpoint_period: int  # epochs
    checkpoint_steps: int  # 0: none within an epoch
    checkpoint_minutes: float  # 0: none by the clock
    checkpoint_keep: int
    precise_batches: int  # 0: no precise batch statistics
    config: str  # all of it, as text


def build_plan(cfg: CfgNode) -> Plan:
    """Take what the epochs need out of the config."""
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
        config=cfg.dump(),
    )


def train(cfg: CfgNode) -> None:
    """Train a model from scratch, from TRAIN.INIT_FROM, or from where the run stopped.

    Raises:
        Interrupted: a signal asked to stop; a checkpoint of this very step is written.
        OSError: the last checkpoint can't be written.
        NonFiniteLossError: the loss or the weights became NaN or infinite; on all ranks.
        ValueError: data, weights or what lies in OUTPUT_DIR do not fit the config.
    """
    loader = build_loader(cfg, "train", get_rank(), get_world_size())
    validation = None
    if cfg.TRAIN.EVAL_PERIOD:
        validation = build_loader(cfg, "val", get_rank(), get_world_size())
    check_agreement({"records": str(len(loader.records))}, seconds=cfg.DIST_TIMEOUT)
    learner = build_learner(cfg)
    log_cost(learner.model, cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE)
    if cfg.MODEL.COMPILE:  # after its cost was traced, which can't be done to a compiled model
        learner.model.compile()
    plan = build_plan(cfg)
    if _resume(learner, plan, allowed=cfg.TRAIN.AUTO_RESUME):
        origin = f"resumed after epoch {learner.epoch}, step {learner.step}"
        if learner.update:
            origin += f", {learner.update} updates into the next"
    elif cfg.TRAIN.INIT_FROM:
        report = load_pretrained(
            learner.model,
            cfg.TRAIN.INIT_FROM,
            strict=cfg.TRAIN.INIT_STRICT,
            resize=cfg.TRAIN.INIT_RESIZE,
            sha256=cfg.TRAIN.INIT_SHA256,
        )
        _check_same_file(report)
        _keep_report(report, plan.output_dir)
        warn_of_frozen_start(learner.model, [*report.missing, *report.dropped])
        origin = f"weights of {cfg.TRAIN.INIT_FROM} (SHA-256 {report.sha256[:12]}...)"
    else:
        warn_of_frozen_start(learner.model, learner.model.state_dict())
        origin = f"from scratch, seed {cfg.RNG_SEED}"
    logger.info(origin)
    if is_main():
        write_text(plan.output_dir / "config.yaml", plan.config)
    log = RunLog(plan.output_dir, enabled=is_main(), tensorboard=cfg.TENSORBOARD, step=learner.step)
    log.write("start", learner.step, {"origin": origin, "machine": describe_machine()})
    saver = Saver(learner, plan)
    try:
        while learner.epoch < plan.max_epoch:
            _train_epoch(learner, loader, plan, log, saver)
            _finish_epoch(learner, loader, validation, plan, log, saver)
        saver.finish()
    except NonFiniteLossError as error:
        kept = list_checkpoints(plan.output_dir)
        good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise NonFiniteLossError(
            f"{error}; {good}. Start again in another OUTPUT_DIR, from it with TRAIN.INIT_FROM if "
            "you like, with a lower SOLVER.BASE_LR, SOLVER.CLIP_GRAD_L2NORM or float32"
        ) from None
    finally:
        saver.writer.wait()
        log.close()


class Saver:
    """Decides when the ranks save and stop within an epoch, and has rank 0 write.

    Args:
        learner: what is saved.
        plan: when and where.
    """

    def __init__(self, learner: Learner, plan: Plan) -> None:
        self.writer = CheckpointWriter(keep=plan.checkpoint_keep)
        self._learner, self._plan = learner, plan
        self._decisions = Decisions(plan.checkpoint_minutes)

    def after_step(self) -> None:
        """Save when it is time; on all ranks, after each step.

        Raises:
            Interrupted: it was asked for, and this step is saved.
        """
        save, stop = self._decisions.after_step()
        steps = self._plan.checkpoint_steps
        if save or stop or (steps and self._learner.step % steps == 0):
            self.save()
        if stop:
            self._stop()

    def after_epoch(self, *, saved: bool) -> None:
        """Stop if asked to; on all ranks, at the end of an epoch that is or is not `saved`.

        Raises:
            Interrupted: it was asked for, and the epoch is saved. Not after the last one.
        """
        _, stop = self._decisions.after_step()
        if stop and self._learner.epoch < self._plan.max_epoch:
            if not saved:
                self.save()
            self._stop()

    def _stop(self) -> None:
        self.finish()
        learner = self._learner
        path = checkpoint_path(self._plan.output_dir, learner.epoch, learner.update)
        raise Interrupted(
            f"stopped by {stop_requested() or 'a signal to another rank'} after step "
            f"{learner.step}; {path} is written, and the same command goes on from it"
        )

    def save(self, *, best: bool = False) -> None:
        """Begin to write a checkpoint of this step.

        Raises:
            NonFiniteLossError: such weights are no good.
        """
        learner, plan = self._learner, self._plan
        _check_weights(learner)
        path = checkpoint_path(plan.output_dir, learner.epoch, learner.update)
        state = collect_state(learner, plan.config)
        if is_main():
            self.writer.save(path, state, best=best)

    def finish(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: the newest checkpoint could not be.
        """
        self._decisions.settle()
        self.writer.wait()
        if self.writer.failed:
            raise OSError(f"{self.writer.failed}; make room, and the same command goes on")


def build_learner(cfg: CfgNode) -> Learner:
    """Make model, optimizer and all else an update needs, on this process's device."""
    device = build_device(cfg)
    torch.manual_seed(cfg.RNG_SEED)
    model = build_model(cfg).to(device)
    build_freezing(cfg, model)
    optimizer = build_optimizer(cfg, model)
    if cfg.MODEL.CHANNELS_LAST:
        _to_channels_last(model)
    precision = getattr(torch, cfg.TRAIN.PRECISION)
    parallel = _parallel(model, device)
    if get_world_size() > 2:
        _settle_buckets(parallel, model, cfg.DATA.TRAIN_CROP_SIZE, device)
    return Learner(
        model=model,
        parallel=parallel,
        loss=ActionLoss(cfg.PROMPT.PENALTY, cfg.SOLVER.LABEL_SMOOTHING),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=precision == torch.float16),
        schedule=build_schedule(cfg),
        mixing=build_mixing(cfg),
        device=device,
        precision=precision,
        max_norm=cfg.SOLVER.CLIP_GRAD_L2NORM,
        seed=cfg.RNG_SEED,
        ema=build_ema(cfg, model),
    )


def build_ema(cfg: CfgNode, model: VideoModel) -> AveragedModel | None:
    """Make the exponential moving average of the weights, None where SOLVER.EMA_DECAY is 0."""
    if not cfg.SOLVER.EMA_DECAY:
        return None
    # its buffers, the running statistics, are those of the model
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.SOLVER.EMA_DECAY))


def build_device(cfg: CfgNode) -> torch.device:
    """Return the device of this process: its GPU, or the CPU where NUM_GPUS is 0."""
    if cfg.NUM_GPUS:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _to_channels_last(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim == 5:  # only these have the format; Module.to refuses the others
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


def _parallel(model: nn.Module, device: torch.device) -> nn.Module:
    if get_world_size() == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,  # the ranks' statistics are averaged at the end of each epoch
    )


def _settle_buckets(
    parallel: nn.Module, model: VideoModel, crop_size: int, device: torch.device
) -> None:
    """Let DistributedDataParallel arrange its buckets, before the first step of this process.

    It does so after the first backward pass, and the arrangement decides the order in which more
    than two ranks' gradients are summed: the first step after a resume would differ in the last
    bits from the same step of a run that was not stopped.
    """
    state = snapshot(model.state_dict())
    clip = torch.zeros(2, 3, model.clip_frames, crop_size, crop_size, device=device)
    for _ in range(2):  # arranged when the second begins
        output = parallel(clip)
        (output.logits.sum() + output.variation).backward()
    model.load_state_dict(state)
    model.zero_grad(set_to_none=True)


def _check_same_file(report: PretrainedReport) -> None:
    """Raise ValueError on all ranks unless each has read the same bytes; caches may differ."""
    hashes = gather_objects(report.sha256)
    others = [rank for rank, digest in enumerate(hashes) if digest != hashes[0]]
    if others:
        raise ValueError(
            f"{report.path} is another file on rank {others[0]} (SHA-256 {hashes[others[0]]}) than "
            f"on rank 0 ({hashes[0]}); delete the stale copy, or name one that all ranks see"
        )


def _keep_report(report: PretrainedReport, output_dir: Path) -> None:
    """Write what became of the initial weights to init_report.json; on rank 0."""
    if is_main():
        path = output_dir / "init_report.json"
        write_text(path, simplejson.dumps(report.as_dict(), indent=1) + "\n")
        logger.info("wrote %s", path)


def log_cost(model: VideoModel, num_frames: int, crop_size: int) -> None:
    """Say how large the model is and what one test view costs; on rank 0."""
    if is_main():
        cost = model_cost(model, num_frames, crop_size)
        logger.info("%s: %d frames of %d x %d pixels", cost, num_frames, crop_size, crop_size)


def _resume(learner: Learner, plan: Plan, *, allowed: bool) -> bool:
    """Put the learner where the run in `plan.output_dir` stopped; say whether there was one.

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
        return False
    found = read_newest(plan.output_dir) if is_main() else None
    path = broadcast_object(None if found is None else found[0])
    if path is None:
        return False
    state = read_tensors(path) if found is None else found[1]
    differences = training_differences(state["config"], plan.config)
    if differences:
        raise ValueError(
            f"{plan.output_dir} holds a run of another config: {', '.join(differences)}; give the "
            f"same values, take another OUTPUT_DIR, or start from its weights there with "
            "TRAIN.INIT_FROM"
        )
    restore_state(learner, state)
    return True


def _train_epoch(
    learner: Learner, loader: ClipLoader, plan: Plan, log: RunLog, saver: Saver
) -> None:
    """Make the updates of an epoch, from where a checkpoint within it was taken."""
    epoch, done = learner.epoch, learner.update
    updates = -(-len(loader) // plan.accumulate)
    learner.model.train()
    progress = Progress(loader.records)
    waiting = Waiting(loader.epoch(epoch, start=done * plan.accumulate), plan.accumulate)
    title = f"epoch {epoch + 1}/{plan.max_epoch}"
    with _lines_above(progress_bar(updates, title, done)) as bar:
        for number, batches in enumerate(waiting, start=done):
            where = epoch + number / updates
            progress.add(batches, train_step(learner, batches, where))
            bar.update()
            if learner.step % plan.log_period == 0 or number == updates - 1:
                values: dict[str, Any] = dict(progress.flush(learner.step, waiting.take_seconds()))
                values["lr"] = learner.schedule(where)
                values["prompt"] = describe_prompts(learner.model)
                log.write("train", learner.step, values | {"epoch": round(where, 4)})
                logger.info("epoch %.2f  step %d  %s", where, learner.step, readable(values))
            if number < updates - 1:  # the last is saved after what ends an epoch
                learner.update = number + 1
                saver.after_step()
    learner.epoch, learner.update = epoch + 1, 0


@contextlib.contextmanager
def _lines_above(bar: Any) -> Any:
    """Show the bar, and log lines above it."""
    # where no bar shows, the redirection would only bring all ranks' lines to the terminal
    vmp = logging.getLogger("vmp")
    lines = contextlib.nullcontext() if bar.disable else logging_redirect_tqdm([vmp])
    with bar, lines:
        yield bar


def _finish_epoch(
    learner: Learner,
    loader: ClipLoader,
    validation: ClipLoader | None,
    plan: Plan,
    log: RunLog,
    saver: Saver,
) -> None:
    """Bring the ranks' statistics together, validate and write a checkpoint when it is time."""
    last = learner.epoch == plan.max_epoch
    average_buffers(learner.model)
    if learner.ema is not None:
        average_buffers(learner.ema)
    save = last or learner.epoch % plan.checkpoint_period == 0
    validate = validation is not None and (last or learner.epoch % plan.eval_period == 0)
    if plan.precise_batches and (save or validate):
        count = min(plan.precise_batches, len(loader))
        batches = loader.epoch(learner.epoch)
        recompute_statistics(learner.evaluated, batches, count, device=learner.device)
    best = False
    # first, so that a kill in between cannot lose the record: the resumed run validates again
    if validate and validation is not None:
        _check_weights(learner)
        top1 = _validate(learner, validation, log)
        best = top1 > learner.best
        learner.best = max(top1, learner.best)
    if save or best:
        saver.save(best=best)
    saver.after_epoch(saved=save or best)


def _validate(learner: Learner, validation: ClipLoader, log: RunLog) -> float:
    """Log the metrics of the validation set, and return the top-1."""
    predictions = predict(
        learner.evaluated, validation, device=learner.device, precision=learner.precision
    )
    metrics = compute_metrics(predictions)
    counts = count_videos(predictions, validation)
    log.write("val", learner.step, metrics | counts | {"epoch": learner.epoch})
    logger.info("epoch %d  validation  %s", learner.epoch, readable(metrics))
    return metrics["top1"]


def _check_weights(learner: Learner) -> None:
    """Raise on all ranks if a weight or statistic is not finite: such a checkpoint is no good."""
    finite = [value.isfinite().all() for value in learner.model.state_dict().values()]
    if any_rank(not bool(torch.stack(finite).all()), learner.device):
        raise NonFiniteLossError(f"the weights are not finite after step {learner.step}")


# ---------------------------------------------------------------- testing


def test(cfg: CfgNode) -> None:
    """Test TEST.CHECKPOINT_FILE_PATH, or the run's newest checkpoint, with several views.

    Writes predictions.npz and test_results.json to OUTPUT_DIR.

    Raises:
        ValueError: there is no checkpoint, or it does not fit the model.
    """
    device = build_device(cfg)
    loader = build_loader(cfg, "test", get_rank(), get_world_size())
    torch.manual_seed(cfg.RNG_SEED)
    model = build_model(cfg).to(device)
    if not cfg.TRAIN.ENABLE:  # else the training has said it
        log_cost(model, cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE)
    path = _checkpoint_to_test(cfg.OUTPUT_DIR, cfg.TEST.CHECKPOINT_FILE_PATH)
    report = load_pretrained(model, path)
    _check_same_file(report)
    misfits = [*report.missing, *report.dropped, *report.unexpected]
    if misfits:
        raise ValueError(
            f"{path} and the model differ in {', '.join(misfits[:5])}"
            f"{' ...' if len(misfits) > 5 else ''}; a test needs every weight and no other: check "
            "MODEL.NAME, MODEL.NUM_CLASSES and PROMPT.ENABLE"
        )
    logger.info("testing %s with %d views a video", path, loader.num_views)
    provenance = broadcast_object(build_provenance(cfg, model, report) if is_main() else None)
    store = ScoreStore(Path(cfg.OUTPUT_DIR, "test_scores"), describe_test(loader, provenance))
    predictions = predict(
        model,
        loader,
        device=device,
        precision=getattr(torch, cfg.TRAIN.PRECISION),
        ensemble=cfg.TEST.ENSEMBLE,
        threads=cfg.TEST.CPU_THREADS,
        store=store,
        stop=stop_requested,
    )
    if not is_main():
        return
    results = write_results(cfg.OUTPUT_DIR, predictions, loader, provenance)
    store.remove()
    counts = results["counts"]
    logger.info(
        "test  %s  (evaluated %d of %d videos)",
        readable(results["metrics"]),
        counts["evaluated_videos"],
        counts["videos"],
    )
    _log_failures(results["not_evaluated"])
    logger.info("wrote %s", Path(cfg.OUTPUT_DIR) / "test_results.json")


def _log_failures(failures: Sequence[Mapping[str, Any]], shown: int = 20) -> None:
    """Say what was not evaluated, and of many only the first: the results name them all."""
    for failure in failures[:shown]:
        logger.warning(
            "not evaluated: %s (%s): %s", failure["id"], failure["path"], failure["reason"]
        )
    if len(failures) > shown:
        logger.warning("not evaluated: %d more, see test_results.json", len(failures) - shown)


def _checkpoint_to_test(output_dir: str, wanted: str) -> str:
    """Return the checkpoint named, or the newest of the run; the same on all ranks."""
    if wanted:
        return wanted
    kept = broadcast_object(list_checkpoints(output_dir))
    if not kept:
        raise ValueError(
            f"there is no checkpoint in {output_dir}; train first (TRAIN.ENABLE True) or name one "
            "with TEST.CHECKPOINT_FILE_PATH"
        )
    return str(kept[-1])
