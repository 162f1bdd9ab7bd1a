"""Conversions, not modes: attach, activate, merge, detach.

`attach` swaps the named layers for ones that add an adapter's output, `merge` swaps them for plain
layers that hold W0 + ΔW, `detach` puts the base's own layers back. Nothing hangs on train() or
eval(), no flag changes what a layer computes, W0 is never written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from ..backend import Rng, generator
from ..nn import Embedding, Linear, Module, Parameter
from .layers import Adapter, LoRAConfig, LoRAEmbedding, LoRALayer, LoRALinear
from .storage import Places, storable, store, wide_copy


class Adapters:
    """What `attach` left on a model, as `model.adapters`: who is there, who is active, what was."""

    def __init__(self, model: Module) -> None:
        self.layers: dict[str, LoRALayer] = {}
        self.configs: dict[str, LoRAConfig] = {}
        self.active: tuple[str, ...] = ()
        self.merged = False
        self.flags = {p: p.requires_grad for p in model.parameters()}  # before the first adapter
        # Parameters trained whole. Each adapter has its own copy, which stands in the model while
        # that adapter is active; the base's own is never written and comes back.
        self.own: dict[str, dict[str, Parameter]] = {}
        self.places: Places = {}


def attach(
    model: Module, config: LoRAConfig, name: str = "default", rng: Rng = None,
    base_dtype: Any = None,
) -> list[str]:  # fmt: skip
    """Freeze the whole model, give the target layers an adapter, activate it; returns their paths.

    At first B = 0, so the model computes exactly what it did. Only A and B require a gradient, plus
    what the config names. Raises ValueError, leaving the model as it was, for a pattern that
    matches nothing and for a name that is taken.

    base_dtype: "float16" stores the frozen matrices in half the bytes, rounded once and for good
    (`detach` gives them as stored, and frozen). All is computed, trained and merged in the model's
    own dtype. Raises ValueError for what is not a narrower float, and for numbers beyond it.
    """
    paths = _targets(adaptable(model), config)
    whole = _whole(list(places_of(model)), config, paths)
    rank, alpha = config.rank_pattern, config.alpha_pattern
    plan = {at: (_first(rank, at, config.r), _first(alpha, at, config.alpha)) for at in paths}
    matrices = storable(places_of(model), base_dtype)
    state = install(model, name, config, plan, whole, generator(rng))
    store(matrices, state.flags)
    copies = [p for own in state.own.values() for p in own.values()]
    for p in [*model.parameters(), *copies]:
        p.requires_grad, p.grad = False, None
    for p in trained_by(state, name).values():
        p.requires_grad = True
    activate(model, name)
    return paths


def activate(model: Module, *names: str) -> None:
    """Let these adapters count, their updates added up, and no others; none: the base alone.

    What requires a gradient does not change. Raises KeyError for a name that is not attached.
    """
    names = tuple(dict.fromkeys(names))
    state = adapters_of(model, *names)
    whole = [path for name in names for path in state.own[name]]
    if len(set(whole)) < len(whole):
        raise ValueError(f"activate: {' and '.join(names)} each have a {whole[-1]} of their own")
    copies = {path: p for name in names for path, p in state.own[name].items()}
    for path, (owner, attribute, base) in state.places.items():
        setattr(owner, attribute, copies.get(path, base))
    state.active = names
    for layer in state.layers.values():
        layer.active = tuple(name for name in names if name in layer.adapters)


@contextmanager
def disabled(model: Module) -> Iterator[None]:
    """Inside, the model is the base, bit for bit; afterwards the same adapters are active."""
    before = adapters_of(model).active
    activate(model)
    try:
        yield
    finally:
        if hasattr(model, "adapters"):
            activate(model, *(name for name in before if name in adapters_of(model).configs))


def detach(model: Module, name: str | None = None) -> Module:
    """Take one adapter off, or all of them: then the base's own layers and flags are back."""
    state = adapters_of(model, *([] if name is None else [name]))
    if name is None or list(state.configs) == [name]:
        activate(model)
        swap(model, {path: layer.base for path, layer in state.layers.items()})
        _forget(model)
        return model
    activate(model, *(active for active in state.active if active != name))
    del state.configs[name], state.own[name]
    for path, layer in list(state.layers.items()):
        layer.adapters.pop(name, None)
        if not layer.adapters:
            swap(model, {path: state.layers.pop(path).base})
    return model


