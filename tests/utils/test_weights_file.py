"""Files of weights: told apart by content, read exactly, and each wrong one named in one line."""

import gzip
import hashlib
import io
import multiprocessing
import os
import pickle
import random
import re
import socket
import subprocess
import tarfile
import threading
import time
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from vmp.utils import weights_file
from vmp.utils.weights_file import fetch, read_weights, write_safetensors

WEIGHTS = OrderedDict(
    {
        "s1.conv.weight": torch.arange(24.0).reshape(2, 3, 4),
        "s1.bn.num_batches_tracked": torch.tensor(7),
        "half": torch.tensor([0.1, -2], dtype=torch.float16),
        "brain": torch.tensor([[0.1], [1e30]], dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }
)
ARRAYS = {"conv1_w": np.arange(6, dtype="f4").reshape(2, 3), "res_conv1_bn_s": np.ones(2)}
LEGACY = {"_use_new_zipfile_serialization": False}


def saved(state, **kwargs) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **kwargs)
    return buffer.getvalue()


def as_safetensors(tensors, facts) -> bytes:
    return weights_file.save({name: value.contiguous() for name, value in tensors.items()}, facts)


def write(folder: Path, data: bytes, name: str = "weights.pyth") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def assert_same(tensors, expected) -> None:
    assert list(tensors) == list(expected)
    for name, value in expected.items():
        other = tensors[name]
        assert type(other) is torch.Tensor
        assert other.dtype == value.dtype
        assert torch.equal(other, value)


@pytest.mark.parametrize("kwargs", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("container", [*weights_file.CONTAINERS, None])
def test_a_torch_file_gives_its_tensors_whatever_container_they_are_in(tmp_path, kwargs, container):
    state = {container: WEIGHTS} if container else WEIGHTS
    data = saved(state, **kwargs)
    # the suffix says nothing
    file = read_weights(write(tmp_path, data, "weights.pkl"))
    assert (file.path, file.format) == (tmp_path / "weights.pkl", "torch")
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert file.facts == {}
    assert_same(file.tensors, WEIGHTS)


def test_the_facts_beside_the_weights_are_plain_and_small(tmp_path):
    state = {
        "model_state": WEIGHTS,
        "epoch": np.int64(195),
        "best": torch.tensor(0.5),
        "loss": np.float32(0.25),
        "cfg": "MODEL:\n  ARCH: x3d\n",
        "hyper": {"widths": (24, 48), "name": None, "nested": {"on": True}},
        "dtype": np.dtype("f4"),
        "history": list(range(1000)),
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []},
        3: "three",
    }
    for kwargs in ({}, LEGACY):
        file = read_weights(write(tmp_path, saved(state, **kwargs)))
        assert_same(file.tensors, WEIGHTS)
        assert file.facts == {
            "epoch": 195,
            "best": 0.5,
            "loss": 0.25,
            "cfg": "MODEL:\n  ARCH: x3d\n",
            "hyper": {"widths": [24, 48], "name": None, "nested": {"on": True}},
        }
        assert type(file.facts["epoch"]) is int


def test_parameters_come_out_as_tensors_without_gradients(tmp_path):
    state = {"state_dict": {"w": nn.Parameter(torch.ones(2))}}
    tensor = read_weights(write(tmp_path, saved(state))).tensors["w"]
    assert type(tensor) is torch.Tensor
    assert not tensor.requires_grad


def test_a_config_named_like_a_container_does_not_hide_the_weights(tmp_path):
    state = {"model": {"name": "x3d"}, "state_dict": WEIGHTS}
    file = read_weights(write(tmp_path, saved(state)))
    assert_same(file.tensors, WEIGHTS)
    assert file.facts == {"model": {"name": "x3d"}}


def test_of_two_containers_the_one_that_is_read_is_told(tmp_path, caplog):
    state = {"module": {"b": torch.zeros(1)}, "model": {"a": torch.zeros(1)}}
    assert list(read_weights(write(tmp_path, saved(state))).tensors) == ["a"]
    assert "under model and module: the first are read" in caplog.text


