"""LoRA+: the optimizer of LoRA with a learning rate of its own for B."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..backend import Array
from ..checks import real
from ..optim import AdamW


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
