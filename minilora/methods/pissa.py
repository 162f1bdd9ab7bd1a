"""PiSSA: LoRA that starts at the principal part of W0 instead of at nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields
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
    """scale · (B A - B0 A0), where A and B start at A0 and B0: the first r parts of W0's SVD."""

    def begin(self, layer: Any) -> None:
        """A0, B0 from W0, kept; what training moves is a copy of them."""
        if not isinstance(current(), Shapes):
            U, s, V = np.linalg.svd(
                asnumpy(layer.base.W.data).astype("float64"), full_matrices=False
            )
            root, n = np.sqrt(s[: self.r] / abs(self.scale)), len(s[: self.r])
            A, B = np.zeros(self.A.shape), np.zeros(self.B.shape)
            A[:n] = root[:, None] * V[:n]
            B[:, :n] = U[:, :n] * root * np.sign(self.scale)
            self.A.data, self.B.data = (asarray(x.astype(str(self.A.dtype))) for x in (A, B))
        self.start = Module()
        self.start.A, self.start.B = (Parameter(p.data.copy(), False) for p in (self.A, self.B))  # type: ignore[attr-defined]
        self.A, self.B = Parameter(self.A.data), Parameter(self.B.data)

    def forward(self, x: Tensor) -> Tensor:
        start: Any = self.start
        return super().forward(x) - ops.linear(ops.linear(x, start.A), start.B) * self.scale

    def plain(self) -> Adapter:
        """A plain adapter of rank 2 r: [B, -B0] [A; A0]."""
        start, made = self.start, Adapter.__new__(Adapter)
        vars(made).update({k: v for k, v in vars(self).items() if k != "start"})
        made.r, made.alpha = 2 * self.r, 2 * self.alpha
        made.A = Parameter(xp.concatenate([self.A.data, start.A.data]))  # type: ignore[attr-defined]
        made.B = Parameter(xp.concatenate([self.B.data, -start.B.data], 1))  # type: ignore[attr-defined]
        return made

    def delta(self) -> Array:
        return self.plain().delta()


@dataclass(frozen=True)
class PiSSA(LoRA, called="pissa"):
    """A and B start as the principal part of W0, and the rest of it is frozen (Meng et al. 2024):
    W0 - s B0 A0 + s B A. W0 itself is not written; a file holds the plain LoRA [B, -B0] [A; A0].
    """

    def saved(self, model: Module, name: str) -> tuple[LoRA, dict[str, np.ndarray]]:
        ranks = {path: 2 * r for path, r in self.rank_pattern.items()}
        alphas = {path: 2 * alpha for path, alpha in self.alpha_pattern.items()}
        given = {f.name: getattr(self, f.name) for f in fields(LoRA)}
        given |= {"r": 2 * self.r, "alpha": 2 * self.alpha}
        given |= {"rank_pattern": ranks, "alpha_pattern": alphas}
        held = {at: x.adapters for at, x in layers_of(model).items() if name in x.adapters}
        plain = {at: adapters[name].plain() for at, adapters in held.items()}
        ours = {f"{at}.{x}": p for at, a in plain.items() for x, p in a.named_parameters()}
        return LoRA(**given), super().saved(model, name)[1] | {
            at: asnumpy(p.data) for at, p in ours.items()
        }

    def install(self, model: Module, name: str, rng: np.random.Generator) -> None:
        super().install(model, name, rng)
        turn(model, name, Principal)
