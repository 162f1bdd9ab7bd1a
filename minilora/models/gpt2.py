"""GPT-2 (Radford et al. 2019): a pre-norm decoder with learned positions and a tied head."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Rng, generator
from ..nn import Dropout, Embedding, LayerNorm
from ..tensor import Tensor
from ..words import our_words
from .cache import Cache
from .config import ModelConfig
from .recompute import recomputed
from .transformer import Block, Seam, Transformer


@dataclass(frozen=True)
class GPT2Config(ModelConfig):
    """The sizes of a GPT-2; the defaults are GPT-2 small."""

    vocab_size: int = 50257
    n_positions: int = 1024
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12


class GPT2(Transformer):
    """ids (batch, tokens), integers on the host -> logits (batch, tokens, vocab_size).
    recompute: in training, compute each block's activations again instead of keeping them.
    """

    @our_words
    def __init__(
        self, config: GPT2Config, *, rng: Rng = None, dtype: Any = "float32",
        recompute: bool = False) -> None:
        c, rng = config, generator(rng)
        self.config, self.recompute = config, recompute
        self.tokenizer: Any = None  # set by the caller or by load_model
        self.tok = Embedding(c.vocab_size, c.d_model, rng=rng, dtype=dtype)
        self.pos = Embedding(c.n_positions, c.d_model, rng=rng, dtype=dtype)
        self.blocks = [
            Block(c.d_model, c.n_heads, c.d_ff or 4 * c.d_model, dropout=c.dropout,
                  std_out=0.02 / math.sqrt(2 * c.n_layers), rng=rng, dtype=dtype)
            for _ in range(c.n_layers)]
        self.ln_f = LayerNorm(c.d_model, dtype=dtype)
        self.drop = Dropout(c.dropout, rng=rng)
        self.embed, self.through = Seam(), Seam()

    def forward(self, ids: Any, cache: Sequence[Cache] | None = None) -> Tensor:
        """With a `cache` (see `new_cache`), ids continue the tokens in it."""
        ids = np.asarray(ids)
        start, most = cache[0].n if cache else 0, self.config.n_positions
        if ids.dtype.kind not in "iu" or ids.ndim != 2 or not 0 < start + ids.shape[1] <= most:
            long = ids.ndim == 2 and start + ids.shape[1] > most
            raise ValueError(
                f"GPT2: ids must be integers (batch, tokens), 1 to {most} tokens, not {ids.dtype} "
                f"{ids.shape}" + (f" after {start}" if start else "") + (
                    f": cut each text, as ids[:, :{most}]" + ", and start a new cache" * bool(start)
                    if long else ": encode a text as model.tokenizer.encode(text)[None]"))
        embed, through = self.embed.around(self.vectors), self.through.around(self.stack)
        x = through(embed(ids, cache), cache)                       # (batch, tokens, d_model)
        return self.tok.project(self.ln_f(x))                       # (batch, tokens, vocab_size)

    def vectors(self, ids: np.ndarray, cache: Sequence[Cache] | None = None) -> Tensor:
        """Return the tokens' rows of the table."""
        return self.tok(ids)

    def stack(self, x: Tensor, cache: Sequence[Cache] | None = None) -> Tensor:
        """Add positions to the tokens' vectors, and run all blocks."""
        start = cache[0].n if cache else 0
        x = self.drop(x + self.pos(slice(start, start + x.shape[1])))   # (batch, tokens, d_model)
        caches: Sequence[Any] = cache or [None] * len(self.blocks)
        for block, own in zip(self.blocks, caches, strict=True):
            x = recomputed(block, x) if self.recompute and not cache else block(x, own)
        return x

    def new_cache(self, batch: int) -> list[Cache]:
        """Return an empty key/value cache for each block."""
        c, dtype = self.config, self.ln_f.g.dtype
        return [Cache(batch, c.n_positions, c.d_model, dtype) for _ in range(c.n_layers)]
