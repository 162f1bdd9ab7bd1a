"""LoRA combined with trained tokens (§E, table 15)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..adapters import Method
from ..lora.config import LoRAConfig
from ..nn import Module
from .prefix import PreEmbed, PreLayer


class _Both(Method):
    """Two methods under one name: the other base classes of the class, with their settings."""

    def halves(self) -> list[Any]:
        kinds: list[Any] = [kind for kind in type(self).__bases__ if kind is not _Both]
        return [kind(**{f.name: getattr(self, f.name) for f in fields(kind)}) for kind in kinds]

    def __post_init__(self) -> None:
        for half in self.halves():
            self._set(**{f.name: getattr(half, f.name) for f in fields(half)})

    def around(self, model: Any, rng: np.random.Generator) -> Mapping[str, Any]:
        return {at: part for half in self.halves() for at, part in half.around(model, rng).items()}

    def copied(self, model: Module) -> list[str]:
        return [at for half in self.halves() for at in half.copied(model)]

    def count(self, config: Any) -> int:
        return sum(half.count(config) for half in self.halves())


@dataclass(frozen=True)
class LoRAPreEmbed(_Both, LoRAConfig, PreEmbed, called="lora+preembed"):
    """LoRA and PreEmbed together. |Θ| is the sum of theirs. The tokens start random."""


@dataclass(frozen=True)
class LoRAPreLayer(_Both, LoRAConfig, PreLayer, called="lora+prelayer"):
    """LoRA and PreLayer together. |Θ| is the sum of theirs. The tokens start random."""
