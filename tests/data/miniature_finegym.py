"""A miniature of the FineGym release, its layout and every odd thing in it; no test is here.

Frame numbers are coded in the pixels of its videos. Times are chosen so that no boundary is within
a millisecond of a frame unless it is exactly on it.
"""

import json
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from tests.data.conftest import SIZE, picture, write_video

PLAIN = "PlainVideo1"
DASHES = "rrrgsW--AE8"
DASH = "with-hyphen"
LEADING = "-HvXd_vqJ5A"
UNDERSCORE = "_E21jlKax8M"  # holds "_E", but not "_E_"
TRICKY = "a_E_000001b"  # holds "_E_"
GONE = "GoneVideo_1"
H264 = {"g": "12", "crf": "10", "preset": "veryfast", "bf": "2"}
NTSC = Fraction(30000, 1001)


class Video(NamedTuple):
    name: str
    num_frames: int
    rate: int | Fraction
    codec: str = "libx264"
    sound: bool = False


VIDEOS = (
    Video(f"{PLAIN}.mp4", 250, 25, sound=True),
    Video(f"{DASHES}.mkv", 300, NTSC),
    Video(f"{DASH}.webm", 150, 25, codec="libvpx-vp9"),
    Video(f"{LEADING}.MP4", 96, 24),
    Video(f"{UNDERSCORE}.MKV", 1100, 25),  # long enough for its frame index to be kept
    Video(f"{TRICKY}.mp4", 60, 25),
)


def part(*stages):
    """A segment of the annotation; a stage is (start, end), seconds from the start of its event."""
    return {"stages": len(stages), "timestamps": [list(stage) for stage in stages]}


def event(code, start, end, segments):
    return {"event": code, "segments": segments, "timestamps": [[start, end]]}


