"""What the documents at the root say holds: code runs, files exist, keys are keys."""

import re
from pathlib import Path

import pytest

from vmp.config import get_cfg

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "INSTALL.md", "GETTING_STARTED.md", "MODEL_ZOO.md", "CONTRIBUTING.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))
PAGES += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("datasets/**/README.md"))
FOLDERS = "configs|tools|datasets|scripts|requirements|vmp|tests|docs"
PATH = re.compile(rf"(?<![\w/.])(?:{FOLDERS})/[\w./-]*[\w/]")
KEY = re.compile(r"\b(?:DATA|DATA_LOADER|PROMPT|MODEL|TRAIN|TEST|SOLVER)\.[A-Z0-9_]+\b")

TO_BE_WRITTEN = {"configs/base/MYNET.yaml"}  # by who follows the page


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_readmes_code_runs():
    (block,) = re.findall(r"```python\n(.*?)```", text_of("README.md"), re.DOTALL)
    names = {}
    exec(block, names)
    assert names["prompts"].shape == (2, 3, 8, 112, 112)
    assert all(each.grad is not None for each in names["layer"].parameters())


@pytest.mark.parametrize("page", PAGES)
def test_the_files_a_page_names_exist(page):
    named = set(PATH.findall(text_of(page))) - TO_BE_WRITTEN
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_keys_a_page_names_are_in_the_config(page):
    cfg = get_cfg()
    for name in KEY.findall(text_of(page)):
        section, key = name.split(".")
        assert key in cfg[section], name
