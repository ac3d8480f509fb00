"""Show what the package does, on a CPU, in a few minutes: `bash scripts/quickstart.sh`.

Makes a small MotionShapes data set, trains a baseline and the same recipe with a motion prompt,
tests both with several views, prints what came out in one table, and draws a panel.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import simplejson

from vmp.utils.cli import run_cli

ROOT = Path(__file__).resolve().parents[1]
BASELINE = "X3D_XS"
PROMPTED = "X3D_XS_VMP"
NUM_TRAIN, NUM_TEST = 2400, 240
PANEL_CLASS = "move_right"
# How often they say something, and a worker each to read the videos.
PACE = ("LOG_PERIOD", "60", "DATA_LOADER.NUM_WORKERS", "1")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quickstart"), help="folder for all that is written"
    )
    parser.add_argument("--train", type=int, default=NUM_TRAIN, help="training videos")
    parser.add_argument("--test", type=int, default=NUM_TEST, help="test videos")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of both recipes"
    )
    return parser.parse_args(argv)


def start(words: list[str | Path], threads: int | None = None) -> subprocess.Popen[str]:
    """Start one of the tools; with `threads`, its output is read here instead of shown."""
    # a deprecation inside a dependency is no news for a first run
    command = [sys.executable, "-W", "ignore::FutureWarning", *map(str, words)]
    print(f"   python {shlex.join(command[3:])}", flush=True)
    if threads is None:
        return subprocess.Popen(command, cwd=ROOT, text=True)
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )


def check_status(title: str, status: int) -> None:
    """Raise ValueError if a tool failed."""
    if status:
        raise ValueError(f"{title}: failed with status {status}; the lines above say why")


def step(title: str, *words: str | Path) -> None:
    """Say what is done, and do it in a process of its own.

    Raises:
        ValueError: it failed.
    """
    print(f"\n== {title}", flush=True)
    check_status(title, start(list(words)).wait())


def show(name: str, process: subprocess.Popen[str]) -> None:
    """Print the lines of a process, each behind its name, until it ends."""
    assert process.stdout is not None
    for line in process.stdout:
        print(f"{name:<{len(PROMPTED)}} | {line}", end="", flush=True)


def train_and_test(data: Path, out: Path, opts: list[str]) -> dict[str, dict[str, Any]]:
    """Run both recipes from the start, side by side, and return their test_results.json.

    Each has half of the cores: such small models gain little from more threads.

    Raises:
        ValueError: one of them failed; the other is stopped.
    """
    print("\n== train, then test: the baseline and its motion-prompted twin", flush=True)
    threads = max(1, (os.cpu_count() or 1) // 2)
    processes: dict[str, subprocess.Popen[str]] = {}
    readers = []
    for recipe in (BASELINE, PROMPTED):
        run = out / recipe.lower()
        shutil.rmtree(run, ignore_errors=True)  # a run that is there would be resumed
        words: list[str | Path] = ["tools/run_net.py", "--cfg"]
        words += [f"configs/MotionShapes/{recipe}.yaml", "DATA.PATH_TO_DATA_DIR", data]
        processes[recipe] = start([*words, "OUTPUT_DIR", run, *PACE, *opts], threads)
        readers.append(threading.Thread(target=show, args=(recipe, processes[recipe])))
        readers[-1].start()
    failed = wait_for_all(processes)
    for reader in readers:
        reader.join()
    if failed:
        check_status(failed, processes[failed].returncode)
    return {recipe: read_results(out / recipe.lower()) for recipe in processes}


def wait_for_all(processes: dict[str, subprocess.Popen[str]]) -> str:
    """Wait until all have ended; return "", or the one that failed, having stopped the others."""
    try:
        while True:
            states = {name: process.poll() for name, process in processes.items()}
            failed = next((name for name, state in states.items() if state), "")
            if failed or None not in states.values():
                return failed
            time.sleep(0.2)
    finally:  # interrupted, too
        for process in processes.values():
            if process.poll() is None:
                process.terminate()
            process.wait()


def read_results(run: Path) -> dict[str, Any]:
    """Return what a run has written of its test."""
    results: dict[str, Any] = simplejson.loads((run / "test_results.json").read_text("utf-8"))
    return results


def draw_panel(data: Path, run: Path, path: Path) -> None:
    """Draw what the trained prompt makes of a test video."""
    from vmp.data import CLASS_NAMES, DATASETS

    label = CLASS_NAMES.get("motionshapes")(str(data)).index(PANEL_CLASS)
    records = DATASETS.get("motionshapes")(str(data), "test")
    video = next((record.path for record in records if record.label == label), records[0].path)
    newest = max((run / "checkpoints").iterdir(), key=lambda file: file.stat().st_mtime)
    step(
        "draw frames | differences | attention | prompts",
        "tools/visualize.py",
        "--video",
        video,
        "--cfg",
        run / "config.yaml",
        "--checkpoint",
        newest,
        "--short-side",
        "128",
        "--out",
        path,
    )


def table(baseline: dict[str, Any], prompted: dict[str, Any]) -> str:
    """Return the two runs' results as lines of text, percent; whichever is ahead."""
    classes = len(baseline["per_class"])
    chance = {"top1": 100 / classes, "top5": 100 * min(5, classes) / classes}
    plain, better = baseline["metrics"], prompted["metrics"]
    difference = {name: better[name] - plain[name] for name in chance}
    (learned,) = prompted["prompts"].values()
    rows = [
        ("", "top-1", "top-5", "a", "b", "f(0)"),
        (BASELINE, f"{plain['top1']:.1f}", f"{plain['top5']:.1f}", "", "", ""),
        (
            PROMPTED,
            f"{better['top1']:.1f}",
            f"{better['top5']:.1f}",
            f"{learned['a']:.2f}",
            f"{learned['b']:.3f}",
            f"{learned['f0']:.3f}",
        ),
        ("difference", f"{difference['top1']:+.1f}", f"{difference['top5']:+.1f}", "", "", ""),
        ("chance", f"{chance['top1']:.1f}", f"{chance['top5']:.1f}", "", "", ""),
    ]
    return "\n".join(f"{name:<12}" + "".join(f"{cell:>9}" for cell in row) for name, *row in rows)


