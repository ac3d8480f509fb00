"""Turn the official FineGym release into an index that the loader reads: Gym99 and Gym288, v1.1.

    python datasets/finegym/prepare.py --videos VIDEOS --annotations ANNOTATIONS --out FOLDER

Nothing is encoded again: an instance is a stretch of frames of the long video it was found in. Its
time stamps are relative to those of its event, and become frame numbers by the time stamps of the
video itself. The integers in its name are truncated seconds and tell nothing. README.md, beside
this file, says where the release is and what the files mean.
"""

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vmp.data.archive import DecodeError
from vmp.data.frame_index import FrameIndex
from vmp.data.records import VideoRecord
from vmp.data.release import CLIPS_FOLDER, OFFICIAL_COUNTS, cut_clips, scan_videos, write_index
from vmp.utils.cli import run_cli
from vmp.utils.files import write_text


class GymSet(NamedTuple):
    """What is official about a set of classes and instances.

    Attributes:
        train: instances of the training list, v1.1.
        test: instances of the list called val, which is the same in v1.0 and v1.1.
        classes: how many.
        old_train: instances of the training list of v1.0.
    """

    train: int
    test: int
    classes: int
    old_train: int


SETS = {
    "gym99": GymSet(**OFFICIAL_COUNTS["finegym"]["gym99"], classes=99, old_train=20_484),
    "gym288": GymSet(**OFFICIAL_COUNTS["finegym"]["gym288"], classes=288, old_train=22_671),
}
ANNOTATION = "finegym_annotation_info_v1.1.json"
LISTS = {"train": "{}_train_element_v1.1.txt", "test": "{}_val_element.txt"}
CATEGORIES = "{}_categories.txt"
HOME = "https://sdolivia.github.io/FineGym/"
README = "datasets/finegym/README.md"
ENDINGS = (".mp4", ".mkv", ".webm")

MISSING = "missing.txt"
REPORT = "report.txt"
# What `excluded` of a record begins with.
ABSENT = "absent"
OUT_OF_RANGE = "out of range"
UNREADABLE = "unreadable"
NOT_ANNOTATED = "not in the annotation"
# Remarks shown on the screen; all of them are in the report.
SHOWN = 20

# A YouTube id may hold "_" and "-", also at its ends: only its length tells where it ends.
_ELEMENT = re.compile(r"([A-Za-z0-9_-]{11})_(E_\d{6}_\d{6})_(A_\d{4}_\d{4})\s+(\d+)")
_CATEGORY = re.compile(
    r"Clabel:\s*(\d+); set:\s*(\d+); Glabel:\s*(\d+); (\((?:VT|FX|BB|UB)\) .*?)\s*"
)

Annotation = Mapping[str, Any]  # video -> event -> {"event", "segments", "timestamps"}
Splits = dict[str, dict[str, list[VideoRecord]]]  # set -> split -> records


class Element(NamedTuple):
    """A line of a list: an instance of an element, and its class.

    Attributes:
        video: YouTube id.
        event: key of the event in the annotation of the video, `E_002407_002435`.
        segment: key of the instance in the event, `A_0003_0005`.
        label: class.
    """

    video: str
    event: str
    segment: str
    label: int

    @property
    def id(self) -> str:
        """Return the name the release gives it."""
        return f"{self.video}_{self.event}_{self.segment}"


# --------------------------------------------------------------------------- the official files
def choose_sets(folder: Path, wanted: Sequence[str] | None) -> list[str]:
    """Return the sets to prepare: those asked for, or those that have a list in the folder.

    Raises:
        ValueError: a file of theirs, or the annotation, is not there; all are named.
    """
    chosen = wanted or [
        name
        for name in SETS
        if any((folder / pattern.format(name)).is_file() for pattern in LISTS.values())
    ]
    names = [ANNOTATION]
    for name in chosen or ("gym99",):
        names += [pattern.format(name) for pattern in (*LISTS.values(), CATEGORIES)]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        old = [name.replace("v1.1", "v1.0") for name in missing]
        old = [name for name in old if (folder / name).is_file()]
        note = f" ({', '.join(old)} will not do: the paper uses v1.1)" if old else ""
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}{note}; get them from {HOME}, see {README}"
        )
    return list(chosen)


