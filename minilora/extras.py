"""Modules that an extra brings: imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from .words import INSTALL


def need(module: str, who: str, extra: str) -> Any:
    """Return the module, which `who` needs. Raises ImportError, with the command to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{who} need {module.partition('.')[0]}: {INSTALL(extra)} ({error})") from error
