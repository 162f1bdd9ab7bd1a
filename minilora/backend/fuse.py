"""Elementwise formulas that become one kernel on a device."""

from __future__ import annotations

from collections.abc import Callable

from . import current


def fused(formula: Callable[..., None]) -> Callable[..., None]:
    """Make one kernel of an elementwise in-place formula on a device; on the host it runs as is.

    The formula may use operators, ufuncs and `out=`. Its operands are its arguments (arrays that
    broadcast to the largest one, Python numbers) and constants of its module. Every array that it
    writes to is an argument of the full shape. A value that changes between calls is an argument.
    Two numbers that are arguments never meet without an array between them, because CuPy would
    compute that in half precision.
    """
    return lambda *arguments: current().fuse(formula)(*arguments)
