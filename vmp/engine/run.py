"""Train, then test, as a config says."""

import logging

import torch
from fvcore.common.config import CfgNode

import vmp
from vmp.engine.agreement import check_agreement
from vmp.engine.lock import RunLock
from vmp.engine.provenance import describe_machine, shared_config
from vmp.engine.stopping import stop_together
from vmp.engine.testing import test
from vmp.engine.training import Chart, Watch, train
from vmp.utils.distributed import (
    broadcast_object,
    get_rank,
    get_world_size,
    is_main,
)
from vmp.utils.logging import setup_logging
from vmp.utils.signals import Interrupted, stop_requested

logger = logging.getLogger(__name__)


def run(cfg: CfgNode, watch: Watch | None = None, chart: Chart | None = None) -> None:
    """Train, then test, as TRAIN.ENABLE and TEST.ENABLE say; in every process of the run.

    Args:
        cfg: of the run.
        watch: see `train`.
        chart: see `train` and `test`.

    Raises:
        Interrupted: a signal asked to stop; all is saved, and the same run goes on from there.
        ValueError: another run is alive in OUTPUT_DIR, or that can't be made or written, or as
            `train` and `test`.
    """
    lock = lock_folder(cfg.OUTPUT_DIR)
    try:
        setup_logging(cfg.OUTPUT_DIR, rank=get_rank())
        logger.info("%d process(es), %s", get_world_size(), describe_machine())
        versions = {"vmp": vmp.__version__, "torch": torch.__version__}
        check_agreement(shared_config(cfg.dump()) | versions)
        if cfg.TRAIN.ENABLE:
            train(cfg, watch, chart)
        if cfg.TEST.ENABLE:
            stop_together(stop_requested(), "before the test")
            test(cfg, chart)
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
