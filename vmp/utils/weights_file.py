"""Files of weights of any origin: fetched, told apart by their content, read without running them.

What comes out is names, tensors and plain values; whose names they are is for others to tell.
"""

import logging
import os
import posixpath
import re
import reprlib
import shutil
import stat
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

import numpy as np
import torch
from iopath.common.file_io import file_lock, get_cache_dir
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from vmp.utils.files import read_tensors, sha256_of, write_atomically
from vmp.utils.files import sha256 as hash_bytes
from vmp.utils.numpy_pickle import read_numpy_pickle

logger = logging.getLogger(__name__)

# Under what name files keep their weights, in this order of precedence; without one they are the
# whole. Caffe2's is the last.
CONTAINERS = ("model_state", "model", "state_dict", "model_state_dict", "module", "blobs")
# A server that sends nothing for so long is given up.
_PATIENCE_SECONDS = 60.0
_HEAD_BYTES = 1024
_LONGEST_SAFETENSORS_HEADER = 100_000_000  # the format's own limit
# The number at the start of torch's files that are no zip archives, as a pickle writes it.
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_TAR_MAGIC_AT = 257
_PICKLE = rb"\x80[\x00-\x05]|[}\])]|\([dltciSTUVXIJKMFGNL(}\]q]|[ci][\w.]+\n[\w.]+\n"
# Files that are taken for weights: how they begin, and what they are.
_FOREIGN = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (rb"\s*<|\xef\xbb\xbf\s*<", "a web page: the download failed or needs a login; do it by hand"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "compressed: unpack it first"),
    (rb"\x93NUMPY", "one numpy array (.npy), which has no name: save a dict of arrays"),
    (rb"\x89HDF", "an HDF5 file: convert it to safetensors where it was made"),
    (rb"GGUF", "a GGUF file: convert it to safetensors where it was made"),
    # a version, then any other field of a model
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x3a\x42]", "an ONNX model: take the weights it was made from"),
)
_KINDS = "weights are a file of torch.save, a safetensors file or a pickle of Caffe2"
# Plain values beside the weights are kept if they are no larger than this.
_MOST_ITEMS = 100
_LONGEST_TEXT = 2**20
_DEEPEST = 3


class WeightsFile(NamedTuple):
    """What a file of weights holds.

    Attributes:
        path: the file on this machine.
        format: "torch", "safetensors" or "caffe2" (a pickle of numpy arrays).
        sha256: of the file, hexadecimal.
        tensors: dense, on the CPU, by the names they have in the file.
        facts: plain values beside them, as epoch and config, with numbers of numpy and torch as
            Python's; of a safetensors file its metadata. Nothing large, as an optimizer's state.
    """

    path: Path
    format: str
    sha256: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def read_weights(source: str | Path, sha256: str = "") -> WeightsFile:
    """Read weights; nothing that their file asks for is run.

    Args:
        source: a path, or an http(s) URL, which is fetched once and cached.
        sha256: what the file's SHA-256 must begin with, 8 to 64 hexadecimal digits; "" for any.

    Raises:
        ValueError: there is no such file, its hash is another, it is damaged, no file of weights,
            or asks for something else than tensors, arrays and plain values, which is then named.
    """
    path = _locate(source, sha256)
    digest = _checked_hash(path, sha256, source)
    try:
        kind = _tell(path)
        tensors, facts = _READERS[kind](path)
    except ValueError as error:
        raise ValueError(f"{error}{_origin(source)}") from error
    return WeightsFile(path, kind, digest, tensors, facts)


def fetch(source: str | Path, sha256: str = "") -> Path:
    """Return a file on this machine: `source` itself, or where the URL it is has been cached.

    The cache is iopath's (`$FVCORE_CACHE`, or ~/.torch/iopath_cache). Several processes may ask at
    once: one fetches, the others wait.

    Args:
        source: a path, or an http(s) URL.
        sha256: what the file's SHA-256 must begin with, 8 to 64 hexadecimal digits; "" for any.

    Raises:
        ValueError: there is no such file, it can't be fetched, or its hash is another.
    """
    path = _locate(source, sha256)
    if sha256:
        _checked_hash(path, sha256, source)
    return path


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]
) -> None:
    """Write dense tensors and texts about them, whole or not at all.

    Args:
        path: the file.
        tensors: by name, in any layout and on any device; what shares memory is written twice.
        facts: what the file's metadata says.

    Raises:
        ValueError: a tensor has a layout, type or name that the format can't keep.
    """
    copies = {}
    for name, value in tensors.items():
        _check_dense(f"{path} can't be written", name, value)
        if name == "__metadata__":
            raise ValueError(f"{path} can't be written: no tensor may be named {name}")
        # copies, which share no memory: the format refuses what does
        contiguous = torch.contiguous_format
        copies[name] = value.detach().to("cpu", copy=True, memory_format=contiguous)
    try:
        data = save(copies, dict(facts) or None)
    except KeyError as error:
        raise ValueError(f"{path} can't be written: safetensors has no type {error}") from error
    write_atomically(path, lambda file: file.write(data))


