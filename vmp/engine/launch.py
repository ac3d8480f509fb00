"""Start a function once in each process of a run, whoever starts the processes."""

import contextlib
import ctypes
import datetime
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

# before there is a group: imported in one, as DDP does, its functions keep that as their default,
# and after an error its connections stay open, on which the other ranks wait
import torch.distributed.nn.functional
from torch.distributed import (  # type: ignore[attr-defined]  # documented, but not listed
    PrefixStore,
    Store,
    TCPStore,
)
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    spawn,
)

from vmp.engine.agreement import (
    GRACE,
    LostRankError,
    Meeting,
    describe_differences,
    set_meeting,
)
from vmp.utils import signals
from vmp.utils.cli import last_line
from vmp.utils.placement import Placement, find_placement
from vmp.utils.threads import run_in_time

# Seconds between two looks for rank 0, and to shake hands with a store that takes the connection.
PAUSE, HANDSHAKE = 0.1, 5.0
PR_SET_PDEATHSIG = 1  # of prctl(2)


class Task(NamedTuple):
    """What each process of a run does.

    Attributes:
        function: importable by name, since new processes look it up.
        argument: its only argument; must pickle.
        gpus: of each host, one a process (nccl); 0: the CPU (gloo).
        timeout: seconds after which a collective gives up waiting for a rank.
        init_timeout: seconds until all ranks have met.
        on_lost_rank: given the argument, returns what to say where another rank ended this one.
    """

    function: Callable[[Any], None]
    argument: Any
    gpus: int
    timeout: float
    init_timeout: float
    on_lost_rank: Callable[[Any], str] | None


def launch(
    function: Callable[[Any], None],
    argument: Any,
    *,
    num_gpus: int = 0,
    num_processes: int = 1,
    timeout: float = 600.0,
    init_timeout: float = 300.0,
    on_lost_rank: Callable[[Any], str] | None = None,
) -> None:
    """Call `function(argument)` in every process of the run, with a process group between them.

    Started by torchrun, srun or mpirun, this process is one of theirs. Otherwise `num_gpus`
    processes (nccl), or `num_processes` on the CPU (gloo), are started here; a single one needs no
    group. When one fails, the others end too, and the first failure is what all of them tell.

    Args:
        function: importable by name, since new processes look it up.
        argument: its only argument; must pickle.
        num_gpus: GPUs of this machine to use; 0 is the CPU.
        num_processes: CPU processes to start where `num_gpus` is 0.
        timeout: seconds after which a collective gives up waiting for a rank.
        init_timeout: seconds until all ranks have met.
        on_lost_rank: given `argument`, returns what is left when another rank has ended this one,
            e.g. "the last checkpoint is ..."; it is added to the message. Importable by name.

    Raises:
        ValueError: more GPUs are asked for than there are, on any rank, or than processes were
            started for them, or the launcher's variables make no sense.
        LostRankError: another rank failed, was killed, does not answer or never came.
        ProcessRaisedException: what a process started here raised, with its traceback.
    """
    placement = find_placement(os.environ)
    local = num_gpus or num_processes
    task = Task(function, argument, num_gpus, timeout, init_timeout, on_lost_rank)
    if placement is not None:
        _run(task, placement)
        return
    if num_gpus:
        _check_gpus(num_gpus)
    if local > 1:
        _spawn(task, local)
        return
    if num_gpus:
        torch.cuda.set_device(0)
    function(argument)


# ---------------------------------------------------------------- processes started here


def _spawn(task: Task, count: int) -> None:
    """Start `count` processes and wait for them; the store that they meet at is in this one."""
    board = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = spawn(_child, (task, count, board.port), nprocs=count, join=False)
    assert context is not None
    failures = _join(context, board)
    if failures:
        _raise_first(failures, task)


