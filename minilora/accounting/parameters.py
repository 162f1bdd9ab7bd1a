"""The number of parameters of a model, trained and frozen."""

from __future__ import annotations

from dataclasses import dataclass

from ..nn import Module
from ..words import our_words


@dataclass(frozen=True)
class Count:
    """Numbers of parameters (not bytes). A shared parameter counts once."""

    trainable: int
    frozen: int

    @property
    def total(self) -> int:
        return self.trainable + self.frozen

    @property
    def percent(self) -> float:
        """Trainable parameters as a percentage of all."""
        return 100 * self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return (f"trainable params: {self.trainable:,} || all params: {self.total:,} || "
                f"trainable%: {self.percent:.4f}")


@our_words
def count(model: Module) -> Count:
    """Count the model's parameters, trained and frozen. LoRA trains Σ r · (d + k), §4.2."""
    sizes = [(p.data.size, p.requires_grad) for p in model.parameters()]
    return Count(sum(n for n, on in sizes if on), sum(n for n, on in sizes if not on))