ANNOTATION = {
    PLAIN: {
        # men's events have codes of their own and no segments
        "E_000000_000001": event(5, 0.2, 1.0, None),
        # a vault, annotated twice
        "E_000001_000007": event(
            1, 1.0, 7.0, {"A_0000_0005": part((0.04, 1.2), (1.2, 2.52), (2.52, 5.0))}
        ),
        "E_000002_000007": event(
            1, 2.0, 7.2, {"A_0000_0004": part((0.04, 0.4), (0.4, 1.52), (1.52, 4.0))}
        ),
        "E_000007_000009": event(
            3,
            7.04,
            9.0,
            {
                "A_0000_0000": part((0.52, 0.56)),  # one frame
                "A_0000_0001": part((0.2, 1.0)),
                "A_0001_0001": part((1.04, 1.2)),  # in no list
                "A_0001_0002": part((1.2, 2.24)),  # ends 0.28 s after its event
            },
        ),
    },
    DASHES: {
        # one event, its instances in both lists
        "E_000000_000009": event(
            4, 0.6, 9.4, {"A_0000_0001": part((0.01, 1.3)), "A_0002_0002": part((2.1, 2.5))}
        ),
    },
    DASH: {
        "E_000001_000005": event(
            2,
            1.0,
            5.0,
            {
                "A_0000_0001": part((0.0, 1.04)),
                "A_0003_0005": part((3.4, 5.6)),  # ends 0.6 s after the video
            },
        ),
        "E_000007_000008": event(2, 7.0, 8.0, {"A_0000_0000": part((0.0, 0.6))}),
        "E_042204_042244": event(2, 42204.0, 42244.0, {"A_0000_0001": part((0.48, 1.0))}),
    },
    LEADING: {
        "E_000001_000003": event(
            3,
            1.0,
            3.0,
            {
                "A_0000_0000": part((0.21, 0.25)),  # between two frames at 24 a second
                "A_0001_0001": part((1.03, 1.07)),
                "A_0001_0002": part((1.2, 2.0)),
            },
        ),
    },
    UNDERSCORE: {
        "E_000002_000025": event(
            4, 2.0, 25.0, {"A_0000_0001": part((0.24, 1.4)), "A_0021_0021": part((21.2, 21.6))}
        ),
    },
    TRICKY: {"E_000000_000002": event(2, 0.0, 2.4, {"A_0001_0002": part((1.0, 2.4))})},
    GONE: {
        "E_000100_000130": event(
            2, 100.0, 130.0, {"A_0000_0001": part((0.0, 1.0)), "A_0004_0005": part((4.0, 5.0))}
        ),
    },
    # in no list, and not there
    "UnlistedVid": {"E_000010_000020": event(2, 10.0, 20.0, {"A_0000_0001": part((0.0, 1.0))})},
}
# When each listed instance begins and ends, seconds of its video, worked out by hand.
TIMES = {
    f"{PLAIN}_E_000001_000007_A_0000_0005": (1.04, 6.0),
    f"{PLAIN}_E_000002_000007_A_0000_0004": (2.04, 6.0),
    f"{PLAIN}_E_000007_000009_A_0000_0000": (7.56, 7.6),
    f"{PLAIN}_E_000007_000009_A_0000_0001": (7.24, 8.04),
    f"{PLAIN}_E_000007_000009_A_0001_0002": (8.24, 9.28),
    f"{DASHES}_E_000000_000009_A_0000_0001": (0.61, 1.9),
    f"{DASHES}_E_000000_000009_A_0002_0002": (2.7, 3.1),
    f"{DASH}_E_000001_000005_A_0000_0001": (1.0, 2.04),
    f"{DASH}_E_000001_000005_A_0003_0005": (4.4, 6.6),
    f"{DASH}_E_000007_000008_A_0000_0000": (7.0, 7.6),
    f"{DASH}_E_042204_042244_A_0000_0001": (42204.48, 42205.0),
    f"{LEADING}_E_000001_000003_A_0000_0000": (1.21, 1.25),
    f"{LEADING}_E_000001_000003_A_0001_0001": (2.03, 2.07),
    f"{LEADING}_E_000001_000003_A_0001_0002": (2.2, 3.0),
    f"{UNDERSCORE}_E_000002_000025_A_0000_0001": (2.24, 3.4),
    f"{UNDERSCORE}_E_000002_000025_A_0021_0021": (23.2, 23.6),
    f"{TRICKY}_E_000000_000002_A_0001_0002": (1.0, 2.4),
    f"{GONE}_E_000100_000130_A_0000_0001": (100.0, 101.0),
    f"{GONE}_E_000100_000130_A_0004_0005": (104.0, 105.0),
}
UNKNOWN = f"{PLAIN}_E_000001_000007_A_0009_0010"  # listed, but not in the annotation
NULL = f"{PLAIN}_E_000000_000001_A_0000_0000"  # listed, of an event without segments
GYM99 = {
    "train": {
        f"{PLAIN}_E_000001_000007_A_0000_0005": 0,
        f"{PLAIN}_E_000002_000007_A_0000_0004": 0,
        f"{PLAIN}_E_000007_000009_A_0000_0001": 1,
        UNKNOWN: 2,
        f"{DASHES}_E_000000_000009_A_0000_0001": 3,
        f"{DASH}_E_000001_000005_A_0000_0001": 4,
        f"{LEADING}_E_000001_000003_A_0001_0002": 1,
        f"{UNDERSCORE}_E_000002_000025_A_0000_0001": 3,
        f"{TRICKY}_E_000000_000002_A_0001_0002": 4,
        f"{GONE}_E_000100_000130_A_0000_0001": 4,
        f"{LEADING}_E_000001_000003_A_0001_0001": 2,
    },
    "test": {
        f"{PLAIN}_E_000007_000009_A_0000_0000": 1,
        f"{PLAIN}_E_000007_000009_A_0001_0002": 2,
        NULL: 0,
        f"{DASHES}_E_000000_000009_A_0002_0002": 3,
        f"{DASH}_E_000001_000005_A_0003_0005": 4,
        f"{DASH}_E_000007_000008_A_0000_0000": 4,
        f"{DASH}_E_042204_042244_A_0000_0001": 4,
        f"{LEADING}_E_000001_000003_A_0000_0000": 1,
        f"{UNDERSCORE}_E_000002_000025_A_0021_0021": 3,
        f"{GONE}_E_000100_000130_A_0004_0005": 4,
    },
}
# Not nested in the other set: one instance of each list is in the other list there.
GYM288 = {
    "train": {
        f"{PLAIN}_E_000007_000009_A_0001_0002": 2,
        f"{UNDERSCORE}_E_000002_000025_A_0021_0021": 5,
        f"{GONE}_E_000100_000130_A_0000_0001": 4,
    },
    "test": {
        f"{PLAIN}_E_000007_000009_A_0000_0001": 1,
        f"{DASHES}_E_000000_000009_A_0002_0002": 3,
    },
}
# set, Glabel, name as written: two names alike, one with trailing blanks
CATEGORIES = (
    (1, 1, "(VT) run, jump with 0.5 turn on, and off"),
    (33, 290, "(BB) roll tucked"),
    (35, 359, "(BB) roll tucked"),
    (41, 450, "(UB) swing      "),
    (21, 67, "(FX) leap (split)"),
)
NAMES = (
    "(VT) run, jump with 0.5 turn on, and off",
    "(BB) roll tucked (set 33)",
    "(BB) roll tucked (set 35)",
    "(UB) swing",
    "(FX) leap (split)",
)
MORE_CATEGORIES = ((51, 500, "(UB) swing once more"),)


