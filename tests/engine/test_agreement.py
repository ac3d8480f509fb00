"""Facts that must agree between ranks, and the store through which they are told."""

import socket
import time

import pytest
import torch.distributed as dist

from tests.engine.test_launch import GENEROUS, environments, run_ranks
from vmp.engine import agreement
from vmp.engine.agreement import LostRankError, Meeting, check_agreement, describe_differences
from vmp.engine.stopping import Decisions

HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, seconds in {"BEAT": 0.2, "GRACE": 3.0, "LINGER": 1.0}.items():
        monkeypatch.setattr(agreement, name, seconds)


def agree(facts):
    """Compare the facts of this rank; twice, since a run may do it again."""
    rank = dist.get_rank()
    check_agreement({"version": "1.0"}, seconds=GENEROUS)
    check_agreement(facts[rank], seconds=GENEROUS)


def come_late(rank):
    """Have one rank come too late for the others, who wait for 1 second."""
    if dist.get_rank() == rank:
        time.sleep(3)
    check_agreement({"version": "1.0"}, seconds=1)


def fail_before(rank):
    if dist.get_rank() == rank:
        raise ValueError("index.tsv is not there")
    check_agreement({"version": "1.0"}, seconds=GENEROUS)


@pytest.mark.dist
def test_ranks_that_agree_go_on():
    facts = [{"records": "12", "config": "ab"}] * 3
    outcomes = run_ranks(agree, facts, environments(3))
    assert [each.text for each in outcomes] == ["done"] * 3


@pytest.mark.dist
def test_a_rank_that_differs_is_named_on_all_ranks_with_both_values():
    facts = [{"records": "12", "config": "ab"}] * 3
    facts[1] = {"records": "11", "config": "ab"}
    outcomes = run_ranks(agree, facts, environments(3))
    assert {each.text for each in outcomes} == {
        f"ValueError: the ranks do not agree: records is '11' on rank 1 ({HOST}), '12' on ranks "
        f"0 ({HOST}), 2 ({HOST}); give all of them the same config, data and installation"
    }
    assert max(each.seconds for each in outcomes) < GENEROUS / 2


def work_long(rank):
    """Have one rank work for longer than the others wait, and say that it gets on."""
    for _ in range(12 if dist.get_rank() == rank else 0):
        time.sleep(0.25)
        agreement.get_on()
    check_agreement({"version": "1.0"}, seconds=1)


def hear_of_a_stop(rank):
    """Have one rank ask all to stop, and each work on until it hears of it."""
    reason = "SIGTERM" if dist.get_rank() == rank else ""
    while not (heard := agreement.get_on(reason)):
        time.sleep(0.01)
    raise ValueError(heard)


@pytest.mark.dist
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_gets_on_is_waited_for(rank):
    outcomes = run_ranks(work_long, rank, environments(2))
    assert [each.text for each in outcomes] == ["done"] * 2


@pytest.mark.dist
@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_hear_why_one_wants_to_stop(rank):
    outcomes = run_ranks(hear_of_a_stop, rank, environments(2))
    assert [each.text for each in outcomes] == ["ValueError: SIGTERM"] * 2


def decide_late(rank):
    """Have one rank be late to a decision, of which the others wait for 2 seconds."""
    decisions = Decisions(0, timeout=2)
    decisions.after_step()
    if dist.get_rank() == rank:
        time.sleep(GENEROUS / 2)
    decisions.after_step()
    decisions.settle()


@pytest.mark.dist
def test_a_rank_that_does_not_come_to_decide_ends_all_in_time():
    outcomes = run_ranks(decide_late, 1, environments(2), timeout=GENEROUS)
    assert "rank 1" in outcomes[0].text
    assert outcomes[0].seconds < GENEROUS / 2


@pytest.mark.dist
def test_a_rank_that_does_not_come_to_compare_ends_all():
    outcomes = run_ranks(come_late, 1, environments(3))
    expected = f"LostRankError: rank 1 ({HOST}) of 3 did not come within 1 s; look into its log"
    assert {each.text for each in outcomes} == {expected}  # the late one learns it when it comes


@pytest.mark.dist
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_before_ends_those_who_wait(rank):
    outcomes = run_ranks(fail_before, rank, environments(2))
    assert outcomes.pop(rank).text == "ValueError: index.tsv is not there"
    reason = "failed with ValueError: index.tsv is not there"
    assert [each.text for each in outcomes] == [f"LostRankError: rank {rank} ({HOST}) {reason}"]
    assert outcomes[0].seconds < GENEROUS / 2


def test_a_single_process_agrees_with_itself():
    check_agreement({"records": "12"}, seconds=1)


def test_what_is_equal_everywhere_is_no_difference():
    assert describe_differences([{"a": "1", "b": "2"}] * 4) == ""


def test_the_rarest_value_comes_first_and_many_ranks_are_spans():
    facts = [{"records": "12"}] * 9
    facts[4] = {"records": "11"}
    assert describe_differences(facts) == "records is '11' on rank 4, '12' on ranks 0-3, 5-8"


def test_of_two_ranks_that_differ_rank_0_is_right():
    assert describe_differences([{"a": "1"}, {"a": "2"}]) == "a is '2' on rank 1, '1' on rank 0"


def test_a_fact_that_a_rank_has_not_is_missing_there():
    assert describe_differences([{"a": "1"}, {}]) == "a is missing on rank 1, '1' on rank 0"


def test_long_values_are_compared_whole_and_told_short():
    long = "x" * 500
    told = describe_differences([{"a": long + "1"}, {"a": long + "2"}, {"b": "1"}])
    assert told.count("x") < 200
    assert "rank 1" in told


def test_of_many_differences_some_are_told_and_the_rest_counted():
    told = describe_differences([{key: str(rank) for key in "abcdef"} for rank in range(2)])
    assert "c is " in told
    assert "d is " not in told
    assert told.endswith("; and 3 more")


def test_a_store_that_has_gone_is_rank_0s_loss():
    listener = socket.create_server(("127.0.0.1", 0))
    line = socket.create_connection(listener.getsockname())
    line.setblocking(False)
    meeting = Meeting(dist.HashStore(), 1, 2, line=line)
    meeting.hosts = ["node0", "node1"]
    listener.accept()[0].close()
    with pytest.raises(LostRankError, match=r"^rank 0 \(node0\) gave no sign of life"):
        meeting.exchange("", seconds=GENEROUS)
    assert "rank 0 (node0)" in str(meeting.explain(RuntimeError("gloo"), seconds=1))
    meeting.leave()  # which has nobody to tell


def test_only_the_first_trouble_counts():
    store = dist.HashStore()
    first, second = (Meeting(store, rank, 2, line=None) for rank in range(2))
    first.hosts = second.hosts = ["node0", "node1"]
    first.fail(ValueError("the cause"))
    second.fail(KeyError("what follows"))
    lost = second.explain(RuntimeError("gloo"), seconds=1)
    assert str(lost) == "rank 0 (node0) failed with ValueError: the cause"


def test_ranks_that_all_live_and_end_blame_the_connection():
    store = dist.HashStore()
    store.set("end/1", "")
    meeting = Meeting(store, 0, 2, line=None)
    lost = meeting.explain(RuntimeError("[gloo/pair.cc] Broken pipe"), seconds=1)
    assert str(lost) == "the connection between the ranks broke: [gloo/pair.cc] Broken pipe"
