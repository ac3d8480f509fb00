"""Train and test as a config says. Apart from `build_*`, cfg is read here and nowhere else."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
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
from vmp.engine.progress import NonFiniteLossError, Progress, Waiting
from vmp.engine.provenance import build_provenance, describe_prompts
from vmp.engine.step import Learner, train_step
from vmp.models import VideoModel, build_model, load_pretrained, model_cost
from vmp.solver import ActionLoss, build_mixing, build_optimizer, build_schedule
from vmp.utils.distributed import (
    barrier,
    environment_summary,
    get_rank,
    get_world_size,
    is_main,
)
from vmp.utils.files import write_text
from vmp.utils.logging import RunLog, readable, setup_logging

logger = logging.getLogger(__name__)


def run(cfg: CfgNode) -> None:
    """Train, then test, as TRAIN.ENABLE and TEST.ENABLE say; in every process of the run."""
    setup_logging(cfg.OUTPUT_DIR, rank=get_rank())
    if is_main():
        write_text(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump())
    logger.info("%d process(es), %s", get_world_size(), environment_summary())
    if cfg.TRAIN.ENABLE:
        train(cfg)
        barrier()
    if cfg.TEST.ENABLE:
        test(cfg)


# ---------------------------------------------------------------- training


def train(cfg: CfgNode) -> None:
    """Train a model from scratch, from TRAIN.INIT_FROM, or from where the run stopped.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite; on all ranks.
        ValueError: data, weights or a checkpoint do not fit the config.
    """
    loader = build_loader(cfg, "train", get_rank(), get_world_size())
    validation = None
    if cfg.TRAIN.EVAL_PERIOD:
        validation = build_loader(cfg, "val", get_rank(), get_world_size())
    learner = build_learner(cfg)
    _log_model(cfg, learner.model)
    start = _restore(cfg, learner)
    log = RunLog(cfg.OUTPUT_DIR, enabled=is_main(), tensorboard=cfg.TENSORBOARD)
    log.write("start", learner.step, start | {"environment": environment_summary()})
    try:
        for epoch in range(learner.epoch, cfg.SOLVER.MAX_EPOCH):
            _train_epoch(cfg, learner, loader, epoch, log)
            learner.epoch = epoch + 1
            _finish_epoch(cfg, learner, loader, validation, log)
    except NonFiniteLossError as error:
        kept = list_checkpoints(cfg.OUTPUT_DIR)
        good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise NonFiniteLossError(
            f"{error}; {good}. Lower SOLVER.BASE_LR, set SOLVER.CLIP_GRAD_L2NORM, or "
            "TRAIN.PRECISION float32"
        ) from None
    finally:
        log.close()


def build_learner(cfg: CfgNode) -> Learner:
    """Make model, optimizer and all else an update needs, on this process's device."""
    device = build_device(cfg)
    torch.manual_seed(cfg.RNG_SEED)
    model = build_model(cfg).to(device)
    optimizer = build_optimizer(cfg, model)
    if cfg.MODEL.CHANNELS_LAST:
        _to_channels_last(model)
    if cfg.MODEL.COMPILE:
        model.compile()
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


def _log_model(cfg: CfgNode, model: VideoModel) -> None:
    cost = model_cost(model, cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE)
    logger.info(
        "%s%s: %.2f M parameters, %.2f G multiply-adds per view of %d frames at %d x %d",
        cfg.MODEL.NAME,
        f" with motion prompts on pathways {cfg.PROMPT.PATHWAYS}" if cfg.PROMPT.ENABLE else "",
        cost.parameters / 1e6,
        cost.multiply_adds / 1e9,
        cfg.DATA.NUM_FRAMES,
        cfg.DATA.TRAIN_CROP_SIZE,
        cfg.DATA.TRAIN_CROP_SIZE,
    )


def _restore(cfg: CfgNode, learner: Learner) -> dict[str, Any]:
    """Put the learner where the run stopped, else at INIT_FROM, else leave it; say which."""
    found = read_newest(cfg.OUTPUT_DIR) if cfg.TRAIN.AUTO_RESUME else None
    if found is not None:
        path, state = found
        _load_state(learner, state)
        logger.info("resumed from %s: epoch %d, step %d", path, learner.epoch, learner.step)
        return {"resumed_from": str(path)}
    if cfg.TRAIN.INIT_FROM:
        load_pretrained(learner.model, cfg.TRAIN.INIT_FROM, strict=cfg.TRAIN.INIT_STRICT)
        return {"init_from": cfg.TRAIN.INIT_FROM}
    logger.info("from scratch, seed %d", cfg.RNG_SEED)
    return {"init_from": ""}


