"""A real SLURM of two nodes, made on this machine: scripts/slurm/test_cluster.sh."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "slurm" / "test_cluster.sh"
SKIPPED = 77


@pytest.mark.slurm
def test_a_training_warned_preempted_and_killed_ends_with_the_weights_of_an_undisturbed_one():
    done = subprocess.run(["bash", SCRIPT], timeout=1800)  # it tells what it does while it does it
    if done.returncode == SKIPPED:
        pytest.skip("NOTHING OF SLURM WAS TESTED; the lines above say why")
    assert done.returncode == 0


def run_without(tmp_path, **fakes):
    """Run the script where there is no SLURM, and `fakes` are other programs than they are."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "id", "readlink", "realpath"):
        (folder / name).symlink_to(shutil.which(name))
    for name, text in fakes.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(f"#!{folder}/bash\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return subprocess.run(
        [folder / "bash", SCRIPT],
        env={"PATH": str(folder), "VIRTUAL_ENV": os.environ.get("VIRTUAL_ENV", f"{ROOT}/.venv")},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


@pytest.mark.parametrize(
    ("fakes", "reason"),
    [
        ({"id": "echo 1000"}, "takes root"),
        ({"id": "echo 0"}, "there is no apt-get here"),
        ({"id": "echo 0", "apt-get": "exit 100"}, "is there a network?"),
    ],
)
def test_where_no_cluster_can_be_made_the_test_says_loudly_that_it_was_skipped(
    tmp_path, fakes, reason
):
    done = run_without(tmp_path, **fakes)
    assert done.returncode == SKIPPED
    assert reason in done.stderr
    assert "\nNOTHING OF SLURM WAS TESTED\n" in done.stderr
