"""Llama (Touvron et al. 2023): a pre-norm decoder with RMSNorm, rotary positions and SwiGLU.

Also SmolLM2, which has the same parts, and Qwen2, which adds biases to q, k and v. In grouped-query
attention (Ainslie et al. 2023) several heads of q share one head of k and v. No position is added
to the tokens' vectors: each layer turns q and k by angles that grow with the position, so a score
depends on the distance of its two tokens alone (Su et al. 2021).
"""
from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops, slots
from ..backend import Rng, generator
from ..checks import describe, real
from ..nn import Dropout, Embedding, Linear, Module, RMSNorm
from ..tensor import Tensor
from ..words import our_words
from .cache import Cache, positions
from .config import ModelConfig
from .decoder import Decoder
from .transformer import Block, Seam


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """The sizes of a Llama; the defaults are SmolLM2-135M (Allal et al. 2025).

    n_kv_heads   heads of k and v; n_heads is a multiple of it
    eps          of every norm
    rope_theta   the base of the rotary angles (see ops.rotary)
    tied         the head is the token table; False: it has a matrix of its own
    qkv_bias     q, k and v have biases
    """

    vocab_size: int = 49152
    n_positions: int = 8192
    d_model: int = 576
    n_layers: int = 30
    n_heads: int = 9
    d_ff: int = 1536
    n_kv_heads: int = 3
    eps: float = 1e-5
    rope_theta: float = 100000.0
    tied: bool = True
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._integers(1, "n_kv_heads")
        who, heads = type(self).__name__, self.n_heads
        self._set(**{name: real(who, name, getattr(self, name), "(0, inf)")
                     for name in ("eps", "rope_theta")})
        for name in ("tied", "qkv_bias"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{who}: {name} must be True or False, not {describe(value)}")
        if heads % self.n_kv_heads:
            raise ValueError(
                f"{who}: n_heads {heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.d_model // heads % 2:
            raise ValueError(
                f"{who}: d_model {self.d_model} gives each of {heads} heads an odd number of "
                "features: rotary positions turn pairs, so it must be even")

    @property
    def kv_width(self) -> int:
        return self.d_model // self.n_heads * self.n_kv_heads

    def linears(self) -> dict[str, tuple[int, int]]:
        up, kv = super().linears()["up"], (self.kv_width, self.d_model)
        return super().linears() | {"k": kv, "v": kv, "gate": up}


class Attention(Module):
    """o(softmax(turn(q(x)) turn(k(x))ᵀ / √d_head) v(x)); k and v have n_kv_heads heads."""

    def __init__(
        self, c: LlamaConfig, *, std_out: float, rng: np.random.Generator, dtype: Any) -> None:
        self.n_heads, self.n_kv_heads, self.theta = c.n_heads, c.n_kv_heads, c.rope_theta
        how: Any = {"bias": c.qkv_bias, "std": 0.02, "rng": rng, "dtype": dtype}
        self.q = Linear(c.d_model, c.d_model, **how)
        self.k = Linear(c.d_model, c.kv_width, **how)
        self.v = Linear(c.d_model, c.kv_width, **how)
        self.o = Linear(c.d_model, c.d_model, **how | {"bias": False, "std": std_out})

    def forward(self, x: Tensor, cache: Cache | None = None, mask: Any = None) -> Tensor:
        """mask: (batch, tokens), on the host, False for padding; None: no padding."""
        at = positions(x, [cache] if cache else None, mask)
        turn = {"theta": self.theta, "start": at.start if isinstance(at, slice) else at}
        q = ops.rotary(self.q(x), heads=self.n_heads, **turn)       # (batch, tokens, d_model)
        k = ops.rotary(self.k(x), heads=self.n_kv_heads, **turn)    # (batch, tokens, kv_width)
        v = self.v(x)                                               # (batch, tokens, kv_width)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.o(ops.attention(
            q, k, v, heads=self.n_heads, kv_heads=self.n_kv_heads, mask=mask))


class MLP(Module):
    """down(silu(gate(x)) · up(x))        x: (..., d_model)   out: (..., d_model)"""

    def __init__(
        self, c: LlamaConfig, *, std_out: float, rng: np.random.Generator, dtype: Any) -> None:
        (d_ff, d), how = c.linears()["up"], {"bias": False, "rng": rng, "dtype": dtype}
        self.gate = Linear(d, d_ff, std=0.02, **how)
        self.up = Linear(d, d_ff, std=0.02, **how)
        self.down = Linear(d_ff, d, std=std_out, **how)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.swiglu(self.gate(x), self.up(x)))


class LlamaBlock(Block):
    """x + attn(ln1(x)), then x + mlp(ln2(x)), with RMSNorm."""

    def __init__(self, c: LlamaConfig, *, rng: np.random.Generator, dtype: Any) -> None:
        how: Any = {"std_out": 0.02 / math.sqrt(2 * c.n_layers), "rng": rng, "dtype": dtype}
        self.ln1 = RMSNorm(c.d_model, c.eps, dtype=dtype)
        self.attn = Attention(c, **how)
        self.ln2 = RMSNorm(c.d_model, c.eps, dtype=dtype)
        self.mlp = MLP(c, **how)
        self.drop = Dropout(c.dropout, rng=rng)


class Llama(Decoder):
    """ids (batch, tokens), integers on the host -> logits (batch, tokens, vocab_size).
    recompute: in training, compute each block's activations again instead of keeping them.
    """

    @our_words
    def __init__(
        self, config: LlamaConfig, *, rng: Rng = None, dtype: Any = "float32",
        recompute: bool = False) -> None:
        c, rng = config, generator(rng)
        self.config, self.recompute = config, recompute
        self.tokenizer: Any = None  # set by the caller or by load_model
        self.tok = Embedding(c.vocab_size, c.d_model, rng=rng, dtype=dtype)
        self.blocks = [LlamaBlock(c, rng=rng, dtype=dtype) for _ in range(c.n_layers)]
        self.ln_f = RMSNorm(c.d_model, c.eps, dtype=dtype)
        self.head = None if c.tied else Linear(
            c.d_model, c.vocab_size, bias=False, std=0.02, rng=rng, dtype=dtype)
        self.drop = Dropout(c.dropout, rng=rng)
        self.embed, self.through = Seam(), Seam()

    @classmethod
    @our_words
    def from_gguf(cls, path: str | os.PathLike[str], *, dtype: Any = "float32") -> Llama:
        """Return the model in a .gguf file, with dropout off and with its tokenizer.

        Quantised numbers are widened, a piece at a time. Raises ValueError, with all names, for
        what is missing, unknown or of another shape, and for settings that are not computed here.
        """
        model: Llama = slots.interop("load_gguf")(path, dtype)
        return model

    def scores(self, x: Tensor) -> Tensor:
        """Return a score for each word, of the tied head or of its own."""
        return super().scores(x) if self.head is None else self.head(x)
