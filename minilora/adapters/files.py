"""One file per adapter: its method's settings and its trained arrays, nothing of the base."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from glob import escape
from typing import Any

import numpy as np

from .. import slots
from ..backend import asnumpy
from ..backend.flags import quietly
from ..checks import warn
from ..files import checkpoint
from ..nn import Module, Parameter
from ..state_dict import fill
from ..words import our_words
from .places import adaptable
from .registry import (
    METHODS,
    Method,
    _activate,
    adapters_of,
    base_of,
    find,
    install,
    state_of,
    trained_by,
)
from .storage import rounded, storable, store
from .transaction import all_or_nothing

KINDS = "adapter", "method"  # version 0.1.0 wrote two kinds of file; `load` reads both


@our_words
def save(model: Module, path: str | os.PathLike[str], name: str | None = None) -> Any:
    """Write an adapter's trained arrays and its method's settings to one .npz; return the path.

    name: the adapter; it can be None if only one is attached. Raises ValueError for an ambiguous
    name or an unregistered method, and the errors of `checkpoint.write`.
    """
    name, method, arrays = content(model, name, "save")
    parts = adapters_of(model, name)
    if METHODS.get(method.called) is not type(method):
        raise ValueError(
            f"save: {type(method).__name__} is not registered, so no file of it can be loaded: "
            'define it as class MyMethod(Method, called="my-method")'
        )
    scales = {at: factors[0][0] for at, part in parts.items() if (factors := part.factors())}
    meta = {
        "kind": "adapter", "name": name, "method": method.called,
        "settings": asdict(method),  # type: ignore[call-overload]
        "scales": scales, "base": fingerprint(model, scales),
    }
    return checkpoint.write(path, {at: asnumpy(array) for at, array in arrays.items()}, meta)


def content(
    model: Module, name: str | None, who: str
) -> tuple[str, Method, dict[str, Any]]:
    """Return the name of an adapter, and the method and arrays by name that a file of it has.

    name: None if only one is attached. Raises ValueError for an ambiguous name.
    """
    state = state_of(model, *([] if name is None else [name]))
    if name is None and len(state.configs) > 1:
        raise ValueError(f"{who}: which one? Attached are {sorted(state.configs)}: give its name")
    name = name or next(iter(state.configs))
    return name, *state.configs[name].saved(adapters_of(model, name), state.copies[name])


@our_words
@all_or_nothing
def load(
    model: Module, path: str | os.PathLike[str], name: str | None = None, trainable: bool = False,
    base_dtype: Any = None,
) -> list[str]:
    """Attach the adapter in a file from `save`, activate it; return the names of its arrays.

    The adapter is frozen unless `trainable`. A base without adapters is frozen too; other adapters
    keep their flags. If names, shapes or numbers do not fit, the model stays as it was, and a
    ValueError names the file. Warns if the adapter was trained on another base. For an adapter that
    was trained over a base in half precision, give the same `base_dtype` (see `attach`).
    """
    with checkpoint.opened(path, *KINDS) as file, file.blamed():
        saved_name, method, scales, base = described(file, model)
        if missing := sorted(scales.keys() - adaptable(model).keys()):
            raise ValueError(f"it does not fit this model, which has no {missing[0]!r}")
        name = name or saved_name

        def numbers(ours: Mapping[str, Parameter]) -> dict[str, np.ndarray]:
            parts = adapters_of(model, name)
            for at, scale in scales.items():
                factors = parts[at].factors() if at in parts else None
                given = factors[0][0] if factors else None
                if given != scale:
                    raise ValueError(f"the scale of {at} is {scale}, but its settings give {given}")
            written = {at: at for at in ours}  # our name -> the file's
            if "scales" not in file.meta:
                written |= {method.renamed(_unwrapped(at, ours)): at for at in file.shapes}
            arrays = file.arrays({written[at]: p.shape for at, p in ours.items()})
            return {at: arrays[written[at]] for at in ours}

        ours = restore(model, method, name, file.budget(), numbers, trainable, base_dtype)
    if fingerprint(model, scales) != base:
        warn(f"load: {path} was trained on another base than this model")
    return [*ours]


def restore(
    model: Module, method: Method, name: str, rng: np.random.Generator,
    numbers: Callable[[Mapping[str, Parameter]], Mapping[str, np.ndarray]], trainable: bool,
    base_dtype: Any = None,
) -> dict[str, Parameter]:
    """Attach a method, write numbers into its trained parameters, activate it; return these.

    numbers: the parameters by name -> an array for each. For trainable and base_dtype see `load`.
    """
    fresh, matrices = find(model) is None, storable(base_of(model), base_dtype)
    state = install(model, method, name, rng)
    ours = trained_by(model, name)
    fill({at: p.data for at, p in ours.items()}, numbers(ours), "load")
    store(model, matrices, state)
    if fresh:
        model.requires_grad_(False)
    for p in ours.values():
        p.requires_grad = trainable
    _activate(model, state, [name])
    return ours


def described(
    file: checkpoint.File, model: Module) -> tuple[str, Method, dict[str, float], str]:
    """Return (name, method, path -> scale, base's fingerprint) from a file of any version."""
    known = base_of(model).keys() | adaptable(model).keys()
    if "layers" in file.meta:  # from lora.save of 0.1.0
        name, config, layers, copied, base = file.facts(
            name=str, config=dict, layers=dict, whole=list, base=str)
        ranks, alphas, scales = dict[str, int](), dict[str, float](), dict[str, float]()
        for stored, layer in layers.items():
            at = _unwrapped(stored, known)
            ranks[exact(at)], alphas[exact(at)], scales[at] = file.facts(
                stored, layer, r=int, alpha=float, scale=float)
        config |= {
            "targets": [*ranks], "rank_pattern": ranks, "alpha_pattern": alphas,
            "trainable": [exact(_unwrapped(at, known)) for at in copied], "bias": "none",
        }
        return name, METHODS["lora"](**config), scales, base
    name, called, settings, base = file.facts(name=str, method=str, settings=dict, base=str)
    if called not in METHODS:
        slots.methods()
    if called not in METHODS:
        raise ValueError(f"unknown method {called!r}: another version of minilora wrote the file")
    scales = file.facts(scales=dict)[0] if file.kind == "adapter" else {}
    return name, METHODS[called](**settings), scales, base


def exact(path: str) -> str:
    """Return a glob that matches this path alone, and no path that ends in it."""
    return f"[{path[:1]}]{escape(path[1:])}"


def _unwrapped(path: str, known: Collection[str]) -> str:
    """Return a path in the base model: 0.1.0 also wrote paths through adapted modules."""
    return path if path in known else path.replace(".base.", ".")


def fingerprint(model: Module, paths: Collection[str] = (), dtype: Any = None) -> str:
    """Return a checksum of the base's weights at these paths; without paths, of all parameters.

    dtype: round the weights to it first, as `base_dtype` of `attach` would.
    """
    base = base_of(model)
    if paths:
        base = {f"{at}.W": base[f"{at}.W"] for at in paths}
    each = {id(p): (name, owner, p.data) for name, (owner, p) in base.items()}
    arrays = (asnumpy(rounded(*one, dtype)) for one in each.values())
    return str(quietly(checkpoint.fingerprint, arrays))
