"""Say what is wrong before a run finds out.

python tools/doctor.py data --cfg CFG [KEY VALUE ...]     # the data set of a config

`data` opens every video once and judges every record. It ends with status 0 if the evaluation set
is whole, 1 if it is not, 2 if the command is wrong. It can be stopped at any time: the same command
goes on from there.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from vmp.config import load_cfg
from vmp.data import DATASETS, ClipLoader, VideoRecord, build_loader
from vmp.data.audit import (
    KINDS,
    POLICIES,
    UNUSABLE,
    Clip,
    Examine,
    Job,
    Journal,
    Split,
    examine,
    examine_all,
    judge_split,
    official_count,
    plan_jobs,
    quarantine_lines,
    summarize,
)
from vmp.data.build import build_class_names, build_reader
from vmp.data.records import SPLITS, quarantine, read_quarantine
from vmp.utils.cli import run_cli
from vmp.utils.files import write_text
from vmp.utils.registry import pick

JOURNAL, REPORT, SUMMARY = "videos.jsonl", "report.txt", "report.json"
QUARANTINE, PICTURE = "quarantine.tsv", "report.png"
# Records named in the text of each problem; the JSON file has all.
NAMED = 5
BAR = 40  # characters
INTERRUPTED = 130  # what a shell makes of Ctrl-C
# Clips that are timed at most, and seconds for that.
TIMED_CLIPS, TIMED_SECONDS = 100, 20.0
# A loader that is just as fast as the model makes it wait now and then.
RESERVE = 1.1


# --------------------------------------------------------------------------- the command line
def make_parser() -> argparse.ArgumentParser:
    """Return the parser; each sub-command sets `run`, which returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data = commands.add_parser(
        "data", help="audit the data set of a config", description="Audit the data set of a config."
    )
    data.set_defaults(run=check_data, parser=data)
    data.add_argument("--cfg", required=True, metavar="FILE", help="a YAML file of configs/")
    data.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides, see vmp/config")
    data.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="which; both if not given"
    )
    data.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for the report; OUTPUT_DIR/doctor if not given"
    )
    data.add_argument(
        "--workers", type=int, default=cores(), help="processes; the cores there are if not given"
    )
    data.add_argument("--full", action="store_true", help="decode every frame of every video")
    data.add_argument(
        "--clips-per-second",
        type=float,
        metavar="N",
        help="the rate at which the model trains on this machine, all GPUs together: how many "
        "workers that takes",
    )
    data.add_argument(
        "--no-speed", dest="speed", action="store_false", help="do not time the loader"
    )
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    args = make_parser().parse_args(argv)
    if args.command == "data" and args.workers < 1:
        args.parser.error("--workers must be at least 1")
    if args.command == "data" and args.clips_per_second is not None and args.clips_per_second <= 0:
        args.parser.error("--clips-per-second must be above 0")
    return args


def cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --------------------------------------------------------------------------- from cfg
def build_official_records(cfg: CfgNode, split: str) -> list[VideoRecord]:
    """Return all records of a split, also those that a loader leaves out or refuses.

    Raises:
        ValueError: an unknown data set, or missing files.
    """
    dataset = pick(DATASETS, cfg.TRAIN.DATASET)
    records: list[VideoRecord] = dataset(cfg.DATA.PATH_TO_DATA_DIR, split, cfg.DATA.SPLIT)
    if cfg.DATA.QUARANTINE:
        records = quarantine(records, read_quarantine(cfg.DATA.QUARANTINE))
    return records


def build_clip(cfg: CfgNode) -> Clip:
    """Return what the loader cuts out of a record."""
    return Clip(
        num_frames=cfg.DATA.NUM_FRAMES + (1 if cfg.PROMPT.ENABLE else 0),
        rate=cfg.DATA.SAMPLING_RATE,
        target_fps=cfg.DATA.TARGET_FPS,
        policy=cfg.DATA.SHORT_CLIP,
    )


