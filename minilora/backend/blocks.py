"""Blocks that change something for a while and restore it, whenever an interrupt comes."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ContextDecorator
from typing import Any, ParamSpec, TypeVar

import numpy as np

P, T = ParamSpec("P"), TypeVar("T")


class _Enter:
    """`__enter__` of a block: looked up, it is the function in C that begins the generator."""

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        if owner is None:
            return self
        if owner.entered:
            raise RuntimeError("this block was entered before: call its function again")
        owner.entered = True
        return owner.close

    def __call__(self, owner: Any) -> Any:
        return self.__get__(owner)()


class _Block(ContextDecorator, io.IOBase):
    """A context manager whose way in and out are in C: both are `close`, which begins a generator,
    or resumes it inside its own `try`. `__exit__` is io's.

    Python looks for signals where a function in Python begins and after it has called one in C. So
    an `__exit__` in Python may end before its first line, and an `__enter__` after its last.
    """

    closed = True  # nothing is to be closed when this is freed
    entered = False
    __enter__: Any = _Enter()

    def __init__(self, steps: Callable[[], Iterator[Any]]) -> None:
        self.steps = steps
        self.close = functools.partial(next, steps(), None)  # type: ignore[method-assign]

    def _recreate_cm(self) -> _Block:
        return _Block(self.steps)


def block(steps: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """Make a context manager of a generator, as `contextlib.contextmanager` does.

    No interrupt can skip the generator's second part. It is not told of an exception in the block.
    """

    @functools.wraps(steps)
    def make(*args: P.args, **kwargs: P.kwargs) -> Any:
        return _Block(functools.partial(steps, *args, **kwargs))

    return make


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


@block
def arithmetic(**flags: Any) -> Iterator[None]:
    """Set these flags of NumPy in the block, as `np.errstate` does, and the previous after it."""
    before = np.geterr()
    with restoring(lambda: np.seterr(**before)):
        np.seterr(**flags)
        yield