def read_elements(path: Path) -> list[Element]:
    """Read a list of lines `<id> <label>`.

    Raises:
        ValueError: a line of another kind, or an id that comes twice; the message names the place.
    """
    elements: dict[str, Element] = {}
    for place, line in _lines(path):
        match = _ELEMENT.fullmatch(line)
        if not match:
            raise ValueError(f"{place}: {line!r} is not `<id> <label>`; download the list again")
        element = Element(match[1], match[2], match[3], int(match[4]))
        if element.id in elements:
            raise ValueError(f"{place}: {element.id} comes twice; download the list again")
        elements[element.id] = element
    return list(elements.values())


def read_categories(path: Path) -> list[str]:
    """Read the names of the classes, index = label; equal ones are told apart by their set.

    Raises:
        ValueError: a line that is no category, or labels that do not count from 0.
    """
    rows: list[tuple[str, str, str]] = []  # name, set, Glabel
    for place, line in _lines(path):
        match = _CATEGORY.fullmatch(line)
        if not match or int(match[1]) != len(rows):
            raise ValueError(
                f"{place}: {line!r} is not `Clabel: {len(rows)}; set: ...; Glabel: ...; (..) name`;"
                f" download the file again"
            )
        rows.append((match[4], match[2], match[3]))
    names = Counter(name for name, _, _ in rows)
    pairs = Counter((name, number) for name, number, _ in rows)
    return [
        name
        if names[name] == 1
        else f"{name} (set {number})"
        if pairs[name, number] == 1
        else f"{name} (set {number}, Glabel {glabel})"
        for name, number, glabel in rows
    ]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, line) of the lines that are not blank; LF or CRLF, with or without a last."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def read_annotation(path: Path) -> Annotation:
    """Read the annotation of all videos.

    Raises:
        ValueError: it is broken, e.g. an incomplete download or a web page.
    """
    try:
        annotation = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(annotation, dict):
        raise ValueError(f"{path} is not the annotation of videos by id; download it again")
    return annotation


def read_set(
    folder: Path, name: str, *, any_count: bool
) -> tuple[dict[str, list[Element]], list[str]]:
    """Read the lists and the class names of a set, and check them against one another.

    Returns:
        split -> elements in the official order; names, index = label.

    Raises:
        ValueError: a broken list, that of v1.0, a number of lines that is not the official one
            (unless `any_count`), an instance in both lists, or a label without a name.
    """
    official = SETS[name]
    paths = {split: folder / pattern.format(name) for split, pattern in LISTS.items()}
    elements = {split: read_elements(path) for split, path in paths.items()}
    names = read_categories(folder / CATEGORIES.format(name))
    if len(elements["train"]) == official.old_train:
        raise ValueError(
            f"{paths['train']} holds the {official.old_train:,} instances of v1.0; the paper uses "
            f"v1.1, which has {official.train:,}: get {paths['train'].name} from {HOME}"
        )
    counts = [
        (paths["train"], len(elements["train"]), official.train),
        (paths["test"], len(elements["test"]), official.test),
        (folder / CATEGORIES.format(name), len(names), official.classes),
    ]
    for path, found, expected in counts:
        if found != expected and not any_count:
            raise ValueError(
                f"{path} has {found:,} lines, the official file {expected:,}; download it again, "
                f"or take it as it is with --any-count"
            )
    both = {each.id for each in elements["train"]} & {each.id for each in elements["test"]}
    if both:
        raise ValueError(
            f"{len(both)} instances are in both lists of {name}, e.g. {min(both)}; "
            f"download {paths['train'].name} and {paths['test'].name} again"
        )
    for split, path in paths.items():
        if wrong := [each for each in elements[split] if each.label >= len(names)]:
            raise ValueError(
                f"{path}: {wrong[0].id} has class {wrong[0].label}, there are names for "
                f"{len(names)}; take all files from one release"
            )
    return elements, names


def times_of(annotation: Annotation, element: Element) -> tuple[float, float] | str:
    """Return when an instance begins and ends, seconds of its video, or why that is not known.

    That is from the start of its first stage to the end of its last one; only those of a vault
    have several. An instance may end after its event does, and keeps its end.
    """
    event = annotation.get(element.video, {}).get(element.event)
    segment = ((event or {}).get("segments") or {}).get(element.segment)
    if segment is None:
        return NOT_ANNOTATED
    try:
        ((event_start, _),) = event["timestamps"]
        stages = segment["timestamps"]
        begin, end = float(event_start + stages[0][0]), float(event_start + stages[-1][1])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        return f"{NOT_ANNOTATED}: its time stamps are broken ({error!r})"
    if not begin <= end:
        return f"{NOT_ANNOTATED}: it ends at {end:.2f} s, before it begins at {begin:.2f} s"
    return begin, end


