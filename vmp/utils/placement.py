"""Where a process stands among the others of its run, read from what its launcher has set.

Nothing but the standard library is imported: every config is checked with this, also by programs
that start in no time because they do without torch.
"""

import itertools
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

# Ports that a job id is mapped to: below those that Linux hands out by itself (32768 and up).
FIRST_PORT, NUM_PORTS = 15000, 15000
# Numbers from here on are SLURM's batch script, interactive shell and the like, no `srun`.
SPECIAL_STEPS = 0xFFFFFFF0


class Placement(NamedTuple):
    """The place of a process among those of its run.

    Attributes:
        rank: among all.
        world_size: how many there are.
        local_rank: among those on its host. Not always the number of its GPU: with
            `srun --gpus-per-task=1` each process sees one GPU, which is number 0.
        address: of the host of rank 0.
        port: where rank 0 listens.
        run: tells runs apart that meet at one port by mistake; "" if the launcher has no name.
        launcher: who started the process, a key of LAUNCHERS, or "spawn".
        hosted: the launcher itself keeps a store at address and port, as torchrun may do; what
            earlier lives of an elastic run wrote is still in it.
    """

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int
    run: str = ""
    launcher: str = "torchrun"
    hosted: bool = False


def find_placement(environment: Mapping[str, str]) -> Placement | None:
    """Read the place that a launcher gave this process; None if no launcher started it.

    The first of LAUNCHERS that has left its variables counts, so that torchrun inside `srun` is
    torchrun. VMP_LAUNCHER names one of them instead, and VMP_LAUNCHER=none looks for none: in an
    interactive shell, say, that stands on several tasks. MASTER_ADDR and MASTER_PORT, where they
    are set, replace the host and the port that follow from the job.

    Raises:
        ValueError: variables are missing, are no numbers, or contradict each other.
    """
    wanted = environment.get("VMP_LAUNCHER") or "auto"
    if wanted == "none":
        return None
    if wanted != "auto" and wanted not in LAUNCHERS:
        raise ValueError(
            f"VMP_LAUNCHER is {wanted!r}; it must be auto, none, or one of {', '.join(LAUNCHERS)}"
        )
    names = list(LAUNCHERS) if wanted == "auto" else [wanted]
    found = (LAUNCHERS[name](environment) for name in names)
    placement = next((each for each in found if each is not None), None)
    if placement is not None:
        _check_placement(placement, environment, trusted=wanted != "auto")
    return placement


