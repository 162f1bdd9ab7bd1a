"""Where jobs run: processes of this machine, or the workers of loky, MPI or Dask.

All of them are executors as PEP 3148 describes them. A `Pool` makes one, and makes another if a
worker of the first one died. Nothing here schedules or transports: that is what they are for.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ..backend.threads import cores
from ..extras import need

RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")  # what mpiexec tells a process
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Pool:
    """make     makes an executor, anything with PEP 3148's `submit`, as a context manager
    at_once  how many jobs it does at a time
    deaths   the exceptions that say that a worker died
    stop     is called after an error or an interrupt, before what runs is waited for
    """

    make: Callable[[], AbstractContextManager[Any]]
    at_once: int
    deaths: tuple[type[BaseException], ...] = (BrokenExecutor,)
    stop: Callable[[], Any] = lambda: None


@contextmanager
def pool(name: str = "processes", jobs: int | None = None) -> Iterator[Pool]:
    """Yield the pool of a name in NAMES, with so many workers (None: one for each core).

    "dask:ADDRESS" is a Dask cluster that runs already, with as many workers as it has. Raises
    ImportError, with the remedy, if the library is missing, and ValueError for an unknown name, for
    `jobs` that cannot act, for workers that are no such ones, and in a browser.
    """
    check(name, jobs)
    if sys.platform == "emscripten":
        raise ValueError("no process can be started in a browser: use the driver without a pool")
    kind, _, address = name.partition(":")
    with _one_thread():
        yield from NAMES[kind](jobs or cores(), address)


def _processes(n: int, _: str) -> Iterator[Pool]:
    """New processes of this machine."""
    import multiprocessing  # slow to import
    from concurrent.futures import ProcessPoolExecutor

    context, me = multiprocessing.get_context("spawn"), os.getpid()
    yield Pool(lambda: ProcessPoolExecutor(n, context, _follow, (me,)), n)


def _loky(n: int, _: str) -> Iterator[Pool]:
    """New processes of this machine, as joblib and scikit-learn start them."""
    loky, me = need("loky", "workers of loky", "loky"), os.getpid()
    yield Pool(lambda: loky.ProcessPoolExecutor(n, initializer=_follow, initargs=(me,)), n)


def _mpi(_: int, __: str) -> Iterator[Pool]:
    """The processes of mpiexec but the first, which is the driver.

    MPI ends all of them, the driver too, if one dies. The same command goes on then; on another
    executor it finds the job that ended its worker.
    """
    who = "workers under MPI"
    size = need("mpi4py.MPI", who, "mpi").COMM_WORLD.size
    futures = need("mpi4py.futures", who, "mpi")
    if size == 1 or "mpi4py.futures" not in sys.orig_argv:
        raise ValueError("mpi4py.futures needs a driver and one worker or more of mpiexec: give "
                         "mpiexec -n N python -m mpi4py.futures -m minilora ..., with N >= 2")
    yield Pool(lambda: futures.MPIPoolExecutor(initializer=_alone), size - 1)


def _dask(n: int, address: str) -> Iterator[Pool]:
    """The workers of a cluster; without an address, of a new one with n workers on this machine."""
    who = "workers of Dask"
    dask, config = need("distributed", who, "dask"), need("dask.config", who, "dask")
    # A job that ended a worker is not given to another one behind the driver's back.
    with ExitStack() as stack, config.set({"distributed.scheduler.allowed-failures": 0}):
        cluster = address or stack.enter_context(dask.LocalCluster(
            n_workers=n, threads_per_worker=1, dashboard_address=None))
        client = stack.enter_context(dask.Client(cluster))
        threads = client.nthreads()
        if max(threads.values(), default=0) != 1:
            problem = "has workers of several threads" if threads else "has no workers"
            raise ValueError(f"{address} {problem}: start workers of one thread each, as `dask "
                             "worker ADDRESS --nthreads 1` does")
        yield Pool(lambda: client.get_executor(pure=False), len(threads),
                   (BrokenExecutor, dask.scheduler.KilledWorker))


def check(name: str, jobs: int | None = None) -> None:
    """Raise ValueError, with the remedy, for a name or a number of workers that cannot be."""
    kind, _, address = name.partition(":")
    if kind not in NAMES or (address and kind != "dask"):
        raise ValueError(f"{name or repr(name)}: choose {', '.join(NAMES)}, or dask:ADDRESS")
    if jobs and (address or kind == "mpi4py.futures"):
        raise ValueError(f"{name} has its own number of workers: leave out --jobs")


NAMES = {"processes": _processes, "loky": _loky, "mpi4py.futures": _mpi, "dask": _dask}


@contextmanager
def _one_thread() -> Iterator[None]:
    """In this block, processes that start have one BLAS thread: a BLAS library reads it as it is
    loaded."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _alone() -> None:
    """Let a job in a worker of MPI be like one elsewhere: it is no rank of a larger one."""
    for name in RANKS:
        os.environ.pop(name, None)


def _follow(driver: int) -> None:
    """Let the driver answer Ctrl-C: a worker finishes its job. End soon after the driver ends."""
    import multiprocessing

    def end() -> None:
        parent: Any = multiprocessing.parent_process()
        while os.name == "posix" and os.getppid() == driver:  # loky's workers cannot join it
            time.sleep(0.5)
        if os.name != "posix":  # there the number of a parent stays
            parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end, daemon=True).start()
