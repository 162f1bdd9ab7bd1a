"""Attention as one op, in pieces that fit the cache; its composed twin stands in its test."""

from __future__ import annotations

import math

from ..backend import Array, current, fused, xp
from ..tensor import Tensor, once, op, recording
from ..threads import share
from .fused import exp_shifted, widest


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, heads: int, causal: bool = True, keep: bool | None = None
) -> Tensor:
    """softmax(q kᵀ / √d_head) v, head by head        q: (batch, m, d)   k, v: (batch, n, d)

    out: (batch, m, d). `causal`: query i is token n - m + i and sees no later one. `keep` the
    weights for the backward pass or compute them again there; None keeps up to 512 tokens.
    """
    keep = recording() and (k.shape[1] <= 512 if keep is None else keep)
    return attend(q, k, v, heads=heads, causal=causal, keep=keep)


@op
def attend(q, k, v, *, heads, causal, keep):
    """Attention in pieces that fit the cache; of a causal one, the masked half is never made.

    With E = e^(s - shift) and n its row sums, softmax is E/n. E/n itself is never formed: g/n
    stands in for g, and Σ (E/n) dP, which the softmax's gradient subtracts, is Σ g·out.
    """
    batch, m, d = q.shape
    n = k.shape[1]
    fits = heads > 0 and d % heads == 0 and k.shape == v.shape == (batch, n, d)
    if not fits or (causal and m > n):
        raise ValueError(f"needs (batch, m, d), (batch, n, d) twice, d a multiple of {heads} heads"
                         + (", m at most n" if causal else ""))
    dtype, free = q.dtype, current().numbers_are_free
    q, k, v = (widest(x) for x in (q, k, v))                      # CuPy would, in every product
    scale, side = 1 / math.sqrt(d // heads), min(m, current().queries)
    half = xp.triu(xp.full((side, side), -math.inf, q.dtype), 1)  # hides the later tokens
    Q, K, V = (by_head(x, heads) for x in (q, k, v))              # (batch, heads, tokens, d_head)
    out = xp.empty_like(q)
    O = by_head(out, heads)
    shift, inverse = xp.zeros((2, batch, heads, m, 1), q.dtype)
    together = tasks(batch, heads, side * n)
    ones = xp.ones((n, 1), q.dtype)
    blocks = [(slice(i, min(i + side, m)), slice(0, n - m + min(i + side, m) if causal else n))
              for i in range(0, m, side or 1)]                    # queries, the keys they may see
    kept: list[dict[int, Array]] = [{} for _ in together]

    def turned(x): return x.swapaxes(-1, -2).copy()               # BLAS is slow at small x @ yᵀ
    def crossed(E, y):                                            # Eᵀ y: CuPy copies what is turned
        return E.swapaxes(-1, -2) @ y if free else (y.swapaxes(-1, -2) @ E).swapaxes(-1, -2)
    def scores(t, KT, i, j):
        s = (Q[t][:, :, i] * scale) @ KT[..., j]
        if causal:
            s[..., j.stop - (i.stop - i.start):] += half[: i.stop - i.start, : i.stop - i.start]
        return s
    def attended(task, t, KT, small, i, j):
        E = scores(t, KT, i, j)
        if free and small[:, :, i].all():
            xp.exp(E, out=E)
        else:
            top = E.max(-1, keepdims=True)
            shift[t][:, :, i] = xp.where(small[:, :, i], 0, top) if free else top
            exp_shifted(E, shift[t][:, :, i], E)
        xp.divide(1, E @ ones[j] if free else E.sum(-1, keepdims=True), out=inverse[t][:, :, i])
        xp.multiply(E @ V[t][:, :, j], inverse[t][:, :, i], out=O[t][:, :, i])
        if keep:
            kept[task][i.start] = E
    def forward(at):
        for task, t in enumerate(together[at], at.start):
            small, KT = free and _small(Q[t], K[t], scale, causal), turned(K[t])
            for i, j in blocks:
                attended(task, t, KT, small, i, j)
    share(forward, len(together), batch * heads * m * n)

    def again(t, KT, i, j):
        E = scores(t, KT, i, j)
        exp_shifted(E, shift[t][:, :, i], E)
        return E

    @once
    def all_three(g):
        G = by_head(widest(g), heads)
        dq, dk, dv = xp.empty_like(q), xp.zeros_like(k), xp.zeros_like(v)
        dQ, dK, dV = (by_head(x, heads) for x in (dq, dk, dv))
        def differentiated(task, t, KT, VT, i, j):
            E = kept[task].pop(i.start) if keep else again(t, KT, i, j)
            over = G[t][:, :, i] * inverse[t][:, :, i]
            dV[t][:, :, j] += crossed(E, over)
            ds = over @ VT[..., j]
            _ds(ds, (over * O[t][:, :, i]).sum(axis=-1, keepdims=True), E)
            xp.multiply(ds @ K[t][:, :, j], scale, out=dQ[t][:, :, i])
            dK[t][:, :, j] += crossed(ds, Q[t][:, :, i] * scale)
        def backward(at):
            for task, t in enumerate(together[at], at.start):
                KT, VT = None if keep else turned(K[t]), turned(V[t])
                for i, j in blocks:
                    differentiated(task, t, KT, VT, i, j)
        share(backward, len(together), batch * heads * m * n)
        return [x.astype(dtype, copy=False) for x in (dq, dk, dv)]
    def dq(g): return all_three(g)[0]
    def dk(g): return all_three(g)[1]
    def dv(g): return all_three(g)[2]
    return out.astype(dtype, copy=False), (dq, dk, dv)


@fused
def _ds(ds, along, E):
    ds -= along
    ds *= E


def _small(Q, K, scale, causal):
    """Rows (batch, heads, m, 1) whose |q·k| · scale is under 40 for every key that they may see.

    By Cauchy and Schwarz, from lengths: e^ of it and sums of that need no shift. Looks at no later
    token, so that the future does not change the past, not by a bit.
    """
    m, n = Q.shape[2], K.shape[2]
    if not n:
        return xp.zeros((*Q.shape[:3], 1), bool)
    q, k = (xp.sqrt(xp.square(x).sum(axis=-1, keepdims=True)) for x in (Q, K))
    k = xp.maximum.accumulate(k, axis=2)[:, :, n - m:] if causal else k.max(axis=2, keepdims=True)
    return q * k * scale < 40


def by_head(x, heads):
    """A view: (batch, tokens, d) -> (batch, heads, tokens, d_head)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def tasks(batch: int, heads: int, size: int) -> list[tuple[slice, slice]]:
    """(sequences, heads) that are done together, as slices: independent of one another."""
    together = max(1, current().piece // max(1, size))            # heads, of a sequence or more
    some, each = max(1, together // heads), min(heads, together)
    return [(slice(b, b + some), slice(h, h + each))
            for b in range(0, batch, some) for h in range(0, heads, each)]
