"""The hooks of an array library: `Backend`, which is NumPy, and the parent of all others; and which
library a thread uses."""

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
    """NumPy. The class of another array library overrides what differs."""

    name = "numpy"
    module: Any = np
    plain = False  # run every op as it is printed in ops/?
    on_host = True  # does a CPU compute: caches, BLAS, numbers that can be read without waiting?
    piece = 1 << 18  # numbers in a piece of work that fits the cache
    queries = 64  # rows of a block where work grows with the square of the rows

    def enter(self) -> None:
        """Called when this backend comes into use."""

    def share(self, task: Task, n: int, size: int, piece: int = 0) -> None:
        """Run task(rows) for slices that cover range(n), on all cores; see threads.share."""

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
        """Return an elementwise formula (see `fused`) in the fastest form of this library."""
        return formula

    def synchronize(self) -> None:
        """Wait until all work is done, before a clock is read. NumPy's calls are done at once."""

    def asnumpy(self, x: Any) -> np.ndarray:
        """Return x as a NumPy array on the host."""
        return np.asarray(x)

    def generator(self, rng: Rng) -> np.random.Generator:
        """Return the generator, on the host, for `rng`."""
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

        A device is not waited for: there, the loss becomes nan instead.
        """
        return host.finite(loss, gradients)

    def scatter_add(self, target: Array, index: Array, rows: Array) -> None:
        """target[index[i]] += rows[i] for every i, in place; repeated indices add up.

        target: (n, d)   index: (m,) integers in range   rows: (m, d)
        """
        host.scatter_add(target, index, rows)

    def erf(self, x: Array) -> Array:
        """The error function, elementwise."""
        return host.erf(x)

    def reserved(self) -> int:
        """Return the peak memory of this process in bytes: arrays and everything else."""
        return host.reserved()

    def describe(self) -> str:
        """Return one line: library, version, device."""
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
