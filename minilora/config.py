"""What a model is made with, and what an adapter is: sizes and settings, checked when given."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from .checks import real, told, whole

OURS = {  # what Hugging Face and PEFT call it -> what it is called here
    "n_ctx": "n_positions", "max_position_embeddings": "n_positions",
    "n_embd": "d_model", "hidden_size": "d_model",
    "n_layer": "n_layers", "num_layers": "n_layers", "num_hidden_layers": "n_layers",
    "n_head": "n_heads", "num_heads": "n_heads", "num_attention_heads": "n_heads",
    "n_inner": "d_ff", "intermediate_size": "d_ff",
    "resid_pdrop": "dropout", "embd_pdrop": "dropout", "lora_dropout": "dropout",
    "rank": "r", "lora_r": "r", "lora_rank": "r", "lora_alpha": "alpha",
    "target_modules": "targets", "modules_to_save": "trainable", "init_lora_weights": "init",
}  # fmt: skip


class Config:
    """What both are: settings that may be misspelt, or given by another package's name for them."""

    def __new__(cls, *values: Any, **settings: Any) -> Self:
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        for name in [name for name in settings if name not in names]:
            if OURS.get(name) in names:
                raise TypeError(f"{cls.__name__}: {name} is called {OURS[name]} here")
            from difflib import get_close_matches

            near = get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise TypeError(f"{cls.__name__}: there is no setting {name!r}: {hint}")
        return super().__new__(cls)

    def _set(self, **checked: Any) -> None:
        """What was given, as it is kept: ints, floats, tuples."""
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class GPT2Config(Config):
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
            self._set(**{name: whole("GPT2Config", name, getattr(self, name), 1)})
        self._set(
            d_ff=whole("GPT2Config", "d_ff", self.d_ff),
            dropout=real("GPT2Config", "dropout", self.dropout, "[0, 1)"),
        )
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
                    f'{who}: {name} is a mapping like {{"attn.q": 4}}, not {told(held)}'
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
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"LoRAConfig: {name} is one of {', '.join(known)}, not {value!r}")


def _patterns(name: str, given: Any) -> tuple[str, ...]:
    """The patterns that were given, one alone or several."""
    held = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    for pattern in held:
        if not isinstance(pattern, str):
            raise ValueError(
                f'LoRAConfig: {name} takes names or patterns such as "q" and "attn.*", '
                f"not {told(pattern)}"
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
