"""Methods that train parameters of the model: all, those of two blocks, or the biases (§5.1).

Each trains copies, which are in the model while the method is active. So the model starts as the
base, and the base's own parameters are never written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..adapters import Method
from ..adapters.places import is_bias
from ..adapters.registry import base_of
from ..nn import Module
from . import sizes


@dataclass(frozen=True)
class Full(Method, called="full"):
    """Full fine-tuning, FT: train every parameter, Φ0 + ΔΦ, |ΔΦ| = |Φ0| (§2, equation 1)."""

    def copied(self, model: Module) -> list[str]:
        return list(base_of(model))

    def count(self, config: Any) -> int:
        return sizes.total(config)


@dataclass(frozen=True)
class FTTop2(Method, called="fttop2"):
    """FT^Top2: train the last two blocks (Li & Liang 2021; table 3), or the only block.

    |Θ| = 2 (12 d² + 13 d) for a GPT-2. trainable: patterns of other parameters to train in full,
    such as a task's head.
    """

    trainable: Sequence[str] = ()

    def copied(self, model: Module) -> list[str]:
        names = ((at, re.match(r"blocks\.(\d+)\.", at)) for at in base_of(model))
        blocks = {at: int(match[1]) for at, match in names if match}
        top = sorted(set(blocks.values()))[-2:]
        if not top:
            raise ValueError(
                "fttop2: this model has no `blocks`: use a model with blocks, such as ml.GPT2")
        return [at for at, block in blocks.items() if block in top]

    def count(self, config: Any) -> int:
        return sizes.block(config) * min(2, int(config.n_layers))


@dataclass(frozen=True)
class BitFit(Method, called="bitfit"):
    """Train every bias vector, the norms' too, and nothing else (Zaken et al. 2021; tables 2, 4).

    A bias is a parameter with one axis that is not the gain of a norm. |Θ| = 11 d for each block,
    plus the biases outside the blocks. trainable: patterns of other parameters to train in full,
    such as a task's head.
    """

    trainable: Sequence[str] = ()

    def copied(self, model: Module) -> list[str]:
        names = [at for at, (module, p) in base_of(model).items() if is_bias(at, module, p)]
        if not names:
            raise ValueError("bitfit: this model has no biases: choose another method")
        return names

    def count(self, config: Any) -> int:
        return sizes.biases(config)
