"""What an array library has to say for itself: `Backend`, NumPy and the parent of all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from . import host, threads

Array = Any  # a numpy.ndarray, or its like in the library in use
Rng: TypeAlias = "np.random.Generator | int | None"  # a string: numpy.random loads when used


class Backend:
    """NumPy, and the parent of every other array library: override what differs, nothing else."""

    name = "numpy"
    module: Any = np
    plain = False  # every op as it is printed in ops/, no kernels
    on_host = True  # a kernel takes what pays on a CPU: caches, BLAS, numbers at hand
    piece = 1 << 18  # numbers in a piece of work that should stay in the cache
    queries = 64  # in a block of attention

    def enter(self) -> None:
        """Called when this backend comes into use."""

    def share(self, task: threads.Task, n: int, size: int, piece: int = 0) -> None:
        """task(rows) for slices that cover range(n); see threads.share."""
        threads.share(task, n, size, piece)

    def fuse(self, formula: Callable[..., None]) -> Callable[..., None]:
        """An elementwise formula (see `fused`) in the form in which this library runs it best."""
        return formula

    def synchronize(self) -> None:
        """Wait until all that was asked for is done: before a clock is read. Here it always is."""

    def asnumpy(self, x: Any) -> np.ndarray:
        """x as a NumPy array on the host."""
        return np.asarray(x)

    def generator(self, rng: Rng) -> np.random.Generator:
        """The generator, on the host, behind `rng`."""
        return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)

    def read(self, x: Any, otherwise: float) -> float:
        """The number in x, waiting for it; `otherwise` where arrays have no numbers."""
        return float(self.asnumpy(x))

    def peek(self, x: Any, otherwise: float) -> float:
        """The number in x; `otherwise` where a device would have to be waited for."""
        return float(x)

    def finite(self, loss: Array, gradients: Sequence[Array]) -> Array:
        """The loss, if all gradients are finite; else FloatingPointError naming a shape.

        A device is not waited for: there, the loss comes back as nan instead.
        """
        return host.finite(loss, gradients)

    def scatter_add(self, target: Array, index: Array, rows: Array) -> None:
        """target[index[i]] += rows[i] for every i, repeated indices included; in place.

        target: (n, d)   index: (m,) integers in range   rows: (m, d)
        """
        host.scatter_add(target, index, rows)

    def erf(self, x: Array) -> Array:
        """The error function, elementwise."""
        return host.erf(x)

    def reserved(self) -> int:
        """The most bytes that this process has held by now: arrays and all else."""
        return host.reserved()

    def meter(self) -> Any:
        """Counts the bytes of arrays while it is entered.

        read() gives (in use, the most at any time since reset()).
        """
        return host.Traced()

    def describe(self) -> str:
        """One line: library, version, device."""
        return f"numpy {np.__version__} on the CPU"
