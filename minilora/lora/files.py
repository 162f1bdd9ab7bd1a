"""LoRA's `load`, which returns the adapted paths."""

from __future__ import annotations

import os
from typing import Any

from ..adapters import files
from ..adapters.registry import adapters_of, state_of
from ..adapters.transaction import all_or_nothing
from ..nn import Module
from ..words import our_words


@our_words
@all_or_nothing
def load(
    model: Module, path: str | os.PathLike[str], name: str | None = None, trainable: bool = False,
    base_dtype: Any = None,
) -> list[str]:
    """Attach the adapter in a file from `save`; return the adapted paths. See `adapters.load`."""
    files.load(model, path, name, trainable, base_dtype)
    return list(adapters_of(model, state_of(model).active[-1]))
