"""minilora: LoRA (arXiv 2106.09685) on NumPy. Its core can be read in about three hours.

The public names are listed in public.py. A module is loaded when one of its names is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *

__version__ = "0.1.0"


class _Package(ModuleType):
    """The package as a module. Python sets each submodule as an attribute after loading it.

    `generate` and `gradcheck` are the functions, not the modules of the same names. After `ops`,
    `kernels` is loaded, which fills the ops' slots. So ops never import kernels. The slots for
    `interop` and `methods` are filled with a look-up, because few programs need them.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("generate", "gradcheck") and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)
        if name == "ops":
            importlib.import_module(".kernels", __name__)
        if name == "slots":
            value.interop = lambda function: getattr(
                importlib.import_module(".interop", __name__), function)
            value.methods = lambda: importlib.import_module(".methods", __name__)


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        try:
            importlib.import_module(f".{name}", __name__)  # this sets the attribute
            return globals()[name]
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise  # the module exists, but it needs one that is not installed
        public = importlib.import_module(".public", __name__)
        if hasattr(public, name):
            return globals().setdefault(name, getattr(public, name))  # next time it is an attribute
    if name == "__all__":
        return importlib.import_module(".public", __name__).__all__
    raise AttributeError(f"minilora has no {name!r}: see dir(minilora)")


def __dir__() -> list[str]:
    return [*globals(), *importlib.import_module(".public", __name__).__all__]


sys.modules[__name__].__class__ = _Package
