"""The paper's results as experiments that a laptop runs: `minilora reproduce NAME`.

An experiment is one file in `paper` (what the paper reports) or `beyond` (what is known since). It
declares its claims and the rule of each verdict before anything runs. Runs are jobs, shared by all
experiments and kept in a journal; the report is made from the journal.

`reproduce` and `Scale` are loaded when they are first used, as every command reads the names.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cells import Scale
    from .reporting import reproduce

__all__ = ["Scale", "reproduce"]
_FILES = {"Scale": "cells", "reproduce": "reporting"}


def __getattr__(name: str) -> Any:
    if name in _FILES:
        return getattr(importlib.import_module(f".{_FILES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
