"""PiSSA (Meng et al. 2024): LoRA that starts at the principal part of W0 instead of at 0.

W0 = U diag(σ) V is the SVD. With A0 = √(σ/s) V and B0 = U √(σ/s) of the r largest σ, s B0 A0 is the
nearest matrix of rank r to W0. The paper freezes W0 - s B0 A0, and trains s B A from B0 and A0.
Here W0 is not written: y = W0 x + b + s (B A - B0 A0) x, which starts exactly as the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..adapters import Adapter, Factors
from ..backend import asarray, asnumpy, current, xp
from ..backend.shapes import Shapes
from ..lora.config import LoRAConfig
from ..lora.layers import LoRALinear
from ..nn import Linear, Module, Parameter
from ..tensor import Tensor


class _Start(Module):
    """A0 and B0, both frozen."""

    A: Parameter
    B: Parameter


class PiSSALinear(LoRALinear):
    """y = W0 x + b + s (B A - B0 A0) x. A and B are trained; A0 and B0 are in `start`."""

    needs_numbers = "PiSSA would have to round W0 after it subtracts B0 A0, not before"

    def __init__(self, layer: Any, r: int, alpha: float, **settings: Any) -> None:
        """A0: (r, k), B0: (d, r), W0: (d, k). If r > min(d, k), the rest of A is random, B is 0."""
        super().__init__(layer, r, alpha, **settings)
        if not isinstance(current(), Shapes):  # shapes have no numbers
            W0 = asnumpy(layer.W.data).astype("float64")
            U, sigma, V = np.linalg.svd(W0, full_matrices=False)
            root, n = np.sqrt(sigma[: self.r] / abs(self.scale)), min(self.r, len(sigma))
            A, B = root[:, None] * V[:n], U[:, :n] * root * np.sign(self.scale)
            self.A.data[:n] = asarray(A.astype(str(self.A.dtype)))
            self.B.data[:, :n] = asarray(B.astype(str(self.B.dtype)))
        self.start = start = _Start()
        start.A = Parameter(self.A, requires_grad=False)
        start.B = Parameter(self.B, requires_grad=False)

    def forward(self, inner: Any, x: Tensor) -> Tensor:
        mask, start, y = self.mask(x), self.start, inner(x)
        update = self.update(x if mask is None else x * mask)
        update = update - ops.linear(ops.linear(x, start.A), start.B) * self.scale
        return y + update  # type: ignore[no-any-return]

    def factors(self) -> Factors:
        return [(self.scale, self.B, self.A), (-self.scale, self.start.B, self.start.A)]

    def trained(self) -> dict[str, Parameter]:
        return {"A": self.A, "B": self.B}


@dataclass(frozen=True)
class PiSSA(LoRAConfig, called="pissa"):
    """PiSSA with LoRA's settings: A and B start at the first r parts of W0's SVD.

    It is saved, and loads, as a LoRA of rank 2 r: [B, -B0] [A; A0].
    """

    layers: ClassVar[Mapping[type, Any]] = {Linear: PiSSALinear}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init != "gaussian":
            raise ValueError(
                f'PiSSA: init="{self.init}" has no effect, because A and B start at the SVD of W0: '
                "leave it out"
            )

    def saved(
        self, adapters: Mapping[str, Adapter], copies: Mapping[str, Parameter]
    ) -> tuple[LoRAConfig, dict[str, Any]]:
        doubled = {at: 2 * r for at, r in self.rank_pattern.items()}
        alphas = {at: 2 * alpha for at, alpha in self.alpha_pattern.items()}
        method = LoRAConfig(**vars(
            replace(self, r=2 * self.r, alpha=2 * self.alpha, rank_pattern=doubled,
                    alpha_pattern=alphas)))
        arrays = {at: p.data for at, p in copies.items()}
        for at, each in adapters.items():
            ((_, B, A), (_, B0, A0)) = each.factors()  # type: ignore[misc]
            arrays[f"{at}.A"] = xp.concatenate([A.data, A0.data])
            arrays[f"{at}.B"] = xp.concatenate([B.data, -B0.data], axis=1)
        return method, arrays
