"""minilora: LoRA (arXiv 2106.09685) on NumPy, small enough to read in one sitting.

The public names are those of public.py. A module is loaded when something in it is asked for.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *

__version__ = "0.1.0"


class _Package(ModuleType):
    """Python sets each module as an attribute here when it has loaded it.

    `generate` and `gradcheck` are functions here, though modules of these names hold them. Whoever
    loads the ops loads their kernels too, which fill the ops' slots from above.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("generate", "gradcheck") and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)
        if name == "ops":
            importlib.import_module(".kernels", __name__)
        if name == "lora":
            vars(value)["__getattr__"] = _verify


def _verify(name: str) -> Any:
    """`lora.verify`, which is loaded when it is asked for: it stands above LoRA, in rounding."""
    if name != "verify":
        raise AttributeError(f"minilora.lora has no {name!r}")
    return importlib.import_module(".rounding", __name__).verify


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        try:
            importlib.import_module(f".{name}", __name__)  # which makes it an attribute
            return globals()[name]
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise  # it is there, and lacks something
        public = importlib.import_module(".public", __name__)
        if hasattr(public, name):
            return globals().setdefault(name, getattr(public, name))  # and found there from now on
    if name == "__all__":
        return importlib.import_module(".public", __name__).__all__
    raise AttributeError(f"minilora has no {name!r}: dir(minilora) lists what it has")


def __dir__() -> list[str]:
    return [*globals(), *importlib.import_module(".public", __name__).__all__]


sys.modules[__name__].__class__ = _Package
