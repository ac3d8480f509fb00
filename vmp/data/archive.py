"""Where the bytes of a video lie: a file of its own, or a part of an archive that holds many.

Clusters limit the number of files. An archive, one HDF5 or one uncompressed tar file, stands for
the folder of its name: where there is no `/data/videos/hug/x.avi`, the member `hug/x.avi` of
`/data/videos.h5` is read. The bytes of a member are one stretch of the archive, which the decoder
reads in place. What is kept of an archive is a table of plain numbers, never an open handle, so a
process may be forked at any time.
"""

import functools
import hashlib
import io
import json
import logging
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import numpy as np

logger = logging.getLogger(__name__)

# In this order, where there are several of one name.
ENDINGS = (".h5", ".hdf5", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# The index that datasets/pack.py leaves: a data set in the HDF5 file, a file beside the tar.
H5_INDEX = "__index__"
TAR_INDEX_ENDING = ".index.json"
_FORMAT = "vmp archive 1"
# Members whose places are compared with the index, to know one that belongs to another archive.
_SAMPLED = 16
_CACHED_ARCHIVES = 256
_CACHED_MEMBERS = 2**16
# An HDF5 data set that is not in one piece is read as a whole, up to so many bytes.
_IN_MEMORY_BYTES = 2**30
# Offset of a member whose bytes are not in one piece.
_SCATTERED = -1
_TAR_BLOCK = 512
# Bytes at both ends of a video that, with its size, tell it from others.
_FINGERPRINT_BYTES = 65536
_FINGERPRINT_PARTS = 64
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_WHY_NOT_COMPRESSED = "compressed, so no member can be read alone; make an uncompressed .tar of it"

Place = tuple[int, int]  # offset, size
T = TypeVar("T")


class DecodeError(Exception):
    """A file from which the frames wanted can't be had.

    Attributes:
        path: the file.
        reason: what went wrong, one line.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it can be pickled by a worker
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Source(NamedTuple):
    """The bytes of one video.

    Attributes:
        path: the video as it was asked for; what messages name.
        file: the file that holds the bytes.
        offset: where they begin.
        size: how many they are.
        data: the bytes themselves, if they are not in one piece in `file`.
    """

    path: str
    file: str
    offset: int
    size: int
    data: bytes | None = None

    @property
    def url(self) -> str | None:
        """Return what FFmpeg opens: the file, or its `subfile` protocol for a part of one.

        None if the bytes are in memory; `open` always works.
        """
        if self.data is not None:
            return None
        # the protocol is named, or else a name with a colon would be taken for one
        if self.path == self.file:
            return f"file:{self.file}"
        return f"subfile,,start,{self.offset},end,{self.offset + self.size},,:file:{self.file}"

    def open(self) -> BinaryIO:
        """Return the bytes as a file open for reading, from 0 to `size`.

        Raises:
            OSError: the file can't be opened any more.
        """
        if self.data is not None:
            return io.BytesIO(self.data)
        if self.path == self.file:
            return open(self.file, "rb")
        return cast(BinaryIO, io.BufferedReader(_Part(self.file, self.offset, self.size)))

    def fingerprint(self) -> str:
        """Return what tells these bytes from others, wherever they lie: how many, and some of them.

        These are both ends and small parts in between, not everything: a file may have many GB.

        Raises:
            OSError: they can't be read.
        """
        with self.open() as file:
            digest = hashlib.sha256(str(self.size).encode() + file.read(_FINGERPRINT_BYTES))
            for part in range(1, _FINGERPRINT_PARTS):
                file.seek(self.size * part // _FINGERPRINT_PARTS)
                digest.update(file.read(4096))
            file.seek(max(self.size - _FINGERPRINT_BYTES, 0))
            digest.update(file.read(_FINGERPRINT_BYTES))
        return digest.hexdigest()[:32]


class _Part(io.RawIOBase):
    """A stretch of a file, read as if it were a file."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        self._file = io.FileIO(path)
        self._offset, self._size, self._position = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer) as view:
            wanted = min(view.nbytes, max(0, self._size - self._position))
            self._file.seek(self._offset + self._position)
            count = self._file.readinto(view.cast("B")[:wanted])
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"seek to {base + offset}, before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._file.close()
        super().close()


class Entry(NamedTuple):
    """A member as the index of an archive describes it.

    Attributes:
        offset: where its bytes begin in the archive.
        size: how many they are.
        sha256: of the bytes, hexadecimal.
    """

    offset: int
    size: int
    sha256: str


