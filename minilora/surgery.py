"""What is done to a whole model from outside: parts found by name, others put in their place."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .backend import Array, current, xp
from .nn import Module, Parameter
from .tensor import Tensor, no_grad


def matches(path: str, pattern: str) -> bool:
    """Is `pattern` this path, its end ("q", "attn.q"), or a glob for it ("blocks.*.attn.[qv]")?"""
    return path == pattern or path.endswith(f".{pattern}") or fnmatchcase(path, pattern)


def matching(paths: Collection[str], patterns: Iterable[str], what: str) -> list[str]:
    """The paths that one of the patterns matches, in their order.

    Raises ValueError naming a pattern that matches none; what: who asks, and of which kind the
    paths are, as in "attach: no layer".
    """
    for pattern in patterns:
        if not any(matches(path, pattern) for path in paths):
            names = ", ".join(sorted({path.split(".")[-1] for path in paths}))
            raise ValueError(f"{what} matches {pattern!r}: there are {names}")
    return [path for path in paths if any(matches(path, pattern) for pattern in patterns)]


def first(patterns: Mapping[str, Any], path: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the path."""
    return next((value for p, value in patterns.items() if matches(path, p)), otherwise)


def below(names: Sequence[str], patterns: Iterable[str], what: str) -> list[str]:
    """Those of these parameters that a pattern names, or that are in a module that one names.

    Raises ValueError as `matching` does.
    """
    above = {part: None for name in names for part in _with_above(name)}
    named = set(matching(above, patterns, what))
    return [name for name in names if not named.isdisjoint(_with_above(name))]


def _with_above(path: str) -> list[str]:
    """ "a.b.c" -> "a", "a.b", "a.b.c": naming a module names all that is in it."""
    names = path.split(".")
    return [".".join(names[: i + 1]) for i in range(len(names))]


def swap(model: Module, new: Mapping[str, Module | Parameter]) -> None:
    """Put each module or parameter in its place, found by its path.

    A layer that wraps another one, its `.base`, is looked through: paths are the plain model's.
    """
    for path, item in new.items():
        _put(model, path, item)


def _put(owner: Any, path: str, item: Any) -> Any:
    """The owner with this at that path: itself, or of a tuple another one."""
    if not path:
        return item
    if isinstance(owner, tuple):
        return getattr(owner, "_make", tuple)(_put([*owner], path, item))
    held: Any = owner if isinstance(owner, list | dict) else vars(owner)
    for key in range(len(held)) if isinstance(held, list) else held:
        if f"{path}.".startswith(f"{key}."):
            held[key] = _put(held[key], path[len(f"{key}.") :], item)
            return owner
    _put(held["base"], path, item)
    return owner


class State:
    """What is kept beside a model's modules, such as its adapters, and put back by `undone`."""


@contextlib.contextmanager
def undone(*held: Any) -> Iterator[None]:
    """Inside it is all or nothing: whatever is raised, an interrupt too, puts everything back.

    held: modules, optimizers and the like. Put back are their attributes, lists and dicts, and of
    every module and parameter below: attributes, arrays, flags, gradients, generators, adapters.
    What is written *into* an array is not; `checkpoint.fill` undoes that itself.
    """
    before = list(_reached([vars(thing) for thing in held], set()))
    try:
        yield
    except BaseException:
        for thing, kept in before:
            _put_back(thing, kept)
        raise


def all_or_nothing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a model whose failure changes nothing; see `undone`."""

    @functools.wraps(function)
    def run(model: Any, *args: Any, **settings: Any) -> Any:
        if not isinstance(model, Module):
            name = function.__name__
            raise TypeError(f"{name}: the model comes first, and not {type(model).__name__}")
        with undone(model):
            return function(model, *args, **settings)

    return run


def _reached(thing: Any, seen: set[int]) -> Iterator[tuple[Any, Any]]:
    """(each thing below that can change, a copy of what it holds)"""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    below: list[Any] = []
    if isinstance(thing, Tensor):
        yield thing, (thing.data, thing.requires_grad, thing.grad)
    elif isinstance(thing, np.random.Generator):
        yield thing, thing.bit_generator.state
    elif isinstance(thing, dict):
        yield thing, dict(thing)
        below = [*thing.values()]
    elif isinstance(thing, list):
        yield thing, list(thing)
        below = thing
    elif isinstance(thing, tuple):
        below = [*thing]
    elif isinstance(thing, Module | State):
        below = [vars(thing)]
    for item in below:
        yield from _reached(item, seen)


def _put_back(thing: Any, kept: Any) -> None:
    if isinstance(thing, Tensor):
        thing.data, thing.requires_grad, thing.grad = kept
    elif isinstance(thing, np.random.Generator):
        thing.bit_generator.state = kept
    elif isinstance(thing, dict):
        thing.clear()
        thing.update(kept)
    else:
        thing[:] = kept


@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Inside, dropout is off in all of the model; afterwards each module is as it was."""
    before = [(module, module.training) for _, module in model.named_modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def generators(model: Module) -> dict[str, np.random.Generator]:
    """The generators that the model draws dropout from, by the path of their module."""
    held = ((path, getattr(module, "rng", None)) for path, module in model.named_modules())
    return {path: rng for path, rng in held if isinstance(rng, np.random.Generator)}


def first_not_finite(model: Module, *inputs: Any) -> str:
    """Where the numbers of model(*inputs) stop being finite; "" where all of them are.

    "the parameter blocks.0.attn.q.W", the first that is not finite; else "the output of
    blocks.0.mlp", of the first module to finish with such an output; the model's own comes last.
    """

    def finite(array: Array) -> bool:
        return bool(current().read(xp.isfinite(array).all(), 1.0))

    def watched(path: str, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            if isinstance(out, Tensor) and not finite(out.data):
                found.append(f"the output of {path or 'the model'}")
            return out

        return run

    found = [f"the parameter {path}" for path, p in model.named_parameters() if not finite(p.data)]
    held: list[tuple[dict[str, Any], Any]] = []
    try:
        for path, module in list(model.named_modules()):
            held.append((vars(module), vars(module).get("forward")))
            vars(module)["forward"] = watched(path, module.forward)
        with no_grad(), evaluating(model), np.errstate(over="ignore", invalid="ignore"):
            model(*inputs)
    finally:
        for attributes, own in reversed(held):
            attributes.pop("forward") if own is None else attributes.update(forward=own)
    return found[0] if found else ""
