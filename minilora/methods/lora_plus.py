"""LoRA+ (Hayou et al. 2024): LoRA whose B learns faster than its A, by a constant factor λ.

With one rate for both, one of them hardly learns where the model is wide: the gain of a right λ
grows with the width. They found λ = 16 a good choice. It is an optimizer, for whatever has a B.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..backend import Array
from ..checks import real
from ..training.optim import AdamW


class LoRAPlus(AdamW):
    """AdamW with lr times a rate of each parameter's own, in its weight decay, too.

    rates   glob for the parameter's name -> its rate; the first that matches, 1 where none does

        optimizer = methods.LoRAPlus(model.trainable_parameters(), lr=1e-4, rates={"*.B": 16})
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
                raise ValueError(
                    f"LoRAPlus: no parameter matches {pattern!r}: there are names like "
                    f"{next(iter(self.parameters))}: a pattern is for the whole of it, as '*.B'"
                )
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
