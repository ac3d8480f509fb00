"""HMDB-51 (Kuehne et al., 2011): 6,766 clips of 51 actions, three official splits."""

from vmp.data.records import DATASETS, VideoRecord, check_request, register_class_names
from vmp.data.release import read_index

# In the order of the release's folders, which is that of the labels.
NAMES = (
    *("brush_hair", "cartwheel", "catch", "chew", "clap", "climb", "climb_stairs", "dive"),
    *("draw_sword", "dribble", "drink", "eat", "fall_floor", "fencing", "flic_flac", "golf"),
    *("handstand", "hit", "hug", "jump", "kick", "kick_ball", "kiss", "laugh", "pick", "pour"),
    *("pullup", "punch", "push", "pushup", "ride_bike", "ride_horse", "run", "shake_hands"),
    *("shoot_ball", "shoot_bow", "shoot_gun", "sit", "situp", "smile", "smoke", "somersault"),
    *("stand", "swing_baseball", "sword", "sword_exercise", "talk", "throw", "turn", "walk"),
    "wave",
)
VARIANTS = ("1", "2", "3")
SCRIPT = "datasets/hmdb51/prepare.py"


@DATASETS.register()
def hmdb51(root: str, split: str, variant: str = "") -> list[VideoRecord]:
    """List the clips of one split.

    Args:
        root: folder that datasets/hmdb51/prepare.py has written.
        split: "train" or "test".
        variant: official split "1" (or ""), "2" or "3".

    Raises:
        ValueError: an unknown variant, or no index in the folder.
    """
    check_request("hmdb51", root, split)
    return read_index(root, "hmdb51", split, variant or VARIANTS[0], script=SCRIPT)


@register_class_names("hmdb51")
def class_names(root: str, variant: str = "") -> tuple[str, ...]:
    """Return the 51 names; neither argument matters."""
    return NAMES