def locate(path: str) -> Source:
    """Find the bytes of a video.

    A file of its own comes first. Otherwise the nearest folder above it decides that either is an
    archive itself (`/data/a.tar/x.avi`) or has one of its name beside it (`/data/a.tar` for
    `/data/a/x.avi`). In a member's name the archive's own may come first: `tar cf a.tar a`
    makes such archives.

    Raises:
        DecodeError: there is no such video, it is not a regular file, or its archive is damaged.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        return _locate_member(path, error)
    except OSError as error:
        raise DecodeError(path, error.strerror or str(error)) from error
    except ValueError as error:  # a NUL in the name
        raise DecodeError(path, str(error)) from error
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device may never end
        raise DecodeError(path, "not a regular file")
    return Source(path, path, 0, status.st_size)


def _locate_member(path: str, missing: OSError) -> Source:
    archive, member = _archive_of(path)
    if not archive:
        raise DecodeError(path, _why_missing(path, missing)) from missing
    name = os.path.basename(archive).rpartition(".")[0]
    try:
        state = os.stat(archive)
        for known_as in (member, f"{name}/{member}"):
            place = _find(archive, state.st_size, state.st_mtime_ns, known_as)
            if place is not None:
                return _source(path, archive, known_as, place, state.st_size)
    except DecodeError as error:
        raise DecodeError(path, str(error)) from error
    except OSError as error:
        raise DecodeError(path, f"{archive}: {error.strerror or error}") from error
    raise DecodeError(path, f"{archive} has no member {member!r}")


def _archive_of(path: str) -> tuple[str, str]:
    """Return the archive that a path leads into and the name of the member; "" if there is none."""
    whole = os.path.abspath(path)
    folder = os.path.dirname(whole)
    while folder != os.path.dirname(folder):  # the root has no name
        itself = (folder,) if folder.endswith(ENDINGS + COMPRESSED) else ()
        for archive in (*itself, *(folder + ending for ending in ENDINGS)):
            if os.path.isfile(archive):
                return archive, whole[len(folder) + 1 :]
        folder = os.path.dirname(folder)
    return "", ""


def _why_missing(path: str, missing: OSError) -> str:
    for folder in Path(path).parents:
        if folder.name.endswith(ENDINGS + COMPRESSED) and not folder.exists():
            return f"there is no archive {folder}"
    return missing.strerror or str(missing)


def _find(archive: str, size: int, mtime_ns: int, member: str) -> Place | None:
    if archive.endswith(COMPRESSED):
        raise DecodeError(archive, _WHY_NOT_COMPRESSED)
    if archive.endswith(".tar"):
        table = _tar_table(archive, size, mtime_ns)
        if isinstance(table, str):
            raise DecodeError(archive, table)
        return table.get(member)
    places = _h5_table(archive, size, mtime_ns)
    if places is not None:
        return places.get(member)
    return _h5_single(archive, size, mtime_ns, member)


def _source(path: str, archive: str, member: str, place: Place, archive_size: int) -> Source:
    offset, size = place
    if offset == _SCATTERED:
        with _opened_h5(archive) as file:
            data = _h5_bytes(archive, file, member)
        return Source(path, archive, 0, len(data), data)
    if offset + size > archive_size:
        raise DecodeError(archive, f"{member!r} ends past its end; copy or pack it again")
    if size == 0:  # no stretch of a file, and FFmpeg takes `end,0` for its end
        return Source(path, archive, 0, 0, b"")
    return Source(path, archive, offset, size)


def list_members(archive: str) -> dict[str, Place]:
    """Return the members of an archive as its own structure has them, whatever its index says.

    What is not in one piece has offset -1.

    Raises:
        DecodeError: the archive is damaged or compressed.
        OSError: it can't be read.
    """
    if archive.endswith(".tar"):
        return _scan_tar(archive)
    return _scan_h5(archive)


def read_index(archive: str) -> dict[str, Entry] | None:
    """Return the index that datasets/pack.py has left in or beside an archive; None: there is none.

    Raises:
        DecodeError: the index is damaged, or the archive is.
        OSError: it can't be read.
    """
    if archive.endswith(".tar"):
        data = _tar_index(archive)
    else:
        with _opened_h5(archive) as file:
            data = _h5_index(archive, file)
    return None if data is None else _parse_index(archive, data)[0]


def format_index(entries: Mapping[str, Entry], fingerprint: str = "") -> bytes:
    """Return the bytes of an index; `fingerprint`: that of a tar archive."""
    content = {"format": _FORMAT, "fingerprint": fingerprint, "members": entries}
    return json.dumps(content).encode()


def _parse_index(archive: str, data: bytes) -> tuple[dict[str, Entry], str]:
    """Return the members, and the fingerprint of the archive."""
    try:
        content = json.loads(data)
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}")
        members = {name: Entry(*row) for name, row in content["members"].items()}
        numbers = [number for entry in members.values() for number in entry[:2]]
        if not all(isinstance(number, int) and 0 <= number < 2**63 for number in numbers):
            raise ValueError("places that are no places")
        return members, content["fingerprint"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"its index is damaged ({type(error).__name__}: {error})"
        raise DecodeError(archive, reason) from error


def _places(entries: Mapping[str, Entry]) -> dict[str, Place]:
    return {name: (entry.offset, entry.size) for name, entry in entries.items()}


def _sample(items: Sequence[T]) -> list[T]:
    """Return the first, the last and some between."""
    return [*items[:: max(1, len(items) // _SAMPLED)], *items[-1:]]


# --------------------------------------------------------------------------- tar
@functools.lru_cache(maxsize=_CACHED_ARCHIVES)
def _tar_table(archive: str, size: int, mtime_ns: int) -> dict[str, Place] | str:
    """Return the members of a tar archive, or what is wrong with it.

    That is an answer too, or a long archive would be read through again for each of its videos;
    an OSError may be gone the next time.
    """
    try:
        places = _fitting_tar_index(archive)
        return _scan_tar(archive) if places is None else places
    except DecodeError as error:
        return error.reason


def _fitting_tar_index(archive: str) -> dict[str, Place] | None:
    data = _tar_index(archive)
    if data is None:
        logger.info("%s has no index; datasets/pack.py makes archives that open faster", archive)
        return None
    try:
        entries, fingerprint = _parse_index(archive, data)
        fits = tar_fingerprint(archive, entries) == fingerprint
    except DecodeError:
        fits = False
    if not fits:
        logger.warning("%s: %s is not its index, so not used", archive, archive + TAR_INDEX_ENDING)
        return None
    return _places(entries)


def _tar_index(archive: str) -> bytes | None:
    try:
        with open(archive + TAR_INDEX_ENDING, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def tar_fingerprint(archive: str, entries: Mapping[str, Entry]) -> str:
    """Return what tells a tar archive from others: its size and headers of members here and there.

    Raises:
        OSError: it can't be read.
    """
    with open(archive, "rb") as file:
        digest = hashlib.sha256(str(file.seek(0, os.SEEK_END)).encode())
        for entry in _sample(list(entries.values())):
            file.seek(max(0, entry.offset - _TAR_BLOCK))
            digest.update(file.read(_TAR_BLOCK))
    return digest.hexdigest()


def _scan_tar(archive: str) -> dict[str, Place]:
    """Find the regular files in a tar archive by reading all headers."""
    with open(archive, "rb") as file:
        if file.read(8).startswith(_MAGIC):
            raise DecodeError(archive, _WHY_NOT_COMPRESSED)
        file.seek(0)
        try:
            places, others = _read_headers(file)
        # the last three: numbers in headers that are none
        except (tarfile.TarError, ValueError, OverflowError, MemoryError) as error:
            raise DecodeError(
                archive, f"no whole tar archive ({_brief(error)}); copy or pack it again"
            ) from error
    logger.info("%s: %d files, %d links and other things left out", archive, len(places), others)
    return places


def _read_headers(file: BinaryIO) -> tuple[dict[str, Place], int]:
    """Return the places of the regular files, and how many other members there are."""
    size = os.fstat(file.fileno()).st_size
    places: dict[str, Place] = {}
    others = 0
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
            name = posixpath.normpath(info.name)
            outside = name.startswith(("/", "../")) or name in (".", "..")
            if info.isreg() and not info.issparse() and not outside:
                places[name] = info.offset_data, info.size
            elif not info.isdir():
                others += 1
            if info.size < 0 or (info.isreg() and info.offset_data + info.size > size):
                raise ValueError(f"cut off in {info.name!r}")
        # a broken header ends the walk in silence
        file.seek(tar.offset)
        if file.read(_TAR_BLOCK) != bytes(_TAR_BLOCK):
            raise ValueError(f"cut off or broken at byte {tar.offset}")
    return places, others


# --------------------------------------------------------------------------- HDF5
@functools.lru_cache(maxsize=_CACHED_ARCHIVES)
def _h5_table(archive: str, size: int, mtime_ns: int) -> dict[str, Place] | None:
    """Return all members of an HDF5 archive by its index; None if it has none that fits."""
    with _opened_h5(archive) as file:
        data = _h5_index(archive, file)
        if data is None:
            logger.info(
                "%s has no index; datasets/pack.py makes archives that open faster", archive
            )
            return None
        try:
            places = _places(_parse_index(archive, data)[0])
        except DecodeError as error:
            logger.warning("%s; not used", error)
            return None
        found = [(_h5_place(archive, file, name), name) for name in _sample(list(places))]
    # a tool that rewrites the file moves the data but keeps the index as it was
    if any(place != places[name] for place, name in found):
        logger.warning("%s: its index is out of date, so not used", archive)
        return None
    return places


@functools.lru_cache(maxsize=_CACHED_MEMBERS)
def _h5_single(archive: str, size: int, mtime_ns: int, member: str) -> Place | None:
    """Return the place of one member of an HDF5 archive that has no index."""
    with _opened_h5(archive) as file:
        return _h5_place(archive, file, member)


def _h5_index(archive: str, file: Any) -> bytes | None:
    return None if _h5_dataset(file, H5_INDEX) is None else _h5_bytes(archive, file, H5_INDEX)


def _scan_h5(archive: str) -> dict[str, Place]:
    """Find the data sets in an HDF5 file by walking its groups."""
    import h5py

    places: dict[str, Place] = {}
    with _opened_h5(archive) as file:
        waiting = [("", file["/"].id)]
        seen = {h5py.h5o.get_info(file.id).addr}  # groups may hold each other
        while waiting:
            folder, group = waiting.pop()
            for part in group:
                name = folder + part.decode("utf-8", "surrogateescape")
                node = _h5_child(group, part)
                if isinstance(node, h5py.h5d.DatasetID) and name != H5_INDEX:
                    places[name] = _h5_place_of(archive, node, name)
                elif isinstance(node, h5py.h5g.GroupID) and _is_new(node, seen):
                    waiting.append((name + "/", node))
    return places


def _is_new(group: Any, seen: set[int]) -> bool:
    import h5py

    address = h5py.h5o.get_info(group).addr
    new = address not in seen
    seen.add(address)
    return new


def _h5_place(archive: str, file: Any, member: str) -> Place | None:
    """Return where a member lies in an open HDF5 file; None: there is none of this name."""
    dataset = _h5_dataset(file, member)
    return None if dataset is None else _h5_place_of(archive, dataset, member)


def _h5_dataset(file: Any, member: str) -> Any:
    import h5py

    node = file["/"].id
    for part in member.encode("utf-8", "surrogateescape").split(b"/"):
        if not isinstance(node, h5py.h5g.GroupID) or not node.links.exists(part):
            return None
        node = _h5_child(node, part)
    return node if isinstance(node, h5py.h5d.DatasetID) else None


def _h5_child(group: Any, name: bytes) -> Any:
    """Open what a group holds; None for links, which could lead into any file."""
    import h5py

    if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        return None
    return h5py.h5o.open(group, name)


def _h5_place_of(archive: str, dataset: Any, member: str) -> Place:
    """Return where the bytes of a data set lie, if they are those of a file.

    That is an array of bytes, as datasets/pack.py writes, one string of fixed length, as the
    authors' files have, or an opaque value. Padding of a string counts: it may be the file's.
    """
    import h5py

    kind, layout = dataset.get_type(), dataset.get_create_plist()
    opaque = kind.get_class() == h5py.h5t.OPAQUE
    string = kind.get_class() == h5py.h5t.STRING and not kind.is_variable_str()
    byte = kind.get_class() == h5py.h5t.INTEGER and kind.get_size() == 1
    if not (opaque or string or byte):
        raise DecodeError(archive, f"{member!r} holds values of another kind than bytes of a file")
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        raise DecodeError(archive, f"{member!r} leads into another file; that is not followed")
    size = kind.get_size() * dataset.get_space().get_simple_extent_npoints()
    if size == 0:
        return 0, 0
    offset = dataset.get_offset()
    if offset is None and size > _IN_MEMORY_BYTES:
        raise DecodeError(archive, f"{member!r} has {size} bytes that are not in one piece")
    return (_SCATTERED if offset is None else offset), size


def _h5_bytes(archive: str, file: Any, member: str) -> bytes:
    """Read a data set into memory as it is stored."""
    import h5py

    dataset = _h5_dataset(file, member)
    _, size = _h5_place_of(archive, dataset, member)
    kind = dataset.get_type()
    data = np.zeros(size // kind.get_size(), dtype=f"V{kind.get_size()}")
    if size:
        # with the type it has in the file nothing is converted, and no NUL is taken for an end
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, data.reshape(dataset.shape), mtype=kind)
    return bytes(data.tobytes())


@contextmanager
def _opened_h5(archive: str) -> Iterator[Any]:
    import h5py  # slow to import, and needed by few

    try:
        # nobody writes to an archive, and some network file systems have no locks
        with h5py.File(archive, "r", locking=False) as file:
            yield file
    except PermissionError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, MemoryError) as error:
        raise DecodeError(
            archive, f"no whole HDF5 file ({_brief(error)}); copy or pack it again"
        ) from error


def _brief(error: Exception) -> str:
    """Return the message of an error as one line."""
    text = str(error.args[0]) if error.args else type(error).__name__
    return " ".join(text.split())