def _child(rank: int, task: Task, world_size: int, port: int) -> None:
    if sys.platform == "linux":
        # torch has a child told of its parent's end by SIGINT, which `nohup` and `&` have it ignore
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if not task.gpus:  # the processes share the cores
        torch.set_num_threads(max(1, torch.get_num_threads() // world_size))
    placement = Placement(rank, world_size, rank, "127.0.0.1", port, "", "spawn", hosted=True)
    _connect(placement.address, port, time.monotonic() + HANDSHAKE).set(f"ready/{rank}", "")
    _run(task, placement)


Failure = ProcessRaisedException | ProcessExitedException


def _join(context: ProcessContext, board: Store) -> list[Failure]:
    """Wait for the processes; when one fails, give the others a moment and end them.

    When this process is told to stop, they are: a batch system signals all of them, a person the
    first.

    Returns:
        What became of those that failed by themselves.
    """
    processes, told = context.processes, False
    ready = [f"ready/{rank}" for rank in range(len(processes))]
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes):
            break
        reason = signals.stop_requested()
        if reason and not told and board.check(ready):
            told = True
            _tell(processes, signal.Signals[reason])
        time.sleep(PAUSE)
    limit = time.monotonic() + 2 * GRACE  # in which they find out, and rank 0 waits for the others
    while any(process.is_alive() for process in processes) and time.monotonic() < limit:
        time.sleep(PAUSE)
    stuck = {index for index, process in enumerate(processes) if process.is_alive()}
    for index in stuck:
        processes[index].kill()
        processes[index].join()
    failures: list[Failure] = []
    done = False
    while not done:
        try:
            done = context.join()
        except (ProcessRaisedException, ProcessExitedException) as error:
            failures.append(error)
    return [error for error in failures if error.error_index not in stuck] or failures


def _tell(processes: Sequence[BaseProcess], number: signal.Signals) -> None:
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, number)


def _raise_first(failures: Sequence[Failure], task: Task) -> None:
    """Raise what made the others fail: a kill, an error of a process itself, a lost rank.

    Raises:
        LostRankError: a process was killed, or what became of one is not known.
        ProcessRaisedException: a process raised it.
    """
    for error in failures:
        if isinstance(error, ProcessExitedException) and error.signal_name:
            raise LostRankError(
                f"rank {error.error_index} was ended by {error.signal_name} (out of memory, if "
                f"you did not do it){_left_over(task)}"
            )
    raised = [error for error in failures if isinstance(error, ProcessRaisedException)]
    kinds = [last_line(f"RuntimeError: {error}") for error in raised]
    for error, (kind, _) in zip(raised, kinds, strict=True):
        if kind != LostRankError.__name__:
            raise error
    for _, message in kinds:
        raise LostRankError(message)
    raise LostRankError(f"{failures[0]}{_left_over(task)}")


def _left_over(task: Task) -> str:
    """Return `; the last checkpoint ...`, or what else the caller has to say."""
    if task.on_lost_rank is None:
        return ""
    try:
        return f"; {task.on_lost_rank(task.argument)}"
    except Exception as error:  # the failure itself matters more
        return f"; {error}"


# ---------------------------------------------------------------- one process of a run


def _run(task: Task, placement: Placement) -> None:
    """Meet the other ranks, form the process group, call the function, leave."""
    os.environ.update(
        RANK=str(placement.rank),
        WORLD_SIZE=str(placement.world_size),
        LOCAL_RANK=str(placement.local_rank),
        MASTER_ADDR=placement.address,
        MASTER_PORT=str(placement.port),
    )
    limit = time.monotonic() + task.init_timeout
    server, address, port = _find_store(placement, limit)
    line = None if server else _open_line(address, port, limit)
    # a client each: one that waits for a key lets nobody else use it
    stores = [PrefixStore(placement.run, _connect(address, port, limit)) for _ in range(2)]
    size = placement.world_size
    meeting = Meeting(stores[0], placement.rank, size, line=line, timeout=task.timeout)
    set_meeting(meeting)
    try:
        gpu = _meet(meeting, task, placement, limit)
        meeting.watch(lambda trouble: _say(trouble, task))
        _join_group(meeting, stores[1], gpu, task, limit)
        task.function(task.argument)
    except Exception as error:
        raise _conclude(meeting, error, task) from error
    finally:
        _leave_group()
        meeting.leave()
        set_meeting(None)
        del server  # not earlier: the store ends with it


