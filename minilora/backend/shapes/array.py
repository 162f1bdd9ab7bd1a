"""The array: a real NumPy header over memory that is reserved and never used.

So NumPy itself computes views: slices, reshaped arrays. It also gives the dtype and memory order of
a result: it runs the same function on a corner of each array, at most two numbers a side.
"""

from __future__ import annotations

import functools
import math
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from sys import getrefcount
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from .counts import Buffer

ROOM = 1 << 44  # bytes: the largest array
LARGE = 1 << 18  # bytes: from here, NumPy writes a result into an operand that is temporary


@functools.cache
def _reserved() -> mmap.mmap:
    if sys.maxsize < ROOM:
        raise OSError(
            "shapes: this Python has addresses of 32 bits, as in a browser, and arrays without "
            "numbers need 64: count and plan in a Python that is installed on a computer"
        )
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        return mmap.mmap(-1, ROOM, flags=flags, prot=mmap.PROT_READ)
    except OSError as error:
        raise OSError(
            f"shapes: cannot reserve {ROOM >> 40} TiB of addresses (none of it is used): lift the "
            "limit of this process's address space: ulimit -v unlimited"
        ) from error


def header(shape: Any, dtype: Any, order: Sequence[int] | None = None) -> np.ndarray:
    """Return a header of that shape. order: its axes, from outermost to innermost in memory."""
    if order is None:
        return np.ndarray(shape, dtype, _reserved())
    return header([shape[i] for i in order], dtype).transpose(np.argsort(order))


def unknown(name: str) -> TypeError:
    return TypeError(f"shapes: {name} is not known here")


def corner(x: Any) -> Any:
    """Return at most two numbers a side: they show NumPy's dtype and order of the axes."""
    x = x.x if isinstance(x, Array) else x
    return x[(slice(2),) * x.ndim] if isinstance(x, np.ndarray) else x


def reduced(
    f: Callable[..., Any], x: Array, axis: Any, *, keepdims: bool = False, out: Any = None,
    **options: Any,
) -> Any:
    """Reduce x along `axis` by NumPy's function f, such as np.add.reduce or np.mean."""
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    gone = {i % max(1, x.ndim) for i in axes}
    sides = [(i, 1 if i in gone else n) for i, n in enumerate(x.shape)]
    shape = tuple(n for i, n in sides if keepdims or i not in gone)
    f = functools.partial(f, axis=axis, keepdims=keepdims, **options)
    return x.library.call(f, [x], shape, out, numbers=x.size)


def reduction(name: str) -> Any:
    def reduce(x: Array, axis: Any = None, **options: Any) -> Any:
        return reduced(getattr(np, name), x, axis, **options)

    return reduce


def elementwise(library: Any, f: Callable[..., Any], inputs: Sequence[Any], out: Any = None) -> Any:
    """Apply f to the inputs, broadcast."""
    shape = np.broadcast_shapes(*(getattr(x, "shape", ()) for x in (*inputs, out)))
    return library.call(f, inputs, shape, out, numbers=math.prod(shape))


def _product(library: Any, f: Callable[..., Any], inputs: Sequence[Any], out: Any) -> Any:
    """Multiply matrices; count the copies of the factors that exist meanwhile."""
    a, b = inputs
    if not (a.ndim and b.ndim) or a.shape[-1] != b.shape[-2:][0]:
        raise ValueError(f"matmul: {a.shape} does not fit {b.shape}")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = batch + a.shape[-2:-1] + b.shape[-1:] * (b.ndim > 1)
    dtype, stacked = np.result_type(a.dtype, b.dtype), max(a.ndim, b.ndim) > 2
    copied = [x.size for x in inputs if x.dtype != dtype]
    if not library.on_host:
        copied = [x.size for x in inputs if stacked and not x.flags.c_contiguous]
        if stacked and dtype == np.float16:  # cuBLAS computes these in float32
            copied, dtype = [a.size, b.size, math.prod(shape)], np.dtype(np.float32)
    copies = [library.buffer(size * dtype.itemsize) for size in copied]
    result = library.call(f, inputs, shape, out, products=2 * math.prod(shape) * a.shape[-1])
    del copies
    return result


def _references() -> int:
    """Return the reference count of a temporary operand in its method; 0 if all look alike."""

    class Probe:
        def __add__(self, other: Any) -> int:
            return getrefcount(self)

    named = Probe()
    return Probe() + 0 if named + 0 > Probe() + 0 else 0  # Python 3.14 does not count names


NAMELESS = _references()


