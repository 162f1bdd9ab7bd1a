"""minilora: LoRA (arXiv 2106.09685) on NumPy, small enough to read in one sitting.

The public names are those of public.py, which is loaded when the first of them is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    public = None if name.startswith("_") else importlib.import_module(".public", __name__)
    if hasattr(public, name):
        return getattr(public, name)
    raise AttributeError(f"minilora has no {name!r}: dir(minilora) lists what it has")


def __dir__() -> list[str]:
    return [*globals(), *importlib.import_module(".public", __name__).__all__]
