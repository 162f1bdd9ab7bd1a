"""A config: settings that are checked when it is made, with an answer for other packages' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

from .checks import whole

OURS = {  # what Hugging Face and PEFT call it -> what it is called here
    "n_ctx": "n_positions", "max_position_embeddings": "n_positions",
    "n_embd": "d_model", "hidden_size": "d_model",
    "n_layer": "n_layers", "num_layers": "n_layers", "num_hidden_layers": "n_layers",
    "n_head": "n_heads", "num_heads": "n_heads", "num_attention_heads": "n_heads",
    "n_inner": "d_ff", "intermediate_size": "d_ff",
    "layer_norm_eps": "eps", "type_vocab_size": "n_types", "pad_token_id": "padding_id",
    "hidden_dropout_prob": "dropout",
    "resid_pdrop": "dropout", "embd_pdrop": "dropout", "lora_dropout": "dropout",
    "rank": "r", "lora_r": "r", "lora_rank": "r", "lora_alpha": "alpha",
    "target_modules": "targets", "modules_to_save": "trainable", "init_lora_weights": "init",
}


class Config:
    """What both are: settings that may be misspelt, or given by another package's name for them."""

    counted: ClassVar[Mapping[str, str]] = {}  # other tools count it differently, too

    def __new__(cls, *values: Any, **settings: Any) -> Self:
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        for name in [name for name in settings if name not in names]:
            if OURS.get(name) in names:
                raise TypeError(
                    f"{cls.__name__}: {name} is called {OURS[name]} here"
                    + cls.counted.get(name, "")
                )
            from difflib import get_close_matches

            near = get_close_matches(name, names, 1)
            there = f"there are {', '.join(names)}" if names else "it has none"
            hint = f"did you mean {near[0]}?" if near else there
            raise TypeError(f"{cls.__name__}: there is no setting {name!r}: {hint}")
        return super().__new__(cls)

    def _set(self, **checked: Any) -> None:
        """What was given, as it is kept: ints, floats, tuples."""
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _whole(self, least: int, *names: str) -> None:
        """These are whole numbers, `least` or more."""
        for name in names:
            self._set(**{name: whole(type(self).__name__, name, getattr(self, name), least)})
