"""All or nothing: what raises, or is interrupted, leaves a model as it was."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..nn import Module
from ..tensor import Tensor


class State:
    """What is kept beside a model's modules, such as its adapters, and put back by `undone`."""


@contextlib.contextmanager
def undone(*held: Any) -> Iterator[None]:
    """Inside it is all or nothing: whatever is raised, an interrupt too, puts everything back.

    held: modules, optimizers and the like. Put back are their attributes, lists and dicts, and of
    every module and parameter below: attributes, arrays, flags, gradients, generators, adapters.
    What is written *into* an array is not; `state_dict.fill` undoes that itself.
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
