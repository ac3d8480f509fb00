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


def start(cfg, tmp_path, **options) -> subprocess.Popen:
    """Start the program and wait until it has taken some steps."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(cfg.dump())
    program = subprocess.Popen(
        [sys.executable, ROOT / "tools" / "run_net.py", "--cfg", recipe],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    end = time.monotonic() + LIMIT
    while steps(Path(cfg.OUTPUT_DIR)) < 4 and program.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    return program


def wait_for_all(group: int) -> bool:
    """Say whether all processes of the group are gone in time; they are after it."""
    end = time.monotonic() + LIMIT
    while is_alive(group) and time.monotonic() < end:
        time.sleep(0.05)
    gone = not is_alive(group)
    if not gone:
        os.killpg(group, signal.SIGKILL)
    return gone


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.dist)])
def test_signalled_as_slurm_does_it_saves_leaves_with_75_and_leaves_nobody_behind(
    make_cfg, tmp_path, processes
):
    cfg = make_cfg(
        "x3d", SOLVER__MAX_EPOCH=10000, NUM_PROCESSES=processes, DATA_LOADER__NUM_WORKERS=2
    )
    program = start(cfg, tmp_path)
    try:
        end = time.monotonic() + LIMIT
        # every process of the job, loader workers too, and more than once
        while program.poll() is None and time.monotonic() < end:
            os.killpg(program.pid, signal.SIGTERM)
            time.sleep(0.5)
        _, errors = program.communicate(timeout=10)
    finally:
        gone = wait_for_all(program.pid)
    assert program.returncode == EXIT_AGAIN, errors
    assert gone
    assert "stopped by SIGTERM after step" in Path(cfg.OUTPUT_DIR, "log.txt").read_text()


@pytest.mark.dist
def test_processes_whose_parent_is_killed_save_and_leave(make_cfg, tmp_path):
    cfg = make_cfg("x3d", SOLVER__MAX_EPOCH=10000, NUM_PROCESSES=2)
    # as `nohup` does, and `&` in a script
    program = start(cfg, tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    try:
        program.kill()
        program.wait()
    finally:
        gone = wait_for_all(program.pid)
    assert gone
    assert "after step" in Path(cfg.OUTPUT_DIR, "log.txt").read_text()
