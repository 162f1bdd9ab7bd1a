"""Work shared by the cores: NumPy lets other threads run while it computes.

A row of a product, of a norm or of a softmax needs no other row, so a kernel hands out its rows in
pieces. How they are cut depends on sizes alone, never on the number of threads, so the results
have the same bits on any machine of the same BLAS. BLAS's own threads are off meanwhile (they wait
for one another in a busy loop, which costs a multiple of the time where somebody else is using a
core) and on again afterwards. Threads start at first need; a fork, or a second Python thread that
computes at the same time, finds everything in order.
"""

from __future__ import annotations

import contextvars
import functools
import os
import queue
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from . import host

Task = Callable[[slice], None]
WORTH = 1 << 15  # below so many numbers, sharing costs more than it brings
LEAST, MOST, EACH = 2, 16, 1 << 23  # pieces where sharing pays at all; numbers in each, if many


def share(task: Task, n: int, size: int, piece: int = 0) -> None:
    """task(rows) for slices that cover range(n), on all threads where it is worth it.

    size: how many numbers it is about; piece: rows at a time, 0 for as many as there are. A task
    that shares again does that part by itself.
    """
    cuts = pieces(n, size, piece) if size >= WORTH or n > piece > 0 else [slice(0, n)] * (n > 0)
    with _quiet:
        if len(cuts) > 1 and not _own.sharing and (crew := _crew()):
            _together(task, cuts, crew)
        else:
            for at in cuts:
                task(at)


def pieces(n: int, size: int, piece: int) -> list[slice]:
    """Slices that cover range(n), of at most `piece` rows; more of them for more work."""
    count = -(-n // piece) if piece else 1
    if size >= WORTH and n > 1:
        count = max(count, min(MOST, size // EACH), LEAST)
        count = min(n, count + count % 2)
    bounds = [n * i // max(1, count) for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


class _Own(threading.local):
    """What belongs to one thread: is it doing its part of something shared?"""

    sharing = False


_own = _Own()
Inbox = queue.SimpleQueue[Any]
_inboxes: list[Inbox] = []  # one for each thread that waits for work
_starting = threading.Lock()
_count = 0  # threads to use, 0: not decided yet


def threads(n: int | None = None) -> int:
    """Let ops use n threads from now on (0: one per core; None: leave it); returns what was.

    The results do not depend on it, to the bit. Raises ValueError for less than 0. Where BLAS
    cannot be told to use one thread, work is not shared.
    """
    global _count
    before = _count or cores()
    if n is not None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"threads: n must be a whole number, 0 for one per core, not {n!r}")
        _count = n
    return before


def cores() -> int:
    """How many cores this process may use, unless OPENBLAS_NUM_THREADS or its like says fewer."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(allowed or 1, _quiet.before or (_blas()[1]() if _blas()[1] else 1))


def _crew() -> list[Inbox]:
    """The inboxes of the threads that help the calling one; starts those that are missing."""
    global _count
    _count = _count or cores()
    wanted = _count - 1 if _blas()[0] else 0
    if len(_inboxes) < wanted:
        with _starting:
            while len(_inboxes) < wanted:
                inbox: Inbox = queue.SimpleQueue()
                threading.Thread(target=_serve, args=(inbox,), daemon=True).start()
                _inboxes.append(inbox)
    return _inboxes[:wanted]


def _serve(inbox: Inbox) -> None:
    _own.sharing = True
    while True:
        context, task, todo, done = inbox.get()
        done.put(context.run(_part, task, todo))
        del context, task, todo, done


def _part(task: Task, todo: list[slice]) -> BaseException | None:
    """Do these pieces; what went wrong, if anything did."""
    try:
        for at in todo:
            task(at)
    except BaseException as error:
        return error
    return None


def _together(task: Task, cuts: list[slice], crew: list[Inbox]) -> None:
    """Neighbouring pieces go to one thread, which has what the op before made of them in its cache.

    The results of this call go to a queue of its own: another thread may be calling, too.
    """
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    count = min(len(crew) + 1, len(cuts))
    parts = [cuts[len(cuts) * i // count : len(cuts) * (i + 1) // count] for i in range(count)]
    for inbox, part in zip(crew, parts[1:]):
        inbox.put((contextvars.copy_context(), task, part, done))  # np.errstate and the like
    _own.sharing = True
    try:
        failed = [_part(task, parts[0])]
    finally:
        _own.sharing = False
        failed += [done.get() for _ in parts[1:]]
    for error in failed:
        if error is not None:
            raise error


class _Quiet:
    """While anybody is inside, BLAS uses one thread; then as many as before."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                set_threads, get_threads = _blas()
                if set_threads and (now := get_threads()) > 1:
                    self.before = now
                    set_threads(1)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside and self.before:
                _blas()[0](self.before)
                self.before = 0


_quiet = _Quiet()


def _after_fork() -> None:
    """In the child none of the threads is there; what they held is as if it had never been."""
    global _starting
    _starting = threading.Lock()
    _inboxes.clear()
    _own.sharing = False
    if _quiet.before:
        _blas()[0](_quiet.before)
    _quiet.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _blas() -> tuple[Any, ...]:
    """OpenBLAS's functions to set and to get the number of its threads, or (None, None).

    The first to ask also has freed memory kept: this is where computing in earnest begins.
    """
    import ctypes
    from pathlib import Path

    host.keep_freed_memory()
    folders = [Path(np.__file__).parent.parent / "numpy.libs", Path(np.__file__).parent / ".libs"]
    for path in (p for folder in folders for p in folder.glob("*openblas*")):
        library = ctypes.PyDLL(str(path))  # too short to let go of the interpreter
        for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads"):
            if hasattr(library, name.format("set")):
                return tuple(getattr(library, name.format(verb)) for verb in ("set", "get"))
    return None, None
