"""Work shared by the cores: NumPy lets other threads run while it computes.

Often a row of a result needs no other row, so work is cut into pieces of rows. The cuts depend on
sizes alone, never on the number of threads, so the results have the same bits on all machines with
the same BLAS. Meanwhile BLAS uses one thread: its own threads wait for one another in a busy loop,
which is slow if another process uses a core. Threads start when they are first needed. A fork is
safe, and several Python threads may compute at the same time.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import queue
import sys
import threading
from itertools import pairwise
from typing import Any

import numpy as np

from .blocks import restoring
from .library import Task

WORTH = 1 << 15  # numbers: below this, sharing costs more than it gains
LEAST, MOST, EACH = 2, 16, 1 << 23  # number of pieces of shared work; numbers in each, if many


def share(task: Task, n: int, size: int, piece: int = 0) -> None:
    """Run task(rows) for slices that cover range(n), on all threads if the work is large enough.

    size: numbers to compute, which measures the work. piece: rows at a time, 0 for all of them.
    Work that a task shares again stays in the task's thread.
    """
    cuts = pieces(n, size, piece) if size >= WORTH or n > piece > 0 else [slice(0, n)] * (n > 0)
    me = object()
    with restoring(functools.partial(_go, me)):
        _come(me)
        if len(cuts) > 1 and not _own.sharing and (crew := _crew()):
            _together(task, cuts, crew)
        else:
            for at in cuts:
                task(at)


def pieces(n: int, size: int, piece: int) -> list[slice]:
    """Return slices that cover range(n), of at most `piece` rows; more work, more slices."""
    count = -(-n // piece) if piece else 1
    if size >= WORTH and n > 1:
        count = max(count, min(MOST, size // EACH), LEAST)
        count = min(n, count + count % 2)
    bounds = [n * i // max(1, count) for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


class _Own(threading.local):
    """The state of one thread."""

    sharing = False  # is it running a piece of shared work?


_own = _Own()
Inbox = queue.SimpleQueue[Any]
_inboxes: list[Inbox] = []  # one per helping thread
_count = 0  # threads to use; 0: not decided yet


def threads(n: int | None = None) -> int:
    """Set how many threads ops use (0: one per core; None: no change); return the previous number.

    It does not change a bit of the results. Work is not shared if the number of BLAS's threads
    cannot be set. Raises ValueError for a negative number, and in a browser for more than one.
    """
    global _count
    before = _count or cores()
    if n is not None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"threads: n must be an integer, 0 for one per core, not {n!r}")
        if n > 1 and sys.platform == "emscripten":
            raise ValueError(f"threads: Python has one thread in a browser: n must be 1, not {n}")
        _count = n
    return before


def cores() -> int:
    """Return the number of cores for this process, or fewer if OPENBLAS_NUM_THREADS says so."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(allowed or 1, _before if _inside else (_blas()[1]() if _blas()[1] else 1))


def _crew() -> list[Inbox]:
    """Return the inboxes of the helping threads; start those that are missing."""
    global _count
    _count = _count or cores()
    wanted = _count - 1 if _blas()[0] else 0
    while len(_inboxes) < wanted:
        inbox: Inbox = queue.SimpleQueue()
        try:
            threading.Thread(target=_serve, args=(inbox,), daemon=True).start()
        except BaseException:
            inbox.put(None)  # it may run already
            raise
        _inboxes.append(inbox)
    return _inboxes[:wanted]


def _serve(inbox: Inbox) -> None:
    _own.sharing = True
    while work := inbox.get():
        context, part = work
        context.run(part)
        del context, part, work


def _together(task: Task, cuts: list[slice], crew: list[Inbox]) -> None:
    """Run neighbouring pieces in one thread: its cache has what the op before computed for them.

    After an error or an interrupt, no thread begins its part, and none is still at work.
    """
    count = min(len(crew) + 1, len(cuts))
    parts = {i: cuts[len(cuts) * i // count : len(cuts) * (i + 1) // count] for i in range(count)}
    running, failed = set[int](), list[BaseException]()
    done: queue.SimpleQueue[None] = queue.SimpleQueue()

    def run(i: int) -> None:
        running.add(i)
        try:
            for at in parts.pop(i, ()):
                task(at)
        except BaseException as error:
            failed.append(error)
        running.discard(i)
        done.put(None)

    def stop() -> None:
        _own.sharing = False
        parts.clear()
        while running:
            done.get()

    with restoring(stop):
        _own.sharing = True
        for i, inbox in zip(range(1, count), crew):
            inbox.put((contextvars.copy_context(), functools.partial(run, i)))  # with np.errstate
        for at in parts.pop(0):
            task(at)
        while parts or running:
            done.get()
    for error in failed:
        raise error


# While any thread is in `share`, BLAS uses one thread; after it, as many as before. A lock would
# stay locked after some interrupts. Python changes threads, and looks for signals, only where a
# function begins, a loop goes back or a call ends: not between the lines that matter here.
_inside: dict[object, None] = {}
_before = 1  # BLAS's threads when the first one came


def _come(me: object) -> None:
    global _before
    set_threads, get_threads = _blas()
    if set_threads:
        _before = _before if _inside else get_threads()
        _inside[me] = None
        if _before > 1:
            set_threads(1)


def _go(me: object) -> None:
    set_threads = _blas()[0]
    if me in _inside:
        if _before > 1 and [*_inside] == [me]:
            set_threads(_before)
        del _inside[me]


def _after_fork() -> None:
    """Reset the state in a forked child, which has none of the parent's other threads."""
    _inboxes.clear()
    _own.sharing = False
    if _inside:
        _inside.clear()
        _blas()[0](_before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def keep_freed_memory() -> None:
    """Ask the C library to keep freed memory instead of returning it to the operating system.

    A returned page has to be mapped and cleared again. Does nothing without glibc.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: up to 32 MiB (its maximum), use the heap
    mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: return none of the heap below 1 GiB


def return_freed_memory() -> None:
    """Return the memory that is free now to the operating system; nothing without glibc."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _blas() -> tuple[Any, ...]:
    """Return OpenBLAS's functions that set and get its number of threads, or (None, None).

    The first call, which is where heavy computing starts, also makes the process keep freed memory.
    """
    import ctypes
    from pathlib import Path

    keep_freed_memory()
    folders = [Path(np.__file__).parent.parent / "numpy.libs", Path(np.__file__).parent / ".libs"]
    for path in (p for folder in folders for p in folder.glob("*openblas*")):
        library = ctypes.PyDLL(str(path))  # the calls are too short to release the GIL
        for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads"):
            if hasattr(library, name.format("set")):
                return tuple(getattr(library, name.format(verb)) for verb in ("set", "get"))
    return None, None
