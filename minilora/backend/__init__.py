"""The array library in use: `xp`, and hooks for the few places where array libraries differ.

All other code says `from .backend import xp` and writes what NumPy and CuPy have in common. The
backend knows no Tensor, no op and no kernel.

library.py    the hooks, and NumPy behind them      asked.py   the functions that `xp` needs
host.py       functions that NumPy lacks      threads.py   work shared by the cores
device.py     what all devices share      gpu.py   CuPy: the only file that may import it
fuse.py       elementwise formulas that become one kernel
shapes/       arrays without numbers, whose bytes and operations are counted
quantised.py  matrices as codes of 4 or 8 bits
settings.py   the settings of a Python thread: recording, plain ops, replaced ops
flags.py      NumPy's arithmetic flags      writes.py   which arrays were written to, and when
blocks.py     blocks that restore what they changed, interrupts included
"""
from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from .blocks import block, restoring
from .flags import own_flags
from .host import like as like
from .host import total as total
from .host import wide as wide
from .library import Array as Array
from .library import Backend as Backend
from .library import InUse, switch
from .library import Rng as Rng
from .library import current as current
from .library import xp as xp
from .quantised import Quantised as Quantised
from .quantised import dequantised as dequantised
from .quantised import quantised as quantised

LIBRARIES = {"numpy": "", "cupy": "gpu", "shapes": "shapes"}  # name -> its file here

def use(backend: str | Backend, *, plain: bool = False) -> Backend:
    """Switch the array library of this thread; return the previous one.
    backend: "numpy", "cupy", "cupy:1" (that device), "shapes", or a `Backend`. plain: run every op
    as it is printed in ops/, without its kernel. Existing arrays stay in their library, so switch
    first, then build the model. Threads that start later begin with the main thread's choice.
    Raises ImportError if the library is not installed, RuntimeError if no device answers,
    ValueError for an unknown name or device.
    """
    before = switch(_library(backend, plain))
    if threading.current_thread() is threading.main_thread():
        InUse.chosen = current()
    return before

@block
def using(backend: str | Backend, *, plain: bool = False) -> Iterator[Backend]:
    """Use this array library in the block, in this thread only, and the previous one after it."""
    library, before = _library(backend, plain), current()

    def restore() -> None:
        before.enter()
        switch(before)

    with restoring(restore):
        switch(library)
        yield library

def _library(backend: str | Backend, plain: bool) -> Backend:
    """Return the backend of that name, ready for this thread."""
    if isinstance(backend, str):
        name, colon, device = backend.partition(":")
        if name not in LIBRARIES or (colon and name == "numpy"):
            raise ValueError(f"unknown backend {backend!r}: choose numpy, cupy, cupy:1 (a device) "
                             "or shapes")
        file = LIBRARIES[name]
        library = import_module(f".{file}", __package__).LIBRARY if file else Backend
        backend = library(*[device] * bool(colon))
        backend.plain = plain
    elif not isinstance(backend, Backend):
        raise TypeError(f"a library is a name, such as 'numpy', or a backend.Backend, not a "
                        f"{type(backend).__name__}: write a subclass of Backend or Device for it")
    elif plain:
        raise ValueError("plain=True goes with a backend's name; set .plain of a Backend yourself")
    backend.enter()
    return backend

def asarray(x: Any, dtype: Any = None) -> Array:
    """Return x as an array of the library in use; copy only if necessary."""
    return xp.asarray(x, dtype=dtype)

def asnumpy(x: Any) -> np.ndarray:
    """Return x (array or Tensor) as a NumPy array on the host; it shares memory if possible."""
    return current().asnumpy(getattr(x, "data", x) if hasattr(x, "requires_grad") else x)

def scatter_add(target: Array, index: Array, rows: Array) -> None:
    """target[index[i]] += rows[i], in place; repeated indices add up."""
    current().scatter_add(target, index, rows)

def erf(x: Array) -> Array:
    """The error function, elementwise."""
    return current().erf(x)

def generator(rng: Rng) -> np.random.Generator:
    """Return the generator, on the host, for `rng`: None (fresh), a seed, or a Generator."""
    return current().generator(rng)

@own_flags
def normal(rng: np.random.Generator, shape: Sequence[int], std: float, dtype: Any) -> Array:
    """Draw Gaussian numbers of mean 0. They are drawn in float64 on the host, so that a seed gives
    the same model in every library and dtype."""
    return asarray((rng.standard_normal(shape) * std).astype(dtype))
