"""Make the index of HMDB-51 from the official release; nothing is encoded again.

    python datasets/hmdb51/prepare.py --videos hmdb51_org.rar --splits test_train_splits.rar \
        --out data/hmdb51

The split files alone say which clips there are and of which class; what else lies on the disk
changes nothing. Unpacked videos are read where they are, packed ones are unpacked to OUT/videos,
class by class: a class that is there was unpacked to its end, so a call that was stopped is simply
made again.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from vmp.data.archive import DecodeError
from vmp.data.hmdb51 import NAMES, VARIANTS
from vmp.data.records import SPLITS, VideoRecord
from vmp.data.release import (
    FRAME_INDEX_FOLDER,
    INDEX,
    OFFICIAL_COUNTS,
    scan_videos,
    write_index,
)
from vmp.utils.cli import run_cli
from vmp.utils.files import write_text

# The class stands only in the name of the file. Systems that leave a ._file beside each file make
# it hidden.
SPLIT_FILE = re.compile(r"(?P<name>[^.].*)_test_split(?P<variant>[123])\.txt")
# The last field of a line.
NEITHER, TRAIN, TEST = "0", "1", "2"
FLAGS = dict(zip(SPLITS, (TRAIN, TEST), strict=True))
# Clips of the release that are in neither part of a split.
UNUSED = 1666
# What the archives of the release are called, without the ending.
VIDEO_ARCHIVE, SPLIT_ARCHIVE = "hmdb51_org", "test_train_splits"
ENDINGS = (".rar", ".zip")
# What programs for rar are in; the names of Debian and Ubuntu.
PACKAGES = "libarchive-tools (bsdtar), unrar, or p7zip-full with p7zip-rar (7z)"
# Folders below a given one that are searched.
DEPTH = 3
VIDEO_FOLDER = "videos"
MISSING = "missing.txt"
# What is not taken for a part of the release where it lies in the folder of the index.
OURS = {INDEX, FRAME_INDEX_FOLDER, MISSING, VIDEO_FOLDER}
# Lines printed of a long list.
SHOWN = 10


class Clip(NamedTuple):
    """A clip as the split files list it.

    Attributes:
        folder: name of its class, which is that of its folder.
        name: of the file.
        flags: in the splits 1, 2 and 3, each TRAIN, TEST or NEITHER.
    """

    folder: str
    name: str
    flags: tuple[str, ...]

    @property
    def id(self) -> str:
        """Return class and file name, as a path in the release."""
        return f"{self.folder}/{self.name}"


class Videos(NamedTuple):
    """Where the clips are.

    Attributes:
        root: folder in which the classes lie side by side.
        folders: class -> its folder, for each that was found; in `root`, but for those that had to
            be unpacked from archives between the folders.
    """

    root: Path
    folders: dict[str, Path]

    def path(self, clip: Clip) -> Path:
        """Return where a clip is, or where it would be."""
        return self.folders.get(clip.folder, self.root / clip.folder) / clip.name


# --------------------------------------------------------------------------- split files
def read_splits(path: Path, scratch: Path) -> list[Clip]:
    """Read the 153 split files.

    Args:
        path: their folder, one above it, or the archive of it.
        scratch: folder to unpack to.

    Returns:
        All clips, by class and then as they are listed.

    Raises:
        ValueError: they are not there, or not as they should be.
    """
    if not path.is_dir():
        unpack(path, scratch)
        path, scratch = scratch, scratch / "inner"
    folder = find_folder(path, "split files", lambda folder: any(map(_matches, folder.iterdir())))
    if folder is not None:
        return read_split_files(folder)
    archive = find_archive(path, SPLIT_ARCHIVE)
    if archive is None:
        raise ValueError(
            f"{path} has no files <class>_test_split<1, 2 or 3>.txt; --splits is the folder "
            f"testTrainMulti_7030_splits, or {SPLIT_ARCHIVE}.rar"
        )
    return read_splits(archive, scratch)


def _matches(path: Path) -> re.Match[str] | None:
    return SPLIT_FILE.fullmatch(path.name)


def read_split_files(folder: Path) -> list[Clip]:
    """Read the split files of a folder; other files in it do not matter.

    Raises:
        ValueError: a class that HMDB-51 does not have, a class without all three files, or files
            that contradict each other or are not in the format.
    """
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _matches(path):
            files.setdefault(match["name"], {})[match["variant"]] = path
    unknown = sorted(files.keys() - set(NAMES))
    if unknown:
        raise ValueError(
            f"{folder} has split files of {', '.join(unknown)}, no class of HMDB-51; give the "
            f"folder of its own {SPLIT_ARCHIVE}.rar"
        )
    return [clip for name in NAMES if name in files for clip in _read_class(name, files[name])]


def _read_class(name: str, files: Mapping[str, Path]) -> list[Clip]:
    for variant in VARIANTS:
        if variant not in files:
            raise ValueError(
                f"class {name} has no file {name}_test_split{variant}.txt; get all 153 files again"
            )
    tables = [_read_flags(files[variant]) for variant in VARIANTS]
    for variant, table in zip(VARIANTS, tables, strict=True):
        differing = sorted(table.keys() ^ tables[0].keys())
        if differing:
            raise ValueError(
                f"{files[variant]} and {files[VARIANTS[0]].name} must list the same clips, "
                f"{differing[0]!r} is in one only; get the split files again"
            )
    return [Clip(name, clip, tuple(table[clip] for table in tables)) for clip in tables[0]]


def _read_flags(path: Path) -> dict[str, str]:
    """Return file name of a clip -> flag, of the lines `name flag `."""
    # bytes that are not UTF-8 become what os.listdir makes of them
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    flags: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        name, flag = [*line.strip().rsplit(None, 1), ""][:2]
        if flag not in (NEITHER, TRAIN, TEST) or "/" in name or name in flags:
            raise ValueError(
                f"{path}:{number}: {line!r} must be the name of a clip, once, and 0, 1 or 2; get "
                "the split files again"
            )
        flags[name] = flag
    return flags


def check_counts(clips: Sequence[Clip]) -> None:
    """Compare with the official counts, of every split and of every class in it.

    Raises:
        ValueError: they differ.
    """
    way_out = "get the split files again, or give --any-count if only a part is wanted"
    absent = sorted(set(NAMES) - {clip.folder for clip in clips})
    if absent:
        raise ValueError(
            f"no split files of {len(absent)} of 51 classes, as {absent[0]}; {way_out}"
        )
    for number, variant in enumerate(VARIANTS):
        counts = OFFICIAL_COUNTS["hmdb51"][variant]
        official = {flag: counts[split] for split, flag in FLAGS.items()} | {NEITHER: UNUSED}
        total = Counter(clip.flags[number] for clip in clips)
        if total != official:
            raise ValueError(
                f"split {variant} has {_told(total)} clips, the official one {_told(official)}; "
                f"{way_out}"
            )
        by_class = Counter((clip.folder, clip.flags[number]) for clip in clips)
        train, test = (official[flag] // len(NAMES) for flag in (TRAIN, TEST))  # of each class
        for name in NAMES:
            found = by_class[name, TRAIN], by_class[name, TEST]
            if found != (train, test):
                raise ValueError(
                    f"split {variant} has {found[0]} clips to train and {found[1]} to test of "
                    f"class {name}, the official one {train} and {test}; {way_out}"
                )


def _told(counts: Mapping[str, int]) -> str:
    return f"{counts[TRAIN]} train + {counts[TEST]} test + {counts[NEITHER]} unused"


# --------------------------------------------------------------------------- folders
def find_folder(place: Path, what: str, wanted: Callable[[Path], bool]) -> Path | None:
    """Return the folder that is wanted, `place` or the nearest below it; None if there is none.

    Raises:
        ValueError: there are several equally near; `what` says of what.
    """
    level = [place]
    for _ in range(DEPTH + 1):
        found = [folder for folder in level if wanted(folder)]
        if len(found) > 1:
            raise ValueError(
                f"{place} holds {what} more than once, as {found[0]} and {found[1]}; give one"
            )
        if found:
            return found[0]
        level = [each for folder in level for each in sorted(folder.iterdir()) if _visible(each)]
    return None


def _visible(path: Path) -> bool:
    return path.is_dir() and not _is_hidden(path.name)


def _is_hidden(name: str) -> bool:
    """Return whether a file or folder is one that a system left, not the release."""
    return name.startswith(".") or name == "__MACOSX"


def find_archive(place: Path, stem: str) -> Path | None:
    """Return the rar or zip of a name, in `place` or the nearest below it."""

    def in_folder(folder: Path) -> Path | None:
        return next((path for path in _archive_paths(folder, stem) if path.is_file()), None)

    folder = find_folder(place, stem, lambda folder: in_folder(folder) is not None)
    return None if folder is None else in_folder(folder)


def _archive_paths(folder: Path, stem: str) -> list[Path]:
    return [folder / f"{stem}{ending}" for ending in ENDINGS]


def find_root(place: Path, ignored: Path | None = None) -> Path | None:
    """Return the folder in which the classes lie side by side: folders, or else archives.

    Args:
        place: it, or a folder above it.
        ignored: a folder that is not it.
    """

    def find(kind: str, wanted: Callable[[Path, str], Path | None]) -> Path | None:
        return find_folder(
            place,
            f"the {kind}s of classes",
            lambda root: root != ignored and any(wanted(root, name) for name in NAMES),
        )

    return find("folder", class_folder) or find("archive", class_archive)


def class_folder(root: Path, name: str) -> Path | None:
    """Return the folder with the clips of a class; None if there is none."""
    # some programs unpack hug.rar to hug/hug/
    return next(filter(_has_clips, (root / name, root / name / name)), None)


def class_archive(root: Path, name: str) -> Path | None:
    """Return the rar or zip of a class; None if there is none."""
    return next(filter(Path.is_file, _archive_paths(root, name)), None)


def _has_clips(folder: Path) -> bool:
    return folder.is_dir() and any(_is_clip(path.name) for path in folder.iterdir())


def _is_clip(name: str) -> bool:
    return name.lower().endswith(".avi") and not _is_hidden(name)


# --------------------------------------------------------------------------- videos
def find_videos(source: Path, out: Path, names: Sequence[str]) -> Videos:
    """Find the clips, and unpack to `<out>/videos` what is packed.

    Args:
        source: folder or archive of the videos, as the command line describes it.
        out: folder of the index.
        names: classes wanted.

    Raises:
        ValueError: there is no class, or an archive that can't be unpacked.
    """
    videos = out / VIDEO_FOLDER
    staging = videos / ".unpacking"  # beside them, so that moving is renaming
    found = _collect(source, videos, staging, names)
    shutil.rmtree(staging, ignore_errors=True)
    return found


def _collect(source: Path, videos: Path, staging: Path, names: Sequence[str]) -> Videos:
    """Find the classes in a folder or an archive, or in an archive in there, and so on."""
    if source.is_dir():
        # what was unpacked so far may lie in there too, and be only a part
        root = find_root(source, ignored=videos)
        archive = find_archive(source, VIDEO_ARCHIVE) if root is None else None
        if archive is not None:
            return _collect(archive, videos, staging, names)
        root = root or find_root(source)
        if root is not None:
            return _gather(root, videos, staging, names)
        raise ValueError(
            f"{source} has no folder <class>/ with .avi files, no <class>.rar and no "
            f"{VIDEO_ARCHIVE}.rar; --videos is one of them, or the folder that holds it"
        )
    if all((videos / name).is_dir() for name in names):
        return Videos(videos, {name: videos / name for name in names})
    if kind_of(source) == "zip":
        with opened_zip(source) as file:
            members = _class_members(file.namelist())
            if members:
                return _extract_classes(file, members, videos, names)
    status = source.stat()
    # an archive that was downloaded again is another one
    goal = staging / f"{source.name} {status.st_size} {status.st_mtime_ns}"
    if not goal.is_dir():
        print(f"unpacking {source}")
        with whole_folder(goal) as partial:
            unpack(source, partial)
    return _collect(goal, videos, staging, names)


def _gather(root: Path, videos: Path, staging: Path, names: Sequence[str]) -> Videos:
    """Find the classes in a folder; unpack, or move from `staging`, those that are not usable."""
    folders = {}
    for name in _with_progress(names):
        folder = class_folder(root, name)
        if folder is None or folder.is_relative_to(staging):
            folder = _store(folder or class_archive(root, name), videos / name)
        if folder is not None:
            folders[name] = folder
    used = any(folder.parent != videos for folder in folders.values())
    return Videos(root if used else videos, folders)


def _store(found: Path | None, goal: Path) -> Path | None:
    """Make `goal` the folder of a class, from what was found of it, unless it is there."""
    if goal.is_dir() or found is None:
        return goal if goal.is_dir() else None
    if found.is_dir():
        goal.parent.mkdir(parents=True, exist_ok=True)
        found.replace(goal)
        return goal
    scratch = goal.with_name(f".{goal.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    unpack(found, scratch)
    folder = class_folder(scratch, goal.name) or scratch
    if not _has_clips(folder):
        raise ValueError(f"{found} has no .avi of class {goal.name} in it; get it again")
    folder.replace(goal)
    shutil.rmtree(scratch, ignore_errors=True)
    return goal


def _class_members(members: Iterable[str]) -> dict[str, list[str]]:
    """Return class -> its clips in a zip of class folders.

    Raises:
        ValueError: a class is there more than once.
    """
    folders: dict[PurePosixPath, list[str]] = {}
    for member in members:
        path = PurePosixPath(member)
        hidden = any(map(_is_hidden, path.parts))
        if path.parent.name in NAMES and _is_clip(path.name) and not hidden:
            folders.setdefault(path.parent, []).append(member)
    by_class: dict[str, list[str]] = {}
    for folder, inside in folders.items():
        if folder.name in by_class:
            raise ValueError(f"the zip holds class {folder.name} more than once; unpack it by hand")
        by_class[folder.name] = inside
    return by_class


def _extract_classes(
    file: zipfile.ZipFile, members: Mapping[str, Sequence[str]], videos: Path, names: Sequence[str]
) -> Videos:
    folders = {}
    for name in _with_progress(names):
        goal = videos / name
        if not goal.is_dir() and name in members:
            with whole_folder(goal) as partial:
                _extract(file, members[name], partial)
        if goal.is_dir():
            folders[name] = goal
    return Videos(videos, folders)


def _extract(file: zipfile.ZipFile, members: Sequence[str], folder: Path) -> None:
    """Write members of a zip into a folder, without the folders they have in the zip."""
    for member in members:
        goal = folder / PurePosixPath(member).name
        with file.open(member) as packed, goal.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 2**20)


def _with_progress(names: Sequence[str]) -> Iterator[str]:
    yield from tqdm(names, desc="classes", unit="class")


@contextmanager
def whole_folder(goal: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `goal` if the block ends without an error."""
    partial = goal.with_name(f".{goal.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.replace(goal)


# --------------------------------------------------------------------------- archives
def unpack(archive: Path, folder: Path) -> None:
    """Unpack a rar or zip into a folder, which is made if needed.

    Raises:
        ValueError: it is neither, is damaged, or no program here can unpack it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if kind_of(archive) == "rar":
        _unpack_rar(archive, folder)
        return
    with opened_zip(archive) as file:
        file.extractall(folder)


def kind_of(archive: Path) -> str:
    """Return "rar" or "zip", by what is in the file.

    Raises:
        ValueError: it is neither.
    """
    with archive.open("rb") as file:
        begin = file.read(4)
    if begin == b"Rar!":
        return "rar"
    if begin == b"PK\x03\x04":
        return "zip"
    # a page that says why there is no file is often saved under its name
    raise ValueError(
        f"{archive} is neither a rar nor a zip (it begins with {begin!r}); get it again"
    )


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip none of whose members leaves the folder it is unpacked to.

    Raises:
        ValueError: one does, or the zip is damaged or encrypted.
    """
    try:
        with zipfile.ZipFile(path) as file:
            for member in file.namelist():
                if PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member).parts:
                    raise ValueError(f"{path}: {member!r} would leave the folder; not unpacked")
            yield file
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} can't be unpacked ({error}); get it again") from error


