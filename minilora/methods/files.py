"""One method, one file: its settings and what it trains, not a byte of the base."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict
from typing import Any

from ..adapters.transaction import all_or_nothing
from ..backend import asnumpy
from ..files import checkpoint
from ..nn import Module
from .applied import METHODS, applied_to, apply, base_of, trained_by


def save(model: Module, path: str | os.PathLike[str], name: str | None = None) -> Any:
    """Write what one method trains (.npz), and its settings; returns the path.

    name: which; None where only one is applied. Raises as `checkpoint.write` does.
    """
    state = applied_to(model, *([] if name is None else [name]))
    if name is None and len(state.methods) > 1:
        raise ValueError(f"save: which method? There are {sorted(state.methods)}")
    name = name or next(iter(state.methods))
    method, arrays = state.methods[name].saved(model, name)
    settings: dict[str, Any] = asdict(method)  # type: ignore[call-overload]
    meta = {
        "kind": "method", "name": name, "method": method.called, "settings": settings,
        "base": _fingerprint(model),
    }
    return checkpoint.write(path, arrays, meta)


@all_or_nothing
def load(
    model: Module, path: str | os.PathLike[str], name: str | None = None, trainable: bool = False
) -> list[str]:
    """Apply the method in a file that `save` made; returns the names of what it holds.

    It is frozen unless `trainable`. What does not fit, in names, shapes or numbers, raises
    ValueError with the file's name. Warns where the base is not what the method was trained on.
    """
    with checkpoint.opened(path, "method") as file, file.blamed():
        told, which, settings, base = file.facts(name=str, method=str, settings=dict, base=str)
        name = name or told
        if which not in METHODS:
            raise ValueError(f"there is no method {which!r}: another version wrote it")
        apply(model, METHODS[which](**settings), name, file.budget())
        ours = trained_by(model, name)
        arrays = file.arrays({at: p.shape for at, p in ours.items()})
        checkpoint.fill({at: p.data for at, p in ours.items()}, arrays, "load")
    for p in ours.values():
        p.requires_grad = trainable
    if _fingerprint(model) != base:
        warnings.warn(f"load: {path} was trained on another base than this model", stacklevel=3)
    return [*ours]


def _fingerprint(model: Module) -> str:
    return checkpoint.fingerprint(asnumpy(p.data) for _, p in base_of(model).values())
