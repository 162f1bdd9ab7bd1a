"""LoRA+ (Hayou et al. 2024): the learning rate of B is λ times the rate of A.

With one rate for both, either A or B hardly learns in a wide model, so λ matters more as the width
grows. The authors recommend λ = 16. LoRA+ is an optimizer; it works for every method with a B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..adapters.patterns import first, hidden, matching
from ..backend import Array
from ..backend.blocks import restoring
from ..checks import real
from ..training.optim import AdamW


class LoRAPlus(AdamW):
    """AdamW whose lr is multiplied by a rate for each parameter, in the weight decay too.

    rates   pattern of the parameter's name -> its rate. The first match counts; without one, 1

        optimizer = methods.LoRAPlus(model.trainable_parameters(), lr=1e-4, rates={"*.B": 16})
    """

    def __init__(
        self, *args: Any, rates: Mapping[str, float] = {"*.B": 16.0}, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        rates = {
            p: real("LoRAPlus", f"rates[{p!r}]", rate, "[0, inf)") for p, rate in rates.items()
        }
        matching(self.parameters, rates, "LoRAPlus: rates: no parameter")
        for later, earlier in hidden(rates, self.parameters).items():
            raise ValueError(
                f"LoRAPlus: rates: {later!r} has no effect, because {earlier!r} before it matches "
                "the same parameters: put the special one first"
            )
        self.rates = {name: first(rates, name, 1.0) for name in self.parameters}

    def update(self, name: str, p: Array, g: Array, *state: Array) -> None:
        before = self.lr
        with restoring(lambda: setattr(self, "lr", before)):
            self.lr = before * self.rates[name]
            super().update(name, p, g, *state)