def merge(model: Module) -> dict[str, float]:
    """Put plain layers with W0 + ΔW of the active adapters in place, for good (§4.1: no latency).

    Returns path -> the share of ΔW lost in rounding. All layers are merged, or, where one raises
    (FloatingPointError), none. A model without adapters is left alone: twice is once.
    """
    if not hasattr(model, "adapters"):
        return {}
    state = adapters_of(model)
    idle = min(set(state.configs) - set(state.active), default=None)
    if idle:
        raise ValueError(f"merge: {idle!r} is not active and would be lost: activate or detach it")
    plain = {path: layer.plain(path) for path, layer in state.layers.items()}
    for path, (layer, _) in plain.items():
        state.flags[layer.W] = state.flags[state.layers[path].base.W]
    for owner, attribute, base in state.places.values():
        state.flags[getattr(owner, attribute)] = state.flags[base]
    swap(model, {path: layer for path, (layer, _) in plain.items()})
    _forget(model)
    return {path: lost for path, (_, lost) in plain.items()}


@contextmanager
def merged(model: Module) -> Iterator[None]:
    """Inside, the model is merged: plain layers. Afterwards W0 and adapters are back, bit for bit.

    What is written into the model inside would be lost, so loading, attaching and saving raise.
    """
    state = adapters_of(model)
    plain = {path: layer.plain(path)[0] for path, layer in state.layers.items()}

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("load_state_dict: the model is merged for this block only")

    vars(model)["load_state_dict"] = refuse
    swap(model, plain)
    state.merged = True
    try:
        yield
    finally:
        state.merged = False
        del vars(model)["load_state_dict"]
        swap(model, state.layers)


# What these functions share.


def matches(path: str, pattern: str) -> bool:
    """Is `pattern` this path, its end ("q", "attn.q"), or a glob for it ("blocks.*.attn.[qv]")?"""
    return path == pattern or path.endswith(f".{pattern}") or fnmatchcase(path, pattern)


def adapters_of(model: Module, *names: str) -> Adapters:
    """The model's adapters; raises where there are none, or none of these names."""
    state = getattr(model, "adapters", None)
    if not isinstance(state, Adapters):
        raise ValueError("this model has no adapter: lora.attach(model, LoRAConfig(...)) first")
    if state.merged:
        raise RuntimeError("the model is merged for this block only: leave lora.merged(...) first")
    for name in names:
        if name not in state.configs:
            raise KeyError(f"there is no adapter {name!r}: there are {sorted(state.configs)}")
    return state


def adaptable(model: Module) -> dict[str, Any]:
    """The layers that can be adapted, or are, by path."""
    modules = dict(model.named_modules())
    inside = {f"{path}.base" for path, module in modules.items() if isinstance(module, LoRALayer)}
    kinds = (Linear, Embedding, LoRALayer)
    return {p: m for p, m in modules.items() if p and isinstance(m, kinds) and p not in inside}


def places_of(model: Module) -> Places:
    """Owner and attribute of each of the base's parameters, under its name in the plain base."""
    modules, state = dict(model.named_modules()), getattr(model, "adapters", None)
    plain = {f"{path}.base": path for path, m in modules.items() if isinstance(m, LoRALayer)}
    return {
        f"{plain.get(path, path)}.{name}".lstrip("."): (module, name, child)
        for path, module in modules.items()
        if not isinstance(module, Adapter)
        for name, child in module.children()
        if isinstance(child, Parameter) and "." not in name
    } | (state.places if state else {})


