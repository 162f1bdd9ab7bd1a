"""PiSSA (Meng et al. 2024): LoRA that starts at the principal part of W0 instead of at nothing.

W0 = U diag(σ) V, the SVD. A0 = √(σ/s) V and B0 = U √(σ/s), of the first r of each, make s B0 A0 the
nearest matrix of rank r to W0; W0 - s B0 A0 is frozen, and trained is what was taken off. Here W0
itself is not written: y = W0 x + b + s (B A - B0 A0) x, at first exactly what it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, asarray, asnumpy, current, xp
from ..backend.shapes import Shapes
from ..lora.convert import layers_of
from ..lora.layers import Adapter
from ..nn import Module, Parameter
from ..tensor import Tensor
from .low_rank import LoRA, turn


class Principal(Adapter):
    """s (B A - B0 A0) x: A, B are trained and start at A0, B0, which `start` keeps."""

    def begin(self, layer: Any) -> None:
        """A0: (r, k), B0: (d, r) from W0: (d, k). Beyond W0's rank A stays random, and B is 0."""
        if not isinstance(current(), Shapes):  # which have no numbers
            W0 = asnumpy(layer.base.W.data).astype("float64")
            U, sigma, V = np.linalg.svd(W0, full_matrices=False)
            root, n = np.sqrt(sigma[: self.r] / abs(self.scale)), min(self.r, len(sigma))
            A, B = root[:, None] * V[:n], U[:, :n] * root * np.sign(self.scale)
            self.A.data[:n] = asarray(A.astype(str(self.A.dtype)))
            self.B.data[:, :n] = asarray(B.astype(str(self.B.dtype)))
        self.start: Any = Module().train(self.training)
        for x, p in (("A", self.A), ("B", self.B)):
            setattr(self.start, x, Parameter(p.data.copy(), requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        start = self.start
        return super().forward(x) - ops.linear(ops.linear(x, start.A), start.B) * self.scale

    def plain(self) -> Adapter:
        """The same update as one product of rank 2 r: [B, -B0] [A; A0]."""
        start, made = self.start, Adapter.__new__(Adapter)
        vars(made).update(vars(self), r=2 * self.r, alpha=2 * self.alpha)
        made.A = Parameter(xp.concatenate([self.A.data, start.A.data]))
        made.B = Parameter(xp.concatenate([self.B.data, -start.B.data], 1))
        del vars(made)["start"]
        return made

    def delta(self) -> Array:
        return self.plain().delta()


@dataclass(frozen=True)
class PiSSA(LoRA, called="pissa"):
    """LoRA's settings; A and B start at the first r parts of W0's SVD.

    A file holds the plain LoRA of rank 2 r that it has become, [B, -B0] [A; A0], and loads as that.
    """

    def saved(self, model: Module, name: str) -> tuple[LoRA, dict[str, np.ndarray]]:
        twice: dict[str, Any] = {"r": 2 * self.r, "alpha": 2 * self.alpha}
        for patterns in ("rank_pattern", "alpha_pattern"):
            twice[patterns] = {path: 2 * x for path, x in getattr(self, patterns).items()}
        layers = {at: x.adapters for at, x in layers_of(model).items() if name in x.adapters}
        plain = [(at, adapters[name].plain()) for at, adapters in layers.items()]
        ours = {f"{at}.{x}": asnumpy(p.data) for at, a in plain for x, p in a.named_parameters()}
        return LoRA(**vars(self) | twice), super().saved(model, name)[1] | ours

    def install(self, model: Module, name: str, rng: np.random.Generator) -> None:
        super().install(model, name, rng)
        turn(model, name, Principal)
