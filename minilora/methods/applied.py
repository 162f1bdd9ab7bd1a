"""One verb for every method: apply it to a model, choose which one counts, remove it.

    methods.apply(model, "adapter-h", r=8)        frozen, but for what the method trains
    methods.activate(model, "default")            that one counts; several can be applied, by name
    methods.remove(model)                         the base, bit for bit

A method puts named parts around modules (`Adapted`), or trains copies of the base's parameters, or
both. The base's own arrays are never written: `remove` gives the modules, parameters and flags
back. Each function is all or nothing: where it raises, or is interrupted, the model is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ..adapters.places import swap
from ..adapters.storage import wide_copy
from ..adapters.transaction import State, all_or_nothing
from ..backend import Rng, asnumpy, generator
from ..config import Config
from ..lora.convert import activate as activate_lora
from ..lora.convert import detach
from ..lora.convert import trained_by as trained_by_lora
from ..lora.layers import LoRALayer
from ..nn import Module, Parameter
from ..tensor import Tensor

METHODS: dict[str, type[Method]] = {}  # by name, as `apply` takes them
CALLS = ("forward", "encode")  # of a model: what a part can be around, as if it were a module


class Method(Config):
    """A way to adapt a model: a frozen dataclass of its settings.

    What it does is in what a subclass overrides: `around`, `copied`, or `install` itself; `count`.
    """

    called: ClassVar[str] = ""

    def __init_subclass__(cls, called: str) -> None:
        cls.called = called
        if called:
            METHODS[called] = cls

    def around(self, model: Module, rng: np.random.Generator) -> Mapping[str, Module]:
        """The parts that it puts around modules, by the module's path in the plain model."""
        return {}

    def copied(self, names: Sequence[str]) -> list[str]:
        """Those of the base's parameters of which it trains a copy."""
        return []

    def saved(self, model: Module, name: str) -> tuple[Method, dict[str, np.ndarray]]:
        """What a file holds: a method, and what that trains, on the host."""
        return self, {at: asnumpy(p.data) for at, p in trained_by(model, name).items()}

    def count(self, config: Any) -> int:
        """How many numbers it trains in a model of these sizes, by the paper's formula."""
        raise NotImplementedError

    def apply(self, model: Module, name: str = "default", rng: Rng = None) -> list[str]:
        """See `methods.apply`."""
        return apply(model, self, name, rng)  # type: ignore[no-any-return]

    def install(self, model: Module, name: str, rng: np.random.Generator) -> None:
        """Put its parts and copies in, neither active nor trained yet."""
        state, base = applied_to(model), base_of(model)
        for path, part in self.around(model, rng).items():
            _adapted(model, path).parts[name] = part.train(model.training)
        copies = {at: wide_copy(*base[at]) for at in self.copied([*base])}
        state.copies[name] = copies
        state.base |= {at: base[at][1] for at in copies}


class Applied(State):
    """What is applied to a model, as `model.methods`: the methods by name, and who is active."""

    def __init__(self, model: Module) -> None:
        self.methods: dict[str, Method] = {}
        self.active: tuple[str, ...] = ()
        self.copies: dict[str, dict[str, Parameter]] = {}  # of each: what stands in when active
        self.base: dict[str, Parameter] = {}  # the base's own, which was copied
        self.required = {p: p.requires_grad for p in model.parameters()}


class Adapted(Module):
    """A module and the parts around it, by name, of which the active ones count.

    A part is called with what it is around, and then with its arguments: `part(inner, x)`.
    """

    def __init__(self, base: Any) -> None:
        self.base, self.training = base, getattr(base, "training", True)
        self.parts: dict[str, Module] = {}
        self.active: tuple[str, ...] = ()

    def children(self) -> Iterator[tuple[str, Module | Parameter]]:
        if isinstance(self.base, Module):
            yield "base", self.base
        yield from self.parts.items()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        run: Any = self.base
        for name in self.active:
            run = partial(self.parts[name], run)
        out: Tensor = run(*args, **kwargs)
        return out

    def __getattr__(self, name: str) -> Any:
        """What else a model asks for, such as a table's `project`: the module has it."""
        if name.startswith("__") or "base" not in vars(self):
            raise AttributeError(name)
        return getattr(self.base, name)

    def window(self, positions: int, tokens: int) -> int:
        """See `models.cache.window`."""
        for name in self.active:
            part: Any = self.parts[name]
            positions = part.window(positions, tokens)
        return positions