# --------------------------------------------------------------------------- the videos
def find_videos(folder: Path, ids: Iterable[str]) -> dict[str, str]:
    """Return the names of the videos `<id>.mp4`, `.mkv` or `.webm` in a folder, by id.

    Raises:
        ValueError: there is no such folder, or an id has two files: which one is meant?
    """
    if not folder.is_dir():
        raise ValueError(f"--videos {folder} is not a folder; give the one with the videos by id")
    wanted = set(ids)
    found: dict[str, str] = {}
    twice = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS and path.stem in wanted and path.is_file():
            if path.stem in found:
                twice.append(f"{found[path.stem]} and {path.name}")
            found[path.stem] = path.name
    if twice:
        raise ValueError(f"{folder} has two files of one video: {'; '.join(twice)}; keep one each")
    return found


def frames_of(index: FrameIndex, begin: float, end: float) -> tuple[int, int] | None:
    """Return the frames [start, stop) shown in [begin, end) seconds, at least one.

    None: the video has ended by then.
    """
    start = index.frame_at(begin)
    if start == index.num_frames:
        return None
    return start, max(index.frame_at(end), start + 1)


def outlasts(index: FrameIndex, end: float) -> bool:
    """Return whether a time is past the end of the video, its last frame over."""
    return index.frame_at(end - 1 / index.fps) == index.num_frames


# --------------------------------------------------------------------------- records
class Release(NamedTuple):
    """What an instance is looked up in.

    Attributes:
        annotation: time stamps.
        files: name of the video file, by id.
        frames: what has been found in it, by id.
    """

    annotation: Annotation
    files: Mapping[str, str]
    frames: Mapping[str, FrameIndex | DecodeError]


def to_record(element: Element, release: Release) -> tuple[VideoRecord, str]:
    """Return the record of an instance, and a remark for the report; "" is none.

    The path is relative to the folder of the videos; of an absent video it is the id alone.
    """
    name = release.files.get(element.video, element.video)
    record = VideoRecord(name, element.label, id=element.id)
    times = times_of(release.annotation, element)
    if isinstance(times, str):
        return record._replace(excluded=times), f"{element.id}: {times}"
    if element.video not in release.files:
        return record._replace(excluded=ABSENT), ""
    index = release.frames[element.video]
    if isinstance(index, DecodeError):
        reason = f"{UNREADABLE}: {index.reason}"
        return record._replace(excluded=reason), f"{name}: {reason}"
    begin, end = times
    frames = frames_of(index, begin, end)
    length = f"{name} has ended, after {index.num_frames} frames"
    if frames is None:
        reason = f"{OUT_OF_RANGE}: it begins at {begin:.2f} s, when {length}"
        return record._replace(excluded=reason), f"{element.id}: {reason}"
    remark = ""
    if outlasts(index, end):
        remark = f"{element.id}: cut short, it ends at {end:.2f} s, when {length}"
    return record._replace(start=frames[0], stop=frames[1]), remark


def cut_splits(splits: Splits, videos: Path, out: Path, workers: int) -> tuple[Splits, list[str]]:
    """Write a clip of each usable record, and return the records of the clips, and remarks.

    An instance that is in two sets is one clip.

    Raises:
        ValueError: clips can't be encoded here.
        OSError: no room, or no permission.
    """
    every = [r for by_split in splits.values() for records in by_split.values() for r in records]
    clips = cut_clips(every, videos, out, workers, name=lambda record: f"{record.id}.mp4")
    remarks = [
        f"{record.id}: no clip, {clip.excluded}"
        for record, clip in clips.items()
        if clip.excluded != record.excluded
    ]
    of_clips = {
        name: {split: [clips[record] for record in records] for split, records in by_split.items()}
        for name, by_split in splits.items()
    }
    return of_clips, remarks


