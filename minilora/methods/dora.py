"""DoRA (Liu et al. 2024): LoRA for the direction of each row of W, and a trained length.

V = W0 + s B A        y = m / |V| · V x + b        |V|: (d,), the lengths of V's rows; m: (d,)

At the start B = 0 and m = |W0|, so the model computes exactly what the base computes. The gradient
treats |V| as a constant (their §4.3): this saves memory and costs almost no quality. A row of zeros
has no direction, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import ops
from ..adapters.protocol import row_lengths
from ..backend import Array, xp
from ..lora.config import LoRAConfig
from ..lora.layers import LoRALinear
from ..nn import Linear, Parameter
from ..tensor import Tensor, op


@op
def scaled(y: Array, s: Array) -> Any:
    """z = y · s        y, z: (..., d), of one dtype   s: (d,), at least float32"""
    dtype = y.dtype
    def dy(g: Array) -> Array: return (g * s).astype(dtype)
    def ds(g: Array) -> Array: return g.astype(s.dtype) * y
    return (y * s).astype(dtype), (dy, ds)


class DoRALinear(LoRALinear):
    """y = m / |V| · V x + b        x: (..., k)   y: (..., d)"""

    needs_numbers = "DoRA measures the rows of W0 + s B A in each step"
    exclusive = "DoRA's m is the row length of one W0 + s B A: activate it alone"

    def __init__(self, layer: Any, r: int, alpha: float, **settings: Any) -> None:
        super().__init__(layer, r, alpha, **settings)
        V = self.V(layer.W)
        self.m = Parameter(xp.sqrt((V * V).sum(axis=1)))            # (d,)

    def forward(self, inner: Any, x: Tensor) -> Tensor:
        W, b = inner.W, inner.b
        y: Tensor = ops.lora_linear(x, W, None, self.A, self.B, self.mask(x), scale=self.scale)
        y = scaled(y, self.m / row_lengths(self.V(W)))
        return y if b is None else y + b

    def V(self, W: Parameter) -> Array:
        """Return W0 + s B A, (d, k), in the layer's dtype, at least float32."""
        return W.data.astype(self.A.dtype, copy=False) + self.scale * (self.B.data @ self.A.data)

    def row_scale(self) -> Parameter:
        return self.m


@dataclass(frozen=True)
class DoRA(LoRAConfig, called="dora"):
    """DoRA with LoRA's settings. |Θ| = Σ r (d_in + d_out) + d_out. For Linear layers only.

    No other adapter of the same layer can be active beside it.
    """

    layers: ClassVar[Mapping[type, Any]] = {Linear: DoRALinear}

    def count(self, config: Any) -> int:
        return super().count(config) + lengths(self.targets, config)


def lengths(targets: Sequence[str], config: Any) -> int:
    """Return the size of all m of these target layers."""
    m = sum(config.linears()[target][0] for target in {*targets})
    return int(config.n_layers * m)
