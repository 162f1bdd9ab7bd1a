"""The methods that the paper compares LoRA with (§2, §5.1), LoRA itself, and its variants.

    methods.apply(model, "adapter-h", r=8)        freeze the model, train the method's parameters
    methods.activate(model, "default")            of several methods, activate this one
    methods.remove(model)                         give the base back, bit for bit

The functions are those of the registry, minilora.adapters. `lora.attach` uses it too.
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
from .peft_lora import PeftLoRA
from .pissa import PiSSA
from .prefix import PreEmbed, PreLayer, prompt
from .rslora import RsLoRA

LoRA = LoRAConfig
remove = detach

__all__ = [
    "METHODS", "AdapterD", "AdapterH", "AdapterL", "AdapterP", "BitFit", "DoRA", "FTTop2", "Full",
    "LoRA", "LoRAPlus", "LoRAPreEmbed", "LoRAPreLayer", "Method", "PeftLoRA", "PiSSA", "PreEmbed",
    "PreLayer", "RsLoRA", "activate", "apply", "combine", "disabled", "load", "merge", "merged",
    "per_row",
    "prompt", "remove", "save", "set_adapter", "trained_by",
]


@our_words
@all_or_nothing
def apply(
    model: Module, method: Method | str, name: str = "default", rng: Rng = None,
    base_dtype: Any = None, **settings: Any,
) -> list[str]:
    """Freeze the model, attach a method; return the names of the parameters that it trains.

    method: a name in METHODS with its settings, or a method: "adapter-h", r=8 is AdapterH(r=8).
    Several methods can be applied under different names. The new one is active and trained, alone.
    For `base_dtype` see `adapters.attach`. Raises ValueError for an unknown method, for a name that
    is taken, and if the method does not fit the model.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"apply: unknown method {method!r}: choose {', '.join(METHODS)}")
        method = METHODS[method](**settings)
    elif settings or not isinstance(method, Method):
        raise TypeError(
            'apply: give a method\'s name and its settings, as in "lora", r=8, or a method, as in '
            f"methods.LoRA(r=8), not {method!r}, {settings}"
        )
    return _attach(model, method, name, rng, base_dtype)  # type: ignore[no-any-return]
