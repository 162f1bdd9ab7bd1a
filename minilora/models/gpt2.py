"""GPT-2 (Radford et al. 2019): a pre-norm decoder with learned positions and a tied head."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..backend import Rng, generator
from ..nn import Dropout, Embedding, LayerNorm
from ..tensor import Tensor
from ..words import our_words
from .config import ModelConfig
from .decoder import Decoder
from .transformer import Block, Seam


@dataclass(frozen=True)
class GPT2Config(ModelConfig):
    """The sizes of a GPT-2; the defaults are GPT-2 small."""

    vocab_size: int = 50257
    n_positions: int = 1024
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12


class GPT2(Decoder):
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

    def placed(self, x: Tensor, at: Any) -> Tensor:
        """Add the learned positions."""
        return x + self.pos(at)