def _conclude(meeting: Meeting, error: Exception, task: Task) -> Exception:
    """Return what this rank ends with, after telling the others or hearing from them."""
    if isinstance(error, signals.Interrupted):
        signals.ignore()  # all is done but to leave, and a batch system signals again
        return error  # no failure, and the same on all ranks
    broken = _is_broken_connection(error)
    trouble = "" if broken else meeting.fail(error)
    _forget_frames(error)
    _leave_group()  # others may be waiting for this rank
    if broken:
        return LostRankError(f"{meeting.explain(error, seconds=task.timeout)}{_left_over(task)}")
    if isinstance(error, LostRankError):
        return LostRankError(f"{trouble or error}{_left_over(task)}")
    return error


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what the failed functions held: a wrapped model keeps the group's connections."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()


def _leave_group() -> None:
    with contextlib.suppress(OSError, RuntimeError):
        if dist.is_initialized():
            run_in_time(dist.destroy_process_group, GRACE)


def _is_broken_connection(error: Exception) -> bool:
    # gloo has no type of its own; where it raises, it names its source file
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def _say(trouble: str, task: Task) -> None:
    """Tell why this process ends, whose main thread is stuck in a collective or elsewhere."""
    sys.stderr.write(f"error: {trouble}{_left_over(task)}\n")
    sys.stderr.flush()


# ---------------------------------------------------------------- meeting


def _find_store(placement: Placement, limit: float) -> tuple[Store | None, str, int]:
    """Return (the store if it is served here, address, port): where the ranks of this life meet.

    A store that the launcher keeps (torchrun's agent, or `_spawn`) may hold what an earlier life of
    the run wrote, and gloo would follow its dead addresses. There rank 0 only announces its own.
    """
    if not placement.hosted:
        server = _serve(placement.port) if placement.rank == 0 else None
        return server, placement.address if server is None else "127.0.0.1", placement.port
    board = _connect(placement.address, placement.port, limit)
    key = f"vmp {placement.run}"
    if placement.rank != 0:
        return None, *_read_announcement(board, key, limit)
    server = _serve(0)
    token = uuid.uuid4().hex
    server.set(token, "")
    address = _own_address(placement.address)
    board.set(key, f"{address} {server.port} {token}")
    return server, "127.0.0.1", server.port


def _serve(port: int) -> TCPStore:
    try:
        return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    except dist.DistNetworkError as error:
        raise ValueError(
            f"port {port} of {socket.gethostname()}, where rank 0 is to listen, can't be had: "
            "another run, or a second process that is rank 0 too; set another MASTER_PORT"
        ) from error


def _open_line(address: str, port: int, limit: float) -> socket.socket:
    """Return a connection, not blocking, to a port that may not be there yet.

    torch would say in many lines that it is not.

    Raises:
        LostRankError: it was not there before `limit`, a time of time.monotonic().
    """
    began = time.monotonic()
    while True:
        try:
            seconds = min(HANDSHAKE, max(PAUSE, limit - time.monotonic()))
            line = socket.create_connection((address, port), timeout=seconds)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            line.setblocking(False)
            return line
        if time.monotonic() > limit:
            raise LostRankError(
                f"{_self()} can't reach rank 0 at {address}, port {port}: {reason}, for "
                f"{time.monotonic() - began:.0f} s; check that rank 0 runs, that MASTER_ADDR is "
                f"its host {_hint_of(address)}and that no firewall stands between"
            )
        time.sleep(PAUSE)


