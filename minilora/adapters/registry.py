"""Methods, and the registry of a model's methods, `model.adapters`, with its functions.

`attach` puts adapters around modules. `detach` gives the base's own modules back. `merge`
(merging.py) replaces adapted layers by layers with W0 + ΔW. Nothing depends on train() or eval(),
and the base's own parameters are never written. If a function raises, or is interrupted, the model
is as it was before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..backend import Rng, generator
from ..backend.blocks import block, restoring
from ..checks import describe, warn
from ..config import Config
from ..nn import Module, Parameter
from ..words import our_words
from .patterns import below, patterns_of
from .places import adapted, parameters, swap, walk
from .protocol import Adapted, Adapter
from .storage import storable, store, wide_copy
from .transaction import State, all_or_nothing

DOORS = 'lora.attach(model, LoRAConfig(...)) or methods.apply(model, "bitfit")'
Base = dict[str, tuple[Module, Parameter]]
METHODS: dict[str, type[Method]] = {}  # by name, for `methods.apply`


class Method(Config):
    """A way to adapt a model: a frozen dataclass of settings.

    A subclass overrides `around`, `copied` or both. It is registered under a name:
    class BitFit(Method, called="bitfit").
    """

    called: ClassVar[str] = ""

    def __init_subclass__(cls, called: str = "") -> None:
        cls.called = called
        if called:
            METHODS[called] = cls

    def __post_init__(self) -> None:
        """Check `trainable`, where the method has this setting."""
        if hasattr(self, "trainable"):
            who = f"{type(self).__name__}: trainable"
            self._set(trainable=patterns_of(who, self.trainable))

    def around(self, model: Module, rng: np.random.Generator) -> Mapping[str, Adapter]:
        """Create the adapters, by the path in the base model of the module that each wraps."""
        return {}

    def copied(self, model: Module) -> list[str]:
        """Return the names of the base's parameters that the method copies and trains."""
        return []

    def in_full(self, model: Module) -> list[str]:
        """Return those that its setting `trainable` names, such as a head's: it copies them too."""
        return below([*base_of(model)], getattr(self, "trainable", ()), "trainable: no parameter")

    def saved(
        self, adapters: Mapping[str, Adapter], copies: Mapping[str, Parameter]
    ) -> tuple[Method, dict[str, Any]]:
        """Return the content of a file: a method, and its trained arrays by name.

        adapters: by path   copies: by the parameter's name
        """
        return self, {at: p.data for at, p in _named(adapters, copies).items()}

    def renamed(self, name: str) -> str:
        """Return the present name of an array from a file of version 0.1.0."""
        return name

    def apply(self, model: Module, name: str = "default", rng: Rng = None) -> list[str]:
        """Attach the method: see `attach`."""
        return attach(model, self, name, rng)  # type: ignore[no-any-return]

    def count(self, config: Any) -> int:
        """Return the number of trained parameters for a model's config, by the paper's formula."""
        raise NotImplementedError


class Adapters(State):
    """The methods that are attached to a model.

    configs  name -> the method, with its settings
    active   the names of the active adapters, the innermost first
    copies   name -> parameter's name -> the trained copy; it is in the model while the name is
             active
    base     parameter's name -> the base's own parameter, for each parameter with a copy
    flags    base parameter -> its `requires_grad` at the first attach that met it
    """

    def __init__(self, model: Module) -> None:
        self.configs: dict[str, Method] = {}
        self.active: tuple[str, ...] = ()
        self.copies: dict[str, dict[str, Parameter]] = {}
        self.base: dict[str, Parameter] = {}
        self.flags = {p: p.requires_grad for p in model.parameters()}


@our_words
@all_or_nothing
def attach(
    model: Module, method: Method, name: str = "default", rng: Rng = None, base_dtype: Any = None
) -> list[str]:
    """Freeze the model, attach a method under a name; return the names of what it trains.

    Several methods can be attached. The new one is active and trained, alone (see `activate` and
    `set_adapter`). Raises ValueError for a name that is taken, and if the method does not fit the
    model.

    base_dtype: "float16" stores the frozen matrices in half the bytes. They are rounded once, for
    good: `detach` gives them back rounded, and frozen. The model still computes, trains and merges
    in its own dtype. "int8" and "nf4" store those of the blocks' Linear layers as codes of 8 and
    4 bits (QLoRA). Raises ValueError for a dtype that is not narrower, for numbers beyond its
    range, and for codes under a method that trains or measures W itself.
    """
    if not isinstance(method, Method):
        raise TypeError(f"attach: give a LoRAConfig(r=8, targets=...), not {describe(method)}")
    matrices = storable(base_of(model), base_dtype)
    state = install(model, method, name, generator(rng))
    store(model, matrices, state)
    _train(model, state, name)
    _activate(model, state, [name])
    holders = [m for m in adapted(model).values() if name in m.adapters]
    if getattr(method, "dropout", 0) and not all(m.training for m in holders):
        warn("attach: in eval mode dropout is off: fit and train_step switch it on in their steps, "
             "a loop of your own has to call model.train()")
    return list(trained_by(model, name))


