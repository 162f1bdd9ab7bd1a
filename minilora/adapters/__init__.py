"""The registry of adapters: what is attached to a model, and the functions that change it.

protocol.py defines an adapter. registry.py defines a method; it attaches, activates and detaches.
merging.py merges, rows.py runs one adapter per batch row, files.py saves and loads.
LoRA (minilora.lora) and the other methods (minilora.methods) follow the protocol.
"""

import importlib
from typing import Any

from .context import Context, context, within
from .merging import merge, merged
from .places import adaptable
from .protocol import Adapted, Adapter, Factors
from .registry import (
    METHODS,
    Adapters,
    Method,
    activate,
    attach,
    detach,
    disabled,
    set_adapter,
    trained_by,
)

__all__ = [
    "METHODS", "Adapted", "Adapter", "Adapters", "Context", "Factors", "Method", "activate",
    "adaptable", "attach", "context", "detach", "disabled", "load", "merge", "merged", "per_row",
    "save", "set_adapter", "trained_by", "within",
]
_LATER = {"load": ".files", "per_row": ".rows", "save": ".files"}  # loaded on first use


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"minilora.adapters has no {name!r}: it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_LATER[name], __name__), name)
