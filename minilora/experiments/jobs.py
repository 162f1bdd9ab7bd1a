"""Jobs: pieces of work with a configuration and a result in numbers, spread over processes.

A job's result depends on its configuration alone, so it is the same for any number of processes.
Finished jobs are in a journal, and are not done again. Each process computes on one thread.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .. import __version__
from ..backend.threads import threads
from ..files.journal import Journal, key_of

KINDS = {  # the kind of a job -> the module and function that does it
    "train": "training:train",
    "chance": "training:chance",
    "subspace": "paper.subspace:subspace",
    "own": "paper.amplification:own",
    "latency": "paper.latency:latency",
    "throughput": "paper.throughput:throughput",
    "switch": "paper.switch:switch",
    "intruders": "beyond.intruders:matched",
    "scaling": "scaling:compare",
    "numbers": "numbers:numbers",
    "method": "method:measure",
    "real": "real.films:train",
    "real probe": "real.films:probe",
    "real speed": "real.films:speed",
}
Begins = Callable[[str], Any]


@dataclass(frozen=True)
class Job:
    """kind: one of KINDS; config: its arguments, as JSON can hold them; name: for the progress.

    alone: it measures time, so nothing else runs meanwhile. All that it measures is in its
    result["times"]; the rest of every result is the same each time.
    """

    kind: str
    config: Mapping[str, Any]
    name: str = field(default="", compare=False)
    alone: bool = field(default=False, compare=False)

    @property
    def key(self) -> str:
        return key_of({"kind": self.kind, "config": self.config, "version": __version__})


def function_of(kind: str) -> Callable[..., Any]:
    """Return the function that does jobs of a kind."""
    module, name = KINDS[kind].split(":")
    function: Callable[..., Any] = getattr(
        importlib.import_module(f".{module}", __package__), name
    )
    return function


def work(kind: str, config: Mapping[str, Any]) -> tuple[Any, float]:
    """Do a job on one thread; return its result and the seconds of processor time that it took."""
    before = threads(1)
    began = time.process_time()
    try:
        return function_of(kind)(**config), time.process_time() - began
    finally:
        threads(before)


def _follow() -> None:
    """Let the parent process answer Ctrl-C: a worker finishes its job. End when the parent ends."""
    import multiprocessing
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextmanager
def processes(n: int) -> Iterator[Executor | None]:
    """Yield an executor of n new processes, each with one BLAS thread; None for n = 1.

    Raises ValueError for more than one in a browser.
    """
    if n == 1:
        yield None
        return
    if sys.platform == "emscripten":
        raise ValueError(f"no process can be started in a browser: jobs must be 1, not {n}")
    import multiprocessing  # slow to import
    from concurrent.futures import ProcessPoolExecutor

    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))  # a BLAS library reads them as it is loaded
    pool = ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), _follow)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def do(
    jobs: Iterable[Job], journal: Journal, executor: Executor | None = None,
    begins: Begins = lambda name: None,
) -> list[Any]:
    """Return the results of the jobs, in order. Those that the journal lacks are done now.

    executor: anything with PEP 3148's `submit`; None: this process. Raises RuntimeError that names
    the job if a worker dies; what is finished is in the journal by then.
    """
    jobs = list(jobs)
    waiting = {job.key: job for job in jobs if job.key not in journal}
    together = [job for job in waiting.values() if not (job.alone or executor is None)]
    if executor is not None and together:
        _spread(together, journal, executor, begins)
    for key, job in waiting.items():
        if key not in journal:
            begins(job.name)
            journal.add(key, _line(job, *work(job.kind, job.config)))
    return [journal[job.key]["result"] for job in jobs]


def _spread(
    jobs: Sequence[Job], journal: Journal, executor: Executor, begins: Begins
) -> None:
    """Do the jobs in the executor, and write each to the journal as it ends.

    After an interrupt or an error, what runs is waited for and kept, and the others are cancelled.
    """
    futures = {executor.submit(work, job.kind, job.config): job for job in jobs}
    try:
        for future in as_completed(futures):
            job = futures[future]
            try:
                result, seconds = future.result()
            except BrokenExecutor as error:
                raise RuntimeError(
                    f"a process that computed runs died, perhaps for lack of memory, near "
                    f"{job.name}: the same command goes on from there; fewer --jobs need less"
                ) from error
            journal.add(job.key, _line(job, result, seconds))
            begins(job.name)
    finally:
        for future, job in futures.items():
            if not future.cancel() and future.exception() is None:
                journal.add(job.key, _line(job, *future.result()))


def _line(job: Job, result: Any, seconds: float) -> dict[str, Any]:
    return {"kind": job.kind, "config": job.config, "version": __version__,
            "seconds": round(seconds, 3), "result": result}
