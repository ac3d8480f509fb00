"""From an annotation to batches of uint8 clips; nothing here knows of an architecture."""

from vmp.data import csv_list, motion_shapes, ut_interaction  # these register their data sets
from vmp.data.build import build_loader
from vmp.data.decode import DecodeError, VideoReader
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
    "motion_shapes",
    "ut_interaction",
]
