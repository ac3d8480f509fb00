"""The set-up scripts in a sandbox: what is on PATH and what pip does is made up, so offline."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ["bash", "basename", "cat", "cp", "cut", "dirname", "df", "env", "flock", "grep", "mkdir"]
TOOLS += ["rm", "sha256sum", "tail", "tr"]
GB = 1024 * 1024  # in the KB that df counts

# A Python that says its version, makes environments of itself, and whose pip does what
# $PIP_DOES says. Every call is a line of $CALLS.
FAKE_PYTHON = r"""#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$CALLS"
version=${FAKE_VERSION:-3.11}
case "$1 $2" in
"-c import sys; sys.exit("*) [ "${version#3.}" -ge 10 ] ;;
"-c import sys; print("*) echo "$version" ;;
"-c import ensurepip"*) [ -z "${NO_VENV:-}" ] ;;
"-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
"-m pip") [ "$3" = --version ] || eval "${PIP_DOES:-:}" ;;
*) : ;;
esac
"""


class Sandbox:
    """A copy of the checkout's set-up files, and a PATH with nothing but what is put there."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.calls = folder / "a checkout", folder / "bin", folder / "calls"
        self.bin.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copytree(ROOT / "requirements", self.root / "requirements")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.calls.touch()
        self.add("df", f"#!/bin/bash\necho Avail\necho {20 * GB}\n")

    def add(self, name: str, text: str) -> None:
        """Put a program on the PATH."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def run(self, script: str = "install.sh", *args: str, **env: str) -> tuple[int, list[str]]:
        """Return the exit status of a script and the lines it wrote."""
        done = subprocess.run(
            [str(self.bin / "bash"), str(self.root / "scripts" / script), *args],
            env={"PATH": str(self.bin), "CALLS": str(self.calls), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=60,
        )
        return done.returncode, done.stdout.splitlines()

    def pip_calls(self) -> list[str]:
        """Return the packages of every `pip install` so far, and forget all calls."""
        lines = self.calls.read_text(encoding="utf-8").splitlines()
        self.calls.write_text("", encoding="utf-8")
        return [line.split("constraints.txt ")[1] for line in lines if "pip install" in line]


@pytest.fixture
def sandbox(tmp_path):
    """Return a sandbox whose python3 is a fake one, 3.11 by default."""
    made = Sandbox(tmp_path)
    made.add("python3", FAKE_PYTHON)
    return made


def fails_with(result, *words):
    """Assert a failure whose last line alone is an error line, and has all of `words`."""
    status, lines = result
    assert status != 0
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    for word in words:
        assert word in lines[-1]


EVERYTHING = ["setuptools", "--no-build-isolation --use-pep517 --editable .[dev]"]


def test_an_install_makes_a_venv_once_and_is_quick_the_second_time(sandbox):
    status, lines = sandbox.run()
    assert status == 0, lines
    assert lines[-1] == f"-- installed in {sandbox.root}/.venv"
    assert sandbox.pip_calls() == EVERYTHING
    status, lines = sandbox.run()
    assert (status, lines) == (0, [f"-- installed already in {sandbox.root}/.venv"])
    assert sandbox.pip_calls() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements/constraints.txt"])
def test_an_install_is_repeated_when_what_it_installs_has_changed(sandbox, name):
    sandbox.run()
    sandbox.pip_calls()
    with (sandbox.root / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    (sandbox.root / ".venv" / "kept").touch()
    assert sandbox.run()[0] == 0
    assert sandbox.pip_calls() == EVERYTHING
    assert (sandbox.root / ".venv" / "kept").exists()


def test_a_checkout_that_was_moved_is_installed_again(sandbox):
    sandbox.run()
    sandbox.pip_calls()
    sandbox.root = sandbox.root.rename(sandbox.root.with_name("elsewhere"))
    assert sandbox.run()[0] == 0
    assert sandbox.pip_calls() == EVERYTHING


def test_an_active_environment_is_used_and_no_other_made(sandbox, tmp_path):
    active = tmp_path / "active"
    (active / "bin").mkdir(parents=True)
    shutil.copy(sandbox.bin / "python3", active / "bin" / "python")
    status, lines = sandbox.run(VIRTUAL_ENV=str(active))
    assert (status, lines[-1]) == (0, f"-- installed in {active}")
    assert not (sandbox.root / ".venv").exists()


def test_an_active_environment_that_is_gone_is_named(sandbox, tmp_path):
    fails_with(sandbox.run(VIRTUAL_ENV=str(tmp_path / "gone")), "gone", "unset VIRTUAL_ENV")


def test_an_active_environment_that_is_too_old_is_named(sandbox, tmp_path):
    active = tmp_path / "active"
    (active / "bin").mkdir(parents=True)
    shutil.copy(sandbox.bin / "python3", active / "bin" / "python")
    result = sandbox.run(VIRTUAL_ENV=str(active), FAKE_VERSION="3.9")
    fails_with(result, "3.9", "3.10 is needed", "deactivate")


def test_a_python_that_is_too_old_is_named(sandbox):
    fails_with(sandbox.run(FAKE_VERSION="3.8"), "Python >= 3.10", "python3=3.8", "install")
    assert not (sandbox.root / ".venv" / "bin").exists()


def test_a_newer_python_on_the_path_is_found(sandbox):
    old = FAKE_PYTHON.replace("${FAKE_VERSION:-3.11}", "3.8")
    sandbox.add("python3", old)
    sandbox.add("python3.13", "#!/bin/bash\necho pyenv: not found >&2\nexit 127\n")
    sandbox.add("python3.12", FAKE_PYTHON.replace("${FAKE_VERSION:-3.11}", "3.12"))
    status, lines = sandbox.run()
    assert status == 0
    assert lines[0] == f"-- making .venv with {sandbox.bin}/python3.12 (Python 3.12)"


def test_no_python_at_all_is_said(sandbox):
    (sandbox.bin / "python3").unlink()
    fails_with(sandbox.run(), "Python >= 3.10", "none", "install")


def test_a_python_without_venv_names_the_package_to_install(sandbox):
    fails_with(sandbox.run(NO_VENV="1"), "no venv module", "apt install python3.11-venv")


def test_a_full_disk_is_said_before_anything_is_downloaded(sandbox):
    sandbox.add("df", f"#!/bin/bash\necho Avail\necho {3 * GB}\n")
    fails_with(sandbox.run(), "no disk", "8 GB", "3072 MB free")
    assert sandbox.pip_calls() == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("OSError: [Errno 28] No space left on device", "no disk"),
        ("WARNING: Retrying after connection broken by NewConnectionError('...')", "no network"),
        ("urllib3: Temporary failure in name resolution", "no network"),
        ("ReadTimeoutError: Read timed out.", "no network"),
        ("ERROR: something else", "its last lines above say why"),
    ],
)
def test_a_failing_pip_is_explained_and_an_unfinished_venv_begun_afresh(sandbox, words, reason):
    result = sandbox.run(PIP_DOES=f'echo "{words}" >&2; exit 1')
    fails_with(result, reason)
    assert words in result[1]
    (sandbox.root / ".venv" / "half").touch()
    sandbox.add("python3", FAKE_PYTHON.replace("mkdir -p", 'rm -rf "$4" && mkdir -p'))
    sandbox.pip_calls()
    assert sandbox.run()[0] == 0
    assert sandbox.pip_calls() == EVERYTHING
    assert not (sandbox.root / ".venv" / "half").exists()


def test_an_update_that_fails_keeps_the_environment_and_is_tried_again(sandbox):
    sandbox.run()
    before = (sandbox.root / "pyproject.toml").read_text(encoding="utf-8")
    (sandbox.root / "pyproject.toml").write_text(before + "# changed\n", encoding="utf-8")
    (sandbox.root / ".venv" / "kept").touch()
    fails_with(sandbox.run(PIP_DOES="exit 1"), "pip failed")
    (sandbox.root / "pyproject.toml").write_text(before, encoding="utf-8")
    sandbox.pip_calls()
    assert sandbox.run()[0] == 0
    assert sandbox.pip_calls() == EVERYTHING
    assert (sandbox.root / ".venv" / "kept").exists()


def test_run_tests_checks_in_order_and_hands_its_arguments_to_pytest(sandbox):
    status, lines = sandbox.run("run_tests.sh", "-m", "slow")
    assert status == 0, lines
    calls = sandbox.calls.read_text(encoding="utf-8").splitlines()[-4:]
    assert calls == [
        "python -m ruff check .",
        "python -m ruff format --check .",
        "python -m mypy",
        "python -m pytest -q -m slow",
    ]


@pytest.mark.parametrize("step", ["ruff check", "ruff format", "mypy"])
def test_a_failing_check_ends_with_one_line_that_says_what_to_do(sandbox, step):
    fake = FAKE_PYTHON.replace("*) : ;;", f'*) [[ "$*" != "-m {step}"* ]] ;;')
    sandbox.add("python3", fake)
    fails_with(sandbox.run("run_tests.sh"), step.split()[0])


def test_check_without_an_install_says_how_to_install(sandbox):
    fails_with(sandbox.run("check.sh"), "bash scripts/install.sh")


def test_quickstart_installs_then_runs_the_tool(sandbox):
    status, lines = sandbox.run("quickstart.sh", "--epochs", "1")
    assert status == 0, lines
    last = sandbox.calls.read_text(encoding="utf-8").splitlines()[-1]
    assert last == "python tools/quickstart.py --epochs 1"


def test_the_ci_runs_the_tests_as_a_user_does(tmp_path):
    for script in (ROOT / ".ci" / "run", *(ROOT / "scripts").glob("*.sh")):
        assert os.access(script, os.X_OK), script
        subprocess.run(["bash", "-n", str(script)], check=True)
    (tmp_path / ".ci").mkdir()
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "scripts" / "run_tests.sh").write_text("echo tests; exit 3\n", encoding="utf-8")
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (3, "tests\n")


def test_a_real_pip_without_a_network_says_so(sandbox):
    sandbox.add("python3", f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
    env = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
    result = sandbox.run(PIP_RETRIES="1", HOME=str(sandbox.root), **env)
    fails_with(result, "no network", "run this again")


def test_every_constraint_is_an_exact_version_from_the_index():
    text = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) > 50
    for line in lines:
        name, _, version = line.split(";")[0].strip().partition("==")
        assert name.replace("-", "").replace("_", "").isalnum(), line
        assert version, line
        assert "@" not in line
        assert "/" not in line
    assert not [line for line in lines if line.split("==")[0] == "vmp"]
