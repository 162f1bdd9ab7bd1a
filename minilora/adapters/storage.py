"""Store the base's frozen matrices in half precision; each product widens them again.

Widening is exact, so the model equals, bit for bit, one whose matrices were rounded once. Norms,
biases, adapters and all trained parameters stay as they are.
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
    """Return the base's matrices by name, each with its new dtype; none if `dtype` is None.

    base: name -> (its module, the parameter). Nothing is changed. Raises ValueError if `dtype` is
    not a float narrower than the layer's, or if a number is beyond its range.
    """
    matrices: dict[str, tuple[Parameter, np.dtype[Any]]] = {}
    if dtype is None:
        return matrices
    try:
        stored = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"base_dtype: {error}: give 'float16', or None") from error
    for name, (owner, p) in base.items():
        if not isinstance(owner, Linear | Embedding) or not name.endswith(".W"):
            continue
        if stored.kind != "f" or stored.itemsize >= owner.dtype.itemsize:
            raise ValueError(
                f"base_dtype: {stored} is not a narrower float than {owner.dtype}, the dtype of "
                f"{name}: give 'float16', or None to store it as it is"
            )
        largest, most = current().read(abs(p.data).max(), 0.0), float(np.finfo(stored).max)
        if not largest <= most:  # false for nan, too
            raise ValueError(
                f"base_dtype: {name} contains {largest:.6g}, and {stored} ends at {most:.6g}: give "
                "a wider float, or None to store the base as it is"
            )
        matrices[name] = p, stored
    return matrices


def store(
    matrices: Mapping[str, tuple[Parameter, np.dtype[Any]]], flags: dict[Parameter, bool]
) -> None:
    """Round each matrix to its dtype, for good. It stays frozen after the last adapter is removed,
    because half precision would lose updates of the size that training makes."""
    for p, dtype in matrices.values():
        p.data, flags[p] = p.data.astype(dtype), False


def wide_copy(owner: Module, p: Parameter) -> Parameter:
    """Return a copy of a base parameter to train: in its layer's dtype, at least float32."""
    dtype = np.promote_types(str(getattr(owner, "dtype", p.dtype)), "float32")
    return Parameter.of(p.data.astype(dtype), requires_grad=True)
