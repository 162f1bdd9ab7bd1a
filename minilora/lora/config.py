"""What to adapt, and how: the settings of LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checks import choice, describe, real, whole
from ..config import Config


@dataclass(frozen=True)
class LoRAConfig(Config):
    """What to adapt and how. Patterns are a layer's name ("q"), a glob, or its whole path.
    targets        layers that get an adapter (§4.2: attention weights; the paper chose q and v)
    dropout        of the adapter's input, in training only; tables of rows (embeddings) have none
    init           of A: "gaussian", σ² = 1/k (§4.1 leaves σ open), or "kaiming", uniform
                   in ±1/√k, as the authors' code has it. B is 0. A table's A: σ² = 1/r.
    bias           "none", "lora" (the adapted layers' biases train too), "all" (every bias)
    trainable      more parameters to train whole, such as a task's head
    rank_pattern   pattern -> r, alpha_pattern: pattern -> alpha, where a layer differs
    """

    r: int = 8
    alpha: float = 8.0
    targets: Sequence[str] = ("q", "v")
    dropout: float = 0.0
    init: str = "gaussian"
    bias: str = "none"
    trainable: Sequence[str] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        who = "LoRAConfig"
        for name in ("targets", "trainable"):
            self._set(**{name: _patterns(name, getattr(self, name))})
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(held := getattr(self, name), Mapping):
                raise ValueError(
                    f'{who}: {name} is a mapping like {{"attn.q": 4}}, not {describe(held)}'
                )
            _patterns(name, held)
        self._set(
            r=whole(who, "r", self.r, 1),
            alpha=_alpha("alpha", self.alpha),
            dropout=real(who, "dropout", self.dropout, "[0, 1)"),
            rank_pattern={
                at: whole(who, f"rank_pattern[{at!r}]", r, 1) for at, r in self.rank_pattern.items()
            },
            alpha_pattern={
                at: _alpha(f"alpha_pattern[{at!r}]", alpha)
                for at, alpha in self.alpha_pattern.items()
            },
        )
        for name, known in (("init", ("gaussian", "kaiming")), ("bias", ("none", "lora", "all"))):
            choice(who, name, getattr(self, name), known)


def _patterns(name: str, given: Any) -> tuple[str, ...]:
    """The patterns that were given, one alone or several."""
    held = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    for pattern in held:
        if not isinstance(pattern, str):
            raise ValueError(
                f'LoRAConfig: {name} takes names or patterns such as "q" and "attn.*", '
                f"not {describe(pattern)}"
            )
    return held


def _alpha(name: str, given: Any) -> float:
    alpha = real("LoRAConfig", name, given)
    if alpha == 0:
        raise ValueError(
            f"LoRAConfig: {name} must not be 0: the adapter would change nothing, and learn nothing"
        )
    if alpha < 0:
        warnings.warn(
            f"LoRAConfig: {name} is {alpha:g}: a negative one turns the update around, which is "
            "hardly meant",
            stacklevel=4,
        )
    return alpha
