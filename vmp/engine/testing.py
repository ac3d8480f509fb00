"""The test of a trained model."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from fvcore.common.config import CfgNode

from vmp.data import build_loader
from vmp.engine.agreement import check_agreement
from vmp.engine.build import build_device
from vmp.engine.checkpoint import list_checkpoints
from vmp.engine.dimming import RULE, join_dimming, log_dimming, measure_dimming
from vmp.engine.evaluate import describe_test, predict, write_results
from vmp.engine.progress import log_cost
from vmp.engine.provenance import build_provenance, deciding_config
from vmp.engine.score_store import ScoreStore
from vmp.engine.trained import check_whole
from vmp.engine.training import Chart, require_wandb
from vmp.models import build_model, load_pretrained
from vmp.utils.boards import Boards, open_boards
from vmp.utils.distributed import broadcast_object, get_rank, get_world_size, is_main
from vmp.utils.logging import readable
from vmp.utils.signals import stop_requested

logger = logging.getLogger(__name__)


def test(cfg: CfgNode, chart: Chart | None = None) -> None:  # noqa: PT028  (no test of pytest's)
    """Test TEST.CHECKPOINT_FILE_PATH, or the run's newest checkpoint, with several views.

    Writes predictions.npz and test_results.json to OUTPUT_DIR, and shows the metrics on the boards.

    Args:
        cfg: of the run.
        chart: draws the confusion matrix for the boards, on rank 0.

    Raises:
        ValueError: there is no checkpoint, or it does not fit the model, or WANDB.PROJECT is set
            and `wandb` is not there.
    """
    require_wandb(cfg.WANDB.PROJECT)
    device = build_device(cfg)
    torch.manual_seed(cfg.RNG_SEED)
    model = build_model(cfg).to(device)
    if not cfg.TRAIN.ENABLE:  # else the training has said it
        log_cost(model, cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE)
    path = _checkpoint_to_test(cfg.OUTPUT_DIR, cfg.TEST.CHECKPOINT_FILE_PATH)
    report = load_pretrained(model, path)
    check_agreement({f"{path} (SHA-256)": report.sha256})
    check_whole(report, path)
    with build_loader(cfg, "test", get_rank(), get_world_size()) as loader:
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
        dimming = measure_dimming(model, loader, device=device)
    if not is_main():
        return
    if dimming:
        prompts = join_dimming(provenance["prompts"], dimming)
        provenance |= {"prompts": prompts, "prompts_rule": RULE}
    results = write_results(cfg.OUTPUT_DIR, predictions, loader, provenance)
    store.remove()
    counts = results["counts"]
    logger.info(
        "test  %s  (evaluated %d of %d videos)",
        readable(results["metrics"]),
        counts["evaluated_videos"],
        counts["videos"],
    )
    log_dimming(dimming)
    _log_failures(results["not_evaluated"])
    logger.info("wrote %s", Path(cfg.OUTPUT_DIR) / "test_results.json")
    boards = open_boards(
        cfg.OUTPUT_DIR,
        tensorboard=cfg.TENSORBOARD,
        wandb=cfg.WANDB.PROJECT,
        config=yaml.safe_load(cfg.dump()),
        hparams=deciding_config(cfg.dump()),
    )
    with contextlib.closing(boards):
        _show(boards, results, loader.class_names, chart)


def _show(
    boards: Boards, results: Mapping[str, Any], class_names: Sequence[str], chart: Chart | None
) -> None:
    """Show what a test has found, at the step at which its weights were trained."""
    step = results["trained"].get("step", 0)
    boards.write("test", step, results["metrics"])
    if chart is not None:
        matrix = torch.tensor(results["confusion_matrix"])
        boards.draw(step, partial(chart, matrix, class_names, "test/confusion"))


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
