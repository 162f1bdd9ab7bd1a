"""Methods that train parameters of the model itself: all, those of two blocks, the biases (§5.1).

Each trains copies, which stand in the model while the method is active: at first the model computes
exactly what it did, and the base's own parameters are never written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import sizes
from .applied import Method


@dataclass(frozen=True)
class Full(Method, called="full"):
    """Full fine-tuning, FT: every parameter, Φ0 + ΔΦ, |ΔΦ| = |Φ0| (§2, equation 1)."""

    def copied(self, names: Sequence[str]) -> list[str]:
        return [*names]

    def count(self, config: Any) -> int:
        return sizes.total(config)


@dataclass(frozen=True)
class FTTop2(Method, called="fttop2"):
    """FT^Top2: the last two blocks (Li & Liang 2021; table 3). |Θ| = 2 (12 d² + 13 d) of a GPT-2.

    Of a model with one block it is that one.
    """

    def copied(self, names: Sequence[str]) -> list[str]:
        blocks = {int(at.split(".")[1]) for at in names if re.match(r"blocks\.\d+\.", at)}
        top = sorted(blocks)[-2:]
        return [
            at for at in names if re.match(r"blocks\.\d+\.", at) and int(at.split(".")[1]) in top
        ]

    def count(self, config: Any) -> int:
        return sizes.block(config) * min(2, int(config.n_layers))


@dataclass(frozen=True)
class BitFit(Method, called="bitfit"):
    """Every bias vector, the norms' too, and nothing else (Zaken et al. 2021; tables 2 and 4).

    |Θ| = 11 d of each block, and those outside of blocks.
    """

    def copied(self, names: Sequence[str]) -> list[str]:
        return [at for at in names if at.endswith(".b")]

    def count(self, config: Any) -> int:
        return sizes.biases(config)
