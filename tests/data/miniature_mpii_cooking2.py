"""A miniature release of MPII Cooking 2 in exactly the official layout, with every odd case."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from tests.data.conftest import write_video
from vmp.data.mpii_cooking2 import NAMES

RATE = Fraction(147, 5)
MAT = "attributesAnnotations_MPII-Cooking-2.mat"
NOUNS = ("bottle", "counter", "cupboard", "fridge", "glass mug", "hand", "knife")


class Annotated(NamedTuple):
    """A row of the annotation; `attributes` are what iaMat says, None: the activity and a hand."""

    sequence: str
    activity: str
    start: float
    end: float
    attributes: tuple[str, ...] | None = None


# Frames of each video, one of them long enough for its index to be kept; None: the file is there
# but broken.
VIDEOS = {
    "s07-d72": 1100,
    "s08-d02": 60,
    "s21-d21": 30,
    "s22-d23": 50,
    "s22-d26": None,
    "s22-d32": 10,
}
ROWS = (
    # the first rows of the release
    Annotated("s07-d72", "enterV", 194, 243, ("enterV",)),
    Annotated("s07-d72", "take outV", 270, 414, ("take outV", "hand", "bottle", "fridge")),
    Annotated(
        "s07-d72", "take outV", 454, 725, ("take outV", "hand", "glass mug", "cupboard", "counter")
    ),
    Annotated("s08-d02", "cut diceV", 1, 1),  # the first frame, and one frame
    Annotated("s08-d02", "cut diceV", 11, 20),
    Annotated("s08-d02", "rip-offV", 15, 30, ("hand",)),  # two spellings, neither an attribute
    Annotated("s08-d02", "rip offV", 21, 30, ("hand",)),
    Annotated("s08-d02", "stirV", 15, 40),  # overlaps
    Annotated("s08-d02", "washV", 30, 45),  # the same video, class and start twice
    Annotated("s08-d02", "washV", 30, 50),
    Annotated("s08-d02", "", 50, 55, ()),
    Annotated("s21-d21", "pourV", 5, 24),
    Annotated("s21-d21", "openV", 20, 29, ("closeV", "hand")),  # activity and attributes disagree
    Annotated("s22-d23", "pourV", 3, 12),
    Annotated("s22-d23", "cut diceV", 13, 30),
    Annotated("s22-d23", "enterV", 41, 60),  # ends after the video
    Annotated("s22-d23", "stirV", 51, 70),  # begins after it
    Annotated("s22-d23", "washV", 50, 50),  # its last frame
    Annotated("s22-d26", "stirV", 1, 10),  # broken file
    Annotated("s22-d32", "peelV", 1, 5),  # in no split
    Annotated("s28-d51", "shakeV", 8, 20),  # absent
    # the last rows of the release; absent
    Annotated("s37-d74", "assembleV", 10953, 10994, ("hand",)),
    Annotated("s37-d74", "unplugV", 11019, 11045),
    Annotated("s37-d74", "push downV", 11064, 11094),
)
# s10-d02 has no rows
SPLITS = {
    "sequencesTrainAttr.txt": "s07-d72\ns08-d02\ns10-d02\ns37-d74\n",
    "sequencesTrainDishes.txt": "s08-d02\ns10-d02\n",
    "sequencesVal.txt": "s21-d21\r\n\r\n",
    "sequencesTest.txt": "s22-d23\ns22-d26  \n\ns28-d51\n\n",
    "subjectsTrainAttr.txt": "7\n8\n10\n37\n",
    "subjectsVal.txt": "21\n",
    "subjectsTest.txt": "22\n28\n",
}


def write_release(folder: Path, *, nested: bool = False) -> Path:
    """Write videos/, the annotation and experimentalSetup/ into a folder."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    for sequence, num_frames in VIDEOS.items():
        path = videos / f"{sequence}-cam-002.avi"
        if num_frames is None:
            path.write_text("<html>404 not found</html>")
        else:
            options = {"g": "12", "qscale": "2"}
            write_video(path, num_frames, codec="mpeg4", rate=RATE, options=options)
    (videos / ".DS_Store").write_bytes(b"\0")
    (videos / "._s22-d23-cam-002.avi").write_bytes(b"\0")
    (videos / "s28-d51-cam-002.avi.part").write_bytes(b"\0")
    write_annotation(folder / MAT, ROWS)
    write_setup(folder / "experimentalSetup", SPLITS, nested=nested)
    return folder


def write_setup(folder: Path, files: dict[str, str], *, nested: bool = False) -> None:
    folder = folder / "experimentalSetup" if nested else folder
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())


# --------------------------------------------------------------------------- the .mat
def write_annotation(path: Path, rows: Sequence[Annotated], *, shared: bool = False) -> None:
    """Write what MATLAB saves as -v7.3: HDF5 behind a block of 512 bytes.

    `shared`: cells with equal strings refer to one string, which is faster to write.
    """
    with h5py.File(path, "w", userblock_size=512) as file:
        Writer(file, shared).write(rows)
    text = "MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan 1 2015 HDF5 schema 1.00 ."
    with path.open("r+b") as file:
        file.write(text.ljust(116).encode() + bytes(8) + b"\x00\x02IM" + bytes(384))


