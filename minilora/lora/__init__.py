"""LoRA (arXiv 2106.09685): its layers, its settings, and functions to adapt a model.

Read layers.py first, then config.py. The functions are those of the registry, minilora.adapters,
and work for every method.
"""

from __future__ import annotations

import importlib
from typing import Any

from .. import slots
from ..adapters import (
    Adapted,
    Adapter,
    activate,
    adaptable,
    detach,
    disabled,
    merge,
    merged,
    set_adapter,
)
from ..adapters import attach as _attach
from ..adapters.registry import adapters_of
from ..adapters.transaction import all_or_nothing
from ..backend import Rng
from ..nn import Module
from ..words import our_words
from .config import LoRAConfig
from .layers import LoRAEmbedding, LoRALinear

__all__ = [
    "Adapted", "Adapter", "LoRAConfig", "LoRAEmbedding", "LoRALinear", "activate", "adaptable",
    "attach", "combine", "detach", "disabled", "load", "load_peft", "merge", "merged", "per_row",
    "save", "save_peft", "set_adapter", "verify",
]
_LATER = {  # name -> its file, loaded on first use
    "combine": ".combination", "load": ".files", "per_row": "..adapters.rows",
    "save": "..adapters.files", "verify": "..rounding",
}


def __getattr__(name: str) -> Any:
    if name in ("load_peft", "save_peft"):
        return slots.interop(name)
    if name not in _LATER:
        raise AttributeError(f"minilora.lora has no {name!r}: it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_LATER[name], __name__), name)


@our_words
@all_or_nothing
def attach(
    model: Module, config: LoRAConfig, name: str = "default", rng: Rng = None,
    base_dtype: Any = None,
) -> list[str]:
    """Freeze the model, put LoRA around its target layers; return the paths of these layers.

    The new adapter is active and trained, alone. See `adapters.attach` for names, `base_dtype` and
    errors. Warns if r is greater than the largest possible rank of a ΔW.
    """
    _attach(model, config, name, rng, base_dtype)
    return list(adapters_of(model, name))