def _is_url(source: str | Path) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(source)) is not None


def _origin(source: str | Path) -> str:
    return f"; it was fetched from {source}: delete it to fetch it again" if _is_url(source) else ""


def _locate(source: str | Path, sha256: str) -> Path:
    """Return the file on this machine; a hash that can't be one is refused before any download."""
    # torchvision and timm publish the first 8 digits, in the name of the file
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise ValueError(
            f"the SHA-256 (TRAIN.INIT_SHA256) is {sha256!r}; it must be 8 to 64 hexadecimal "
            "digits, or empty"
        )
    path = _cached(str(source)) if _is_url(source) else Path(os.path.expanduser(source))
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {_reason(error)}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path} is a folder; name the file of weights in it")
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        raise ValueError(f"{path} is empty; get it again{_origin(source)}")
    return path


def _checked_hash(path: Path, wanted: str, source: str | Path) -> str:
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {_reason(error)}") from error
    if not digest.startswith(wanted.lower()):
        raise ValueError(
            f"{path} has the SHA-256 {digest}, not {wanted.lower()}: it is damaged or another "
            f"file; get it again, or correct the hash{_origin(source)}"
        )
    return digest


def _cached(url: str) -> Path:
    """Return where the file at `url` is cached, and fetch it if it is not."""
    path = _cache_path(url)
    try:
        if not path.is_file():
            logger.info("fetching %s, or waiting for a process that does", url)
            with file_lock(str(path)):
                if not path.is_file():
                    write_atomically(path, lambda file: _receive(url, file))
    except Exception as error:  # the network, the lock and the disk have no common type
        raise ValueError(
            f"{url} can't be fetched ({_reason(error)}); download it by hand and give its path"
        ) from error
    logger.info("%s is cached in %s", url, path)
    return path


def _cache_path(url: str) -> Path:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(f"{url} is no URL ({error}); check it") from error
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{url} can't be fetched: only http:// and https:// can; download it by hand and give "
            "its path"
        )
    if parts.hostname.endswith("dropbox.com") and "dl=0" in parts.query:
        raise ValueError(f"{url} is a page about the file; end the address in dl=1")
    # the hash keeps hosts and queries apart, which iopath's own names do not
    folder = f"{_file_name(parts.hostname)}-{hash_bytes(url.encode())[:8]}"
    name = _file_name(posixpath.basename(parts.path))
    return Path(get_cache_dir()) / folder / (name or "weights")


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+=-]", "_", text)[-100:].lstrip(".")


def _receive(url: str, file: BinaryIO) -> None:
    # not by iopath, whose download has no time limit
    request = urllib.request.Request(url, headers={"User-Agent": "vmp"})
    with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS) as answer:
        shutil.copyfileobj(answer, file, 2**20)
        announced = answer.headers.get("Content-Length")
    if announced is not None and file.tell() != int(announced):
        raise ConnectionError(f"cut short: {file.tell()} of {announced} bytes")
    if not file.tell():
        raise ConnectionError("the answer is empty")


