"""The documentation as a site: `python -m sphinx -W --keep-going -c docs/api . build/docs`.

The source folder is that of the checkout: the pages at its root and in docs/ link to each other.
"""

import re
from typing import Any

from vmp import __version__

project = "vmp"
author = "the vmp authors"
copyright = f"2026, {author}"
release = version = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
root_doc = "docs/api/index"
include_patterns = ["*.md", "docs/**.md", "datasets/**.md"]
exclude_patterns = ["docs/figures/**"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # the fields of a NamedTuple are members too: documented once

myst_heading_anchors = 4
myst_links_external_new_tab = False
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "sidebar_width": "240px"}
html_static_path: list[str] = []


def plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Take * and | in docstrings for what they are: formulas, not emphasis and substitutions."""
    for index, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)
        parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
        lines[index] = "".join(parts)


def setup(app: Any) -> None:
    """Have docstrings made plain before napoleon reads their sections."""
    app.connect("autodoc-process-docstring", plain, priority=100)
