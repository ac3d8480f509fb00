"""FineGym (Shao et al., 2020): elements of gymnastics, as stretches of long competition videos.

datasets/finegym/prepare.py turns the official release into the index that is read here.
"""

from vmp.data.records import DATASETS, VideoRecord, check_request, register_class_names
from vmp.data.release import read_classes, read_index

# The two share instances, and are not nested splits: either has instances in its training list
# that are in the test list of the other.
VARIANTS = ("gym99", "gym288")
SCRIPT = "datasets/finegym/prepare.py"


@DATASETS.register()
def finegym(root: str, split: str, variant: str = "") -> list[VideoRecord]:
    """List the official instances of one split, also those whose video is absent.

    Args:
        root: folder that prepare.py has written.
        split: "train", or "test": the list that the release calls val, of which it has no other.
        variant: "gym99" (or "") or "gym288", of v1.1.

    Raises:
        ValueError: an unknown variant, one that was not prepared, or no index.
    """
    check_request("finegym", root, split)
    return read_index(root, "finegym", split, _known(variant), script=SCRIPT)


@register_class_names("finegym")
def class_names(root: str, variant: str = "") -> tuple[str, ...]:
    """Return the 99 or 288 names, each once: the release has some that come twice.

    Raises:
        ValueError: an unknown variant, or no index.
    """
    return read_classes(root, "finegym", _known(variant), script=SCRIPT)


def _known(variant: str) -> str:
    variant = variant or VARIANTS[0]
    if variant not in VARIANTS:
        raise ValueError(f"DATA.SPLIT {variant!r} is not known; there are: {', '.join(VARIANTS)}")
    return variant
