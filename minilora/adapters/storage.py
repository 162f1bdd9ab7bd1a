"""A base that is stored narrower than it computes: its frozen matrices in half precision.

A matrix is widened when a product needs it, exactly. So the model is, bit for bit, the one whose
matrices were rounded once; norms, biases, adapters and all that is trained stay as they are.
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
    """The matrices among the base's parameters, by name, and their new dtype (dtype None: none).

    base: name -> the module that the parameter belongs to, and the parameter.
    Changes nothing. Raises ValueError where `dtype` is not a float narrower than what a layer
    computes in, or where a number does not fit.
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


def store(matrices: Mapping[str, tuple[Parameter, np.dtype[Any]]], flags: dict[str, bool]) -> None:
    """Round each of them to its dtype, for good. They stay frozen when the last adapter is gone:
    an update of the size that training takes would be lost in such a number."""
    for name, (p, dtype) in matrices.items():
        p.data, flags[name] = p.data.astype(dtype), False


def wide_copy(owner: Module, p: Parameter) -> Parameter:
    """A copy of the base's parameter to be trained, in what its layer computes in, or float32."""
    dtype = np.promote_types(str(getattr(owner, "dtype", p.dtype)), "float32")
    return Parameter(p.data.astype(dtype))
