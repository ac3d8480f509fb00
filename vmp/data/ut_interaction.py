"""UT-Interaction (Ryoo & Aggarwal, 2010): two people interact, 6 classes, 120 segmented clips."""

from pathlib import Path

from vmp.data.csv_list import read_list
from vmp.data.records import DATASETS, VideoRecord, check_request, register_class_names

NAMES = ("hand_shaking", "hugging", "kicking", "pointing", "punching", "pushing")
VARIANTS = ("crossset", "seq")
# The cross-set rule: another place and other clothes, the clean test.
FOLDERS = {"train": "segmented_set1", "test": "segmented_set2"}


@DATASETS.register()
def utinteraction(root: str, split: str, variant: str = "") -> list[VideoRecord]:
    """List the clips of one split.

    Args:
        root: folder with segmented_set1 and segmented_set2, as released, and perhaps the lists
            `split_<variant>_<split>.txt`.
        split: "train" or "test".
        variant: "crossset" (or ""): train on set 1, test on set 2, known without a list; "seq":
            no source sequence on both sides, needs the lists.

    Raises:
        ValueError: an unknown variant, a missing folder or list, or a clip whose label in the
            list is not the one in its name.
    """
    check_request("utinteraction", root, split)
    variant = variant or VARIANTS[0]
    if variant not in VARIANTS:
        raise ValueError(f"DATA.SPLIT {variant!r} is not known; there are: {', '.join(VARIANTS)}")
    listing = Path(root, f"split_{variant}_{split}.txt")
    if listing.is_file():
        records = read_list(listing, root)
    elif variant == "crossset":
        records = _scan(Path(root, FOLDERS[split]))
    else:
        raise ValueError(f"{listing} is missing; only DATA.SPLIT crossset is known without a list")
    for record in records:
        _check_label(record)
    return records


@register_class_names("utinteraction")
def class_names(root: str, variant: str = "") -> tuple[str, ...]:
    """Return the six names; neither argument matters."""
    return NAMES


def _scan(folder: Path) -> list[VideoRecord]:
    # not the hidden files that some systems leave beside each file
    clips = sorted(folder.glob("[!.]*.avi"), key=lambda clip: (len(clip.stem), clip.stem))
    if not clips:
        raise ValueError(
            f"no clips in {folder}; DATA.PATH_TO_DATA_DIR must hold segmented_set1 and "
            f"segmented_set2, see datasets/ut_interaction/README.md"
        )
    names = [f"{folder.name}/{clip.name}" for clip in clips]
    return [
        VideoRecord(str(clip), _label_in_name(clip), id=name)
        for clip, name in zip(clips, names, strict=True)
    ]


def _label_in_name(clip: Path) -> int:
    """Return the last number of a name like 12_3_4.avi (clip, sequence, class)."""
    last = clip.stem.split("_")[-1]
    if not last.isdecimal() or int(last) >= len(NAMES):
        raise ValueError(f"{clip}: the name must end with its class, 0 to {len(NAMES) - 1}")
    return int(last)


def _check_label(record: VideoRecord) -> None:
    named = _label_in_name(Path(record.path))
    if record.label != named:
        raise ValueError(f"{record.path}: the list says class {record.label}, the name {named}")
