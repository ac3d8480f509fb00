"""Index MPII Cooking 2: which frames of which video each annotated interval is.

    python datasets/mpii_cooking2/prepare.py --videos videos \
        --annotation attributesAnnotations_MPII-Cooking-2.mat --setup experimentalSetup \
        --out data/mpii_cooking2

Nothing is encoded again unless `--cut` is given. A call that was stopped goes on where it was.
"""

import argparse
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from vmp.data.archive import DecodeError
from vmp.data.frame_index import FrameIndex
from vmp.data.mpii_cooking2 import NAMES
from vmp.data.records import VideoRecord
from vmp.data.release import CLIPS_FOLDER, cut_clips, scan_videos, write_index
from vmp.utils.cli import run_cli
from vmp.utils.files import write_text

SPLIT_FILES = {
    "train": "sequencesTrainAttr.txt",
    "val": "sequencesVal.txt",
    "test": "sequencesTest.txt",
}
# Of the release, known for sure.
OFFICIAL = {
    "intervals": 14_105,
    "videos": 273,
    "activities": 87,
    "classes": 67,
    "val sequences": 17,
    "test sequences": 42,
}
# Worked out from other facts, so that another number is worth no more than a warning.
EXPECTED = {"train sequences": 201, "intervals of the 67 classes": 13_990}
FIELDS = ("activity", "fileName", "attributeMap", "startFrame", "endFrame", "iaMat", "frameRate")
MISSING = "missing.txt"
REPORT = "report.txt"
# Lines of a list that are printed; the report has them all.
SHOWN = 5

SEQUENCE = re.compile(r"s\d+-d\d+")
VIDEO = re.compile(r"(s\d+-d\d+)-cam-\d+")


class Row(NamedTuple):
    """An interval as annotated.

    Attributes:
        number: row of the annotation, from 1.
        video: name of the file without its ending.
        activity: as the release spells it.
        start: first frame, counted from 1.
        end: last frame, inclusive.
    """

    number: int
    video: str
    activity: str
    start: int
    end: int

    @property
    def sequence(self) -> str:
        """Return the subject and dish, s07-d72, by which the splits name a video."""
        return self.video.partition("-cam-")[0]


class Annotation(NamedTuple):
    """What the .mat file says.

    Attributes:
        rows: all intervals, in the order of the file.
        attributes: names of the rows of iaMat.
        frame_rate: frames per second that frame numbers go by.
        odd: (row number, activities that iaMat gives the interval) where that is not the one named.
    """

    rows: list[Row]
    attributes: list[str]
    frame_rate: float
    odd: list[tuple[int, list[str]]]


