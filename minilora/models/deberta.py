"""DeBERTa v2 (He et al. 2021): attention with separate vectors for content and distance.

Content and distance of a token are two vectors (§3.1). The score of query i and key j is

    q_i · k_j  +  q_i · r_k[δ(i, j)]  +  k_j · r_q[δ(i, j)]       content-content, c2p, p2c

over √(d_head · terms). r_k and r_q are computed from one table of distances, which all blocks
share. This is eq. 4, except that its third term has δ(j, i): the transformers library, and so the
published weights, use δ(i, j). Version 2 adds buckets of distances (`bucket`) and the convolution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..backend import Rng, asarray, generator, xp
from ..checks import choice, describe
from ..nn import Dropout, Embedding, LayerNorm, Linear, Module
from ..ops.neural import padding
from ..tensor import Tensor
from .encoder import Encoder
from .inputs import EncoderConfig, Given
from .transformer import Attention


@dataclass(frozen=True)
class DebertaConfig(EncoderConfig):
    """The sizes of a DeBERTa v2; the defaults are XXL (He et al. 2021), 1.5 billion parameters.

    pos_att_type            scores that depend on the distance: "c2p", through the query, "p2c",
                            through the key; () is BERT's attention
    share_att_key           q and k also project the table of distances; False: layers of its own
    position_buckets        buckets of distances in each direction; 0: one for each distance
    max_relative_positions  the largest distance; 0: n_positions
    norm_rel_ebd            apply a layer norm to the table of distances
    position_biased_input   also add positions to the tokens, as in BERT
    conv_kernel_size        the width of the convolution beside the first block; 0: none
    conv_act                its activation, "tanh" or "gelu"
    z_steps                 how often the last block runs (enhanced mask decoder); 0 and 1: once
    """

    vocab_size: int = 128100
    n_positions: int = 512
    d_model: int = 1536
    n_layers: int = 48
    n_heads: int = 24
    eps: float = 1e-7
    pos_att_type: Sequence[str] = ("c2p", "p2c")
    share_att_key: bool = True
    position_buckets: int = 256
    max_relative_positions: int = 0
    norm_rel_ebd: bool = True
    position_biased_input: bool = False
    conv_kernel_size: int = 3
    conv_act: str = "gelu"
    z_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        who, kinds = "DebertaConfig", self.pos_att_type
        self._integers(
            0, "position_buckets", "max_relative_positions", "conv_kernel_size", "z_steps")
        for name in ("share_att_key", "norm_rel_ebd", "position_biased_input"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{who}: {name} must be True or False, not {describe(value)}")
        if not isinstance(kinds, list | tuple) or not all(kind in ("c2p", "p2c") for kind in kinds):
            raise ValueError(
                f'{who}: pos_att_type must contain only "c2p" and "p2c", not {describe(kinds)}'
            )
        self._set(pos_att_type=tuple(sorted(set(kinds))))
        choice(who, "conv_act", self.conv_act, ("tanh", "gelu"))
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise ValueError(
                f"{who}: conv_kernel_size {self.conv_kernel_size} is even: give an odd number or 0"
            )
        most = self.most
        if self.position_buckets and not 1 < self.position_buckets < 2 * (most - 1):
            raise ValueError(
                f"{who}: position_buckets {self.position_buckets} is not from 2 to "
                f"{2 * most - 3}, for distances up to {most - 1}: 0 gives each its own row"
            )

    @property
    def most(self) -> int:
        """A bound: every distance is smaller, in both directions."""
        return self.max_relative_positions or self.n_positions

    @property
    def span(self) -> int:
        """The rows of the table of distances for each direction."""
        return self.position_buckets or self.most


class Deberta(Encoder):
    """ids (batch, tokens) -> logits. `rel` is the table of distances, `ln_r` the norm over it.

    z_steps is the enhanced mask decoder (§3.2) as in the transformers library: the last block runs
    again, and no absolute positions are added to its queries.
    """

    config: DebertaConfig

    def __init__(
        self, config: DebertaConfig, *, rng: Rng = None, dtype: Any = "float32",
        recompute: bool = False,
    ) -> None:
        c, rng = config, generator(rng)
        super().__init__(c, rng=rng, dtype=dtype, recompute=recompute)
        self.rel = self.ln_r = None
        if c.pos_att_type:
            self.rel = Embedding(2 * c.span, c.d_model, rng=rng, dtype=dtype)
            self.ln_r = LayerNorm(c.d_model, c.eps, dtype=dtype) if c.norm_rel_ebd else None
        self.conv = Conv(c, rng=rng, dtype=dtype) if c.conv_kernel_size else None

    def run_blocks(self, x: Tensor, mask: Given) -> Tensor:
        """Run all blocks, with a convolution beside the first; run the last one z_steps times."""
        first, how = x, {"at": distances(x.shape[1], self.config), "mask": mask}
        table = self.table()
        for i, block in enumerate(self.blocks):
            before, x = x, self.run(block, x, *table, **how)
            if i == 0 and self.conv is not None:
                x = self.conv(first, x, mask)
        for _ in range(1, self.config.z_steps):  # new queries, the same keys and values
            # not recomputed: `recomputed` gives no gradient to keyword arguments
            x = self.blocks[-1](x, *table, context=before, **how)
        return x

    def table(self) -> list[Tensor]:
        """Return [(1, 2 span, d)], a vector for each distance; [] if no score depends on distance.

        The first axis is the batch, because `per_row` gives each batch row its own table.
        """
        if self.rel is None:
            return []
        table = self.rel(slice(None))
        if len(table.shape) == 2:
            table = table.reshape(1, *table.shape)
        return [table if self.ln_r is None else self.ln_r(table)]

    def rows(self) -> int:
        return self.config.n_positions if self.config.position_biased_input else 0

    def attention(self, rng: np.random.Generator, dtype: Any) -> Module:
        return Disentangled(self.config, rng=rng, dtype=dtype)

    @staticmethod
    def pooling(x: Tensor) -> Tensor:
        return ops.gelu(x, approximate="none")


class Disentangled(Attention):
    """Attention whose scores depend on distance; without `pos_att_type`, as in BERT."""

    def __init__(self, c: DebertaConfig, *, rng: np.random.Generator, dtype: Any) -> None:
        super().__init__(c.d_model, c.n_heads, causal=False, rng=rng, dtype=dtype)
        self.pos_att_type = c.pos_att_type

        def layer(kind: str) -> Linear | None:
            if c.share_att_key or kind not in c.pos_att_type:
                return None
            return Linear(c.d_model, c.d_model, std=0.02, rng=rng, dtype=dtype)

        self.pos_k, self.pos_q = layer("c2p"), layer("p2c")

    def forward(  # type: ignore[override]
        self, x: Tensor, table: Tensor | None = None, *, at: np.ndarray, mask: Given = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """table: (1, 2 span, d), of distances, or None   context: input of k and v; None: x."""
        context = x if context is None else context
        q, k, v = self.q(x), self.k(context), self.v(context)
        if table is None:
            return self.o(ops.attention(q, k, v, heads=self.n_heads, causal=False, mask=mask))
        pos_k = (self.pos_k or self.k)(table) if "c2p" in self.pos_att_type else None
        pos_q = (self.pos_q or self.q)(table) if "p2c" in self.pos_att_type else None
        return self.o(disentangled(q, k, v, pos_k, pos_q, at=at, heads=self.n_heads, mask=mask))


def disentangled(
    q: Tensor, k: Tensor, v: Tensor, pos_k: Tensor | None, pos_q: Tensor | None, *,
    at: np.ndarray, heads: int, mask: Given = None,
) -> Tensor:
    """Return attention with the scores above        q, k, v: (batch, n, d)   out: (batch, n, d)

    pos_k, pos_q: (1 or batch, 2 span, d), a row for each distance, or None
    at: (n, n), the row for each query and key, on the host
    mask: as in `ops.attention`.
    """
    batch, n, d = q.shape

    def by_head(x: Tensor) -> Tensor:  # (batch, tokens, d) -> (batch, heads, tokens, d_head)
        return ops.transpose(x.reshape(*x.shape[:2], heads, d // heads), axes=(0, 2, 1, 3))

    def of_table(x: Tensor) -> Tensor:  # (1, 2 span, d) -> (1, heads, d_head, 2 span)
        return turned(by_head(x))

    Q, K, V = by_head(q), by_head(k), by_head(v)
    scores, terms = Q @ turned(K), 1
    if pos_k is not None:
        scores, terms = scores + along(Q @ of_table(pos_k), at), terms + 1
    if pos_q is not None:
        scores, terms = scores + turned(along(K @ of_table(pos_q), at.T)), terms + 1
    scores = scores * (1 / math.sqrt(d // heads * terms))  # (batch, heads, n, n)
    if mask is not None:
        scores = scores + padding(mask, batch, n, q.dtype)  # type: ignore[no-untyped-call]
    return ops.transpose(ops.softmax(scores) @ V, axes=(0, 2, 1, 3)).reshape(batch, n, d)


def turned(x: Tensor) -> Tensor:
    """Swap the last two of four axes."""
    return ops.transpose(x, axes=(0, 1, 3, 2))


def along(x: Tensor, at: np.ndarray) -> Tensor:
    """Return x[..., i, at[i, j]], at: (n, n)        x: (batch, heads, n, rows)

    out: (batch, heads, n, n). A lookup in a table with one row for each i and distance.
    """
    batch, heads, n, rows = x.shape
    table = x.reshape(batch * heads, n * rows).T
    scores = ops.embedding(table, np.arange(n)[:, None] * rows + at)    # (n, n, batch · heads)
    return ops.transpose(scores, axes=(2, 0, 1)).reshape(batch, heads, n, n)


@functools.lru_cache(maxsize=4)  # all steps of a training run use the same array
def distances(n: int, c: DebertaConfig) -> np.ndarray:
    """Return δ(i, j), (n, n): the row of the table for query i and key j."""
    away = np.arange(n)[:, None] - np.arange(n)
    if c.position_buckets:
        away = bucket(away, c.position_buckets, c.most)
    at: np.ndarray = np.clip(away + c.span, 0, 2 * c.span - 1)
    at.setflags(write=False)  # all callers share it
    return at


def bucket(away: np.ndarray, size: int, most: int) -> np.ndarray:
    """Return distances up to size / 2 unchanged, and larger ones in buckets by their logarithm.

    The largest distance, most - 1, becomes size - 1. `distances` clips those beyond it.
    """
    middle = size // 2
    far = np.log(np.maximum(np.abs(away), middle) / middle) / math.log((most - 1) / middle)
    far = middle + np.ceil(far * (middle - 1)).astype(int)
    buckets: np.ndarray = np.where(np.abs(away) <= middle, away, np.sign(away) * far)
    return buckets


class Conv(Module):
    """ln(y + f(W [neighbours of x] + b))        x: input of the first block, y: its output

    W: (d, tokens · d), a Linear over the concatenated neighbours. Neighbours beyond the ends, and
    padding, are 0.
    """

    def __init__(self, c: DebertaConfig, *, rng: np.random.Generator, dtype: Any) -> None:
        self.size, self.act = c.conv_kernel_size, c.conv_act
        self.mix = Linear(c.conv_kernel_size * c.d_model, c.d_model, std=0.02, rng=rng, dtype=dtype)
        self.ln = LayerNorm(c.d_model, c.eps, dtype=dtype)
        self.drop = Dropout(c.dropout, rng=rng)

    def forward(self, x: Tensor, y: Tensor, mask: Given = None) -> Tensor:
        (batch, n, d), side = x.shape, self.size // 2
        if mask is not None:
            x = x * asarray(mask.astype(str(x.dtype)))[..., None]
        beyond = xp.zeros((batch, side, d), dtype=x.dtype)
        wide = ops.concat(beyond, x, beyond, axis=1)
        around = ops.concat(*(wide[:, i : i + n] for i in range(self.size)), axis=2)
        mixed = self.drop(self.mix(around))
        z = ops.tanh(mixed) if self.act == "tanh" else ops.gelu(mixed, approximate="none")
        return self.ln(y + z)
