"""MPII Cooking 2 (Rohrbach et al., 2015): 67 cooking activities, stretches of 273 long videos."""

from vmp.data.records import DATASETS, VideoRecord, check_request, register_class_names
from vmp.data.release import read_index

SCRIPT = "datasets/mpii_cooking2/prepare.py"
# The activities that are attributes too, in the order of the release, with the V (for verb) that it
# gives them.
NAMES = (
    "addV",
    "arrangeV",
    "change temperatureV",
    "chopV",
    "cleanV",
    "closeV",
    "cut apartV",
    "cut diceV",
    "cut off endsV",
    "cut out insideV",
    "cut stripesV",
    "cutV",
    "dryV",
    "enterV",
    "fillV",
    "gatherV",
    "grateV",
    "hangV",
    "mixV",
    "moveV",
    "open closeV",
    "open eggV",
    "open tinV",
    "openV",
    "packageV",
    "peelV",
    "plugV",
    "pourV",
    "pull apartV",
    "pull upV",
    "pullV",
    "pureeV",
    "purgeV",
    "push downV",
    "put inV",
    "put lidV",
    "put onV",
    "readV",
    "remove from packageV",
    "rip openV",
    "scratch offV",
    "screw closeV",
    "screw openV",
    "shakeV",
    "shapeV",
    "sliceV",
    "smellV",
    "spiceV",
    "spreadV",
    "squeezeV",
    "stampV",
    "stirV",
    "strewV",
    "take apartV",
    "take lidV",
    "take outV",
    "tapV",
    "tasteV",
    "test temperatureV",
    "throw in garbageV",
    "turn offV",
    "turn onV",
    "turn overV",
    "unplugV",
    "washV",
    "whipV",
    "wring outV",
)
# DATA.SPLIT "": what the paper reports.
DEFAULT_VARIANT = "test"


@DATASETS.register()
def mpiicooking2(root: str, split: str, variant: str = "") -> list[VideoRecord]:
    """List the annotated intervals of one split.

    Args:
        root: folder that datasets/mpii_cooking2/prepare.py has written.
        split: "train" or "test".
        variant: "test" (or ""): train on the attribute-training sequences, test on the test
            sequences; "val": train on the same, test on the validation sequences, to choose
            settings without a look at the test set.

    Raises:
        ValueError: an unknown variant, or a folder without a usable index.
    """
    check_request("mpiicooking2", root, split)
    variant = variant or DEFAULT_VARIANT
    return read_index(root, "mpiicooking2", split, variant, script=SCRIPT)


@register_class_names("mpiicooking2")
def class_names(root: str, variant: str = "") -> tuple[str, ...]:
    """Return the 67 names; neither argument matters."""
    return NAMES
