"""Merging: replace adapted layers by layers with W0 + ΔW, for good or for a block (§4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from statistics import mean
from typing import Any

from ..backend import Quantised, current, quantised, xp
from ..backend.blocks import block, restoring
from ..backend.quantised import LEVELS
from ..checks import warn
from ..nn import Module, Parameter
from ..words import our_words
from .places import adapted, swap
from .protocol import Adapted
from .registry import Adapters, find, forget, state_of
from .storage import has_codes
from .transaction import all_or_nothing


@our_words
@all_or_nothing
def merge(model: Module, base_dtype: Any = None) -> dict[str, float]:
    """Replace adapted layers by plain layers with W0 + ΔW (§4.1: no added latency).

    Returns path -> the fraction of ΔW that rounding lost, |W - W0 - ΔW| / |ΔW|. Each parameter gets
    back the `requires_grad` that it had before the first adapter. Raises ValueError for an adapter
    that is not active, or not an update of a weight; FloatingPointError if W0 + ΔW is not finite.
    Does nothing to a model without adapters, so merging twice is harmless.

    base_dtype: "nf4" or "int8" stores the merged matrices of the blocks as codes, frozen, and warns
    of what that loses: of a ΔW smaller than the steps between codes, all, or more than all. None:
    in the layer's dtype, also where W0 is stored as codes or in half precision.
    """
    if base_dtype not in (None, *LEVELS):
        raise ValueError(
            f"merge: base_dtype is {' or '.join(map(repr, LEVELS))}, not {base_dtype!r}: "
            "leave it out to merge into the layer's own dtype"
        )
    state = find(model)
    if state is None:
        return {}
    if idle := set(state.configs) - set(state.active):
        raise ValueError(
            f"merge: {min(idle)!r} is not active and would be lost: activate it, or detach it first"
        )
    layers, lost = merged_layers(model, state, strict=True, base_dtype=base_dtype)
    for module, layer in layers.items():
        coded = isinstance(layer.W.data, Quantised)
        state.flags[layer.W] = state.flags[module.base.W] and not coded
    for name in state.active:
        for at, copy_ in state.copies[name].items():
            state.flags[copy_] = state.flags[state.base[at]]
    swap(model, {id(module): layer for module, layer in layers.items()})
    forget(model)
    if base_dtype is not None and lost:
        worst = max(lost, key=lambda path: lost[path])
        warn(f"merge: {base_dtype} codes lose {mean(lost.values()):.0%} of ΔW, on average over "
             f"{len(lost)} layers, and {lost[worst]:.0%} of that of {worst}: to keep all of it, "
             "call lora.merge(model) without base_dtype, or do not merge")
    return lost


@our_words
@block
def merged(model: Module) -> Iterator[None]:
    """Merge the model in the block; afterwards W0 and the adapters are back, bit for bit.

    Adapters that are not updates of a weight stay active, such as trained tokens beside LoRA.
    Raises ValueError if no active adapter can be merged. Changes to the weights would be lost, so
    loading, attaching and saving raise RuntimeError in the block. train() and eval() persist.
    """
    state = state_of(model)
    layers, _ = merged_layers(model, state, strict=False)
    (name,) = [name for name, value in vars(model).items() if value is state]

    def restore() -> None:
        for _, module in model.named_modules():
            module.locked = ""
        for module, layer in layers.items():
            module.train(layer.training)
        swap(model, {id(layer): module for module, layer in layers.items()})
        vars(model)[name] = state

    with restoring(restore):
        swap(model, {id(module): layer for module, layer in layers.items()})
        del vars(model)[name]
        for _, module in model.named_modules():
            module.locked = "the model is merged in this block: leave lora.merged(...) first"
        yield


def merged_layers(
    model: Module, state: Adapters, strict: bool, base_dtype: Any = None
) -> tuple[dict[Adapted, Any], dict[str, float]]:
    """Return {adapted module: its plain layer}, {path: fraction of ΔW lost in rounding}.

    strict: all active adapters must be updates of a weight; False: at least one must be.
    """
    layers: dict[Adapted, Any] = {}
    lost: dict[str, float] = {}
    other = ""
    for path, module in adapted(model).items():
        names = [name for name in module.active if module.adapters[name].factors() is None]
        if names:
            other = other or f"{names[0]} ({state.configs[names[0]].called}) at {path}"
        elif module.active:
            layers[module], lost[path] = merged_layer(path, module, base_dtype)
        else:
            layers[module] = module.base
    if other and (strict or not lost):
        raise ValueError(
            f"merge: {other} is not an update of a layer's W, so no weight can contain it: detach "
            "it first"
        )
    return layers, lost


def merged_layer(path: str, module: Adapted, base_dtype: Any = None) -> tuple[Any, float]:
    """Return (a copy of the base layer with W0 + ΔW, the fraction of ΔW lost in rounding).

    The sum is computed in float64 and rounded once, to the layer's dtype, not to the narrower one
    in which W0 may be stored; or to codes, see `merge`. Raises FloatingPointError if the result is
    not finite.
    """
    base, read = module.base, current().read
    W0, delta, dtype = base.W.data, module.delta(), base.dtype
    wide, as_codes = W0.astype("float64") + delta, base_dtype and has_codes(f"{path}.W", base)
    limits = [float(xp.finfo(each).max) for each in (dtype, "float32" if as_codes else dtype)]
    if not read(abs(wide).max(), 0.0) <= min(limits):  # false for nan, too
        raise FloatingPointError(
            f"merge: {path}: W0 + ΔW is not finite in {dtype}; the model is unchanged: check A, B "
            "and alpha"
        )
    W = quantised(wide, base_dtype, dtype) if as_codes else wide.astype(dtype)
    rounding = (W.astype("float64") - W0.astype("float64")) - delta
    size, lost = (read(xp.sqrt((x * x).sum()), 0.0) for x in (delta, rounding))
    layer: Any = copy(base)
    layer.W = Parameter.of(W)
    return layer, lost / size if size else 0.0
