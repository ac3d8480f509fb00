"""Pickles of arrays are read whatever wrote them; what else a pickle asks for is named, not run."""

import copyreg
import io
import pickle
import random
import re
import struct
from collections import OrderedDict
from contextlib import suppress

import numpy as np
import pytest

from vmp.utils.numpy_pickle import read_numpy_pickle

ARRAYS = {
    "float": np.linspace(-1, 1, 6, dtype="<f4").reshape(2, 3),
    "big endian": np.arange(6, dtype=">f8").reshape(3, 2),
    "Fortran order": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "permuted": np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    "strided": np.arange(8)[::2],
    "no dimensions": np.array(2.5),
    "half": np.arange(3, dtype="f2"),
    "complex": np.array([1 + 2j], dtype="c8"),
    "unsigned": np.array([2**64 - 1], dtype="u8"),
    "bool": np.array([[True, False]]),
}
SCALARS = {"float32": np.float32(0.1), "int64": np.int64(-3), "bool": np.bool_(True)}
PLAIN = {
    "text": "é\n'",
    "list": [1, 2.5, None, True],
    "tuple": (1, (2,)),
    "great": 2**70,
    "neg": -7,
}


def read(data: bytes):
    return read_numpy_pickle(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_scalars_and_plain_values_come_back_from_every_protocol(protocol):
    state = {"blobs": {**ARRAYS, "scalars": SCALARS, "ordered": OrderedDict(a=np.ones(1))}}
    back = read(pickle.dumps(state | PLAIN, protocol))
    for name, array in ARRAYS.items():
        other = back["blobs"][name]
        assert other.dtype == array.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(other, array, err_msg=name)
        assert other.flags.writeable
        assert other.flags.c_contiguous
    for name, scalar in SCALARS.items():
        assert type(back["blobs"]["scalars"][name]) is type(scalar)
        assert back["blobs"]["scalars"][name] == scalar
    assert type(back["blobs"]["ordered"]) is OrderedDict
    assert {name: back[name] for name in PLAIN} == PLAIN


def python2(array: np.ndarray, protocol: int) -> bytes:
    """Return {"blobs": {"conv1_w": array}} as Python 2 and numpy 1 wrote it: bytes are strings."""

    def text(value: bytes) -> bytes:
        if protocol:
            return b"T" + struct.pack("<i", len(value)) + value
        return b"S" + repr(value)[1:].encode() + b"\n"

    def number(value: int) -> bytes:
        return b"I%d\n" % value

    shape = b"(" + b"".join(map(number, array.shape)) + b"t"
    kind = array.dtype.kind + str(array.dtype.itemsize)
    dtype = (
        *(b"cnumpy\ndtype\n(", text(kind.encode()), b"I0\nI1\ntR(I3\n"),
        *(text(array.dtype.str[:1].encode()), b"NNNI-1\nI-1\nI0\ntb"),
    )
    order = "F" if np.isfortran(array) else "C"
    parts = (
        *(b"(d", text(b"blobs"), b"(d", text(b"conv1_w")),
        *(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt", text(b"b"), b"tR"),
        *(b"(I1\n", shape, *dtype, b"I01\n" if order == "F" else b"I00\n"),
        *(text(array.tobytes(order)), b"tbss."),
    )
    return (b"\x80\x02" if protocol else b"") + b"".join(parts)


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("name", ["float", "big endian", "Fortran order", "bool", "half"])
def test_arrays_of_python_2_come_back(name, protocol):
    back = read(python2(ARRAYS[name], protocol))
    np.testing.assert_array_equal(back["blobs"]["conv1_w"], ARRAYS[name])


def test_an_array_under_two_names_is_one_array():
    array = np.arange(3)
    back = read(pickle.dumps({"a": array, "b": [array]}))
    assert back["a"] is back["b"][0]


def test_a_boolean_is_0_or_1_whatever_byte_it_was_written_as():
    data = pickle.dumps(np.array([True, False]), 2)
    assert data.count(b"\x01\x00q") == 1
    back = read(data.replace(b"\x01\x00q", b"\x07\x00q"))
    assert back.view(np.uint8).tolist() == [1, 0]


RUN = b"open({!r}, 'w').close()"
TOUCH = b"touch {}"
TOUCHES = b"cos\nsystem\n(Vtouch {}\ntR"
MAP = b"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n(lVtouch {}\na"
# Each would make a file, whose path comes in the place of {}; and what it asks for first.
MALICIOUS = {
    "posix": (b"cposix\nsystem\n(Vtouch {}\ntR.", "posix.system"),
    "os": (TOUCHES + b".", "os.system"),
    "exec": (b"cbuiltins\nexec\n(V" + RUN + b"\ntR.", "builtins.exec"),
    "eval": (b"cbuiltins\neval\n(V" + RUN + b"\ntR.", "builtins.eval"),
    "open": (b"cbuiltins\nopen\n(V{}\nVw\ntR.", "builtins.open"),
    "Python 2": (b"c__builtin__\neval\n(V" + RUN + b"\ntR.", "__builtin__.eval"),
    "getattr": (
        b"cbuiltins\ngetattr\n(cos\nsystem\nV__call__\ntR(Vtouch {}\ntR.",
        "builtins.getattr",
    ),
    "in blobs": (b"(dVblobs\n(dVconv1_w\n" + TOUCHES + b"ss.", "os.system"),
    "as a key": (b"(d" + TOUCHES + b"I1\ns.", "os.system"),
    "thrown away": (b"}" + TOUCHES + b"0.", "os.system"),
    "as the bytes of an array": (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(Vi8\nI0\nI1\ntR" + TOUCHES + b"tR.",
        "os.system",
    ),
    "INST": (b"(Vtouch {}\niposix\nsystem\n.", "posix.system"),
    "OBJ": (b"(cposix\nsystem\nVtouch {}\no.", "posix.system"),
    "STACK_GLOBAL": (b"\x80\x04Vos\nVsystem\n\x93(Vtouch {}\ntR.", "os.system"),
    "a name with dots": (
        b"\x80\x04Vcollections\nV_sys.modules.__class__\n\x930" + TOUCHES + b".",
        r"collections._sys.modules.__class__",
    ),
    "NEWOBJ": (MAP + b"t\x81tR.", "builtins.list"),
    "NEWOBJ_EX": (MAP + b"t}\x92tR.", "builtins.list"),
    "partial": (b"cfunctools\npartial\n(" + TOUCHES + b"cos\nsystem\ntR.", "functools.partial"),
    "numpy": (
        b"cnumpy.testing\nrundocs\n0cnumpy\nsave\n(V{}\nI1\ntR.",
        "numpy.testing.rundocs",
    ),
    "torch": (b"ctorch\nsave\n(I1\nV{}\ntR.", "torch.save"),
    "BUILD": (
        b"cvmp.utils.numpy_pickle\n_encode\n(N(dV__defaults__\n" + TOUCHES + b"stb.",
        "vmp.utils.numpy_pickle._encode",
    ),
}


def malicious(kind: str, marker) -> bytes:
    text = str(marker)
    return MALICIOUS[kind][0].replace(b"{!r}", repr(text).encode()).replace(b"{}", text.encode())


@pytest.mark.parametrize("kind", MALICIOUS)
def test_a_malicious_pickle_is_refused_by_name_and_not_run(tmp_path, kind):
    marker, path = tmp_path / "ran", tmp_path / "weights.pkl"
    path.write_bytes(malicious(kind, marker))
    asked = re.escape(MALICIOUS[kind][1])
    with pytest.raises(ValueError, match=rf"weights\.pkl asks for {asked},") as caught:
        read_numpy_pickle(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("kind", sorted(MALICIOUS.keys() - {"BUILD"}))
def test_the_malicious_pickles_do_run_where_they_are_believed(tmp_path, kind):
    marker = tmp_path / "ran"
    with suppress(Exception):  # some are of no use afterwards
        pickle.loads(malicious(kind, marker))
    assert marker.exists() or marker.with_suffix(".npy").exists()


STRANGERS = """
    builtins.__import__ builtins.getattr builtins.set builtins.bytearray builtins.complex
    nt.system importlib.import_module pickle.loads marshal.loads types.CodeType
    operator.attrgetter operator.methodcaller copyreg._reconstructor copy_reg._reconstructor
    _codecs.decode codecs.encode collections.Counter collections.defaultdict
    numpy.load numpy.fromfile numpy.memmap numpy.matrix numpy.frombuffer
    numpy.testing._private.utils.runstring numpy.f2py.compile numpy.core.multiarray.fromfile
    numpy.core.multiarray.scalar.__globals__ numpy.dtype.__init__ numpy.ndarray.__class__
    torch.load torch.hub.load torch.storage._load_from_bytes torch._utils._rebuild_tensor_v2
"""


@pytest.mark.parametrize("asked", STRANGERS.split())
def test_any_other_name_is_refused_however_it_is_asked_for(asked):
    module, name = asked.rsplit(".", 1)
    first, rest = asked.split(".", 1)
    for data in (
        f"c{module}\n{name}\n(tR.".encode(),
        f"(i{module}\n{name}\n.".encode(),
        f"\x80\x04V{module}\nV{name}\n\x93.".encode("latin1"),
        f"\x80\x04V{first}\nV{rest}\n\x93.".encode("latin1"),
        f"(dVblobs\n(dVw\nc{module}\n{name}\nss.".encode(),
    ):
        with pytest.raises(ValueError, match=f"asks for {re.escape(asked)},"):
            read(data)


DTYPE = b"cnumpy\ndtype\n(Vi8\nI0\nI1\ntR"
TYPE = DTYPE + b"(I3\nV<\nNNNI-1\nI-1\nI0\ntb"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
EIGHT = b"V" + b"x" * 8 + b"\n"
TRICKS = {
    "attributes of a function": (b"c_codecs\nencode\n(N(dV__defaults__\nNstb.", "sets attributes"),
    "attributes of a type": (b"cnumpy\ndtype\n(N(dV__call__\nNstb.", "sets attributes of a type"),
    "attributes of ndarray": (b"cnumpy\nndarray\n(dVshape\nNsb.", "sets attributes of a object"),
    "attributes of a dict": (
        b"ccollections\nOrderedDict\n(tR(dVitems\nNsb.",
        "attributes of a Ord",
    ),
    "slots of a dtype": (DTYPE + b"(N(dV_name\nVO8\nstb.", "state that no type of numbers has"),
    "flags of a dtype": (TYPE[:-5] + b"I63\ntb.", "state that no type of numbers has"),
    "fields of a dtype": (
        DTYPE + b"(I3\nV<\nN(Va\nt(dI8\nI8\nI0\ntb.",
        "state that no type of numbers has",
    ),
    "order of a dtype": (DTYPE + b"(I3\nVO8\nNNNI-1\nI-1\nI0\ntb.", "state that no type of"),
    "call of ndarray": (b"cnumpy\nndarray\n((I9\nttR.", "calls a object"),
    "call of a text": (b"Vos.system\n(tR.", "calls a str"),
    "call of what was made": (DTYPE + b"(tR.", "calls a NumpyType"),
    "another kind of array": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntVb\ntR.",
        "a type that is not numpy.ndarray",
    ),
    "an array of nothing": (ARRAY + b".", "an array without its bytes"),
    "a function as a value": (b"(dVw\nc_codecs\nencode\ns.", "a function or a type"),
    "a dtype as a value": (b"(dVw\n" + TYPE + b"s.", "a function or a type"),
    "another codec": (b"c_codecs\nencode\n(Va\nVrot13\ntR.", "_codecs.encode of something else"),
    "too great a shape": (
        ARRAY + b"(I1\n(I1000000000000\nt" + TYPE + b"I00\n" + EIGHT + b"tb.",
        r"shape \(1000000000000,\) with 8 bytes",
    ),
    "a shape without bytes": (
        ARRAY + b"(I1\n(I0\nI4611686018427387904\nI4611686018427387904\nt" + TYPE + b"I00\nV\ntb.",
        "damaged",
    ),
    "a negative shape": (ARRAY + b"(I1\n(I-1\nt" + TYPE + b"I00\n" + EIGHT + b"tb.", r"\(-1,\)"),
    "a shape of floats": (ARRAY + b"(I1\n(F1\nt" + TYPE + b"I00\n" + EIGHT + b"tb.", r"\(1.0,\)"),
    "too many dimensions": (
        ARRAY + b"(I1\n(" + b"I1\n" * 99 + b"t" + TYPE + b"I00\n" + EIGHT + b"tb.",
        "with 8 bytes",
    ),
    "no bytes": (ARRAY + b"(I1\n(t" + TYPE + b"I00\n(ltb.", "not made of bytes"),
    "no dtype": (ARRAY + b"(I1\n(tVi8\nI00\n" + EIGHT + b"tb.", "not made of bytes and a type"),
    "persistent id": (b"Pposix\n.", "the instruction PERSID"),
    "binary persistent id": (b"\x80\x02Vposix\nQ.", "the instruction BINPERSID"),
    "extension": (b"\x80\x02\x82\xf0.", "the instruction EXT1"),
    "set": (b"\x80\x04\x8f.", "the instruction EMPTY_SET"),
    "out-of-band data": (b"\x80\x05\x97.", "the instruction NEXT_BUFFER"),
    "INST of a known name": (b"(icollections\nOrderedDict\n.", "the instruction INST"),
    "a tuple as a key": (b"(d(tI1\ns.", "a key that is a tuple"),
    "a deep tuple as a key": (b"(d(t" + b"\x85" * 10**6 + b"I1\ns.", "a key that is a tuple"),
    "a tuple as a key of an OrderedDict": (
        b"ccollections\nOrderedDict\n((l((tI1\ntatR.",
        "a key that is a tuple",
    ),
    "an item of a list": (b"(lI0\nI1\ns.", "sets an item of a list"),
    "a list in itself": (b"(lp0\ng0\na.", "holds itself"),
    "nested without end": (b"(l" * 10**5 + b"a" * (10**5 - 1) + b".", "nested more than"),
    "an index that costs 64 GB in C": (b"\x80\x02}r\xff\xff\xff\xff0.", "damaged"),
    "a length beyond the end": (b"\x80\x05\x8e" + struct.pack("<Q", 2**40) + b"abc.", "damaged"),
    "another length beyond the end": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", "damaged"),
    "a name cut short": (b"cnumpy.core.multi", "damaged, cut short.*in the middle of a name"),
    "nothing": (b"", "damaged"),
    "no instruction": (b"\xff", "damaged"),
    "another protocol": (b"\x80\x63.", "damaged"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_is_refused_in_one_line(trick):
    data, message = TRICKS[trick]
    with pytest.raises(ValueError, match=message) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_parts_of_the_tricks_make_an_array():
    back = read(ARRAY + b"(I1\n(I1\nt" + TYPE + b"I00\n" + EIGHT + b"tb.")
    assert back.tolist() == [int.from_bytes(b"x" * 8, "little")]


def test_a_list_that_doubles_in_each_step_costs_no_more_than_its_file():
    steps = b"".join(b"]q%c(" % (n + 1) + b"h%c" % n * 2 + b"e" for n in range(60))
    back = read(b"\x80\x02]q\x00" + steps + b".")
    for _ in range(60):
        assert back[0] is back[1]
        back = back[0]
    assert back == []


def test_a_registered_extension_is_not_looked_up(tmp_path):
    copyreg.add_extension("os", "system", 0xF1)
    try:
        with pytest.raises(ValueError, match="the instruction EXT1"):
            read(b"\x80\x02\x82\xf1(Vtouch " + str(tmp_path / "ran").encode() + b"\ntR.")
    finally:
        copyreg.remove_extension("os", "system", 0xF1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.array([{}], dtype=object), "O8"),
        (np.zeros(2, dtype=[("a", "f4")]), "V4"),
        (np.array(["text"]), "U4"),
        (np.array([b"text"]), "S4"),
        (np.array(["2020"], dtype="M8[Y]"), "M8"),
        (np.zeros(1, dtype=np.longdouble), "f16"),
    ],
)
def test_arrays_of_other_things_than_numbers_are_refused_by_their_type(array, kind):
    for protocol in (2, 5):
        with pytest.raises(ValueError, match=f"numpy's type {kind}, not numbers"):
            read(pickle.dumps({"w": array}, protocol))


def test_a_name_of_many_lines_is_told_in_one():
    with pytest.raises(ValueError, match=r"asks for 'os\\nsystem\.x\\u2028y',") as caught:
        read(b"\x80\x04\x8c\x09os\nsystem\x8c\x05x\xe2\x80\xa8y\x93.")
    assert len(str(caught.value).splitlines()) == 1


def test_a_path_that_is_no_file_is_told(tmp_path):
    with pytest.raises(ValueError, match="can't be read: No such file"):
        read_numpy_pickle(tmp_path / "none.pkl")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_damaged_pickle_is_read_or_refused_in_one_line(protocol):
    state = {"blobs": {"w": ARRAYS["float"], "s": SCALARS["float32"], "lr": 0.1}}
    whole = pickle.dumps(state, protocol)
    drawn = random.Random(protocol)
    complaints = []
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(drawn.choice((1, 1, 3))):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        if drawn.random() < 0.3:
            del data[drawn.randrange(len(data)) :]
        try:
            read(bytes(data))
        except ValueError as error:
            complaints.append(str(error))
    assert len(complaints) > 200
    assert all(len(complaint.splitlines()) == 1 for complaint in complaints)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02cnumpy\ndtype\n(K\x01" + b"2\x86" * 40 + b"tR.",
        b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(C\x00cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85RK\x01"
        + b"2\x86" * 40
        + b"X\x01\x00\x00\x00CtR.",
    ],
    ids=["type", "shape"],
)
def test_what_would_be_endless_as_text_is_refused_at_once(pickled):
    with pytest.raises(ValueError, match="holds"):
        read_numpy_pickle(io.BytesIO(pickled))