class Report:
    """What is found out, told in short on the screen and in full in a file."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def say(self, text: str) -> None:
        """Add lines to both."""
        print(text)
        self._lines.append(text)

    def itemize(self, title: str, items: Iterable[str]) -> None:
        """Add a title with the number of the items, and the items; nothing if there are none."""
        items = [f"  {item}" for item in items]
        if not items:
            return
        self._lines += [f"{title}: {len(items):,}", *items]
        rest = [f"  ... and {len(items) - SHOWN:,} more"] if len(items) > SHOWN else []
        print("\n".join([f"{title}: {len(items):,}", *items[:SHOWN], *rest]))

    def write(self, path: Path) -> None:
        """Write the file."""
        write_text(path, "\n".join(self._lines) + "\n")


# --------------------------------------------------------------------------- the annotation
def read_annotation(path: Path) -> Annotation:
    """Read the MATLAB v7.3 file, which is HDF5.

    The fields that are no numbers or cells of strings (MATLAB objects, which only MATLAB can read)
    are not touched.

    Raises:
        ValueError: it is missing, no such file, or its fields don't fit each other.
    """
    if not path.is_file():
        raise ValueError(f"--annotation {path} is missing; see datasets/mpii_cooking2/README.md")
    try:
        with h5py.File(path) as file:
            return _read_fields(file, path)
    except OSError as error:
        raise ValueError(
            f"{path} can't be read as MATLAB v7.3 ({error}); it should have 114,303,918 bytes, "
            f"download it again"
        ) from error


def _read_fields(file: h5py.File, path: Path) -> Annotation:
    annos = file.get("annos", {})
    lacking = [name for name in FIELDS if name not in annos]
    if lacking:
        raise ValueError(
            f"{path} has no annos.{lacking[0]}; --annotation must be "
            f"attributesAnnotations_MPII-Cooking-2.mat"
        )
    activities = read_strings(file, annos["activity"])
    videos = read_strings(file, annos["fileName"])
    attributes = read_strings(file, annos["attributeMap"])
    starts, ends = (_read_frames(annos[name], path) for name in ("startFrame", "endFrame"))
    has = annos["iaMat"][()] != 0  # (A, N), as MATLAB's N x A lies in memory
    lengths = {len(activities), len(videos), len(starts), len(ends), has.shape[1]}
    if len(lengths) > 1 or len(has) != len(attributes):
        raise ValueError(f"{path}: its fields have different lengths; download it again")
    columns = zip(videos, activities, starts, ends, strict=True)
    rows = [Row(number, *column) for number, column in enumerate(columns, 1)]
    for row in rows:
        if not VIDEO.fullmatch(row.video):
            raise ValueError(f"{path}, row {row.number}: {row.video!r} is no name of a video")
    return Annotation(
        rows=rows,
        attributes=attributes,
        frame_rate=float(annos["frameRate"][()].item()),
        odd=_compare(rows, attributes, has),
    )


def read_strings(file: h5py.File, cells: h5py.Dataset) -> list[str]:
    """Return the strings that a column of cells refers to."""
    return [_read_string(file[cell]) for cell in cells[()].ravel()]


def _read_string(text: h5py.Dataset) -> str:
    """Decode UTF-16 code units; the value of an empty string is its MATLAB size, 0 x 0."""
    units = text[()]
    if units.dtype != np.uint16 and text.attrs.get("MATLAB_empty", 0):
        return ""
    return bytes(units.ravel().astype("<u2")).decode("utf-16-le")


def _read_frames(column: h5py.Dataset, path: Path) -> list[int]:
    numbers = column[()].ravel()
    whole = np.isfinite(numbers) & (numbers == np.floor(numbers))
    if not whole.all():
        row = int(np.argmin(whole))
        raise ValueError(f"{path}, row {row + 1}: {numbers[row]} is no number of a frame")
    return [int(number) for number in numbers]


def _compare(
    rows: Sequence[Row], attributes: Sequence[str], has: npt.NDArray[np.bool_]
) -> list[tuple[int, list[str]]]:
    """Return the rows whose attributes don't have the named activity as their only one."""
    known = [place for place, name in enumerate(attributes) if name in NAMES]
    named = np.array([[row.activity == attributes[place] for row in rows] for place in known])
    differ = (named != has[known]).any(axis=0)
    return [
        (rows[int(column)].number, [attributes[place] for place in known if has[place, column]])
        for column in np.flatnonzero(differ)
    ]


def find_classes(annotation: Annotation) -> list[str]:
    """Return the classes by the official rule: the activities that are attributes, sorted.

    Raises:
        ValueError: there is one that the 67 do not have.
    """
    activities = {row.activity for row in annotation.rows}
    classes = sorted(activities & set(annotation.attributes))
    unknown = sorted(set(classes) - set(NAMES))
    if unknown:
        raise ValueError(
            f"activity {unknown[0]!r} is an attribute but none of the 67 classes; --annotation "
            f"must be attributesAnnotations_MPII-Cooking-2.mat"
        )
    return classes


