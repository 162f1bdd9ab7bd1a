"""Conversions, not modes: attach, activate, merge, detach.

`attach` swaps the named layers for ones that add an adapter's output, `merge` swaps them for plain
layers that hold W0 + ΔW, `detach` puts the base's own layers back. Nothing hangs on train() or
eval(), no flag changes what a layer computes, W0 is never written. Each is all or nothing: where it
raises, or is interrupted, the model is as it was.
"""
from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..adapters.patterns import below, first, matching
from ..adapters.places import swap
from ..adapters.storage import storable, store, wide_copy
from ..adapters.transaction import State, all_or_nothing
from ..backend import Rng, generator
from ..nn import Embedding, Linear, Module, Parameter
from .config import LoRAConfig
from .layers import Adapter, LoRAEmbedding, LoRALayer, LoRALinear


class Adapters(State):
    """What is attached to a model, as `model.adapters`: the configs by name, and who is active.
    A parameter that an adapter trains whole is its own copy, `whole[name][path]`, which stands in
    the model while that adapter is active; the base's own, `base[path]`, is never written.
    """

    def __init__(self, model: Module) -> None:
        self.configs: dict[str, LoRAConfig] = {}
        self.active: tuple[str, ...] = ()
        self.whole: dict[str, dict[str, Parameter]] = {}
        self.base: dict[str, Parameter] = {}
        self.required = {at: p.requires_grad for at, p in model.named_parameters()}  # once

@all_or_nothing
def attach(
    model: Module, config: LoRAConfig, name: str = "default", rng: Rng = None,
    base_dtype: Any = None) -> list[str]:
    """Freeze the whole model, give the target layers an adapter, activate it; returns their paths.
    At first B = 0, so the model computes exactly what it did. Only A and B require a gradient, plus
    what the config names. Raises ValueError for a pattern that matches nothing and for a name that
    is taken; warns of a rank that no ΔW can have.
    base_dtype: "float16" stores the frozen matrices in half the bytes, rounded once and for good
    (`detach` gives them as stored, and frozen). All is computed, trained and merged in the model's
    own dtype. Raises ValueError for what is not a narrower float, and for numbers beyond it.
    """
    if not isinstance(config, LoRAConfig):
        raise TypeError(f"attach: it takes a LoRAConfig(r=8, targets=...), not {config!r}")
    rank, alpha = config.rank_pattern, config.alpha_pattern
    paths = matching(adaptable(model), config.targets or ("",), "attach: no layer")
    matching(paths, (*rank, *alpha), "attach: no adapted layer")
    plan = {at: (first(rank, at, config.r), first(alpha, at, config.alpha)) for at in paths}
    matrices, whole = storable(base := base_of(model), base_dtype), _whole(model, config, paths)
    state = install(model, name, config, plan, whole, generator(rng))
    store(matrices, state.required)
    set_adapter(model, name)
    full = {at: min(base[f"{at}.W"][1].shape) for at in paths}  # the highest rank that ΔW can have
    over = [(at, full[at], r) for at, (r, _) in plan.items() if r > full[at]]
    if over:
        told = "attach: ΔW of {} has rank {} at most, not r = {}".format(*over[0])
        warnings.warn(told + f" (and {len(over) - 1} others)" * (len(over) > 1), stacklevel=3)
    return paths

@all_or_nothing
def set_adapter(model: Module, name: str) -> None:
    """Activate this adapter, and train it and nothing else, as when it was attached."""
    state = adapters_of(model, name)
    aside = [p for held in (state.base, *state.whole.values()) for p in held.values()]
    for p in [*model.parameters(), *aside]:
        p.requires_grad, p.grad = False, None
    for p in trained_by(model, name).values():
        p.requires_grad = True
    activate(model, name)

@all_or_nothing
def activate(model: Module, *names: str) -> None:
    """Let these adapters count, their updates added up, and no others; none: the base alone.
    What requires a gradient does not change (see `set_adapter`). Raises KeyError for a name that is
    not attached, ValueError where two have their own copy of a parameter.
    """
    names = tuple(dict.fromkeys(names))
    state = adapters_of(model, *names)
    whole = [path for name in names for path in state.whole[name]]
    if len(set(whole)) < len(whole):
        raise ValueError(f"activate: {' and '.join(names)} each have a {whole[-1]} of their own")
    state.active = names
    swap(model, state.base | {at: p for name in names for at, p in state.whole[name].items()})
    for layer in layers_of(model).values():
        layer.active = tuple(name for name in names if name in layer.adapters)

@contextmanager
def disabled(model: Module) -> Iterator[None]:
    """Inside, the model is the base, bit for bit; afterwards the same adapters are active."""
    before = adapters_of(model).active
    try:
        activate(model)
        yield
    finally:
        if hasattr(model, "adapters"):
            activate(model, *(name for name in before if name in adapters_of(model).configs))

@all_or_nothing
def detach(model: Module, name: str | None = None) -> Module:
    """Take one adapter off, or all of them: then the base's own layers and flags are back."""
    state = adapters_of(model, *([] if name is None else [name]))
    everything = name is None or list(state.configs) == [name]
    activate(model, *(other for other in state.active if not everything and other != name))
    if name is not None:
        del state.configs[name], state.whole[name]
    for path, layer in layers_of(model).items():
        layer.adapters.pop(name or "", None)
        if everything or not layer.adapters:
            swap(model, {path: layer.base})
    return _forget(model) if everything else model

