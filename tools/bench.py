"""Measure, side by side in one run: how long it takes to get a clip out of a video, and to train.

python tools/bench.py decode      # CPU seconds of a clip: the plain way, ours, decoding alone
python tools/bench.py loader      # clips per second of a whole loader
python tools/bench.py prompt      # the motion prompt alone: the released layer, ours, a plain copy
python tools/bench.py step        # a training step and its parts: the plain way, ours
python tools/bench.py scale       # a step by its sizes and on two processes, many views of a video
python tools/bench.py pipeline    # the loader into a training step: who waits for whom
python tools/bench.py stop        # what checkpoints, a stop by a signal and a resumed start cost
python tools/bench.py startup     # seconds until a tool has answered, beside torch's import
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vmp.utils.cli import run_cli

# The file beside this one that measures it, with add_arguments, measure, and HEAD and rows of its
# table.
PARTS = {
    "decode": "bench_clips",
    "loader": "bench_loaders",
    "prompt": "bench_prompt",
    "step": "bench_step",
    "scale": "bench_scale",
    "pipeline": "bench_pipeline",
    "stop": "bench_stop",
    "startup": "bench_startup",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in PARTS.items():
        command = commands.add_parser(name)
        if name in words[:1]:  # the others are not imported, which takes seconds
            import_module(module).add_arguments(command)
    return parser.parse_args(words)


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    models = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": str(len(models) or "?"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "av": version("av"),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table as it grows, append lines of JSON."""
    args = parse_args(argv)
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    part = import_module(PARTS[args.command])
    show(part.measure(args), part.HEAD, part.rows, args.out, about)


def show(
    results: Iterator[dict[str, Any]],
    head: list[str],
    row: Callable[[dict[str, Any]], str],
    out: str | None,
    about: dict[str, str],
) -> None:
    """Print a Markdown table as it grows, and append lines of JSON to `out`."""
    print("\n".join(head))
    for result in results:
        print(row(result))
        sys.stdout.flush()
        if out:
            with open(out, "a", encoding="utf-8") as file:
                file.write(json.dumps({**result, "machine": about}) + "\n")


if __name__ == "__main__":
    run_cli(main)
