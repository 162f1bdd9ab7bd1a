"""Which model a config makes; a family's name is that in its files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config import BertConfig, DebertaConfig, GPT2Config, ModelConfig, RobertaConfig
from .bert import Bert
from .deberta import Deberta
from .encoder import Encoder
from .gpt2 import GPT2
from .roberta import Roberta

Model = GPT2 | Encoder
FAMILIES: dict[str, tuple[type[ModelConfig], Any]] = {
    "gpt2": (GPT2Config, GPT2),
    "bert": (BertConfig, Bert),
    "roberta": (RobertaConfig, Roberta),
    "deberta": (DebertaConfig, Deberta),
}


def family_of(config: ModelConfig) -> str:
    """The name of the family. Raises TypeError where it is no model's config."""
    for name, (kind, _) in FAMILIES.items():
        if type(config) is kind:
            return name
    kinds = ", ".join(kind.__name__ for kind, _ in FAMILIES.values())
    raise TypeError(f"a model is made of one of {kinds}, not of {type(config).__name__}")


def build(config: ModelConfig, **how: Any) -> Any:
    """The model of this config; how: rng, dtype, recompute."""
    return FAMILIES[family_of(config)][1](config, **how)


def smallest(config: ModelConfig) -> Any:
    """A model of the same parts, as small as can be: for its names."""
    return build(replace(config, vocab_size=1, d_model=1, n_heads=1, d_ff=1), rng=0)