# --------------------------------------------------------------------------- the splits
def read_setup(folder: Path) -> dict[str, list[str]]:
    """Return the sequences of each split, in the order of its file.

    Raises:
        ValueError: a file is missing or broken, or a sequence is in two of the splits.
    """
    nested = folder / "experimentalSetup"  # what the archive unpacks to
    folder = nested if nested.is_dir() else folder
    setup = {split: read_sequences(folder / name) for split, name in SPLIT_FILES.items()}
    seen: dict[str, str] = {}
    for split, sequences in setup.items():
        for sequence in sequences:
            if sequence in seen:
                raise ValueError(
                    f"{folder}: sequence {sequence} is in {SPLIT_FILES[seen[sequence]]} and in "
                    f"{SPLIT_FILES[split]}; the splits of the release share none, unpack it again"
                )
            seen[sequence] = split
    return setup


def read_sequences(path: Path) -> list[str]:
    """Return the sequences that a file lists, one a line, each once.

    Raises:
        ValueError: it is missing or empty, or a line is no sequence.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; --setup must be the release's experimentalSetup")
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    for number, line in enumerate(lines, 1):
        if line and not SEQUENCE.fullmatch(line):
            raise ValueError(f"{path}, line {number}: {line!r} is no sequence like s07-d72")
    sequences = list(dict.fromkeys(line for line in lines if line))
    if not sequences:
        raise ValueError(f"{path} lists no sequence; unpack the release again")
    return sequences


def check_counts(found: Mapping[str, int], any_count: bool) -> list[str]:
    """Compare with the numbers of the release; return warnings.

    Raises:
        ValueError: a number that is known for sure is another one, and `any_count` is not set.
    """
    warnings = []
    for what, official in (OFFICIAL | EXPECTED).items():
        if found[what] == official:
            continue
        text = f"{found[what]:,} {what}, the release has {official:,}"
        if what in OFFICIAL and not any_count:
            raise ValueError(f"{text}; download and unpack it again, or give --any-count")
        warnings.append(text)
    return warnings


# --------------------------------------------------------------------------- the videos
def find_videos(folder: Path) -> dict[str, str]:
    """Return name without ending -> path relative to `folder`, of the AVIs below it.

    Raises:
        ValueError: there are none, or two of one name.
    """
    paths = [
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() == ".avi" and not path.name.startswith(".") and path.is_file()
    ]
    if not paths:
        raise ValueError(f"no .avi below {folder}; --videos must be the folder of the videos")
    found = {path.stem: path.as_posix() for path in sorted(paths)}
    twice = sorted(str(path) for path in paths if path.as_posix() != found[path.stem])
    if twice:
        raise ValueError(
            f"{twice[0]} and {found[Path(twice[0]).stem]} have one name, and so have "
            f"{len(twice) - 1} more below {folder}; keep one of each"
        )
    return found


# --------------------------------------------------------------------------- the records
def frames_of(row: Row, authors_shift: bool) -> tuple[int, int]:
    """Return the frames [start, stop), counted from 0, of an interval.

    Args:
        row: counted from 1, its end included.
        authors_shift: take the numbers as if they counted from 0, as the authors' script does:
            each clip begins and ends one frame late.
    """
    late = 1 if authors_shift else 0
    return row.start - 1 + late, row.end + late


def make_record(
    row: Row, path: str, index: FrameIndex | DecodeError | None, authors_shift: bool
) -> VideoRecord:
    """Return the record of an interval, its frames kept within the video.

    Args:
        row: of one of the classes.
        path: of the video.
        index: of the video, or what is wrong with it; None if it is absent.
        authors_shift: as in `frames_of`.
    """
    start, stop = frames_of(row, authors_shift)
    record = VideoRecord(
        path, NAMES.index(row.activity), start, stop, id=f"{row.video}/{row.number:05d}"
    )
    if index is None:
        return record._replace(excluded="absent")
    if isinstance(index, DecodeError):
        return record._replace(excluded=f"unreadable: {index.reason}")
    first, last = max(start, 0), min(stop, index.num_frames)
    if first < last:
        return record._replace(start=first, stop=last)
    reason = f"out of range: frames {row.start} to {row.end} of {index.num_frames}"
    return record._replace(excluded=reason)


def clip_name(record: VideoRecord) -> str:
    """Return the path of a clip below CLIPS_FOLDER.

    The row number in it makes it unique; the frames keep an index that was written with other
    options true.
    """
    activity = NAMES[record.label].replace(" ", "_")
    return f"{record.id}_{activity}_{record.start}-{record.stop}.mp4"


# --------------------------------------------------------------------------- the report
def tell_annotation(report: Report, annotation: Annotation, setup: Mapping[str, list[str]]) -> None:
    """Say which rows are of no class or in no split, and what else is odd."""
    dropped = Counter(row.activity for row in annotation.rows if row.activity not in NAMES)
    report.itemize(
        "activities that are none of the 67 classes, dropped",
        (f"{name!r}: {count:,} intervals" for name, count in sorted(dropped.items())),
    )
    of_sequence = Counter(row.sequence for row in annotation.rows)
    listed = {sequence for sequences in setup.values() for sequence in sequences}
    report.itemize(
        "sequences in no split, not used",
        (
            f"{name}: {count:,} intervals"
            for name, count in of_sequence.items()
            if name not in listed
        ),
    )
    report.itemize(
        "sequences of a split without any interval",
        (
            f"{name} ({split})"
            for split in setup
            for name in setup[split]
            if name not in of_sequence
        ),
    )
    activity = {row.number: row.activity for row in annotation.rows}
    report.itemize(
        "intervals whose attributes say another activity; the named one counts",
        (f"row {number}: {activity[number]!r}, not {names}" for number, names in annotation.odd),
    )
    report.itemize(
        "intervals of the same video, class and start; all are kept", _duplicates(annotation)
    )


def _duplicates(annotation: Annotation) -> list[str]:
    alike = defaultdict(list)
    for row in annotation.rows:
        if row.activity in NAMES:
            alike[row.video, row.activity, row.start].append(row.number)
    return [
        f"{video} {activity} from {start}: rows {', '.join(map(str, numbers))}"
        for (video, activity, start), numbers in alike.items()
        if len(numbers) > 1
    ]


def tell_videos(
    report: Report, indexes: Mapping[str, FrameIndex | DecodeError], frame_rate: float
) -> None:
    """Say which videos can't be read, or were changed."""
    report.itemize(
        "videos that can't be read",
        (
            f"{name}: {index.reason}"
            for name, index in indexes.items()
            if isinstance(index, DecodeError)
        ),
    )
    report.itemize(
        f"videos of another rate than {frame_rate:g} frames a second; frame numbers may be wrong",
        (
            f"{name}: {index.fps:.4g}"
            for name, index in indexes.items()
            if isinstance(index, FrameIndex) and abs(index.fps - frame_rate) > 0.01 * frame_rate
        ),
    )


