"""LoRA (arXiv 2106.09685): its layers, its settings, and the verbs for a model.

Read layers.py first, then config.py. The verbs are those of the one registry, minilora.adapters,
and work on every method.
"""

from __future__ import annotations

import os
from typing import Any

from ..adapters import (
    Adapted,
    Adapter,
    activate,
    adaptable,
    detach,
    disabled,
    merge,
    merged,
    per_row,
    set_adapter,
)
from ..adapters import attach as _attach
from ..adapters import load as _load
from ..adapters import save as save
from ..adapters.registry import adapters_of, state_of
from ..adapters.transaction import all_or_nothing
from ..backend import Rng
from ..nn import Module
from ..words import our_words
from .combination import combine
from .config import LoRAConfig
from .layers import LoRAEmbedding, LoRALinear

verify: Any  # minilora.rounding's; the package's face loads it when it is asked for

__all__ = [
    "Adapted", "Adapter", "LoRAConfig", "LoRAEmbedding", "LoRALinear", "activate", "adaptable",
    "attach", "combine", "detach", "disabled", "load", "merge", "merged", "per_row", "save",
    "set_adapter", "verify",
]


@our_words
@all_or_nothing
def attach(
    model: Module, config: LoRAConfig, name: str = "default", rng: Rng = None,
    base_dtype: Any = None,
) -> list[str]:
    """Freeze the model, put LoRA around its target layers; return their paths.

    The new adapter is active and trained, alone. See `adapters.attach` for names, `base_dtype` and
    errors. Warns of a rank that no ΔW can have.
    """
    _attach(model, config, name, rng, base_dtype)
    return list(adapters_of(model, name))


@our_words
@all_or_nothing
def load(
    model: Module, path: str | os.PathLike[str], name: str | None = None, trainable: bool = False,
    base_dtype: Any = None,
) -> list[str]:
    """Attach the adapter in a file of `save`; return the adapted paths. See `adapters.load`."""
    _load(model, path, name, trainable, base_dtype)
    return list(adapters_of(model, state_of(model).active[-1]))