@our_words
@all_or_nothing
def set_adapter(model: Module, name: str) -> None:
    """Activate and train this adapter alone, as `attach` does."""
    state = state_of(model, name)
    _train(model, state, name)
    _activate(model, state, [name])


@our_words
@all_or_nothing
def activate(model: Module, *names: str) -> None:
    """Activate these adapters, and no others; without names, run the base alone.

    Trained parameters stay the same (see `set_adapter`). Raises KeyError for a name that is not
    attached, and ValueError for two that cannot be active together: both train a copy of one
    parameter, or one of them must be the only active adapter of a module.
    """
    _activate(model, state_of(model, *names), names)


@our_words
@block
def disabled(model: Module) -> Iterator[None]:
    """Run the base alone in the block, bit for bit; afterwards the same adapters are active."""
    before = state_of(model).active

    def restore() -> None:
        if (state := find(model)) is not None:
            names = [name for name in before if name in state.configs]
            if state.active != tuple(names):
                activate(model, *names)

    with restoring(restore):
        activate(model)
        yield


@our_words
@all_or_nothing
def detach(model: Module, name: str | None = None) -> Module:
    """Remove one adapter, or all (name=None): then the base's own modules and flags are back."""
    state = state_of(model, *([] if name is None else [name]))
    removed = [*state.configs] if name is None else [name]
    _activate(model, state, [other for other in state.active if other not in removed])
    for other in removed:
        del state.configs[other], state.copies[other]
    left = {at for copies in state.copies.values() for at in copies}
    state.base = {at: p for at, p in state.base.items() if at in left}
    modules = [*adapted(model).values()]
    for module in modules:
        for other in removed:
            module.adapters.pop(other, None)
    swap(model, {id(module): module.base for module in modules if not module.adapters})
    if not state.configs:
        forget(model)
    return model


def find(model: Module) -> Adapters | None:
    """Return the model's registry; None if nothing is attached. RuntimeError inside `merged`."""
    if model.locked:
        raise RuntimeError(model.locked)
    return next((value for value in vars(model).values() if isinstance(value, Adapters)), None)


def state_of(model: Module, *names: str) -> Adapters:
    """Return the model's registry; ValueError if there is none, KeyError for an unknown name."""
    state = find(model)
    if state is None:
        raise ValueError(f"this model has no adapter: attach one first, by {DOORS}")
    for name in names:
        if name not in state.configs:
            raise KeyError(f"no adapter is called {name!r}: attached are {sorted(state.configs)}")
    return state


def base_of(model: Module) -> Base:
    """Return the base's own parameters by name, each with its module; adapters do not matter.

    A parameter in two places has both names.
    """
    state, own = find(model), dict[int, Parameter]()
    if state is not None:
        own = {id(p): state.base[at] for named in state.copies.values() for at, p in named.items()}
    return {name: (module, own.get(id(p), p)) for name, module, p in parameters(model)}


def adapters_of(model: Module, name: str) -> dict[str, Adapter]:
    """Return the adapters of this name, by the path of the module that each wraps."""
    return {at: m.adapters[name] for at, m in adapted(model).items() if name in m.adapters}


def trained_by(model: Module, name: str) -> dict[str, Parameter]:
    """Return the trained parameters of this adapter, copies included, by their names in a file."""
    return _named(adapters_of(model, name), state_of(model, name).copies[name])


def _named(
    adapters: Mapping[str, Adapter], copies: Mapping[str, Parameter]) -> dict[str, Parameter]:
    first: dict[Parameter, str] = {}  # parameter -> its first name, if adapters share it
    for at, each in adapters.items():
        for x, p in each.trained().items():
            first.setdefault(p, f"{at}.{x}")
    return {name: p for p, name in first.items()} | dict(copies)


