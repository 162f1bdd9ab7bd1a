"""Elementwise formulas that become one kernel on a device."""

from __future__ import annotations

from collections.abc import Callable

from . import current


def fused(formula: Callable[..., None]) -> Callable[..., None]:
    """An elementwise formula, in place: one kernel on a device, and on the host what it says.

    It may use operators, ufuncs and `out=`, on its arguments (arrays that broadcast to the largest,
    Python numbers) and on constants of its module; every array that it writes to is an argument of
    the full shape. What changes from call to call is an argument, and two of its numbers never
    meet without an array between them: CuPy would compute that in half precision.
    """
    return lambda *arguments: current().fuse(formula)(*arguments)
