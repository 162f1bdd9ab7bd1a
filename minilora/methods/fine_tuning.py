"""Methods that train parameters of the model itself: all, those of two blocks, the biases (§5.1).

Each trains copies, which stand in the model while the method is active. At first the model computes
exactly what it did, and the base's own parameters are never written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..adapters import Method
from ..adapters.places import is_bias
from ..adapters.registry import base_of
from ..nn import Module
from . import sizes


@dataclass(frozen=True)
class Full(Method, called="full"):
    """Full fine-tuning, FT: every parameter, Φ0 + ΔΦ, |ΔΦ| = |Φ0| (§2, equation 1)."""

    def copied(self, model: Module) -> list[str]:
        return list(base_of(model))

    def count(self, config: Any) -> int:
        return sizes.total(config)


@dataclass(frozen=True)
class FTTop2(Method, called="fttop2"):
    """FT^Top2: the last two blocks (Li & Liang 2021; table 3). |Θ| = 2 (12 d² + 13 d) for a GPT-2.

    In a model with one block it is that block.
    """

    def copied(self, model: Module) -> list[str]:
        found = ((at, re.match(r"blocks\.(\d+)\.", at)) for at in base_of(model))
        blocks = {at: int(match[1]) for at, match in found if match}
        top = sorted(set(blocks.values()))[-2:]
        if not top:
            raise ValueError("fttop2 trains the last two of `blocks`, and this model has no blocks")
        return [at for at, block in blocks.items() if block in top]

    def count(self, config: Any) -> int:
        return sizes.block(config) * min(2, int(config.n_layers))


@dataclass(frozen=True)
class BitFit(Method, called="bitfit"):
    """Every bias vector, the norms' too, and nothing else (Zaken et al. 2021; tables 2 and 4).

    A bias is a parameter with one axis that is not the gain of a norm. |Θ| = 11 d for each block,
    and the biases outside of blocks.
    """

    def copied(self, model: Module) -> list[str]:
        names = [at for at, (module, p) in base_of(model).items() if is_bias(at, module, p)]
        if not names:
            raise ValueError("bitfit trains biases, and this model has none")
        return names

    def count(self, config: Any) -> int:
        return sizes.biases(config)
