"""Write weights under other names: `python tools/convert.py IN OUT [--to NAMES]`.

IN is a checkpoint of ours or of another project, or its URL. OUT ends in .safetensors, or in .pth
or .pyth for torch.save. With --to pyslowfast, pytorchvideo or timesformer it is what those read.
"""

import argparse
from pathlib import Path

from vmp.utils.cli import run_cli

# Whose names can be written: those of vmp.models.convert.
TARGETS = ("vmp", "pyslowfast", "pytorchvideo", "timesformer")
TORCH_SUFFIXES = (".pth", ".pyth", ".pt")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", metavar="IN", help="a file of weights, or an http(s) URL")
    parser.add_argument("out", metavar="OUT", type=Path, help=".safetensors, .pth or .pyth")
    parser.add_argument("--to", choices=TARGETS, default="vmp", help="whose names (ours)")
    parser.add_argument(
        "--cfg",
        metavar="FILE",
        help="recipe of the network: every entry is checked with it, and OUT names it; needed "
        "where IN does not tell whether its C2D has a temporal pool",
    )
    parser.add_argument("--sha256", default="", metavar="HEX", help="of IN; checked")
    parser.add_argument(
        "--drop-prompt", action="store_true", help="leave the motion prompts out, for --to others"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of --cfg")
    return parser.parse_intermixed_args()


def check_out(out: Path) -> None:
    """Raise ValueError unless OUT is a new file of a known ending."""
    if out.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise ValueError(
            f"{out} ends in {out.suffix or 'nothing'}; it must end in .safetensors, or in .pth or "
            ".pyth for torch.save"
        )
    if out.exists():
        raise ValueError(f"{out} exists; delete it or give another name")


def main() -> None:
    """Look at the command line, then convert."""
    args = parse_args()
    if args.opts and args.cfg is None:
        raise ValueError(f"{' '.join(args.opts)} override a recipe, and none is named with --cfg")
    check_out(args.out)
    from convert_weights import convert

    convert(args)


if __name__ == "__main__":
    run_cli(main)
