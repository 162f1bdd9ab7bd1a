"""Slots for what rooms below use and rooms above define; the package's face fills them."""
from collections.abc import Callable
from typing import Any


def interop(name: str) -> Callable[..., Any]:
    """Return the function of minilora.interop with this name; the package's face replaces this."""
    raise RuntimeError(f"{name} needs the whole package: import minilora")


def methods() -> None:
    """Load the room `methods`, so that adapters.METHODS has all; the package's face replaces this.
    """
