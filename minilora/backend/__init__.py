"""The array library in use: `xp`, and the few hooks in which array libraries differ.

Everything else says `from .backend import xp` and writes what NumPy and CuPy share. library.py has
the hooks; behind them stand host.py, what NumPy lacks; threads.py, work shared by the cores;
gpu.py, the only file that knows CuPy; and shapes/, arrays without numbers. choices.py is what a
Python thread has chosen.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from .library import Array as Array
from .library import Backend as Backend
from .library import Rng as Rng


class _Namespace:
    """Forwards to the module in use; each name is looked up there once, then as fast as its own."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(_current.module, name)
        self.__dict__[name] = value
        return value

LIBRARIES = {"numpy": "", "cupy": "gpu", "shapes": "shapes"}  # name -> its file here
_current: Backend = Backend()
xp: Any = _Namespace()

def use(backend: str | Backend, *, plain: bool = False) -> Backend:
    """Switch the array library: "numpy", "cupy", "cupy:1" (that device), "shapes", or a `Backend`.
    plain: every op as it is printed in ops/, without the kernels. Returns the one left. Arrays that
    exist already stay where they are: switch first, then build the model. Raises ImportError where
    the library is missing, RuntimeError where no device answers, ValueError for a name or a device
    that there is not.
    """
    global _current
    if isinstance(backend, str):
        name, colon, device = backend.partition(":")
        if name not in LIBRARIES or (colon and name == "numpy"):
            raise ValueError(f"no backend {backend!r}: there are numpy, cupy, cupy:1 (a device), "
                             "shapes")
        file = LIBRARIES[name]
        library = import_module(f".{file}", __package__).LIBRARY if file else Backend
        backend = library(*[device] * bool(colon))
        backend.plain = plain
    elif plain:
        raise ValueError("plain=True goes with a backend's name; set .plain of a Backend yourself")
    backend.enter()
    previous, _current = _current, backend
    xp.__dict__.clear()
    return previous

def current() -> Backend:
    """The backend in use."""
    return _current

@contextmanager
def using(backend: str | Backend, *, plain: bool = False) -> Iterator[Backend]:
    """Inside, this array library is in use; afterwards the one that was."""
    before = use(backend, plain=plain)
    try:
        yield _current
    finally:
        use(before)

def asarray(x: Any, dtype: Any = None) -> Array:
    """x as an array of the library in use."""
    return xp.asarray(x, dtype=dtype)

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
    return _current.generator(rng)

def normal(rng: np.random.Generator, shape: Sequence[int], std: float, dtype: Any) -> Array:
    """Gaussian numbers of mean 0, drawn in float64 on the host, so that one seed is one model."""
    return asarray((rng.standard_normal(shape) * std).astype(dtype))