def tell_splits(
    report: Report,
    splits: Mapping[str, Sequence[VideoRecord]],
    clipped: Mapping[str, Sequence[str]],
) -> None:
    """Say how many of the official records of each split can be used, and why the others can't."""
    for split, notes in clipped.items():
        report.itemize(f"{split} intervals clipped to their video", notes)
    for split, records in splits.items():
        report.itemize(
            f"{split} intervals out of range, excluded",
            (f"{r.id}: {r.excluded}" for r in records if r.excluded.startswith("out of range")),
        )
    kinds = ("absent", "unreadable", "out of range")
    head = f"{'split':6}{'official':>10}{'usable':>10}{'clipped':>10}"
    report.say(head + "".join(f"{kind:>14}" for kind in kinds))
    for split, records in splits.items():
        why = Counter(record.excluded.partition(":")[0] for record in records)
        numbers = f"{split:6}{len(records):>10,}{why['']:>10,}{len(clipped[split]):>10,}"
        report.say(numbers + "".join(f"{why[kind]:>14,}" for kind in kinds))


# --------------------------------------------------------------------------- all of it
def prepare(args: argparse.Namespace) -> None:
    """Read the release, write the index, the list of missing videos and the report.

    Raises:
        ValueError: the release is not as it should be.
        OSError: no room, or no permission.
    """
    report = Report()
    annotation = read_annotation(args.annotation)
    setup = read_setup(args.setup)
    warnings = check_counts(count(annotation, setup), args.any_count)
    report.itemize("warnings", warnings)
    tell_annotation(report, annotation, setup)

    split_of = {sequence: split for split in setup for sequence in setup[split]}
    rows: dict[str, list[Row]] = {split: [] for split in setup}
    for row in annotation.rows:
        if row.activity in NAMES and row.sequence in split_of:
            rows[split_of[row.sequence]].append(row)
    names = list(dict.fromkeys(row.video for split in rows for row in rows[split]))
    videos = find_videos(args.videos)
    missing = [f"{name}.avi" for name in names if name not in videos]
    write_text(args.out / MISSING, "".join(f"{name}\n" for name in missing))
    report.itemize(f"absent videos, listed in {args.out / MISSING}", missing)
    paths = {name: str(args.videos / videos[name]) for name in names if name in videos}
    indexes = scan_videos(paths, args.out, args.workers)
    tell_videos(report, indexes, annotation.frame_rate)

    splits, clipped = make_splits(rows, videos, indexes, args.authors_shift)
    folder = args.videos
    if args.cut:
        every = [record for records in splits.values() for record in records]
        clips = cut_clips(every, args.videos, args.out, args.workers, name=clip_name)
        splits = {name: [clips[each] for each in records] for name, records in splits.items()}
        folder = args.out / CLIPS_FOLDER
    tell_splits(report, splits, clipped)
    variants = {name: {"train": splits["train"], "test": splits[name]} for name in ("test", "val")}
    index = write_index(args.out, "mpiicooking2", folder, variants)
    base = "0, the authors' shift" if args.authors_shift else "1"
    report.say(f"frame numbers of the annotation taken to count from {base}")
    report.say(f"index: {index}")
    report.write(args.out / REPORT)
    print(f"report: {args.out / REPORT}")


