"""The slot of what rooms below offer and `interop`, a room above, defines; the face fills it."""
from collections.abc import Callable
from typing import Any


def interop(name: str) -> Callable[..., Any]:
    """Return the function of minilora.interop with this name; the package's face replaces this."""
    raise RuntimeError(f"{name} needs the whole package: import minilora")