@pytest.mark.parametrize("protocol", range(6))
def test_a_caffe2_pickle_gives_its_arrays_and_numbers_as_tensors(tmp_path, protocol):
    blobs = {**ARRAYS, "lr": 0.1, "model_iter": np.int64(9), "order": "NCTHW"}
    data = pickle.dumps({"blobs": blobs, "cfg": "A: 1"}, protocol)
    file = read_weights(write(tmp_path, data))
    assert file.format == "caffe2"
    assert file.facts == {"order": "NCTHW", "cfg": "A: 1"}
    expected = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    assert_same(file.tensors, expected | {"lr": torch.tensor(0.1), "model_iter": torch.tensor(9)})
    file.tensors["conv1_w"].zero_()  # it can be written to


def test_a_pickle_may_be_a_bare_dict_of_arrays(tmp_path):
    file = read_weights(write(tmp_path, pickle.dumps(ARRAYS | {"epoch": 3}, 2)))
    assert list(file.tensors) == list(ARRAYS)
    assert file.facts == {"epoch": 3}


def test_safetensors_come_back_bit_for_bit_with_their_metadata(tmp_path):
    path = tmp_path / "folder" / "out.safetensors"
    shared = torch.arange(8.0)
    tensors = dict(WEIGHTS) | {
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "channels last": torch.rand(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "a part": shared[2:5],
        "the whole": shared,
        "again": shared,
        "expanded": torch.ones(1).expand(4),
        "nan": torch.tensor([float("nan")]),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "trained": nn.Parameter(torch.ones(2)),
    }
    write_safetensors(path, tensors, {"source": "pyslowfast", "recipe": "X3D_M"})
    file = read_weights(path)
    assert file.format == "safetensors"
    assert file.facts == {"source": "pyslowfast", "recipe": "X3D_M"}
    assert sorted(file.tensors) == sorted(tensors)
    for name, value in tensors.items():
        other = file.tensors[name]
        assert (other.dtype, other.shape) == (value.dtype, value.shape)
        raw = [each.detach().contiguous().flatten().view(torch.uint8) for each in (other, value)]
        assert torch.equal(*raw), name
    assert list(path.parent.iterdir()) == [path]


def test_what_was_read_from_safetensors_outlives_the_file(tmp_path):
    path = tmp_path / "w"
    write_safetensors(path, {"w": torch.ones(1000)}, {})
    tensors = read_weights(path).tensors
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert tensors["w"].sum() == 1000


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": torch.ones(2).to_sparse()}, "'w' is sparse or nested"),
        ({"w": torch.ones(2, device="meta")}, "'w' is on the meta device"),
        ({"w": torch.ones(2, dtype=torch.complex128)}, "has no type torch.complex128"),
        ({"__metadata__": torch.ones(2)}, "no tensor may be named __metadata__"),
    ],
)
def test_what_safetensors_can_not_keep_is_refused_and_nothing_written(tmp_path, tensors, message):
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "out", {"fine": torch.ones(1), **tensors}, {})
    assert not list(tmp_path.iterdir())


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pyth"))
    return buffer.getvalue()


def through_numpy(save, *args, **kwargs) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *args, **kwargs)
    return buffer.getvalue()


def hdf5() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["w"] = np.ones(2)
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), buffer)
    return buffer.getvalue()


def flipped(data: bytes, inside: bytes) -> bytes:
    """Return `data` with a bit of the first stretch `inside` turned over."""
    at = data.index(inside)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def nested(depth: int):
    state = torch.zeros(1)
    for _ in range(depth):
        state = [state]
    return state


SAFE = as_safetensors(WEIGHTS, {"a": "b"})
HEADER = int.from_bytes(SAFE[:8], "little")
DATA = WEIGHTS["s1.conv.weight"].numpy().tobytes()
ONE = torch.zeros(1)

