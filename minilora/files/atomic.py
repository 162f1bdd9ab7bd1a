"""Atomic writes: a complete temporary file in the same folder is renamed to the final name.

A write that fails or is killed leaves the old file unchanged. The next write to the same name
deletes temporary files of killed writers. It knows them by their lock: a running writer holds one.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..backend.blocks import block, raise_new, restoring

fcntl: Any = None  # Windows has no such locks, and a browser has none either
with contextlib.suppress(ImportError):
    fcntl = importlib.import_module("fcntl")
FORGOTTEN = 3600  # seconds; without locks, an older temporary file counts as abandoned


def check(path: str | os.PathLike[str], *suffixes: str) -> None:
    """Raise ValueError, with the remedy, if no file can be written at `path`. For use before work.

    suffixes: allowed endings of the name, such as ".npz"; none: any.
    """
    target, made = _target(path, suffixes), list[Any]()
    try:
        with restoring(lambda: _drop(made)):
            _beside(target, made)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({reason(error)}): give another name, or a folder in which "
            "you may write"
        ) from error


@block
def writing(path: str | os.PathLike[str], *suffixes: str) -> Iterator[BinaryIO]:
    """Yield a binary file. It is renamed to `path` at the end, unless the block raises.

    A link stays a link to the same place, and a replaced file passes its mode on. Raises ValueError
    as `check` does, and OSError with the file's name if the disk is full.
    """
    target, made = _target(path, suffixes), list[Any]()
    _sweep(target)
    try:
        with restoring(lambda: _drop(made)):  # closed, so unlocked, only after it has its name
            file = _beside(target, made)
            if target.exists():
                os.chmod(file.name, stat.S_IMODE(target.stat().st_mode))
            before = sys.exception()  # of a handler around the block, if any
            yield file
            raise_new(before)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames and removes no open file
            os.replace(file.name, target)
            _sync(target.parent)
    except OSError as error:
        temporary = Path(str(error.filename)).name.startswith(f".{target.name}.")
        if error.errno is None or not (error.filename is None or temporary):
            raise  # not about this file
        room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OSError(
            error.errno,
            f"it cannot be written ({reason(error)}), and the old file is unchanged: "
            + ("make room, or write to another disk" if room else "write to another place"),
            str(path),
        ) from error


def _target(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Path:
    """Return the file that `path` refers to through links; ValueError if it cannot be written."""
    if not os.fspath(path):
        raise ValueError("'' is not a file name: give one, such as out.npz")
    try:
        target, given = Path(os.path.realpath(path)), Path(path)
    except ValueError as error:  # a letter that the file system cannot encode, or a NUL
        raise ValueError(
            f"{os.fspath(path)!a} cannot be a file's name here ({error}): give another name"
        ) from error
    if os.path.isdir(target):
        raise ValueError(f"{path} is a folder: give the name of a file in it")
    if suffixes and given.suffix not in suffixes:
        raise ValueError(
            f"{path}: give a name that ends in {' or '.join(suffixes)}, such as "
            f"{given.with_name((given.name.partition('.')[0] or 'out') + suffixes[0])}"
        )
    if not target.parent.is_dir():
        raise ValueError(
            f"{path}: {target.parent if given.is_symlink() else given.parent} is not a folder: "
            "create it first, or give another folder"
        )
    if os.path.exists(target) and not (os.path.isfile(target) and os.access(target, os.W_OK)):
        raise ValueError(f"{path} exists and may not be replaced: give another name")
    return target


def _beside(target: Path, made: list[Any]) -> BinaryIO:
    """Create an empty temporary file in the same folder, locked as long as it is open.

    Its mode follows the umask, as for any new file. Its name and then the file go to `made`.
    """
    while True:
        name = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        made[:] = [name]
        file = open(name, "xb")  # noqa: SIM115 - it outlives this function
        made.append(file)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if name.exists():  # else another writer deleted it before it was locked
            return file
        file.close()


def _drop(made: list[Any]) -> None:
    """Close the file that `_beside` made, and delete it if it still has its temporary name."""
    for file in made[1:]:
        with contextlib.suppress(OSError):  # the disk may be full
            file.close()
    with contextlib.suppress(OSError, IndexError):
        os.unlink(made[0])


def _sweep(target: Path) -> None:
    """Delete the temporary files of killed writers of `target`."""
    form = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{16}\.tmp", re.DOTALL)
    for name in filter(form.fullmatch, os.listdir(target.parent)):
        left = target.with_name(name)
        with contextlib.suppress(OSError):  # it is locked, or another user's
            if fcntl is None:
                if time.time() - left.stat().st_mtime > FORGOTTEN:
                    left.unlink()
            else:
                with left.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()


def _sync(folder: Path) -> None:
    """Write the folder with the new name to the disk, where the system allows it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def reason(error: OSError) -> str:
    """Return the system's message, for use inside a sentence."""
    return re.sub("^[A-Z]", lambda first: first[0].lower(), error.strerror or str(error))