def _operators(ufunc: np.ufunc, commutes: bool) -> Any:
    """Return methods for x + y and 2 + x. Like NumPy, they write into a large temporary operand."""

    def forward(self: Array, other: Any) -> Any:
        if getrefcount(self) == NAMELESS and _makes_room(self, other):
            return ufunc(self, other, out=self)
        if getrefcount(other) == NAMELESS and commutes and _makes_room(other, self):
            return ufunc(self, other, out=other)
        return ufunc(self, other)

    def reflected(self: Array, other: Any) -> Any:
        if getrefcount(self) == NAMELESS and commutes and _makes_room(self, other):
            return ufunc(other, self, out=self)
        return ufunc(other, self)

    return forward, reflected


def _makes_room(x: Any, other: Any) -> bool:
    return (
        isinstance(x, Array) and x.base is None and x.nbytes >= LARGE and x.library.on_host
        and getattr(other, "shape", ()) in ((), x.shape)
        and np.can_cast(getattr(other, "dtype", type(other)), x.dtype)
    )


class Array(NDArrayOperatorsMixin):
    """x: the header   buffer: the memory   base: of a view, the array that owns it"""

    __slots__ = ("base", "buffer", "x")

    def __init__(self, x: np.ndarray, buffer: Buffer, base: Any = None) -> None:
        self.x, self.buffer, self.base = x, buffer, base

    shape: Any = property(attrgetter("x.shape"))
    dtype: Any = property(attrgetter("x.dtype"))
    ndim: Any = property(attrgetter("x.ndim"))
    size: Any = property(attrgetter("x.size"))
    nbytes: Any = property(attrgetter("x.nbytes"))
    T: Any = property(lambda self: self.viewed(self.x.T))
    mT: Any = property(lambda self: self.viewed(self.x.mT))
    library: Any = property(attrgetter("buffer.library"))

    def __getattr__(self, name: str) -> Any:
        if name in ("flags", "itemsize", "strides"):
            return getattr(self.x, name)
        raise AttributeError(f"shapes: ndarray.{name} is not known here")

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<{self.dtype} {self.shape}>"

    def _refuse(self, *_: object, **__: object) -> Any:
        raise TypeError(f"shapes: {self!r} has no numbers: run this on numpy or cupy")

    __array__ = __bool__ = __float__ = __int__ = __index__ = __complex__ = _refuse
    __contains__ = item = tolist = tobytes = _refuse

    @property
    def is_number(self) -> bool:
        """Would NumPy return a number here, not an array? It has no counted memory."""
        return not self.shape and not self.buffer.nbytes

    # Functions that compute.
    __add__, __radd__ = _operators(np.add, True)
    __mul__, __rmul__ = _operators(np.multiply, True)
    __sub__, __rsub__ = _operators(np.subtract, False)
    __truediv__, __rtruediv__ = _operators(np.divide, False)
    all, any, argmax, argmin, max, mean, min, prod, sum = map(
        reduction, ("all", "any", "argmax", "argmin", "max", "mean", "min", "prod", "sum")
    )

    def __neg__(self) -> Any:
        here = getrefcount(self) == NAMELESS and _makes_room(self, self)
        negative: Any = np.negative
        return negative(self, out=self) if here else negative(self)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, x: Any, *others: Any, out: Any = None, **options: Any
    ) -> Any:
        unknown_options = options.keys() - {"axis", "casting", "dtype", "keepdims"}
        known = (ufunc.nout == 1 and (not ufunc.signature or ufunc is np.matmul)
                 and not unknown_options)
        out = out[0] if out else None
        if method == "reduce" and known:
            return reduced(ufunc.reduce, x, options.pop("axis", 0), out=out, **options)
        if method == "accumulate" and known:
            f = functools.partial(ufunc.accumulate, *others, **options)
            return self.library.call(f, [x], x.shape, out, numbers=x.size)
        if method != "__call__" or not known:
            detail = f" with {min(unknown_options)}" if unknown_options else ""
            raise unknown(f"{ufunc.__name__}.{method}{detail}")
        if out is not None:  # NumPy says whether the result may be cast to it
            options["out"] = np.empty_like(corner(out))
        f = functools.partial(ufunc, **options)
        kind = _product if ufunc is np.matmul else elementwise
        return kind(self.library, f, (x, *others), out)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        known = self.library.functions.get(function.__name__)
        if known is None:
            raise unknown(function.__name__)
        return known(*args, **options)

    # Views.
    def viewed(self, x: np.ndarray) -> Array:
        """Return the same memory under another header."""
        if x is self.x:
            return self
        return Array(x, self.buffer, self if self.base is None else self.base)

    def transpose(self, *axes: Any) -> Array:
        return self.viewed(self.x.transpose(*axes))

    def swapaxes(self, i: int, j: int) -> Array:
        return self.viewed(self.x.swapaxes(i, j))

    def squeeze(self, axis: Any = None) -> Array:
        return self.viewed(self.x.squeeze(axis))

    def view(self, dtype: Any) -> Array:
        return self.viewed(self.x.view(dtype))

    def reshape(self, *shape: Any) -> Array:
        shape = shape[0] if len(shape) == 1 else shape
        try:
            return self.viewed(self.x.reshape(shape, copy=False))
        except ValueError:  # it needs a copy; or it is impossible, and the next line raises again
            x = header(self.shape, self.dtype).reshape(shape)
        copy = self.copy()
        return copy.viewed(x) if self.library.on_host else Array(x, copy.buffer)

    def ravel(self) -> Array:
        if self.flags.c_contiguous:
            return self.reshape(-1)
        return Array(header(self.size, self.dtype), self.copy().buffer)

    # Copies.
    def copy(self, order: Any = "C") -> Any:
        return self.astype(self.dtype, order)

    def __copy__(self) -> Any:
        return self.copy("K")

    def __deepcopy__(self, memo: Any) -> Any:
        return self.copy("K")

    def astype(self, dtype: Any, order: Any = "K", *, copy: bool = True) -> Any:
        def f(part: Any) -> Any:
            return (part if self.is_number else np.asarray(part)).astype(dtype, order)

        same = not copy and self.dtype == dtype
        return self if same else self.library.call(f, [self], self.shape)

    # Indexing.
    def __getitem__(self, key: Any) -> Any:
        shape, indices, parts = _chosen(self.x, key)
        if not indices and isinstance(x := self.x[key], np.ndarray):
            return self.viewed(x)

        def f(part: Any, *small: Any) -> Any:
            each = (np.zeros_like(index) for index in small)
            index = tuple(next(each) if isinstance(p, LISTS) else p for p in parts)
            return part[index] if indices else x

        reads = math.prod(shape) * self.itemsize
        return self.library.call(f, [self, *indices], shape, reads=reads)

    def __setitem__(self, key: Any, value: Any) -> None:
        shape, indices, _ = _chosen(self.x, key)
        into = self.viewed(header(shape, self.dtype))
        if not indices and isinstance(x := self.x[key], np.ndarray):
            if isinstance(value, Array) and value.buffer is self.buffer and _same(value.x, x):
                return  # x[key] += y assigns the view that was written to already
        elif not indices and np.ndim(value):
            raise ValueError(f"an array {value.shape} is assigned to one number")
        must_fit(value, shape)
        self.library.call(lambda *_: None, [value, *indices], shape, into)

    def fill(self, value: Any) -> None:
        self[...] = value


