"""Work spread over processes, one job at a time each, that outlives the death of one of them."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

J = TypeVar("J")
R = TypeVar("R")


def cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Died(NamedTuple):
    """A process was killed over a job.

    Attributes:
        signal: what killed it, as "SIGSEGV".
    """

    signal: str


class _Worker(NamedTuple):
    """A process that has one job at a time, and our end of the pipe to it."""

    pipe: Connection
    process: BaseProcess


def work_through(
    jobs: Iterable[J], work: Callable[[J], R], workers: int, *, preload: str
) -> Iterator[tuple[J, R | Died]]:
    """Do many jobs in parallel processes.

    A process has one job at a time, so nothing piles up, and one that dies over a job (a library
    that crashes, no memory left) tells which; another process goes on with the rest. When the
    caller stops, by an error or Ctrl-C, the processes are killed: a job must leave nothing half
    done behind.

    Args:
        jobs: asked for one by one, when a process is free.
        work: done in the processes, so it must be possible to pickle it.
        workers: processes, at least 1.
        preload: module that the processes share, imported once.

    Yields:
        (job, its result or how its process died), in the order in which they are ready.

    Raises:
        RuntimeError: a process ended by itself, which no job should make it do.
        Exception: what `work` raised.
    """
    context = multiprocessing.get_context("forkserver")  # the parent may have threads
    context.set_forkserver_preload([preload])
    waiting = iter(jobs)
    idle: list[_Worker] = []
    busy: dict[Any, tuple[_Worker, J]] = {}  # by pipe
    try:
        while True:
            for job in islice(waiting, workers - len(busy)):
                worker = idle.pop() if idle else _start(context, work)
                busy[worker.pipe] = worker, job
                worker.pipe.send(job)
            if not busy:
                return
            for pipe in wait(list(busy)):
                worker, job = busy[pipe]
                result = _answer(worker, job)
                del busy[pipe]
                if worker.process.is_alive():
                    idle.append(worker)
                yield job, result
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.process.kill()


def _start(context: Any, work: Callable[[Any], Any]) -> _Worker:
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, work), daemon=True)
    process.start()
    there.close()  # or its end would not be noticed
    return _Worker(here, process)


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            pipe.send(_result_or_error(pipe.recv(), work))


def _result_or_error(job: Any, work: Callable[[Any], Any]) -> tuple[Any, Exception | None]:
    try:
        return work(job), None
    except Exception as error:
        return None, error


def _answer(worker: _Worker, job: object) -> Any:
    try:
        result, error = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        status = worker.process.exitcode or 0
        if status >= 0:
            raise RuntimeError(f"the process for {job} ended with status {status}") from None
        return Died(signal.Signals(-status).name)
    if error is not None:
        raise error
    return result
