"""What a method is, the one registry of a model's methods, `model.adapters`, and its verbs.

Conversions, not modes. `attach` puts adapters around modules, `detach` gives the base's own modules
back, `merge` (merging.py) puts layers with W0 + ΔW in their place. Nothing depends on train() or
eval(), and the base's own parameters are never written. Each verb is all or nothing: where it
raises, or is interrupted, the model is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from ..backend import Rng, generator
from ..checks import describe
from ..config import Config
from ..nn import Module, Parameter
from ..words import our_words
from .places import adapted, parameters, swap, walk
from .protocol import Adapted, Adapter
from .storage import storable, store, wide_copy
from .transaction import State, all_or_nothing

DOORS = 'lora.attach(model, LoRAConfig(...)) or methods.apply(model, "bitfit")'
Base = dict[str, tuple[Module, Parameter]]
METHODS: dict[str, type[Method]] = {}  # by name, as `methods.apply` takes them


class Method(Config):
    """A way to adapt a model: a frozen dataclass with its settings.

    A subclass overrides `around`, `copied` or both, and registers itself by name:
    class BitFit(Method, called="bitfit").
    """

    called: ClassVar[str] = ""

    def __init_subclass__(cls, called: str = "") -> None:
        cls.called = called
        if called:
            METHODS[called] = cls

    def around(self, model: Module, rng: np.random.Generator) -> Mapping[str, Adapter]:
        """The adapters that it puts around modules, by the module's path in the base model."""
        return {}

    def copied(self, model: Module) -> list[str]:
        """The names of the base's parameters of which it trains a copy."""
        return []

    def saved(
        self, adapters: Mapping[str, Adapter], copies: Mapping[str, Parameter]
    ) -> tuple[Method, dict[str, Any]]:
        """What a file holds: a method, and the arrays that it trains, by name.

        adapters: by path   copies: by the parameter's name
        """
        named = {f"{at}.{x}": p for at, each in adapters.items() for x, p in each.trained().items()}
        return self, {name: p.data for name, p in (named | dict(copies)).items()}

    def renamed(self, name: str) -> str:
        """The name in today's files of an array in a file of version 0.1.0."""
        return name

    def apply(self, model: Module, name: str = "default", rng: Rng = None) -> list[str]:
        """Attach it: see `attach`."""
        return attach(model, self, name, rng)  # type: ignore[no-any-return]

    def count(self, config: Any) -> int:
        """How many numbers it trains in a model of these sizes, by the paper's formula."""
        raise NotImplementedError


class Adapters(State):
    """What is attached to a model.

    configs  name -> the method, with its settings
    active   the names that take part in the forward pass, the innermost first
    copies   name -> parameter's name -> the copy that this one trains; it stands in the model
             while the name is active
    base     parameter's name -> the base's own parameter, for each that was copied
    flags    the base's parameters -> did it require a gradient before the first adapter came?
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
    """Freeze the whole model, attach a method under a name, activate it; return what it trains.

    Several can be attached; the new one is active and trained, alone (see `activate` and
    `set_adapter`). Raises ValueError for a name that is taken, and where the method does not fit
    the model.

    base_dtype: "float16" stores the frozen matrices in half the bytes. They are rounded once and
    for good; `detach` gives them back as stored, and frozen. Everything is computed, trained and
    merged in the model's own dtype. Raises ValueError for a dtype that is not a narrower float, and
    for numbers beyond its range.
    """
    if not isinstance(method, Method):
        raise TypeError(f"attach: it takes a LoRAConfig(r=8, targets=...), not {describe(method)}")
    matrices = storable(base_of(model), base_dtype)
    state = install(model, method, name, generator(rng))
    store(matrices, state.flags)
    _train(model, state, name)
    _activate(model, state, [name])
    return list(trained_by(model, name))


@our_words
@all_or_nothing
def set_adapter(model: Module, name: str) -> None:
    """Activate this adapter and train it, alone, as when it was attached."""
    state = state_of(model, name)
    _train(model, state, name)
    _activate(model, state, [name])


@our_words
@all_or_nothing
def activate(model: Module, *names: str) -> None:
    """Let these adapters take part in the forward pass, and no others; none: the base alone.

    What is trained does not change (see `set_adapter`). Raises KeyError for a name that is not
    attached, ValueError where two cannot be active together: both train a copy of one parameter,
    or both need the same place for themselves.
    """
    _activate(model, state_of(model, *names), names)


@our_words
@contextmanager
def disabled(model: Module) -> Iterator[None]:
    """Inside, the model is the base, bit for bit; afterwards the same adapters are active."""
    before = state_of(model).active

    def restore() -> None:
        if (state := find(model)) is not None:
            names = [name for name in before if name in state.configs]
            if state.active != tuple(names):
                activate(model, *names)

    try:
        try:
            activate(model)
            yield
        finally:
            restore()
    except BaseException:
        restore()  # the first call may have been interrupted
        raise


@our_words
@all_or_nothing
def detach(model: Module, name: str | None = None) -> Module:
    """Take one adapter off, or all (name None): then the base's own modules and flags are back."""
    state = state_of(model, *([] if name is None else [name]))
    gone = [*state.configs] if name is None else [name]
    _activate(model, state, [other for other in state.active if other not in gone])
    for other in gone:
        del state.configs[other], state.copies[other]
    left = {at for copies in state.copies.values() for at in copies}
    state.base = {at: p for at, p in state.base.items() if at in left}
    modules = [*adapted(model).values()]
    for module in modules:
        for other in gone:
            module.adapters.pop(other, None)
    swap(model, {id(module): module.base for module in modules if not module.adapters})
    if not state.configs:
        forget(model)
    return model


