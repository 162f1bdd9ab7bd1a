"""DoRA (Liu et al. 2024): LoRA for the direction of each row of W, and a trained length for it.

V = W0 + s B A        y = m / |V| · V x + b        |V|: (d,), the lengths of V's rows; m: (d,)

At first B = 0 and m = |W0|, so the model computes exactly what it did. |V| counts as a constant in
the gradient (their §4.3): that takes less memory, at next to no loss of quality. A row of zeros has
no direction, and stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import ops
from ..adapters.protocol import row_lengths
from ..backend import Array, xp
from ..lora.config import LoRAConfig
from ..lora.layers import LoRALinear
from ..nn import Linear, Parameter
from ..tensor import Tensor
from . import sizes


class DoRALinear(LoRALinear):
    """y = m / |V| · V x + b        x: (..., k)   y: (..., d)   in half precision y is float32"""

    exclusive = "DoRA's m is the length of one W0 + s B A: activate it alone"

    def __init__(self, layer: Any, r: int, alpha: float, **settings: Any) -> None:
        super().__init__(layer, r, alpha, **settings)
        V = self.V(layer.W)
        self.m = Parameter(xp.sqrt((V * V).sum(axis=1)))            # (d,)

    def forward(self, inner: Any, x: Tensor) -> Tensor:
        W, b = inner.W, inner.b
        y: Tensor = ops.lora_linear(x, W, None, self.A, self.B, self.mask(x), scale=self.scale)
        y = y * (self.m / row_lengths(self.V(W)))
        return y if b is None else y + b

    def V(self, W: Parameter) -> Array:
        """W0 + s B A in the layer's own dtype, float32 at least."""
        return W.data + self.scale * (self.B.data @ self.A.data)

    def row_scale(self) -> Parameter:
        return self.m


@dataclass(frozen=True)
class DoRA(LoRAConfig, called="dora"):
    """LoRA's settings: |Θ| = Σ r (d_in + d_out) + d_out. Linear layers only; active alone."""

    layers: ClassVar[Mapping[type, Any]] = {Linear: DoRALinear}

    def count(self, config: Any) -> int:
        m = sum(sizes.d_ff(config) if x == "up" else config.d_model for x in {*self.targets})
        return super().count(config) + int(config.n_layers) * m
