"""NumPy's arithmetic flags: the engine computes with its own, whatever `np.seterr` says.

They are the value of a context variable, and a function that runs in a copy of the context cannot
leave them behind, however it ends.
"""

from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from .library import current

F = TypeVar("F", bound=Callable[..., Any])


def _set(**flags: Any) -> tuple[ContextVar[Any], Any]:
    """Return NumPy's context variable, and its value for these flags."""
    with np.errstate(**flags):
        found = {var.name: (var, value) for var, value in copy_context().items()}
    return found["numpy.ufunc.extobj"]


_flags, _ours = _set(divide="warn", over="warn", invalid="warn", under="ignore")
_quiet = _set(all="ignore")[1]
_fitting = None, _ours, _quiet  # None: nobody has set any, and NumPy's are like ours


def own_flags(function: F) -> F:
    """Run a function with the engine's flags: a warning for all but an underflow."""

    @wraps(function)
    def run(*inputs: Any, **settings: Any) -> Any:
        if _flags.get(None) in _fitting or not current().on_host:  # a device has no flags
            return function(*inputs, **settings)
        return copy_context().run(_with, _ours, function, inputs, settings)

    return run  # type: ignore[return-value]


def quietly(function: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
    """Return function(*inputs, **settings), computed without warnings of NumPy's: for a result that
    is checked for numbers that are not finite."""
    return copy_context().run(_with, _quiet, function, inputs, settings)


def _with(flags: Any, function: Callable[..., Any], inputs: Any, settings: Any) -> Any:
    _flags.set(flags)
    return function(*inputs, **settings)
