"""Compare each merged W with W0 + (alpha / r) · B A, computed with twice the digits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adapters import Adapted, merged
from ..adapters.places import adapted, parameters
from ..adapters.registry import state_of
from ..backend import asnumpy
from ..nn import Embedding, Linear, Module, Parameter
from .bounds import gamma
from .roundings import least, twin, unit

PIECE = 1 << 15  # entries of W that are compared at once, so that they fit in the CPU cache
Update = tuple[np.ndarray, np.ndarray, float]  # (n, r), (r, m) and the scale, all in float64


@dataclass(frozen=True)
class Weight:
    """The entry of one merged W with the largest error, in units in the last place."""

    off: float  # the difference from W0 + (alpha / r) · B A
    allowed: float  # half a unit, plus the rounding of the merge's sum in float64
    entry: tuple[int, int]

    @property
    def right(self) -> bool:
        return self.off <= self.allowed  # false for nan


def weigh(model: Module) -> tuple[dict[str, Weight], tuple[str, ...]]:
    """Merge a copy of the model, and compare every parameter with its expected value.

    Returns (the worst entry of each adapted layer's W, by name; the names of other parameters that
    changed). The comparison uses only the factors, not the ΔW that the merge computes.
    """
    modules = {f"{at}.W": m for at, m in adapted(model).items()
               if isinstance(m.base, Linear | Embedding)}
    state_of(model)
    same, worst, changed = twin(model), dict[str, Weight](), list[str]()
    with merged(same):
        after = {name: asnumpy(p.data) for name, p in _once(same)}
    for name, p in _once(model):
        module, W0, W = modules.get(name), asnumpy(p.data), after.pop(name, None)
        dtype = W0.dtype if module is None or not module.active else module.base.dtype
        if W is None or (W.shape, W.dtype) != (W0.shape, dtype):
            changed.append(name)
        elif module is not None:
            active = [module.adapters[n] for n in module.active]
            m = [asnumpy(m.data).astype(np.float64) for a in active
                 if (m := a.row_scale()) is not None]
            updates = [_update(module, *factor) for a in active for factor in a.factors() or ()]
            worst[name] = furthest(W, W0, updates, *m)
        elif W.tobytes() != W0.tobytes():
            changed.append(name)
    return worst, (*changed, *after)


def _once(model: Module) -> Iterator[tuple[str, Parameter]]:
    """Yield (name, parameter) for all parameters but the adapters' own, each once."""
    seen = set[int]()
    for name, _, p in parameters(model):
        if id(p) not in seen:
            seen.add(id(p))
            yield name, p


def _update(module: Adapted, scale: float, B: Any, A: Any) -> Update:
    """Return the factors of scale · B A in W's orientation."""
    left, right = (asnumpy(p.data).astype(np.float64) for p in (B, A))
    return (right.T, left.T, scale) if isinstance(module.base, Embedding) else (left, right, scale)


def furthest(
    W: np.ndarray, W0: np.ndarray, updates: Sequence[Update], m: np.ndarray | None = None
) -> Weight:
    """Return the entry of W that is furthest from W0 + Σ scale · left right.

    A merge computes the sum in float64 and rounds it once. Before that, the error of an update is
    at most γ(r + n + 1) of |scale| · |left| |right|: r products and sums, the product with the
    scale, and sums with the other n - 1 updates. The sum with W0 has an error of u of itself, which
    in a float64 model is that one rounding. (One step more is for the reference.)

    m: DoRA's lengths; W is then compared with m / |V| · V, where V is the sum above.
    """
    worst, share, steps = Weight(0.0, 0.5, (0, 0)), -1.0, len(updates) + 2
    for start in range(0, len(W), rows := max(1, PIECE // W.shape[1])):
        at = slice(start, start + rows)
        some = [(left[at], right, scale) for left, right, scale in updates]
        high, low = _exact(W0[at].astype(np.float64), some)
        size = abs(high)
        last = W.dtype == np.float64 and m is None  # is this sum the only rounding of W?
        room = np.zeros_like(size) if last else size * unit("float64")
        for left, right, scale in some:
            r, s = len(right), abs(scale)
            room += gamma(r + steps, "float64") * s * (abs(left) @ abs(right))
            room += 6 * (r + 1) * (1 + s) * least("float64")  # underflow
        if m is not None:
            high, room = _lengthened(high + low, room, m[at], abs(W0[at]))
            low, size = np.zeros_like(high), abs(high)
        off, allowed = abs((W[at] - high) - low), place(size + room, W.dtype) / 2 + room
        i, j = np.unravel_index(int((off / allowed).argmax()), off.shape)  # nan is the largest
        if not off[i, j] / allowed[i, j] <= share:
            share, unit_there = off[i, j] / allowed[i, j], place(size[i, j], W.dtype)
            entry = start + int(i), int(j)
            worst = Weight(float(off[i, j] / unit_there), float(allowed[i, j] / unit_there), entry)
    return worst


def _lengthened(
    V: np.ndarray, room: np.ndarray, m: np.ndarray, W0: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return m / |V| · V, and the bound on its error in float64.

    |V| has a relative error of γ(k / 2 + 2), in the merge and here, and in the merge that of V too.
    The merge also subtracts W0 and adds it again: two more roundings of W or W0.
    """
    n = np.sqrt((V * V).sum(axis=1))
    off = gamma(V.shape[1] + 8, "float64") + np.sqrt((room * room).sum(axis=1)) / n
    f = (m / n)[:, None]
    W = f * V
    return W, abs(f) * room + abs(W) * off[:, None] + 2 * unit("float64") * (abs(W) + W0)


def place(size: np.ndarray, dtype: Any) -> np.ndarray:
    """Return the unit in the last place of numbers of this size in this dtype."""
    info = np.finfo(dtype)
    _, exponent = np.frexp(np.maximum(size, float(info.smallest_normal)))
    return np.asarray(np.ldexp(1.0, exponent - info.nmant - 1))


def _exact(W0: np.ndarray, updates: Sequence[Update]) -> tuple[np.ndarray, np.ndarray]:
    """Return W0 + Σ scale · left right as the sum of two float64 arrays, to 2⁻¹⁰⁰ of the terms.

    The rounding error of each product and sum is itself a float, and is added too (Ogita, Rump and
    Oishi, Accurate sum and dot product, SIAM J. Sci. Comput. 26(6), 2005).
    """
    high, low = W0, np.zeros_like(W0)
    for left, right, scale in updates:
        up, rest = _product(np.float64(scale), left)
        for i in range(len(right)):
            term, error = _product(up[:, i : i + 1], right[i])
            high, lost = _sum(high, term)
            low += error + lost + rest[:, i : i + 1] * right[i]
    return high, low


def _sum(a: Any, b: Any) -> tuple[Any, Any]:
    """Return (a + b rounded, its exact error)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _product(a: Any, b: Any) -> tuple[Any, Any]:
    """Return (a · b rounded, its exact error); products of 26-bit halves are exact."""
    p, (a1, a2), (b1, b2) = a * b, _halves(a), _halves(b)
    return p, a2 * b2 - (((p - a1 * b1) - a2 * b1) - a1 * b2)


def _halves(a: Any) -> tuple[Any, Any]:
    c = a * (2.0**27 + 1)
    high = c - (c - a)
    return high, a - high
