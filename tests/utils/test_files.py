"""Files are whole or not there."""

import pytest

from vmp.utils.files import git_commit, write_atomically, write_text


def test_a_failure_while_writing_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a" / "state"
    write_text(path, "old")

    def fail(file):
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_the_file_appears_under_its_name_only_when_complete(tmp_path):
    path = tmp_path / "state"

    def write(file):
        assert not path.exists()
        file.write(b"all")

    write_atomically(path, write)
    assert path.read_bytes() == b"all"


def test_the_commit_is_a_hash_or_unknown():
    commit = git_commit().removesuffix("+changes")
    assert commit == "unknown" or (len(commit) == 40 and int(commit, 16) >= 0)
