"""One adapter, one file: A and B and what is trained whole, not a byte of the base."""
from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ..adapters.storage import storable, store
from ..adapters.transaction import all_or_nothing
from ..backend import asnumpy
from ..files import checkpoint
from ..nn import Module
from .config import LoRAConfig
from .convert import activate, adapters_of, base_of, install, layers_of, trained_by


def save(model: Module, path: str | os.PathLike[str], name: str | None = None) -> Any:
    """Write one adapter alone (.npz): A and B, what it trains whole, r, alpha and scale of each.
    `name`: which; None where only one is attached. Raises as `checkpoint.write` does.
    """
    state = adapters_of(model, *([] if name is None else [name]))
    if name is None and len(state.configs) > 1:
        raise ValueError(f"save: which adapter? There are {sorted(state.configs)}")
    name = name or next(iter(state.configs))
    layers = {at: x.adapters for at, x in layers_of(model).items() if name in x.adapters}
    held = {at: adapters[name].plain() for at, adapters in layers.items()}
    meta = {
        "kind": "adapter", "name": name, "config": asdict(state.configs[name]),
        "layers": {at: {"r": a.r, "alpha": a.alpha, "scale": a.scale} for at, a in held.items()},
        "whole": list(state.whole[name]), "base": _fingerprint(model, held)}
    ours = {f"{at}.{x}": p for at, a in held.items() for x, p in a.named_parameters()}
    arrays = {at: asnumpy(p.data) for at, p in (ours | state.whole[name]).items()}
    return checkpoint.write(path, arrays, meta)

@all_or_nothing
def load(
    model: Module, path: str | os.PathLike[str], name: str | None = None, trainable: bool = False,
    base_dtype: Any = None) -> list[str]:
    """Add the adapter in a file that `save` made, and activate it; returns the adapted paths.
    It is frozen unless `trainable`; a base without adapters is frozen, other adapters keep their
    flags. All or nothing: what does not fit, in names, shapes or numbers, raises ValueError with
    the file's name. Warns where W0 is not what the adapter was trained on: for one that was trained
    over a base stored in half precision, give the same `base_dtype` (see attach).
    """
    fresh = not hasattr(model, "adapters")
    with checkpoint.opened(path, "adapter") as file, file.blamed():
        told, facts, layers, whole, base = file.facts(
            name=str, config=dict, layers=dict, whole=list, base=str)
        plan = dict[str, tuple[int, float]]()
        for at, of in layers.items():
            r, alpha, scale = file.facts(at, of, r=int, alpha=float, scale=float)
            if r < 1 or scale != alpha / r:
                raise ValueError(f"the scale of {at} is {scale}, not alpha / r = {alpha} / {r}")
            plan[at] = r, alpha
        name, matrices = name or told, storable(base_of(model), base_dtype)
        state = install(model, name, LoRAConfig(**facts), plan, whole, file.budget())
        ours = trained_by(model, name)
        arrays = file.arrays({at: p.shape for at, p in ours.items()})
        checkpoint.fill({at: p.data for at, p in ours.items()}, arrays, "load")
    store(matrices, state.required)
    if fresh:
        model.requires_grad_(False)
    for p in ours.values():
        p.requires_grad = trainable
    activate(model, name)
    if _fingerprint(model, plan) != base:
        warnings.warn(f"load: {path} was trained on another base than this model", stacklevel=3)
    return list(plan)

def _fingerprint(model: Module, paths: Iterable[str]) -> str:
    base = base_of(model)
    return checkpoint.fingerprint(asnumpy(base[f"{at}.W"][1].data) for at in paths)
