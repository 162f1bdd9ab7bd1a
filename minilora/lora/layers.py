"""LoRA's layers: W = W0 + (alpha / r) · B A, with W0 frozen and B, A trained (§4.1)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from ..adapters.protocol import Adapter, Factors
from ..backend import Quantised, Rng, asarray, generator, xp
from ..nn import Embedding, Linear, Parameter
from ..tensor import Tensor


class LoRALinear(Adapter):
    """y = W0 x + b + scale · B A x        x: (..., k)   y: (..., d)        equation 3
    A: (r, k)   B: (d, r)   scale = alpha / r
    A and B are float32 even in a half-precision layer, which would lose most updates.
    """

    def __init__(
        self, layer: Linear | Embedding, r: int, alpha: float, *, init: str = "gaussian",
        dropout: float = 0.0, rng: Rng = None,
    ) -> None:
        d, k = self.sides(layer)
        std = self.std(r, k)
        dtype = np.promote_types(layer.dtype, "float32")
        rng, gaussian = generator(rng), init == "gaussian"
        draw = rng.standard_normal((r, k)) if gaussian else rng.uniform(-1, 1, (r, k))
        self.A = Parameter(asarray((draw * std).astype(dtype)))     # (r, k)
        self.B = Parameter(xp.zeros((d, r), dtype=dtype))           # (d, r)
        self.r, self.alpha, self.dropout = r, float(alpha), dropout
        self.rng = np.random.default_rng(rng.integers(2**63))

    def forward(self, inner: Any, x: Tensor) -> Tensor:
        mask = self.mask(x)
        if type(inner) is Linear and not isinstance(inner.W.data, Quantised):  # one op for both
            return ops.lora_linear(
                x, inner.W, inner.b, self.A, self.B, mask, scale=self.scale)
        y: Tensor = inner(x)
        return y + self.update(x if mask is None else x * mask)

    def update(self, x: Tensor) -> Tensor:
        """Return scale · B A x."""
        return ops.linear(ops.linear(x, self.A), self.B) * self.scale

    def mask(self, x: Tensor) -> Tensor | None:
        """Return the dropout mask for x; None outside training."""
        if not (self.training and self.dropout):
            return None
        mask = ops.dropout_mask(x.shape, self.dropout, self.rng, x.dtype)  # type: ignore
        return Tensor.of(mask)

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def factors(self) -> Factors:
        return [(self.scale, self.B, self.A)]

    @staticmethod
    def sides(layer: Any) -> tuple[int, int]:
        """Return (d, k), the shape of B A."""
        d, k = layer.W.shape
        return d, k

    @staticmethod
    def std(r: int, k: int) -> float:
        """Return the standard deviation of A at the start."""
        return 1 / math.sqrt(k)

    def extra_repr(self) -> str:
        return f" r={self.r} alpha={self.alpha:g}"


class LoRAEmbedding(LoRALinear):
    """W0[ids] + scale · (B A)ᵀ[ids]        W0: (n, d)   A: (r, n)   B: (d, r)
    A head that is tied to the table uses W0 + ΔW too, so it is still tied after merging.
    """

    def __init__(self, layer: Any, r: int, alpha: float, **settings: Any) -> None:
        super().__init__(layer, r, alpha, **settings)
        self.dtype = layer.dtype

    def forward(self, inner: Any, ids: Any) -> Tensor:
        y: Tensor = inner(ids)
        rows = ops.embedding(self.A.T, ids, dtype=self.dtype)       # (..., r)
        return y + ops.linear(rows, self.B) * self.scale

    def project(self, inner: Any, x: Tensor) -> Tensor:
        y: Tensor = inner(x)
        return y + ops.linear(ops.linear(x, self.B.T), self.A.T) * self.scale

    @staticmethod
    def sides(layer: Any) -> tuple[int, int]:
        n, d = layer.W.shape
        return d, n

    @staticmethod
    def std(r: int, k: int) -> float:
        return 1 / math.sqrt(r)
