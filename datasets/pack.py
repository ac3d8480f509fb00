"""Pack a folder of videos into one file, for clusters that limit the number of files.

    python datasets/pack.py data/hmdb51/videos                    # writes data/hmdb51/videos.h5
    python datasets/pack.py data/hmdb51/videos --out videos.tar
    python datasets/pack.py --verify data/hmdb51/videos.h5

An archive stands for the folder of its name, see "Many files: one archive" in README.md. The videos
are kept as they are, byte by byte. HDF5 holds each as a one-dimensional data set of bytes; tar is
the plain kind, with `<name>.tar.index.json` beside it.
"""

import argparse
import hashlib
import os
import re
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from tqdm import tqdm

from vmp.data.archive import (
    ENDINGS,
    H5_INDEX,
    TAR_INDEX_ENDING,
    DecodeError,
    Entry,
    format_index,
    list_members,
    read_index,
    tar_fingerprint,
)
from vmp.utils.cli import run_cli
from vmp.utils.files import write_atomically

CHUNK_BYTES = 4 * 2**20
# What an archive has around a video, at most: headers, groups, its line in the index.
OVERHEAD_BYTES = 4096
SPARE_BYTES = 2**20

Progress = Callable[[int], object]  # told the number of bytes done


# --------------------------------------------------------------------------- the folder
def list_files(folder: Path) -> dict[str, int]:
    """Return the files of a folder and of those below it, sorted, with their sizes in bytes.

    Names are relative to `folder`. Hidden files and folders are left out; links are followed, to
    files and to folders.

    Raises:
        ValueError: something is neither a file nor a folder, or a link leads to a folder above it.
        OSError: a folder can't be read.
    """
    return dict(_walk(folder, "", (os.path.realpath(folder),)))


def _walk(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield prefix + entry.name, entry.stat().st_size
            continue
        if not entry.is_dir():
            raise ValueError(
                f"{entry.path} is neither a file nor a folder (a link to nothing?); remove it"
            )
        real = os.path.realpath(entry.path)
        if real in above:
            raise ValueError(f"{entry.path} leads to a folder above it, without end; remove it")
        yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, real))


# --------------------------------------------------------------------------- writing
def pack(folder: Path, archive: Path, *, force: bool = False) -> dict[str, Entry]:
    """Pack a folder and verify what was written; the archive is there whole or not at all.

    Args:
        folder: the videos.
        archive: file to write; its ending (.h5, .hdf5, .tar) says which kind.
        force: overwrite what is there.

    Returns:
        Name of each member -> its place and hash.

    Raises:
        ValueError: nothing to pack, no room, a name the archive can't hold, or the archive is
            there already.
        OSError: a file can't be read or written.
    """
    _check_target(folder, archive, force)
    sizes = list_files(folder)
    if not sizes:
        raise ValueError(f"{folder} holds no files; give the folder of the videos")
    total = sum(sizes.values())
    _check_room(archive, total + OVERHEAD_BYTES * len(sizes) + SPARE_BYTES)
    entries: dict[str, Entry] = {}

    def fill(file: BinaryIO) -> None:
        # a second handle on the same file: HDF5 opens files by name only
        write = write_tar if archive.suffix == ".tar" else write_h5
        with _progress(total, f"packing {archive.name}") as progress, _disk_errors(archive):
            entries.update(write(Path(file.name), folder, sizes, progress))
        with _progress(total, f"verifying {archive.name}") as progress:
            damaged = find_damaged(Path(file.name), entries, progress)
        if damaged:
            raise ValueError(f"{damaged[0]} was not written as read; is the disk in order?")
        if archive.suffix == ".tar":  # one that describes an older archive must not be met
            index_of(archive).unlink(missing_ok=True)

    write_atomically(archive, fill)
    if archive.suffix == ".tar":
        index = format_index(entries, tar_fingerprint(str(archive), entries))
        write_atomically(index_of(archive), lambda file: file.write(index))
    return entries


