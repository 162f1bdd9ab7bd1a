"""What a Python thread has chosen: is a tape kept, do kernels run, what stands in for which op.

Two threads may train at once, so nothing here belongs to the process.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any

from . import current


class _Own(threading.local):
    recording = True  # is a tape kept?
    plain: bool | None = None  # no kernels; None: as the backend in use has it
    replaced: Mapping[Any, Callable[..., Any]] = MappingProxyType({})  # op -> what stands in
    context: Any = None  # how a forward pass is to run: see adapters/context.py


own = _Own()


@contextmanager
def choose(**values: Any) -> Iterator[None]:
    """Inside, these are this thread's choices; afterwards those from before."""
    before = {name: getattr(own, name) for name in values}
    vars(own).update(values)
    try:
        yield
    finally:
        vars(own).update(before)


def no_grad() -> AbstractContextManager[None]:
    """Inside, nothing is recorded: no tape, no rules, no activations kept."""
    return choose(recording=False)


def recording() -> bool:
    """Is a tape being kept, that is, are we outside `no_grad`?"""
    return own.recording


def plain(flag: bool = True) -> AbstractContextManager[None]:
    """Inside, every op runs as it is printed in ops/, without its kernel."""
    return choose(plain=flag)


def is_plain() -> bool:
    """Do ops run without their kernels?"""
    return current().plain if own.plain is None else own.plain


def as_now() -> Callable[[], AbstractContextManager[None]]:
    """A way back: what it gives enters the choices of now, and keeps a tape."""
    then = {"plain": is_plain(), "replaced": own.replaced, "context": own.context}
    return lambda: choose(recording=True, **then)


def stand_in(op: Any) -> Callable[..., Any] | None:
    """What the reader put in an op's place; inside of that, the op is the engine's own again."""
    if op not in own.replaced:
        return None
    mine = own.replaced[op]

    def call(*inputs: Any, **settings: Any) -> Any:
        with choose(replaced={which: f for which, f in own.replaced.items() if which is not op}):
            out = mine(*inputs, **settings)
        if not hasattr(out, "requires_grad"):
            raise TypeError(
                f"{op.__name__}: what replaces it gave a {type(out).__name__}: it takes Tensors "
                "and gives one: make it an @op, or compose it of ops"
            )
        return out

    return call


def kernel_of(op: Any) -> Any:
    """The fast version of an op, from the op's own slot; None where the slot is empty."""
    return None if is_plain() else op.kernel


def has_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays, not an op, that may have a kernel."""

    @functools.wraps(function)
    def apply(*args: Any, **kwargs: Any) -> Any:
        return (kernel_of(apply) or function)(*args, **kwargs)

    apply.kernel = None  # type: ignore[attr-defined]
    return apply