# What a wrong file holds, made when it is wanted, and what is said of it.
WRONG = {
    "a web page": (lambda: b"<!DOCTYPE html><html>404</html>", "a web page: the download failed"),
    "a web page, late": (lambda: b"\n\n <html><body>Log in", "a web page"),
    "XML": (lambda: b"\xef\xbb\xbf<?xml version='1.0'?><Error>AccessDenied", "a web page"),
    "a LFS pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "a Git LFS pointer.*git lfs pull",
    ),
    "gzip": (lambda: gzip.compress(saved(WEIGHTS)), "compressed: unpack it first"),
    "tar": (tarred, "a tar archive: unpack it first"),
    "zip of others": (lambda: zipped(a=b"1", b=b"2"), r"a zip archive of other things, \['a', 'b'"),
    "an empty zip": (lambda: zipped(), r"a zip archive of other things, \[\]"),
    "npz": (lambda: through_numpy(np.savez, w=np.ones(2)), r"numpy's savez \(\.npz\)"),
    "npy": (lambda: through_numpy(np.save, np.ones(2)), r"one numpy array \(\.npy\)"),
    "HDF5": (hdf5, "an HDF5 file"),
    "ONNX": (lambda: b"\x08\x08\x12\x07pytorch\x1a\x051.0", "an ONNX model"),
    "GGUF": (lambda: b"GGUF\x03\x00\x00\x00", "a GGUF file"),
    "text": (
        lambda: b'{"detail": "Not Found"}',
        r"of no known format \(it begins with b'{\"detail",
    ),
    "zeros": (lambda: bytes(5000), "of no known format"),
    "nothing": (lambda: b"", "is empty; get it again"),
    "TorchScript": (torchscript, "a TorchScript program"),
    "a module": (lambda: saved(nn.Linear(2, 2)), r"asks for torch\.nn\.modules\.linear\.Linear"),
    "a legacy module": (lambda: saved(nn.Linear(2, 2), **LEGACY), r"asks for torch\.nn\.modules"),
    "other classes": (lambda: saved({"w": ONE, "args": Namespace(a=1)}), "for argparse.Namespace"),
    "an array in a torch file": (
        lambda: saved({"model": {"w": np.ones(2)}}),
        r"asks for numpy\._?core\.multiarray\._reconstruct",
    ),
    "pickled tensors": (lambda: pickle.dumps(WEIGHTS), r"asks for torch\._utils\._rebuild_tensor"),
    "protocol 4 of torch": (
        lambda: saved(WEIGHTS, pickle_protocol=4),
        "another pickle protocol than 2",
    ),
    "zip cut": (lambda: saved(WEIGHTS)[:-30], "a zip archive cut short or damaged; get it again"),
    "zip damaged": (
        lambda: flipped(saved(WEIGHTS), DATA),
        "is damaged or no file of weights .Bad CRC-32",
    ),
    "legacy cut": (lambda: saved(WEIGHTS, **LEGACY)[:-3], "damaged.*unexpected EOF"),
    "legacy cut early": (
        lambda: saved(WEIGHTS, **LEGACY)[:200],
        "is damaged or no file of weights",
    ),
    "safetensors cut": (lambda: SAFE[:-1], "a safetensors file cut short or damaged"),
    "safetensors' header cut": (lambda: SAFE[: HEADER // 2], "a safetensors file cut short"),
    "safetensors' header damaged": (
        lambda: SAFE[:20] + b"\xff" + SAFE[21:],
        "a safetensors file cut short or damaged",
    ),
    "safetensors of nothing": (lambda: as_safetensors({}, {"a": "b"}), "holds no weights"),
    "Caffe2 cut": (lambda: pickle.dumps({"blobs": ARRAYS}, 2)[:-40], "cut short or no pickle"),
    "Caffe2 of Python 2 cut": (lambda: pickle.dumps({"blobs": ARRAYS}, 0)[:90], "cut short or no"),
    "one tensor": (lambda: saved(ONE), "holds no weights by name but a Tensor"),
    "a list": (lambda: saved([ONE, ONE]), "holds no weights by name but a list"),
    "an array alone": (lambda: pickle.dumps(np.ones(2), 2), "no weights by name but a ndarray"),
    "no tensors": (lambda: saved({"epoch": 3, "model": {}}), "holds no weights: a mapping"),
    "no arrays": (lambda: pickle.dumps({"blobs": {}}), "holds no weights: a mapping"),
    "an optimizer": (
        lambda: saved({"state": {0: {"exp_avg": ONE}}, "param_groups": []}),
        "has tensors deeper, in 'state' / '0'",
    ),
    "two deep": (
        lambda: saved({"model": {"net": {"w": ONE}}, "epoch": 3}),
        "has tensors deeper, in 'model' / 'net': save the mapping of those alone",
    ),
    "partly two deep": (
        lambda: saved({"model": {"w": ONE, "head": {"w": ONE}}}),
        "has tensors deeper, in 'head'",
    ),
    "blobs two deep": (lambda: pickle.dumps({"blobs": {"a": ARRAYS}}), "deeper, in 'blobs' / 'a'"),
    "a list of tensors": (lambda: saved({"w": ONE, "more": [ONE]}), "deeper, in 'more'"),
    "nested without end": (lambda: saved({"w": ONE, "more": nested(200)}), "deeper, in 'more'"),
    "names that are numbers": (lambda: saved({0: ONE}), "a tensor is named '0', a int"),
    "names that are bytes": (lambda: pickle.dumps({b"w": np.ones(1)}), "named .*, a bytes"),
    "sparse": (lambda: saved({"w": ONE.to_sparse()}), "'w' is sparse or nested; only dense"),
    "meta": (lambda: saved({"w": torch.ones(2, device="meta")}), "'w' is on the meta device"),
    "quantised": (
        lambda: saved({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}),
        "'w' is quantised|neither a tensor",
    ),
}


@pytest.mark.filterwarnings("ignore")  # of torch, about formats it gives up
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_told_in_one_line(tmp_path, kind):
    make, message = WRONG[kind]
    path = write(tmp_path, make())
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500
    assert "weights_only" not in str(caught.value)  # torch's advice to switch it off


def test_a_path_without_a_file_is_told(tmp_path):
    for path, message in (
        (tmp_path / "none.pyth", "does not exist; check the path"),
        (tmp_path, "is a folder; name the file of weights in it"),
        ("/dev/null", "is empty"),
        (tmp_path / ("n" * 300), "can't be read: File name too long"),
        (write(tmp_path, b"text") / "in a file", "can't be read: Not a directory"),
    ):
        for call in (read_weights, fetch):
            with pytest.raises(ValueError, match=message) as caught:
                call(path)
            assert len(str(caught.value).splitlines()) == 1


class Runs:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


FORMATS = {
    "zip": saved,
    "legacy": lambda state: saved(state, **LEGACY),
    "pickle": lambda state: pickle.dumps(state, 2),
    "pickle of protocol 5": lambda state: pickle.dumps(state, 5),
}


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("place", ["whole", "container", "entry", "beside"])
def test_a_malicious_file_is_refused_by_name_and_not_run(tmp_path, make, place):
    marker = tmp_path / "ran"
    calls = {
        r"\w+\.system": Runs(os.system, f"touch {marker}"),
        r"(builtins\.|__builtin__\.)?(exec|eval)": Runs(exec, f"open({str(marker)!r}, 'w')"),
        r"torch\.serialization\.load": Runs(torch.load, marker),
        r"(subprocess|commands)\.check_output": Runs(
            subprocess.check_output, ["touch", str(marker)]
        ),
    }
    for asked, call in calls.items():
        state = {
            "whole": call,
            "container": {"model": call},
            "entry": {"blobs": {"w": call}},
            "beside": {"blobs": {"w": 1.0}, "epoch": call},
        }[place]
        with pytest.raises(ValueError, match=rf"weights\.pyth asks for {asked},"):
            read_weights(write(tmp_path, make(state)))
        assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", [*FORMATS, "safetensors"])
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, kind):
    tensors = {"a.weight": torch.arange(6.0), "n": torch.tensor(3)}
    arrays = {name: value.numpy() for name, value in tensors.items()}
    state = {"blobs": arrays if kind.startswith("pickle") else tensors, "epoch": np.float64(1)}
    whole = as_safetensors(tensors, {}) if kind == "safetensors" else FORMATS[kind](state)
    drawn = random.Random(kind)
    complaints = []
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(drawn.choice((1, 1, 3))):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        if drawn.random() < 0.3:
            del data[drawn.randrange(len(data)) :]
        try:
            read_weights(write(tmp_path, bytes(data)))
        except ValueError as error:
            complaints.append(str(error))
    assert len(complaints) > 100
    assert all(len(complaint.splitlines()) == 1 for complaint in complaints)


