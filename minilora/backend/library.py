"""The protocol of an array library: `Backend`, which is NumPy, and the parent of all others; and
which library a thread uses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, TypeAlias

import numpy as np

from . import host

Array = Any  # a numpy.ndarray, or the array of the library in use
Task = Callable[[slice], None]
Rng: TypeAlias = "np.random.Generator | int | None"  # a string: numpy.random loads when used


class Backend:
    """NumPy. The class of another array library overrides what differs: `Device` if its arrays are
    not on the host. Each hook says why there is one; asked.py lists what `module` must have.
    """

    name = "numpy"
    module: Any = np  # what `xp` forwards to
    plain = False  # run every op as it is printed in ops/?
    on_host = True  # does a CPU compute: caches, BLAS, numbers that can be read without waiting?
    piece = 1 << 18  # numbers in a piece of work that fits the cache
    devices = 1  # there are so many
    queries = 64  # rows of a block where work grows with the square of the rows

    def enter(self) -> None:
        """Called when this backend comes into use: a library may have one device per thread."""

    def share(self, task: Task, n: int, size: int, piece: int = 0) -> None:
        """Run task(rows) for slices that cover range(n), on all cores: NumPy uses one."""

        def part(at: slice) -> None:
            if current() is not self:  # in another thread
                switch(self)
            task(at)

        self.on_cores(part, n, size, piece)

    @staticmethod
    def on_cores(task: Task, n: int, size: int, piece: int) -> None:
        """Use one core; minilora/kernels, which alone shares work, puts threads.share here."""
        if n:
            task(slice(0, n))

    def fuse(self, formula: Callable[..., None]) -> Callable[..., None]:
        """Return an elementwise formula (see `fused`) in the fastest form of this library: on a
        device, each call costs a launch."""
        return formula

    def synchronize(self) -> None:
        """Wait until all work is done, before a clock is read: a device queues its work."""

    def asnumpy(self, x: Any) -> np.ndarray:
        """Return x as a NumPy array on the host: a device copies nothing unless it is asked to."""
        return np.asarray(x)

    def generator(self, rng: Rng) -> np.random.Generator:
        """Return the generator, on the host, for `rng`: a seed is one model in every library."""
        if isinstance(rng, np.random.Generator):
            return rng
        return copy_context().run(np.random.default_rng, rng)  # it may leave NumPy's flags changed

    def read(self, x: Any, otherwise: float) -> float:
        """Return the number in x, after waiting for it; `otherwise` if arrays have no numbers."""
        return float(self.asnumpy(x))

    def peek(self, x: Any, otherwise: float) -> float:
        """Return the number in x; `otherwise` if a device would have to be waited for."""
        return float(x)

    def finite(self, loss: Array, gradients: Sequence[Array]) -> Array:
        """Return the loss if all gradients are finite; else raise FloatingPointError with a shape.
        A device is not waited for: there, the loss becomes nan instead."""
        return host.finite(loss, gradients)

    def owner(self, x: Array) -> Any:
        """Return the object that has x's memory, one for all views: the tape asks whether another
        view of what it keeps was written to, and shared memory is counted once."""
        while hasattr(getattr(x, "base", None), "dtype"):
            x = x.base
        return x

    def owns(self, x: Array) -> bool:
        """Return whether x is no view: then a gradient can be added to it in place. False is
        always right, and costs a copy."""
        return x.base is None

    def scatter_add(self, target: Array, index: Array, rows: Array) -> None:
        """target[index[i]] += rows[i] for every i, in place; repeated indices add up. `add.at` is
        slow in NumPy, and others lack it.  target: (n, d)  index: (m,) in range  rows: (m, d)"""
        host.scatter_add(target, index, rows)

    def erf(self, x: Array) -> Array:
        """The error function, elementwise: NumPy has none, others have it in another module."""
        return host.erf(x)

    def reserved(self) -> int:
        """Return the peak memory in bytes: of this process, or what was taken from a device."""
        return host.reserved()

    def meter(self) -> Any:
        """Return a meter of this library's allocator (its read() and reset() are those of
        accounting.traced.Traced); None: NumPy's arrays are counted, or nothing on a device."""
        return None

    def describe(self) -> str:
        """Return one line for a report of measurements: library, version, device."""
        return f"numpy {np.__version__} on the CPU"


class InUse(threading.local):
    """The library that this thread uses; at first the one that `use` chose in the main thread."""

    chosen = Backend()

    def __init__(self) -> None:
        self.library = InUse.chosen
        self.library.enter()


class Namespace(threading.local):
    """Forwards to the module in use. A name is looked up there once, and stored here after that."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(current().module, name)
        self.__dict__[name] = value
        return value


in_use = InUse()
xp: Any = Namespace()


def current() -> Backend:
    """Return the backend that this thread uses."""
    return in_use.library


def switch(backend: Backend) -> Backend:
    """Let this thread use another library; return the previous one."""
    before, names = in_use.library, vars(xp)
    in_use.library, _ = backend, names.clear()  # in one line: no interrupt comes between the two
    return before
