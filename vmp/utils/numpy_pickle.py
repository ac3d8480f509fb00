"""Pickles of numpy arrays, read without running anything that they ask for.

A pickle is a program: it names functions and calls them. Here the few names that arrays need stand
for our own functions, which only check and remember, every other name is refused, and numpy gets
bytes, a type of numbers and a shape, never the state that a file made up.
"""

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# The types an array may have, by the names that numpy gives them in a pickle: numbers and booleans.
_NUMBERS = ("b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)))
_NUMBERS += ("f2", "f4", "f8", "c8", "c16")
_MOST_DIMENSIONS = 32
_DEEPEST = 64
_PLAIN = (str, bytes, int, float, bool, type(None))
# What it takes to write plain values, lists, tuples and dicts down, in protocols 0 to 5.
_PLAIN_INSTRUCTIONS = """
    PROTO FRAME MARK STOP POP POP_MARK DUP MEMOIZE GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3
    LIST EMPTY_LIST APPEND APPENDS EMPTY_DICT STACK_GLOBAL
"""


class _RefusedError(ValueError):
    """The pickle holds or asks for what none of arrays does; the message goes on from its name."""


def read_numpy_pickle(file: str | Path | BinaryIO) -> Any:
    """Read numpy arrays and scalars, dicts, lists, tuples, numbers and strings from a pickle.

    All protocols, those that Python 2 wrote too, whose strings are read as latin1. Arrays have this
    machine's byte order, C order and memory of their own.

    Args:
        file: a path, or a file open for reading bytes.

    Raises:
        ValueError: it is missing, damaged, holds something else, or asks for something else, which
            is then named. Nothing in it has run.
    """
    name = file if isinstance(file, str | Path) else getattr(file, "name", "the pickle")
    try:
        data = Path(file).read_bytes() if isinstance(file, str | Path) else file.read()
        # in memory, where a length that is too great only ends at the end
        return _settled(_Reader(io.BytesIO(data), encoding="latin1").load(), {})
    except _RefusedError as error:
        raise ValueError(f"{name} {error}") from error
    except OSError as error:
        raise ValueError(f"{name} can't be read: {error.strerror or error}") from error
    except Exception as error:  # what a damaged pickle makes of a reader has no common type
        reason = f"{type(error).__name__} {error}".splitlines()[0].strip()
        raise ValueError(
            f"{name} is damaged, cut short or no pickle ({reason[:200]}); get it again"
        ) from error


class NumpyType:
    """Stands for `numpy.dtype` in a pickle, and takes only types of numbers and their byte order.

    numpy's own would believe any state, as that a number is a pointer to an object.
    """

    __slots__ = ("_name", "_order")

    def __init__(self, name: object, align: object = False, copy: object = True) -> None:
        if not isinstance(name, str) or name not in _NUMBERS:
            raise _RefusedError(f"holds values of numpy's type {_shown(name)}, not numbers")
        self._name = name
        self._order = "="

    def __setstate__(self, state: object) -> None:
        if type(state) is not tuple or len(state) < 8:
            raise _RefusedError("holds a type of numpy with a state that no type of numbers has")
        # version, byte order, parts of structured types (3), size and alignment of such, flags
        _, order, *structure, size, alignment, flags = state[:8]
        odd = any(part is not None for part in structure) or (size, alignment, flags) != (-1, -1, 0)
        if odd or not isinstance(order, str) or order not in ("<", ">", "|", "="):
            raise _RefusedError("holds a type of numpy with a state that no type of numbers has")
        self._order = order

    def dtype(self) -> np.dtype[Any]:
        """Return the type itself."""
        return np.dtype(self._order.replace("|", "=") + self._name)


class _Array:
    """Stands for an array in a pickle: first made without its bytes, then given them."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: object) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise _RefusedError("holds an array with a state that no array of numbers has")
        _, shape, kind, in_fortran_order, raw = state
        self.value = _make_array(raw, kind, shape, "F" if in_fortran_order else "C")


def _make_array(raw: object, kind: object, shape: object, order: object) -> np.ndarray[Any, Any]:
    data = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 has bytes as str
    if not isinstance(data, bytes) or not isinstance(kind, NumpyType):
        raise _RefusedError("holds an array that is not made of bytes and a type of numbers")
    if type(shape) is not tuple or not all(type(side) is int and side >= 0 for side in shape):
        raise _RefusedError(f"holds an array of shape {_shown(shape)}, which is none")
    dtype = kind.dtype()
    if len(shape) > _MOST_DIMENSIONS or math.prod(shape) * dtype.itemsize != len(data):
        raise _RefusedError(f"holds an array of shape {_shown(shape)} with {len(data)} bytes")
    if order not in ("C", "F"):
        raise _RefusedError(f"holds an array in the order {_shown(order)}")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")
    array = np.array(array, dtype.newbyteorder("="), order="C")
    # a byte other than 0 and 1 is no boolean to those who get it
    return array.view(np.uint8) != 0 if dtype.kind == "b" else array


# What stands for `numpy.ndarray`, which is named but never called.
_NDARRAY = object()


def _reconstruct(kind: object, shape: object, typecode: object) -> _Array:
    if kind is not _NDARRAY:
        raise _RefusedError("holds an array of a type that is not numpy.ndarray")
    return _Array()


def _from_buffer(
    raw: object, kind: object, shape: object, order: object, axes: object = None
) -> _Array:
    if axes is not None:  # numpy 2.3 and later, for an array whose axes are permuted in memory
        return _permuted(_make_array(raw, kind, shape, "C"), axes)
    array = _Array()
    array.value = _make_array(raw, kind, shape, order)
    return array


def _permuted(stored: np.ndarray[Any, Any], axes: object) -> _Array:
    if type(axes) is not tuple or sorted(axes) != list(range(stored.ndim)):
        raise _RefusedError(f"holds an array with its axes in the order {_shown(axes)}")
    array = _Array()
    array.value = np.ascontiguousarray(stored.transpose(axes))
    return array


def _scalar(kind: object, raw: object = b"") -> Any:
    return _make_array(raw, kind, (), "C")[()]


def _encode(text: object, encoding: object = "utf-8") -> bytes:
    # how protocols 0 to 2 write bytes
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError("asks for _codecs.encode of something else than bytes")
    return text.encode("latin1")


def _ordered_dict(pairs: object = ()) -> OrderedDict[Any, Any]:
    if not isinstance(pairs, list | tuple):
        raise _RefusedError("makes an OrderedDict of something else than pairs")
    made: OrderedDict[Any, Any] = OrderedDict()
    for key, value in pairs:
        _set_item(made, key, value)
    return made


def _set_item(mapping: Any, key: object, value: object) -> None:
    if type(mapping) not in (dict, OrderedDict):
        raise _RefusedError(f"sets an item of a {type(mapping).__name__}")
    # nothing else: the hash of a deeply nested tuple overflows the stack
    if type(key) not in _PLAIN:
        raise _RefusedError(f"has a key that is a {type(key).__name__}")
    mapping[key] = value


# numpy 2 moved its modules; each name may have been written by either.
NUMPY_SCALARS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.dtype": NumpyType,
}
"""What stands for the names that numpy's scalars and types ask for, in any unpickler."""

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **NUMPY_SCALARS,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _ordered_dict,
}