def _reason(error: BaseException) -> str:
    if isinstance(error, HTTPError):
        return f"{error.code} {error.reason}"
    cause = getattr(error, "reason", None)
    if isinstance(cause, BaseException):
        return _reason(cause)
    if isinstance(error, TimeoutError):
        return f"no answer for {_PATIENCE_SECONDS:g} s"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def _tell(path: Path) -> str:
    """Return a file's format by its content.

    Raises:
        ValueError: it is no file of weights; the message says what it is.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    # before the others: its first bytes are a length, and may be like any of theirs
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_SAFETENSORS_HEADER:
        return "safetensors"
    if head.startswith(b"PK"):
        return _tell_zip(path)
    if _TORCH_MAGIC in head[:64]:
        return "torch"
    for pattern, what in _FOREIGN:
        if re.match(pattern, head):
            raise ValueError(f"{path} is no file of weights but {what}")
    if head[_TAR_MAGIC_AT:].startswith(b"ustar"):
        raise ValueError(f"{path} is no file of weights but a tar archive: unpack it first")
    if re.match(_PICKLE, head):
        return "caffe2"
    raise ValueError(f"{path} is of no known format (it begins with {head[:16]!r}); {_KINDS}")


def _tell_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [posixpath.basename(name) for name in archive.namelist()]
    except Exception as error:  # what a damaged archive makes of the reader has no common type
        raise ValueError(f"{path} is a zip archive cut short or damaged; get it again") from error
    if "constants.pkl" in names:
        raise ValueError(
            f"{path} is a TorchScript program, which only runs; if you trust it, load it with "
            "torch.jit.load and save its state_dict() alone"
        )
    if "data.pkl" in names:
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        raise ValueError(f"{path} is a file of numpy's savez (.npz); save a dict of tensors")
    inside = reprlib.repr(names)
    raise ValueError(f"{path} is a zip archive of other things, {inside}: unpack it first")


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return _sort_out(path, read_tensors(path))


def _read_caffe2(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return _sort_out(path, read_numpy_pickle(path))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = file.keys()
            # copies: the others are views of the file, and change with it
            tensors = {name: file.get_tensor(name).clone() for name in names}
            facts = dict(file.metadata() or {})
    except Exception as error:  # its own error has no public base
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is a safetensors file cut short or damaged ({reason}); get it again"
        ) from error
    return _sort_out(path, tensors)[0], facts


_READERS: dict[str, Callable[[Path], tuple[dict[str, Tensor], dict[str, Any]]]] = {
    "torch": _read_torch,
    "caffe2": _read_caffe2,
    "safetensors": _read_safetensors,
}


def _sort_out(path: Path, state: object) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the facts in what a file held."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds no weights by name but a {type(state).__name__}; {_KINDS}")
    found = [name for name in CONTAINERS if _has_tensors(state.get(name))]
    if len(found) > 1:
        logger.warning("%s holds weights under %s: the first are read", path, " and ".join(found))
    entries = state[found[0]] if found else state
    tensors = {}
    for name, value in entries.items():
        tensor = _as_tensor(value, numbers=found[:1] == ["blobs"])
        if tensor is None:
            continue
        if not isinstance(name, str):
            what = f"{_shown(name)}, a {type(name).__name__}"
            raise ValueError(f"{path}: a tensor is named {what}; save it under a text")
        _check_dense(str(path), name, tensor)
        tensors[name] = tensor.detach()
    _check_nothing_is_lost(path, entries, tensors)
    rest = {name: value for name, value in entries.items() if name not in tensors}
    if found:
        rest |= {name: value for name, value in state.items() if name != found[0]}
    return tensors, _facts(rest)


def _has_tensors(state: object) -> bool:
    values = state.values() if isinstance(state, Mapping) else ()
    return any(isinstance(value, Tensor | np.ndarray) for value in values)


def _as_tensor(value: object, numbers: bool) -> Tensor | None:
    """Return a tensor or array as a tensor, and numbers too if `numbers`; None for other things."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)  # its memory is ours, see `read_numpy_pickle`
    fits = isinstance(value, np.generic | float) or isinstance(value, int) and abs(value) < 2**63
    return torch.tensor(value) if numbers and fits else None


def _oddity(value: Tensor) -> str:
    """Return what keeps a tensor from being dense, "" for a dense one."""
    if value.is_quantized:
        return "quantised"
    if value.layout != torch.strided or value.is_nested:
        return "sparse or nested"
    return "on the meta device, without values" if value.device.type == "meta" else ""


def _check_dense(where: str, name: str, value: Tensor) -> None:
    oddity = _oddity(value)
    if oddity:
        raise ValueError(f"{where}: {_shown(name)} is {oddity}; only dense tensors are weights")


def _check_nothing_is_lost(
    path: Path, entries: Mapping[Any, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse a file some or all of whose tensors lie deeper."""
    deeper = [
        _way_to_tensors(name, value)
        for name, value in entries.items()
        if name not in tensors and _holds_tensors(value)
    ]
    if deeper:
        ways = ", ".join(deeper[:3])
        raise ValueError(f"{path} has tensors deeper, in {ways}: save the mapping of those alone")
    if not tensors:
        raise ValueError(
            f"{path} holds no weights: a mapping from names to tensors is needed, by itself or "
            f"under {', '.join(CONTAINERS)}"
        )


def _holds_tensors(value: object) -> bool:
    """Return whether there are tensors at any depth; a file may nest thousands deep, or itself."""
    seen: set[int] = set()
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor | np.ndarray):
            return True
        if id(value) not in seen and isinstance(value, Mapping | list | tuple):
            seen.add(id(value))
            todo.extend(value.values() if isinstance(value, Mapping) else value)
    return False


def _way_to_tensors(name: object, value: object) -> str:
    way = [name]
    while isinstance(value, Mapping) and not _has_tensors(value) and len(way) < 4:
        name, value = next(pair for pair in value.items() if _holds_tensors(pair[1]))
        way.append(name)
    return " / ".join(_shown(part) for part in way)


def _facts(values: Mapping[Any, Any]) -> dict[str, Any]:
    facts = {}
    for name, value in values.items():
        if isinstance(name, str):
            with suppress(_NotPlainError):
                facts[name] = _plain(value)
    return facts


class _NotPlainError(Exception):
    """A value is no plain one, or too large."""


def _plain(value: Any, depth: int = 0) -> Any:
    one = isinstance(value, Tensor) and value.numel() == 1 and not _oddity(value)
    if one or isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str) and len(value) <= _LONGEST_TEXT:
        return value
    small = isinstance(value, Mapping | list | tuple) and len(value) <= _MOST_ITEMS
    if not small or depth == _DEEPEST:
        raise _NotPlainError
    if not isinstance(value, Mapping):
        return [_plain(inner, depth + 1) for inner in value]
    if not all(isinstance(name, str) for name in value):
        raise _NotPlainError
    return {name: _plain(inner, depth + 1) for name, inner in value.items()}


def _shown(name: object) -> str:
    return repr(str(name)[:100])
