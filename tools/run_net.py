"""Train and test a model: `python tools/run_net.py --cfg configs/... [KEY VALUE ...]`."""

import argparse

from vmp.config import load_cfg
from vmp.engine import launch, run
from vmp.utils.cli import run_cli


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="a YAML file of configs/")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, see vmp/config"
    )
    return parser.parse_args()


def main() -> None:
    """Train, then test, as the config says."""
    args = parse_args()
    cfg = load_cfg(args.cfg, args.opts)
    launch(
        run,
        cfg,
        num_gpus=cfg.NUM_GPUS,
        num_processes=cfg.NUM_PROCESSES,
        timeout=cfg.DIST_TIMEOUT,
    )


if __name__ == "__main__":
    run_cli(main)