@all_or_nothing
def apply(
    model: Module, method: Method | str, name: str = "default", rng: Rng = None, **settings: Any
) -> list[str]:
    """Freeze the model and have this method trained instead; returns the names of what is trained.

    method: one of METHODS by its name, with its settings, or made: "adapter-h", r=8 is
    AdapterH(r=8). Several can be applied, under names of their own; the last one counts (see
    `activate`). Raises ValueError for a method that there is not, a name that is taken, and where
    the method does not fit the model.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(
                f"apply: there is no method {method!r}: there are {', '.join(METHODS)}"
            )
        method = METHODS[method](**settings)
    elif settings or not isinstance(method, Method):
        raise TypeError(
            'apply: it takes a method\'s name and its settings, as in "lora", r=8, or a method, as '
            f"in methods.LoRA(r=8): not {method!r}, {settings}"
        )
    state = applied_to(model) if hasattr(model, "methods") else Applied(model)
    if name in (*state.methods, "base", "") or "." in name:
        raise ValueError(
            f"apply: {name!r} cannot be the name: it is empty, dotted, 'base', or taken by one of "
            f"{sorted(state.methods)}: give another one"
        )
    vars(model)["methods"] = state
    state.methods[name] = method
    method.install(model, name, generator(rng))
    for p in model.parameters():
        p.requires_grad, p.grad = False, None
    activate(model, name)
    for other in state.methods:
        for p in trained_by(model, other).values():
            p.requires_grad, p.grad = other == name, None
    return list(trained_by(model, name))


@all_or_nothing
def activate(model: Module, *names: str) -> None:
    """Let these count and no others; none: the base alone. What is trained does not change.

    An adapter that `lora.attach` put in is part of the base here: it counts or not, as it did.
    Raises KeyError for a name that is not applied, ValueError where two cannot count together.
    """
    state, names = applied_to(model, *names), tuple(dict.fromkeys(names))
    copied = [at for name in names for at in state.copies.get(name, ())]
    if len(set(copied)) < len(copied):
        raise ValueError(f"activate: {' and '.join(names)} each have a {copied[-1]} of their own")
    prompts = [name for name in names for p, w in adapted(model) if p in CALLS and name in w.parts]
    if len(prompts) > 1:
        raise ValueError(f"activate: {' and '.join(prompts)} each put tokens beside the prompt")
    state.active = names
    new = [(at, p) for name in names for at, p in state.copies.get(name, {}).items()]
    swap(model, state.base | dict(new))
    for _, wrapper in adapted(model):
        wrapper.active = tuple(name for name in names if name in wrapper.parts)
    if hasattr(model, "adapters"):
        others = [name for name in model.adapters.active if name not in state.methods]
        activate_lora(model, *others, *(n for n in names if n in model.adapters.configs))


@contextmanager
def disabled(model: Module) -> Iterator[None]:
    """Inside, the model is the base, bit for bit; afterwards the same methods are active."""
    before = applied_to(model).active
    try:
        activate(model)
        yield
    finally:
        activate(model, *before)


@all_or_nothing
def remove(model: Module, name: str | None = None) -> Module:
    """Take one method off, or all of them: then the base's own modules and flags are back."""
    state = applied_to(model, *([] if name is None else [name]))
    gone = [*state.methods] if name is None else [name]
    activate(model, *(other for other in state.active if other not in gone))
    for other in gone:
        if hasattr(model, "adapters") and other in model.adapters.configs:
            detach(model, other)
        state.methods.pop(other), state.copies.pop(other, None)
        for path, wrapper in reversed(adapted(model)):  # what is inside of others comes first
            wrapper.parts.pop(other, None)
            if not wrapper.parts:
                _put_back(model, path, wrapper)
    if not state.methods:
        for p, flag in state.required.items():
            p.requires_grad = flag
        del vars(model)["methods"]
    return model


def applied_to(model: Module, *names: str) -> Applied:
    """What is applied to the model; raises where nothing is, or nothing of these names."""
    state = getattr(model, "methods", None)
    if not isinstance(state, Applied):
        raise ValueError('no method is applied to this model: methods.apply(model, "lora") first')
    if model.locked:
        raise RuntimeError(model.locked)
    for name in names:
        if name not in state.methods:
            raise KeyError(f"no method is called {name!r}: there are {sorted(state.methods)}")
    return state


def adapted(model: Module) -> list[tuple[str, Adapted]]:
    """The modules that have parts around them, by path."""
    return [(path, m) for path, m in model.named_modules() if isinstance(m, Adapted)]


def plain(path: str) -> str:
    """A path in the plain model: a layer that wraps another one is looked through."""
    return ".".join(part for part in path.split(".") if part != "base")


def base_of(model: Module) -> dict[str, tuple[Module, Parameter]]:
    """The base's own parameters by their names in the plain model, each with its module."""
    held = [getattr(model, at).base for at in ("adapters", "methods") if hasattr(model, at)]
    own = {at: p for base in held for at, p in base.items()}

    def walk(module: Module, path: str) -> Iterator[tuple[str, tuple[Module, Parameter]]]:
        for name, child in module.children():
            if isinstance(module, Adapted | LoRALayer) and name != "base":
                continue
            at = f"{path}.{name}" if path else name
            if isinstance(child, Module):
                yield from walk(child, at)
            else:
                yield plain(at), (module, own.get(plain(at), child))

    return dict(walk(model, ""))


def trained_by(model: Module, name: str) -> dict[str, Parameter]:
    """What a method of this name trains, by the name that it has in the method's file."""
    state = applied_to(model, name)
    parts = [(plain(path), w.parts[name]) for path, w in adapted(model) if name in w.parts]
    found = {f"{at}.{x}": p for at, part in parts for x, p in part.named_parameters()}
    found |= state.copies.get(name, {})
    if hasattr(model, "adapters") and name in model.adapters.configs:
        found |= trained_by_lora(model, name)
    return found


def _adapted(model: Module, path: str) -> Adapted:
    """The wrapper at this path, which is put there if there is none."""
    for at, wrapper in adapted(model):
        if plain(at) == path:
            return wrapper
    if path in CALLS:
        wrapper = Adapted(getattr(model, path)).train(model.training)
        vars(model)[path] = wrapper
        return wrapper
    inner = {plain(at): (at, m) for at, m in reversed([*model.named_modules()])}
    at, module = inner[path]
    wrapper = Adapted(module)
    swap(model, {at: wrapper})
    return wrapper


def _put_back(model: Module, path: str, wrapper: Adapted) -> None:
    if path in CALLS:
        del vars(model)[path]
    else:
        swap(model, {path: wrapper.base})


def wide(model: Module) -> np.dtype[Any]:
    """A method's own parameters: in float32, or what the model computes in if that is wider."""
    (norm, *_) = (p for name, p in model.named_parameters() if name.endswith(".g"))
    return np.promote_types(str(norm.dtype), "float32")