def _connect(address: str, port: int, limit: float) -> TCPStore:
    """Return a client of the store at an address, which may not be there yet.

    Raises:
        LostRankError: it was not there before `limit`, or something else is.
    """
    _open_line(address, port, limit).close()
    seconds = max(HANDSHAKE, limit - time.monotonic())
    try:
        return TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=seconds))
    except dist.DistError as error:
        raise LostRankError(
            f"{_self()} found no rank 0 at {address}, port {port}, but another program; set "
            "another MASTER_PORT"
        ) from error


def _hint_of(address: str) -> str:
    with contextlib.suppress(OSError):
        if socket.gethostbyname(address).startswith("127."):
            return f"({address} is {socket.gethostname()} itself) "
    return ""


def _self() -> str:
    return f"rank {os.environ['RANK']} ({socket.gethostname()})"


def _read_announcement(board: TCPStore, key: str, limit: float) -> tuple[str, int]:
    """Return address and port of rank 0's store; one that an earlier rank 0 left does not count."""
    while time.monotonic() < limit:
        if board.check([key]):
            address, port, token = board.get(key).decode().split()
            if _has(address, int(port), token):
                return address, int(port)
        time.sleep(PAUSE)
    raise LostRankError(f"{_self()} has waited for rank 0, which did not come; look into its log")


def _has(address: str, port: int, token: str) -> bool:
    """Say whether the store at an address is the one that was announced with `token`."""
    try:
        store = _connect(address, port, limit=time.monotonic())
        return bool(store.check([token]))
    except (LostRankError, dist.DistError):
        return False


