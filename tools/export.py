"""Write a trained model as one file that runs without this program.

python tools/export.py --checkpoint RUN --out model.onnx      # ONNX: onnxruntime and the like
python tools/export.py --checkpoint RUN --out model.pt2       # torch.export: torch alone

The motion prompt is inside: a clip goes in, logits come out. What the file says is compared with
the model before it is written, and the difference is printed.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vmp.utils.cli import run_cli
from vmp.utils.files import make_folder_of

ONNX, TORCH = ".onnx", ".pt2"
EXTRA = ("onnx", "onnxscript", "onnxruntime")  # the modules of the extra `export`
INPUTS = ("uint8", "float32")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    about = "a checkpoint, or the OUTPUT_DIR of a run: its newest"
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="RUN", help=about)
    about = "its config (default: config.yaml of the run)"
    parser.add_argument("--cfg", metavar="FILE", help=about)
    about = f"a new file that ends in {ONNX} or {TORCH}"
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=about)
    about = "of ONNX (default: torch's choice)"
    parser.add_argument("--opset", type=int, metavar="N", help=about)
    about = "take N clips, no more and no fewer (default: any number)"
    parser.add_argument("--batch", type=int, metavar="N", help=about)
    about = "side of the clip, pixels (default: DATA.TEST_CROP_SIZE)"
    parser.add_argument("--crop", type=int, metavar="N", help=about)
    about = "of the clip: uint8, 0 to 255 (the default), or float32, normalised by mean and std"
    parser.add_argument("--input", choices=INPUTS, default=INPUTS[0], help=about)
    about = "give the variation V as well, as a second output"
    parser.add_argument("--variation", action="store_true", help=about)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    args = parser.parse_intermixed_args(argv)
    for name in ("opset", "batch", "crop"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; it must be at least 1")
    if args.opset is not None and args.out.suffix != ONNX:
        parser.error(f"--opset is for {ONNX}, and --out is {args.out}")
    return args


def check_out(out: Path) -> None:
    """Raise ValueError unless `out` can be written, and is a new file of a known ending.

    Its folder is made.
    """
    if out.suffix not in (ONNX, TORCH):
        raise ValueError(
            f"{out} ends in {out.suffix or 'nothing'}; it must end in {ONNX} or {TORCH}"
        )
    if out.exists():
        what = "is a folder; name a file" if out.is_dir() else "exists; delete it or name another"
        raise ValueError(f"{out} {what}")
    make_folder_of(out)


def check_extra(out: Path) -> None:
    """Raise ValueError if what ONNX takes is not installed."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if out.suffix == ONNX and missing:
        raise ValueError(
            f"an {ONNX} file needs the extra export ({', '.join(missing)} not found): "
            f"pip install 'vmp[export]'; a {TORCH} file needs no more than torch"
        )


def main() -> None:
    """Look at the command line, then export."""
    args = parse_args()
    check_out(args.out)
    check_extra(args.out)
    from export_model import export

    export(args)


if __name__ == "__main__":
    run_cli(main)
