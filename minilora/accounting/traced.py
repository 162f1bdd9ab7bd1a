"""A meter of NumPy's arrays alone, so that what is measured does not hang on Python's objects."""

from __future__ import annotations

import ctypes
import tracemalloc
from typing import Any

import numpy as np

from ..backend import current


def meter() -> Any:
    """Return a meter of the library in use: its own, or that of NumPy's arrays.

    Raises RuntimeError if a device's library has none.
    """
    library = current()
    found = library.meter()
    if found is None and not library.on_host:
        raise RuntimeError(
            f"{library.name} cannot say which memory its arrays take: predict it on shapes with "
            "accounting.plan, or give its Backend a meter()")
    return Traced() if found is None else found


class Traced:
    """A meter: its read() returns the bytes of arrays in use, and their peak since reset().

    NumPy tells tracemalloc of each array's memory itself. Of all else tracemalloc hears through
    Python's allocators, which it replaces when it starts: here they are put back at once. Where
    tracemalloc was running before, it stays as it was, and the peak counts Python's objects, too.
    """

    def __enter__(self) -> Traced:
        self._ours = not tracemalloc.is_tracing()
        if self._ours:
            api, kept = ctypes.pythonapi, [(ctypes.c_void_p * 5)() for _ in range(3)]
            for domain, allocator in enumerate(kept):  # raw, mem, object
                api.PyMem_GetAllocator(domain, allocator)
            tracemalloc.start()
            for domain, allocator in enumerate(kept):
                api.PyMem_SetAllocator(domain, allocator)
            tracemalloc.clear_traces()
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            tracemalloc.stop()

    def read(self) -> tuple[int, int]:
        peak = tracemalloc.get_traced_memory()[1]  # before the snapshot, which takes memory too
        arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        traces = tracemalloc.take_snapshot().filter_traces([arrays]).traces
        return sum(trace.size for trace in traces), peak

    def reset(self) -> None:
        tracemalloc.reset_peak()
