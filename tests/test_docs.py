"""What the documents at the root say holds: code runs, files exist, keys are keys."""

import importlib.util
import re
import subprocess
import sys
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


def test_the_api_pages_name_every_module():
    pages = "".join(path.read_text("utf-8") for path in (ROOT / "docs/api").glob("*.md"))
    named = re.findall(r"automodule:: (\S+)", pages)
    packages = [path.parent for path in (ROOT / "vmp").glob("*/__init__.py")]
    files = [path for package in packages for path in package.glob("*.py")]
    modules = {f"vmp.{path.parent.name}.{path.stem}" for path in files if path.stem != "__init__"}
    assert set(named) == modules
    assert len(named) == len(modules)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for name in ("sphinx", "myst_parser"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"no {name}: pip install -e '.[docs]' -c requirements/constraints.txt")
    words = ["-W", "ignore", "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs/api", "."]
    command = [sys.executable, *words, str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert built.returncode == 0, built.stderr
    assert "vmp.prompts.layer.MotionPrompt" in (tmp_path / "docs/api/prompts.html").read_text()
