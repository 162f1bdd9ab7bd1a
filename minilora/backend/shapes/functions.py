"""The module behind `xp`: NumPy's functions that are known here, and those that create arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from .array import Array, corner, elementwise, must_fit, reduction, unknown


def _view(name: str) -> Callable[..., Any]:
    return lambda x, *args, **options: x.viewed(getattr(np, name)(x.x, *args, **options))


def _like(name: str) -> Callable[..., Any]:
    """Return zeros_like or a similar function; without a shape, the result has the order of x."""

    def make(x: Array, *value: Any, dtype: Any = None, shape: Any = None) -> Any:
        if name != "full_like" and value:
            dtype = value[0]
        like = np.empty_like(np.asarray(corner(x)), dtype)
        if shape is None:
            shape = x.shape
        else:
            like = blank(shape, like.dtype)
        return (x.library.created if name == "empty_like" else x.library.filled)(like, shape)

    return make


def _triangle(name: str) -> Callable[..., Any]:
    def cut(x: Array, k: int = 0) -> Any:
        if x.ndim < 2:
            raise unknown(f"{name} of {x.ndim} axes")
        mask = x.library.buffer(math.prod(x.shape[-2:])) if x.library.on_host else None
        result = elementwise(x.library, getattr(np, name), [x])
        del mask
        return result

    return cut


def _where(condition: Any, x: Any, y: Any) -> Any:
    library = next(a.library for a in (condition, x, y) if isinstance(a, Array))
    return elementwise(library, np.where, [condition, x, y])


def _clip(x: Array, low: Any, high: Any) -> Any:
    return elementwise(x.library, np.clip, [x, low, high])


def _copyto(into: Array, x: Any, *, where: Any = True) -> None:
    for array in (x, where):
        must_fit(array, into.shape)
    small = np.empty_like(np.asarray(corner(into)))  # NumPy says whether x may be cast to it
    into.library.call(lambda part, _: np.copyto(small, part), [x, where], into.shape, into)


def _concatenate(arrays: Sequence[Array], axis: int = 0) -> Any:
    sides = [list(x.shape) for x in arrays]
    ends = [side.pop(axis) for side in sides]
    if any(side != sides[0] for side in sides):
        raise ValueError(f"concatenate: {[x.shape for x in arrays]} differ beside axis {axis}")
    sides[0].insert(axis % (len(sides[0]) + 1), sum(ends))
    return arrays[0].library.call(
        lambda *corners: np.concatenate(corners, axis), arrays, tuple(sides[0])
    )


def _stack(arrays: Sequence[Array], axis: int = 0) -> Any:
    return _concatenate([x.viewed(np.expand_dims(x.x, axis)) for x in arrays], axis)


def _repeat(x: Array, repeats: int, axis: int) -> Any:
    shape = list(x.shape)
    shape[axis] *= repeats
    return x.library.call(lambda part: np.repeat(part, 1, axis), [x], tuple(shape))


def _take(x: Array, indices: Array, axis: int) -> Any:
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis:][1:])
    copied = x.library.on_host and indices.dtype != np.intp  # NumPy wants indices of this dtype
    copy = x.library.buffer(indices.size * np.dtype(np.intp).itemsize) if copied else None
    result = x.library.call(
        lambda part, small: np.take(part, np.zeros_like(small), axis), [x, indices], shape,
        reads=math.prod(shape) * x.itemsize,
    )
    del copy
    return result


def _result_type(*args: Any) -> Any:
    return np.result_type(*(x.dtype if isinstance(x, Array) else x for x in args))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: reduction(name) for name in
       ("all", "any", "argmax", "argmin", "max", "mean", "min", "prod", "sum")},
    **{name: _view(name) for name in
       ("broadcast_to", "expand_dims", "moveaxis", "squeeze", "swapaxes", "transpose")},
    **{name: _like(name) for name in ("empty_like", "full_like", "ones_like", "zeros_like")},
    **{name: _triangle(name) for name in ("tril", "triu")},
    **{name: attrgetter(name) for name in ("ndim", "shape", "size")},
    "clip": _clip, "concatenate": _concatenate, "copyto": _copyto, "ravel": Array.ravel,
    "repeat": _repeat, "reshape": Array.reshape, "result_type": _result_type, "stack": _stack,
    "take": _take, "where": _where,
}


def blank(shape: Any, dtype: Any) -> np.ndarray:
    """Return the corner of an array that will be created."""
    return np.empty((1,) * (1 if isinstance(shape, int) else len(shape)), dtype)


class Functions:
    """The module behind `xp`."""

    pi, e, inf, nan, newaxis = np.pi, np.e, np.inf, np.nan, None

    def __init__(self, library: Any) -> None:
        self.library = library

    def __getattr__(self, name: str) -> Any:
        value = getattr(np, name, None)
        if name in FUNCTIONS or isinstance(value, np.ufunc | type):
            return value
        raise AttributeError(f"shapes: {name} is not known here")

    def empty(self, shape: Any, dtype: Any = float) -> Any:
        return self.library.created(blank(shape, dtype), shape)

    def zeros(self, shape: Any, dtype: Any = float) -> Any:
        return self.library.filled(blank(shape, dtype), shape)

    ones = zeros

    def full(self, shape: Any, value: Any, dtype: Any = None) -> Any:
        return self.zeros(shape, dtype or getattr(value, "dtype", type(value)))

    def eye(self, n: int, dtype: Any = float) -> Any:
        return self.zeros((n, n), dtype)

    def arange(self, start: int, stop: int | None = None, step: int = 1, dtype: Any = int) -> Any:
        numbers = range(start) if stop is None else range(start, stop, step)
        return self.zeros(len(numbers), dtype)

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """Return x itself, or a copy if NumPy (or CuPy) would copy."""
        if isinstance(x, Array):
            if x.is_number and self.library.on_host:
                return self.library.call(lambda part: np.empty((), dtype or x.dtype), [x], ())
            return x if dtype is None else x.astype(dtype, copy=False)
        array = np.asarray(x, dtype)
        if not self.library.on_host:
            return self.empty(array.shape, array.dtype)
        return Array(array, self.library.foreign(array), array.base)

    def array(self, x: Any, dtype: Any = None, order: str = "K") -> Any:
        array = self.asarray(x, dtype)
        in_order = order == "K" or array.flags.c_contiguous
        return array if array is not x and in_order else array.copy(order)