def build_names(cfg: CfgNode) -> tuple[tuple[str, ...], str]:
    """Return the names of the model's classes, and what is wrong with them, "" if nothing is."""
    try:
        return build_class_names(cfg), ""
    except ValueError as error:
        return tuple(str(label) for label in range(cfg.MODEL.NUM_CLASSES)), str(error)


def build_head(cfg: CfgNode) -> dict[str, Any]:
    """Return what the report is about."""
    return {
        "dataset": cfg.TRAIN.DATASET,
        "variant": cfg.DATA.SPLIT,
        "root": cfg.DATA.PATH_TO_DATA_DIR,
        "clip": build_clip(cfg)._asdict(),
    }


def build_split(cfg: CfgNode, name: str, records: Sequence[VideoRecord], journal: Journal) -> Split:
    """Return the records of a split, judged."""
    return judge_split(
        name,
        records,
        journal.facts,
        clip=build_clip(cfg),
        num_classes=cfg.MODEL.NUM_CLASSES,
        official=official_count(cfg.TRAIN.DATASET, cfg.DATA.SPLIT, name),
    )


def build_timed_loader(cfg: CfgNode, listed: Path, workers: int) -> ClipLoader:
    """Return the loader of the training, one clip a batch, without what is in quarantine.

    Raises:
        ValueError: as `build_loader`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATA.QUARANTINE = str(listed)
    cfg.TRAIN.BATCH_SIZE, cfg.DATA_LOADER.NUM_WORKERS = 1, workers
    return build_loader(cfg, "train")


def build_speed(cfg: CfgNode, listed: Path, wanted: float | None) -> dict[str, Any]:
    """Time the loader of the training: in this process, with one worker, with one a core.

    Args:
        cfg: of the training.
        listed: records to leave out.
        wanted: clips per second that the model takes, if known.

    Raises:
        ValueError: the loader can't be made, or too many clips in a row can't be read.
    """
    alone = time_clips(build_timed_loader(cfg, listed, 0), skip=1)
    rates = {}
    for workers in sorted({1, cores()}):
        loader = build_timed_loader(cfg, listed, workers)
        skip = workers * cfg.DATA_LOADER.PREFETCH_FACTOR
        rates[workers] = time_clips(loader, skip=skip, num_clips=TIMED_CLIPS * workers).rate
    ranks = max(cfg.NUM_GPUS, cfg.NUM_PROCESSES, 1)
    advice = advise(rates, wanted, ranks) if wanted else ""
    return {
        "clips": alone.clips,
        "cpu_seconds_per_clip": alone.cpu_seconds / alone.clips,
        "clips_per_second": rates,
        "cores": cores(),
        "wanted": wanted,
        "advice": advice,
    }


# --------------------------------------------------------------------------- the audit
def check_data(args: argparse.Namespace) -> int:
    """Audit the data set of a config; write the report, print its main part.

    Returns:
        0 if the evaluation set is whole or was not asked for, else 1.
    """
    try:
        cfg = load_cfg(args.cfg, args.opts)
    except ValueError as error:
        args.parser.error(str(error))
    out = args.out or Path(cfg.OUTPUT_DIR, "doctor")
    names = [name for name in SPLITS if name in args.splits]
    records = {name: build_official_records(cfg, name) for name in names}
    jobs = plan_jobs(record for name in names for record in records[name])
    look = partial(examine, open_video=build_reader(cfg), full=args.full)
    journal = Journal(out / JOURNAL)
    try:
        look_at_all(jobs, journal, partial(quietly, look=look), args.workers, full=args.full)
    finally:
        journal.close()
    splits = [build_split(cfg, name, records[name], journal) for name in names]
    class_names, complaint = build_names(cfg)
    write(out / QUARANTINE, quarantine_lines(splits))
    report = build_head(cfg) | summarize(splits, journal.facts, class_names)
    report |= {"complaint": complaint, "quarantine": str(out / QUARANTINE), "speed": None}
    if args.speed and "train" in names:
        report["speed"] = measure_or_say(cfg, out / QUARANTINE, args.clips_per_second)
    write(out / SUMMARY, json.dumps(report, indent=1) + "\n")
    write(out / REPORT, "\n".join([*tell(report), "", *tell_labels(report)]) + "\n")
    draw(report, splits).savefig(out / PICTURE, dpi=100)
    print("\n".join(tell(report)).encode("utf-8", "backslashreplace").decode())
    print(f"\nMore in {out}: {REPORT}, {SUMMARY}, {PICTURE}, {QUARANTINE}")
    return 0 if report["verdict"] is None or report["verdict"]["whole"] else 1


def quietly(job: Job, look: Examine) -> Any:
    """Look at a video without warnings: the report tells what they would."""
    logging.getLogger("vmp").setLevel(logging.ERROR)
    return look(job)


def look_at_all(
    jobs: Sequence[Job], journal: Journal, look: Examine, workers: int, *, full: bool
) -> None:
    """Look at the videos that the journal does not know; what is seen goes into it at once."""
    known = {job.path for job in jobs if journal.knows(job, full)}
    waiting = [job for job in jobs if job.path not in known]
    if known:
        print(f"{len(known):,} of {len(jobs):,} videos are known from {journal.path}")
    done = len(known)
    bar = tqdm(
        total=len(jobs),
        initial=done,
        desc="decode" if full else "look at",
        unit=" files",
        mininterval=0.5 if sys.stderr.isatty() else 30,
        smoothing=0.05,
    )
    try:
        with bar:
            for facts in examine_all(waiting, look, min(workers, max(1, len(waiting)))):
                journal.add(facts)
                done += 1
                bar.update()
    except KeyboardInterrupt:
        print(
            f"interrupted: {done:,} of {len(jobs):,} videos are in {journal.path}; "
            f"the same command goes on from there",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all; what no UTF-8 can hold (odd file names) is spelled out."""
    write_text(path, text.encode("utf-8", "backslashreplace").decode())


