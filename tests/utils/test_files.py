"""Files are whole or not there."""

import pickle

import pytest
import torch

from vmp.utils.files import read_tensors, write_atomically, write_text


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


def test_tensors_and_plain_values_come_back(tmp_path):
    path = tmp_path / "weights.pth"
    state = {"model": {"weight": torch.arange(3.0)}, "epoch": 3, "config": "text"}
    write_atomically(path, lambda file: torch.save(state, file))
    back = read_tensors(path)
    assert torch.equal(back["model"]["weight"], state["model"]["weight"])
    assert (back["epoch"], back["config"]) == (3, "text")


class Runs:
    """What a malicious file holds: reading it would make a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("kind", ["pickle", "torch", "text", "cut", "missing"])
def test_other_files_are_refused_in_one_line_and_nothing_in_them_runs(tmp_path, kind):
    marker, path = tmp_path / "ran", tmp_path / "weights.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Runs(marker)))
    elif kind == "torch":
        torch.save({"model": Runs(marker)}, path)
    elif kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "cut":
        torch.save({"weight": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"weights\.pth") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
