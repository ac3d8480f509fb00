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
from tqdm.contrib.logging import logging_redirect_tqdm

from vmp.data import ClipLoader, build_loader
from vmp.engine.checkpoint import (
    checkpoint_path,
    list_checkpoints,
    read_newest,
    save_checkpoint,
)
from vmp.engine.evaluate import compute_metrics, count_videos, predict, write_results
from vmp.engine.normalization import average_buffers, recompute_statistics
from vmp.engine.progress import NonFiniteLossError, Progress, Waiting, progress_bar
from vmp.engine.provenance import (
    build_provenance,
    describe_machine,
    describe_prompts,
    training_differences,
)
from vmp.engine.step import Learner, train_step
from vmp.models import PretrainedReport, VideoModel, build_model, load_pretrained, model_cost
from vmp.models.freeze import build_freezing, warn_of_frozen_start
from vmp.solver import ActionLoss, build_mixing, build_optimizer, build_schedule
from vmp.utils.distributed import (
    any_rank,
    barrier,
    broadcast_object,
    get_rank,
    get_world_size,
    is_main,
)
from vmp.utils.files import read_tensors, write_text
from vmp.utils.logging import RunLog, readable, setup_logging

logger = logging.getLogger(__name__)


def run(cfg: CfgNode) -> None:
    """Train, then test, as TRAIN.ENABLE and TEST.ENABLE say; in every process of the run."""
    setup_logging(cfg.OUTPUT_DIR, rank=get_rank())
    logger.info("%d process(es), %s", get_world_size(), describe_machine())
    try:
        if cfg.TRAIN.ENABLE:
            train(cfg)
            barrier()
        if cfg.TEST.ENABLE:
            test(cfg)
    except Exception:
        logger.debug("the run failed", exc_info=True)  # into the file
        raise


# ---------------------------------------------------------------- training


class Plan(NamedTuple):
    """When what happens in a training, and where it is written."""

    output_dir: Path
    max_epoch: int
    accumulate: int  # micro-batches of an update
    log_period: int  # updates
    eval_period: int  # epochs, 0: never
    checkpoint_period: int  # epochs
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
        checkpoint_keep=cfg.TRAIN.CHECKPOINT_KEEP,
        precise_batches=cfg.BN.NUM_BATCHES_PRECISE if cfg.BN.USE_PRECISE_STATS else 0,
        config=cfg.dump(),
    )


def train(cfg: CfgNode) -> None:
    """Train a model from scratch, from TRAIN.INIT_FROM, or from where the run stopped.

    Raises:
        NonFiniteLossError: the loss or the weights became NaN or infinite; on all ranks.
        ValueError: data, weights or what lies in OUTPUT_DIR do not fit the config.
    """
    loader = build_loader(cfg, "train", get_rank(), get_world_size())
    validation = None
    if cfg.TRAIN.EVAL_PERIOD:
        validation = build_loader(cfg, "val", get_rank(), get_world_size())
    learner = build_learner(cfg)
    log_cost(learner.model, cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE)
    if cfg.MODEL.COMPILE:  # after its cost was traced, which can't be done to a compiled model
        learner.model.compile()
    plan = build_plan(cfg)
    if _resume(learner, plan, allowed=cfg.TRAIN.AUTO_RESUME):
        origin = f"resumed after epoch {learner.epoch}, step {learner.step}"
    elif cfg.TRAIN.INIT_FROM:
        report = load_pretrained(
            learner.model,
            cfg.TRAIN.INIT_FROM,
            strict=cfg.TRAIN.INIT_STRICT,
            resize=cfg.TRAIN.INIT_RESIZE,
            sha256=cfg.TRAIN.INIT_SHA256,
        )
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
    try:
        for epoch in range(learner.epoch, plan.max_epoch):
            _train_epoch(learner, loader, epoch, plan, log)
            _finish_epoch(learner, loader, validation, plan, log)
    except NonFiniteLossError as error:
        kept = list_checkpoints(plan.output_dir)
        good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise NonFiniteLossError(
            f"{error}; {good}. Start again in another OUTPUT_DIR, from it with TRAIN.INIT_FROM if "
            "you like, with a lower SOLVER.BASE_LR, SOLVER.CLIP_GRAD_L2NORM or float32"
        ) from None
    finally:
        log.close()


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
    return Learner(
        model=model,
        parallel=_parallel(model, device),
        loss=ActionLoss(cfg.PROMPT.PENALTY, cfg.SOLVER.LABEL_SMOOTHING),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=precision == torch.float16),
        schedule=build_schedule(cfg),
        mixing=build_mixing(cfg),
        device=device,
        precision=precision,
        max_norm=cfg.SOLVER.CLIP_GRAD_L2NORM,
        seed=cfg.RNG_SEED,
    )


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
    _load_state(learner, state)
    return True