def find(model: Module) -> Adapters | None:
    """The model's registry; None where nothing is attached. RuntimeError inside `merged`."""
    if model.locked:
        raise RuntimeError(model.locked)
    return next((held for held in vars(model).values() if isinstance(held, Adapters)), None)


def state_of(model: Module, *names: str) -> Adapters:
    """The model's registry; ValueError where nothing is attached, KeyError for an unknown name."""
    state = find(model)
    if state is None:
        raise ValueError(f"this model has no adapter: attach one first, by {DOORS}")
    for name in names:
        if name not in state.configs:
            raise KeyError(f"no adapter is called {name!r}: attached are {sorted(state.configs)}")
    return state


def base_of(model: Module) -> Base:
    """The base's own parameters by name, each with its module, whatever is attached or active.

    A parameter that stands in two places is there under both names.
    """
    state, own = find(model), dict[int, Parameter]()
    if state is not None:
        own = {id(p): state.base[at] for held in state.copies.values() for at, p in held.items()}
    return {name: (module, own.get(id(p), p)) for name, module, p in parameters(model)}


def adapters_of(model: Module, name: str) -> dict[str, Adapter]:
    """The adapters of this name, by the path of the module that each stands around."""
    return {at: m.adapters[name] for at, m in adapted(model).items() if name in m.adapters}


def trained_by(model: Module, name: str) -> dict[str, Parameter]:
    """The parameters of this name's adapters and copies, by the name that a file gives them."""
    state, parts = state_of(model, name), adapters_of(model, name)
    named = {f"{at}.{x}": p for at, part in parts.items() for x, p in part.trained().items()}
    return named | state.copies[name]


def install(model: Module, method: Method, name: str, rng: np.random.Generator) -> Adapters:
    """Put a method's adapters and copies in, neither active nor trained yet."""
    state = find(model) or Adapters(model)
    if not isinstance(name, str) or name in (*state.configs, "base", "") or "." in name:
        raise ValueError(
            f"{name!r} cannot be an adapter's name: it is empty, dotted, 'base' or taken; attached "
            f"are {sorted(state.configs)}: give another name"
        )
    base, modules = base_of(model), dict(walk(model))
    parts, names = dict(method.around(model, rng)), method.copied(model)
    for at in [*parts, *names]:
        if at not in modules and at not in base:
            raise ValueError(f"{method.called} does not fit: this model has no {at!r}")
    copies: dict[int, tuple[str, Parameter]] = {}  # one for each parameter, whatever its names
    for at in names:
        copies.setdefault(id(base[at][1]), (at, wide_copy(*base[at])))
    _refuse_clashes(modules, base, parts, copies)
    new: dict[int, Adapted] = {}
    for at, part in parts.items():
        module = modules[at]
        holder = module if isinstance(module, Adapted) else new.setdefault(
            id(module), Adapted(module))
        holder.adapters.setdefault(name, part.train(module.training))
    swap(model, new)
    state.configs[name] = method
    state.copies[name] = dict(copies.values())
    state.base |= {at: base[at][1] for at in state.copies[name]}
    if find(model) is None:
        own = vars(model)
        own["adapters" if "adapters" not in own else "adapters of minilora"] = state
    return state


def _refuse_clashes(
    modules: dict[str, Module], base: Base, parts: dict[str, Adapter],
    copies: dict[int, tuple[str, Parameter]],
) -> None:
    """ValueError where a weight is adapted and copied, or shared with another module.

    Merging gives a layer a weight of its own. Two modules that share one would come apart.
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
                f"{path}.W is to be trained as a copy and to get an adapter: choose one of them"
            )
        for at, module in places[id(W)]:
            if module is not base[f"{path}.W"][0]:
                raise ValueError(
                    f"{path}.W and {at} are one parameter, and merging an adapter of {path} would "
                    "part them: adapt other layers, or give each module a weight of its own"
                )


def _train(model: Module, state: Adapters, name: str) -> None:
    """Require gradients of what this name trains, and of nothing else."""
    copies = [p for held in state.copies.values() for p in held.values()]
    for p in [*model.parameters(), *state.base.values(), *copies]:
        p.requires_grad, p.grad = False, None
    for p in trained_by(model, name).values():
        p.requires_grad = True


def _activate(model: Module, state: Adapters, names: Sequence[str]) -> None:
    names = tuple(dict.fromkeys(names))
    standing: dict[int, tuple[str, Parameter]] = {}  # the base's parameter -> whose copy, the copy
    for name in names:
        for at, copy in state.copies[name].items():
            other, _ = standing.setdefault(id(state.base[at]), (name, copy))
            if other != name:
                raise ValueError(
                    f"activate: {other} and {name} each have a {at} of their own: activate one"
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
            _, wanted = standing.get(id(own), ("", own))
            new |= {id(p): wanted for p in (own, copy) if p is not wanted}
    swap(model, new)
    for module in modules.values():
        module.active = tuple(name for name in names if name in module.adapters)
    state.active = names


def forget(model: Module) -> None:
    """Drop the registry; the base's parameters require a gradient where they did before."""
    state = state_of(model)
    for p in model.parameters():
        p.requires_grad = state.flags.get(p, p.requires_grad)
    for name in [name for name, held in vars(model).items() if held is state]:
        del vars(model)[name]
