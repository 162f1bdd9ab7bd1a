"""The context of a forward pass: one object with named fields, the same for all modules."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend.settings import choose, thread_settings


@dataclass(frozen=True)
class Context:
    """The settings of forward passes in a block, for the thread that entered it.

    rows     the adapter of each batch row (see `per_row`); None: all rows use the active adapters
    prompt   tokens in the prompt, one integer or one for each row (see `methods.prompt`)
    layout   the places of trained tokens in the current pass; None: it has no trained tokens
    """

    rows: Any = None
    prompt: np.ndarray | None = None
    layout: Any = None


EMPTY = Context()


def context() -> Context:
    """Return the context of this thread."""
    return thread_settings.context or EMPTY


def within(**fields: Any) -> AbstractContextManager[None]:
    """Set these fields of the context inside the block; restore them afterwards."""
    return choose(context=replace(context(), **fields))
