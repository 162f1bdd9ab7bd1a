"""Attention (ops/neural.py) in pieces that fit the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..backend import Array, current, xp
from ..backend.fuse import fused
from ..ops.neural import fits_heads, later, padding
from .rowwise import exp_shifted, widest

KEEP = 512  # tokens: up to so many the weights are kept for the backward pass, else made again


def attention(q: Array, k: Array, v: Array, *, heads: int, causal: bool = True, mask: Any = None,
              needs: Sequence[bool]) -> Any:
    """A few heads at a time, by blocks of queries and the keys that they may see: scores stay in
    the cache, the masked half is never made, and nothing of tokens × tokens beyond KEEP tokens.

    With E = e^(s - shift) and n its row sums, softmax is E/n. E/n itself is never formed: g/n
    stands in for g, and Σ (E/n) dP, which the softmax's gradient subtracts, is Σ g·out.
    """
    fits_heads(q, k, v, heads, causal)
    (batch, m, d), n, dtype, on_host = q.shape, k.shape[1], q.dtype, current().on_host
    q, k, v = (widest(x) for x in (q, k, v))  # CuPy would, in every product
    scale, side = 1 / math.sqrt(d // heads), min(m, current().queries)
    half = later(side, side, q.dtype) if causal and m > 1 else None
    pad = None if mask is None else padding(mask, batch, n, q.dtype)
    Q, K, V = (by_head(x, heads) for x in (q, k, v))  # (batch, heads, tokens, d_head)
    out = xp.empty_like(q)
    O = by_head(out, heads)
    shift, inverse = xp.zeros((2, batch, heads, m, 1), q.dtype)
    ones = xp.ones((n, 1), q.dtype)
    parts = tasks(batch, heads, side * n)
    cuts = [slice(i, min(i + side, m)) for i in range(0, m, side or 1)]
    blocks = [(i, slice(0, n - m + i.stop if causal else n)) for i in cuts]  # queries, their keys
    (need_q, need_k, need_v), keep = needs, any(needs) and n <= KEEP
    kept: list[dict[int, Array]] = [{} for _ in parts]  # of each part, E of each block

    def turned(x: Array) -> Array:  # BLAS is slow at small x @ yᵀ
        return x.swapaxes(-1, -2).copy()

    def crossed(E: Array, y: Array) -> Array:  # Eᵀ y: CuPy copies what is turned
        return E.swapaxes(-1, -2) @ y if on_host else (y.swapaxes(-1, -2) @ E).swapaxes(-1, -2)

    def scores(t: Any, KT: Array, i: slice, j: slice) -> Array:
        s = (Q[t][:, :, i] * scale) @ KT[..., j]
        if half is not None:
            rows = i.stop - i.start
            s[..., j.stop - rows :] += half[:rows, :rows]
        if pad is not None:
            s += pad[t[0], :, :, j]
        return s

    def forward(at: slice) -> None:
        for part, t in enumerate(parts[at], at.start):
            KT = turned(K[t])
            small = _small(Q[t], K[t], scale, causal) if on_host and pad is None else None
            for i, j in blocks:
                E = scores(t, KT, i, j)
                if small is not None and current().peek(small[:, :, i].all(), True):
                    xp.exp(E, out=E)
                else:
                    top = E.max(-1, keepdims=True)
                    shift[t][:, :, i] = top if small is None else xp.where(small[:, :, i], 0, top)
                    exp_shifted(E, shift[t][:, :, i], E)
                total = E @ ones[j] if on_host else E.sum(-1, keepdims=True)
                xp.divide(1, total, out=inverse[t][:, :, i])
                xp.multiply(E @ V[t][:, :, j], inverse[t][:, :, i], out=O[t][:, :, i])
                if keep:
                    kept[part][i.start] = E

    current().share(forward, len(parts), batch * heads * m * n, 1)
    shapes, wide, y = (q.shape, k.shape, v.shape), q.dtype, out.astype(dtype, copy=False)
    del q, k, v, out
    if keep:  # what the gradients that are wanted use, and no more
        Q, K = Q if need_k else None, K if need_q else None
    if not (need_q or need_k):
        V = O = None

    def gradients(g: Array) -> tuple[Array, ...]:
        G = by_head(widest(g), heads)
        dq, dk, dv = xp.empty(shapes[0], wide), *(xp.zeros(s, wide) for s in shapes[1:])
        dQ, dK, dV = (by_head(x, heads) for x in (dq, dk, dv))

        def backward(at: slice) -> None:
            for part, t in enumerate(parts[at], at.start):
                KT = None if keep else turned(K[t])
                VT = turned(V[t]) if need_q or need_k else None
                for i, j in blocks:
                    if keep:
                        E = kept[part].pop(i.start)
                    else:
                        E = scores(t, KT, i, j)
                        exp_shifted(E, shift[t][:, :, i], E)
                    over = G[t][:, :, i] * inverse[t][:, :, i]
                    if need_v:
                        dV[t][:, :, j] += crossed(E, over)
                    if VT is None:
                        continue
                    ds = over @ VT[..., j]
                    _ds(ds, (over * O[t][:, :, i]).sum(axis=-1, keepdims=True), E)
                    if need_q:
                        xp.multiply(ds @ K[t][:, :, j], scale, out=dQ[t][:, :, i])
                    if need_k:
                        dK[t][:, :, j] += crossed(ds, Q[t][:, :, i] * scale)

        current().share(backward, len(parts), batch * heads * m * n, 1)
        return tuple(x.astype(dtype, copy=False) if need else None
                     for x, need in zip((dq, dk, dv), needs))

    return y, gradients


@fused
def _ds(ds: Array, along: Array, E: Array) -> None:
    ds -= along
    ds *= E


def _small(Q: Array, K: Array, scale: float, causal: bool) -> Array:
    """Rows (batch, heads, m, 1) whose |q·k| · scale is under 40 for every key that they may see.

    By Cauchy and Schwarz, from lengths: e^ of it and sums of that need no shift, which saves two
    passes. Looks at no later token, so that the future does not change the past, not by a bit.
    """
    m, n = Q.shape[2], K.shape[2]
    if not n:
        return xp.zeros((*Q.shape[:3], 1), bool)
    q, k = (xp.sqrt(xp.square(x).sum(axis=-1, keepdims=True)) for x in (Q, K))
    k = xp.maximum.accumulate(k, axis=2)[:, :, n - m :] if causal else k.max(axis=2, keepdims=True)
    return q * k * scale < 40


def by_head(x: Array, heads: int) -> Array:
    """A view: (batch, tokens, d) -> (batch, heads, tokens, d_head)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def tasks(batch: int, heads: int, size: int) -> list[tuple[slice, slice]]:
    """(sequences, heads) that are done together, as slices: independent of one another."""
    together = max(1, current().piece // max(1, size))  # heads, of a sequence or more
    some, each = max(1, together // heads), min(heads, together)
    return [(slice(b, b + some), slice(h, h + each))
            for b in range(0, batch, some) for h in range(0, heads, each)]
