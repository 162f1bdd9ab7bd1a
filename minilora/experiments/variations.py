"""What can differ in a run besides its settings: another part trained, or a planted mistake.

A rule that cannot fail proves nothing. So each claim names a mistake below under which its verdict
must turn. The runs with mistakes are made and stored as all others are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adapters.places import walk
from ..adapters.protocol import Adapted
from ..backend import normal
from ..nn import Module
from ..training.optim import AdamW


class Ascent(AdamW):
    """AdamW that moves every B along its gradient, not against it: a sign is wrong."""

    def update(self, name: str, p: Any, g: Any, *state: Any) -> None:
        super().update(name, p, -g if name.endswith(".B") else g, *state)


@dataclass(frozen=True)
class Variation:
    """says: what is different; then how the settings, the model, the optimizer or the test change.

    mistake: it is planted, so that a verdict turns; False: it is a method in its own right.
    """

    says: str
    mistake: bool = True
    settings: Callable[[dict[str, Any]], dict[str, Any]] = lambda settings: settings
    model: Callable[[Module, np.random.Generator], Any] = lambda model, rng: None
    optimizer: type[AdamW] = AdamW
    shuffled: bool = False  # the answers of the test set


def factors(model: Module) -> list[Any]:
    """Return the active LoRA adapters of a model."""
    parts = (module for _, module in walk(model) if isinstance(module, Adapted))
    adapters = [module.adapters[name] for module in parts for name in module.active]
    return [adapter for adapter in adapters if adapter.factors()]


def _only_B(model: Module, rng: np.random.Generator) -> None:
    for adapter in factors(model):
        adapter.A.requires_grad = False


def _only_A(model: Module, rng: np.random.Generator) -> None:
    """B is random and fixed, A starts at 0: the model starts as the base, as with B = 0."""
    for adapter in factors(model):
        d, r = adapter.B.shape
        adapter.B.data = normal(rng, (d, r), r**-0.5, adapter.B.dtype)
        adapter.A.data = adapter.A.data * 0
        adapter.B.requires_grad = False


def _nothing(model: Module, rng: np.random.Generator) -> None:
    """Freeze B at its start, 0: only A is trained, and ΔW stays 0."""
    for adapter in factors(model):
        adapter.B.requires_grad = False


VARIATIONS: Mapping[str, Variation] = {
    "": Variation("nothing", mistake=False),
    "B alone": Variation("A is random and frozen", mistake=False, model=_only_B),
    "A alone": Variation("B is random and frozen, A starts at 0", mistake=False, model=_only_A),
    "alpha not over r": Variation(
        "the scale is alpha, not alpha / r",
        settings=lambda s: s | {"alpha": s["alpha"] * s["r"]},
    ),
    "B ascends": Variation("B's update has the wrong sign", optimizer=Ascent),
    "B frozen": Variation("B is frozen at 0, so only A is trained", model=_nothing),
    "answers shuffled": Variation("the answers of the test set are shuffled", shuffled=True),
}
