"""LoRA's layers: W = W0 + (alpha / r) · B A, with W0 frozen and B, A trained (§4.1)."""
from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, asarray, current, xp
from ..backend.settings import told
from ..nn import Linear, Module, Parameter
from ..tensor import Tensor
from .config import LoRAConfig


class Adapter(Module):
    """One update ΔW = scale · B A        A: (r, k)   B: (d, r)   scale = alpha / r
    A and B are float32 in a layer of half precision too: a half would lose most updates.
    """

    def __init__(
        self, layer: LoRALayer, r: int, alpha: float, config: LoRAConfig, rng: np.random.Generator
    ) -> None:
        W, dtype = layer.base.W, np.promote_types(layer.base.dtype, "float32")
        d, k = layer.oriented(W.data).shape
        std = 1 / math.sqrt(r if isinstance(layer, LoRAEmbedding) else k)
        normal = config.init == "gaussian"
        draw = rng.standard_normal((r, k)) if normal else rng.uniform(-1, 1, (r, k))
        self.A = Parameter(asarray((draw * std).astype(dtype)))
        self.B = Parameter(xp.zeros((d, r), dtype))
        self.r, self.alpha, self.dropout = r, float(alpha), config.dropout
        self.rng, self.training = np.random.default_rng(rng.integers(2**63)), layer.training
    def forward(self, x: Tensor) -> Tensor:
        """scale · (x∘mask) Aᵀ Bᵀ, what is added to W0 x        x: (..., k)   out: (..., d)"""
        mask = self.mask(x)
        z = ops.linear(x if mask is None else x * mask, self.A)
        return ops.linear(z, self.B) * self.scale
    @property
    def scale(self) -> float:
        return self.alpha / self.r
    def mask(self, x: Tensor) -> Array | None:
        """What x is multiplied by before A: None outside training."""
        if not (self.training and self.dropout): return None
        return ops.dropout_mask(x.shape, self.dropout, self.rng, x.dtype)  # type: ignore
    def plain(self) -> Adapter: return self  # as it is saved
    def delta(self) -> Array:
        """scale · B A in float64, (d, k)."""
        return self.B.data.astype("float64") @ self.A.data.astype("float64") * self.scale
    def extra_repr(self) -> str:
        return f" r={self.r} alpha={self.alpha:g}"

class LoRALayer(Module):
    """A base layer and its named adapters, of which the active ones count."""

    def __init__(self, base: Any) -> None:
        self.base, self.training = base, base.training
        self.adapters: dict[str, Adapter] = {}
        self.active: tuple[str, ...] = ()
    def children(self) -> Iterator[tuple[str, Module | Parameter]]:
        yield "base", self.base
        yield from self.adapters.items()
    def in_use(self) -> list[Any]:
        if by_row := told("rows"): return by_row(self)  # type: ignore
        return [self.adapters[name] for name in self.active]
    def delta(self) -> Array:
        """Σ ΔW of the active adapters, float64, in W's orientation."""
        zero = xp.zeros(self.base.W.shape, "float64")
        return sum((self.oriented(adapter.delta()) for adapter in self.in_use()), zero)
    @staticmethod
    def oriented(delta: Array) -> Array:
        """Between B A's orientation and W's."""
        return delta
    def plain(self, path: str) -> tuple[Any, float]:
        """(a plain layer with W0 + ΔW, the share of ΔW that rounding to the layer's dtype lost).
        Added in float64, rounded once, to what the layer computes in: of a W0 that is stored
        narrower, the rounding would be coarser than ΔW. Raises FloatingPointError where the result
        is not finite in that dtype.
        """
        W0, delta, dtype, read = self.base.W.data, self.delta(), self.base.dtype, current().read
        wide = W0.astype("float64") + delta
        if not read(abs(wide).max(), 0.0) <= float(xp.finfo(dtype).max):  # false for nan, too
            raise FloatingPointError(f"merge: {path}: W0 + ΔW is not finite in {dtype}: the model "
                                     "is left as it was; look at A, B, alpha")
        W = wide.astype(dtype)
        lost = (W.astype("float64") - W0.astype("float64")) - delta
        size, gone = (read(xp.sqrt((x * x).sum()), 0.0) for x in (delta, lost))
        layer = copy(self.base)
        layer.W = Parameter(W, requires_grad=False)
        return layer, gone / size if size else 0.0

class LoRALinear(LoRALayer):
    """y = W0 x + b + Σ scale · B A x        x: (..., k)   y: (..., d)   equation 3"""

    def forward(self, x: Tensor) -> Tensor:
        used = self.in_use()
        if [type(a) for a in used] == [Adapter] and type(self.base) is Linear:  # as one op
            (a,), W, b = used, self.base.W, self.base.b
            return ops.lora_linear(x, W, b, a.A, a.B, a.mask(x), scale=a.scale)
        y: Tensor = self.base(x)
        for adapter in used:
            y = y + adapter(x)
        return y

class LoRAEmbedding(LoRALayer):
    """W0[ids] + Σ scale · (B A)ᵀ[ids]        A: (r, n)   B: (d, r)
    One table, one ΔW: a head tied to the table reads W0 + ΔW too, so merging keeps the tie.
    """

    @staticmethod
    def oriented(delta: Array) -> Array:
        return delta.T
    def forward(self, ids: Any) -> Tensor:
        y: Tensor = self.base(ids)
        for adapter in self.in_use():
            rows = ops.embedding(adapter.A.T, ids, dtype=self.base.dtype)
            y = y + ops.linear(rows, adapter.B) * adapter.scale
        return y
    def project(self, x: Tensor) -> Tensor:
        y: Tensor = self.base.project(x)
        for adapter in self.in_use():
            y = y + ops.linear(ops.linear(x, adapter.B.T), adapter.A.T) * adapter.scale
        return y