def _unpack_rar(archive: Path, folder: Path) -> None:
    """Unpack a rar by the first program that can: not each reads every kind of rar."""
    failures = []
    for program, arguments in _rar_commands(archive, folder).items():
        found = shutil.which(program)
        if found is None:
            continue
        shutil.rmtree(folder)  # what another program may have left
        folder.mkdir()
        reason = _run([found, *arguments])
        # one that does nothing at all may say that it went well
        if not reason and any(folder.iterdir()):
            return
        failures.append(f"{program}: {reason or 'no file came out'}")
    if not failures:
        raise ValueError(f"no program here unpacks {archive}; install one of {PACKAGES}")
    raise ValueError(
        f"{archive} can't be unpacked ({'; '.join(failures)}); get it again, or install another of "
        f"{PACKAGES}"
    )


def _rar_commands(archive: Path, folder: Path) -> dict[str, list[str]]:
    """Return program -> arguments; both paths are absolute, so none looks like an option.

    bsdtar comes last: it finds a rar that is cut off, but does not compare checksums.
    """
    seven = ["x", "-y", "-bd", f"-o{folder}", "--", str(archive)]
    return {
        "unrar": ["x", "-y", "-p-", "--", str(archive), f"{folder}/"],
        "7zz": seven,
        "7z": seven,
        "bsdtar": ["-x", "-f", str(archive), "-C", str(folder)],
    }


