"""Blocks that change something for a while and restore it, whenever an interrupt comes."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ContextDecorator
from typing import Any, ParamSpec, TypeVar

import numpy as np

P, T = ParamSpec("P"), TypeVar("T")


class _Block(ContextDecorator, io.IOBase):
    """Its `__exit__` is io's, in C: it calls `close`, which resumes a generator inside its `try`.

    Python looks for signals where a function begins. So an `__exit__` in Python may be interrupted
    before its first line, and nothing is restored.
    """

    closed = True  # do not call close() when this is freed

    def __init__(self, steps: Callable[[], Iterator[Any]]) -> None:
        self.close = functools.partial(next, steps(), None)  # type: ignore[method-assign]
        self._recreate_cm = lambda: _Block(steps)  # type: ignore[method-assign]
        self.entered = False

    def __enter__(self) -> Any:
        if self.entered:
            raise RuntimeError("this block was entered before: call its function again")
        self.entered = True
        try:
            return self.close()
        except BaseException:
            self.close()  # it may have been interrupted after the generator's first part
            raise


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
