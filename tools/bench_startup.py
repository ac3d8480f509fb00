"""What `tools/bench.py startup` measures: seconds until a tool has answered, and an import is done.

Every round starts each of them once, as a process of its own, and a bare `import torch` too.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_figures import check_repeats, spread
from tqdm import tqdm

TOOLS = ("run_net", "submit", "reproduce", "visualize", "convert", "doctor", "bench", "quickstart")
TORCH = "import torch"
IMPORTS = (TORCH, "import vmp", "import vmp.config", "import vmp.prompts", "import vmp.engine")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `startup`."""
    command.add_argument("--repeats", type=int, default=9, help="starts of each, 2 or more")
    command.add_argument("--out", help="append the measurements, a line of JSON each")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the seconds of each start, and the CPU seconds of torch's import in the same rounds.

    Raises:
        ValueError: fewer than two repeats.
    """
    check_repeats(args.repeats)
    folder = Path(__file__).parent
    commands = {f"{name}.py --help": [str(folder / f"{name}.py"), "--help"] for name in TOOLS}
    commands |= {what: ["-c", what] for what in IMPORTS}
    starts: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in tqdm(range(args.repeats + 1), leave=False):
        for name, words in commands.items():
            took = time_start(words)
            if number:  # the first round warms the disk
                starts[name].append(took)
    torch = statistics.median(cpu for _, cpu in starts[TORCH])
    for name, each in starts.items():
        seconds, cpu_seconds = map(list, zip(*each, strict=True))
        about = {"seconds": seconds, "cpu_seconds": cpu_seconds, "torch_cpu_seconds": torch}
        yield {"bench": "startup", "what": name, **about}


def time_start(words: list[str]) -> tuple[float, float]:
    """Return the seconds, and the CPU seconds, of a Python that is started and ends."""
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system
    return time.perf_counter() - began, cpu - before.children_user - before.children_system


HEAD = ["| what | seconds | CPU seconds | CPU, of `import torch` |", "|---" * 4 + "|"]


def rows(result: dict[str, Any]) -> str:
    """Return a line of the Markdown table."""
    share = statistics.median(result["cpu_seconds"]) / result["torch_cpu_seconds"]
    cells = [spread(result[name]) for name in ("seconds", "cpu_seconds")]
    return f"| `{result['what']}` | {' | '.join(cells)} | {share:.2f} |"
