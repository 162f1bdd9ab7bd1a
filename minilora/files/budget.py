"""A generator of zeros, for a model whose weights are then read from a file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


class Zeros:
    """What is drawn: it takes memory only in its final dtype, and none until it is written to."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    def __mul__(self, std: float) -> Zeros:
        return self

    def astype(self, dtype: Any) -> np.ndarray:
        return np.zeros(self.shape, dtype)


def budget(total: int, spare: int = 0) -> np.random.Generator:
    """Return a generator of zeros. It raises ValueError when more than total + spare are drawn.

    total: how many numbers the file has. So a wrong size in the file cannot use up memory.
    spare: for a reader that names what is missing, so it builds a larger model than the file has.
    """

    class Budget(np.random.Generator):  # here, so that numpy.random loads when it is needed
        left = total + spare

        def standard_normal(self, size: Any = None, *_: Any, **__: Any) -> Any:
            self.left -= math.prod(np.atleast_1d(size).tolist())
            if self.left < 0:
                raise ValueError(f"its sizes ask for more numbers than the {total:,} in it")
            return Zeros(size)

        def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
            return self.standard_normal(size)

    return Budget(np.random.PCG64(0))
