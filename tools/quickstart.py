"""Show what the package does, on a CPU, in a few minutes: `bash scripts/quickstart.sh`.

Makes a small MotionShapes data set, trains a baseline and the same recipe with a motion prompt,
tests both with several views, prints what came out in one table, and draws a panel.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import simplejson

from vmp.data import CLASS_NAMES, DATASETS
from vmp.utils.cli import run_cli

ROOT = Path(__file__).resolve().parents[1]
BASELINE = "X3D_XS"
PROMPTED = "X3D_XS_VMP"
NUM_TRAIN, NUM_TEST = 2400, 240
PANEL_CLASS = "move_right"


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


def step(title: str, *command: str | Path) -> None:
    """Say what is done, and do it in a process of its own, its output going where ours goes.

    Raises:
        ValueError: it failed.
    """
    words = [str(word) for word in command]
    print(f"\n== {title}\n   python {shlex.join(words)}", flush=True)
    # a deprecation inside a dependency is no news for a first run
    done = subprocess.run([sys.executable, "-W", "ignore::FutureWarning", *words], cwd=ROOT)
    if done.returncode:
        raise ValueError(f"{title}: failed with status {done.returncode}; the lines above say why")


def train_and_test(recipe: str, data: Path, out: Path, opts: list[str]) -> dict[str, Any]:
    """Run a recipe from the start and return its test_results.json."""
    shutil.rmtree(out, ignore_errors=True)  # a run that is there would be resumed
    step(
        f"{recipe}: train, then test",
        "tools/run_net.py",
        "--cfg",
        f"configs/MotionShapes/{recipe}.yaml",
        "DATA.PATH_TO_DATA_DIR",
        data,
        "OUTPUT_DIR",
        out,
        *opts,
    )
    results: dict[str, Any] = simplejson.loads((out / "test_results.json").read_text("utf-8"))
    return results


def draw_panel(data: Path, run: Path, path: Path) -> None:
    """Draw what the trained prompt makes of a test video."""
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
    results = {
        recipe: train_and_test(recipe, data, out / recipe.lower(), args.opts)
        for recipe in (BASELINE, PROMPTED)
    }
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
