"""The updates ΔW of a model: read from its adapters, or the difference of two models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..adapters.places import adapted
from ..adapters.protocol import Adapted
from ..adapters.registry import state_of
from ..backend import asnumpy
from ..checks import describe
from ..nn import Embedding, Module
from ..words import our_words

Update = tuple[float, np.ndarray, np.ndarray] | np.ndarray  # (scale, B, A), or the matrix
State = Module | Mapping[str, Any]  # a model, or its state_dict


@our_words
def updates(model: Module, name: str | None = None) -> dict[str, Update]:
    """Return parameter's name -> ΔW, of one adapter, or of all active ones together (name=None).

    ΔW is (scale, B, A) with B (d, r) and A (r, k) in W's orientation, float64, where it has factors
    (several adapters of one layer: [B1, B2, ...] and [A1; A2; ...]). It is a matrix (d, k) for DoRA
    and for parameters of which the method trains a copy, such as those of full fine-tuning. Vectors
    are left out. All functions of `analysis` take both forms.

    Raises KeyError for a name that is not attached, ValueError if nothing is attached, or no
    matrix is updated.
    """
    state = state_of(model, *([] if name is None else [name]))
    names = state.active if name is None else (name,)
    result: dict[str, Update] = {}
    for path, module in adapted(model).items():
        here = [n for n in names if n in module.adapters]
        here = [n for n in here if module.adapters[n].factors() is not None]
        if here:
            result[f"{path}.W"] = _of_layer(module, here)
    for other in names:
        for at, copy in state.copies[other].items():
            if len(copy.shape) == 2:
                result[at] = _wide(copy) - _wide(state.base[at])
    if not result:
        raise ValueError(f"updates: there is no update of a matrix in {list(names)}: activate, or "
                         "name, an adapter that has one, such as LoRA or full fine-tuning")
    return result


@our_words
def difference(before: State, after: State) -> dict[str, np.ndarray]:
    """Return parameter's name -> W after - W before, float64 (d, k), for every matrix.

    before, after: two models, or their `state_dict()`s; vectors are left out. Raises KeyError if
    the names of the parameters differ, ValueError if their shapes do.
    """
    first, second = (_state(s, n) for s, n in ((before, "before"), (after, "after")))
    if unequal := sorted(first.keys() ^ second.keys()):
        raise KeyError(f"difference: only one of the two has {', '.join(unequal[:5])} "
                       f"({len(unequal)} in all): for an adapted model use updates(model)")
    result = {}
    for at, x in first.items():
        W0, W = _wide(x), _wide(second[at])
        if W0.shape != W.shape:
            raise ValueError(f"difference: {at} is {W0.shape} before, {W.shape} after")
        if W.ndim == 2:
            result[at] = W - W0
    return result


def _state(given: State, name: str) -> Mapping[str, Any]:
    if isinstance(given, Module):
        return dict(given.named_parameters())
    if not isinstance(given, Mapping):
        raise TypeError(
            f"difference: {name} must be a model or its state_dict(), not {describe(given)}")
    return given


def _of_layer(module: Adapted, names: list[str]) -> Update:
    """Return ΔW of these adapters of a layer: (scale, B, A), or a matrix for DoRA."""
    adapters = [module.adapters[n] for n in names]
    if any(a.row_scale() is not None for a in adapters):
        return np.array(asnumpy(module.delta(names)))
    terms = [term for a in adapters for term in a.factors() or ()]
    first = next((scale for scale, _, _ in terms if scale), 1.0)
    B = np.hstack([scale / first * _wide(B) for scale, B, _ in terms])
    A = np.vstack([_wide(A) for _, _, A in terms])
    return (first, A.T, B.T) if isinstance(module.base, Embedding) else (first, B, A)


def _wide(x: Any) -> np.ndarray:
    """Return a copy of an array or Tensor on the host, in float64."""
    return asnumpy(x).astype(np.float64)