@contextmanager
def _disk_errors(archive: Path) -> Iterator[None]:
    """Make one line of what HDF5 says in several, and name the archive where nothing is named."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.filename:  # one of the files to be packed
            raise
        said = re.search("error message = '(.*?)'", str(error))
        text = getattr(error, "strerror", None) or str(error)
        reason = said[1] if said else " ".join(text.split())
        raise OSError(f"{archive} can't be written ({reason}); is the disk full?") from error


def index_of(archive: Path) -> Path:
    """Return the index that lies beside a tar archive."""
    return archive.with_name(archive.name + TAR_INDEX_ENDING)


def write_h5(
    path: Path, folder: Path, sizes: Mapping[str, int], progress: Progress
) -> dict[str, Entry]:
    """Write an HDF5 archive: a contiguous data set of bytes for each file, and an index.

    Raises:
        ValueError: a name that HDF5 or the index can't hold, or a file that changes meanwhile.
        OSError: a file can't be read or written.
    """
    entries = {}
    for name in sizes:
        check_name(name)
    with h5py.File(path, "w", locking=False) as file:
        for name, size in sizes.items():
            entries[name] = _write_dataset(file, name, size, folder / name, progress)
        file.create_dataset(H5_INDEX, data=np.frombuffer(format_index(entries), dtype=np.uint8))
    return entries


def check_name(name: str) -> None:
    """Check that HDF5 can hold a member of this name.

    Raises:
        ValueError: it can't.
    """
    if name == H5_INDEX:
        raise ValueError(f"a file named {name!r} can't be packed, the index has that name")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(
            f"{name!r} can't be a name in HDF5; it must be relative, without '.' and '..'"
        )


def _write_dataset(file: Any, name: str, size: int, path: Path, progress: Progress) -> Entry:
    link = name if _is_unicode(name) else os.fsencode(name)
    dataset = file.create_dataset(link, shape=(size,), dtype=np.uint8)

    def put(position: int, chunk: bytes) -> None:
        dataset[position : position + len(chunk)] = np.frombuffer(chunk, dtype=np.uint8)

    sha256 = _copy(path, size, put, progress)
    dataset.attrs.update({"sha256": sha256, "size": size})  # for other readers
    return Entry(dataset.id.get_offset() or 0, size, sha256)  # no offset: it has no bytes


def _is_unicode(name: str) -> bool:
    with suppress(UnicodeEncodeError):
        return bool(name.encode())
    return False


def write_tar(
    path: Path, folder: Path, sizes: Mapping[str, int], progress: Progress
) -> dict[str, Entry]:
    """Write a plain tar archive (pax, so that any name and size fits).

    Raises:
        ValueError: a file changes meanwhile.
        OSError: a file can't be read or written.
    """
    entries = {}
    with path.open("wb") as file:
        for name, size in sizes.items():
            file.write(_tar_header(name, size, int((folder / name).stat().st_mtime)))
            offset = file.tell()
            sha256 = _copy(folder / name, size, lambda _, chunk: file.write(chunk), progress)
            file.write(bytes(-size % tarfile.BLOCKSIZE))
            entries[name] = Entry(offset, size, sha256)
        file.write(bytes(2 * tarfile.BLOCKSIZE))  # the mark of its end
        file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
    return entries


def _tar_header(name: str, size: int, modified: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, modified
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _copy(path: Path, size: int, put: Callable[[int, bytes], object], progress: Progress) -> str:
    """Hand the content of a file to `put`, with the position of each part; return its SHA-256.

    Raises:
        ValueError: it is not `size` bytes long any more.
    """
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        # a file that grows is not followed past its size
        while chunk := file.read(min(CHUNK_BYTES, size - done)):
            put(done, chunk)
            digest.update(chunk)
            done += len(chunk)
            progress(len(chunk))
        complete = done == size and not file.read(1)
    if not complete:
        raise ValueError(f"{path} has changed while it was packed; pack when it is complete")
    return digest.hexdigest()


def _check_target(folder: Path, archive: Path, force: bool) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the folder of the videos")
    if not archive.name.endswith(ENDINGS):
        raise ValueError(f"--out {archive} must end with {', '.join(ENDINGS)} (not compressed)")
    if Path(os.path.realpath(archive)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"--out {archive} lies in the folder to be packed; give another place")
    if archive.is_dir():
        raise ValueError(f"--out {archive} is a folder; give the name of a file")
    if archive.exists() and not force:
        raise ValueError(f"{archive} is there already; remove it, or give --force to overwrite it")


def _check_room(archive: Path, needed: int) -> None:
    place = next(folder for folder in archive.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ValueError(
            f"{place} has {_megabytes(free)} free, {_megabytes(needed)} are needed; "
            f"give --out on another disk"
        )


# --------------------------------------------------------------------------- verifying
def find_damaged(path: Path, entries: Mapping[str, Entry], progress: Progress) -> list[str]:
    """Return the names of the members whose bytes do not have the hash of the index.

    Raises:
        OSError: the file can't be read.
    """
    damaged = []
    with path.open("rb") as file:
        for name, entry in entries.items():
            if _hash_of(file, entry, progress) != entry.sha256:
                damaged.append(name)
    return damaged


def _hash_of(file: BinaryIO, entry: Entry, progress: Progress) -> str:
    digest = hashlib.sha256()
    file.seek(entry.offset)
    rest = entry.size
    while chunk := file.read(min(CHUNK_BYTES, rest)):
        digest.update(chunk)
        progress(len(chunk))
        rest -= len(chunk)
    return digest.hexdigest()


def verify(archive: Path) -> list[str]:
    """Compare an archive with the index that `pack` has left.

    Returns:
        What is wrong, a line for each member; empty if all is well.

    Raises:
        ValueError: it is no archive, or has no index.
        DecodeError: it is too damaged to be opened, or its index is.
        OSError: it can't be read.
    """
    if not archive.name.endswith(ENDINGS) or not archive.is_file():
        raise ValueError(
            f"{archive} is no archive; give a file that ends with {', '.join(ENDINGS)}"
        )
    entries = read_index(str(archive))
    if entries is None:
        raise ValueError(
            f"{archive} has no index with hashes to compare with; pack the folder with pack.py"
        )
    total = sum(entry.size for entry in entries.values())
    with _progress(total, f"verifying {archive.name}") as progress:
        damaged = find_damaged(archive, entries, progress)
    problems = [f"{name!r}: its bytes are not those that were packed" for name in damaged]
    try:
        return problems + _compare(entries, list_members(str(archive)))
    except DecodeError as error:  # then there is more to say than which members
        return [*problems, str(error)]


def _compare(entries: Mapping[str, Entry], members: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return where the index and the structure of an archive disagree."""
    problems = []
    for name, entry in entries.items():
        if name not in members:
            problems.append(f"{name!r}: in the index, but not in the archive")
        elif members[name] != (entry.offset, entry.size):
            problems.append(f"{name!r}: the index has another place than the archive")
    extra = [name for name in members if name not in entries]
    return problems + [f"{name!r}: in the archive, but not in the index" for name in extra]