def _run(command: Sequence[str]) -> str:
    """Run a program; return "" or, if it failed, how its errors begin."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,  # it may not ask for a password
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return " ".join(lines[:3]) or f"status {done.returncode}"


# --------------------------------------------------------------------------- index
def make_index(
    videos: Path, splits: Path, out: Path, *, any_count: bool, scan: bool, workers: int
) -> None:
    """Write the index of all three splits, and say what is missing and what is too much.

    Args:
        videos: folder or archive of the videos.
        splits: folder or archive of the split files.
        out: folder to write to, made if needed.
        any_count: do not compare with the official counts.
        scan: look into each video.
        workers: processes of the scan.

    Raises:
        ValueError: files are missing or not as they should be.
    """
    # absolute, so that no path begins with a character that means something to a program
    videos, splits, out = videos.absolute(), splits.absolute(), out.absolute()
    for option, path in (("--videos", videos), ("--splits", splits)):
        if not path.exists():
            raise ValueError(f"{option} {path} does not exist; see datasets/hmdb51/README.md")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".splits-", dir=out) as scratch:
        clips = read_splits(splits, Path(scratch))
    if not any_count:
        check_counts(clips)
    found = find_videos(videos, out, sorted({clip.folder for clip in clips}))
    absent = [clip for clip in clips if not found.path(clip).is_file()]
    if len(absent) == len(clips):
        raise ValueError(f"none of the {len(clips)} clips is in {found.root}; check --videos")
    excluded = dict.fromkeys((clip.id for clip in absent), "absent")
    if scan:
        there = {clip.id: str(found.path(clip)) for clip in clips if clip.id not in excluded}
        seen = scan_videos(there, out, workers)
        wrong = {name: error for name, error in seen.items() if isinstance(error, DecodeError)}
        excluded |= {name: f"unreadable: {error.reason}" for name, error in wrong.items()}
    records = make_records(clips, found, excluded)
    index = write_index(out, "hmdb51", found.root, records)
    report(clips, records, excluded, find_unlisted(clips, found), out)
    print(f"wrote {index}")


def make_records(
    clips: Sequence[Clip], videos: Videos, excluded: Mapping[str, str]
) -> dict[str, dict[str, list[VideoRecord]]]:
    """Return the records by variant and split."""

    def record(clip: Clip) -> VideoRecord:
        path = videos.path(clip)
        if path.is_relative_to(videos.root):
            path = path.relative_to(videos.root)
        label = NAMES.index(clip.folder)
        return VideoRecord(str(path), label, id=clip.id, excluded=excluded.get(clip.id, ""))

    return {
        variant: {
            split: [record(clip) for clip in clips if clip.flags[number] == flag]
            for split, flag in FLAGS.items()
        }
        for number, variant in enumerate(VARIANTS)
    }


def find_unlisted(clips: Sequence[Clip], videos: Videos) -> list[str]:
    """Return what lies among the videos but is in no split file, sorted."""
    ids = {clip.id for clip in clips}
    known = {clip.folder for clip in clips} | OURS
    found = [path.name for path in videos.root.iterdir() if path.name not in known]
    for name, folder in videos.folders.items():
        inside = (f"{name}/{path.name}" for path in folder.iterdir())
        found += [each for each in inside if each not in ids]
    return sorted(found)


def report(
    clips: Sequence[Clip],
    records: Mapping[str, Mapping[str, Sequence[VideoRecord]]],
    excluded: Mapping[str, str],
    unlisted: Sequence[str],
    out: Path,
) -> None:
    """Print the counts, what is missing and what is too much; keep the missing in missing.txt."""
    for variant, by_split in records.items():
        counts = [
            f"{sum(not each.excluded for each in of_split)} of {len(of_split)} {split}"
            for split, of_split in by_split.items()
        ]
        print(f"split {variant}: {', '.join(counts)} clips")
    _print_list("not in any split, left alone", list(map(_printable, unlisted)))
    missing = [
        _printable(f"{clip.id}: {excluded[clip.id]}") for clip in clips if clip.id in excluded
    ]
    if not missing:
        (out / MISSING).unlink(missing_ok=True)
        return
    write_text(out / MISSING, "".join(f"{line}\n" for line in missing))
    _print_list(
        f"warning: missing of {len(clips)} clips, all listed in {out / MISSING}, left out of "
        "training and counted as not evaluated in tests",
        missing,
    )


def _printable(name: str) -> str:
    """Return a name whose bytes that are not UTF-8 are spelt out, so that it can be written."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _print_list(title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    print(f"{title} ({len(lines)}):", *lines[:SHOWN], *more, sep="\n  ")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make the index of HMDB-51.")
    parser.add_argument(
        "--videos",
        type=Path,
        required=True,
        help="hmdb51_org.rar, a folder of the 51 class rars, one of class folders, or a zip of any",
    )
    parser.add_argument(
        "--splits",
        type=Path,
        required=True,
        help="testTrainMulti_7030_splits, a folder that holds it, or test_train_splits.rar or .zip",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--any-count", action="store_true", help="accept a part of the release")
    parser.add_argument("--scan", action="store_true", help="look into each video")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes of the scan"
    )
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Make the index."""
    args = parse_args(argv)
    make_index(
        args.videos,
        args.splits,
        args.out,
        any_count=args.any_count,
        scan=args.scan,
        workers=args.workers,
    )


if __name__ == "__main__":
    run_cli(main)
