"""A file that appears under its name only when it is whole: written beside it, then renamed.

A write that fails, or is killed, leaves what was there. What a killed one leaves beside it is swept
by the next write to that name: a living writer holds a lock on its temporary file, a dead one none.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import importlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

# On Windows nobody can remove a file that is open, and there are no such locks.
fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
FORGOTTEN = 3600  # seconds: without locks, a temporary file this old has no writer


def check(path: str | os.PathLike[str], *suffixes: str) -> None:
    """Raise ValueError, with the remedy, if a file cannot be written at `path`: before the work.

    suffixes: what its name may end in, such as ".npz"; none: anything.
    """
    try:
        file = _beside(_target(path, suffixes))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({said(error)}): give another name, or a folder that you "
            "may write in"
        ) from error
    _drop(file)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], *suffixes: str) -> Iterator[BinaryIO]:
    """A binary file to write to. It is at `path` when the block ends, and not if the block raises.

    A link stays a link to the same place, a file that is replaced leaves its mode to the new one.
    Raises ValueError as `check` does; OSError, with the file's name, where the disk is full.
    """
    target = _target(path, suffixes)
    _sweep(target)
    try:
        file = _beside(target)
        try:
            if target.exists():
                os.chmod(file.name, stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no open file
            os.replace(file.name, target)
            _sync(target.parent)
        finally:
            _drop(file)  # closed, so unlocked, only after it has its name
    except OSError as error:
        temporary = Path(str(error.filename)).name.startswith(f".{target.name}.")
        if error.errno is None or not (error.filename is None or temporary):
            raise  # not about this file
        room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OSError(
            error.errno,
            f"it cannot be written ({said(error)}), what was there is as it was: "
            + ("make room, or write to another disk" if room else "write to another place"),
            str(path),
        ) from error


def _target(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Path:
    """The file that `path` is, links followed, once nothing in sight speaks against writing it."""
    if not os.fspath(path):
        raise ValueError("'' is no name of a file: give one, such as out.npz")
    target, given = Path(os.path.realpath(path)), Path(path)
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
            "create it first, or give another"
        )
    if os.path.exists(target) and not (os.path.isfile(target) and os.access(target, os.W_OK)):
        raise ValueError(f"{path} is there and may not be replaced: give another name")
    return target


def _beside(target: Path) -> BinaryIO:
    """A new, empty file in the same folder, under a name of its own, locked as long as it is open.

    Its mode is what the umask leaves, as of any new file.
    """
    while True:
        name = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        file = open(name, "xb")  # noqa: SIM115 - it outlives this function
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if name.exists():  # else it was swept before it was locked
            return file
        file.close()


def _drop(file: BinaryIO) -> None:
    """Close it, and remove it where it still has its own name."""
    with contextlib.suppress(OSError):  # what a full disk did not take is not asked for again
        file.close()
    with contextlib.suppress(OSError):
        os.unlink(file.name)


def _sweep(target: Path) -> None:
    """Remove the temporary files of writers of `target` that live no more."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 16}.tmp"):
        with contextlib.suppress(OSError):  # it is locked, or somebody else's
            if fcntl is None:
                if time.time() - left.stat().st_mtime > FORGOTTEN:
                    left.unlink()
            else:
                with left.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()


def _sync(folder: Path) -> None:
    """Bring the new name itself to the disk, where the system lets one ask for that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def said(error: OSError) -> str:
    """What the system says, as part of a sentence."""
    return re.sub("^[A-Z]", lambda first: first[0].lower(), error.strerror or str(error))
