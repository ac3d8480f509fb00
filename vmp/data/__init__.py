"""From an annotation to batches of uint8 clips; nothing here knows of an architecture."""

from vmp.data import (  # these register their data sets
    csv_list,
    finegym,
    hmdb51,
    motion_shapes,
    mpii_cooking2,
    ut_interaction,
)
from vmp.data.archive import DecodeError
from vmp.data.build import build_loader
from vmp.data.decode import VideoReader
from vmp.data.loader import ClipLoader
from vmp.data.records import CLASS_NAMES, DATASETS, VideoRecord

__all__ = [
    "CLASS_NAMES",
    "DATASETS",
    "ClipLoader",
    "DecodeError",
    "VideoReader",
    "VideoRecord",
    "build_loader",
    "csv_list",
    "finegym",
    "hmdb51",
    "motion_shapes",
    "mpii_cooking2",
    "ut_interaction",
]