def test_a_bit_that_fell_over_in_a_zip_archive_changes_no_weight_in_silence(tmp_path):
    # torch itself reads such a file
    whole = saved({"model": {"w": torch.arange(64.0)}})
    drawn = random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
        try:
            tensors = read_weights(write(tmp_path, bytes(data))).tensors
        except ValueError:
            refused += 1
        else:
            assert_same(tensors, {"w": torch.arange(64.0)})
    assert 0 < refused < 300


def test_a_zip_archive_written_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        data = saved(WEIGHTS)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_weights(write(tmp_path, data)).tensors, WEIGHTS)


@pytest.mark.parametrize("call", [read_weights, fetch])
def test_the_hash_is_checked_and_both_are_shown(tmp_path, call):
    path = write(tmp_path, saved(WEIGHTS))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    call(path, digest)
    call(path, digest.upper())
    call(path, digest[:8])
    other = "0" * 64
    with pytest.raises(ValueError, match=f"has the SHA-256 {digest}, not {other}: .*get it again"):
        call(path, other)
    for malformed in (
        "abc",
        digest[:7],
        digest + "0",
        "g" * 64,
        "sha256:" + digest,
        digest + "\n",
    ):
        with pytest.raises(ValueError, match="must be 8 to 64 hexadecimal digits"):
            call(path, malformed)