# --------------------------------------------------------------------------- command line
@contextmanager
def _progress(total: int, what: str) -> Iterator[Progress]:
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1000) as bar:
        yield bar.update


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Pack a folder of videos into one file.")
    parser.add_argument("path", type=Path, help="folder to pack; with --verify, an archive")
    parser.add_argument("--out", type=Path, help="archive to write; default: FOLDER.h5")
    parser.add_argument("--force", action="store_true", help="overwrite an archive that is there")
    parser.add_argument("--verify", action="store_true", help="only verify an archive")
    args = parser.parse_args(argv)
    if args.verify and (args.out or args.force):
        parser.error("--verify takes an archive and nothing else; packing verifies by itself")
    return args


def main(argv: list[str] | None = None) -> None:
    """Pack, or verify; say in a few lines how it went and what to do next."""
    args = parse_args(argv)
    if args.verify:
        _report(args.path, verify(args.path))
        return
    folder = Path(os.path.abspath(args.path))  # a name, also for "."; a link keeps its own
    archive = args.out or folder.with_name(folder.name + ENDINGS[0])
    entries = pack(folder, archive, force=args.force)
    print(
        f"{archive}: {len(entries)} files, {_megabytes(sum(e.size for e in entries.values()))}, "
        f"verified"
    )
    print(_next_step(folder, archive))


def _report(archive: Path, problems: list[str]) -> None:
    for problem in problems:
        print(problem)
    if problems:
        raise ValueError(
            f"{archive} is damaged, {len(problems)} problems are listed above; "
            f"copy it again, or pack it again"
        )
    print(f"{archive}: all is well")


def _next_step(folder: Path, archive: Path) -> str:
    wanted = folder.name + archive.suffix
    index = f" and {wanted}{TAR_INDEX_ENDING}" if archive.suffix == ".tar" else ""
    return (
        f"Where the folder {folder.name} would be (beside index.json), put {wanted}{index} instead;"
        f" the folder is then not needed."
    )


if __name__ == "__main__":
    if isinstance(sys.stdout, TextIOWrapper):  # names need not be Unicode
        sys.stdout.reconfigure(errors="backslashreplace")
    # a cluster ends a job so; what is half written is then cleared away
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    run_cli(main)
