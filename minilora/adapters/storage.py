"""Store the base's frozen matrices in half precision, or as codes; each product widens them again.

Widening is exact, so the model equals, bit for bit, one whose matrices were rounded once. Norms,
biases, adapters and all trained parameters stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import Array, Quantised, current, quantised
from ..backend.quantised import LEVELS
from ..nn import Embedding, Linear, Module, Parameter
from .places import adapted

Matrices = dict[str, tuple[Any, Parameter, str]]  # name -> (its layer, the matrix, its new dtype)


def storable(base: Mapping[str, tuple[Module, Parameter]], dtype: Any) -> Matrices:
    """Return the base's matrices by name, each with its new dtype; none if `dtype` is None.

    base: name -> (its module, the parameter). Nothing is changed. "nf4" and "int8" are codes, for
    the Linear layers of `blocks` (as in QLoRA); other dtypes are for tables, too. Raises ValueError
    if there is no such matrix, if `dtype` is not a float narrower than the layer's, if a number is
    beyond its range, or if a matrix is stored as other codes already.
    """
    if dtype is None:
        return {}
    format = format_of(dtype)
    own = {p for name, (owner, p) in base.items() if not has_codes(name, owner)}
    matrices: Matrices = {
        name: (owner, p, format) for name, (owner, p) in base.items()
        if isinstance(owner, Linear | Embedding) and name.endswith(".W")
        and (format not in LEVELS or p not in own)
    }
    if not matrices and format in LEVELS:
        raise ValueError(
            f"base_dtype: {format} is for the Linear layers of a model's `blocks`, and this model "
            "has none: give 'float16', or None"
        )
    for name, (owner, p, _) in matrices.items():
        _check(name, owner, p, format)
    return matrices


def format_of(dtype: Any) -> str:
    """Return the name of a dtype for `storable`: "nf4" is one, too."""
    try:
        return dtype if dtype in LEVELS else np.dtype(dtype).name  # type: ignore[no-any-return]
    except TypeError as error:
        raise ValueError(f"base_dtype: {error}: give 'float16', 'nf4', 'int8', or None") from error


def has_codes(name: str, owner: Any) -> bool:
    """Return whether this parameter is one of those that "nf4" and "int8" store as codes."""
    return type(owner) is Linear and name.startswith("blocks.") and name.endswith(".W")


def _check(name: str, owner: Any, p: Parameter, format: str) -> None:
    if isinstance(p.data, Quantised):
        if p.data.format != format:
            raise ValueError(
                f"base_dtype: {name} is stored as {p.data.format} codes already: give "
                f"'{p.data.format}', or None"
            )
        return
    stored = np.dtype("float32" if format in LEVELS else format)  # the scales are float32
    if format not in LEVELS and (stored.kind != "f" or stored.itemsize >= owner.dtype.itemsize):
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


def store(model: Module, matrices: Matrices, state: Any) -> None:
    """Round each matrix to its dtype, for good. It stays frozen after the last adapter is removed,
    because half precision would lose updates of the size that training makes.

    Raises ValueError if the model's methods train a copy of a matrix of codes, or an adapter needs
    the numbers of its layer's.
    """
    for owner, p, format in matrices.values():
        p.data, state.flags[p] = narrowed(p.data, format, owner.dtype), False
    for name, copies in state.copies.items():
        for at in copies:
            if isinstance(coded := state.base[at].data, Quantised):
                raise ValueError(
                    f"{name} ({state.configs[name].called}) trains a copy of {at}, which is stored "
                    f"as {coded.format} codes: choose a method that leaves it frozen, such as "
                    "lora, or base_dtype=None"
                )
    for path, module in adapted(model).items():
        for name, adapter in module.adapters.items():
            coded = getattr(getattr(module.base, "W", None), "data", None)
            if adapter.needs_numbers and isinstance(coded, Quantised):
                raise ValueError(
                    f"{name} ({state.configs[name].called}) at {path}: {adapter.needs_numbers}, "
                    f"and W is stored as {coded.format} codes: choose lora, or base_dtype=None"
                )


def narrowed(array: Array | Quantised, format: str, dtype: Any) -> Array | Quantised:
    """Return the array in this format. dtype: of the numbers, if it is one of codes."""
    if format not in LEVELS:
        return array.astype(format)
    return array if isinstance(array, Quantised) else quantised(array, format, dtype)


def rounded(name: str, owner: Module, array: Any, dtype: Any) -> Any:
    """Return a parameter's array as it would be stored: in this dtype, or as codes if it has any.

    None: as it is.
    """
    if dtype is None or (dtype in LEVELS and not has_codes(name, owner)):
        return array
    return narrowed(array, dtype, getattr(owner, "dtype", None))


def wide_copy(owner: Module, p: Parameter) -> Parameter:
    """Return a copy of a base parameter to train: in its layer's dtype, at least float32."""
    dtype = np.promote_types(str(getattr(owner, "dtype", p.dtype)), "float32")
    return Parameter.of(p.data.astype(dtype), requires_grad=True)