def _find(module: str, name: str) -> object:
    asked = f"{module}.{name}"
    if asked == "numpy.ndarray":
        return _NDARRAY
    if asked not in _FUNCTIONS:
        raise _RefusedError(f"asks for {_shown(asked)}, which no array or plain value needs")
    return _FUNCTIONS[asked]


class _Reader(pickle._Unpickler):
    """The standard library's reader with another set of instructions.

    It is the one written in Python: the one in C takes gigabytes for one wrong index, and its
    instructions can't be replaced.
    """

    stack: list[Any]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> object:
        return _find(module, name)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not any(function is known for known in _FUNCTIONS.values()):
            raise _RefusedError(f"calls a {type(function).__name__}")
        self.stack[-1] = function(*arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) not in (NumpyType, _Array):
            raise _RefusedError(f"sets attributes of a {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    def load_global(self) -> None:
        self.stack.append(self.find_named())

    def load_inst(self) -> None:
        self.find_named()  # refuses a stranger by its name
        _refuse_instruction("INST")

    def find_named(self) -> object:
        module, name = self.readline(), self.readline()
        if not name.endswith(b"\n"):
            raise EOFError("in the middle of a name")
        return _find(module[:-1].decode(), name[:-1].decode())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.set_items(items)

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self.set_items([self.stack.pop(), value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set_item(self.stack[-1], key, value)


def _refuse_instruction(name: str) -> None:
    raise _RefusedError(f"uses the instruction {name}, which no array or plain value needs")


def _instructions() -> dict[int, Callable[[Any], None]]:
    """Return what the reader does at each byte that is an instruction."""
    inherited = pickle._Unpickler.dispatch
    ours: dict[str, Callable[[Any], None]] = {
        "REDUCE": _Reader.load_reduce,
        "BUILD": _Reader.load_build,
        "GLOBAL": _Reader.load_global,
        "INST": _Reader.load_inst,
        "DICT": _Reader.load_dict,
        "SETITEM": _Reader.load_setitem,
        "SETITEMS": _Reader.load_setitems,
        # bytes do as well, and can't grow
        "BYTEARRAY8": inherited[pickle.BINBYTES8[0]],
    }
    codes = {each.name: ord(each.code) for each in pickletools.opcodes}
    made = {code: _refuser(name) for name, code in codes.items()}
    made |= {codes[name]: inherited[codes[name]] for name in _PLAIN_INSTRUCTIONS.split()}
    return made | {codes[name]: handler for name, handler in ours.items()}


def _refuser(name: str) -> Callable[[Any], None]:
    return lambda _: _refuse_instruction(name)


_Reader.dispatch = _instructions()


def _settled(value: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """Return `value` with arrays in the place of what stood for them.

    Args:
        value: what the reader made.
        done: by identity, what became of the containers so far; None for those not yet left. What
            is shared stays shared, so a small file can't grow without end.
        depth: of `value` in the whole.
    """
    if type(value) in _PLAIN or isinstance(value, np.generic):
        return value
    if isinstance(value, _Array):
        if value.value is None:
            raise _RefusedError("holds an array without its bytes")
        return value.value
    if type(value) not in (dict, OrderedDict, list, tuple):
        raise _RefusedError("holds a function or a type in the place of a value")
    if id(value) in done:
        if done[id(value)] is None:
            raise _RefusedError("holds something that holds itself")
        return done[id(value)]
    if depth > _DEEPEST:
        raise _RefusedError(f"is nested more than {_DEEPEST} deep")
    done[id(value)] = None
    if isinstance(value, dict):
        made = type(value)((key, _settled(inner, done, depth + 1)) for key, inner in value.items())
    else:
        made = type(value)(_settled(inner, done, depth + 1) for inner in value)
    done[id(value)] = made
    return made


def _is_flat(value: tuple[Any, ...]) -> bool:
    return all(type(side) in (int, float) for side in value)


def _shown(value: object) -> str:
    """Return what a file named, in one short line."""
    # containers only by their kind: a small file may hold one whose text has no end
    text = type(value).__name__
    if isinstance(value, str):
        text = value[:120]
    elif isinstance(value, tuple) and len(value) <= _MOST_DIMENSIONS and _is_flat(value):
        text = str(value)[:120]
    return text if text.isprintable() else ascii(text)
