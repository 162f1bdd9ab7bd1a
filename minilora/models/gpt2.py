"""GPT-2 (Radford et al. 2019): pre-norm decoder, learned positions, head tied to the embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Rng, generator
from ..nn import Dropout, Embedding, LayerNorm, Module
from ..recompute import recomputed
from ..tensor import Tensor
from .transformer import Block, Cache


@dataclass(frozen=True)
class GPT2Config:
    """The sizes of a GPT-2; the defaults are GPT-2 small."""

    vocab_size: int = 50257
    n_positions: int = 1024  # the longest input, in tokens
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12  # d_model is a multiple of it
    d_ff: int = 0  # 0: four times d_model
    dropout: float = 0.0  # of the embeddings and of what each half block adds

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "d_model", "n_layers", "n_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"GPT2Config: {name} is {getattr(self, name)}, must be at least 1")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"GPT2Config: d_model {self.d_model} is not a multiple of n_heads {self.n_heads}"
            )


class GPT2(Module):
    """ids (batch, tokens), integers on the host -> logits (batch, tokens, vocab_size).

    recompute: in training, each block's activations are computed again instead of kept.
    """

    def __init__(
        self, config: GPT2Config, *, rng: Rng = None, dtype: Any = "float32",
        recompute: bool = False,
    ) -> None:  # fmt: skip
        c, rng = config, generator(rng)
        self.config, self.recompute = config, recompute
        self.tokenizer: Any = None  # whoever has one puts it here
        self.tok = Embedding(c.vocab_size, c.d_model, rng=rng, dtype=dtype)
        self.pos = Embedding(c.n_positions, c.d_model, rng=rng, dtype=dtype)
        self.blocks = [
            Block(
                c.d_model, c.n_heads, c.d_ff or 4 * c.d_model, dropout=c.dropout,
                std_out=0.02 / math.sqrt(2 * c.n_layers), rng=rng, dtype=dtype,
            )
            for _ in range(c.n_layers)
        ]  # fmt: skip
        self.ln_f = LayerNorm(c.d_model, dtype=dtype)
        self.drop = Dropout(c.dropout, rng=rng)

    def forward(self, ids: Any, cache: Sequence[Cache] | None = None) -> Tensor:
        """With a `cache` (see `new_cache`), ids continue the tokens that it holds."""
        ids = np.asarray(ids)
        start = cache[0].n if cache else 0
        if ids.ndim != 2 or not 0 < start + ids.shape[1] <= self.config.n_positions:
            raise ValueError(
                f"GPT2: ids must be (batch, tokens), 1 to {self.config.n_positions} "
                f"tokens, not {ids.shape}" + (f" after {start}" if start else "")
            )
        x = self.tok(ids) + self.pos(slice(start, start + ids.shape[1]))
        x = self.drop(x)  # (batch, tokens, d_model)
        for i, block in enumerate(self.blocks):
            if self.recompute and not cache:
                x = recomputed(block, x)
            else:
                x = block(x, cache[i] if cache else None)
        return self.tok.project(self.ln_f(x))

    def new_cache(self, batch: int) -> list[Cache]:
        """An empty key/value cache for each block."""
        c = self.config
        dtype = self.ln_f.g.dtype
        return [Cache(batch, c.n_positions, c.d_model, dtype) for _ in range(c.n_layers)]
