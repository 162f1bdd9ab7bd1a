"""DeBERTa v2 (He et al. 2021): attention to content and to distance, each on its own.

What a token is and how far away it is are two vectors. The score of query i and key j is

    q_i · k_j  +  q_i · r_k[δ(i, j)]  +  k_j · r_q[δ(i, j)]       content-content, c2p, p2c

over √(d_head · terms), with r_k and r_q made of one table of distances, which all blocks share.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from ..backend import Rng, asarray, generator, xp
from ..config import DebertaConfig
from ..nn import Dropout, Embedding, LayerNorm, Linear, Module
from ..ops.neural import padding
from ..tensor import Tensor
from .encoder import Encoder
from .transformer import Attention


class Deberta(Encoder):
    """ids (batch, tokens) -> logits. `rel` is the table of distances, `ln_r` the norm over it."""

    config: DebertaConfig

    def __init__(
        self, config: DebertaConfig, *, rng: Rng = None, dtype: Any = "float32",
        recompute: bool = False,
    ) -> None:  # fmt: skip
        c, rng = config, generator(rng)
        super().__init__(c, rng=rng, dtype=dtype, recompute=recompute)
        self.rel = self.ln_r = None
        if c.pos_att_type:
            self.rel = Embedding(2 * span(c), c.d_model, rng=rng, dtype=dtype)
            self.ln_r = LayerNorm(c.d_model, c.eps, dtype=dtype) if c.norm_rel_ebd else None
        self.conv = Conv(c, rng=rng, dtype=dtype) if c.conv_kernel_size else None

    def through(self, x: Tensor, mask: Any) -> Tensor:
        """All blocks; beside the first one a convolution, the last one z_steps times."""
        first, table, at = x, [], distances(x.shape[1], self.config)
        if self.rel is not None:
            rows = self.rel(slice(None))
            table = [rows if self.ln_r is None else self.ln_r(rows)]
        for i, block in enumerate(self.blocks):
            before, x = x, self.run(block, x, *table, at=at, mask=mask)
            if i == 0 and self.conv is not None:
                x = self.conv(first, x, mask)
        for _ in range(1, self.config.z_steps):  # its queries go on, what they look at stays
            x = self.blocks[-1](x, *table, before, at=at, mask=mask)
        return x

    def rows(self) -> int:
        return self.config.n_positions if self.config.position_biased_input else 0

    def attention(self, rng: np.random.Generator, dtype: Any) -> Module:
        return Disentangled(self.config, rng=rng, dtype=dtype)

    @staticmethod
    def pooling(x: Tensor) -> Tensor:
        return ops.gelu(x, approximate="none")


class Disentangled(Attention):
    """Attention whose scores know the distance; without `pos_att_type`, plain attention."""

    def __init__(self, c: DebertaConfig, *, rng: np.random.Generator, dtype: Any) -> None:
        super().__init__(c.d_model, c.n_heads, causal=False, rng=rng, dtype=dtype)
        self.pos_att_type, own = c.pos_att_type, () if c.share_att_key else c.pos_att_type

        def layer(kind: str) -> Linear | None:
            return (
                Linear(c.d_model, c.d_model, std=0.02, rng=rng, dtype=dtype)
                if kind in own
                else None
            )

        self.pos_k, self.pos_q = layer("c2p"), layer("p2c")

    def forward(  # type: ignore[override]
        self, x: Tensor, *table: Tensor, at: np.ndarray, mask: Any = None
    ) -> Tensor:
        """table: that of distances, where there is one; then what is looked at, if not x itself."""
        wanted, kinds = len(self.pos_att_type) > 0, self.pos_att_type
        rows, context = (table[:wanted] or (None,))[0], (*table[wanted:], x)[0]
        q, k, v = self.q(x), self.k(context), self.v(context)
        pos_k = (self.pos_k or self.k)(rows) if "c2p" in kinds else None
        pos_q = (self.pos_q or self.q)(rows) if "p2c" in kinds else None
        if rows is None:
            y = ops.attention(q, k, v, heads=self.n_heads, causal=False, mask=mask)
        else:
            y = disentangled(q, k, v, pos_k, pos_q, at=at, heads=self.n_heads, mask=mask)
        return self.o(y)


def disentangled(
    q: Tensor, k: Tensor, v: Tensor, pos_k: Tensor | None, pos_q: Tensor | None, *,
    at: np.ndarray, heads: int, mask: Any = None,
) -> Tensor:  # fmt: skip
    """Attention with the scores above        q, k, v: (batch, n, d)   out: (batch, n, d)

    pos_k, pos_q: (2 span, d), a row for each distance, or None   at: (n, n), which row, on the host
    mask: as in `ops.attention`.
    """
    batch, n, d = q.shape

    def by_head(x: Tensor) -> Tensor:  # (..., tokens, d) -> (..., heads, tokens, d_head)
        *outer, tokens, _ = x.shape
        axes = (*range(len(outer)), *(len(outer) + i for i in (1, 0, 2)))
        return ops.transpose(x.reshape(*outer, tokens, heads, d // heads), axes=axes)

    Q, K, V = by_head(q), by_head(k), by_head(v)
    scores, terms = Q @ turned(K), 1
    if pos_k is not None:
        scores, terms = scores + along(Q @ turned(by_head(pos_k)), at), terms + 1
    if pos_q is not None:
        scores, terms = scores + turned(along(K @ turned(by_head(pos_q)), at.T)), terms + 1
    scores = scores * (1 / math.sqrt(d // heads * terms))  # (batch, heads, n, n)
    if mask is not None:
        scores = scores + padding(mask, batch, n, q.dtype)  # type: ignore[no-untyped-call]
    return ops.transpose(ops.softmax(scores) @ V, axes=(0, 2, 1, 3)).reshape(batch, n, d)


def turned(x: Tensor) -> Tensor:
    """The last two axes of four, or of three, change places."""
    axes = tuple(range(len(x.shape)))
    return ops.transpose(x, axes=(*axes[:-2], axes[-1], axes[-2]))


def along(x: Tensor, at: np.ndarray) -> Tensor:
    """x[..., i, at[i, j]]        x: (batch, heads, n, rows)   out: (batch, heads, n, n)"""
    batch, heads, n, rows = x.shape
    table = x.reshape(batch * heads, n * rows).T  # one row for each i and distance
    found = ops.embedding(table, np.arange(n)[:, None] * rows + at)
    return ops.transpose(found, axes=(2, 0, 1)).reshape(batch, heads, n, n)


def span(c: DebertaConfig) -> int:
    """Rows of the table of distances, each way."""
    return c.position_buckets or c.max_relative_positions or c.n_positions


def distances(n: int, c: DebertaConfig) -> np.ndarray:
    """δ(i, j): the row of the table for query i and key j, (n, n)."""
    away = np.arange(n)[:, None] - np.arange(n)
    if c.position_buckets:
        away = bucket(away, c.position_buckets, c.max_relative_positions or c.n_positions)
    at: np.ndarray = np.clip(away + span(c), 0, 2 * span(c) - 1)
    return at


def bucket(away: np.ndarray, size: int, most: int) -> np.ndarray:
    """Distances up to size / 2 as they are; then ever more of them alike, by their logarithm.

    The largest of all, most - 1, is size - 1; one beyond it is more, and `distances` cuts it off.
    """
    middle = size // 2
    far = np.log(np.maximum(np.abs(away), middle) / middle) / math.log((most - 1) / middle)
    far = middle + np.ceil(far * (middle - 1)).astype(int)
    found: np.ndarray = np.where(np.abs(away) <= middle, away, np.sign(away) * far)
    return found


class Conv(Module):
    """ln(y + f(W x of the tokens around + b))        x: what the blocks start from, y: their first

    W: (d, tokens · d), a Linear over neighbours that lie side by side; beyond the ends, and where
    there is padding, they are 0.
    """

    def __init__(self, c: DebertaConfig, *, rng: np.random.Generator, dtype: Any) -> None:
        self.size, self.act = c.conv_kernel_size, c.conv_act
        self.mix = Linear(c.conv_kernel_size * c.d_model, c.d_model, std=0.02, rng=rng, dtype=dtype)
        self.ln = LayerNorm(c.d_model, c.eps, dtype=dtype)
        self.drop = Dropout(c.dropout, rng=rng)

    def forward(self, x: Tensor, y: Tensor, mask: Any = None) -> Tensor:
        (batch, n, d), side = x.shape, self.size // 2
        if mask is not None:
            x = x * asarray(np.asarray(mask).astype(bool).astype(str(x.dtype)))[..., None]
        beyond = xp.zeros((batch, side, d), x.dtype)
        wide = ops.concat(beyond, x, beyond, axis=1)
        around = ops.concat(*(wide[:, i : i + n] for i in range(self.size)), axis=2)
        mixed = self.drop(self.mix(around))
        z = ops.tanh(mixed) if self.act == "tanh" else ops.gelu(mixed, approximate="none")
        return self.ln(y + z)
