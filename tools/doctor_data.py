"""What `tools/doctor.py data` does: open every video once, judge every record, time the loader."""

import argparse
import json
import logging
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from vmp.config import load_cfg
from vmp.data import ClipLoader, VideoRecord, build_loader
from vmp.data.audit import (
    KINDS,
    UNUSABLE,
    Clip,
    Split,
    build_clip,
    judge_split,
    quarantine_lines,
    spread,
    summarize,
)
from vmp.data.build import build_class_names, build_official_records, build_reader
from vmp.data.examine import Examine, Job, Journal, examine, examine_all, plan_jobs
from vmp.data.records import SPLITS
from vmp.data.release import official_count
from vmp.utils.files import write_text
from vmp.utils.processes import cores

JOURNAL, REPORT, SUMMARY = "videos.jsonl", "report.txt", "report.json"
QUARANTINE, PICTURE = "quarantine.tsv", "report.png"
# Records named in the text of each problem; the JSON file has all.
NAMED = 5
# Characters: of a line, of a class's name, of a bar, of the columns of the table.
WIDTH, LONGEST_NAME, BAR, TITLES, COLUMN = 100, 36, 40, 28, 24
USABLE, LOST, SHORT = "tab:blue", "tab:red", "tab:orange"
MOST_NAMES = 70  # classes whose names fit below a picture
INTERRUPTED = 130  # what a shell makes of Ctrl-C
# Clips that are timed at most, and seconds for that.
TIMED_CLIPS, TIMED_SECONDS = 100, 20.0
# A loader that is just as fast as the model makes it wait now and then.
RESERVE = 1.1
# What DATA.SHORT_CLIP makes of records that are short.
POLICIES = {
    "hold": "DATA.SHORT_CLIP hold repeats the last frame, which adds no motion.",
    "loop": "DATA.SHORT_CLIP loop starts them again, and the jump back is a motion that is not "
    "there; hold repeats the last frame instead.",
    "spread": "DATA.SHORT_CLIP spread takes their frames closer together, which slows the motion.",
    "error": "",
}


# --------------------------------------------------------------------------- from cfg
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
    alone = time_clips(build_timed_loader(cfg, listed, 0), skip=1, num_clips=TIMED_CLIPS)
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
    with closing(Journal(out / JOURNAL)) as journal:
        look_at_all(jobs, journal, look, args.workers or cores(), full=args.full)
    splits = [build_split(cfg, name, records[name], journal) for name in names]
    class_names, complaint = build_names(cfg)
    to_leave_out = quarantine_lines(splits)
    write(out / QUARANTINE, "".join(to_leave_out))
    report = build_head(cfg) | summarize(splits, journal.facts, class_names)
    report |= {"complaint": complaint, "speed": None}
    report |= {"quarantined": len(to_leave_out), "quarantine": str(out / QUARANTINE)}
    if args.speed and "train" in names:
        report["speed"] = measure_or_say(cfg, out / QUARANTINE, args.clips_per_second)
    write(out / SUMMARY, json.dumps(report, indent=1) + "\n")
    write(out / REPORT, "\n".join([*tell(report), *tell_labels(report)]) + "\n")
    draw(report, splits).savefig(out / PICTURE, dpi=100)
    print("\n".join(tell(report)).encode("utf-8", "backslashreplace").decode())
    print(f"\nMore in {out}: {REPORT}, {SUMMARY}, {PICTURE}, {QUARANTINE}")
    return 0 if report["verdict"] is None or report["verdict"]["whole"] else 1


def look_at_all(
    jobs: Sequence[Job], journal: Journal, look: Examine, workers: int, *, full: bool
) -> None:
    """Look at the videos that the journal does not know; what is seen goes into it at once."""
    try:
        waiting = [job for job in jobs if not journal.knows(job, full)]
        known = len(jobs) - len(waiting)
        if known:
            print(f"{known:,} of {len(jobs):,} videos are known from {journal.path}", flush=True)
        with progress_bar(len(jobs), known) as bar:
            for facts in examine_all(waiting, look, min(workers, len(waiting))):
                journal.add(facts)
                bar.update()
    except KeyboardInterrupt:
        print(
            f"interrupted; {len(journal.facts):,} videos are in {journal.path}: "
            f"the same command goes on from there",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)