def install(model: Module, method: Method, name: str, rng: np.random.Generator) -> Adapters:
    """Add a method's adapters and copies to the model, neither active nor trained yet."""
    state = find(model) or Adapters(model)
    taken = *state.configs, "base", ""  # and arrays in a file have printable names, with dots
    if not isinstance(name, str) or name in taken or "." in name or not name.isprintable():
        raise ValueError(
            f"{name!r} cannot be an adapter's name: it is empty, dotted, 'base', taken, or has "
            f"characters that do not print; attached are {sorted(state.configs)}: choose another"
        )
    if own := {n for m in adapted(model).values() for n in m.adapters} - state.configs.keys():
        raise ValueError(
            f"a part of this model, or a model that it is part of, has adapters {sorted(own)}: "
            "detach them there, and attach all to one of the two"
        )
    base, modules = base_of(model), dict(walk(model))
    parts = dict(method.around(model, rng))
    names = [*method.copied(model), *method.in_full(model)]
    for at in [*parts, *names]:
        if at not in modules and at not in base:
            raise ValueError(f"{method.called} does not fit this model, which has no {at!r}")
    copies: dict[int, tuple[str, Parameter]] = {}  # one per parameter, even if it has two names
    for at in names:
        copies.setdefault(id(base[at][1]), (at, wide_copy(*base[at])))
    _refuse_clashes(base, parts, copies)
    new: dict[int, Adapted] = {}
    for at, part in parts.items():
        module = modules[at]
        holder = module if isinstance(module, Adapted) else new.setdefault(
            id(module), Adapted(module))
        holder.adapters.setdefault(name, part.train(module.training))
    swap(model, new)
    state.flags |= {p: p.requires_grad for _, p in base.values() if p not in state.flags}
    state.configs[name] = method
    state.copies[name] = dict(copies.values())
    state.base |= {at: base[at][1] for at in state.copies[name]}
    if find(model) is None:
        attributes = vars(model)
        attributes["adapters" if "adapters" not in attributes else "adapters of minilora"] = state
    return state


def _refuse_clashes(
    base: Base, parts: dict[str, Adapter], copies: dict[int, tuple[str, Parameter]]
) -> None:
    """Raise ValueError for a weight that is both adapted and copied, or shared by two modules.

    Merging gives a layer a new weight, so two modules that share one would no longer share it.
    """
    places: dict[int, list[tuple[str, Module]]] = {}
    for at, (module, p) in base.items():
        places.setdefault(id(p), []).append((at, module))
    for path, part in parts.items():
        if part.factors() is None:
            continue
        W = base[f"{path}.W"][1]
        if id(W) in copies:
            raise ValueError(
                f"{path}.W cannot have both a trained copy and an adapter: choose one of them"
            )
        for at, module in places[id(W)]:
            if module is not base[f"{path}.W"][0]:
                raise ValueError(
                    f"{path}.W and {at} are one parameter, and merging an adapter of {path} would "
                    "separate them: adapt other layers, or give each module its own weight"
                )


def _train(model: Module, state: Adapters, name: str) -> None:
    """Train the parameters of this adapter, and freeze all others."""
    copies = [p for named in state.copies.values() for p in named.values()]
    for p in [*model.parameters(), *state.base.values(), *copies]:
        p.requires_grad, p.grad = False, None
    for p in trained_by(model, name).values():
        p.requires_grad = True


def _activate(model: Module, state: Adapters, names: Sequence[str]) -> None:
    names = tuple(dict.fromkeys(names))
    chosen: dict[int, tuple[str, Parameter]] = {}  # id of a base parameter -> (name, its copy)
    for name in names:
        for at, copy in state.copies[name].items():
            other, _ = chosen.setdefault(id(state.base[at]), (name, copy))
            if other != name:
                raise ValueError(
                    f"activate: {other} and {name} each train a copy of {at}: activate one"
                )
    modules = adapted(model)
    for module in modules.values():
        here = [name for name in names if name in module.adapters]
        for name in here:
            if (why := module.adapters[name].exclusive) and len(here) > 1:
                raise ValueError(
                    f"activate: {' and '.join(here)} cannot be active together: {why}"
                )
    new: dict[int, Parameter] = {}
    for copies in state.copies.values():
        for at, copy in copies.items():
            own = state.base[at]
            _, wanted = chosen.get(id(own), ("", own))
            new |= {id(p): wanted for p in (own, copy) if p is not wanted}
    swap(model, new)
    for module in modules.values():
        module.active = tuple(name for name in names if name in module.adapters)
    state.active = names


def forget(model: Module) -> None:
    """Remove the registry, and give the base's parameters their first `requires_grad` back."""
    state = state_of(model)
    for p in model.parameters():
        p.requires_grad = state.flags.get(p, p.requires_grad)
    for name in [name for name, value in vars(model).items() if value is state]:
        del vars(model)[name]
