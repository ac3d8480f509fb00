"""What is handed out: an sdist, the wheel made of it, and a training with nothing else there."""

import ast
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vmp.__main__ import describe, find, programs
from vmp.share import share_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDERS = ("tools", "configs", "datasets")
NOT_COPIED = {"data", "runs", "build", "dist"}
BUILD = "import sys, setuptools.build_meta as made; getattr(made, sys.argv[1])(sys.argv[2])"


def shared_files(root):
    return {
        path.relative_to(root).as_posix()
        for folder in FOLDERS
        for path in (root / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def build(what, source, out):
    """Build as pip does without isolation, so that no network is needed; return the file made."""
    out.mkdir()
    command = [sys.executable, "-W", "ignore", "-c", BUILD, what, str(out)]
    subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Build from links to what lies in the checkout, for a build writes where it is done."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "checkout"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.name[0] != "." and path.name not in NOT_COPIED and path.suffix != ".egg-info":
            (source / path.name).symlink_to(path)
    return build("build_sdist", source, folder / "dist")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Build from what is in the sdist, as `python -m build` and pip do."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("build_wheel", source, folder / "dist")


def test_the_sdist_has_the_pages_and_the_licence_but_no_tests(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = {path.name for path in ROOT.glob("*.md")}
    assert "README.md" in pages
    assert pages | {"LICENSE", "CITATION.cff", "requirements/constraints.txt"} <= names
    assert shared_files(ROOT) <= names
    assert {name for name in names if name.startswith(("tests", "shared", "."))} == set()


def test_the_wheel_has_every_tool_recipe_and_script_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    share = "vmp/_share/"
    inside = {name.removeprefix(share) for name in names if name.startswith(share)}
    batch = {"scripts/slurm/train.sbatch", "scripts/pbs/train.pbs"}
    assert inside == shared_files(ROOT) | batch
    assert sum(name.startswith("configs/") for name in inside) > 80
    assert {f"datasets/{name}/prepare.py" for name in ("hmdb51", "motionshapes")} <= inside
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vmp").rglob("*.py")}
    assert package <= names
    assert "vmp/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vmp"}


def test_every_tool_has_a_script_of_its_own():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    tools = {name for name, path in programs().items() if path.parent.name == "tools"}
    wanted = {"vmp"} | {f"vmp-{name.replace('_', '-')}" for name in tools}
    assert scripts == dict.fromkeys(wanted, "vmp.__main__:main")


def test_a_checkout_uses_its_own_folders():
    assert share_folder() == ROOT
    assert find("run_net") == ROOT / "tools" / "run_net.py"
    assert find("prepare_hmdb51") == ROOT / "datasets" / "hmdb51" / "prepare.py"
    assert find("pack") == ROOT / "datasets" / "pack.py"


def test_every_program_is_listed_with_a_line_of_its_own_words():
    lines = {line.split()[0]: line for line in describe().splitlines() if line.startswith("  ")}
    assert list(lines) == list(programs())
    for name, path in programs().items():
        about = lines[name].split(maxsplit=1)[1]
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))).startswith(about[:12])


def vmp(*words, cwd=ROOT, python=sys.executable):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python), "-W", "ignore", "-m", "vmp", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8")


def test_a_misspelt_tool_ends_in_one_line_that_names_the_nearest():
    told = vmp("run_nett")
    assert told.returncode == 1
    assert told.stderr == "error: there is no tool 'run_nett'; did you mean run_net?\n"
    assert "`python -m vmp` lists them" in vmp("xyzzy").stderr
    assert vmp("--debug", "run_nett").stderr == told.stderr  # wherever the word stands


def test_a_tools_own_error_and_status_come_through(tmp_path):
    told = vmp("run_net", "--cfg", "configs/none.yaml", cwd=tmp_path)
    assert told.returncode == 1
    assert told.stderr.startswith("error: configs/none.yaml: there is no file")
    assert vmp("run_net").returncode == 2


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Return the Python of an environment with the wheel, and the packages of this one beside."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    # what a .pth names is on the path, but its own .pth are not read: no editable vmp among it
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    return python


@pytest.mark.slow
def test_the_wheel_answers_from_any_folder(python, tmp_path):
    assert "run_net" in vmp(cwd=tmp_path, python=python).stdout
    assert "--cfg FILE" in vmp("run_net", "--help", cwd=tmp_path, python=python).stdout
    script = python.with_name("vmp-run-net")
    told = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert told.stdout.startswith("usage: run_net.py")
    where = [str(python), "-c", "import vmp; print(vmp.__file__)"]
    assert (
        str(python.parents[1])
        in subprocess.run(where, cwd=tmp_path, capture_output=True, text=True).stdout
    )


TINY = ["X3D.WIDTH_FACTOR", "1.0", "X3D.DEPTH_FACTOR", "0.2", "X3D.DIM_C5", "64"]
TINY += ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "TRAIN.BATCH_SIZE", "4"]
TINY += ["TEST.NUM_ENSEMBLE_VIEWS", "1", "DATA_LOADER.NUM_WORKERS", "1"]


@pytest.mark.slow
def test_the_wheel_makes_data_and_trains_on_it_in_two_processes(python, tmp_path):
    made = vmp(
        *("prepare_motionshapes", "--out", "shapes", "--train", 16, "--test", 8, "--size", 32),
        cwd=tmp_path,
        python=python,
    )
    assert made.returncode == 0, made.stderr
    opts = ["DATA.PATH_TO_DATA_DIR", "shapes", *TINY, "NUM_PROCESSES", "2"]
    command = ("run_net", "--cfg", "configs/MotionShapes/X3D_XS_VMP.yaml")
    told = vmp(*command, *opts, cwd=tmp_path, python=python)
    assert told.returncode == 0, told.stderr
    results = tmp_path / "runs" / "MotionShapes" / "X3D_XS_VMP" / "test_results.json"
    assert results.is_file()
    assert "vmp/_share/configs/MotionShapes/X3D_XS_VMP.yaml is read" in told.stderr


@pytest.mark.slow
def test_a_recipe_of_ones_own_builds_on_those_in_the_wheel_and_is_submitted(python, tmp_path):
    text = "_BASE_: configs/MotionShapes/X3D_XS.yaml\nPROMPT: {ENABLE: True}\n"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    words = ("submit", "--cfg", "mine.yaml", "--gpus-per-node", "0", "--time", "60", "--dry-run")
    told = vmp(*words, cwd=tmp_path, python=python)
    assert told.returncode == 0, told.stderr
    (root,) = [line for line in told.stdout.splitlines() if line.startswith("root=")]
    assert (Path(root.removeprefix("root=")) / "tools" / "run_net.py").is_file()
    assert "_share" in root
