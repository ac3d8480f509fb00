"""Where this process stands among the others, and the few collectives the loops need.

Every function works in a single process without a process group.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Placement(NamedTuple):
    """The place of a process: its rank among all, its rank on its machine, where rank 0 listens."""

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int


def find_placement(environment: Mapping[str, str]) -> Placement | None:
    """Read the place that a launcher gave this process; None if no launcher started it.

    Understands torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) and srun
    (SLURM_*). The SLURM variables of a batch script itself, which is not one of the tasks, do not
    count: only a job step has SLURM_STEP_ID. A step of one task, an interactive shell for
    example, is as good as no launcher.

    Raises:
        ValueError: a launcher's variables are incomplete or not numbers.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Placement(
            rank=_number(environment, "RANK"),
            world_size=_number(environment, "WORLD_SIZE"),
            local_rank=_number(environment, "LOCAL_RANK", default=environment["RANK"]),
            address=environment.get("MASTER_ADDR", "127.0.0.1"),
            port=_number(environment, "MASTER_PORT", default="29500"),
        )
    tasks = environment.get("SLURM_NTASKS", "1")
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment and tasks != "1":
        return Placement(
            rank=_number(environment, "SLURM_PROCID"),
            world_size=_number(environment, "SLURM_NTASKS"),
            local_rank=_number(environment, "SLURM_LOCALID"),
            address=environment.get("MASTER_ADDR") or _first_host(environment),
            port=_number(environment, "MASTER_PORT", default=_port_of_job(environment)),
        )
    return None


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environment.get(name, default)
    try:
        return int(text)  # type: ignore[arg-type]  # None ends in the same message
    except (TypeError, ValueError):
        raise ValueError(
            f"the launcher set {name}={text!r}, a whole number is needed; start with torchrun, "
            "with srun, or without a launcher"
        ) from None


def _first_host(environment: Mapping[str, str]) -> str:
    """Return the first host of a SLURM list such as `gpu[07-09,12],login1`."""
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "127.0.0.1")
    head, bracket, rest = hosts.partition("[")
    if not bracket or "," in head:
        return hosts.split(",")[0]
    number = rest.partition("]")[0].split(",")[0].split("-")[0]
    return head + number + rest.partition("]")[2].split(",")[0]


def _port_of_job(environment: Mapping[str, str]) -> str:
    """Derive a port from the job and step, so that two jobs on one machine do not meet."""
    job = int(environment.get("SLURM_JOB_ID", "0"))
    step = int(environment.get("SLURM_STEP_ID", "0"))
    return str(20000 + (job * 31 + step) % 20000)


def get_rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Say whether this process writes the files and the log."""
    return get_rank() == 0


def barrier() -> None:
    """Wait for the other processes."""
    if dist.is_initialized():
        dist.barrier()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Say whether `flag` holds on at least one rank; the same answer on all. Waits for all."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(int(flag), device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def average(values: Tensor) -> Tensor:
    """Return the mean of `values` over the ranks; they stay on their device."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's `value` in rank order, on all ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Return rank 0's `value` on all ranks."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
