"""LoRA (§4), rsLoRA, and LoRA beside trained tokens (§E): their settings are LoRAConfig's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..lora.config import LoRAConfig
from ..lora.convert import activate, attach, layers_of
from ..lora.layers import LoRALinear
from ..nn import Module
from . import sizes
from .applied import Method
from .prefix import PreEmbed, PreLayer


@dataclass(frozen=True)
class LoRA(LoRAConfig, Method, called="lora"):
    """W0 + (alpha / r) B A in the target layers (§4.1). A: (r, d_in), B: (d_out, r).

    |Θ| = Σ r (d_in + d_out) over them, 2 L_LoRA d r where they are square (§5.1). B starts at 0, so
    at first the model computes exactly what it did. Settings: see `LoRAConfig`. The layers are
    those of `lora.attach`, and all of `lora` works on them.
    """

    def config(self) -> LoRAConfig:
        """What `lora.attach` takes."""
        return LoRAConfig(**{f.name: getattr(self, f.name) for f in fields(LoRAConfig)})

    def install(self, model: Module, name: str, rng: np.random.Generator) -> None:
        others = model.adapters.active if hasattr(model, "adapters") else ()
        attach(model, self.config(), name, rng)
        activate(model, *others)  # attach had the new one count alone

    def count(self, config: Any) -> int:
        d, ff, layers = config.d_model, sizes.d_ff(config), config.n_layers
        sides = dict.fromkeys("qkvo", layers * 2 * d)
        sides |= dict.fromkeys(("up", "down"), layers * (d + ff))
        for target in self.targets:
            if target not in sides or self.rank_pattern or self.bias != "none" or self.trainable:
                raise ValueError(
                    f"count: the formula is for targets among {', '.join(sides)} of one rank, and "
                    f"not for {self}: count it on shapes"
                )
        return sum(self.r * sides[target] for target in {*self.targets})


@dataclass(frozen=True)
class RsLoRA(LoRA, called="rslora"):
    """rsLoRA (Kalajdzievski 2023): W0 + (alpha / √r) B A. With alpha / r what B A puts out, and its
    gradients, shrink as r grows, so that a higher rank learns more slowly. It is LoRA of alpha √r.
    """

    def install(self, model: Module, name: str, rng: np.random.Generator) -> None:
        super().install(model, name, rng)
        for layer in layers_of(model).values():
            if name in layer.adapters:
                layer.adapters[name].alpha *= layer.adapters[name].r ** 0.5


def turn(model: Module, name: str, kind: Any) -> None:
    """The adapters of this name become ones of that kind, a subclass, and each begins."""
    for path, layer in layers_of(model).items():
        if name in layer.adapters:
            if not isinstance(layer, LoRALinear):
                raise ValueError(
                    f"{path} is a table: this method is for Linear layers: give others as targets"
                )
            made = kind.__new__(kind)
            vars(made).update(vars(layer.adapters[name]))
            made.begin(layer)
            layer.adapters[name] = made


class _Both(Method, called=""):
    """Two methods under one name: those that the class inherits from, with their settings."""

    def halves(self) -> list[Method]:
        held = [cls for cls in type(self).__bases__ if cls is not _Both]
        return [cls(**{f.name: getattr(self, f.name) for f in fields(cls)}) for cls in held]

    def __post_init__(self) -> None:
        for half in self.halves():
            self._set(**{f.name: getattr(half, f.name) for f in fields(half)})  # type: ignore[arg-type]

    def install(self, model: Module, name: str, rng: np.random.Generator) -> None:
        for half in self.halves():
            half.install(model, name, rng)

    def count(self, config: Any) -> int:
        return sum(half.count(config) for half in self.halves())


@dataclass(frozen=True)
class LoRAPreEmbed(_Both, LoRA, PreEmbed, called="lora+preembed"):
    """LoRA and PreEmbed together (§E, table 15). |Θ| is the sum; the tokens start random."""


@dataclass(frozen=True)
class LoRAPreLayer(_Both, LoRA, PreLayer, called="lora+prelayer"):
    """LoRA and PreLayer together (§E, table 15). |Θ| is the sum; the tokens start random."""