def progress_bar(total: int, done: int) -> "tqdm[Any]":
    """Return a bar of files; in the log of a job it says something twice a minute."""
    pause = 0.2 if sys.stderr.isatty() else 30
    return tqdm(total=total, initial=done, unit=" files", mininterval=pause, smoothing=0.05)


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
    print("timing the loader (Ctrl-C leaves it) ...", file=sys.stderr, flush=True)
    logging.disable(logging.WARNING)  # what is left out has been told
    try:
        return build_speed(cfg, listed, wanted)
    except (ValueError, RuntimeError) as error:  # the latter: a worker has died
        return {"failed": str(error).strip().splitlines()[-1]}
    except KeyboardInterrupt:
        return {"failed": "interrupted"}
    finally:
        logging.disable(logging.NOTSET)


def time_clips(loader: ClipLoader, *, skip: int, num_clips: int) -> Timing:
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
        f"For {wanted:g} clips/s set DATA_LOADER.NUM_WORKERS {each}{shared}; workers in all: "
        f"{workers}, which load {between(rates, workers):.3g} clips/s ({how})."
    )


# --------------------------------------------------------------------------- the text
def tell(report: Mapping[str, Any]) -> list[str]:
    """Return the main part of the report as lines."""
    lines = [*_tell_title(report), *_tell_videos(report["videos"]), ""]
    lines += _tell_counts(report["splits"])
    if report["complaint"]:
        lines += ["", *_paragraph(f"CLASSES: {report['complaint']}")]
    for kind in KINDS:
        lines += _tell_kind(kind, report)
    lines += _tell_pairs(report)
    if report["speed"]:
        lines += ["", *_tell_speed(report["speed"])]
    if report["quarantined"]:
        lines += [
            "",
            f"To leave out what can't be read ({report['quarantined']:,}), give the run",
            f"  DATA.QUARANTINE {report['quarantine']}",
        ]
    if report["verdict"] is not None:
        lines += ["", *_paragraph(report["verdict"]["text"])]
    return lines


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _title(report: Mapping[str, Any]) -> str:
    variant = f", split {report['variant']}" if report["variant"] else ""
    return f"{report['dataset']}{variant}, in {report['root']}"


def _tell_title(report: Mapping[str, Any]) -> list[str]:
    clip = Clip(**report["clip"])
    rate = f"{clip.target_fps:g} fps" if clip.target_fps else "the video's own rate"
    title = _title(report)
    return [
        title,
        "=" * len(title),
        f"a clip    {clip.num_frames} frames, {clip.rate} apart at {rate}",
    ]


def _tell_videos(videos: Mapping[str, Any]) -> list[str]:
    how = "every frame decoded"
    if videos["fully_decoded"] < videos["readable"]:
        how = "some frames of each decoded; --full decodes them all"
    lines = [f"videos    {videos['count']:,}, of which {videos['readable']:,} can be read ({how})"]
    if not videos["readable"]:
        return lines
    found = {"packets": "listing the packets", "frames": "decoding everything"}
    scans = {found[scan]: number for scan, number in videos["frames_found_by"].items()}
    return [
        *lines,
        f"length    {_range(videos['frames'])} frames (min / median / max)",
        f"rate      {_counted(videos['fps'], ' fps')}",
        f"picture   {_counted(videos['sizes'])}",
        f"codec     {_counted(videos['codecs'])}",
        f"counted   by {_counted(scans)}",
        f"headers   {_tell_headers(videos['promised_less_decoded'])}",
    ]


def _tell_headers(lacking: Mapping[str, int]) -> str:
    """Say how many frames more the headers promise than decode."""
    if not lacking:
        return "tell no number of frames"
    words = {"not told": "tell no number", "0": "tell what decodes"}
    told = {words.get(more) or _too_many(int(more)): n for more, n in lacking.items()}
    return _counted(told)


def _too_many(frames: int) -> str:
    return f"promise {frames} more" if frames > 0 else f"promise {-frames} less"


def _counted(counts: Mapping[str, int], unit: str = "") -> str:
    """Return `30 fps (12), 25 fps (3) and 2 others`."""
    if len(counts) == 1:
        return f"{next(iter(counts))}{unit}"
    shown = [f"{value}{unit} ({number:,})" for value, number in list(counts.items())[:3]]
    more = len(counts) - 3
    others = f" and {more:,} other{'s' * (more > 1)}" if more > 0 else ""
    return ", ".join(shown) + others


