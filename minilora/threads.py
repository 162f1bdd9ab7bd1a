"""Work shared by the cores: NumPy lets other threads run while it computes.

A row of a product, of a norm or of a softmax needs no other row, so an op hands out its rows in
pieces, one share per thread. BLAS's own threads are off meanwhile: they wait for one another in a
busy loop, which costs a multiple of the time where somebody else is using a core.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import current

if TYPE_CHECKING:
    import queue

Task = Callable[[slice], None]
WORTH = 1 << 15  # below so many numbers, sharing costs more than it brings


class Pool:
    """`count` threads, the calling one among them, that share a task's rows."""

    def __init__(self, count: int) -> None:
        import queue
        import threading

        self.count = count
        self.done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.inboxes: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(count - 1)]
        for inbox in self.inboxes:
            threading.Thread(target=self._serve, args=(inbox,), daemon=True).start()

    def _serve(self, inbox: queue.SimpleQueue[Any]) -> None:
        while (job := inbox.get()) is not None:
            try:
                job()
                self.done.put(None)
            except BaseException as error:
                self.done.put(error)
            del job

    def run(self, task: Task, n: int, piece: int) -> None:
        """task(rows) over all of range(n), at most `piece` rows at a time."""
        bounds = [n * i // self.count for i in range(self.count + 1)]
        jobs = [functools.partial(_walk, task, *ends, piece) for ends in pairwise(bounds)]
        for inbox, job in zip(self.inboxes, jobs[1:]):
            inbox.put(job)
        try:
            jobs[0]()
        finally:
            failed = [error for _ in self.inboxes if (error := self.done.get()) is not None]
        if failed:
            raise failed[0]

    def close(self) -> None:
        """End the threads."""
        for inbox in self.inboxes:
            inbox.put(None)


def _walk(task: Task, start: int, stop: int, piece: int) -> None:
    for at in range(start, stop, piece):
        task(slice(at, min(at + piece, stop)))


_pool: Pool | None = None


def share(task: Task, n: int, size: int, piece: int = 0) -> None:
    """task(rows) for slices that cover range(n), on all cores inside `working`.

    size: how many numbers it is about; piece: rows at a time, 0 for as many as there are.
    """
    if _pool is not None and n > 1 and size >= WORTH:
        _pool.run(task, n, piece or n)
    else:
        _walk(task, 0, n, piece or n or 1)


@contextmanager
def working(count: int | None = None) -> Iterator[None]:
    """Inside, ops share their work among `count` threads (None: one per core), BLAS uses one.

    Nested, on a device, or where BLAS cannot be told, it changes nothing.
    """
    global _pool
    set_threads, get_threads = _blas()
    count = count or cores()
    if _pool is not None or count < 2 or set_threads is None or not current().numbers_are_free:
        yield
        return
    before = get_threads()
    set_threads(1)
    pool = _pool = Pool(count)
    try:
        yield
    finally:
        _pool = None
        pool.close()
        set_threads(before)


def cores() -> int:
    """How many cores this process may use, unless OPENBLAS_NUM_THREADS or its like says fewer."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    get_threads = _blas()[1]
    return min(allowed or 1, get_threads() if get_threads else 1)


@functools.cache
def _blas() -> tuple[Any, ...]:
    """OpenBLAS's functions to set and to get the number of its threads, or (None, None)."""
    import ctypes
    from pathlib import Path

    folders = [Path(np.__file__).parent.parent / "numpy.libs", Path(np.__file__).parent / ".libs"]
    for path in (p for folder in folders for p in folder.glob("*openblas*")):
        library = ctypes.CDLL(str(path))
        for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads"):
            if hasattr(library, name.format("set")):
                return tuple(getattr(library, name.format(verb)) for verb in ("set", "get"))
    return None, None