def count(annotation: Annotation, setup: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return what there is of the things that OFFICIAL and EXPECTED count."""
    rows = annotation.rows
    found = {f"{split} sequences": len(sequences) for split, sequences in setup.items()}
    return found | {
        "intervals": len(rows),
        "videos": len({row.video for row in rows}),
        "activities": len({row.activity for row in rows}),
        "classes": len(find_classes(annotation)),
        "intervals of the 67 classes": sum(row.activity in NAMES for row in rows),
    }


def make_splits(
    rows: Mapping[str, Sequence[Row]],
    videos: Mapping[str, str],
    indexes: Mapping[str, FrameIndex | DecodeError],
    authors_shift: bool,
) -> tuple[dict[str, list[VideoRecord]], dict[str, list[str]]]:
    """Return the records of each split, and a line for each one that has been clipped."""
    splits: dict[str, list[VideoRecord]] = {split: [] for split in rows}
    clipped: dict[str, list[str]] = {split: [] for split in rows}
    for split, split_rows in rows.items():
        for row in split_rows:
            path = videos.get(row.video, f"{row.video}.avi")
            record = make_record(row, path, indexes.get(row.video), authors_shift)
            splits[split].append(record)
            wanted, got = frames_of(row, authors_shift), (record.start, record.stop)
            if wanted != got:
                clipped[split].append(f"{record.id}: frames {wanted} wanted, {got} there")
    return splits, clipped


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Index the release of MPII Cooking 2.")
    add: Any = parser.add_argument
    add("--videos", type=Path, required=True, help="folder with sNN-dNN-cam-002.avi, any depth")
    add("--annotation", type=Path, required=True, help="attributesAnnotations_MPII-Cooking-2.mat")
    add("--setup", type=Path, required=True, help="folder experimentalSetup")
    add("--out", type=Path, required=True, help="folder to write: DATA.PATH_TO_DATA_DIR")
    add("--cut", action="store_true", help="write a clip of each interval, and index those")
    add("--authors-shift", action="store_true", help="one frame late, as the authors' clips")
    add("--any-count", action="store_true", help="accept other counts than the release's")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the data set."""
    prepare(parse_args(argv))


if __name__ == "__main__":
    run_cli(main)