def test_a_local_path_is_returned_as_it_is(tmp_path, monkeypatch):
    path = write(tmp_path, b"anything")
    assert fetch(path) == path
    assert fetch(str(path)) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("~/weights.pyth") == path


class Server(ThreadingHTTPServer):
    """Serves `files` on 127.0.0.1, some of them badly, and remembers what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.open = threading.Event()  # until then nothing is answered under /held
        self.open.set()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path.startswith("/held"):
            self.server.open.wait(30)
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved", ""))
            self.end_headers()
            return
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        if not self.path.startswith("/unmeasured"):
            more = 1000 if self.path.startswith("/cut") else 0
            self.send_header("Content-Length", str(len(data) + more))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.open.set()
        server.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


@pytest.fixture
def server(cache) -> Iterator[Server]:
    with serving() as server:
        yield server


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_url_is_fetched_once_and_read_without_the_network_later(cache, caplog):
    caplog.set_level("INFO", logger="vmp")
    data = saved({"model_state": WEIGHTS})
    with serving() as server:
        url = f"{server.url}/pyslowfast/x3d_m.pyth"
        server.files["/pyslowfast/x3d_m.pyth"] = data
        file = read_weights(url, hashlib.sha256(data).hexdigest())
        assert_same(file.tensors, WEIGHTS)
        assert server.asked == ["/pyslowfast/x3d_m.pyth"]
    assert file.path.name == "x3d_m.pyth"
    assert "127.0.0.1" in file.path.parent.name
    assert kept(cache) == [file.path]
    assert f"{url} is cached in {file.path}" in caplog.text
    assert_same(read_weights(url).tensors, WEIGHTS)
    assert fetch(url) == file.path


def test_an_address_of_dropbox_that_is_a_page_is_refused():
    with pytest.raises(ValueError, match=r"is a page about the file; end the address in dl=1"):
        fetch("https://www.dropbox.com/s/abc/TimeSformer.pyth?dl=0")


def test_urls_that_differ_in_host_or_query_alone_share_no_file(server):
    urls = [f"{server.url}/get?file=a/w.pyth", f"{server.url}/get?file=b/w.pyth"]
    server.files["/get?file=a/w.pyth"] = server.files["/w.pyth"] = b"a"
    server.files["/get?file=b/w.pyth"] = b"b"
    with serving() as another:
        another.files["/w.pyth"] = b"other"
        urls += [f"{server.url}/w.pyth", f"{another.url}/w.pyth"]
        assert [fetch(url).read_bytes() for url in urls] == [b"a", b"b", b"a", b"other"]


def test_any_name_a_url_ends_in_makes_a_file_inside_the_cache(server, cache):
    for path in ("/" + "n" * 400, "/w?sig=" + "s" * 400, "/", "/..", "/%2e%2e%2fx", "/a b;c"):
        server.files[path.replace(" ", "%20")] = b"data"
        found = fetch(server.url + path.replace(" ", "%20"))
        assert found.read_bytes() == b"data"
        assert found.parent.parent == cache


def test_a_url_that_moved_is_followed_and_one_without_a_length_is_read(server):
    server.files["/w.pyth"] = server.files["/unmeasured"] = b"data"
    assert fetch(f"{server.url}/moved/w.pyth").read_bytes() == b"data"
    assert fetch(f"{server.url}/unmeasured").read_bytes() == b"data"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none.pyth", "404 Not Found"),
        ("/cut.pyth", "cut short: 4 of 1004 bytes|IncompleteRead"),
        ("/empty.pyth", "the answer is empty"),
        ("/held.pyth", r"no answer for 0\.2 s"),
    ],
)
def test_a_failed_download_is_told_in_one_line_and_leaves_nothing(
    server, cache, monkeypatch, path, reason
):
    monkeypatch.setattr(weights_file, "_PATIENCE_SECONDS", 0.2)
    server.files |= {"/cut.pyth": b"data", "/empty.pyth": b"", "/held.pyth": b"data"}
    server.open.clear()
    url = re.escape(server.url + path)
    message = rf"{url} can't be fetched \(({reason})\); download it by hand and give its path"
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        fetch(server.url + path)
    assert time.monotonic() - start < 5
    assert len(str(caught.value).splitlines()) == 1
    assert kept(cache) == []


def test_a_server_that_falls_silent_in_the_middle_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(weights_file, "_PATIENCE_SECONDS", 0.2)

    def half(answer) -> None:
        answer.send_response(200)
        answer.send_header("Content-Length", "100")
        answer.end_headers()
        answer.wfile.write(b"half")
        answer.wfile.flush()
        answer.server.open.wait(30)

    server.open.clear()
    monkeypatch.setattr(Answer, "do_GET", half)
    with pytest.raises(ValueError, match=r"can't be fetched \(no answer for 0\.2 s\)"):
        fetch(f"{server.url}/w.pyth")
    assert kept(cache) == []


def test_a_server_that_is_not_there_is_told(cache, monkeypatch):
    with serving() as server:
        url = f"{server.url}/w.pyth"
    with pytest.raises(
        ValueError, match=rf"{re.escape(url)} can't be fetched \(Connection refused"
    ):
        fetch(url)

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        ValueError, match=r"no\.where/w can't be fetched \(Name or service not known"
    ):
        fetch("https://no.where/w")


def test_a_full_disk_is_told(server, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    server.files["/w.pyth"] = b"data"
    monkeypatch.setattr(weights_file, "write_atomically", full)
    with pytest.raises(ValueError, match=r"can't be fetched \(No space left on device\)"):
        fetch(f"{server.url}/w.pyth")


@pytest.mark.parametrize(
    "url", ["ftp://host/w.pyth", "s3://bucket/w.pyth", "file:///w.pyth", "http:///w.pyth"]
)
def test_other_schemes_are_refused(cache, url):
    with pytest.raises(ValueError, match=f"{url} can't be fetched: only http:// and https:// can"):
        read_weights(url)
    with pytest.raises(ValueError, match="is no URL"):
        read_weights("http://[host/w.pyth")


def test_a_wrong_file_in_the_cache_is_named_so_that_it_can_be_deleted(server):
    url = f"{server.url}/w.pyth"
    server.files["/w.pyth"] = page = b"<html>Please log in</html>"
    good = saved(WEIGHTS)
    digest = hashlib.sha256(good).hexdigest()
    path = fetch(url)
    way_out = re.escape(f"it was fetched from {url}: delete it to fetch it again")
    with pytest.raises(ValueError, match=rf"{path} is no file of .* a web page.*; {way_out}"):
        read_weights(url)
    wrong = hashlib.sha256(page).hexdigest()
    for call in (fetch, read_weights):
        with pytest.raises(ValueError, match=rf"{path} has.*{wrong}, not {digest}.*; {way_out}"):
            call(url, digest)
    server.files["/w.pyth"] = good
    path.unlink()
    assert_same(read_weights(url, digest).tensors, WEIGHTS)


def test_a_malformed_hash_is_refused_before_anything_is_fetched(server):
    server.files["/w.pyth"] = b"data"
    with pytest.raises(ValueError, match="must be 8 to 64 hexadecimal digits"):
        fetch(f"{server.url}/w.pyth", "abc")
    assert server.asked == []


@pytest.mark.dist
def test_of_two_processes_one_fetches_and_both_get_the_whole_file(server):
    server.files["/held.pyth"] = data = bytes(range(256)) * 4096
    server.open.clear()
    context = multiprocessing.get_context("fork")  # nothing to import again
    found = context.SimpleQueue()
    arguments = f"{server.url}/held.pyth", hashlib.sha256(data).hexdigest()
    both = [
        context.Process(target=lambda: found.put(fetch(*arguments)), daemon=True) for _ in range(2)
    ]
    for process in both:
        process.start()
    time.sleep(0.5)  # both are in it by then; if not, the second finds it done
    server.open.set()
    for process in both:
        process.join(30)
        assert process.exitcode == 0
    paths = [found.get(), found.get()]
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == data
    assert server.asked == ["/held.pyth"]
