"""tools/run_net.py as a process of its own: how it ends when it is signalled."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vmp.utils.signals import EXIT_AGAIN

LIMIT = 120  # seconds, for a machine that is busy with other things


def steps(folder: Path) -> int:
    try:
        lines = (folder / "log.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines), default=0)


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.dist)])
def test_signalled_as_slurm_does_it_saves_leaves_with_75_and_leaves_nobody_behind(
    make_cfg, tmp_path, processes
):
    cfg = make_cfg(
        "x3d", SOLVER__MAX_EPOCH=10000, NUM_PROCESSES=processes, DATA_LOADER__NUM_WORKERS=2
    )
    recipe, folder = tmp_path / "recipe.yaml", Path(cfg.OUTPUT_DIR)
    recipe.write_text(cfg.dump())
    program = subprocess.Popen(
        [sys.executable, ROOT / "tools" / "run_net.py", "--cfg", recipe],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + LIMIT
        while steps(folder) < 4 and program.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        # every process of the job, loader workers too, and more than once
        while program.poll() is None and time.monotonic() < end:
            os.killpg(program.pid, signal.SIGTERM)
            time.sleep(0.5)
        _, errors = program.communicate(timeout=10)
        while is_alive(program.pid) and time.monotonic() < end:
            time.sleep(0.05)
        left = is_alive(program.pid)
    finally:
        if is_alive(program.pid):
            os.killpg(program.pid, signal.SIGKILL)
    assert program.returncode == EXIT_AGAIN, errors
    assert not left
    assert "stopped by SIGTERM after step" in (folder / "log.txt").read_text()
