"""Functions that NumPy lacks: erf, a fast scatter-add, a hash; and sums of halves."""

from __future__ import annotations

import functools
import importlib
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, to 1e-15, by a Chebyshev series that is fitted to `math.erfc`."""
    # erfc(x) = t exp(P(t) - x²) with t = 2 / (2 + x): P is smooth, so a short polynomial fits it
    size = np.minimum(np.abs(x), 6.0)  # erf(6) is 1 to the last bit
    t = 2.0 / (2.0 + size)
    value = 1.0 - t * np.exp(_erfc_exponent()(t).astype(x.dtype) - size * size)
    return np.where(size > 0, np.copysign(value, x), x).astype(x.dtype, copy=False)


@functools.cache
def _erfc_exponent() -> Any:
    """P(t) = log(erfc(x) / t) + x² for x = 2/t - 2 in [0, 6], as a Chebyshev series."""

    def exact(t: np.ndarray) -> np.ndarray:
        return np.array([math.log(math.erfc(2 / s - 2) / s) + (2 / s - 2) ** 2 for s in t])

    chebyshev = importlib.import_module("numpy.polynomial.chebyshev")
    return chebyshev.Chebyshev.interpolate(exact, deg=24, domain=[0.25, 1.0])


def mixed(i: Any, one: int, two: int) -> Any:
    """Return a hash of each i (uint32) with the keys `one` and `two`, on any library's arrays.

    It is the finalizer of MurmurHash3 (Appleby): a bijection in which every bit spreads.
    """
    i = (i ^ one) * 0x85EBCA6B
    i = (i ^ i >> 13 ^ two) * 0xC2B2AE35
    return (i ^ i >> 16) * 0x85EBCA6B


def wide(x: Any) -> Any:
    """Return x, halves as float32: a half overflows in squares, sums and eˣ."""
    return x.astype("float32") if x.dtype.char == "e" else x


def total(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Return Σ x. Halves are added up in float32, which the result has: 2048 + 1 is 2048 in halves,
    and 65520 is inf."""
    return x.sum(axis=axis, keepdims=keepdims, dtype="float32" if x.dtype.char == "e" else None)


def like(x: Any, y: Any) -> Any:
    """Return y in x's dtype."""
    return y if y.dtype is x.dtype else y.astype(x.dtype, copy=False)


def scatter_add(target: np.ndarray, index: np.ndarray, rows: np.ndarray) -> None:
    """target[index[i]] += rows[i], by sums of rows sorted by index: faster than `np.add.at`."""
    if index.size == 0:
        return
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    target[ordered[starts]] += np.add.reduceat(rows[order], starts, axis=0)


def finite(loss: np.ndarray, gradients: Sequence[np.ndarray]) -> np.ndarray:
    """Return the loss; raise FloatingPointError if a number of a gradient is not finite."""
    for g in gradients:
        if not math.isfinite(float(total(g))):  # nan or inf if any number is
            raise FloatingPointError(
                f"backward: the gradient of a tensor of shape {g.shape} is not finite "
                f"(the loss is {float(loss.reshape(())):.4g}): lower the learning rate or clip"
            )
    return loss


def reserved() -> int:
    """Return the peak memory of this process in bytes."""
    resource = importlib.import_module("resource")  # not on Windows
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
