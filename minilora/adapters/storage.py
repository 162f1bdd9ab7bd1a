"""A base whose frozen matrices are stored in half precision, and widened for each product.

Widening is exact. So the model equals, bit for bit, one whose matrices were rounded once. Norms,
biases, adapters and everything that is trained stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import current
from ..nn import Embedding, Linear, Module, Parameter


def storable(
    base: Mapping[str, tuple[Module, Parameter]], dtype: Any
) -> dict[str, tuple[Parameter, np.dtype[Any]]]:
    """Return the base's matrices by name, each with its new dtype; none where `dtype` is None.

    base: name -> (the module that has the parameter, the parameter). Nothing is changed. Raises
    ValueError where `dtype` is not a float narrower than the one in which the layer computes, or
    where a number is beyond its range.
    """
    found: dict[str, tuple[Parameter, np.dtype[Any]]] = {}
    if dtype is None:
        return found
    try:
        stored = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"base_dtype: {error}: give 'float16', or None") from error
    for name, (owner, p) in base.items():
        if not isinstance(owner, Linear | Embedding) or not name.endswith(".W"):
            continue
        if stored.kind != "f" or stored.itemsize >= owner.dtype.itemsize:
            raise ValueError(
                f"base_dtype: {name} computes in {owner.dtype}, and {stored} is not a narrower "
                "float: give 'float16', or None to store it as it is"
            )
        largest, most = current().read(abs(p.data).max(), 0.0), float(np.finfo(stored).max)
        if not largest <= most:  # false for nan, too
            raise ValueError(
                f"base_dtype: {name} holds {largest:.6g}, {stored} ends at {most:.6g}: give a "
                "wider float, or None to store the base as it is"
            )
        found[name] = p, stored
    return found


def store(
    matrices: Mapping[str, tuple[Parameter, np.dtype[Any]]], flags: dict[Parameter, bool]
) -> None:
    """Round each of them to its dtype, for good. They stay frozen when the last adapter is gone:
    in so few digits, an update of the size that training makes would be lost."""
    for p, dtype in matrices.values():
        p.data, flags[p] = p.data.astype(dtype), False


def wide_copy(owner: Module, p: Parameter) -> Parameter:
    """A copy of a base parameter for training: in its layer's dtype, float32 at least."""
    dtype = np.promote_types(str(getattr(owner, "dtype", p.dtype)), "float32")
    return Parameter(p.data.astype(dtype))