def write_release(folder: Path) -> Path:
    """Write `videos/` and `annotations/` into a folder."""
    videos, annotations = folder / "videos", folder / "annotations"
    videos.mkdir(parents=True)
    annotations.mkdir()
    for video in VIDEOS:
        _write(videos / video.name, video)
    (videos / "README.txt").write_text("not a video")
    (videos / f"{GONE}.f137.mp4").write_bytes(b"left behind by a downloader")
    (videos / f"{GONE}.mp4.part").write_bytes(b"likewise")
    write_annotations(annotations)
    return folder


def write_annotations(folder: Path) -> None:
    """Write the annotation, the lists (CRLF here and there) and the categories of both sets."""
    json_path = folder / "finegym_annotation_info_v1.1.json"
    json_path.write_text(json.dumps(ANNOTATION))
    for name, lists, categories in (
        ("gym99", GYM99, CATEGORIES),
        ("gym288", GYM288, CATEGORIES + MORE_CATEGORIES),
    ):
        train = "".join(f"{each} {label}\n" for each, label in lists["train"].items())
        (folder / f"{name}_train_element_v1.1.txt").write_bytes(train.encode())
        # a copy of the val list with CRLF and without a last newline circulates
        test = "\r\n".join(f"{each} {label}" for each, label in lists["test"].items())
        (folder / f"{name}_val_element.txt").write_bytes(test.encode())
        lines = [
            f"Clabel: {label:>3}; set: {number:>2}; Glabel: {glabel:>3}; {text}\n"
            for label, (number, glabel, text) in enumerate(categories)
        ]
        (folder / f"{name}_categories.txt").write_text("".join(lines))


def _write(path: Path, video: Video) -> None:
    if video.sound:
        _write_with_sound(path, video)
    elif video.codec == "libx264":
        write_video(path, video.num_frames, rate=video.rate, options=H264)
    else:
        options = {"g": "20", "crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "8"}
        write_video(path, video.num_frames, codec=video.codec, rate=video.rate, options=options)


def _write_with_sound(path: Path, video: Video) -> None:
    """As `write_video`, with an AAC stream beside the pictures."""
    height, width = SIZE
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=video.rate)
        stream.height, stream.width, stream.pix_fmt, stream.options = height, width, "yuv420p", H264
        sound = container.add_stream("aac", rate=16000)
        silence = np.zeros((1, 1024 * 16), dtype=np.float32)
        for number in range(video.num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            container.mux(stream.encode(frame))
            if number % 25 == 0:
                block = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                block.sample_rate = 16000
                container.mux(sound.encode(block))
        container.mux(stream.encode(None))
        container.mux(sound.encode(None))
