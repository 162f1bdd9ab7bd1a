"""rsLoRA (Kalajdzievski 2023): LoRA with the scale alpha / √r."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..lora.config import LoRAConfig


@dataclass(frozen=True)
class RsLoRA(LoRAConfig, called="rslora"):
    """W0 + (alpha / √r) B A: LoRA with alpha √r instead of alpha.

    With alpha / r, the output of B A and its gradients shrink as r grows, so a higher rank learns
    more slowly.
    """

    def scaled(self, alpha: float, r: int) -> float:
        return alpha * math.sqrt(r)
