"""The hooks of the library: how it differs from NumPy because there are no numbers."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import threads
from ..device import Device
from ..flags import quietly
from ..host import total
from ..library import Backend, Rng, Task
from .array import Array, corner, elementwise, header
from .counts import Buffer, Counts
from .functions import FUNCTIONS, Functions

BLOCK = 512  # bytes: CuPy's pool allocates multiples of it


class Shapes(Backend):
    """Arrays without numbers, like those of "numpy" or "cupy"."""

    name, functions = "shapes", FUNCTIONS

    def __init__(self, like: str = "numpy") -> None:
        if like not in ("", "numpy", "cupy"):
            raise ValueError(
                f"shapes: unknown library {like!r}: choose shapes:numpy or shapes:cupy")
        if like == "cupy":
            self.on_host = False
            self.piece, self.queries = Device.piece, Device.queries
        self.counts, self.module = Counts(), Functions(self)
        self.fusing: list[Array] | None = None  # in a fused formula: the arrays it wrote to
        self._depths: Any = None  # in a piece of shared work: its buffers' depths from before
        self._foreign: Any = weakref.WeakValueDictionary[int, Buffer]()

    # Create arrays, and count.
    def buffer(self, nbytes: int) -> Buffer:
        if self.fusing is not None:  # it stays in registers
            return Buffer(self, 0)
        return Buffer(self, nbytes or 1 if self.on_host else -(-nbytes // BLOCK) * BLOCK)

    def foreign(self, array: np.ndarray) -> Buffer:
        """Return the buffer of a NumPy array, one for it and all its views."""
        while isinstance(array.base, np.ndarray):
            array = array.base
        buffer = self._foreign.get(id(array))
        if buffer is None:
            counted = id(array) not in self.counts.ignored
            buffer = self._foreign[id(array)] = Buffer(self, array.nbytes * counted, array)
        return buffer  # type: ignore[no-any-return]

    def created(self, like: Any, shape: Any) -> Array:
        """Return a new array of that shape, with like's dtype and like's order in memory."""
        if not self.on_host or like.flags.c_contiguous:
            x = header(shape, like.dtype)
        else:
            x = header(shape, like.dtype, sorted(range(like.ndim), key=lambda i: -like.strides[i]))
        number = isinstance(like, np.generic) and self.on_host
        array = Array(x, Buffer(self, 0) if number else self.buffer(x.nbytes))
        owns = like.base is None or not self.on_host
        return array if owns else Array(x, array.buffer, array)

    def filled(self, like: Any, shape: Any) -> Any:
        """Return a new array as `created` does, and count the writing to it."""
        return self.call(lambda: like, [], shape)

    def call(
        self, f: Callable[..., Any], inputs: Sequence[Any], shape: Any, out: Array | None = None,
        *, numbers: int = 0, products: int = 0, reads: int | None = None,
    ) -> Any:
        """Count one call of f and return its result, in `out` if given. f runs on the corners."""
        like = quietly(f, *map(corner, inputs))
        if out is not None and out.shape != shape:
            raise ValueError(f"the result is {shape}: it does not fit into {out.shape}")
        result = self.created(like, shape) if out is None else out
        self.counts.add((products, numbers, 0, 0))
        if self.fusing is None:
            self.launched([x for x in inputs if isinstance(x, Array)], [result], reads)
        elif out is not None:
            self.fusing.append(out)
        return result

    def launched(self, read: list[Array], written: list[Array], reads: int | None = None) -> None:
        """Count one call. reads: bytes read, if not all of the arrays."""
        counts = self.counts
        depth = 1 + max([counts.start, *(x.buffer.depth for x in (*read, *written))])
        counts.deepest = max(counts.deepest, depth)
        for x in written:
            if self._depths is not None:
                self._depths.setdefault(x.buffer, x.buffer.depth)
            x.buffer.depth = depth
        reads = sum(x.nbytes for x in read) if reads is None else reads
        counts.add((0, 0, reads + sum(x.nbytes for x in written), 1))

    # The hooks.
    def share(self, task: Task, n: int, size: int, piece: int = 0) -> None:
        """Run the pieces of threads.share, none of which depends on another. If the first and the
        last piece of one length cost the same and keep nothing, those between are only counted.
        """
        cuts = threads.pieces(n, size, piece) if self.on_host else [slice(0, n)] * bool(n)
        alike: dict[int, list[slice]] = {}
        for cut in cuts:
            alike.setdefault(cut.stop - cut.start, []).append(cut)
        outer, after = self._depths, weakref.WeakKeyDictionary[Buffer, int]()
        for first, *others in alike.values():
            costs = [self._piece(task, cut, after) for cut in (first, *others[-1:])]
            if costs[0] is not None and costs[0] == costs[-1]:
                self.counts.add(costs[0], max(0, len(others) - 1))
            else:
                for cut in others[:-1]:
                    self._piece(task, cut, after)
        self._depths = outer
        for buffer, depth in after.items():
            if outer is not None:
                outer.setdefault(buffer, buffer.depth)
            buffer.depth = depth

    def _piece(self, task: Task, cut: slice, after: Any) -> list[int] | None:
        """Run a piece and restore the depths; return its cost, or None if an array of it stays."""
        self._depths = before = weakref.WeakKeyDictionary[Buffer, int]()
        cost, live = self.counts.cost, self.counts.live
        task(cut)
        for buffer, depth in before.items():
            after[buffer] = max(after.get(buffer, 0), buffer.depth)
            buffer.depth = depth
        an_array_stays = self.counts.live != live
        return None if an_array_stays else [b - a for a, b in zip(cost[:4], self.counts.cost)]

    def fuse(self, formula: Callable[..., None]) -> Callable[..., None]:
        """On a device a formula is one call, and its temporary arrays stay in registers."""
        if self.on_host:
            return formula

        def kernel(*arguments: Any) -> None:
            self.fusing = []
            try:
                formula(*arguments)
            finally:
                written, self.fusing = {id(x) for x in self.fusing}, None
            arrays = [x for x in arguments if isinstance(x, Array)]
            self.launched(arrays, [x for x in arrays if id(x) in written])

        return kernel

    def asnumpy(self, x: Any) -> np.ndarray:
        return np.asarray(x)  # it raises for an array of this library

    def generator(self, rng: Rng) -> np.random.Generator:
        return _drawing()(super().generator(rng).bit_generator, self.module)  # type: ignore[no-any-return]

    def read(self, x: Any, otherwise: float) -> float:
        return otherwise

    peek = read

    def finite(self, loss: Any, gradients: Sequence[Any]) -> Any:
        """Return the loss: there are no numbers to check. The cost of the check is counted."""
        if not self.on_host:
            return Device.finite(self, loss, gradients)  # type: ignore[arg-type]
        for g in gradients:
            total(g)
        return loss

    def scatter_add(self, target: Any, index: Any, rows: Any) -> None:
        """On the host, allocate what host.scatter_add does for an index drawn at random."""
        (n, d), m = target.shape, index.size
        if not self.on_host:
            self.launched([target, index, rows], [target])
        elif m:
            order = self.call(np.argsort, [index], index.shape)
            ordered = index[order]
            different = self.module.empty(round(n * (1 - (1 - 1 / n) ** m)), int)
            chosen = target[different]
            sums = self.module.empty((len(different), d), rows.dtype)
            self.launched([rows[order], ordered], [sums])
            chosen += sums
            target[different] = chosen

    def erf(self, x: Any) -> Any:
        """On the host, allocate what host.erf does, and its series, which is in float64."""
        if not self.on_host:
            return elementwise(self, np.abs, [x])
        size = np.minimum(np.abs(x), 6.0)
        t = 2.0 / (2.0 + size)
        value = 1.0 - t * np.exp(_chebyshev(t).astype(x.dtype) - size * size)
        return np.where(size > 0, np.copysign(value, x), x)

    def meter(self) -> Counts:
        return self.counts

    def describe(self) -> str:
        return f"shapes of {'numpy' if self.on_host else 'cupy'}: arrays without numbers"


def _chebyshev(t: Any) -> Any:
    t = t.astype(float)
    twice = 2 * t
    c0, c1 = -t, -t
    for _ in range(22):
        before, c0 = c0, 1 - c1
        c1 = before + c1 * twice
    return c0 + c1 * t


@functools.cache
def _drawing() -> Any:
    """Return a generator of arrays without numbers; here, because numpy.random loads slowly."""

    class Drawing(np.random.Generator):
        def __init__(self, bits: Any, module: Functions) -> None:
            super().__init__(bits)
            self.module = module

        def standard_normal(self, size: Any, dtype: Any = float) -> Any:  # type: ignore[override]
            return self.module.zeros(size, dtype)

        def normal(self, loc: float, scale: float, size: Any) -> Any:  # type: ignore[override]
            return self.module.zeros(size)

        random, uniform = standard_normal, normal  # type: ignore[assignment]

    return Drawing
