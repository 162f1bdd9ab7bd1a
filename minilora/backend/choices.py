"""What a Python thread has chosen: is a tape kept, do kernels run, what stands in for which op.

Two threads may train at once, so nothing here belongs to the process.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from . import current


class _Own(threading.local):
    recording = True  # is a tape kept?
    plain = False  # no kernels
    replaced: dict[Any, Callable[..., Any]] = {}  # noqa: RUF012: op -> what stands in for it


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
    return own.plain or current().plain


def as_now() -> Callable[[], AbstractContextManager[None]]:
    """A way back: what it gives enters the choices of now, and keeps a tape."""
    then = {"plain": own.plain, "replaced": own.replaced}
    return lambda: choose(recording=True, **then)


def has_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays, not an op: its `.kernel` (see minilora/kernels) runs where it may."""

    @functools.wraps(function)
    def apply(*args: Any, **kwargs: Any) -> Any:
        kernel = None if is_plain() else apply.kernel  # type: ignore[attr-defined]
        return (kernel or function)(*args, **kwargs)

    apply.kernel = None  # type: ignore[attr-defined]
    return apply
