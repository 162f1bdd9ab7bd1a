"""LoRA as PEFT attaches it, where that differs from LoRA here; `lora.load_peft` attaches it.

GPT-2's checkpoints hold q, k and v in one matrix. PEFT adapts it as one layer: one A, and
B = [Bq; Bk; Bv]. Here they are three layers, which share that A. And PEFT's update of the token
table does not reach a head that is tied to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adapters.protocol import Adapter
from ..checks import describe, warn
from ..lora.config import LoRAConfig
from ..lora.layers import LoRAEmbedding, LoRALinear
from ..nn import Embedding, Linear, Module
from .dora import DoRALinear, lengths


class LoRALookup(LoRAEmbedding):
    """W0[ids] + scale · (B A)ᵀ[ids], and a tied head with W0 alone: no weight can contain both."""

    project = Adapter.project

    def factors(self) -> None:  # type: ignore[override]
        return None


@dataclass(frozen=True)
class PeftLoRA(LoRAConfig, called="peft-lora"):
    """LoRA with PEFT's own choices, each of them a setting.

    fused    names of target layers: those of one module share one A; (): no layers share
    head     whether a head that is tied to an adapted table gets its update, as it does in LoRA
             here; without it the table's adapter cannot be merged
    dora     also train m, the lengths of rows, as DoRA does; for Linear layers only
    rslora   scale by alpha / √r, as rsLoRA does
    """

    fused: Sequence[str] = ("q", "k", "v")
    head: bool = False
    dora: bool = False
    rslora: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fused = (self.fused,) if isinstance(self.fused, str) else self.fused
        if not isinstance(fused, list | tuple) or not all(isinstance(x, str) for x in fused):
            raise ValueError(
                f'PeftLoRA: fused takes names of layers such as ("q", "k", "v"), not '
                f"{describe(self.fused)}"
            )
        self._set(fused=tuple(fused))
        for name in ("head", "dora", "rslora"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"PeftLoRA: {name} must be True or False, not {describe(value)}")

    @property
    def layers(self) -> Mapping[type, Any]:  # type: ignore[override]
        if self.dora:
            return {Linear: DoRALinear}
        return {Linear: LoRALinear, Embedding: LoRAEmbedding if self.head else LoRALookup}

    def around(self, model: Module, rng: np.random.Generator) -> Mapping[str, LoRALinear]:
        parts = super().around(model, rng)
        first: dict[str, tuple[str, LoRALinear]] = {}  # a module's path -> its first fused layer
        shares = False
        for at, part in parts.items():
            above, _, name = at.rpartition(".")
            if name not in self.fused:
                continue
            other, leader = first.setdefault(above, (at, part))
            if part is leader:
                continue
            if part.A.shape != leader.A.shape:
                raise ValueError(
                    f"{self.called}: {other} and {at} share one A, but theirs would be "
                    f"{tuple(leader.A.shape)} and {tuple(part.A.shape)}: give them one rank, or "
                    "leave one out of `fused`"
                )
            part.A, shares = leader.A, True
        if self.fused and not shares:
            warn(f"{self.called}: fused has no effect: no module has two of these target layers")
        return parts

    def scaled(self, alpha: float, r: int) -> float:
        return alpha * math.sqrt(r) if self.rslora else alpha

    def count(self, config: Any) -> int:
        total = super().count(config) + (lengths(self.targets, config) if self.dora else 0)
        inputs = [config.linears()[x][1] for x in {*self.targets} & {*self.fused}]
        return total - int(self.r * config.n_layers * sum(inputs[1:]))
