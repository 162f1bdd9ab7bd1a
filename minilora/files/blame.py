"""Errors that begin with the name of the file that they are about."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def blamed(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a TypeError, ValueError or KeyError raised in the block into a ValueError that begins
    with the file's name.
    """
    try:
        yield
    except (TypeError, ValueError, KeyError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: {error.args[0] if error.args else error}") from error
