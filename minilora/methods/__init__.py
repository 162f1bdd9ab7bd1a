"""The methods that the paper compares LoRA with (§2, §5.1), LoRA itself, and its variants.

    methods.apply(model, "adapter-h", r=8)        frozen, but for what the method trains
    methods.activate(model, "default")            that one is active, of several by name
    methods.remove(model)                         the base, bit for bit

The verbs are those of the one registry, minilora.adapters, which `lora.attach` uses too.
"""

from __future__ import annotations

from typing import Any

from ..adapters import (
    METHODS,
    Method,
    activate,
    detach,
    disabled,
    merge,
    merged,
    set_adapter,
    trained_by,
)
from ..adapters import attach as _attach
from ..adapters.files import load, save
from ..adapters.rows import per_row
from ..adapters.transaction import all_or_nothing
from ..backend import Rng
from ..lora.combination import combine
from ..lora.config import LoRAConfig
from ..nn import Module
from ..words import our_words
from .bottleneck import AdapterD, AdapterH, AdapterL, AdapterP
from .dora import DoRA
from .fine_tuning import BitFit, FTTop2, Full
from .lora_plus import LoRAPlus
from .lora_tokens import LoRAPreEmbed, LoRAPreLayer
from .pissa import PiSSA
from .prefix import PreEmbed, PreLayer, prompt
from .rslora import RsLoRA

LoRA = LoRAConfig
remove = detach

__all__ = [
    "METHODS", "AdapterD", "AdapterH", "AdapterL", "AdapterP", "BitFit", "DoRA", "FTTop2", "Full",
    "LoRA", "LoRAPlus", "LoRAPreEmbed", "LoRAPreLayer", "Method", "PiSSA", "PreEmbed", "PreLayer",
    "RsLoRA", "activate", "apply", "combine", "disabled", "load", "merge", "merged", "per_row",
    "prompt", "remove", "save", "set_adapter", "trained_by",
]


@our_words
@all_or_nothing
def apply(
    model: Module, method: Method | str, name: str = "default", rng: Rng = None,
    base_dtype: Any = None, **settings: Any,
) -> list[str]:
    """Freeze the model and let this method be trained instead; return the names of what it trains.

    method: a name of METHODS with its settings, or a method: "adapter-h", r=8 is AdapterH(r=8).
    Several can be applied under names of their own; the new one is active (see `activate`). For
    `base_dtype` see `adapters.attach`. Raises ValueError for an unknown method, for a name that is
    taken, and where the method does not fit the model.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"apply: unknown method {method!r}: choose {', '.join(METHODS)}")
        method = METHODS[method](**settings)
    elif settings or not isinstance(method, Method):
        raise TypeError(
            'apply: it takes a method\'s name and its settings, as in "lora", r=8, or a method, as '
            f"in methods.LoRA(r=8): not {method!r}, {settings}"
        )
    return _attach(model, method, name, rng, base_dtype)  # type: ignore[no-any-return]