def _tell_counts(splits: Mapping[str, Any]) -> list[str]:
    """Return a table with a column a split."""
    every = list(splits.values())
    rows = [("records", [_number(split["records"]) for split in every])]
    if any(split["official"] is not None for split in every):
        rows.append(("  official", [_number(split["official"]) for split in every]))
    rows.append(("  usable", [_number(split["usable"]) for split in every]))
    for kind in KINDS:
        counts = [len(split["problems"].get(kind, ())) for split in every]
        if any(counts):
            mark = "  not usable: " if kind in UNUSABLE else "  careful: "
            rows.append((mark + kind, [_number(count) for count in counts]))
    of_classes = [[each["usable"] for each in split["classes"]] for split in every]
    rows += [
        (
            "classes with some",
            [f"{sum(map(bool, usable))} of {len(usable)}" for usable in of_classes],
        ),
        ("usable per class", [_range(spread(usable)) for usable in of_classes]),
        ("seconds", [_range(split["seconds"]) for split in every]),
    ]
    head = f"{'':{TITLES}}" + "".join(f"{name:>{COLUMN}}" for name in splits)
    cells = ((title, "".join(f"{cell:>{COLUMN}}" for cell in row)) for title, row in rows)
    return [head, *(f"{title:{TITLES}}{row}" for title, row in cells)]


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _range(values: Mapping[str, float]) -> str:
    """Return `min / median / max`, as `spread` has found them."""
    told = (f"{v:,}" if isinstance(v, int) else f"{v:.2f}" for v in values.values())
    return " / ".join(told) or "-"


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
    more = ""
    if kind == "short":
        more = POLICIES[report["clip"]["policy"]]
    elif kind == "excluded":
        reasons = {name: report["splits"][name]["excluded"] for name in found}
        more = "; ".join(f"{name}: {_listed(counts)}" for name, counts in reasons.items()) + "."
    lines = ["", *_paragraph(f"{kind.upper()}: {counted}. {KINDS[kind]} {more}")]
    for name, entries in found.items():
        for entry in entries[:NAMED]:
            lines.append(f"  {name:5} {entry['id'] or entry['path']}: {entry['reason']}")
        if len(entries) > NAMED:
            lines.append(f"  {name:5} and {len(entries) - NAMED:,} more, in {SUMMARY}")
    return lines


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {value}" for value, number in counts.items())


def _tell_pairs(report: Mapping[str, Any]) -> list[str]:
    """Return duplicates within the splits and leaks between them."""
    lines = []
    for name, split in report["splits"].items():
        meaning = "They have the same frames as an earlier record."
        lines += _tell_some_pairs(split["duplicates"], f"DUPLICATES in {name}", meaning)
    meaning = "Test records of frames that are trained on; what they score is no test."
    lines += _tell_some_pairs(report["leaks"] or (), "LEAKS", meaning)
    if lines:
        return lines
    unseen = "" if report["leaks"] is None else ", none of the test is trained on"
    return ["", f"No frames come twice{unseen}."]


def _tell_some_pairs(pairs: Sequence[Mapping[str, Any]], title: str, meaning: str) -> list[str]:
    if not pairs:
        return []
    differ = sum(pair["labels"][0] != pair["labels"][1] for pair in pairs)
    contrary = f" {differ:,} of them with another class." if differ else ""
    lines = ["", *_paragraph(f"{title}: {len(pairs):,}. {meaning}{contrary}")]
    for pair in pairs[:NAMED]:
        first, second = pair["labels"]
        classes = f" (class {first}, here {second})" if first != second else ""
        verb = "is" if pair["kind"] == "same" else "overlaps"
        lines.append(f"  {pair['second']} {verb} {pair['first']}{classes}")
    if len(pairs) > NAMED:
        lines.append(f"  and {len(pairs) - NAMED:,} more, in {SUMMARY}")
    return lines


