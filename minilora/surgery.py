"""What is done to a whole model from outside: parts found by name, others put in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .nn import Module, Parameter


def matches(path: str, pattern: str) -> bool:
    """Is `pattern` this path, its end ("q", "attn.q"), or a glob for it ("blocks.*.attn.[qv]")?"""
    return path == pattern or path.endswith(f".{pattern}") or fnmatchcase(path, pattern)


def matching(paths: Iterable[str], patterns: Iterable[str], what: str) -> list[str]:
    """The paths that one of the patterns matches, in their order.

    Raises ValueError naming a pattern that matches none; what: who asks, and of which kind the
    paths are, as in "attach: no layer".
    """
    paths = list(paths)
    for pattern in patterns:
        if not any(matches(path, pattern) for path in paths):
            names = ", ".join(sorted({path.split(".")[-1] for path in paths}))
            raise ValueError(f"{what} matches {pattern!r}: there are {names}")
    return [path for path in paths if any(matches(path, pattern) for pattern in patterns)]


def first(patterns: Mapping[str, Any], path: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the path."""
    return next((value for p, value in patterns.items() if matches(path, p)), otherwise)


def with_above(path: str) -> list[str]:
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
