"""What `tools/doctor.py dist` does: let the ranks of a run work together, before a training does.

Under srun, torchrun or mpirun it looks at the processes that these start, else at some of its own.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessRaisedException

import vmp
from vmp.engine import launch
from vmp.engine.agreement import describe_differences, exchange, name_ranks
from vmp.utils.cli import last_line
from vmp.utils.distributed import get_rank, get_world_size, is_main
from vmp.utils.files import write_text
from vmp.utils.placement import find_placement

# Bytes of the all-reduces that are timed, and seconds for each size.
SIZES = (4, 64 * 1024, 2**20, 2**24, 2**26)
SECONDS = 0.5
# Bytes that should be free for checkpoints; seconds by which clocks may differ.
FREE, SKEW = 2**30, 1.0
# What of a rank must be the same on all.
SAME = ("vmp", "torch", "cuda", "nccl", "python")
SHARED = "give the run a folder on a file system that all hosts share"


class Options(NamedTuple):
    """What is asked for.

    Attributes:
        output_dir: folder that all ranks should see, "" for none.
        timeout: seconds for each thing that the ranks do together.
        as_json: print the report for programs.
        launcher: who started the ranks.
    """

    output_dir: str
    timeout: float
    as_json: bool
    launcher: str


def check_dist(args: argparse.Namespace) -> int:
    """Have the ranks meet and work together; rank 0 prints the report.

    Returns:
        0 if all is well, else 1, after one line that says which rank and what to do.
    """
    gpus = torch.cuda.device_count() if args.gpus is None and args.processes == 1 else args.gpus
    try:
        placement = find_placement(os.environ)
        launcher = "doctor" if placement is None else placement.launcher
        options = Options(args.output_dir, args.timeout, args.json, launcher)
        launch(
            examine,
            options,
            num_gpus=gpus or 0,
            num_processes=args.processes,
            timeout=args.timeout,
            init_timeout=args.timeout,
        )
    except UnwellError as error:
        return _end(str(error))
    except (ValueError, OSError) as error:
        return _end(str(error), as_json=args.json)
    except ProcessRaisedException as error:
        name, message = last_line(f"RuntimeError: {error}")
        if name == UnwellError.__name__:
            return _end(message)
        if name != ValueError.__name__:
            raise
        return _end(message, as_json=args.json)
    return 0


def _end(complaint: str, *, as_json: bool = False) -> int:
    """Say what is wrong: where there are several ranks, all may say what stopped them."""
    main = os.environ.get("RANK", "0") == "0"
    if as_json and main:
        print(json.dumps({"ok": False, "problems": [complaint]}))
    print(f"error: {complaint}", file=sys.stderr)
    return 1


class UnwellError(ValueError):
    """The ranks can work together, and something is wrong; the report is printed."""


# --------------------------------------------------------------------------- in each rank
def examine(options: Options) -> None:
    """Look at everything, on each rank; rank 0 prints the report.

    Raises:
        UnwellError: something is wrong; on all ranks.
        LostRankError: a rank did not do its part in time.
    """
    device = torch.device("cpu")
    if dist.is_initialized() and dist.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    facts = describe_rank(device)
    facts["wrong"] = try_collectives(device)
    facts["skew_seconds"] = measure_skew(device)
    bandwidth = measure_bandwidth(device)
    facts["folder"] = try_folder(options) if options.output_dir else None
    ranks = [json.loads(text) for text in exchange(json.dumps(facts), seconds=options.timeout)]
    problems, notes = judge(ranks, options.output_dir)
    report = {
        "ok": not problems,
        "problems": problems,
        "notes": notes,
        "launcher": options.launcher,
        "backend": dist.get_backend() if dist.is_initialized() else "none",
        "all_reduce": bandwidth,
        "output_dir": options.output_dir,
        "ranks": ranks,
    }
    if is_main():
        print(json.dumps(report) if options.as_json else "\n".join(tell(report)), flush=True)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UnwellError(problems[0] + more)


def describe_rank(device: torch.device) -> dict[str, Any]:
    """Return what this rank is and sees."""
    count = torch.cuda.device_count()
    return {
        "rank": get_rank(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "local_rank": int(os.environ.get("LOCAL_RANK", 0)),
        "device": str(device),
        "gpus": [torch.cuda.get_device_name(gpu) for gpu in range(count)],
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "cores": cores(),
        "all_cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "vmp": vmp.__version__,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if count else "none",
        "python": platform.python_version(),
    }


def cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def try_collectives(device: torch.device) -> str:
    """Have the ranks add, send and wait; return what came out wrong, "" if nothing did."""
    if not dist.is_initialized():
        return ""
    rank, size = get_rank(), get_world_size()
    total = torch.arange(1000, dtype=torch.float64, device=device) + rank
    dist.all_reduce(total)
    expected = size * torch.arange(1000, device=device) + size * (size - 1) // 2
    if not torch.equal(total, expected.double()):
        return "all-reduce gives a wrong sum"
    sent = torch.full((1000,), rank, device=device)
    dist.broadcast(sent, src=size - 1)
    if not bool((sent == size - 1).all()):
        return f"broadcast from rank {size - 1} brings wrong values"
    dist.barrier()
    return ""


def measure_skew(device: torch.device, repeats: int = 5) -> float:
    """Return by how many seconds this clock is ahead of that of rank 0, on all ranks.

    All look at their clocks when a barrier opens; how far apart that is for them is the error, a
    millisecond or, on a busy machine, some hundredths of a second.
    """
    if not dist.is_initialized():
        return 0.0
    skews = []
    for _ in range(repeats):
        dist.barrier()
        now = torch.tensor([time.time()], dtype=torch.float64, device=device)
        reference = now.clone()
        dist.broadcast(reference, src=0)
        skews.append(float(now - reference))
    return statistics.median(skews)


def measure_bandwidth(device: torch.device) -> list[dict[str, float]]:
    """Return bytes, seconds and GB/s of all-reduces of several sizes, on all ranks.

    GB/s are what each rank sends and receives: 2 (n - 1) / n times the size, in the time it takes.
    """
    if not dist.is_initialized() or get_world_size() == 1:
        return []
    share = 2 * (get_world_size() - 1) / get_world_size()
    rows = []
    for size in SIZES:
        data = torch.ones(size // 4, device=device)
        once = time_all_reduce(data, repeats=2)
        repeats = torch.tensor(max(1, min(50, int(SECONDS / once))), device=device)  # rank 0's
        dist.broadcast(repeats, src=0)
        seconds = time_all_reduce(data, int(repeats))
        rows.append({"bytes": size, "seconds": seconds, "gb_per_s": share * size / seconds / 1e9})
    return rows


def time_all_reduce(data: torch.Tensor, repeats: int) -> float:
    """Return the median of the seconds that an all-reduce of `data` takes."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        dist.all_reduce(data)
        if data.is_cuda:
            torch.cuda.synchronize(data.device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def try_folder(options: Options) -> dict[str, Any]:
    """Write to the folder and see what the other ranks write there.

    Returns:
        write_seconds (a small file written, on the disk and renamed), free_bytes, seen_seconds
        (until the files of all were there), unseen (ranks whose file was not), error ("" if none).
    """
    token = exchange(uuid.uuid4().hex, seconds=options.timeout)[0]
    folder = Path(options.output_dir) / f".doctor-{token}"
    found: dict[str, Any] = {"error": "", "unseen": []}
    try:
        began = time.perf_counter()
        write_text(folder / str(get_rank()), token)
        found["write_seconds"] = time.perf_counter() - began
        found["free_bytes"] = shutil.disk_usage(folder).free
    except OSError as error:
        found["error"] = f"{error.strerror or error} ({error.filename or folder})"
    wrote = exchange(found["error"], seconds=options.timeout)
    began = time.monotonic()
    wanted = {rank for rank, error in enumerate(wrote) if not error}
    while wanted and time.monotonic() - began < options.timeout / 2:
        wanted = {rank for rank in wanted if not _holds(folder / str(rank), token)}
        time.sleep(0.05 if wanted else 0)
    found["unseen"], found["seen_seconds"] = sorted(wanted), time.monotonic() - began
    exchange("", seconds=options.timeout)  # all have looked
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _holds(path: Path, text: str) -> bool:
    try:
        os.listdir(path.parent)  # a network file system may only then ask the server
        return path.read_text(encoding="utf-8") == text
    except OSError:
        return False


# --------------------------------------------------------------------------- the judgement
def judge(ranks: Sequence[Mapping[str, Any]], output_dir: str) -> tuple[list[str], list[str]]:
    """Return problems, which rank has them and what to do, a line each; and what is only odd."""
    problems = [
        f"{name_ranks([each['rank']])}: {each['wrong']}; look at the network and its driver"
        for each in ranks
        if each["wrong"]
    ]
    differences = describe_differences([{key: str(each[key]) for key in SAME} for each in ranks])
    if differences:
        problems.append(f"{differences}; start all ranks from the same installation")
    for each in ranks:
        if abs(each["skew_seconds"]) > SKEW:
            problems.append(
                f"{name_ranks([each['rank']])}: the clock is {each['skew_seconds']:+.1f} s off "
                "that of rank 0; have the hosts take their time from a time server"
            )
    if output_dir:
        problems += _judge_folder(ranks, output_dir)
    return problems, _find_oddities(ranks)


def _judge_folder(ranks: Sequence[Mapping[str, Any]], output_dir: str) -> list[str]:
    problems = []
    for each in ranks:
        name, folder = name_ranks([each["rank"]]), each["folder"]
        if folder["error"]:
            problems.append(f"{name} can't write to {output_dir}: {folder['error']}; {SHARED}")
        elif folder["unseen"]:
            problems.append(
                f"{name} does not see in {output_dir} what {name_ranks(folder['unseen'])} wrote; "
                f"{SHARED}"
            )
        elif folder["free_bytes"] < FREE:
            problems.append(
                f"{name}: {folder['free_bytes'] / 1e9:.2f} GB are free in {output_dir}; make room "
                "for checkpoints"
            )
    return problems


def _find_oddities(ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what makes a run slow rather than wrong."""
    notes = []
    names = [{"GPU": name_gpu(each)} for each in ranks]
    if different := describe_differences(names):
        notes.append(f"{different}: the slowest sets the pace")
    for host in dict.fromkeys(each["host"] for each in ranks):
        here = [each for each in ranks if each["host"] == host]
        threads = sum(each["threads"] for each in here)
        count = len({core for each in here for core in each["cores"]})
        if len(here) > 1 and threads > count:
            notes.append(
                f"{host}: {len(here)} ranks have {threads} threads on {count} cores; set "
                f"OMP_NUM_THREADS {max(1, count // len(here))}"
            )
        if any(len(each["cores"]) == 1 < each["all_cores"] for each in here):
            notes.append(
                f"{host}: a rank may use 1 core of {here[0]['all_cores']}, which its data loader "
                "has to share; start with mpirun --bind-to none, or srun --cpus-per-task"
            )
    return notes


def name_gpu(facts: Mapping[str, Any]) -> str:
    """Return the name of the GPU that a rank works on, "none" on the CPU."""
    kind, _, number = facts["device"].partition(":")
    return str(facts["gpus"][int(number)]) if kind == "cuda" else "none"


# --------------------------------------------------------------------------- the text
def tell(report: Mapping[str, Any]) -> list[str]:
    """Return the report as lines."""
    ranks = report["ranks"]
    hosts = len({each["host"] for each in ranks})
    first = ranks[0]
    lines = [
        f"{len(ranks)} rank(s) on {hosts} host(s), started by {report['launcher']}, "
        f"backend {report['backend']}",
        f"vmp {first['vmp']}, torch {first['torch']}, CUDA {first['cuda']}, NCCL {first['nccl']}, "
        f"Python {first['python']}",
        "",
    ]
    head = ["rank", "host", "device", "GPUs seen", "threads", "cores", "clock, s"]
    folder = ["file written, ms", "all seen, s", "free, GB"] if report["output_dir"] else []
    lines += _table([head + folder, *(_row(each) for each in ranks)])
    if report["all_reduce"]:
        rows = [["all-reduce, bytes", "ms", "GB/s"]]
        rows += [
            [f"{row['bytes']:,}", f"{1000 * row['seconds']:.3f}", f"{row['gb_per_s']:.3f}"]
            for row in report["all_reduce"]
        ]
        lines += ["", *_table(rows)]
    lines += ["", *(f"note: {note}" for note in report["notes"])]
    lines += [f"problem: {problem}" for problem in report["problems"]]
    return [*lines, "All is well." if report["ok"] else f"{len(report['problems'])} problem(s)."]


def _row(facts: Mapping[str, Any]) -> list[str]:
    gpus = str(len(facts["gpus"]))
    if facts["visible_gpus"]:
        gpus += f" ({facts['visible_gpus']})"
    cells = [str(facts["rank"]), facts["host"], facts["device"], gpus, str(facts["threads"])]
    cells += [str(len(facts["cores"])), f"{facts['skew_seconds']:+.3f}"]
    folder = facts["folder"]
    if folder is None:
        return cells
    if folder["error"]:
        return [*cells, folder["error"], "-", "-"]
    seen = "never" if folder["unseen"] else f"{folder['seen_seconds']:.2f}"
    free = f"{folder['free_bytes'] / 1e9:.1f}"
    return [*cells, f"{1000 * folder['write_seconds']:.1f}", seen, free]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