def _own_address(board: str) -> str:
    """Return the address by which others reach this process, given that of the launcher's store."""
    family, _, _, _, target = socket.getaddrinfo(board, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # sends nothing
        address = str(probe.getsockname()[0])
    return board if address.startswith("127.") or address == "::1" else address


def _meet(meeting: Meeting, task: Task, placement: Placement, limit: float) -> int:
    """Wait until all ranks are there and see whether they fit together.

    Returns:
        The GPU of this process.

    Raises:
        LostRankError: a rank did not come before `limit`.
        ValueError: a rank has no GPU, or they do not fit together; on all ranks.
    """
    gpu, complaint = 0, ""
    try:
        gpu = _own_gpu(placement.local_rank) if task.gpus else 0
        if not task.gpus:
            _check_interface()
    except ValueError as error:
        complaint = str(error)
    hello = {
        "host": socket.gethostname(),
        "same": {
            "the number of ranks": str(placement.world_size),
            "the device": "GPU" if task.gpus else "CPU",
        },
        "complaint": complaint,
        "gpu": _gpu_id(gpu) if task.gpus and not complaint else "",
        "loopback": not task.gpus and _is_loopback(),
    }
    seconds = max(0.0, limit - time.monotonic())
    advice = "see their logs, and that as many were started as the launcher says"
    if placement.launcher == "slurm":
        advice += " (VMP_LAUNCHER=none if each task is to work for itself)"
    texts = meeting.exchange(json.dumps(hello), seconds=seconds, advice=advice)
    hellos = [json.loads(text) for text in texts]
    meeting.hosts = [hello["host"] for hello in hellos]
    objection = _object(meeting, hellos, task.gpus)
    if objection:
        raise ValueError(objection)
    return gpu


def _object(meeting: Meeting, hellos: Sequence[dict[str, Any]], gpus: int) -> str:
    """Return why these ranks can't work together, "" if they can."""
    for rank, hello in enumerate(hellos):
        if hello["complaint"]:
            return f"{meeting.name([rank])}: {hello['complaint']}"
    differences = describe_differences([hello["same"] for hello in hellos])
    if differences:
        return f"the ranks do not agree: {differences}; start all of them by the same command"
    counts = Counter((hello["host"], hello["gpu"]) for hello in hellos if hello["gpu"])
    for (host, gpu), count in counts.items():
        if count > 1:
            return (
                f"{count} ranks on {host} have the same GPU ({gpu}); start one process for each "
                "GPU, e.g. --ntasks-per-node as many as --gpus-per-node"
            )
    for host, count in Counter(meeting.hosts).items():
        if count < gpus:
            return (
                f"{count} process(es) on {host} for the {gpus} GPUs of NUM_GPUS; start one for "
                f"each (--ntasks-per-node {gpus}, --nproc-per-node {gpus}), or set NUM_GPUS {count}"
            )
    alone = [rank for rank, hello in enumerate(hellos) if hello["loopback"]]
    if alone and len(set(meeting.hosts)) > 1:
        return (
            f"{meeting.name(alone)}: gloo would take an address, 127.*, that other hosts can't "
            "reach; set GLOO_SOCKET_IFNAME to the network between the hosts (see ip addr), or mend "
            "/etc/hosts"
        )
    return ""


def _check_interface() -> None:
    """Raise a ValueError if gloo is told to use a network that this host has not."""
    wanted = os.environ.get("GLOO_SOCKET_IFNAME", "")
    there = [name for _, name in socket.if_nameindex()]
    missing = [name for name in wanted.split(",") if name and name not in there]
    if missing:
        raise ValueError(
            f"GLOO_SOCKET_IFNAME is {wanted!r}, and there is no {missing[0]} here; unset it, or "
            f"take of {', '.join(there)} the one that the other hosts are on"
        )


def _is_loopback() -> bool:
    """Say whether gloo would tell others an address at which they find only themselves."""
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return "lo" in os.environ["GLOO_SOCKET_IFNAME"].split(",")
    try:
        return socket.gethostbyname(socket.gethostname()).startswith("127.")
    except OSError:  # then gloo takes 127.0.0.1
        return True


def _join_group(meeting: Meeting, store: Store, gpu: int, task: Task, limit: float) -> None:
    """Make the process group, which connects every rank to every other.

    Raises:
        LostRankError: that did not work before `limit`.
    """
    if task.gpus:
        torch.cuda.set_device(gpu)
    seconds = max(HANDSHAKE, limit - time.monotonic())

    def connect() -> None:
        dist.init_process_group(
            "nccl" if task.gpus else "gloo",
            store=store,
            rank=meeting.rank,
            world_size=meeting.world_size,
            timeout=datetime.timedelta(seconds=task.timeout),
            device_id=torch.device("cuda", gpu) if task.gpus else None,
        )

    try:
        run_in_time(connect, seconds)
    except (TimeoutError, RuntimeError) as error:
        name = "NCCL_SOCKET_IFNAME" if task.gpus else "GLOO_SOCKET_IFNAME"
        reason = last_line(f"{type(error).__name__}: {error}")[1]
        if isinstance(error, TimeoutError):
            reason = f"none within {seconds:.0f} s"
        raise LostRankError(
            f"{_self()} met the other ranks, but has no connection to all of them: {reason}; set "
            f"{name} to the network between the hosts, and look for a firewall"
        ) from error
    # nobody leaves, be it for an error, while another is still connecting
    meeting.exchange("", seconds=seconds)


# ---------------------------------------------------------------- GPUs


def _check_gpus(wanted: int) -> None:
    there = torch.cuda.device_count()
    if wanted > there:
        raise ValueError(
            f"{wanted} GPU(s) are needed on this machine and {there} can be used; "
            f"set NUM_GPUS {there}" + (", which means the CPU" if there == 0 else "")
        )


def _own_gpu(local_rank: int) -> int:
    """Return the GPU of a process; where it sees only one (srun --gpus-per-task=1), that one."""
    if torch.cuda.device_count() == 1:
        return 0
    _check_gpus(local_rank + 1)
    return local_rank


def _gpu_id(gpu: int) -> str:
    return str(torch.cuda.get_device_properties(gpu).uuid)
