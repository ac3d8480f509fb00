"""Launching: ranks meet, fail together within bounds, and say why in one line."""

import gc
import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from torch.nn.parallel import DistributedDataParallel

from vmp.engine import agreement
from vmp.engine.agreement import LostRankError
from vmp.utils import signals
from vmp.utils.signals import Interrupted

module = importlib.import_module("vmp.engine.launch")  # the package has a function of that name
launch = module.launch
ROOT = Path(__file__).resolve().parents[2]
GENEROUS = 60.0  # seconds, for what takes few


# ---------------------------------------------------------------- ranks, started as launchers do


class Outcome(NamedTuple):
    text: str  # "done", or the error
    seconds: float


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environments(count, **more):
    """Return what a launcher sets for `count` ranks on this host."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{"RANK": str(r), "LOCAL_RANK": str(r)} | shared | more for r in range(count)]


def run_ranks(function, argument, settings, **options):
    """Launch `function` in a forked process for each setting; return the Outcomes in their order.

    None stands for one that was killed or had to be: as soon as the others are done.
    """
    context = multiprocessing.get_context("fork")
    started = []
    for setting in settings:
        reader, writer = context.Pipe(duplex=False)
        arguments = (writer, setting, function, argument, options)
        process = context.Process(target=_one, args=arguments, daemon=True)
        process.start()
        writer.close()
        started.append((process, reader))
    outcomes = [
        _read(reader) if _expected(s) else None
        for s, (_, reader) in zip(settings, started, strict=True)
    ]
    for process, _ in started:
        process.kill()
        process.join()
    return outcomes


def _expected(setting):
    return "LOST" not in setting


def _read(reader):
    try:
        return Outcome(*reader.recv()) if reader.poll(GENEROUS) else None
    except EOFError:
        return None


def _one(writer, setting, function, argument, options):
    gc.freeze()  # what the tests before have left has threads that only their process has
    os.environ.update(setting)
    torch.set_num_threads(1)
    began = time.monotonic()
    try:
        launch(function, argument, **options)
        text = "done"
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    writer.send((text, time.monotonic() - began))
    writer.close()
    os._exit(0)


@pytest.fixture
def _quick(monkeypatch):
    """Shorten the waiting for ranks that are gone."""
    for name, seconds in {"BEAT": 0.2, "GRACE": 3.0, "LINGER": 1.0, "PATIENCE": 6.0}.items():
        monkeypatch.setattr(agreement, name, seconds)


def add_up(expected):
    """Check that the ranks add up, and that each has its own number."""
    total = torch.tensor([1.0, dist.get_rank()])
    dist.all_reduce(total)
    assert total.tolist() == expected
    assert os.environ["RANK"] == str(dist.get_rank())


def go_wrong(how):
    """Work together until the rank named in `how` does what it says."""
    what, _, who = how.partition(" on ")
    held = DistributedDataParallel(nn.Linear(2, 2))  # as a model in training does
    for step in range(1000):
        if step == 3 and str(dist.get_rank()) == who:
            {
                "fails": lambda: {}["no such key"],
                "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
                "stops": lambda: os.kill(os.getpid(), signal.SIGSTOP),
                "hangs": lambda: time.sleep(GENEROUS),
            }[what]()
        dist.all_reduce(torch.ones(2))
    return held


def tell_rest(argument):
    return f"the last checkpoint of {argument!r} is x.pth"


# ---------------------------------------------------------------- meeting


def test_one_process_runs_in_place():
    called = []
    launch(called.append, "cfg")
    assert called == ["cfg"]


@pytest.mark.dist
@pytest.mark.parametrize("count", [1, 3])
def test_ranks_of_a_launcher_meet(count):
    expected = [count, sum(range(count))]
    outcomes = run_ranks(add_up, expected, environments(count))
    assert [each.text for each in outcomes] == ["done"] * count


@pytest.mark.dist
def test_what_an_earlier_life_left_in_the_launchers_store_is_not_followed():
    board = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    settings = environments(
        2, TORCHELASTIC_RUN_ID="a", TORCHELASTIC_USE_AGENT_STORE="True", MASTER_PORT=str(board.port)
    )
    board.set("vmp a", f"127.0.0.1 {free_port()} token")  # nobody is there any more
    for _ in range(2):  # and again after the first of these lives
        outcomes = run_ranks(add_up, [2, 1], settings, init_timeout=30)
        assert [each.text for each in outcomes] == ["done"] * 2


@pytest.mark.slow  # its limits of a second are too short for a busy machine
@pytest.mark.dist
@pytest.mark.usefixtures("_quick")
def test_a_rank_that_never_comes_is_named_by_all_who_wait():
    outcomes = run_ranks(add_up, None, environments(3)[:2], init_timeout=2)
    for outcome in outcomes:
        assert outcome.text.startswith("LostRankError: rank 2 of 3 did not come within ")
        assert outcome.seconds < GENEROUS / 2


@pytest.mark.dist
def test_a_master_that_cannot_be_reached_is_named_with_what_to_check():
    _, second = environments(2)
    unknown = second | {"MASTER_ADDR": "no-such-host.invalid"}
    refused, not_found = (run_ranks(add_up, 0, [s], init_timeout=1)[0] for s in (second, unknown))
    start = f"LostRankError: rank 1 ({socket.gethostname()}) can't reach rank 0 at "
    assert refused.text.startswith(f"{start}127.0.0.1, port {second['MASTER_PORT']}: Connection")
    assert f"127.0.0.1 is {socket.gethostname()} itself" in refused.text
    assert not_found.text.startswith(f"{start}no-such-host.invalid")
    assert "MASTER_ADDR" in not_found.text
    assert max(refused.seconds, not_found.seconds) < GENEROUS / 2


@pytest.mark.dist
def test_a_port_that_is_taken_is_said_at_once():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        (outcome,) = run_ranks(add_up, 0, environments(2, MASTER_PORT=port)[:1])
    assert outcome.text.startswith(f"ValueError: port {port} of {socket.gethostname()}")
    assert "set another MASTER_PORT" in outcome.text


@pytest.mark.dist
@pytest.mark.usefixtures("_quick")
def test_ranks_of_another_run_at_the_same_port_do_not_mix():
    ours, theirs = environments(2, TORCHELASTIC_RUN_ID="a"), {"TORCHELASTIC_RUN_ID": "b"}
    settings = [*ours, ours[1] | theirs]
    outcomes = run_ranks(add_up, [2, 1], settings, init_timeout=2)
    assert [each.text for each in outcomes[:2]] == ["done"] * 2
    assert outcomes[2].text.startswith("LostRankError: rank 0 ")


@pytest.mark.dist
@pytest.mark.usefixtures("_quick")
def test_a_network_between_the_hosts_that_fails_ends_all_alike(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("Gloo connectFullMesh failed with Connection refused")

    monkeypatch.setattr(dist, "init_process_group", fail)
    texts = {each.text for each in run_ranks(add_up, None, environments(2))}
    assert len(texts) == 1  # of the first
    assert "has no connection to all of them: Gloo connectFullMesh failed" in texts.pop()


@pytest.mark.slow  # its limits of a second are too short for a busy machine
@pytest.mark.dist
@pytest.mark.usefixtures("_quick")
def test_a_network_that_never_answers_ends_all_within_the_limit(monkeypatch):
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: time.sleep(GENEROUS))
    monkeypatch.setattr(module, "HANDSHAKE", 1.0)
    for outcome in run_ranks(add_up, None, environments(2), init_timeout=1):
        assert "has no connection to all of them: none within 1 s" in outcome.text
        assert outcome.seconds < GENEROUS / 2


@pytest.mark.dist
@pytest.mark.usefixtures("_quick")
def test_ranks_that_disagree_on_their_number_end_at_once():
    settings = environments(2)
    settings[1]["WORLD_SIZE"] = "3"
    for outcome in run_ranks(add_up, None, settings, init_timeout=GENEROUS):
        assert "the number of ranks is '3' on rank 1 (" in outcome.text
        assert outcome.seconds < GENEROUS / 2


@pytest.mark.dist
@pytest.mark.usefixtures("_quick")
def test_an_interface_that_one_rank_has_not_ends_all(monkeypatch):
    settings = environments(2)
    settings[1]["GLOO_SOCKET_IFNAME"] = "ib7"
    for outcome in run_ranks(add_up, None, settings):
        assert outcome.text.startswith("ValueError: rank 1 (")
        assert "GLOO_SOCKET_IFNAME is 'ib7', and there is no ib7 here" in outcome.text


def test_addresses_that_only_the_own_host_understands_are_found_between_hosts():
    hello = {"complaint": "", "same": {}, "gpu": "", "loopback": True}
    meeting = agreement.Meeting(dist.HashStore(), 0, 2, line=None)
    meeting.hosts = ["node0", "node0"]
    assert module._object(meeting, [hello, hello], 0) == ""
    meeting.hosts = ["node0", "node1"]
    objection = module._object(meeting, [hello | {"loopback": False}, hello], 0)
    assert objection.startswith("rank 1 (node1): gloo would take an address, 127.*")
    assert "GLOO_SOCKET_IFNAME" in objection


def test_gpus_for_which_no_process_was_started_are_told():
    hello = {"complaint": "", "same": {}, "loopback": False}
    hellos = [hello | {"host": "node0", "gpu": gpu} for gpu in ("a", "b")]
    meeting = agreement.Meeting(dist.HashStore(), 0, 2, line=None)
    meeting.hosts = ["node0", "node0"]
    assert module._object(meeting, hellos, 2) == ""
    objection = module._object(meeting, hellos, 8)
    assert objection.startswith("2 process(es) on node0 for the 8 GPUs of NUM_GPUS; start one for")


# ---------------------------------------------------------------- failing together


@pytest.mark.dist
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.usefixtures("_quick")
def test_an_error_on_one_rank_is_what_all_tell(rank):
    outcomes = run_ranks(go_wrong, f"fails on {rank}", environments(3), on_lost_rank=tell_rest)
    host = socket.gethostname()
    assert outcomes.pop(rank).text == "KeyError: 'no such key'"
    for outcome in outcomes:
        assert outcome.text == (
            f"LostRankError: rank {rank} ({host}) failed with KeyError: 'no such key'; "
            f"the last checkpoint of 'fails on {rank}' is x.pth"
        )


@pytest.mark.slow  # its limits of a second are too short for a busy machine
@pytest.mark.dist
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("is killed on 0", "rank 0 ({host}) gave no sign of life"),
        ("is killed on 1", "rank 1 ({host}) gave no sign of life"),
        ("stops on 0", "rank 0 ({host}) gave no sign of life"),
        ("stops on 1", "rank 1 ({host}) gave no sign of life"),
        ("hangs on 1", "rank 1 ({host}) did not come to a collective within 2 s and still runs"),
    ],
)
@pytest.mark.usefixtures("_quick")
def test_a_rank_that_dies_or_stalls_ends_the_others_in_time(how, told):
    settings = environments(4)
    lost = int(how[-1])
    settings[lost]["LOST"] = "yes"
    outcomes = run_ranks(go_wrong, how, settings, timeout=2, on_lost_rank=tell_rest)
    del outcomes[lost]
    for outcome in outcomes:
        assert outcome.text.startswith(f"LostRankError: {told.format(host=socket.gethostname())}")
        assert outcome.text.endswith(f"; the last checkpoint of {how!r} is x.pth")
        assert "\n" not in outcome.text
        assert outcome.seconds < GENEROUS / 2


def fail_while_another_is_busy(rank):
    if dist.get_rank() == rank:
        raise ValueError("the data is not there")
    time.sleep(GENEROUS)


@pytest.mark.slow  # its limits of a second are too short for a busy machine
@pytest.mark.dist
@pytest.mark.usefixtures("_quick")
def test_a_rank_that_is_stuck_somewhere_is_ended_after_another_has_failed(capfd, monkeypatch):
    monkeypatch.setattr(agreement, "PATIENCE", 1.0)
    settings = environments(2)
    began = time.monotonic()
    outcomes = run_ranks(fail_while_another_is_busy, 1, settings, on_lost_rank=tell_rest)
    assert time.monotonic() - began < GENEROUS / 2
    assert outcomes[0] is None  # it has ended itself
    assert outcomes[1].text == "ValueError: the data is not there"
    assert capfd.readouterr().err.strip() == (
        f"error: rank 1 ({socket.gethostname()}) failed with ValueError: the data is not there; "
        "the last checkpoint of 1 is x.pth"
    )


def stop_when_asked(_):
    raise Interrupted(f"rank {dist.get_rank()} has saved")


@pytest.mark.dist
@pytest.mark.usefixtures("_quick")
def test_a_run_that_was_asked_to_stop_has_not_failed():
    outcomes = run_ranks(stop_when_asked, None, environments(2), on_lost_rank=tell_rest)
    assert [each.text for each in outcomes] == [
        "Interrupted: rank 0 has saved",
        "Interrupted: rank 1 has saved",
    ]


# ---------------------------------------------------------------- GPUs


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
def test_more_gpus_than_there_are_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="2 GPU.*0 can be used; set NUM_GPUS 0"):
        launch(print, "cfg", num_gpus=2)


def test_a_process_that_sees_one_gpu_takes_it_whatever_its_local_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert module._own_gpu(3) == 0
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert module._own_gpu(3) == 3
    with pytest.raises(
        ValueError, match=r"5 GPU\(s\) are needed on this machine and 4 can be used"
    ):
        module._own_gpu(4)


@pytest.mark.dist
@pytest.mark.usefixtures("_quick")
def test_a_rank_without_a_gpu_ends_all_before_they_wait_for_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(module, "_gpu_id", lambda gpu: f"GPU-{gpu}")
    for outcome in run_ranks(add_up, None, environments(3), num_gpus=2):
        assert outcome.text.startswith("ValueError: rank 2 (")
        assert "3 GPU(s) are needed on this machine and 2 can be used" in outcome.text
        assert outcome.seconds < GENEROUS / 2


@pytest.mark.dist
@pytest.mark.usefixtures("_quick")
def test_two_ranks_with_one_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(module, "_gpu_id", lambda gpu: f"GPU-{gpu}")
    for outcome in run_ranks(add_up, None, environments(2), num_gpus=1):
        assert "2 ranks on " in outcome.text
        assert "have the same GPU (GPU-0)" in outcome.text


# ---------------------------------------------------------------- processes started here


@pytest.mark.slow
@pytest.mark.dist
def test_a_process_that_is_killed_ends_those_started_with_it():
    with pytest.raises(LostRankError, match="^rank 1 was ended by SIGKILL .*; the last checkpoint"):
        launch(go_wrong, "is killed on 1", num_processes=2, on_lost_rank=tell_rest)


class Processes:
    """What `spawn` returns, of two forked processes."""

    def __init__(self, *functions):
        context = multiprocessing.get_context("fork")
        self.processes = [context.Process(target=function, daemon=True) for function in functions]
        for process in self.processes:
            process.start()

    def join(self):
        return True


@pytest.mark.dist
def test_a_process_that_does_not_end_after_another_failed_is_killed(monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.2)
    began = time.monotonic()
    context = Processes(lambda: os._exit(1), lambda: time.sleep(GENEROUS))
    module._join(context, dist.HashStore())
    assert context.processes[1].exitcode == -signal.SIGKILL
    assert time.monotonic() - began < GENEROUS / 2


@pytest.mark.dist
def test_a_signal_to_the_first_process_reaches_the_others_when_they_are_ready(monkeypatch):
    monkeypatch.setattr(signals, "stop_requested", lambda: "SIGUSR1")
    context, board = Processes(signal.pause, signal.pause), dist.HashStore()
    joining = threading.Thread(target=module._join, args=(context, board))
    joining.start()
    board.set("ready/0", "")
    joining.join(0.5)
    assert all(process.is_alive() for process in context.processes)  # one is not ready
    board.set("ready/1", "")
    joining.join(GENEROUS)
    assert [process.exitcode for process in context.processes] == [-signal.SIGUSR1] * 2


def make_failure(rank, error):
    text = f"\n\n-- Process {rank} terminated:\nTraceback:\n  File x\n{error}\n"
    return ProcessRaisedException(text, rank, 4711)


def make_end(rank, **how):
    how = {"exit_code": 1, "signal_name": None} | how
    return ProcessExitedException(f"process {rank} ended", rank, 4711, **how)


LOST = "vmp.engine.agreement.LostRankError: rank 1 (a) gave no sign of life"
OWN = "ValueError: a.csv is missing"


@pytest.mark.parametrize(
    ("failures", "kind", "told"),
    [
        ([make_failure(0, LOST), make_failure(1, OWN)], ProcessRaisedException, "a.csv is missing"),
        ([make_end(0), make_failure(1, OWN)], ProcessRaisedException, "a.csv is missing"),
        (
            [make_failure(0, LOST), make_end(1, exit_code=-9, signal_name="SIGKILL")],
            LostRankError,
            "^rank 1 was ended by SIGKILL",
        ),
        ([make_failure(0, LOST), make_end(1)], LostRankError, "^rank 1 .a. gave no sign of life$"),
        ([make_end(1)], LostRankError, "^process 1 ended$"),
    ],
)
def test_of_several_failures_the_first_cause_is_raised(failures, kind, told):
    task = module.Task(print, "", False, 1.0, 1.0, None)
    with pytest.raises(kind, match=told):
        module._raise_first(failures, task)


def test_what_cannot_say_what_is_left_does_not_hide_the_failure():
    def broken(argument):
        raise OSError("no such folder")

    task = module.Task(print, "", False, 1.0, 1.0, broken)
    with pytest.raises(LostRankError, match="^process 1 ended; no such folder$"):
        module._raise_first([make_end(1)], task)


# ---------------------------------------------------------------- torchrun itself

ELASTIC = """
import os, pathlib, sys
import torch, torch.distributed as dist
from vmp.engine import launch

def work(folder):
    for step in range(20):
        if step == 5 and dist.get_rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os._exit(3)
        dist.all_reduce(torch.ones(2))
    pathlib.Path(folder, f"done{dist.get_rank()}").touch()

if __name__ == "__main__":
    launch(work, sys.argv[1], timeout=30, init_timeout=60)
"""


@pytest.mark.slow
@pytest.mark.dist
def test_an_elastic_restart_goes_on_with_all_ranks(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(ELASTIC)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [*command, str(program), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("done*")} == {"done0", "done1"}