def _load_state(learner: Learner, state: Mapping[str, Any]) -> None:
    learner.model.load_state_dict(state["model"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scaler.load_state_dict(state["scaler"])
    learner.epoch, learner.step = state["epoch"], state["step"]


def _train_epoch(
    cfg: CfgNode, learner: Learner, loader: ClipLoader, epoch: int, log: RunLog
) -> None:
    accumulate = max(1, cfg.TRAIN.GLOBAL_BATCH_SIZE // cfg.TRAIN.BATCH_SIZE)
    updates = -(-len(loader) // accumulate)
    learner.model.train()
    progress = Progress(loader.records)
    waiting = Waiting(loader.epoch(epoch), accumulate)
    bar = tqdm(
        total=updates,
        desc=f"epoch {epoch + 1}/{cfg.SOLVER.MAX_EPOCH}",
        disable=not (is_main() and sys.stderr.isatty()),
        leave=False,
    )
    with bar, logging_redirect_tqdm([logging.getLogger("vmp")]):
        for number, batches in enumerate(waiting):
            where = epoch + number / updates
            progress.add(batches, train_step(learner, batches, where))
            bar.update()
            if learner.step % cfg.LOG_PERIOD == 0 or number == updates - 1:
                values = progress.flush(learner.step, waiting.take_seconds())
                values["lr"] = learner.schedule(where)
                prompts = describe_prompts(learner.model)
                line = values | ({"prompt": prompts} if prompts else {})
                log.write("train", learner.step, line | {"epoch": round(where, 4)})
                logger.info("epoch %.2f  step %d  %s", where, learner.step, readable(line))


def _finish_epoch(
    cfg: CfgNode,
    learner: Learner,
    loader: ClipLoader,
    validation: ClipLoader | None,
    log: RunLog,
) -> None:
    """Bring the ranks' statistics together, write a checkpoint, and validate when it is time."""
    last = learner.epoch == cfg.SOLVER.MAX_EPOCH
    average_buffers(learner.model)
    time_to_validate = validation is not None and (
        last or learner.epoch % cfg.TRAIN.EVAL_PERIOD == 0
    )
    time_to_save = last or learner.epoch % cfg.TRAIN.CHECKPOINT_PERIOD == 0
    if cfg.BN.USE_PRECISE_STATS and (time_to_validate or time_to_save):
        recompute_statistics(
            learner.model,
            loader.epoch(learner.epoch),
            min(cfg.BN.NUM_BATCHES_PRECISE, len(loader)),
            device=learner.device,
        )
    if time_to_save and is_main():
        path = checkpoint_path(cfg.OUTPUT_DIR, learner.epoch)
        save_checkpoint(path, _state(cfg, learner), keep=cfg.TRAIN.CHECKPOINT_KEEP)
        logger.info("wrote %s", path)
    if time_to_validate and validation is not None:
        predictions = predict(
            learner.model, validation, device=learner.device, precision=learner.precision
        )
        metrics = compute_metrics(predictions)
        counts = count_videos(predictions, validation)
        log.write("val", learner.step, metrics | counts | {"epoch": learner.epoch})
        logger.info("epoch %d  validation  %s", learner.epoch, readable(metrics))


def _state(cfg: CfgNode, learner: Learner) -> dict[str, Any]:
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "epoch": learner.epoch,
        "step": learner.step,
        "config": cfg.dump(),
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
    path = _checkpoint_to_test(cfg)
    report = load_pretrained(model, path)
    if report.missing or report.dropped:
        raise ValueError(
            f"{path} lacks or does not fit {[*report.missing, *report.dropped]}; a test needs "
            "every weight: check MODEL.NAME, MODEL.NUM_CLASSES and PROMPT.ENABLE"
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
    provenance = build_provenance(cfg, model, path)
    results = write_results(cfg.OUTPUT_DIR, predictions, loader, provenance)
    counts = results["counts"]
    logger.info(
        "test  %s  (evaluated %d of %d videos)",
        readable(results["metrics"]),
        counts["evaluated_videos"],
        counts["videos"],
    )
    for failure in predictions.failures:
        logger.warning("not evaluated: %s view %d: %s", failure.path, failure.view, failure.reason)
    logger.info("wrote %s", Path(cfg.OUTPUT_DIR) / "test_results.json")


def _checkpoint_to_test(cfg: CfgNode) -> Path:
    if cfg.TEST.CHECKPOINT_FILE_PATH:
        return Path(cfg.TEST.CHECKPOINT_FILE_PATH)
    kept = list_checkpoints(cfg.OUTPUT_DIR)
    if not kept:
        raise ValueError(
            f"there is no checkpoint in {cfg.OUTPUT_DIR}; train first (TRAIN.ENABLE True) or name "
            "one with TEST.CHECKPOINT_FILE_PATH"
        )
    return kept[-1]
