"""The settings of a Python thread: record a tape? run kernels? which ops are replaced?

They belong to the thread, not to the process, because two threads may train at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

from . import current
from .blocks import block, restoring


class _ThreadSettings(threading.local):
    recording = True  # is a tape recorded?
    plain: bool | None = None  # run no kernels? None: as the backend in use has it
    replaced: Mapping[Any, Callable[..., Any]] = MappingProxyType({})  # op -> its substitute
    context: Any = None  # how a forward pass is to run: see adapters/context.py


thread_settings = _ThreadSettings()


@block
def choose(**values: Any) -> Iterator[None]:
    """Set these settings of this thread in the block, and restore the previous ones after it."""
    before = {name: getattr(thread_settings, name) for name in values}
    with restoring(lambda: vars(thread_settings).update(before)):
        vars(thread_settings).update(values)
        yield


def no_grad() -> AbstractContextManager[None]:
    """Record nothing in the block: no tape, no rules, no activations kept."""
    return choose(recording=False)


def recording() -> bool:
    """Return whether a tape is recorded, that is, whether we are outside `no_grad`."""
    return thread_settings.recording


def plain(flag: bool = True) -> AbstractContextManager[None]:
    """Run every op in the block as it is printed in ops/, without its kernel."""
    return choose(plain=flag)


def is_plain() -> bool:
    """Return whether ops run without their kernels."""
    return current().plain if thread_settings.plain is None else thread_settings.plain


def as_now() -> Callable[[], AbstractContextManager[None]]:
    """Return a function that re-enters the current settings, with recording on."""
    now = thread_settings
    then = {"plain": is_plain(), "replaced": now.replaced, "context": now.context}
    return lambda: choose(recording=True, **then)
