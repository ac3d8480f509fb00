"""Start a function once in each process of a run, whoever starts the processes."""

import datetime
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from vmp.utils.distributed import Placement, find_placement


def launch(
    function: Callable[[Any], None],
    argument: Any,
    *,
    num_gpus: int = 0,
    num_processes: int = 1,
    timeout: float = 600.0,
) -> None:
    """Call `function(argument)` in every process of the run, with a process group between them.

    Started by torchrun or srun, this process is one of theirs. Otherwise `num_gpus` processes
    (nccl), or `num_processes` on the CPU (gloo), are started here; a single one needs no group.

    Args:
        function: importable by name, since new processes look it up.
        argument: its only argument; must pickle.
        num_gpus: GPUs of this machine to use; 0 is the CPU.
        num_processes: CPU processes to start where `num_gpus` is 0.
        timeout: seconds after which a collective gives up waiting for a rank.

    Raises:
        ValueError: more GPUs are asked for than there are.
    """
    placement = find_placement(os.environ)
    local = num_gpus or num_processes
    if num_gpus:
        _check_gpus(num_gpus if placement is None else 1)
    if placement is not None:
        _run(function, argument, placement, bool(num_gpus), timeout)
    elif local == 1:
        if num_gpus:
            torch.cuda.set_device(0)
        function(argument)
    else:
        port = _free_port()
        rest = (function, argument, local, port, bool(num_gpus), timeout)
        spawn(_child, rest, nprocs=local)


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


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _child(
    rank: int,
    function: Callable[[Any], None],
    argument: Any,
    world_size: int,
    port: int,
    gpus: bool,
    timeout: float,
) -> None:
    if not gpus:  # the processes share the cores
        torch.set_num_threads(max(1, torch.get_num_threads() // world_size))
    placement = Placement(rank, world_size, rank, "127.0.0.1", port)
    _run(function, argument, placement, gpus, timeout)


def _run(
    function: Callable[[Any], None],
    argument: Any,
    placement: Placement,
    gpus: bool,
    timeout: float,
) -> None:
    os.environ.update(
        RANK=str(placement.rank),
        WORLD_SIZE=str(placement.world_size),
        LOCAL_RANK=str(placement.local_rank),
        MASTER_ADDR=placement.address,
        MASTER_PORT=str(placement.port),
    )
    gpu = _own_gpu(placement.local_rank) if gpus else 0
    if gpus:
        torch.cuda.set_device(gpu)
    dist.init_process_group(
        "nccl" if gpus else "gloo",
        init_method="env://",
        timeout=datetime.timedelta(seconds=timeout),
        device_id=torch.device("cuda", gpu) if gpus else None,
    )
    try:
        function(argument)
    finally:
        dist.destroy_process_group()