def _tell_speed(speed: Mapping[str, Any]) -> list[str]:
    if "failed" in speed:
        return _paragraph(f"SPEED: not measured: {speed['failed']}")
    rates = speed["clips_per_second"]
    cost = f"{1000 * speed['cpu_seconds_per_clip']:.3g} ms of CPU a clip"
    lines = [f"SPEED of the training loader, here and now: {cost} ({speed['clips']} clips)"]
    lines.append(f"  {'workers':>7} {'clips/s':>9}")
    most = max(rates)
    for workers in sorted({1, most} | {2**power for power in range(10) if 2**power < most}):
        how = "measured" if workers in rates else "not measured: on a line between those that are"
        lines.append(f"  {workers:7} {between(rates, workers):9.3g}  {how}")
    advice = speed["advice"] or (
        "With --clips-per-second N, the rate at which the model trains, it is told here how many "
        "workers that takes."
    )
    return [*lines, *(f"  {line}" for line in _paragraph(advice))]


def tell_labels(report: Mapping[str, Any]) -> list[str]:
    """Return the histogram of the labels of each split as bars of text."""
    lines = []
    for name, split in report["splits"].items():
        classes = split["classes"]
        empty = [each["name"] for each in classes if not each["usable"]]
        told = f"; without a usable one: {', '.join(empty)}" if empty else ""
        lines += ["", *_paragraph(f"RECORDS PER CLASS, {name} (# usable, . not){told}")]
        width = max((len(each["name"]) for each in classes), default=0)
        largest = max((each["records"] for each in classes), default=0) or 1
        lines += [_bar(each, min(width, LONGEST_NAME), BAR / largest) for each in classes]
    return lines


def _bar(counts: Mapping[str, Any], width: int, scale: float) -> str:
    usable, total = counts["usable"], counts["records"]
    drawn = "#" * round(scale * usable)
    drawn += "." * (round(scale * total) - len(drawn))
    number = f"{usable:,}" if usable == total else f"{usable:,} of {total:,}"
    return f"  {counts['label']:3} {_short(counts['name']):{width}} {drawn:{BAR}} {number}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


# --------------------------------------------------------------------------- the picture
def draw(report: Mapping[str, Any], splits: Sequence[Split]) -> Figure:
    """Draw, for each split, the records per class and the lengths of the records."""
    figure = Figure(figsize=(14, 1 + 3.8 * len(splits)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(report))
    axes = figure.subplots(len(splits), 2, squeeze=False, width_ratios=(2, 1))
    for split, (left, right) in zip(splits, axes, strict=True):
        _draw_classes(left, split.name, report["splits"][split.name]["classes"])
        _draw_lengths(right, split, report)
    for each in axes.flat:
        each.grid(axis="y", alpha=0.3)
        each.set_axisbelow(True)
        each.yaxis.set_major_locator(MaxNLocator(integer=True))
        each.set_ylim(bottom=0, top=1.05 * max(each.dataLim.y1, 1))
    return figure


def _draw_classes(axes: Axes, name: str, classes: Sequence[Mapping[str, Any]]) -> None:
    labels = [each["label"] for each in classes]
    usable = [each["usable"] for each in classes]
    lost = [each["records"] - each["usable"] for each in classes]
    axes.bar(labels, usable, color=USABLE)
    axes.bar(labels, lost, bottom=usable, color=LOST)
    red = f", {sum(lost):,} others (red)" if any(lost) else ""
    axes.set(title=f"{name}: {sum(usable):,} usable records{red} in {len(classes)} classes")
    axes.margins(x=0.01)
    if len(classes) > MOST_NAMES:
        axes.set_xlabel("class")
        return
    size, turn = (10, 0) if len(classes) <= 8 else (8, 90)
    axes.set_xticks(
        labels, [_short(each["name"]) for each in classes], rotation=turn, fontsize=size
    )


def _draw_lengths(axes: Axes, split: Split, report: Mapping[str, Any]) -> None:
    lengths = [len(each.stretch) for each in split.usable()]
    axes.set(title=f"{split.name}: no usable record", xlabel="frames")
    if not lengths:
        return
    fps = next(iter(report["videos"]["fps"]))  # of most videos
    needed = Clip(**report["clip"]).frames_needed(float(fps))
    axes.hist(lengths, bins=40, range=(0, max(lengths)), color=USABLE)
    axes.axvspan(0, needed, color=SHORT, alpha=0.2, zorder=0)
    axes.axvline(needed, color=SHORT)
    axes.set_xlim(0, 1.05 * max(needed, *lengths))
    short = len(report["splits"][split.name]["problems"].get("short", ()))
    told = f"{short:,} are shorter than a clip, {needed:,} frames at {fps} fps"
    axes.set_title(f"{split.name}: length; {told}", fontsize=10)