def check_above_chance(results: dict[str, dict[str, Any]]) -> None:
    """Raise ValueError if a model is not clearly better than guessing."""
    for recipe, result in results.items():
        top1, chance = result["metrics"]["top1"], 100 / len(result["per_class"])
        if top1 < 2 * chance:
            raise ValueError(
                f"{recipe} reached {top1:.1f} % top-1, hardly more than chance ({chance:.1f} %); "
                "without overrides this should not happen: run `bash scripts/run_tests.sh`"
            )


def main(argv: list[str] | None = None) -> None:
    """Data, two models, one table, one panel."""
    args = parse_args(argv)
    began = time.monotonic()
    out = args.out.absolute()
    data = out / f"motionshapes_{args.train}_{args.test}"
    counts = ("--train", str(args.train), "--test", str(args.test))
    known = "reused if it is there" if data.exists() else "8 motions"
    step(f"MotionShapes, {known}", "datasets/motionshapes/prepare.py", "--out", data, *counts)
    results = train_and_test(data, out, args.opts)
    panel = out / "panel.png"
    draw_panel(data, out / PROMPTED.lower(), panel)
    counted = results[BASELINE]["counts"]
    print(
        f"\n{counted['evaluated_videos']} test videos, {counted['views_per_video']} views each; "
        f"percent, seed {results[BASELINE]['seed']}; {(time.monotonic() - began) / 60:.1f} min\n"
    )
    print(table(results[BASELINE], results[PROMPTED]))
    print(f"\npanel        {panel}\nresults      {out}/*/test_results.json")
    print(f"TensorBoard  tensorboard --logdir {out}")
    check_above_chance(results)


if __name__ == "__main__":
    run_cli(main)
