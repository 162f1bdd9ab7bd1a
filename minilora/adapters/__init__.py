"""The registry of adapters: what is attached to a model, and every verb for it.

protocol.py says what an adapter is; registry.py what a method is, and attaches, activates and
detaches it; merging.py merges; rows.py gives each batch row its own; files.py saves and loads.
LoRA (minilora.lora) and its rivals (minilora.methods) are instances of the protocol.
"""

from .context import Context, context, within
from .files import load, save
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
from .rows import per_row

__all__ = [
    "METHODS", "Adapted", "Adapter", "Adapters", "Context", "Factors", "Method", "activate",
    "adaptable", "attach", "context", "detach", "disabled", "load", "merge", "merged", "per_row",
    "save", "set_adapter", "trained_by", "within",
]