# --------------------------------------------------------------------------- the speed
class Timing(NamedTuple):
    """How long clips took.

    Attributes:
        clips: how many.
        seconds: in all.
        cpu_seconds: of this process.
    """

    clips: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Clips per second."""
        return self.clips / self.seconds


def measure_or_say(cfg: CfgNode, listed: Path, wanted: float | None) -> dict[str, Any]:
    """Return what `build_speed` does, or {"failed": why} where there is nothing to time."""
    try:
        return build_speed(cfg, listed, wanted)
    except ValueError as error:
        return {"failed": str(error)}


def time_clips(loader: ClipLoader, *, skip: int, num_clips: int = TIMED_CLIPS) -> Timing:
    """Time clips of a loader, epoch after epoch, up to TIMED_SECONDS.

    Args:
        loader: one clip a batch.
        skip: clips at the beginning that are not counted: those that wait until workers are there.
        num_clips: at most.
    """
    batches = _batches(loader)
    for _ in range(skip):
        next(batches)
    began, cpu_began, clips = time.perf_counter(), time.process_time(), 0
    while clips < num_clips and time.perf_counter() - began < TIMED_SECONDS:
        next(batches)
        clips += 1
    return Timing(clips, time.perf_counter() - began, time.process_time() - cpu_began)


def _batches(loader: ClipLoader) -> Iterator[object]:
    for epoch in count():
        yield from loader.epoch(epoch)


def between(rates: Mapping[int, float], workers: int) -> float:
    """Return clips per second with so many workers, on a straight line between those measured."""
    fewest, most = min(rates), max(rates)
    if workers in rates:
        return rates[workers]
    share = (workers - fewest) / (most - fewest)
    return rates[fewest] + share * (rates[most] - rates[fewest])


def advise(rates: Mapping[int, float], wanted: float, ranks: int) -> str:
    """Return which DATA_LOADER.NUM_WORKERS keeps up with a model.

    Args:
        rates: workers -> clips per second, measured at 1 and at the number of cores.
        wanted: clips per second of the model, on this machine, of all ranks.
        ranks: processes that train here; the key is for each of them.
    """
    most = max(rates)
    enough = (workers for workers in range(1, most + 1) if between(rates, workers) >= wanted)
    if next(enough, None) is None:
        return (
            f"For {wanted:g} clips/s this machine does not suffice: with a worker on each of its "
            f"{most} cores it loads {rates[most]:.3g}. The model will wait for "
            f"{1 - rates[most] / wanted:.0%} of the time; smaller videos, a lower DATA.NUM_FRAMES "
            f"or more cores help."
        )
    fitting = (w for w in range(1, most + 1) if between(rates, w) >= RESERVE * wanted)
    workers = next(fitting, most)
    how = "measured" if workers in rates else "not measured, on a line between those that are"
    each = -(-workers // ranks)
    shared = f" for each of {ranks} processes" if ranks > 1 else ""
    return (
        f"For {wanted:g} clips/s set DATA_LOADER.NUM_WORKERS {each}{shared}: {workers} workers "
        f"load {between(rates, workers):.3g} clips/s ({how})."
    )


# --------------------------------------------------------------------------- the text
def tell(report: Mapping[str, Any]) -> list[str]:
    """Return the main part of the report as lines."""
    lines = [_title(report), *_tell_videos(report["videos"]), ""]
    lines += _tell_counts(report["splits"])
    if report["complaint"]:
        lines += ["", f"! {report['complaint']}"]
    for kind in KINDS:
        lines += _tell_kind(kind, report)
    lines += _tell_pairs(report)
    if report["speed"]:
        lines += ["", *_tell_speed(report["speed"])]
    lines += _tell_quarantine(report)
    if report["verdict"] is not None:
        lines += ["", report["verdict"]["text"]]
    return lines


def _title(report: Mapping[str, Any]) -> str:
    variant = f", split {report['variant']}" if report["variant"] else ""
    return f"{report['dataset']}{variant}, in {report['root']}"


def _tell_videos(videos: Mapping[str, Any]) -> list[str]:
    how = "every frame decoded"
    if videos["fully_decoded"] < videos["readable"]:
        how = "packets listed and some frames decoded; --full decodes them all"
    lines = [f"{videos['count']:,} videos, {videos['readable']:,} readable ({how})"]
    if not videos["readable"]:
        return lines
    frames = videos["frames"]
    lines.append(
        f"  frames    {frames['min']:,} to {frames['max']:,}, median {frames['median']:,}; "
        f"{_counted(videos['fps'], ' fps')}"
    )
    lines.append(f"  pictures  {_counted(videos['sizes'])}; {_counted(videos['codecs'])}")
    found = {"packets": "the packets", "frames": "decoding all"}
    scans = {found[scan]: number for scan, number in videos["frames_found_by"].items()}
    lines.append(f"  counted   by {_counted(scans)}; header: {_tell_header(videos)}")
    return lines


def _tell_header(videos: Mapping[str, Any]) -> str:
    """Say how many frames more the headers promise than decode."""
    lacking = dict(videos["promised_less_decoded"])
    silent = lacking.pop("not told", 0)
    told = {"right" if more == "0" else f"{int(more):+d}": n for more, n in lacking.items()}
    if silent:
        told["silent"] = silent
    return _counted(told) if told else "durations only"


def _counted(counts: Mapping[str, int], unit: str = "") -> str:
    """Return `30 fps (12), 25 fps (3) and 2 others`."""
    shown = [f"{value}{unit} ({number:,})" for value, number in list(counts.items())[:3]]
    others = f" and {len(counts) - 3:,} others" if len(counts) > 3 else ""
    return ", ".join(shown) + others


def _tell_counts(splits: Mapping[str, Any]) -> list[str]:
    """Return a table with a column a split."""
    rows: list[tuple[str, list[str]]] = [
        ("records", [_number(split["records"]) for split in splits.values()])
    ]
    if any(split["official"] is not None for split in splits.values()):
        rows.append(("official", [_number(split["official"]) for split in splits.values()]))
    rows.append(("usable", [_number(split["usable"]) for split in splits.values()]))
    for kind in KINDS:
        counts = [len(split["problems"].get(kind, ())) for split in splits.values()]
        if any(counts):
            mark = "  not: " if kind in UNUSABLE else "  note: "
            rows.append((mark + kind, [_number(count) for count in counts]))
    rows.append(
        ("classes", [f"{sum(c['usable'] > 0 for c in s['classes']):,}" for s in splits.values()])
    )
    rows.append(
        ("per class", [_range([c["usable"] for c in s["classes"]]) for s in splits.values()])
    )
    rows.append(("seconds", [_range(list(s["seconds"].values())) for s in splits.values()]))
    head = f"{'':22}" + "".join(f"{name:>18}" for name in splits)
    return [head, *(f"{title:22}" + "".join(f"{c:>18}" for c in cells) for title, cells in rows)]


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _range(values: Sequence[float]) -> str:
    """Return `min / median / max`."""
    if not values:
        return "-"
    ordered = sorted(values)
    picked = (ordered[0], ordered[len(ordered) // 2], ordered[-1])
    return " / ".join(f"{value:,.4g}" for value in picked)


def _tell_kind(kind: str, report: Mapping[str, Any]) -> list[str]:
    """Return what there is of a kind of problem, the first records by name."""
    found = {
        name: split["problems"][kind]
        for name, split in report["splits"].items()
        if kind in split["problems"]
    }
    if not found:
        return []
    counted = ", ".join(f"{len(entries):,} in {name}" for name, entries in found.items())
    lines = ["", f"{kind.upper()}: {counted}. {KINDS[kind]}"]
    if kind == "short":
        lines[-1] += f" {POLICIES[report['clip']['policy']]}"
    for name, entries in found.items():
        for entry in entries[:NAMED]:
            lines.append(f"  {name:5} {entry['id'] or entry['path']}: {entry['reason']}")
        if len(entries) > NAMED:
            lines.append(f"  {name:5} and {len(entries) - NAMED:,} more, in {SUMMARY}")
    return lines


def _tell_pairs(report: Mapping[str, Any]) -> list[str]:
    """Return duplicates within the splits and leaks between them."""
    lines = []
    for name, split in report["splits"].items():
        lines += _tell_some_pairs(
            split["duplicates"], f"DUPLICATES in {name}", "The same frames as an earlier record."
        )
    if report["leaks"] is None:
        return lines
    return lines + _tell_some_pairs(
        report["leaks"], "LEAKS", "Test records of frames that are trained on."
    )


def _tell_some_pairs(pairs: Sequence[Mapping[str, Any]], title: str, meaning: str) -> list[str]:
    if not pairs:
        return []
    differ = sum(pair["labels"][0] != pair["labels"][1] for pair in pairs)
    contrary = f" {differ:,} of them with another class." if differ else ""
    lines = ["", f"{title}: {len(pairs):,}. {meaning}{contrary}"]
    for pair in pairs[:NAMED]:
        first, second = pair["labels"]
        classes = f" (classes {first} and {second})" if first != second else ""
        verb = "is" if pair["kind"] == "same" else "overlaps"
        lines.append(f"  {pair['second']} {verb} {pair['first']}{classes}")
    if len(pairs) > NAMED:
        lines.append(f"  and {len(pairs) - NAMED:,} more, in {SUMMARY}")
    return lines


def _tell_speed(speed: Mapping[str, Any]) -> list[str]:
    if "failed" in speed:
        return [f"SPEED: not measured: {speed['failed']}"]
    rates = speed["clips_per_second"]
    lines = [
        f"SPEED of the training loader on this machine: {1000 * speed['cpu_seconds_per_clip']:.3g} "
        f"ms of CPU a clip ({speed['clips']} clips)"
    ]
    most = max(rates)
    for workers in sorted({1, most} | {2**power for power in range(10) if 2**power < most}):
        how = "measured" if workers in rates else "not measured, on a line between those that are"
        lines.append(f"  {workers:3} workers {between(rates, workers):8.3g} clips/s  ({how})")
    lines.append(
        f"  {speed['advice']}"
        if speed["advice"]
        else "  --clips-per-second N, the rate at which the model trains, tells how many it takes"
    )
    return lines


def _tell_quarantine(report: Mapping[str, Any]) -> list[str]:
    path = report["quarantine"]
    listed = sum(1 for line in Path(path).read_text(encoding="utf-8").splitlines() if line)
    if not listed:
        return []
    return ["", f"{listed:,} records are to be left out: DATA.QUARANTINE {path}"]


def tell_labels(report: Mapping[str, Any]) -> list[str]:
    """Return the histogram of the labels of each split as bars of text."""
    lines = []
    for name, split in report["splits"].items():
        classes = split["classes"]
        empty = [each["name"] for each in classes if not each["usable"]]
        told = f"; without one usable: {', '.join(empty)}" if empty else ""
        lines.append(f"RECORDS PER CLASS, {name} (# usable, . not){told}")
        width = max((len(each["name"]) for each in classes), default=0)
        largest = max((each["records"] for each in classes), default=0) or 1
        for each in classes:
            full = round(BAR * each["records"] / largest)
            usable = round(BAR * each["usable"] / largest)
            bar = "#" * usable + "." * (full - usable)
            number = f"{each['usable']:,}"
            if each["usable"] < each["records"]:
                number += f" of {each['records']:,}"
            lines.append(f"  {each['label']:3} {each['name']:{width}} {bar:{BAR}} {number}")
        lines.append("")
    return lines


# --------------------------------------------------------------------------- the picture
def draw(report: Mapping[str, Any], splits: Sequence[Split]) -> Figure:
    """Draw, for each split, the records per class and the lengths of the records."""
    figure = Figure(figsize=(14, 4.2 * len(splits)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(report))
    axes = figure.subplots(len(splits), 2, squeeze=False, width_ratios=(2, 1))
    for split, (left, right) in zip(splits, axes, strict=True):
        _draw_classes(left, split.name, report["splits"][split.name]["classes"])
        _draw_lengths(right, split, report)
    return figure


def _draw_classes(axes: Axes, name: str, classes: Sequence[Mapping[str, Any]]) -> None:
    labels = [each["label"] for each in classes]
    usable = [each["usable"] for each in classes]
    lost = [each["records"] - each["usable"] for each in classes]
    axes.bar(labels, usable, color="tab:blue", label="usable")
    if any(lost):
        axes.bar(labels, lost, bottom=usable, color="tab:red", label="not usable")
        axes.legend()
    axes.set(title=f"{name}: records per class", ylabel="records", xlabel="class")
    axes.margins(x=0.01)
    if len(classes) <= 70:
        names = [each["name"] for each in classes]
        upright = 90 if len(classes) > 8 else 0
        axes.set_xticks(labels, names, rotation=upright, fontsize=10 if len(classes) < 30 else 7)
        axes.set_xlabel("")


def _draw_lengths(axes: Axes, split: Split, report: Mapping[str, Any]) -> None:
    lengths = [length for length, fine in zip(split.lengths, split.usable(), strict=True) if fine]
    axes.set(title=f"{split.name}: lengths", xlabel="frames of a record", ylabel="records")
    if lengths:
        axes.hist(lengths, bins=min(40, len(set(lengths))), color="tab:blue")
    fps = next(iter(report["videos"]["fps"]), None)
    if fps is not None:
        needed = Clip(**report["clip"]).frames_needed(float(fps))
        axes.axvline(needed, color="tab:orange", label=f"a clip: {needed} frames at {fps} fps")
        axes.legend()


def main(argv: list[str] | None = None) -> int:
    """Do what the sub-command says and return the exit status."""
    args = parse_args(argv)
    status: int = args.run(args)
    return status


if __name__ == "__main__":
    run_cli(lambda: sys.exit(main()))
