"""The model families by name, and the model for a config; files use the same names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .bert import Bert, BertConfig
from .config import ModelConfig
from .deberta import Deberta, DebertaConfig
from .decoder import Decoder
from .encoder import Encoder
from .gpt2 import GPT2, GPT2Config
from .llama import Llama, LlamaConfig
from .roberta import Roberta, RobertaConfig

Model = Decoder | Encoder
FAMILIES: dict[str, tuple[type[ModelConfig], Any]] = {
    "gpt2": (GPT2Config, GPT2),
    "bert": (BertConfig, Bert),
    "roberta": (RobertaConfig, Roberta),
    "deberta": (DebertaConfig, Deberta),
    "llama": (LlamaConfig, Llama),
}


SHAPES: dict[str, ModelConfig] = {  # Radford et al. 2019; Brown et al. 2020, table 2.1
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(d_model=1024, n_layers=24, n_heads=16),
    "gpt2-large": GPT2Config(d_model=1280, n_layers=36, n_heads=20),
    "gpt2-xl": GPT2Config(d_model=1600, n_layers=48, n_heads=25),
    "gpt3-175b": GPT2Config(n_positions=2048, d_model=12288, n_layers=96, n_heads=96),
    "bert-base": BertConfig(),
    "roberta-base": RobertaConfig(),
    "roberta-large": RobertaConfig(d_model=1024, n_layers=24, n_heads=16),
    "deberta-v2-xxlarge": DebertaConfig(),
    "smollm2-135m": LlamaConfig(),
}


def family_of(config: ModelConfig) -> str:
    """Return the family's name. Raises TypeError if `config` is not a model's config."""
    for name, (kind, _) in FAMILIES.items():
        if type(config) is kind:
            return name
    kinds = ", ".join(kind.__name__ for kind, _ in FAMILIES.values())
    raise TypeError(f"a model's config must be one of {kinds}, not {type(config).__name__}")


def build(config: ModelConfig, **how: Any) -> Any:
    """Return a new model with this config; how: rng, dtype, recompute."""
    return FAMILIES[family_of(config)][1](config, **how)


def smallest(config: ModelConfig) -> Any:
    """Return the smallest model with the same parameter names."""
    sizes = {"vocab_size": 1, "d_model": 2, "n_heads": 1, "n_kv_heads": 1, "d_ff": 1}
    own = {name: size for name, size in sizes.items() if hasattr(config, name)}
    return build(replace(config, **own), rng=0)
