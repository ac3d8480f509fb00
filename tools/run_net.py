"""Train and test a model: `python tools/run_net.py --cfg configs/... [KEY VALUE ...]`.

With --dry-run nothing is trained: all is built on the CPU, one batch goes through, and what the run
takes and what is doubtful about it is told.
"""

import argparse
import sys

from vmp.utils import signals

# before torch is imported, which takes seconds: a batch system may signal by then. Processes that
# this one starts import this file too
signals.install()

from fvcore.common.config import CfgNode  # noqa: E402

from vmp.config import load_cfg  # noqa: E402
from vmp.utils.cli import run_cli  # noqa: E402

DRY_RUN = "--dry-run"


def parse_args() -> argparse.Namespace:
    """Read the command line; --dry-run may come after the overrides as well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", required=True, metavar="FILE", help="a YAML file of configs/")
    parser.add_argument(
        DRY_RUN, action="store_true", help="look before you train; OUTPUT_DIR stays as it is"
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="overrides, as TRAIN.INIT_FROM x3d_m.pyth; GETTING_STARTED.md lists the usual ones",
    )
    args = parser.parse_args()
    if DRY_RUN in args.opts:
        args.opts = [word for word in args.opts if word != DRY_RUN]
        args.dry_run = True
    return args


def tell_last_checkpoint(cfg: CfgNode) -> str:
    """Return what is left of a training that another rank has ended."""
    from vmp.engine.checkpoint import list_checkpoints

    kept = list_checkpoints(cfg.OUTPUT_DIR)
    if not kept:
        return "there is no checkpoint yet"
    return f"the last checkpoint is {kept[-1]}, the same command goes on from it"


def run_watched(cfg: CfgNode) -> None:
    """Train, then test; the boards get panels of the prompts and confusion matrices."""
    from vmp.engine import run

    if not (cfg.TENSORBOARD or cfg.WANDB.PROJECT):
        run(cfg)
        return
    # matplotlib, for these alone
    from vmp.visualization.watch import confusion_pictures, prompt_pictures

    run(cfg, prompt_pictures, confusion_pictures)


def main() -> None:
    """Train, then test, as the config says; or only look."""
    args = parse_args()
    cfg = load_cfg(args.cfg, args.opts)
    if args.dry_run:
        from preflight import dry_run

        sys.exit(dry_run(args.cfg, args.opts))
    from vmp.engine import launch  # torch: after all that can be wrong with the command line

    launch(
        run_watched,
        cfg,
        num_gpus=cfg.NUM_GPUS,
        num_processes=cfg.NUM_PROCESSES,
        timeout=cfg.DIST_TIMEOUT,
        init_timeout=cfg.DIST_INIT_TIMEOUT,
        on_lost_rank=tell_last_checkpoint,
    )


if __name__ == "__main__":
    run_cli(main)
