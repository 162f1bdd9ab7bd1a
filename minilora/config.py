"""What a model is made with, and what an adapter is: sizes and settings, checked when given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class GPT2Config:
    """The sizes of a GPT-2; the defaults are GPT-2 small."""

    vocab_size: int = 50257
    n_positions: int = 1024  # the longest input, in tokens
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12  # d_model is a multiple of it
    d_ff: int = 0  # 0: four times d_model
    dropout: float = 0.0  # of the embeddings and of what each half block adds

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "d_model", "n_layers", "n_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"GPT2Config: {name} is {getattr(self, name)}, must be at least 1")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"GPT2Config: d_model {self.d_model} is not a multiple of n_heads {self.n_heads}"
            )


SHAPES = {  # Radford et al. 2019; Brown et al. 2020, table 2.1
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(d_model=1024, n_layers=24, n_heads=16),
    "gpt2-large": GPT2Config(d_model=1280, n_layers=36, n_heads=20),
    "gpt2-xl": GPT2Config(d_model=1600, n_layers=48, n_heads=25),
    "gpt3-175b": GPT2Config(n_positions=2048, d_model=12288, n_layers=96, n_heads=96),
}


@dataclass(frozen=True)
class LoRAConfig:
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
        for name in ("targets", "trainable"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        for r in (self.r, *self.rank_pattern.values()):
            if isinstance(r, bool) or not isinstance(r, int) or r < 1:
                raise ValueError(f"LoRAConfig: r must be a whole number from 1, not {r!r}")
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if not math.isfinite(alpha):
                raise ValueError(f"LoRAConfig: alpha must be finite, not {alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRAConfig: dropout must be in [0, 1), not {self.dropout}")
        for name, known in (("init", ("gaussian", "kaiming")), ("bias", ("none", "lora", "all"))):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"LoRAConfig: {name} is one of {', '.join(known)}, not {value!r}")
