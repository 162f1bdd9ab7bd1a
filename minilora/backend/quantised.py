"""Matrices in blocks of 64 codes of 4 or 8 bits, each block with one scale: "nf4" and "int8".

A code stands for a number in [-1, 1], and the scale is the largest |w| of its block. The 16 numbers
of NF4 are quantiles of the normal distribution, as weights are about normal (Dettmers et al. 2023,
QLoRA, equation 4 and appendix E). Those of int8 have one distance (Dettmers et al. 2022, 8-bit
optimizers). The scales stay float32: there is no second quantisation.
"""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from statistics import NormalDist
from typing import Any, NoReturn

import numpy as np

from .library import Array, current, xp
from .writes import wrote

BLOCK = 64  # numbers that share a scale


def normal_floats() -> list[float]:
    """Return NF4's 16 numbers: -1 to 0 in 7 equal steps of probability, 0 to 1 in 8."""
    tail = (1 / 32 + 1 / 30) / 2  # appendix E: no quantile is infinite
    below, above = ([NormalDist().inv_cdf(0.5 + (0.5 - tail) * i / n) for i in range(n + 1)]
                    for n in (7, 8))
    return [-z / below[-1] for z in below[:0:-1]] + [z / above[-1] for z in above]


LEVELS = {  # format -> the numbers of its codes, ascending, and the codes in a byte
    "nf4": (normal_floats, 2),
    "int8": (lambda: [i / 127 for i in range(-127, 128)], 1),
}


@functools.cache
def levels(format: str) -> np.ndarray:
    """Return the number of each code, ascending, float32."""
    return np.array(LEVELS[format][0](), np.float32)


@functools.cache
def numbers_of_bytes(format: str) -> np.ndarray:
    """Return the number, or the two numbers, of each byte, float32, (256, codes in a byte)."""
    x, codes = levels(format), np.arange(256)
    each = [codes >> 4, codes & 15] if LEVELS[format][1] == 2 else [codes.clip(0, len(x) - 1)]
    return np.stack([x[code] for code in each], axis=1)


def dequantised(codes: Array, scales: Array, values: Array, shape: tuple[int, int]) -> Array:
    """Return W = values[codes] · scales, float32, (d, k).

    codes: (blocks, bytes) uint8   scales: (blocks, 1)   values: (256, codes in a byte)
    """
    W = xp.take(values, codes, axis=0).reshape(len(scales), BLOCK) * scales
    return W.reshape(-1)[: math.prod(shape)].reshape(shape)


def nearest(x: Array, format: str) -> Array:
    """Return the code of the level that is nearest to each x in [-1, 1], uint8."""
    if format == "int8":
        return (xp.rint(x * 127) + 127).astype("uint8")
    codes, level = xp.zeros(x.shape, dtype="uint8"), levels(format).tolist()
    for below, above in pairwise(level):
        codes += x > (below + above) / 2
    return codes


def quantised(W: Array, format: str, dtype: Any = None) -> Quantised:
    """Return W (d, k) in blocks along its rows, each number as the code that is nearest to it.

    The last block is filled up with zeros. dtype: of the numbers that come back; None: W's. Their
    error is at most half the widest step between codes, times the scale. 0 stays 0, and what comes
    back is quantised to the same codes.
    """
    blocks = -(-W.size // BLOCK)
    padded = xp.zeros(blocks * BLOCK, dtype="float32")
    padded[: W.size] = W.reshape(-1)
    padded = padded.reshape(blocks, BLOCK)
    scales = abs(padded).max(axis=1, keepdims=True)               # (blocks, 1)
    codes = nearest(padded / xp.where(scales == 0, 1, scales), format)
    if LEVELS[format][1] == 2:
        codes = codes[:, ::2] << 4 | codes[:, 1::2]               # (blocks, 32)
    values = xp.asarray(numbers_of_bytes(format))
    return Quantised((codes, scales, values), W.shape, dtype or W.dtype, format)


class Quantised:
    """The data of a frozen matrix. It is an array in its shape, size, bytes and `astype` alone.

    arrays  codes, scales and values, as for `dequantised`
    dtype   of the numbers, at most as fine as float32: that of their layer
    nbytes  of codes and scales
    """

    def __init__(self, arrays: tuple[Array, ...], shape: Any, dtype: Any, format: str):
        self.arrays, self.shape, self.dtype, self.format = arrays, tuple(shape), dtype, format
        self.ndim, self.size = len(self.shape), math.prod(self.shape)
        self.nbytes = int(arrays[0].nbytes + arrays[1].nbytes)

    def astype(self, dtype: Any, **_: Any) -> Array:
        """Return a new array of the numbers, each first rounded to the dtype of their layer."""
        codes, scales, values = self.arrays
        W = dequantised(codes, scales, values, self.shape)
        return W.astype(self.dtype, copy=False).astype(dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return current().asnumpy(self.astype(self.dtype if dtype is None else dtype))

    def on(self, *arrays: Array) -> Quantised:
        """Return the same matrix on other arrays."""
        return Quantised(arrays, self.shape, self.dtype, self.format)

    def copy(self) -> Quantised:
        codes, scales, values = self.arrays
        return self.on(codes.copy(), scales.copy(), values)

    def __setitem__(self, _: Any, W: Any) -> None:
        """Replace all numbers, W[...] = numbers: they are rounded to codes."""
        other = W if isinstance(W, Quantised) else quantised(W, self.format)
        for array, new in zip(self.arrays[:2], other.arrays):
            array[...] = new
        wrote(*self.arrays[:2])

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"a matrix {self.__dict__.get('shape')} is stored as codes, and has no {name}: call "
            'its layer, or .astype("float32") for its numbers')