def positions(names: Sequence[str], order: Sequence[str]) -> list[int]:
    """Return where in `order` each name is, from 1."""
    place = {name: number for number, name in enumerate(order, 1)}
    return [place[name] for name in names]


class Writer:
    """Writes the structure `annos`, each field in MATLAB's own way."""

    def __init__(self, file: h5py.File, shared: bool) -> None:
        self.refs = file.create_group("#refs#")
        self.subsystem = file.create_group("#subsystem#")
        self.annos = file.create_group("annos")
        self.annos.attrs["MATLAB_class"] = np.bytes_("struct")
        self.count = 0  # of strings
        self.strings: dict[str, h5py.Reference] | None = {} if shared else None

    def write(self, rows: Sequence[Annotated]) -> None:
        attributes = sorted((*NAMES, *NOUNS))
        files = [f"{row.sequence}-cam-002" for row in rows]
        order = list(dict.fromkeys(files))
        given = [
            (row.activity, "hand") if row.attributes is None else row.attributes for row in rows
        ]
        classes = [row.activity + "".join(given[i][1:]) for i, row in enumerate(rows)]
        self.cells("activity", [row.activity for row in rows])
        self.cells("fileName", files)
        self.cells("fileNameId", [row.sequence for row in rows])
        self.cells("className", classes)
        self.cells("attributeMap", attributes)
        for name in ("annoFileMap", "classMap"):
            self.cells(name, [f"/BS/cooking/work/tsv/{file}.tsv" for file in order])
        for name in ("containers", "containersSource", "containersDestination", "ingredients"):
            self.cells(name, ["" for _ in rows])
        self.cells("tool", ["knife" if "knife" in names else "" for names in given])
        for name in ("containersProperties", "ingredientsProperties", "toolProperties"):
            self.cells(name, ["", "sharp"])
        for name in ("attrFields", "fields", "filters"):
            self.cells(name, ["activity", "tool"])

        starts = np.array([row.start for row in rows], dtype=np.float64)
        ends = np.array([row.end for row in rows], dtype=np.float64)
        self.column("startFrame", starts)
        self.column("endFrame", ends)
        self.column("startTimeSeconds", np.floor(starts / 29.4))
        self.column("endTimeSeconds", np.floor(ends / 29.4))
        self.column("subject", [int(row.sequence[1:3]) for row in rows])
        self.column("dish", [int(row.sequence[5:7]) for row in rows])
        self.column("fileId", positions(files, order))
        counter = Counter()
        self.column("idxInFile", [counter.update([file]) or counter[file] for file in files])
        self.column("labels", positions(classes, sorted(set(classes))))
        place = {name: number for number, name in enumerate(attributes)}
        matrix = np.zeros((len(rows), len(attributes)))
        for number, names in enumerate(given):
            matrix[number, [place[name] for name in names if name in place]] = 1
        self.numbers("iaMat", matrix.T)  # column-major: a row of the file is an attribute

        self.numbers("frameRate", [[29.4]])
        for name in ("bgLabel", "bgLabelAttr", "minBgWindow", "nullAttr", "nullAttrLabel"):
            self.numbers(name, [[1.0]])
        self.text("dataset", "cooking12eccv")
        self.text("bgClassName", " Background activity")
        self.map("nImgsPerFile")

    def numbers(self, name: str, values) -> None:
        field = self.annos.create_dataset(name, data=np.asarray(values, dtype=np.float64))
        field.attrs["MATLAB_class"] = np.bytes_("double")

    def column(self, name: str, values) -> None:
        self.numbers(name, np.asarray(values, dtype=np.float64)[:, None])

    def text(self, name: str, text: str) -> None:
        self.char(self.annos, name, text)

    def cells(self, name: str, texts: Sequence[str]) -> None:
        refs = [[self.ref(text)] for text in texts]
        field = self.annos.create_dataset(name, data=refs, dtype=h5py.ref_dtype)
        field.attrs["MATLAB_class"] = np.bytes_("cell")

    def ref(self, text: str) -> h5py.Reference:
        if self.strings is not None and text in self.strings:
            return self.strings[text]
        self.count += 1
        ref = self.char(self.refs, f"r{self.count}", text).ref
        if self.strings is not None:
            self.strings[text] = ref
        return ref

    @staticmethod
    def char(group: h5py.Group, name: str, text: str) -> h5py.Dataset:
        """Write UTF-16 code units as (L, 1); an empty string is its size 0 x 0 and a mark."""
        units = np.frombuffer(text.encode("utf-16-le"), dtype="<u2")[:, None]
        data = units if text else np.zeros(2, dtype=np.uint64)
        field = group.create_dataset(name, data=data)
        field.attrs["MATLAB_class"] = np.bytes_("char")
        if text:
            field.attrs["MATLAB_int_decode"] = np.int32(2)
        else:
            field.attrs["MATLAB_empty"] = np.uint8(1)
        return field

    def map(self, name: str) -> None:
        """Write a containers.Map: six numbers that only MATLAB can follow into #subsystem#."""
        self.subsystem.create_dataset("MCOS", data=np.zeros((1, 8), dtype=np.uint8))
        pointer = np.array([[3707764736, 2, 1, 1, 1, 1]], dtype=np.uint32)
        field = self.annos.create_dataset(name, data=pointer)
        field.attrs["MATLAB_class"] = np.bytes_("containers.Map")
        field.attrs["MATLAB_object_decode"] = np.int32(3)
