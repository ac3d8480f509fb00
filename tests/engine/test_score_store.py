"""What a killed test leaves on the disk is taken up exactly, and never by another test."""

import errno
import os

import pytest
import torch

from vmp.engine import score_store
from vmp.engine.score_store import Scores, ScoreStore

FACTS = {"weights": "abc", "config": "def", "TEST.BATCH_SIZE": "4"}


def scores_of(*items):
    """Return odd scores of some items, the same at every call."""
    values = torch.tensor(items).double().unsqueeze(1)
    logits = torch.cat([values.sin(), values * 1e-30, values / 0, values.log()], 1).float()
    return Scores(torch.tensor(items), logits)


def same(scores, items):
    """Say whether these are the scores of `items`, bit for bit, in order."""
    expected = scores_of(*items)
    bits = [each.view(torch.int32).flatten() for each in (scores.logits, expected.logits)]
    return scores.item.tolist() == list(items) and torch.equal(*bits)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "test_scores"


@pytest.fixture
def be_rank(monkeypatch):
    """Return a function that makes this process another rank."""
    return lambda rank: monkeypatch.setattr(score_store, "get_rank", lambda: rank)


def fill(folder, *batches, facts=FACTS):
    """Keep the scores of batches, as one start of a test; return what it took up."""
    store = ScoreStore(folder, facts)
    found = store.take_up()
    for items in batches:
        store.add(scores_of(*items))
    store.close()
    return found


def test_what_all_ranks_kept_is_taken_up_in_order_and_to_the_bit(folder, be_rank):
    assert not len(fill(folder, [4, 5], [6]).item)
    be_rank(2)  # rank 0's part of `take_up` is done by every process without a group
    fill(folder, [0, 2], [9])
    be_rank(0)
    assert same(fill(folder, [7]), [0, 2, 4, 5, 6, 9])
    assert same(fill(folder), [0, 2, 4, 5, 6, 7, 9])
    assert sorted(path.name for path in folder.iterdir()) == ["rank0.scores", "rank2.scores"]


def test_a_file_cut_off_anywhere_keeps_its_whole_records_and_goes_on(folder):
    fill(folder, [0, 1], [2, 3], [4])
    path = folder / "rank0.scores"
    whole = path.read_bytes()
    head = len(whole) - sum(16 + count * (8 + 4 * 4) for count in (2, 2, 1))
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        records = sum(length >= head + end for end in (64, 128, 168))
        before = [0, 1, 2, 3, 4][: 2 * records]
        assert same(fill(folder, [8]), before), length
        assert same(fill(folder), [*before, 8]), length


def test_no_damage_of_a_byte_makes_a_wrong_score(folder):
    fill(folder, [0, 1], [2, 3])
    path = folder / "rank0.scores"
    whole = path.read_bytes()
    counts = set()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        found = fill(folder)
        assert same(found, [0, 1, 2, 3][: len(found.item)]), place
        counts.add(len(found.item))
    assert counts == {0, 2}  # what follows the damage is not used


def test_zeros_that_a_power_cut_leaves_are_cut_off(folder):
    fill(folder, [0, 1])
    with (folder / "rank0.scores").open("ab") as file:
        file.write(bytes(1000))
    assert same(fill(folder, [2]), [0, 1])
    assert same(fill(folder), [0, 1, 2])


@pytest.mark.parametrize("name", [*FACTS, "new"])
def test_scores_of_another_test_are_set_aside_and_not_mixed_in(folder, caplog, name):
    fill(folder, [0, 1])
    other = FACTS | {name: "other"}
    assert not len(fill(folder, [2], facts=other).item)
    assert f"differs in {name}; they are set aside" in caplog.text
    assert same(fill(folder, facts=other), [2])
    assert not len(fill(folder).item)  # set aside is not taken back
    names = sorted(path.name for path in folder.parent.iterdir())
    assert names == ["test_scores", "test_scores.aside"]  # one, however many there were


def test_starts_in_a_row_do_not_grow_the_folder(folder, be_rank):
    for start in range(30):
        be_rank(start % 3)
        fill(folder, [start])
    be_rank(0)
    for _ in range(20):
        assert same(fill(folder), range(30))
    files = list(folder.iterdir())
    assert len(files) == 3
    assert sum(path.stat().st_size for path in files) < 3 * 100 + 30 * (16 + 8 + 4 * 4)


def test_a_view_kept_twice_is_taken_up_once(folder):
    fill(folder, [0, 1], [1, 2])
    assert same(fill(folder), [0, 1, 2])


def test_a_full_disk_is_one_warning_and_only_its_records_are_missing(folder, monkeypatch, caplog):
    write, full = os.write, []

    def write_a_part(descriptor, data):
        if full:
            write(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_a_part)
    store = ScoreStore(folder, FACTS)
    store.take_up()
    for item in range(6):
        full[:] = [True] if item in (2, 3) else []
        store.add(scores_of(item))
    store.close()
    assert same(fill(folder), [0, 1, 4, 5])
    assert caplog.text.count("No space left on device: scores are not kept") == 1


def test_a_folder_that_cannot_be_made_is_a_warning(folder, caplog):
    folder.parent.mkdir()
    folder.write_text("in its place")
    assert not len(fill(folder, [0]).item)
    assert "scores are not kept" in caplog.text


def test_a_store_that_is_done_with_leaves_nothing(folder):
    store = ScoreStore(folder, FACTS)
    store.take_up()
    store.add(scores_of(3))
    store.close()
    store.remove()
    assert list(folder.parent.iterdir()) == []
