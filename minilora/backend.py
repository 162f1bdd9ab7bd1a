"""The array library in use: `xp`, and the few hooks in which array libraries differ.

Everything else says `from .backend import xp` and writes what NumPy and CuPy share. Behind the
hooks stand host.py, what NumPy lacks, and gpu.py, the only file that knows CuPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from . import host

Array = Any  # a numpy.ndarray, or its like in the library in use
Rng: TypeAlias = "np.random.Generator | int | None"  # a string: numpy.random loads when used


class Backend:
    """NumPy, and the parent of every other array library: override what differs, nothing else."""

    name = "numpy"
    module: Any = np
    numbers_are_free = True  # reading one number of an array does not wait for a device
    piece = 1 << 18  # numbers in a piece of work that should stay in the cache
    queries = 64  # in a block of attention
    rows = 256  # in a part of a sum over rows

    def enter(self) -> None:
        """Called when this backend comes into use."""

    def fuse(self, formula: Callable[..., None]) -> Callable[..., None]:
        """An elementwise formula (see `fused`) in the form in which this library runs it best."""
        return formula

    def synchronize(self) -> None:
        """Wait until all that was asked for is done: before a clock is read. Here it always is."""

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """x as an array of this library; copies only where it must."""
        return self.module.asarray(x, dtype=dtype)

    def asnumpy(self, x: Any) -> np.ndarray:
        """x as a NumPy array on the host."""
        return np.asarray(x)

    def scatter_add(self, target: Array, index: Array, rows: Array) -> None:
        """target[index[i]] += rows[i] for every i, repeated indices included; in place.

        target: (n, d)   index: (m,) integers in range   rows: (m, d)
        """
        host.scatter_add(target, index, rows)

    def erf(self, x: Array) -> Array:
        """The error function, elementwise."""
        return host.erf(x)

    def keep_freed_memory(self) -> None:
        """Hold on to freed arrays: each training step needs the same buffers again."""
        host.keep_freed_memory()

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


class _Namespace:
    """Forwards to the module in use; each name is looked up there once, then as fast as its own."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(_current.module, name)
        self.__dict__[name] = value
        return value


LIBRARIES: dict[str, Callable[..., Backend]] = {"numpy": Backend}  # gpu.py adds its own
_current: Backend = Backend()
xp: Any = _Namespace()


def use(backend: str | Backend) -> Backend:
    """Switch the array library: "numpy", "cupy", "cupy:1" (that device), or a `Backend`.

    Returns the one left. Arrays that exist already stay where they are: switch first, then build
    the model. Raises ImportError where the library is missing, RuntimeError where no device
    answers, ValueError for a name or a device that there is not.
    """
    global _current
    if isinstance(backend, str):
        name, colon, device = backend.partition(":")
        if name not in LIBRARIES or (colon and name == "numpy"):
            raise ValueError(f"no backend {backend!r}: there are numpy, cupy, cupy:1 (a device)")
        backend = LIBRARIES[name](*[device] * bool(colon))
    backend.enter()
    previous, _current = _current, backend
    xp.__dict__.clear()
    return previous


def current() -> Backend:
    """The backend in use."""
    return _current


def asarray(x: Any, dtype: Any = None) -> Array:
    """x as an array of the library in use."""
    return _current.asarray(x, dtype)


def asnumpy(x: Any) -> np.ndarray:
    """x (array or Tensor) as a NumPy array on the host; shares memory where that is possible."""
    return _current.asnumpy(getattr(x, "data", x) if hasattr(x, "requires_grad") else x)


def scatter_add(target: Array, index: Array, rows: Array) -> None:
    """target[index[i]] += rows[i], repeated indices included; in place."""
    _current.scatter_add(target, index, rows)


def erf(x: Array) -> Array:
    """The error function, elementwise."""
    return _current.erf(x)


def fused(formula: Callable[..., None]) -> Callable[..., None]:
    """An elementwise formula, in place: one kernel on a device, and on the host what it says.

    It may use operators, ufuncs and `out=`, on its arguments (arrays that broadcast to the largest,
    Python numbers) and on constants of its module; every array that it writes to is an argument of
    the full shape. What changes from call to call is an argument, and two of its numbers never
    meet without an array between them: CuPy would compute that in half precision.
    """
    return lambda *arguments: _current.fuse(formula)(*arguments)


def generator(rng: Rng) -> np.random.Generator:
    """The host generator behind `rng`: None (fresh), an int seed, or a Generator as it is."""
    return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)


def normal(rng: np.random.Generator, shape: Sequence[int], std: float, dtype: Any) -> Array:
    """Gaussian numbers of mean 0, drawn in float64 on the host, so that one seed is one model."""
    return asarray((rng.standard_normal(shape) * std).astype(dtype))
