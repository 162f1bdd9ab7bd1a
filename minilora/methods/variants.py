"""What came after LoRA, each a few lines away from it: rsLoRA, PiSSA, DoRA, LoRA+."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, asarray, asnumpy, current, xp
from ..backend.shapes import Shapes
from ..checks import real
from ..lora.convert import layers_of
from ..lora.layers import Adapter, LoRALinear
from ..nn import Module, Parameter
from ..optim import AdamW
from ..surgery import swap
from ..tensor import Tensor
from . import sizes
from .low_rank import LoRA


@dataclass(frozen=True)
class RsLoRA(LoRA, called="rslora"):
    """The scale is alpha / √r, so that a higher rank does not learn more slowly (Kalajdzievski
    2023): LoRA with alpha √r, and kept in files as that.
    """

    def install(self, model: Module, name: str, rng: np.random.Generator) -> None:
        super().install(model, name, rng)
        for layer in layers_of(model).values():
            if name in layer.adapters:
                layer.adapters[name].alpha *= layer.adapters[name].r ** 0.5


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

    def install(self, model: Module, name: str, rng: np.random.Generator) -> None:
        super().install(model, name, rng)
        _turn(model, name, Principal)


class Magnitude(Adapter):
    """B A for the direction of each row of W, and m, the row's length."""

    def begin(self, layer: Any) -> None:
        self.m = Parameter(_lengths(self, layer))

    def plain(self) -> Adapter:
        raise ValueError("save: DoRA's lengths are no LoRA: use methods.save, or merge it")


class DoRALinear(LoRALinear):
    """y = m / |V| · V x + b, V = W0 + s B A, |V| the length of each row: no gradient goes through it."""

    def forward(self, x: Tensor) -> Tensor:
        if not (a := self._alone()):
            return super().forward(x)
        W, b = self.base.W, self.base.b
        y = ops.lora_linear(x, W, None, a.A, a.B, a.mask(x), scale=a.scale)
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
        used = self.in_use()
        if len(used) > 1 and any(isinstance(a, Magnitude) for a in used):
            raise ValueError("dora: its lengths are of one W0 + ΔW: activate it alone")
        return used[0] if used and isinstance(used[0], Magnitude) else None


def _lengths(a: Adapter, layer: Any) -> Array:
    V = layer.base.W.data.astype(str(layer.base.dtype)) + a.scale * (a.B.data @ a.A.data)
    return xp.sqrt((V * V).sum(axis=1))


@dataclass(frozen=True)
class DoRA(LoRA, called="dora"):
    """Each row of W0 + s B A, brought to a length m of its own (Liu et al. 2024): d numbers more."""

    def install(self, model: Module, name: str, rng: np.random.Generator) -> None:
        super().install(model, name, rng)
        _turn(model, name, Magnitude)
        for path, layer in layers_of(model).items():
            if name in layer.adapters:
                turned = DoRALinear(layer.base)
                vars(turned).update(vars(layer))
                swap(model, {path: turned})

    def count(self, config: Any) -> int:
        wide = sizes.d_ff(config)
        rows = sum(wide if target == "up" else config.d_model for target in {*self.targets})
        return super().count(config) + int(config.n_layers) * rows


def _turn(model: Module, name: str, kind: Any) -> None:
    """The adapters of this name become ones of that kind."""
    for path, layer in layers_of(model).items():
        if name in layer.adapters:
            if not isinstance(layer, LoRALinear):
                raise ValueError(f"{path} is a table: this method is for Linear layers")
            made = kind.__new__(kind)
            vars(made).update(vars(layer.adapters[name]))
            made.begin(layer)
            layer.adapters[name] = made


class LoRAPlus(AdamW):
    """AdamW with learning rates by group: LoRA+ (Hayou et al. 2024) has B learn faster than A.

    rates   pattern -> what lr is multiplied by; the first that matches, and 1 where none does
    """

    def __init__(
        self, *args: Any, rates: Mapping[str, float] = {"*.B": 16.0}, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        rates = {
            p: real("LoRAPlus", f"rates[{p!r}]", rate, "[0, inf)") for p, rate in rates.items()
        }
        for pattern in rates:
            if not any(fnmatchcase(name, pattern) for name in self.parameters):
                raise ValueError(f"LoRAPlus: no parameter matches {pattern!r}")
        self.rates = {
            name: next((rate for p, rate in rates.items() if fnmatchcase(name, p)), 1.0)
            for name in self.parameters
        }

    def update(self, name: str, p: Array, g: Array, *state: Array) -> None:
        before = self.lr
        self.lr = before * self.rates[name]
        try:
            super().update(name, p, g, *state)
        finally:
            self.lr = before