# --------------------------------------------------------------------------- what is told
def summary(name: str, split: str, records: Sequence[VideoRecord]) -> str:
    """Return one line: how many of the official instances of a split can be used, and why not."""
    counts: Counter[str] = Counter()
    videos: dict[str, set[str]] = {}
    for record in records:
        kind = record.excluded.partition(":")[0]
        counts[kind] += 1
        videos.setdefault(kind, set()).add(record.id[:11])
    parts = [f"{counts['']:,} of {len(records):,} usable"]
    for kind in (ABSENT, UNREADABLE):
        among = len(videos.get(kind, ()))
        parts.append(f"{counts[kind]:,} {kind} ({among} video{'s' * (among != 1)})")
    parts += [f"{counts[kind]:,} {kind}" for kind in (OUT_OF_RANGE, NOT_ANNOTATED)]
    return f"{name + ' ' + split:<12} {', '.join(parts)}"


def missing_table(
    sets: Mapping[str, Mapping[str, Sequence[Element]]], files: Mapping[str, str]
) -> str:
    """Return a table of the videos that are not there: id, and the instances each list loses."""
    columns = [(name, split) for name, by_split in sets.items() for split in by_split]
    lost = Counter(
        (each.video, name, split)
        for name, split in columns
        for each in sets[name][split]
        if each.video not in files
    )
    rows = ["\t".join(["# video", *(f"{name}/{split}" for name, split in columns)])]
    for video in sorted({video for video, _, _ in lost}):
        counts = [str(lost[video, name, split]) for name, split in columns]
        rows.append("\t".join([video, *counts]))
    return "\n".join(rows) + "\n"


def prepare(args: argparse.Namespace) -> None:
    """Write the index, the list of absent videos and the report; see `main`.

    Raises:
        ValueError: something is wrong with the release, or no video of it is there.
    """
    chosen = choose_sets(args.annotations, args.sets)
    sets, classes = {}, {}
    for name in chosen:
        sets[name], classes[name] = read_set(args.annotations, name, any_count=args.any_count)
    annotation = read_annotation(args.annotations / ANNOTATION)
    ids = {e.video for by_split in sets.values() for part in by_split.values() for e in part}
    files = find_videos(args.videos, ids)
    write_text(args.out / MISSING, missing_table(sets, files))
    if not files:
        raise ValueError(
            f"{args.videos} has none of the {len(ids)} videos by id ({', '.join(ENDINGS)}); "
            f"their ids are in {args.out / MISSING}, how to get them in {README}"
        )
    paths = {video: str(args.videos / name) for video, name in files.items()}
    frames = scan_videos(paths, args.out, args.workers)
    release = Release(annotation, files, frames)
    remarks: list[str] = []
    splits: Splits = {name: {} for name in sets}
    for name, by_split in sets.items():
        for split, elements in by_split.items():
            made = [to_record(element, release) for element in elements]
            splits[name][split] = [record for record, _ in made]
            remarks += [remark for _, remark in made if remark]
    folder = args.videos
    if args.cut:
        folder = args.out / CLIPS_FOLDER
        splits, failures = cut_splits(splits, args.videos, args.out, args.workers)
        remarks += failures
    path = write_index(args.out, "finegym", folder, splits, classes)
    tell(args.out, splits, list(dict.fromkeys(remarks)))
    print(f"index: {path}")


def tell(out: Path, splits: Splits, remarks: Sequence[str]) -> None:
    """Write the report, and print it; of many remarks only the first."""
    table = [
        summary(name, split, records)
        for name, by_split in splits.items()
        for split, records in by_split.items()
    ]
    write_text(out / REPORT, "\n".join([*table, "", *remarks]).rstrip() + "\n")
    print("\n".join(["", *remarks[:SHOWN]]))
    if len(remarks) > SHOWN:
        print(f"... and {len(remarks) - SHOWN} more")
    print("\n".join(["", *table]))
    print(f"\nabsent videos: {out / MISSING}\nreport: {out / REPORT}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Prepare FineGym: official release in, index out.")
    parser.add_argument("--videos", type=Path, required=True, help="folder with <YouTube id>.mp4")
    parser.add_argument(
        "--annotations", type=Path, required=True, help=f"folder with {ANNOTATION} and the lists"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the index to")
    parser.add_argument(
        "--sets", nargs="+", choices=tuple(SETS), help="default: those whose lists are there"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--cut", action="store_true", help="also write a clip of each instance")
    parser.add_argument(
        "--any-count", action="store_true", help="take lists that are not the official ones"
    )
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    """Prepare FineGym; go on where an earlier call stopped."""
    prepare(parse_args(argv))


if __name__ == "__main__":
    run_cli(main)
