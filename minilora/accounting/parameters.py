"""How many parameters a model has, and how many of them are trained."""

from __future__ import annotations

from dataclasses import dataclass

from ..nn import Module
from ..words import our_words


@dataclass(frozen=True)
class Count:
    """Numbers of parameters (not bytes), each shared one counted once."""

    trainable: int
    frozen: int

    @property
    def total(self) -> int:
        return self.trainable + self.frozen

    @property
    def percent(self) -> float:
        """Trainable parameters in per cent of all."""
        return 100 * self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return (f"trainable params: {self.trainable:,} || all params: {self.total:,} || "
                f"trainable%: {self.percent:.4f}")


@our_words
def count(model: Module) -> Count:
    """The model's parameters, trained and frozen. LoRA's share is Σ r · (d + k), §4.2."""
    sizes = [(p.data.size, p.requires_grad) for p in model.parameters()]
    return Count(sum(n for n, on in sizes if on), sum(n for n, on in sizes if not on))
