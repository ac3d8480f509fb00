"""Checkpoints: in order, whole, in the background, pruned, the best kept."""

import logging
import threading

import pytest
import torch

from vmp.engine import checkpoint
from vmp.engine.checkpoint import (
    CheckpointWriter,
    best_path,
    checkpoint_path,
    list_checkpoints,
    read_newest,
    save_checkpoint,
    snapshot,
)


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


def test_checkpoints_sort_as_they_were_taken(tmp_path):
    places = [(0, 3), (0, 20), (1, 0), (1, 5), (2, 0), (9, 99), (10, 0)]
    for epoch, update in reversed(places):
        save_checkpoint(checkpoint_path(tmp_path, epoch, update), {"at": (epoch, update)})
    assert [torch.load(path)["at"] for path in list_checkpoints(tmp_path)] == places


def test_the_newest_stay_and_the_best_besides(tmp_path):
    for epoch in range(1, 7):
        path = checkpoint_path(tmp_path, epoch)
        save_checkpoint(path, {"epoch": epoch}, keep=2, best=epoch == 3)
    assert names(tmp_path) == ["epoch_00005.pth", "epoch_00006.pth"]
    assert torch.load(best_path(tmp_path))["epoch"] == 3
    save_checkpoint(checkpoint_path(tmp_path, 7), {"epoch": 7}, keep=2, best=True)
    assert torch.load(best_path(tmp_path))["epoch"] == 7
    assert sorted(path.name for path in best_path(tmp_path).parent.iterdir()) == [
        "best.pth",
        "epoch_00006.pth",
        "epoch_00007.pth",
    ]


def test_where_there_are_no_hard_links_the_best_is_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.os, "link", lambda *_: (_ for _ in ()).throw(OSError("no")))
    save_checkpoint(checkpoint_path(tmp_path, 1), {"epoch": 1}, best=True)
    assert torch.load(best_path(tmp_path))["epoch"] == 1


def test_one_changed_byte_is_noticed_and_the_one_before_is_taken(tmp_path, caplog):
    for epoch in (1, 2):
        save_checkpoint(checkpoint_path(tmp_path, epoch), {"w": torch.arange(1000.0) + epoch})
    newest = list_checkpoints(tmp_path)[-1]
    data = bytearray(newest.read_bytes())
    place = data.index(torch.arange(1000.0)[500:510].add(2).numpy().tobytes())
    data[place] ^= 1
    newest.write_bytes(data)
    path, state = read_newest(tmp_path)
    assert path.name == "epoch_00001.pth"
    assert torch.equal(state["w"], torch.arange(1000.0) + 1)
    assert "the one before it is taken" in caplog.text


def test_a_snapshot_is_not_changed_by_training():
    value = {"a": [torch.ones(2), {"b": torch.ones(1)}], "c": (1, "x")}
    copied = snapshot(value)
    value["a"][0].zero_()
    value["a"][1]["b"].zero_()
    assert torch.equal(copied["a"][0], torch.ones(2))
    assert torch.equal(copied["a"][1]["b"], torch.ones(1))
    assert copied["c"] == (1, "x")


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slowly(*args, **kwargs):
        begun.set()
        assert go_on.wait(30)
        return save_checkpoint(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_checkpoint", slowly)
    writer, weights = CheckpointWriter(keep=0), torch.ones(3)
    writer.save(checkpoint_path(tmp_path, 1), {"w": weights})
    assert begun.wait(30)
    weights.zero_()  # the next step
    assert names(tmp_path) == []
    go_on.set()
    writer.wait()
    assert torch.equal(torch.load(list_checkpoints(tmp_path)[0])["w"], torch.ones(3))
    assert len(writer.stalls) == 1


def test_a_full_disk_is_a_warning_and_the_checkpoint_before_stays(tmp_path, monkeypatch, caplog):
    writer = CheckpointWriter(keep=1)
    writer.save(checkpoint_path(tmp_path, 1), {"epoch": 1})
    writer.wait()
    save = torch.save

    def full(state, file):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with caplog.at_level(logging.WARNING):
        writer.save(checkpoint_path(tmp_path, 2), {"epoch": 2})
        writer.wait()
    assert "epoch_00002.pth can't be written" in writer.failed
    assert "the checkpoints before it are kept" in caplog.text
    folder = checkpoint_path(tmp_path, 1).parent
    assert [path.name for path in folder.iterdir()] == ["epoch_00001.pth"]
    monkeypatch.setattr(torch, "save", save)
    writer.save(checkpoint_path(tmp_path, 3), {"epoch": 3})
    writer.wait()
    assert writer.failed == ""
    assert names(tmp_path) == ["epoch_00003.pth"]


def test_what_a_killed_save_left_is_swept(tmp_path):
    folder = checkpoint_path(tmp_path, 1).parent
    folder.mkdir(parents=True)
    (folder / ".epoch_00001.pth.123.partial").write_bytes(b"half")
    save_checkpoint(checkpoint_path(tmp_path, 1), {"epoch": 1})
    assert [path.name for path in folder.iterdir()] == ["epoch_00001.pth"]


def test_a_folder_of_damaged_checkpoints_is_refused(tmp_path):
    save_checkpoint(checkpoint_path(tmp_path, 1), {"epoch": 1})
    list_checkpoints(tmp_path)[0].write_bytes(b"damaged")
    with pytest.raises(ValueError, match="none of the checkpoints in .* can be read"):
        read_newest(tmp_path)
