"""One adapter, one file: A and B and what is trained whole, not a byte of the base."""
from __future__ import annotations
import os
import warnings
from dataclasses import asdict
from typing import Any
from .. import checkpoint
from ..backend import asarray, asnumpy, generator
from ..config import LoRAConfig
from ..nn import Module
from ..storage import storable, store
from .convert import activate, adapters_of, base_of, detach, install, layers_of, trained_by

def save(model: Module, path: str | os.PathLike[str], name: str | None = None) -> Any:
    """Write one adapter alone (.npz): A and B, what it trains whole, r, alpha and scale of each.
    `name`: which; None where only one is attached.
    """
    state = adapters_of(model, *([] if name is None else [name]))
    if name is None and len(state.configs) > 1:
        raise ValueError(f"save: which adapter? There are {sorted(state.configs)}")
    name = name or next(iter(state.configs))
    held = {at: x.adapters[name] for at, x in layers_of(model).items() if name in x.adapters}
    meta = {
        "kind": "adapter", "name": name, "config": asdict(state.configs[name]),
        "layers": {at: {"r": a.r, "alpha": a.alpha, "scale": a.scale} for at, a in held.items()},
        "whole": list(state.whole[name]), "base": _fingerprint(model, name)}
    arrays = {at: asnumpy(p.data) for at, p in trained_by(model, name).items()}
    return checkpoint.write(path, arrays, meta)

def load(
    model: Module, path: str | os.PathLike[str], name: str | None = None, trainable: bool = False,
    base_dtype: Any = None) -> list[str]:
    """Add the adapter in a file that `save` made, and activate it; returns the adapted paths.
    It is frozen unless `trainable`; a base without adapters is frozen, other adapters keep their
    flags. Strict: a missing or unexpected array, or a shape that does not fit, raises ValueError
    and leaves the model as it was. Warns where W0 is not what the adapter was trained on: for one
    that was trained over a base stored in half precision, give the same `base_dtype` (see attach).
    """
    arrays, meta = checkpoint.read(path, kind="adapter")
    try:
        config, name, whole = LoRAConfig(**meta["config"]), name or meta["name"], meta["whole"]
        plan = {at: (facts["r"], facts["alpha"]) for at, facts in meta["layers"].items()}
    except (TypeError, KeyError) as error:
        raise ValueError(f"load: {path} is of another version of minilora: {error}") from error
    fresh, matrices = not hasattr(model, "adapters"), storable(base_of(model), base_dtype)
    try:
        state = install(model, name, config, plan, whole, generator(0))
    except ValueError as error:
        raise ValueError(f"load: {path} does not fit this model: {error}") from error
    ours = {at: (p, p.shape) for at, p in trained_by(model, name).items()}
    shapes = {at: array.shape for at, array in arrays.items()}
    wrong = sorted({at: shape for at, (_, shape) in ours.items()}.items() ^ shapes.items())
    if wrong:
        detach(model, name)
        raise ValueError(f"load: {path} does not fit this model: only one of them has {wrong[:4]}")
    store(matrices, state.required)
    if fresh:
        model.requires_grad_(False)
    for at, (p, _) in ours.items():
        p.data[...] = asarray(arrays[at], p.dtype)
        p.requires_grad = trainable
    activate(model, name)
    if _fingerprint(model, name) != meta["base"]:
        warnings.warn(f"load: {path} was trained on another base than this model", stacklevel=2)
    return list(plan)

def _fingerprint(model: Module, name: str) -> str:
    base, held = base_of(model), (at for at, x in layers_of(model).items() if name in x.adapters)
    return checkpoint.fingerprint(asnumpy(base[f"{at}.W"][1].data) for at in held)