def _targets(layers: Mapping[str, Any], config: LoRAConfig) -> list[str]:
    for pattern in config.targets or ("",):
        if not any(matches(path, pattern) for path in layers):
            names = sorted({path.split(".")[-1] for path in layers})
            raise ValueError(f"attach: no layer matches {pattern!r}: there are {', '.join(names)}")
    paths = [path for path in layers if any(matches(path, p) for p in config.targets)]
    for pattern in (*config.rank_pattern, *config.alpha_pattern):
        if not any(matches(path, pattern) for path in paths):
            raise ValueError(f"attach: the pattern {pattern!r} matches no adapted layer")
    return paths


def _whole(names: Sequence[str], config: LoRAConfig, paths: Sequence[str]) -> list[str]:
    """Those of the base's parameters that the config trains whole."""
    chosen: set[str] = set()
    for pattern in config.trainable:
        hits = {n for n in names if any(matches(part, pattern) for part in _and_above(n))}
        if not hits:
            raise ValueError(f"attach: trainable: no parameter matches {pattern!r}")
        chosen |= hits
    for name in names if config.bias != "none" else ():
        layer, _, letter = name.rpartition(".")
        if letter == "b" and (config.bias == "all" or layer in paths):
            chosen.add(name)
    both = chosen & {f"{path}.W" for path in paths}
    if both:
        raise ValueError(f"attach: {min(both)} is to be trained whole and adapted: choose one")
    return [n for n in names if n in chosen]


def _and_above(path: str) -> list[str]:
    """ "a.b.c" -> "a", "a.b", "a.b.c": naming a module names all that is in it."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def install(
    model: Module, name: str, config: LoRAConfig, plan: Mapping[str, tuple[int, float]],
    whole: Sequence[str], rng: np.random.Generator,
) -> Adapters:  # fmt: skip
    """Put an adapter in, neither active nor trained yet; all of it, or an error and nothing.

    plan: path -> r and alpha;   whole: the parameters that the adapter has a copy of.
    """
    state = adapters_of(model) if hasattr(model, "adapters") else Adapters(model)
    if name in state.configs or name == "base" or not name or "." in name:
        raise ValueError(f"attach: {name!r} cannot be the adapter's name: it is taken, empty, "
                         f"'base' or dotted; there are {sorted(state.configs)}")  # fmt: skip
    layers, places = adaptable(model), places_of(model)
    absent = [*(plan.keys() - layers.keys()), *(set(whole) - places.keys())]
    if absent:
        raise ValueError(f"attach: this model has no {min(absent)}")
    for at, (r, alpha) in plan.items():
        layer = layers[at]
        if not isinstance(layer, LoRALayer):
            layer = (LoRALinear if isinstance(layer, Linear) else LoRAEmbedding)(layer)
        layer.adapters[name] = Adapter(layer, r, alpha, config, rng)
        state.layers[at] = layer
    swap(model, state.layers)
    state.places |= {at: places[at] for at in whole}
    state.own[name] = {at: wide_copy(*places[at]) for at in whole}
    state.configs[name] = config
    vars(model)["adapters"] = state
    return state


def _first(patterns: Mapping[str, Any], path: str, otherwise: Any) -> Any:
    return next((value for p, value in patterns.items() if matches(path, p)), otherwise)


def trained_by(state: Adapters, name: str) -> dict[str, Parameter]:
    """What this adapter trains, by the name that it has in the adapter's file."""
    held = {at: x.adapters[name] for at, x in state.layers.items() if name in x.adapters}
    return {f"{at}.{x}": getattr(a, x) for at, a in held.items() for x in "AB"} | state.own[name]


def _forget(model: Module) -> None:
    """Drop the adapters; the base's parameters require what they did before the first one."""
    for p, flag in adapters_of(model).flags.items():
        p.requires_grad = flag
    del vars(model)["adapters"]


def swap(model: Module, new: Mapping[str, Module]) -> None:
    """Put each module in its place in the model, found by its path."""
    for path, module in new.items():
        owner: Any = model
        for name in path.split("."):
            held = owner if isinstance(owner, list | dict) else vars(owner)
            key: Any = int(name) if isinstance(owner, list) else name
            owner = held[key]
        held[key] = module
