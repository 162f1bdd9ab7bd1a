"""Methods that train the model's own parameters: all of them, the last two blocks', the biases.

Each trains copies, which stand in the model while it is active: at first the model computes
exactly what it did, and the base's own are never written.
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
    """Fine-tuning: every parameter is trained (§2, equation 1)."""

    def copied(self, names: Sequence[str]) -> list[str]:
        return [*names]

    def count(self, config: Any) -> int:
        return sizes.total(config)


@dataclass(frozen=True)
class FTTop2(Method, called="fttop2"):
    """The last two blocks, whole (Li & Liang 2021); of a model with one block, that one."""

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
    """Every bias vector, the norms' too, and nothing else (Zaken et al. 2021): 11 d a block."""

    def copied(self, names: Sequence[str]) -> list[str]:
        return [at for at in names if at.endswith(".b")]

    def count(self, config: Any) -> int:
        return sizes.biases(config)
