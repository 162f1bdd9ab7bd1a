"""The shared parts of encoders: the post-norm block, the sum of embeddings, and the two heads.

All parts are BERT's (Devlin et al. 2019, §3 and §4.1), unless a family overrides them.
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
from .transformer import MLP, Attention, Seam, Transformer


class Block(Module):
    """ln1(x + attn(x)), then ln2(x + mlp(x)): post-norm (Vaswani et al. 2017, §3.1), exact GELU.

    attn: the family's attention; it gets all arguments of forward.
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
    """E ln(gelu(dense(x))) + b, a score for each word; E is the token table (§3.1, task 1).

    x: (batch, tokens, d) -> (batch, tokens, vocab_size)
    """

    def __init__(self, c: EncoderConfig, *, rng: np.random.Generator, dtype: Any) -> None:
        self.dense = Linear(c.d_model, c.d_model, std=0.02, rng=rng, dtype=dtype)
        self.ln = LayerNorm(c.d_model, c.eps, dtype=dtype)
        self.b = Parameter(xp.zeros(c.vocab_size, dtype=dtype))

    def forward(self, x: Tensor, tok: Embedding) -> Tensor:
        return tok.project(self.ln(ops.gelu(self.dense(x), approximate="none"))) + self.b


class Pooler(Module):
    """f(dense(x of the first token)), a vector for each sequence (§3.1, task 2, with f = tanh).

    x: (batch, tokens, d) -> (batch, d)
    """

    def __init__(
        self, c: EncoderConfig, f: Any, *, rng: np.random.Generator, dtype: Any
    ) -> None:
        self.f = f
        self.dense = Linear(c.d_model, c.d_model, std=0.02, rng=rng, dtype=dtype)

    def forward(self, x: Tensor, tok: Embedding) -> Tensor:
        vectors: Tensor = self.f(self.dense(x[:, 0]))
        return vectors


class Classifier(Module):
    """out(f(dense(x of the first token))), a score for each class (§4.1, with f = tanh).

    twice: apply dropout before `dense` too.   x: (batch, tokens, d) -> (batch, num_labels)
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


class Encoder(Transformer):
    """ids (batch, tokens), integers on the host -> logits (batch, tokens, vocab_size), or
    (batch, num_labels) if the config has num_labels. With head="pooler": a vector for each sequence
    (batch, d_model); with head="none": what `encode` returns.

    recompute: in training, compute each block's activations again instead of keeping them.
    Dropout applies to the embeddings, to each half block's output and in the head. Unlike in BERT,
    it does not apply to the attention weights.
    """

    pooling: Any = staticmethod(ops.tanh)  # f in the classifier
    drops_twice = False  # its `twice`

    @our_words
    def __init__(
        self, config: EncoderConfig, *, rng: Rng = None, dtype: Any = "float32",
        recompute: bool = False,
    ) -> None:
        c, rng = config, generator(rng)
        self.config, self.recompute = config, recompute
        self.tokenizer: Any = None  # set by the caller or by load_model
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
        self.head: Any = None
        if c.num_labels:
            self.head = Classifier(c, self.pooling, self.drops_twice, rng=rng, dtype=dtype)
        elif c.head == "pooler":
            self.head = Pooler(c, self.pooling, rng=rng, dtype=dtype)
        elif c.head == "words":
            self.head = MaskedLM(c, rng=rng, dtype=dtype)

    def forward(self, ids: Any, mask: Any = None, types: Any = None) -> Tensor:
        """mask: (batch, tokens), on the host, 1 for a token, 0 for padding; None: no padding.
        types: (batch, tokens), the type of each token; None: all have type 0.
        """
        x = self.encode(ids, mask, types)
        return x if self.head is None else self.head(x, self.tok)

    def encode(self, ids: Any, mask: Any = None, types: Any = None) -> Tensor:
        """Return the last block's output for each token, (batch, tokens, d_model)."""
        ids, mask, types = checked(type(self).__name__, self.config, ids, mask, types)
        embed, through = self.embed.around(self.vectors), self.through.around(self.stack)
        x: Tensor = through(embed(ids, mask), ids, mask, types)     # (batch, tokens, d_model)
        return x

    def vectors(self, ids: np.ndarray, mask: Given) -> Tensor:
        """Return the tokens' rows of the table."""
        rows: Tensor = self.tok(ids)
        return rows

    def stack(self, x: Tensor, ids: np.ndarray, mask: Given, types: Given) -> Tensor:
        """Add positions and types to the tokens' vectors, normalize, and run all blocks."""
        if self.pos is not None:
            x = x + self.pos(self.positions(ids, mask))         # (batch, tokens, d_model)
        if self.types is not None:
            x = x + self.types(slice(0, 1) if types is None else types)
        return self.run_blocks(self.drop(self.ln_e(x)), mask)   # (batch, tokens, d_model)

    def run_blocks(self, x: Tensor, mask: Given) -> Tensor:
        """Run all blocks in order."""
        for block in self.blocks:
            x = self.run(block, x, mask=mask)
        return x

    def run(self, block: Block, *inputs: Tensor, **how: Any) -> Tensor:
        return recomputed(block, *inputs, **how) if self.recompute else block(*inputs, **how)

    def rows(self) -> int:
        """Return the number of rows of the position table; 0: no table."""
        return self.config.n_positions

    def positions(self, ids: np.ndarray, mask: Given) -> Any:
        """Return the rows of that table to add: 0, 1, 2, ..., padding included."""
        return slice(0, ids.shape[1])

    def attention(self, rng: np.random.Generator, dtype: Any) -> Module:
        """Create the attention of one block."""
        c = self.config
        return Attention(c.d_model, c.n_heads, causal=False, rng=rng, dtype=dtype)
