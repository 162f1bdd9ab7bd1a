"""What is counted: the cost of calls, and the bytes of buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Cost(NamedTuple):
    """What the array library was asked for.

    products     floating-point operations of matrix products, 2 m n k each
    elementwise  numbers that elementwise functions made and that reductions read
    moved        bytes that were read and written
    calls        of functions that compute: what a device would have to start
    depth        calls in the longest chain of which each waits for the one before
    """

    products: int = 0
    elementwise: int = 0
    moved: int = 0
    calls: int = 0
    depth: int = 0


class Counts:
    """A meter: `cost` since reset(), and the bytes of the arrays that are alive."""

    def __init__(self) -> None:
        self.live = self.deepest = 0
        self.ignored: dict[int, np.ndarray] = {}
        self.reset()

    def __enter__(self) -> Counts:
        return self

    def __exit__(self, *_: object) -> None:
        """It counts all the time."""

    def reset(self) -> None:
        """Count from here on: what is there already waits for nothing."""
        self.cost, self.start, self.peak = Cost(), self.deepest, self.live

    def read(self) -> tuple[int, int]:
        """(bytes in use, the most at any time since reset())"""
        return self.live, self.peak

    def add(self, cost: Sequence[int], times: int = 1) -> None:
        """So much more; depth is no sum, but the most so far."""
        a, b, c, d = (held + times * more for held, more in zip(self.cost, cost[:4]))
        self.cost = Cost(a, b, c, d, self.deepest - self.start)

    def ignore(self, array: np.ndarray) -> None:
        """Do not count this NumPy array: it was there before, and belongs to somebody else."""
        self.ignored[id(array)] = array


class Buffer:
    """Memory: its bytes, and how long a chain of calls led to what is in it."""

    __slots__ = ("__weakref__", "depth", "library", "nbytes", "owner")

    def __init__(self, library: Any, nbytes: int, owner: Any = None) -> None:
        counts = library.counts
        self.library, self.nbytes, self.owner, self.depth = library, nbytes, owner, counts.start
        counts.live += nbytes
        counts.peak = max(counts.peak, counts.live)

    def __del__(self) -> None:
        self.library.counts.live -= self.nbytes
