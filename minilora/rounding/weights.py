"""Each merged W, entry by entry, against W0 + (alpha / r) · B A made with twice the digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import asnumpy
from ..lora.convert import adapters_of, layers_of, merged
from ..lora.layers import LoRAEmbedding, LoRALayer
from ..nn import Module, Parameter
from .bounds import gamma
from .roundings import least, pairs, twin, unit

PIECE = 1 << 15  # entries of W that are looked at together, so that they stay in the cache
Update = tuple[np.ndarray, np.ndarray, float]  # (n, r), (r, m) and alpha, all in float64


@dataclass(frozen=True)
class Weight:
    """The entry of one merged W that is furthest off, in units in its last place."""

    off: float  # how far it is from W0 + (alpha / r) · B A
    allowed: float  # half a unit, and what the merge may lose where it adds up in float64
    entry: tuple[int, int]

    @property
    def right(self) -> bool:
        return self.off <= self.allowed  # false for nan


def weigh(model: Module) -> tuple[dict[str, Weight], tuple[str, ...]]:
    """Merge a twin of the model, and look at every parameter of it: (the furthest entry of each
    adapted layer's W, by path; the names of the others that are not what they were, bit for bit).

    Nothing that merges is used: no ΔW, scale or r of a layer, only A, B, alpha, and DoRA's m.
    """
    layers, same, found, odd = layers_of(model), twin(model), dict[str, Weight](), list[str]()
    with merged(same):
        plain = {name: asnumpy(p.data) for name, p in same.named_parameters()}
    for name, p in _without_adapters(model, layers).items():
        layer, W0, W = layers.get(name.removesuffix(".W")), asnumpy(p.data), plain.pop(name, None)
        dtype = W0.dtype if layer is None else layer.base.dtype
        if W is None or (W.shape, W.dtype) != (W0.shape, dtype):
            odd.append(name)
        elif layer is not None:
            held = (layer.adapters.get(name) for name in adapters_of(model).active)
            active = [a for a in held if a is not None]
            m = [asnumpy(a.m.data).astype(np.float64) for a in active if hasattr(a, "m")]
            found[name] = furthest(W, W0, [_update(layer, a) for a in active], *m)
        elif W.tobytes() != W0.tobytes():
            odd.append(name)
    return found, (*odd, *plain)


def _without_adapters(model: Module, layers: dict[str, LoRALayer]) -> dict[str, Parameter]:
    """The model's parameters but for A and B, by the names that they have in the merged model."""
    adapters = {p for x in layers.values() for a in x.adapters.values() for p in a.parameters()}
    plain, found = {f"{path}.base": path for path in layers}, {}
    for name, p in model.named_parameters():
        above, dot, last = name.rpartition(".")
        if p not in adapters:
            found[f"{plain.get(above, above)}{dot}{last}"] = p
    return found


def _update(layer: LoRALayer, adapter: Any) -> Update:
    """B A, and PiSSA's B A - B0 A0 as [B, -B0] [A; A0], of twice the rank and alpha."""
    signs = dict(zip(pairs(adapter), (1, -1)))
    A = np.concatenate([asnumpy(p.A.data).astype(np.float64) for p in signs])
    B = np.concatenate([s * asnumpy(p.B.data).astype(np.float64) for p, s in signs.items()], 1)
    left, right = (A.T, B.T) if isinstance(layer, LoRAEmbedding) else (B, A)
    return left, right, len(signs) * adapter.alpha


def furthest(
    W: np.ndarray, W0: np.ndarray, updates: Sequence[Update], m: np.ndarray | None = None
) -> Weight:
    """The entry of W that is furthest from W0 + Σ (alpha / r) · left right.

    A merge makes the sum in float64 and rounds it once. Before that rounding, an update is off by
    at most γ(r + n + 1) of |alpha / r| · |left| |right|: r products and sums, alpha / r, the
    product with it, and sums with the other n - 1 updates; then the sum with W0 by u of itself,
    which in a float64 model is that one rounding. (One step more for what it is compared with.)

    m: DoRA's lengths; V, which is that sum, is then compared as m / |V| · V, row by row.
    """
    worst, share, steps = Weight(0.0, 0.5, (0, 0)), -1.0, len(updates) + 2
    for start in range(0, len(W), rows := max(1, PIECE // W.shape[1])):
        at = slice(start, start + rows)
        some = [(left[at], right, alpha) for left, right, alpha in updates]
        high, low = _exact(W0[at].astype(np.float64), some)
        size = abs(high)
        last = W.dtype == np.float64 and m is None  # is that sum the one rounding of W?
        room = np.zeros_like(size) if last else size * unit("float64")
        for left, right, alpha in some:
            r, s = len(right), abs(alpha) / len(right)
            room += gamma(r + steps, "float64") * s * (abs(left) @ abs(right))
            room += 6 * (r + 1) * (1 + s) * least("float64")  # what is lost below the smallest
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
    """m / |V| · V, and what float64 loses until it is made.

    |V| is off by γ(k / 2 + 2) of itself, in the merge and here, and in the merge by that of V.
    There ΔW is what W0 is taken off and added to again: two roundings of W or W0 more.
    """
    n = np.sqrt((V * V).sum(axis=1))
    off = gamma(V.shape[1] + 8, "float64") + np.sqrt((room * room).sum(axis=1)) / n
    f = (m / n)[:, None]
    W = f * V
    return W, abs(f) * room + abs(W) * off[:, None] + 2 * unit("float64") * (abs(W) + W0)


def place(size: np.ndarray, dtype: Any) -> np.ndarray:
    """The unit in the last place of numbers of this size in this dtype."""
    info = np.finfo(dtype)
    _, exponent = np.frexp(np.maximum(size, float(info.smallest_normal)))
    return np.asarray(np.ldexp(1.0, exponent - info.nmant - 1))


def _exact(W0: np.ndarray, updates: Sequence[Update]) -> tuple[np.ndarray, np.ndarray]:
    """W0 + Σ (alpha / r) · left right as the sum of two float64 arrays, to some 2⁻¹⁰⁰ of the terms.

    Each product and sum is kept with its own rounding error, which is a float (Ogita, Rump and
    Oishi, Accurate sum and dot product, SIAM J. Sci. Comput. 26(6), 2005).
    """
    high, low = W0, np.zeros_like(W0)
    for left, right, alpha in updates:
        r = len(right)
        s = np.float64(alpha / r)
        again, more = _product(s, np.float64(r))
        up, rest = _product(s, left)
        rest = rest + ((alpha - again) - more) / r * left
        for i in range(r):
            term, error = _product(up[:, i : i + 1], right[i])
            high, lost = _sum(high, term)
            low += error + lost + rest[:, i : i + 1] * right[i]
    return high, low


def _sum(a: Any, b: Any) -> tuple[Any, Any]:
    """(a + b rounded, its error), exactly."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _product(a: Any, b: Any) -> tuple[Any, Any]:
    """(a · b rounded, its error), exactly: of halves of 26 bits each product is a float."""
    p, (a1, a2), (b1, b2) = a * b, _halves(a), _halves(b)
    return p, a2 * b2 - (((p - a1 * b1) - a2 * b1) - a1 * b2)


def _halves(a: Any) -> tuple[Any, Any]:
    c = a * (2.0**27 + 1)
    high = c - (c - a)
    return high, a - high