@all_or_nothing
def merge(model: Module) -> dict[str, float]:
    """Put plain layers with W0 + ΔW of the active adapters in place, for good (§4.1: no latency).
    Returns path -> the share of ΔW lost in rounding. What required a gradient before the first
    adapter came requires one again. Raises FloatingPointError where a W is not finite. A model
    without adapters is left alone: twice is once.
    """
    if not hasattr(model, "adapters"):
        return {}
    state = adapters_of(model)
    if idle := set(state.configs) - set(state.active):
        raise ValueError(f"merge: {min(idle)!r} is not active and would be lost: activate it first")
    plain = {path: layer.plain(path) for path, layer in layers_of(model).items()}
    swap(model, {path: layer for path, (layer, _) in plain.items()})
    _forget(model)
    return {path: lost for path, (_, lost) in plain.items()}

@contextmanager
def merged(model: Module) -> Iterator[None]:
    """Inside, the model is merged: plain layers. Afterwards W0 and adapters are back, bit for bit.
    What is written into the model inside would be lost, so loading, attaching and saving raise;
    train() and eval() last.
    """
    adapters_of(model)
    layers = layers_of(model)
    plain = {path: layer.plain(path)[0] for path, layer in layers.items()}
    try:
        swap(model, plain)
        for _, module in model.named_modules():
            module.locked = "the model is merged for this block only: leave lora.merged(...) first"
        yield
    finally:
        for _, module in model.named_modules():
            module.locked = ""
        swap(model, {at: layer.train(plain[at].training) for at, layer in layers.items()})

def adapters_of(model: Module, *names: str) -> Adapters:
    """The model's adapters; raises where there are none, or none of these names."""
    state = getattr(model, "adapters", None)
    if not isinstance(state, Adapters):
        raise ValueError("this model has no adapter: lora.attach(model, LoRAConfig(...)) first")
    if model.locked:
        raise RuntimeError(model.locked)
    for name in names:
        if name not in state.configs:
            raise KeyError(f"there is no adapter {name!r}: there are {sorted(state.configs)}")
    return state

def layers_of(model: Module) -> dict[str, LoRALayer]:
    """The adapted layers, by path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRALayer)}

def adaptable(model: Module) -> dict[str, Any]:
    """The layers that can be adapted, or are, by path."""
    inside = {f"{path}.base" for path in layers_of(model)}
    return {path: m for path, m in model.named_modules()
            if path and isinstance(m, Linear | Embedding | LoRALayer) and path not in inside}

def base_of(model: Module) -> dict[str, tuple[Module, Parameter]]:
    """The base's own parameters, under their names in the plain base, each with its module."""
    plain = {f"{path}.base": path for path in layers_of(model)}
    own = adapters_of(model).base if hasattr(model, "adapters") else {}
    return {
        name: (module, own.get(name, child))
        for path, module in model.named_modules() if not isinstance(module, Adapter)
        for letter, child in module.children() if isinstance(child, Parameter)
        for name in [f"{plain.get(path, path)}.{letter}".lstrip(".")]}

def _whole(model: Module, config: LoRAConfig, paths: Sequence[str]) -> list[str]:
    """Those of the base's parameters that the config trains whole."""
    names, bias = list(base_of(model)), config.bias
    named = below(names, config.trainable, "attach: trainable: no parameter")
    biased = [n for n in names if bias == "all" or (bias == "lora" and n[:-2] in paths)]
    return [n for n in names if n in named or (n in biased and n.endswith(".b"))]

def install(
    model: Module, name: str, config: LoRAConfig, plan: Mapping[str, tuple[int, float]],
    whole: Sequence[str], rng: np.random.Generator) -> Adapters:
    """Put an adapter in, neither active nor trained yet.
    plan: path -> r and alpha;   whole: the parameters that the adapter has a copy of.
    """
    state = adapters_of(model) if hasattr(model, "adapters") else Adapters(model)
    if name in (*state.configs, "base", "") or "." in name:
        raise ValueError(f"{name!r} cannot be the adapter's name: it is empty, dotted, 'base', or "
                         f"taken; there are {sorted(state.configs)}")
    layers, base = adaptable(model), base_of(model)
    if absent := [*(at for at in plan if at not in layers), *(p for p in whole if p not in base)]:
        raise ValueError(f"it does not fit: this model has no {absent[0]!r}")
    if both := set(whole) & {f"{path}.W" for path in plan}:
        raise ValueError(f"{min(both)} is to be trained whole and adapted: choose one")
    for at, size in plan.items():
        if not isinstance(layer := layers[at], LoRALayer):
            layer = (LoRALinear if isinstance(layer, Linear) else LoRAEmbedding)(layer)
        layer.adapters[name] = Adapter(layer, *size, config, rng)
        swap(model, {at: layer})
    state.whole[name] = {at: wide_copy(*base[at]) for at in whole}
    state.base |= {at: base[at][1] for at in whole}
    state.configs[name] = config
    vars(model)["adapters"] = state
    return state

def trained_by(model: Module, name: str) -> dict[str, Parameter]:
    """What this adapter trains, by the name that it has in the adapter's file."""
    held = {at: x.adapters[name] for at, x in layers_of(model).items() if name in x.adapters}
    own = {f"{p}.{x}": t for p, a in held.items() for x, t in a.named_parameters() if "." not in x}
    return own | adapters_of(model).whole[name]

def _forget(model: Module) -> Module:
    """Drop the adapters; what has a name in the base requires what it did before the first one."""
    required = adapters_of(model).required
    for name, p in model.named_parameters():
        p.requires_grad = required.get(name, p.requires_grad)
    del vars(model)["adapters"]
    return model
