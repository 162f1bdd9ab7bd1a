"""Attention (ops/neural.py), in parts that fit the cache.

A part is some heads of some sequences. Its queries are cut into blocks, each with the keys that it
may see, so the masked half of the scores is never computed.

With E = e^(scores - shift) and n its row sums, softmax is E / n, which is never formed. The forward
pass divides E V by n. The backward pass uses g / n for g, and Σ (E / n) dP, which the gradient of
softmax subtracts, is Σ g · out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..backend import Array, current, wide, xp
from ..backend.fuse import fused
from ..ops.neural import fits_heads, later, padding
from .rowwise import exp_shifted

KEEP = 512  # tokens: up to this many, E is kept for the backward pass; beyond, it is recomputed


class Shared(NamedTuple):
    """What all parts have in common."""

    scale: float
    causal: bool
    blocks: list[tuple[slice, slice]]  # (queries, the keys that they may see)
    later: Array | None  # added to a block's last scores: it hides later keys   (side, side)
    keep: bool  # is E kept for the backward pass?


class Part(NamedTuple):
    """Some heads of k and v of some sequences, each with its group of query heads, as views.
    None: no gradient that is needed uses it."""

    Q: Any  # (sequences, heads, group, m, d_head)
    K: Any  # (sequences, heads, 1, n, d_head)
    V: Any  # (sequences, heads, 1, n, d_head)
    out: Any  # (sequences, heads, group, m, d_head)
    shift: Array  # (sequences, heads, group, m, 1)
    inverse: Array  # 1 / Σ E   (sequences, heads, group, m, 1)
    padding: Any  # added to scores (sequences, 1, 1, 1, n), or None
    E: dict[int, Array]  # first query of a block -> (sequences, heads, group, queries, keys)


def attention(q: Array, k: Array, v: Array, *, heads: int, causal: bool = True, mask: Any = None,
              kv_heads: int | None = None, needs: Sequence[bool]) -> Any:
    """Compute the parts on all cores. Beyond KEEP tokens, no array has tokens × tokens numbers."""
    kv_heads = fits_heads(q, k, v, heads, causal, kv_heads)
    (batch, m, d), n, dtype, group = q.shape, k.shape[1], q.dtype, heads // kv_heads
    side, size = min(m, current().queries), batch * heads * m * n
    q, k, v = (wide(x) for x in (q, k, v))  # CuPy would widen them in every product
    out = xp.empty_like(q)
    shift, inverse = xp.zeros((2, batch, kv_heads, group, m, 1), dtype=q.dtype)
    ones = xp.ones((n, 1), dtype=q.dtype)
    hidden = None if mask is None else padding(mask, batch, n, q.dtype)[:, None]
    shared = Shared(
        1 / math.sqrt(d // heads), causal, blocks(m, n, side, causal),
        later(side, side, q.dtype) if causal and m > 1 else None, any(needs) and n <= KEEP)
    places = tasks(batch, kv_heads, group * side * n)
    Q, K, V, O = (by_head(x, kv_heads, d // heads) for x in (q, k, v, out))
    parts = [
        Part(Q[at], K[at], V[at], O[at], shift[at], inverse[at],
             None if hidden is None else hidden[at[0]], {})
        for at in places]

    def forward_of(some: slice) -> None:
        for part in parts[some]:
            forward(part, shared, ones)

    def gradients(g: Array) -> tuple[Array, ...]:
        grads = [xp.empty(shapes[0], dtype=kind),
                 *(xp.zeros(shape, dtype=kind) for shape in shapes[1:])]
        G, dQ, dK, dV = (by_head(x, kv_heads, d // heads) for x in (wide(g), *grads))

        def backward_of(some: slice) -> None:
            for part, at in zip(parts[some], places[some]):
                backward(part, shared, G[at], dQ[at], dK[at], dV[at], needs)

        current().share(backward_of, len(parts), size, 1)
        return tuple(x.astype(dtype, copy=False) if need else None
                     for x, need in zip(grads, needs))

    current().share(forward_of, len(parts), size, 1)
    shapes, kind, y = (q.shape, k.shape, v.shape), q.dtype, out.astype(dtype, copy=False)
    if any(needs):
        parts = [for_backward(part, shared, needs) for part in parts]
    return y, gradients


def forward(part: Part, shared: Shared, ones: Array) -> None:
    """Write softmax(scores) V to part.out, block by block."""
    on_host, KT = current().on_host, transposed(part.K)
    safe = no_shift(part, shared) if on_host and part.padding is None else None
    for queries, keys in shared.blocks:
        shift, inverse = part.shift[..., queries, :], part.inverse[..., queries, :]
        E = scores(part, shared, KT, queries, keys)
        if safe is not None and current().peek(safe[..., queries, :].all(), True):
            xp.exp(E, out=E)
        else:
            top = E.max(-1, keepdims=True)
            shift[...] = top if safe is None else xp.where(safe[..., queries, :], 0, top)
            exp_shifted(E, shift, E)
        total = E @ ones[keys] if on_host else E.sum(-1, keepdims=True)
        xp.divide(1, total, out=inverse)
        xp.multiply(E @ part.V[..., keys, :], inverse, out=part.out[..., queries, :])
        if shared.keep:
            part.E[queries.start] = E


def backward(part: Part, shared: Shared, G: Array, dQ: Array, dK: Array, dV: Array,
             needs: Sequence[bool]) -> None:
    """Write dQ, and add to dK and dV, where they are needed, block by block."""
    need_q, need_k, need_v = needs
    KT = None if shared.keep else transposed(part.K)
    VT = transposed(part.V) if need_q or need_k else None
    for queries, keys in shared.blocks:
        if shared.keep:
            E = part.E.pop(queries.start)
        else:
            E = scores(part, shared, KT, queries, keys)
            exp_shifted(E, part.shift[..., queries, :], E)
        over = G[..., queries, :] * part.inverse[..., queries, :]  # g / n
        if need_v:
            dV[..., keys, :] += transposed_product(E, over)
        if VT is None:
            continue
        ds = over @ VT[..., keys]
        _softmax_gradient(ds, (over * part.out[..., queries, :]).sum(axis=-1, keepdims=True), E)
        if need_q:
            xp.multiply(ds @ part.K[..., keys, :], shared.scale, out=dQ[..., queries, :])
        if need_k:
            dK[..., keys, :] += transposed_product(ds, part.Q[..., queries, :] * shared.scale)


def for_backward(part: Part, shared: Shared, needs: Sequence[bool]) -> Part:
    """Drop the views that no needed gradient uses, so that their arrays can be freed."""
    need_q, need_k, _ = needs
    again = not shared.keep  # E is computed again, from Q and K
    return part._replace(
        Q=part.Q if need_k or again else None,
        K=part.K if need_q or again else None,
        V=part.V if need_q or need_k else None,
        out=part.out if need_q or need_k else None)


def scores(part: Part, shared: Shared, KT: Any, queries: slice, keys: slice) -> Array:
    """Q Kᵀ / √d_head of one block, masked        out: (sequences, heads, group, queries, keys)"""
    s = (part.Q[..., queries, :] * shared.scale) @ KT[..., keys]
    if shared.later is not None:
        rows = queries.stop - queries.start
        s[..., keys.stop - rows :] += shared.later[:rows, :rows]
    if part.padding is not None:
        s += part.padding[..., keys]
    return s


@fused
def _softmax_gradient(ds: Array, along: Array, E: Array) -> None:
    """ds becomes (ds - along) E"""
    ds -= along
    ds *= E


def no_shift(part: Part, shared: Shared) -> Array:
    """The queries whose scores are below 40 for all keys that they see.
    out: (sequences, heads, group, m, 1), true or false

    By Cauchy and Schwarz, |q · k| is at most |q| |k|. e^40 and sums of it are finite without a
    shift, which saves two passes. Later keys have no influence, so the future does not change the
    past, not even in the last bit.
    """
    m, n = part.Q.shape[3], part.K.shape[3]
    if not n:
        return xp.zeros((*part.Q.shape[:4], 1), dtype=bool)
    q, k = (xp.sqrt(xp.square(x).sum(axis=-1, keepdims=True)) for x in (part.Q, part.K))
    if shared.causal:
        k = xp.maximum.accumulate(k, axis=3)[..., n - m :, :]
    else:
        k = k.max(axis=3, keepdims=True)
    return q * k * shared.scale < 40


def transposed(x: Array) -> Array:
    """xᵀ, as a copy: BLAS is slow at small x @ yᵀ."""
    return x.swapaxes(-1, -2).copy()


def transposed_product(x: Array, y: Array) -> Array:
    """Σ xᵀ y over the group        x, y: (sequences, heads, group, queries, ...)
    On a device (yᵀ x)ᵀ, because CuPy copies a transposed factor and y is the smaller."""
    x, y = (z.reshape(*z.shape[:2], 1, -1, z.shape[4]) for z in (x, y))  # one sum, of BLAS
    if current().on_host:
        return x.swapaxes(-1, -2) @ y
    return (y.swapaxes(-1, -2) @ x).swapaxes(-1, -2)


def by_head(x: Array, kv_heads: int, width: int) -> Array:
    """A view: (batch, tokens, d) -> (batch, kv_heads, group, tokens, d_head); group is 1 in k."""
    group = x.shape[2] // width // kv_heads
    return x.reshape(*x.shape[:2], kv_heads, group, width).transpose(0, 2, 3, 1, 4)


def blocks(m: int, n: int, side: int, causal: bool) -> list[tuple[slice, slice]]:
    """(queries, the keys that they may see): `side` queries each, the last ones fewer."""
    cuts = [slice(i, min(i + side, m)) for i in range(0, m, side or 1)]
    return [(queries, slice(0, n - m + queries.stop if causal else n)) for queries in cuts]


def tasks(batch: int, heads: int, size: int) -> list[tuple[slice, slice]]:
    """(sequences, heads of k) of each part; `size`: scores of one such head, computed at once."""
    together = max(1, current().piece // max(1, size))  # heads, of one sequence or of more
    some, each = max(1, together // heads), min(heads, together)
    return [(slice(b, b + some), slice(h, h + each))
            for b in range(0, batch, some) for h in range(0, heads, each)]
