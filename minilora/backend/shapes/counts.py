"""The counts: the cost of calls, and the bytes of buffers."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Cost(NamedTuple):
    """The work of the array library.

    products     floating-point operations of matrix products, 2 m n k each
    elementwise  numbers that elementwise functions wrote and that reductions read
    moved        bytes read and written
    calls        of functions that compute; on a device each is a launch
    depth        calls in the longest chain in which each call depends on the one before
    """

    products: int = 0
    elementwise: int = 0
    moved: int = 0
    calls: int = 0
    depth: int = 0


class Counts:
    """A meter: `cost` since reset(), and the bytes of the arrays that are alive."""

    def __init__(self) -> None:
        self._live = self.deepest = 0
        self._sizes: dict[Any, int] = {}  # of the buffers that are alive, by weak reference
        self._freed: list[Any] = []
        self.ignored: dict[int, np.ndarray] = {}
        self.reset()

    @property
    def live(self) -> int:
        """The bytes of the buffers that are alive."""
        while self._freed:
            self._live -= self._sizes.pop(self._freed.pop(), 0)
        return self._live

    def count(self, buffer: Buffer) -> None:
        """Count this buffer until it is freed. An interrupt in a `__del__` would be lost, with the
        bytes: append is in C.
        """
        self._live = self.live + buffer.nbytes
        self._sizes[weakref.ref(buffer, self._freed.append)] = buffer.nbytes
        self.peak: int = max(self.peak, self._live)

    def __enter__(self) -> Counts:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: it counts outside a block, too."""

    def reset(self) -> None:
        """Start counting again; existing arrays depend on no call."""
        self.cost, self.start, self.peak = Cost(), self.deepest, self.live

    def read(self) -> tuple[int, int]:
        """Return (bytes in use, the peak since reset())."""
        return self.live, self.peak

    def add(self, cost: Sequence[int], times: int = 1) -> None:
        """Add a cost, `times` times; depth is not a sum, but the greatest so far."""
        a, b, c, d = (total + times * more for total, more in zip(self.cost, cost[:4]))
        self.cost = Cost(a, b, c, d, self.deepest - self.start)

    def ignore(self, array: np.ndarray) -> None:
        """Do not count this NumPy array: it existed before and belongs to the caller."""
        self.ignored[id(array)] = array


class Buffer:
    """The memory of an array: its bytes, and the length of the chain of calls that wrote it."""

    __slots__ = ("__weakref__", "depth", "library", "nbytes", "owner")

    def __init__(self, library: Any, nbytes: int, owner: Any = None) -> None:
        counts = library.counts
        self.library, self.nbytes, self.owner, self.depth = library, nbytes, owner, counts.start
        counts.count(self)
