"""How a forward pass is to run: one object with named fields, for all modules of the pass."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend.settings import choose, thread_settings


@dataclass(frozen=True)
class Context:
    """What holds for the forward passes of a block, in the thread that entered it.

    rows     which adapter each batch row uses (see `per_row`); None: all rows use the active ones
    prompt   how many tokens the prompt has, one number or one for each row (see `methods.prompt`)
    layout   where trained tokens stand in the pass that is running; None: it has none
    """

    rows: Any = None
    prompt: np.ndarray | None = None
    layout: Any = None


EMPTY = Context()


def context() -> Context:
    """The context of this thread."""
    found: Context = thread_settings.context or EMPTY
    return found


def within(**fields: Any) -> AbstractContextManager[None]:
    """Set these fields of the context inside the block; restore them afterwards."""
    return choose(context=replace(context(), **fields))
