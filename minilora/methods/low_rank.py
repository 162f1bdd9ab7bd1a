"""LoRA (§4), and LoRA beside trained tokens (§5.1, §E): its settings are LoRAConfig's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..config import LoRAConfig
from ..lora.convert import attach
from ..nn import Module
from . import sizes
from .applied import Method
from .prefix import PreEmbed, PreLayer


@dataclass(frozen=True)
class LoRA(LoRAConfig, Method, called="lora"):
    """W0 + (alpha / r) B A in the target layers: |Θ| = Σ r (d_in + d_out), 2 L_LoRA d r if square.

    The model's LoRA layers are those of `lora.attach`, and all of `lora` works on them.
    """

    def config(self) -> LoRAConfig:
        """What `lora.attach` takes."""
        return LoRAConfig(**{f.name: getattr(self, f.name) for f in fields(LoRAConfig)})

    def install(self, model: Module, name: str, rng: np.random.Generator) -> None:
        attach(model, self.config(), name, rng)

    def count(self, config: Any) -> int:
        d, ff, layers = config.d_model, sizes.d_ff(config), config.n_layers
        sides = dict.fromkeys("qkvo", layers * 2 * d) | dict.fromkeys(
            ("up", "down"), layers * (d + ff)
        )
        for target in self.targets:
            if target not in sides or self.rank_pattern or self.bias != "none" or self.trainable:
                raise ValueError(
                    f"count: the formula is for targets among {', '.join(sides)} of one rank, and "
                    f"not for {self}: count it on shapes"
                )
        return sum(self.r * sides[target] for target in {*self.targets})


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
    """LoRA and PreEmbed trained together; the tokens start random (§E.1)."""


@dataclass(frozen=True)
class LoRAPreLayer(_Both, LoRA, PreLayer, called="lora+prelayer"):
    """LoRA and PreLayer trained together; the tokens start random (§E.1)."""
