"""Files that are either whole or not there, and what identifies them."""

import hashlib
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from vmp.utils.numpy_pickle import NUMPY_SCALARS


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that appears at `path` only when it is complete and on the disk.

    A kill or a full disk leaves the file that was there before. The folder is made if needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def make_folder_of(path: Path) -> None:
    """Make the folder of a file that is to be written once long work is done.

    Raises:
        ValueError: it can't be made, or not be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path} can't be written: {error}; name another file") from error
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path} can't be written: {path.parent} is not yours to write to")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal.

    Raises:
        OSError: it can't be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def read_tensors(path: str | Path) -> Any:
    """Read what `torch.save` wrote, tensors and plain values, onto the CPU.

    Nothing in the file is executed: other things than tensors, plain values and numpy's scalars are
    refused. A type of numpy, which is no value, comes back as an inert `NumpyType`.

    Raises:
        ValueError: it is missing, damaged, or holds something else, which is then named.
    """
    import torch  # takes a second, and a program that only writes its text does without

    admitted: list[Any] = [(stand_in, name) for name, stand_in in NUMPY_SCALARS.items()]
    try:
        _check_sums(path)
        with torch.serialization.safe_globals(admitted):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror or error}") from error
    except Exception as error:  # what a damaged file makes of the unpickler has no common type
        raise ValueError(f"{path} {_complaint(error)}") from error


def _check_sums(path: str | Path) -> None:
    """Read the members of torch's zip archive against their checksums, which torch doesn't."""
    if not zipfile.is_zipfile(path):  # torch's old format has none
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.CRC:  # as torch leaves it if told to save time
                continue
            with archive.open(member) as file:
                while file.read(2**20):
                    pass


def _complaint(error: Exception) -> str:
    """Return what is wrong with a file of torch's, after its name.

    torch's own text is long, and advises to run what is in the file.
    """
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]*\w)\s", text)  # what ends in a dot was cut short
    if asked:
        return (
            f"asks for {asked[1][:200]}, which is neither a tensor nor a plain value; if you trust "
            "it, load it where it was made and save its state_dict() alone"
        )
    if "Unsupported operand" in text:
        return (
            "is damaged, or was saved with another pickle protocol than 2; save it anew with "
            "torch.save and its default protocol"
        )
    reason = text.partition("\n")[0] or type(error).__name__
    if reason.startswith("Weights only load failed"):
        reason = "its pickle is wrong"
    return f"is damaged or no file of weights ({reason[:200]}); get it again"
