"""One run at a time in a folder; a dead one holds nothing."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from vmp.engine.lock import NAME, RunLock

OWNER = textwrap.dedent(
    """
    import os, sys, time
    from vmp.engine.lock import RunLock
    lock = RunLock(sys.argv[1])
    if os.fork() == 0:  # a worker that outlives its parent
        time.sleep(60)
    print("locked", flush=True)
    time.sleep(60)
    """
)


def own(folder) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == b"locked\n"
    return process


def test_a_second_run_is_refused_and_the_first_is_named(tmp_path):
    owner = own(tmp_path)
    try:
        with pytest.raises(ValueError, match=f"is in use by process {owner.pid} on .*OUTPUT_DIR"):
            RunLock(tmp_path, patience=0.3)
    finally:
        os.killpg(owner.pid, signal.SIGKILL)


def test_a_killed_run_leaves_no_lock_though_its_children_live(tmp_path):
    owner = own(tmp_path)
    owner.kill()
    owner.wait()
    try:
        with RunLock(tmp_path, patience=0.0):
            assert (tmp_path / NAME).read_text().startswith(f"process {os.getpid()} on ")
    finally:
        os.killpg(owner.pid, signal.SIGKILL)


def test_a_released_folder_can_be_taken_again(tmp_path):
    RunLock(tmp_path).release()
    with RunLock(tmp_path / "new" / "folder"):
        pass
    with RunLock(tmp_path, patience=0.0):
        pass


def test_a_folder_that_is_a_file_is_told_with_a_way_out(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(ValueError, match=r"^OUTPUT_DIR .*recipe\.yaml is a file; name a folder$"):
        RunLock(tmp_path / "recipe.yaml")


def test_a_folder_that_cannot_be_made_or_written_is_told_with_the_reason(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "taken" / NAME).mkdir(parents=True)
    for folder, reason in (("file/below", "Not a directory"), ("taken", "Is a directory")):
        told = rf"OUTPUT_DIR .*{folder} can't be made or written \({reason}\); name another folder"
        with pytest.raises(ValueError, match=told):
            RunLock(tmp_path / folder)


def test_a_file_system_without_locks_is_told_with_a_way_out(tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    with pytest.raises(ValueError, match=r"run.lock can't be locked \(No locks available\).*flock"):
        RunLock(tmp_path)
