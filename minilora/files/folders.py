"""Folders of several files, written completely or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from ..backend.blocks import block, raise_new, restoring
from .atomic import reason


def check(folder: str | os.PathLike[str]) -> None:
    """Raise ValueError, with the remedy, if no new folder can be written there."""
    path = Path(folder)
    if not os.fspath(folder) or (path.exists() and not path.is_dir()):
        raise ValueError(f"{os.fspath(folder)!r} is not a folder: give the name of a new one")
    if path.is_dir() and (names := sorted(x.name for x in path.iterdir())):
        raise ValueError(
            f"{folder} is not empty (it has {', '.join(names[:3])}{', ...' * (len(names) > 3)}), "
            "and nothing is replaced: give the name of a new folder")
    if not path.absolute().parent.is_dir():
        raise ValueError(
            f"{folder}: {path.parent} is not a folder: create it first, or give another folder")


@block
def writing(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside `folder`. It gets that name at the end, unless the block raises.

    Raises ValueError as `check` does, and OSError if the disk is full.
    """
    check(folder)
    target = Path(os.path.realpath(folder))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    with restoring(lambda: shutil.rmtree(temporary, ignore_errors=True)):
        try:
            temporary.mkdir()
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be written ({reason(error)}): give a folder in which you may "
                "write") from error
        before = sys.exception()  # of a handler around the block, if any
        yield temporary
        raise_new(before)
        if target.is_dir():
            target.rmdir()  # it is empty; Windows renames to no name that exists
        os.rename(temporary, target)
