"""Blocks that change something for a while and restore it, whenever an interrupt comes."""
from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ContextDecorator
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

class _Enter:
    """The `__enter__` of a block: for `with`, it is a function in C that begins the generator."""

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        if owner is not None and owner.entered:
            raise RuntimeError("this block was entered before: call its function again")
        return self if owner is None else owner.begin()
    def __call__(self, owner: Any) -> Any:
        return owner.begin()()

class _Block(ContextDecorator, io.IOBase):
    """A context manager whose ways in and out are in C: they begin a generator, and resume it
    inside its own `try`. Python looks for signals where a function in Python begins and where one
    in C has ended, so an interrupt could skip an `__exit__` in Python, or end an `__enter__` late.
    """
    closed = True  # do not call close() when this is freed
    entered = False
    __enter__: Any = _Enter()  # and __exit__ is io's, which calls close()

    def __init__(self, steps: Callable[[], Iterator[Any]]) -> None:
        self._recreate_cm = lambda: _Block(steps)  # type: ignore[method-assign]
        self.close = functools.partial(next, steps(), None)  # type: ignore[method-assign]
    def begin(self) -> Any:
        self.entered = True
        return self.close

def block(steps: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """Make a context manager of a generator, as `contextlib.contextmanager` does; but no interrupt
    can skip the generator's end. An exception in the block is not raised at the yield: see
    `raise_new`."""
    @functools.wraps(steps)
    def make(*args: P.args, **kwargs: P.kwargs) -> Any:
        return _Block(functools.partial(steps, *args, **kwargs))

    return make

def raise_new(before: BaseException | None) -> None:
    """After a generator's yield, raise what the block raised; before: sys.exception() until then.
    """
    if (error := sys.exception()) not in (None, before):
        raise error

@block
def restoring(restore: Callable[[], object]) -> Iterator[None]:
    """Call `restore` after the block, and once more if an interrupt stopped the first call."""
    try:
        try:
            yield
        finally:
            restore()
    except BaseException:
        restore()
        raise
