"""Modules and parameters put in the place of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..nn import Module, Parameter


def swap(model: Module, new: Mapping[str, Module | Parameter]) -> None:
    """Put each module or parameter in its place, found by its path.

    A layer that wraps another one, its `.base`, is looked through: paths are the plain model's.
    """
    for path, item in new.items():
        _put(model, path, item)


def _put(owner: Any, path: str, item: Any) -> Any:
    """The owner with this at that path: itself, or of a tuple another one."""
    if not path:
        return item
    if isinstance(owner, tuple):
        return getattr(owner, "_make", tuple)(_put([*owner], path, item))
    held: Any = owner if isinstance(owner, list | dict) else vars(owner)
    for key in range(len(held)) if isinstance(held, list) else held:
        if f"{path}.".startswith(f"{key}."):
            held[key] = _put(held[key], path[len(f"{key}.") :], item)
            return owner
    _put(held["base"], path, item)
    return owner
