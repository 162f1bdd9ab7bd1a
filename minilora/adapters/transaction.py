"""All or nothing: after an error or an interrupt, a model is as it was before."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..backend.blocks import block, raise_new
from ..backend.flags import own_flags
from ..nn import Module
from ..tensor import Tensor


class State:
    """Base class of a model's state outside its modules, which `restore_on_error` restores too."""


@block
def restore_on_error(*objects: Any) -> Iterator[None]:
    """Restore the objects if the block raises anything, an interrupt included.

    objects: modules, optimizers and the like. Restored are their attributes, lists and dicts, and
    those of all modules and parameters below, with flags, gradients, generators and adapters.
    Numbers written *into* an array are not restored; `state_dict.fill` undoes its own writes.
    """
    before = list(_reached([vars(thing) for thing in objects], set()))
    outer = sys.exception()
    try:
        yield
        raise_new(outer)
    except BaseException:
        for thing, content in before:
            _put_back(thing, content)
        raise


def all_or_nothing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of a model so that a failure changes nothing; see `restore_on_error`."""

    @own_flags
    @functools.wraps(function)
    def run(model: Any, *args: Any, **settings: Any) -> Any:
        if not isinstance(model, Module):
            name = function.__name__
            raise TypeError(f"{name}: the model comes first, and not {type(model).__name__}")
        with restore_on_error(model):
            return function(model, *args, **settings)

    return run


def _reached(thing: Any, seen: set[int]) -> Iterator[tuple[Any, Any]]:
    """Yield (object, a copy of its content) for each mutable object below."""
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


def _put_back(thing: Any, content: Any) -> None:
    if isinstance(thing, Tensor):
        # to set .data to what it is would count as a write
        thing._data, thing.requires_grad, thing.grad = content
    elif isinstance(thing, np.random.Generator):
        thing.bit_generator.state = content
    elif isinstance(thing, dict):
        thing.clear()
        thing.update(content)
    else:
        thing[:] = content
