"""The parts of every transformer: attention, the MLP, and the pre-norm block."""
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import ops, slots
from ..nn import Dropout, LayerNorm, Linear, Module
from ..tensor import Tensor
from ..words import our_words
from .cache import Cache

if TYPE_CHECKING:
    from pathlib import Path


class Seam(Module):
    """A place in the forward pass for an adapter. Without one, it changes nothing.

    Each model has two: `embed`, around ids -> vectors, and `through`, around positions and blocks.
    """

    def around(self, inner: Any) -> Any:
        """The function `inner` with the adapters around it: here, `inner` itself."""
        return inner

    def window(self, positions: int, tokens: int) -> int:
        """Return the number of the model's positions that are left for given tokens.

        tokens: how many must be read together; an adapter raises ValueError if they do not fit.
        """
        return positions

class Transformer(Module):
    """A whole model, which other packages can write and read (minilora/interop/checkpoints.py)."""

    @classmethod
    @our_words
    def from_pretrained(cls, folder: str | os.PathLike[str], *, dtype: Any = "float32") -> Self:
        """Return the model in a folder as Hugging Face lays it out, with dropout off.

        folder: a path, or a name on the hub. Raises ValueError for what is missing, unknown or of
        another shape, and for settings that this family does not compute.
        """
        model: Self = slots.interop("load")(folder, cls, dtype)
        return model
    @our_words
    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write a folder that `transformers` reads; return its path. Merge adapters first."""
        path: Path = slots.interop("save")(self, folder)
        return path

class Attention(Module):
    """Multi-head attention: o(softmax(q(x) k(x)ᵀ / √d_head) v(x)), four Linears (§4.2's Wq..Wo)."""

    def __init__(
        self, d_model: int, n_heads: int, *, causal: bool = True, std: float = 0.02,
        std_out: float | None = None, rng: np.random.Generator, dtype: Any) -> None:
        self.n_heads, self.causal = n_heads, causal
        self.q = Linear(d_model, d_model, std=std, rng=rng, dtype=dtype)
        self.k = Linear(d_model, d_model, std=std, rng=rng, dtype=dtype)
        self.v = Linear(d_model, d_model, std=std, rng=rng, dtype=dtype)
        self.o = Linear(d_model, d_model, std=std_out or std, rng=rng, dtype=dtype)

    def forward(self, x: Tensor, cache: Cache | None = None, mask: Any = None) -> Tensor:
        """mask: (batch, tokens), on the host, False for padding; None: no padding."""
        q, k, v = self.q(x), self.k(x), self.v(x)                   # (batch, tokens, d_model) each
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.o(
            ops.attention(q, k, v, heads=self.n_heads, causal=self.causal, mask=mask))

class MLP(Module):
    """down(gelu(up(x)))        x: (..., d_model)   out: (..., d_model)"""

    def __init__(
        self, d_model: int, d_ff: int, *, std: float = 0.02, std_out: float | None = None,
        approximate: str = "tanh", rng: np.random.Generator, dtype: Any) -> None:
        self.approximate = approximate
        self.up = Linear(d_model, d_ff, std=std, rng=rng, dtype=dtype)
        self.down = Linear(d_ff, d_model, std=std_out or std, rng=rng, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.gelu(self.up(x), approximate=self.approximate))

class Block(Module):
    """x + attn(ln1(x)), then x + mlp(ln2(x)): pre-norm, as in GPT-2.
    causal: each token attends to itself and earlier ones, as in a decoder; False: to all tokens.
    """

    def __init__(
        self, d_model: int, n_heads: int, d_ff: int, *, causal: bool = True, dropout: float = 0.0,
        std_out: float | None = None, rng: np.random.Generator, dtype: Any) -> None:
        self.ln1: Module = LayerNorm(d_model, dtype=dtype)
        self.attn: Module = Attention(
            d_model, n_heads, causal=causal, std_out=std_out, rng=rng, dtype=dtype)
        self.ln2: Module = LayerNorm(d_model, dtype=dtype)
        self.mlp: Module = MLP(d_model, d_ff, std_out=std_out, rng=rng, dtype=dtype)
        self.drop = Dropout(dropout, rng=rng)

    def forward(self, x: Tensor, cache: Cache | None = None, mask: Any = None) -> Tensor:
        x = x + self.drop(self.attn(self.ln1(x), cache, mask))      # (batch, tokens, d_model)
        return x + self.drop(self.mlp(self.ln2(x)))                 # (batch, tokens, d_model)