def _torchrun(environment: Mapping[str, str]) -> Placement | None:
    """Read what torchrun sets, or who sets the same by hand or by another program."""
    if "RANK" not in environment:
        return None
    return Placement(
        rank=_number(environment, "RANK"),
        world_size=_number(environment, "WORLD_SIZE"),
        local_rank=_number(environment, "LOCAL_RANK"),
        address=_text(environment, "MASTER_ADDR"),
        port=_number(environment, "MASTER_PORT"),
        run=environment.get("TORCHELASTIC_RUN_ID", ""),
        launcher="torchrun",
        hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _openmpi(environment: Mapping[str, str]) -> Placement | None:
    """Read what Open MPI's mpirun sets, also inside a job of PBS or SLURM."""
    if environment.get("OMPI_COMM_WORLD_SIZE", "1") == "1":
        return None
    world_size = _number(environment, "OMPI_COMM_WORLD_SIZE")
    local_size = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE")
    name = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid", "")
    return Placement(
        rank=_number(environment, "OMPI_COMM_WORLD_RANK"),
        world_size=world_size,
        local_rank=_number(environment, "OMPI_COMM_WORLD_LOCAL_RANK"),
        address=_address_for_mpi(environment, local_size == world_size, "mpirun -x MASTER_ADDR="),
        port=_port_for_mpi(environment, name, "mpirun -x MASTER_PORT="),
        run=name or _job_name(environment),
        launcher="openmpi",
    )


def _mpich(environment: Mapping[str, str]) -> Placement | None:
    """Read what the mpiexec of MPICH, Intel MPI (MPI_LOCAL*) or Cray's PALS (PMI_LOCAL_*) sets."""
    locals_ = {"MPI_LOCALRANKID": "MPI_LOCALNRANKS", "PMI_LOCAL_RANK": "PMI_LOCAL_SIZE"}
    local_rank = next((name for name in locals_ if name in environment), "MPI_LOCALRANKID")
    if environment.get("PMI_SIZE", "1") == "1" or "PMI_RANK" not in environment:
        return None
    if local_rank not in environment and "SLURM_STEP_ID" in environment:
        return None  # `srun --mpi=pmi2` has set the others; all the rest is SLURM's to tell
    world_size = _number(environment, "PMI_SIZE")
    one_host = environment.get(locals_[local_rank]) == str(world_size)
    return Placement(
        rank=_number(environment, "PMI_RANK"),
        world_size=world_size,
        local_rank=_number(environment, local_rank),
        address=_address_for_mpi(environment, one_host, "mpiexec -genv MASTER_ADDR "),
        port=_port_for_mpi(environment, "", "mpiexec -genv MASTER_PORT "),
        run=_job_name(environment),
        launcher="mpich",
    )


def _slurm(environment: Mapping[str, str]) -> Placement | None:
    """Read what `srun` sets.

    A batch script and the shell of `salloc` have most of these variables too, with the number of
    tasks of the job. They are not tasks themselves: the former has no step, the latter a special
    one with a single task. A step of one task is as good as no launcher.
    """
    if "SLURM_PROCID" not in environment or "SLURM_STEP_ID" not in environment:
        return None
    step = _number(environment, "SLURM_STEP_ID")
    own = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    world_size = _number(environment, own)
    if step >= SPECIAL_STEPS or world_size == 1:
        return None
    job = _number(environment, "SLURM_JOB_ID")
    restart = _number(environment, "SLURM_RESTART_COUNT", default="0")
    # neighbouring jobs differ by 1; steps and restarts of a job are few, so they come in strides
    offset = (job + 1009 * step + 101 * restart) % NUM_PORTS
    lists = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    hosts = next((environment[name] for name in lists if environment.get(name)), "")
    first = next(iter(expand_hosts(hosts)), "")
    return Placement(
        rank=_number(environment, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_number(environment, "SLURM_LOCALID"),
        address=environment.get("MASTER_ADDR") or first or _text(environment, "MASTER_ADDR"),
        port=_number(environment, "MASTER_PORT", default=str(FIRST_PORT + offset)),
        run=f"slurm {job}.{step}.{restart}",
        launcher="slurm",
    )


def _pbsdsh(environment: Mapping[str, str]) -> Placement | None:
    """Read what PBS gives to tasks of `pbsdsh`, one for each line of the job's list of hosts.

    PBS_TASKNUM is no rank: it counts every task of the job, from 1, and the job's script is the
    first one on the first host.
    """
    first_host = environment.get("PBS_NODENUM", "0") == "0"
    script = first_host and environment.get("PBS_TASKNUM", "1") == "1"
    if script or "PBS_JOBID" not in environment or "PBS_VNODENUM" not in environment:
        return None
    hosts = _hosts_of_pbs(environment)
    rank = _number(environment, "PBS_VNODENUM")
    if len(hosts) == 1:
        return None
    if not 0 <= rank < len(hosts):
        raise ValueError(
            f"PBS_VNODENUM is {rank} and PBS_NODEFILE lists {len(hosts)} tasks; start one task a "
            "line (pbsdsh without -u), or use mpirun or torchrun"
        )
    return Placement(
        rank=rank,
        world_size=len(hosts),
        local_rank=hosts[:rank].count(hosts[rank]),
        address=environment.get("MASTER_ADDR") or hosts[0],
        port=_number(environment, "MASTER_PORT", default=str(_port_of(environment["PBS_JOBID"]))),
        run=_job_name(environment),
        launcher="pbsdsh",
    )


# In the order in which they are looked for: what runs inside another launcher comes before it.
LAUNCHERS: Mapping[str, Callable[[Mapping[str, str]], Placement | None]] = {
    "torchrun": _torchrun,
    "openmpi": _openmpi,
    "mpich": _mpich,
    "slurm": _slurm,
    "pbsdsh": _pbsdsh,
}


def _check_placement(placement: Placement, environment: Mapping[str, str], trusted: bool) -> None:
    """Raise a ValueError if the numbers can't be true, or two launchers disagree."""
    rank, size, local_rank = placement[:3]
    if not 0 <= rank < size or local_rank < 0 or not 0 < placement.port < 2**16:
        raise ValueError(
            f"{placement.launcher} set rank {rank} of {size}, local rank {local_rank} and port "
            f"{placement.port}; a rank is below the number of processes, a port below 65536: start "
            "with torchrun, srun or mpirun, or set VMP_LAUNCHER=none"
        )
    if placement.launcher != "torchrun" or trusted or "TORCHELASTIC_RUN_ID" in environment:
        return  # torchrun itself may run in anything
    # RANK and WORLD_SIZE by hand: in a batch script, they are the same for all tasks
    for name in ("openmpi", "mpich", "slurm"):
        other = LAUNCHERS[name](environment)
        if other is not None and (other.rank, other.world_size) != (rank, size):
            raise ValueError(
                f"RANK and WORLD_SIZE say rank {rank} of {size}, {name} says rank {other.rank} of "
                f"{other.world_size}; unset RANK, or choose with VMP_LAUNCHER={name} or "
                "VMP_LAUNCHER=torchrun"
            )


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environment.get(name) or default or _text(environment, name)
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"{name} is {text!r}, a whole number is needed; start with torchrun, srun or mpirun, "
            "or set VMP_LAUNCHER=none"
        ) from None


def _text(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise ValueError(
            f"{name} is missing among the variables that a launcher has set; start with torchrun, "
            f"srun or mpirun, set {name} as well, or set VMP_LAUNCHER=none to start without one"
        )
    return environment[name]


def _address_for_mpi(environment: Mapping[str, str], one_host: bool, option: str) -> str:
    """Return the host of rank 0: MPI's launchers do not say it, batch systems do."""
    if environment.get("MASTER_ADDR"):
        return environment["MASTER_ADDR"]
    if one_host:
        return "127.0.0.1"
    if "PBS_NODEFILE" in environment:
        return _hosts_of_pbs(environment)[0]
    hosts = expand_hosts(environment.get("SLURM_JOB_NODELIST", ""))
    if not hosts:
        raise ValueError(
            "MASTER_ADDR is not set, and neither PBS_NODEFILE nor SLURM_JOB_NODELIST says which "
            f"host rank 0 is on; start with {option}HOST"
        )
    return hosts[0]


def _port_for_mpi(environment: Mapping[str, str], name: str, option: str) -> int:
    name = name or _job_name(environment)
    if not name and not environment.get("MASTER_PORT"):
        raise ValueError(
            "MASTER_PORT is not set, and there is no job id to derive it from; start with "
            f"{option}PORT, e.g. {FIRST_PORT}"
        )
    return _number(environment, "MASTER_PORT", default=str(_port_of(name)))


def _job_name(environment: Mapping[str, str]) -> str:
    """Return what tells this job from others, "" outside of a job."""
    names = ("PBS_JOBID", "SLURM_JOB_ID", "LSB_JOBID")
    return next((f"{name} {environment[name]}" for name in names if environment.get(name)), "")


def _port_of(name: str) -> int:
    """Map the name of a job to a port, so that two jobs on one host hardly ever meet."""
    return FIRST_PORT + zlib.crc32(name.encode()) % NUM_PORTS


def _hosts_of_pbs(environment: Mapping[str, str]) -> list[str]:
    """Return the lines of PBS_NODEFILE, a host for each task."""
    path = _text(environment, "PBS_NODEFILE")
    try:
        hosts, reason = Path(path).read_text(encoding="utf-8").split(), "it is empty"
    except OSError as error:  # only the first host of the job is sure to have it
        hosts, reason = [], error.strerror or str(error)
    if not hosts:
        raise ValueError(
            f"PBS_NODEFILE {path} can't be read on this host ({reason}); start with mpirun and "
            "MASTER_ADDR set to the first host of the job, or with torchrun"
        )
    return hosts


def expand_hosts(text: str) -> list[str]:
    """Return the hosts of a list as SLURM writes it: `gpu[07-09,12],login1` are five."""
    hosts = []
    for part in re.findall(r"(?:\[[^\]]*\]|[^,\[])+", text):
        pieces = re.split(r"\[([^\]]*)\]", part)  # fixed text, range, fixed text, ...
        choices = [_expand(each) if odd % 2 else [each] for odd, each in enumerate(pieces)]
        hosts += ["".join(choice) for choice in itertools.product(*choices)]
    return hosts


def _expand(ranges: str) -> list[str]:
    """Return the numbers of `07-09,12`, with the zeros of each range's beginning."""
    numbers = []
    for each in ranges.split(","):
        first, _, last = each.partition("-")
        span = range(int(first), int(last or first) + 1)
        numbers += [str(number).zfill(len(first)) for number in span]
    return numbers
