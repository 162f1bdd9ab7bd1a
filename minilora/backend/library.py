"""The hooks of an array library: `Backend`, which is NumPy, and the parent of all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from . import host, threads

Array = Any  # a numpy.ndarray, or the array of the library in use
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

    def share(self, task: threads.Task, n: int, size: int, piece: int = 0) -> None:
        """Run task(rows) for slices that cover range(n); see threads.share."""
        threads.share(task, n, size, piece)

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
        return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)

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
