"""DoRA (Liu et al. 2024): LoRA for the direction of each row of W, and a trained length for it.

V = W0 + s B A        y = m / |V| · V x + b        |V|: (d,), the lengths of V's rows, as m is

At first B = 0 and m = |W0|, so the model computes exactly what it did. |V| counts as a constant in
the gradient (their §4.3): that takes less memory, and they saw next to no loss of quality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..adapters.places import swap
from ..backend import Array, xp
from ..lora.convert import layers_of
from ..lora.layers import Adapter, LoRALinear
from ..nn import Module, Parameter
from ..tensor import Tensor
from . import sizes
from .low_rank import LoRA, turn


class Magnitude(Adapter):
    """A: (r, k) and B: (d, r) for the direction, and m: (d,), the length of each row of W."""

    def begin(self, layer: Any) -> None:
        self.m = Parameter(_lengths(self, layer))

    def plain(self) -> Adapter:
        raise ValueError("dora: its lengths m are no LoRA: use methods.save, or merge it")


class DoRALinear(LoRALinear):
    """y = m / |V| · V x + b        x: (..., k)   y: (..., d)   in half precision y is float32"""

    def forward(self, x: Tensor) -> Tensor:
        if not (a := self._alone()):
            return super().forward(x)
        W, b = self.base.W, self.base.b
        y: Tensor = ops.lora_linear(x, W, None, a.A, a.B, a.mask(x), scale=a.scale)
        y = y * (a.m / _lengths(a, self))
        return y if b is None else y + b

    def delta(self) -> Array:
        """m / |V| · V - W0, in float64."""
        if not (a := self._alone()):
            return super().delta()
        W0 = self.base.W.data.astype("float64")
        V = W0 + a.delta()
        return (a.m.data.astype("float64") / xp.sqrt((V * V).sum(axis=1)))[:, None] * V - W0

    def _alone(self) -> Any:
        """The DoRA in use; None: there is none."""
        used = self.in_use()
        if len(used) > 1 and any(isinstance(a, Magnitude) for a in used):
            raise ValueError("dora: its lengths are of one W0 + s B A: activate it alone")
        return used[0] if used and isinstance(used[0], Magnitude) else None


def _lengths(a: Adapter, layer: Any) -> Array:
    """|V| in the layer's own dtype, in float32 of a layer of half precision."""
    V = layer.base.W.data + a.scale * (a.B.data @ a.A.data)
    return xp.sqrt((V * V).sum(axis=1))


@dataclass(frozen=True)
class DoRA(LoRA, called="dora"):
    """LoRA's settings: |Θ| = Σ r (d_in + d_out) + d_out. Linear layers only; active alone."""

    def install(self, model: Module, name: str, rng: np.random.Generator) -> None:
        super().install(model, name, rng)
        turn(model, name, Magnitude)
        for path, layer in layers_of(model).items():
            if name in layer.adapters:
                turned = DoRALinear(layer.base)
                vars(turned).update(vars(layer))
                swap(model, {path: turned})

    def count(self, config: Any) -> int:
        m = sum(sizes.d_ff(config) if x == "up" else config.d_model for x in {*self.targets})
        return super().count(config) + int(config.n_layers) * m
