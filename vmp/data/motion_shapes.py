"""MotionShapes: made videos in which only the motion tells the class.

They are written by datasets/motionshapes/prepare.py, with an index this file reads.
"""

import json
from pathlib import Path

from vmp.data.records import DATASETS, VideoRecord, check_request, register_class_names

INDEX = "index.json"
NAMES = (
    "move_left",
    "move_right",
    "move_up",
    "move_down",
    "rotate_clockwise",
    "rotate_counterclockwise",
    "grow",
    "shrink",
)


@DATASETS.register()
def motionshapes(root: str, split: str, variant: str = "") -> list[VideoRecord]:
    """List the videos of one split.

    Args:
        root: folder that prepare.py has written.
        split: "train" or "test".
        variant: there is only "".

    Raises:
        ValueError: a variant, or no index, or a broken one.
    """
    check_request("motionshapes", root, split)
    if variant:
        raise ValueError(f"DATA.SPLIT is {variant!r}, it must be '': there is one split")
    path = Path(root, INDEX)
    if Path(root).is_file():
        raise ValueError(f"{root} is a file; DATA.PATH_TO_DATA_DIR is the folder of {INDEX}")
    if not path.is_file():
        raise ValueError(
            f"no {INDEX} in {root}; make the videos with "
            f"`python datasets/motionshapes/prepare.py --out {root}`"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return [
            VideoRecord(str(Path(root, video["path"])), int(video["label"]), id=video["path"])
            for video in index[split]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is broken ({error!r}); make the videos again") from error


@register_class_names("motionshapes")
def class_names(root: str, variant: str = "") -> tuple[str, ...]:
    """Return the names of the motions; neither argument matters."""
    return NAMES
