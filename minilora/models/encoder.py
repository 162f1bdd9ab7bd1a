"""What encoders share: the post-norm block, the sum of embeddings, and the two heads.

Everything is BERT's (Devlin et al. 2019, §3 and §4.1), until a family says otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..backend import Rng, generator, xp
from ..nn import Dropout, Embedding, LayerNorm, Linear, Module, Parameter
from ..tensor import Tensor
from ..words import our_words
from .inputs import EncoderConfig, Given, checked
from .recompute import recomputed
from .transformer import MLP, Attention, Seam


class Block(Module):
    """ln1(x + attn(x)), then ln2(x + mlp(x)): post-norm (Vaswani et al. 2017, §3.1), GELU exact.

    attn: the attention of the family, which gets all that forward is given.
    x: (batch, tokens, d) -> (batch, tokens, d)
    """

    def __init__(
        self, attn: Module, c: EncoderConfig, *, rng: np.random.Generator, dtype: Any
    ) -> None:
        self.attn = attn
        self.ln1 = LayerNorm(c.d_model, c.eps, dtype=dtype)
        self.mlp = MLP(c.d_model, c.d_ff or 4 * c.d_model, approximate="none", rng=rng, dtype=dtype)
        self.ln2 = LayerNorm(c.d_model, c.eps, dtype=dtype)
        self.drop = Dropout(c.dropout, rng=rng)

    def forward(self, x: Tensor, *also: Tensor, **how: Any) -> Tensor:
        x = self.ln1(x + self.drop(self.attn(x, *also, **how)))
        return self.ln2(x + self.drop(self.mlp(x)))


class MaskedLM(Module):
    """E ln(gelu(dense(x))) + b, E the table of tokens: a score for each word (§3.1, task 1).

    x: (batch, tokens, d) -> (batch, tokens, vocab_size)
    """

    def __init__(self, c: EncoderConfig, *, rng: np.random.Generator, dtype: Any) -> None:
        self.dense = Linear(c.d_model, c.d_model, std=0.02, rng=rng, dtype=dtype)
        self.ln = LayerNorm(c.d_model, c.eps, dtype=dtype)
        self.b = Parameter(xp.zeros(c.vocab_size, dtype))

    def forward(self, x: Tensor, tok: Embedding) -> Tensor:
        return tok.project(self.ln(ops.gelu(self.dense(x), approximate="none"))) + self.b


class Classifier(Module):
    """out(f(dense(x of the first token))): a score for each class (§4.1, with f = tanh).

    twice: dropout before `dense` as well as after f.   x: (batch, tokens, d) -> (batch, num_labels)
    """

    def __init__(
        self, c: EncoderConfig, f: Any, twice: bool, *, rng: np.random.Generator, dtype: Any
    ) -> None:
        self.f, self.twice = f, twice
        self.dense = Linear(c.d_model, c.d_model, std=0.02, rng=rng, dtype=dtype)
        self.drop = Dropout(c.dropout, rng=rng)
        self.out = Linear(c.d_model, c.num_labels, std=0.02, rng=rng, dtype=dtype)

    def forward(self, x: Tensor, tok: Embedding) -> Tensor:
        first = self.drop(x[:, 0]) if self.twice else x[:, 0]
        return self.out(self.drop(self.f(self.dense(first))))


class Encoder(Module):
    """ids (batch, tokens), integers on the host -> logits (batch, tokens, vocab_size); where the
    config has num_labels, (batch, num_labels).

    recompute: in training, each block's activations are computed again instead of kept.
    Dropout is on the embeddings, on what each half block adds and in the head, but not, as in BERT,
    on the attention's weights.
    """

    pooling: Any = staticmethod(ops.tanh)  # f in the head for classes
    drops_twice = False  # in that head

    @our_words
    def __init__(
        self, config: EncoderConfig, *, rng: Rng = None, dtype: Any = "float32",
        recompute: bool = False,
    ) -> None:
        c, rng = config, generator(rng)
        self.config, self.recompute = config, recompute
        self.tokenizer: Any = None  # whoever has one puts it here
        self.tok = Embedding(c.vocab_size, c.d_model, rng=rng, dtype=dtype)
        rows = self.rows()
        self.pos = Embedding(rows, c.d_model, rng=rng, dtype=dtype) if rows else None
        self.types = Embedding(c.n_types, c.d_model, rng=rng, dtype=dtype) if c.n_types else None
        self.ln_e = LayerNorm(c.d_model, c.eps, dtype=dtype)
        self.blocks = [
            Block(self.attention(rng, dtype), c, rng=rng, dtype=dtype) for _ in range(c.n_layers)
        ]
        self.drop = Dropout(c.dropout, rng=rng)
        self.embed, self.through = Seam(), Seam()
        self.head: Any = (
            Classifier(c, self.pooling, self.drops_twice, rng=rng, dtype=dtype)
            if c.num_labels
            else MaskedLM(c, rng=rng, dtype=dtype)
        )

    def forward(self, ids: Any, mask: Any = None, types: Any = None) -> Tensor:
        """mask: (batch, tokens), on the host, 1 where a token is real, 0 where it is padding; None:
        all are real.   types: (batch, tokens), which kind of token each is; None: all of kind 0.
        """
        scores: Tensor = self.head(self.encode(ids, mask, types), self.tok)
        return scores

    def encode(self, ids: Any, mask: Any = None, types: Any = None) -> Tensor:
        """The last block's output for each token, (batch, tokens, d_model)."""
        ids, mask, types = checked(type(self).__name__, self.config, ids, mask, types)
        embed, through = self.embed.around(self.vectors), self.through.around(self.stack)
        x: Tensor = through(embed(ids, mask), ids, mask, types)     # (batch, tokens, d_model)
        return x

    def vectors(self, ids: np.ndarray, mask: Given) -> Tensor:
        """Return the tokens' rows of the table."""
        rows: Tensor = self.tok(ids)
        return rows

    def stack(self, x: Tensor, ids: np.ndarray, mask: Given, types: Given) -> Tensor:
        """Add positions and types to the tokens' vectors, normalize, then run all blocks."""
        if self.pos is not None:
            x = x + self.pos(self.positions(ids, mask))
        if self.types is not None:
            x = x + self.types(slice(0, 1) if types is None else types)
        return self.run_blocks(self.drop(self.ln_e(x)), mask)

    def run_blocks(self, x: Tensor, mask: Given) -> Tensor:
        """All blocks, one after the other."""
        for block in self.blocks:
            x = self.run(block, x, mask=mask)
        return x

    def run(self, block: Block, *inputs: Tensor, **how: Any) -> Tensor:
        return recomputed(block, *inputs, **how) if self.recompute else block(*inputs, **how)

    def rows(self) -> int:
        """Of the table of positions; 0: there is none."""
        return self.config.n_positions

    def positions(self, ids: np.ndarray, mask: Given) -> Any:
        """Which rows of that table are added: 0, 1, 2 ..., whatever is padding."""
        return slice(0, ids.shape[1])

    def attention(self, rng: np.random.Generator, dtype: Any) -> Module:
        """A block's, as the family has it."""
        c = self.config
        return Attention(c.d_model, c.n_heads, causal=False, rng=rng, dtype=dtype)
