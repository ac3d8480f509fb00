"""Where the programs and recipes lie: beside the package in a checkout, within it in a wheel."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def share_folder() -> Path:
    """Return the folder that has tools/, configs/, datasets/ and scripts/.

    A wheel has copies of them in vmp/_share, put there by setup.py; a checkout, installed as
    editable or not at all, has its own.
    """
    installed = PACKAGE / "_share"
    return installed if installed.is_dir() else PACKAGE.parent
