"""The array library in use: `xp`, and the few hooks in which array libraries differ.

The only file that may import cupy. Everything else says `from .backend import xp` and writes what
NumPy and CuPy share.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Array = Any  # a numpy.ndarray, or its like in the library in use
Rng: TypeAlias = "np.random.Generator | int | None"  # a string: numpy.random loads when used


class Backend:
    """NumPy, and the parent of every other array library: override what differs, nothing else."""

    name = "numpy"
    module: Any = np
    numbers_are_free = True  # reading one number of an array does not wait for a device

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
        if index.size == 0:
            return
        order = np.argsort(index, kind="stable")
        ordered = index[order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        target[ordered[starts]] += np.add.reduceat(rows[order], starts, axis=0)

    def erf(self, x: Array) -> Array:
        """The error function, to 1e-15, from a Chebyshev fit of what `math.erfc` knows."""
        # erfc(x) = t exp(P(t) - x²) with t = 2 / (2 + x): P is smooth, a short polynomial holds it
        size = np.minimum(np.abs(x), 6.0)  # erf(6) is 1 to the last bit
        t = 2.0 / (2.0 + size)
        value = 1.0 - t * np.exp(_erfc_exponent()(t).astype(x.dtype) - size * size)
        return np.where(size > 0, np.copysign(value, x), x).astype(x.dtype, copy=False)

    def keep_freed_memory(self) -> None:
        """Ask the C library to hold on to freed arrays instead of returning them to the kernel.

        Each training step needs the same buffers again, and a returned page has to be cleared and
        mapped anew. Does nothing where the C library is not glibc.
        """
        ctypes = importlib.import_module("ctypes")
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (AttributeError, OSError, TypeError):
            return
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: below 32 MiB (the most it takes), use the heap
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: and give none of the heap back below 1 GiB

    def memory(self) -> tuple[int, int] | None:
        """(bytes of arrays in use, peak bytes of all) while `tracemalloc` runs; None if not."""
        tracemalloc = importlib.import_module("tracemalloc")
        if not tracemalloc.is_tracing():
            return None
        peak = tracemalloc.get_traced_memory()[1]  # before the snapshot, which takes some itself
        numpy_only = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        traces = tracemalloc.take_snapshot().filter_traces([numpy_only]).traces
        return sum(trace.size for trace in traces), peak

    def reset_peak(self) -> None:
        """From here on, `memory` tells the peak of what comes."""
        importlib.import_module("tracemalloc").reset_peak()

    def describe(self) -> str:
        """One line: library, version, device."""
        return f"numpy {np.__version__} on the CPU"


class CupyBackend(Backend):
    """CuPy 14: the same code on a GPU."""

    name = "cupy"
    numbers_are_free = False

    def __init__(self) -> None:
        try:
            self.module = importlib.import_module("cupy")
            self._special = importlib.import_module("cupyx.scipy.special")
            self.module.cuda.runtime.getDeviceCount()
        except ImportError as error:
            raise ImportError(f"CuPy is missing: pip install 'minilora[gpu]' ({error})") from error
        except Exception as error:
            raise RuntimeError(f"CuPy is installed, but no CUDA device answers: {error}") from error

    def asnumpy(self, x: Any) -> np.ndarray:
        return self.module.asnumpy(x)  # type: ignore[no-any-return]

    def keep_freed_memory(self) -> None:
        """Nothing to ask: CuPy's memory pool keeps freed memory anyway."""

    def scatter_add(self, target: Array, index: Array, rows: Array) -> None:
        self.module.add.at(target, index, rows)

    def erf(self, x: Array) -> Array:
        return self._special.erf(x)

    def memory(self) -> tuple[int, int] | None:
        """(bytes in use, bytes that the pool took from the device: it returns none by itself)"""
        pool = self.module.get_default_memory_pool()
        return pool.used_bytes(), pool.total_bytes()

    def reset_peak(self) -> None:
        self.module.get_default_memory_pool().free_all_blocks()

    def describe(self) -> str:
        device = self.module.cuda.runtime.getDeviceProperties(self.module.cuda.Device().id)
        return f"cupy {self.module.__version__} on {device['name'].decode()}"


class _Namespace:
    """Forwards to the module in use; each name is looked up there once, then as fast as its own."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(_current.module, name)
        self.__dict__[name] = value
        return value


_current: Backend = Backend()
_BACKENDS: dict[str, type[Backend]] = {"numpy": Backend, "cupy": CupyBackend}
xp: Any = _Namespace()


def use(backend: str | Backend) -> Backend:
    """Switch the array library: "numpy", "cupy", or a `Backend` of your own. Returns the one left.

    Arrays that exist already stay where they are: switch first, then build the model.
    """
    global _current
    if isinstance(backend, str):
        if backend not in _BACKENDS:
            raise ValueError(f"no backend {backend!r}: there are {', '.join(_BACKENDS)}")
        backend = _BACKENDS[backend]()
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


def generator(rng: Rng) -> np.random.Generator:
    """The host generator behind `rng`: None (fresh), an int seed, or a Generator as it is."""
    return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)


def normal(rng: np.random.Generator, shape: Sequence[int], std: float, dtype: Any) -> Array:
    """Gaussian numbers of mean 0, drawn in float64 on the host, so that one seed is one model."""
    return asarray((rng.standard_normal(shape) * std).astype(dtype))


@functools.cache
def _erfc_exponent() -> Any:
    """P(t) = log(erfc(x) / t) + x² for x = 2/t - 2 in [0, 6], as a Chebyshev series."""

    def exact(t: np.ndarray) -> np.ndarray:
        return np.array([math.log(math.erfc(2 / s - 2) / s) + (2 / s - 2) ** 2 for s in t])

    chebyshev = importlib.import_module("numpy.polynomial.chebyshev")
    return chebyshev.Chebyshev.interpolate(exact, deg=24, domain=[0.25, 1.0])