LISTS = (Array, np.ndarray, list)  # as an index: one number per result


def _shape(x: Any) -> tuple[int, ...]:
    return x.shape if isinstance(x, Array) else np.shape(x)


def must_fit(x: Any, into: tuple[int, ...]) -> None:
    """Raise ValueError unless x can be assigned to an array of that shape."""
    shape: tuple[int, ...] = getattr(x, "shape", ())
    while len(shape) > len(into) and shape[0] == 1:
        shape = shape[1:]
    if np.broadcast_shapes(shape, into) != into:
        raise ValueError(f"{shape} cannot be broadcast to {into}, which it is assigned to")


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    """Are these two views of one memory the same numbers?"""
    start = [a.__array_interface__["data"] for a in (x, y)]
    return start[0] == start[1] and x.shape == y.shape and x.strides == y.strides


def _chosen(x: np.ndarray, key: Any) -> tuple[tuple[int, ...], list[Any], list[Any]]:
    """Return (shape of x[key], the arrays in key, the parts of a key for a corner of x)."""
    parts: list[Any] = list(key) if isinstance(key, tuple) else [key]
    indices = [part for part in parts if isinstance(part, LISTS)]
    if not indices:
        return np.shape(x[key]), [], parts
    if any(part is None or getattr(part, "dtype", None) == np.bool_ for part in parts):
        raise unknown("an index of booleans, or None beside arrays,")
    dots = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    parts[dots : dots + 1] = [slice(None)] * (x.ndim - len(parts) + (dots < len(parts)))
    at = [i for i, part in enumerate(parts) if not isinstance(part, slice)]
    picked = np.broadcast_shapes(*(_shape(parts[i]) for i in at))
    rest = [len(range(n)[part]) for n, part in zip(x.shape, parts) if isinstance(part, slice)]
    first = at[0] if at[-1] - at[0] == len(at) - 1 else 0  # where NumPy puts their axes
    for i, part in enumerate(parts):
        if not isinstance(part, LISTS):
            parts[i] = 0 if i in at else slice(2)
    return (*rest[:first], *picked, *rest[first:]), indices, parts