def _load_state(learner: Learner, state: Mapping[str, Any]) -> None:
    learner.model.load_state_dict(state["model"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scaler.load_state_dict(state["scaler"])
    learner.epoch, learner.step = state["epoch"], state["step"]


def _train_epoch(learner: Learner, loader: ClipLoader, epoch: int, plan: Plan, log: RunLog) -> None:
    updates = -(-len(loader) // plan.accumulate)
    learner.model.train()
    progress = Progress(loader.records)
    waiting = Waiting(loader.epoch(epoch), plan.accumulate)
    with _lines_above(progress_bar(updates, f"epoch {epoch + 1}/{plan.max_epoch}")) as bar:
        for number, batches in enumerate(waiting):
            where = epoch + number / updates
            progress.add(batches, train_step(learner, batches, where))
            bar.update()
            if learner.step % plan.log_period == 0 or number == updates - 1:
                values: dict[str, Any] = dict(progress.flush(learner.step, waiting.take_seconds()))
                values["lr"] = learner.schedule(where)
                values["prompt"] = describe_prompts(learner.model)
                log.write("train", learner.step, values | {"epoch": round(where, 4)})
                logger.info("epoch %.2f  step %d  %s", where, learner.step, readable(values))
    learner.epoch = epoch + 1


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
) -> None:
    """Bring the ranks' statistics together, validate and write a checkpoint when it is time."""
    last = learner.epoch == plan.max_epoch
    average_buffers(learner.model)
    save = last or learner.epoch % plan.checkpoint_period == 0
    validate = validation is not None and (last or learner.epoch % plan.eval_period == 0)
    if plan.precise_batches and (save or validate):
        count = min(plan.precise_batches, len(loader))
        batches = loader.epoch(learner.epoch)
        recompute_statistics(learner.model, batches, count, device=learner.device)
    if save or validate:
        _check_weights(learner)
    # first, so that a kill in between cannot lose the record: the resumed run validates again
    if validate and validation is not None:
        _validate(learner, validation, log)
    if save and is_main():
        path = checkpoint_path(plan.output_dir, learner.epoch)
        save_checkpoint(path, _state(learner, plan.config), keep=plan.checkpoint_keep)
        logger.info("wrote %s", path)


def _validate(learner: Learner, validation: ClipLoader, log: RunLog) -> None:
    predictions = predict(
        learner.model, validation, device=learner.device, precision=learner.precision
    )
    metrics = compute_metrics(predictions)
    counts = count_videos(predictions, validation)
    log.write("val", learner.step, metrics | counts | {"epoch": learner.epoch})
    logger.info("epoch %d  validation  %s", learner.epoch, readable(metrics))


def _check_weights(learner: Learner) -> None:
    """Raise on all ranks if a weight or statistic is not finite: such a checkpoint is no good."""
    finite = [value.isfinite().all() for value in learner.model.state_dict().values()]
    if any_rank(not bool(torch.stack(finite).all()), learner.device):
        raise NonFiniteLossError(f"the weights are not finite after step {learner.step}")


def _state(learner: Learner, config: str) -> dict[str, Any]:
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "epoch": learner.epoch,
        "step": learner.step,
        "config": config,
    }


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
    misfits = [*report.missing, *report.dropped, *report.unexpected]
    if misfits:
        raise ValueError(
            f"{path} and the model differ in {', '.join(misfits[:5])}"
            f"{' ...' if len(misfits) > 5 else ''}; a test needs every weight and no other: check "
            "MODEL.NAME, MODEL.NUM_CLASSES and PROMPT.ENABLE"
        )
    logger.info("testing %s with %d views a video", path, loader.num_views)
    predictions = predict(
        model,
        loader,
        device=device,
        precision=getattr(torch, cfg.TRAIN.PRECISION),
        ensemble=cfg.TEST.ENSEMBLE,
    )
    if not is_main():
        return
    provenance = build_provenance(cfg, model, report)
    results = write_results(cfg.OUTPUT_DIR, predictions, loader, provenance)
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
