"""Write the site to a folder: all files or none. An old site stays if that fails.

A file of the user's in the folder is known by the site's LIST, and so is a page that was edited:
such a site is not replaced.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..files.atomic import reason
from ..files.owned import LIST, listed, theirs

MARK = '<meta name="generator" content="minilora">'


def is_site(folder: Path) -> bool:
    """Return whether the folder is a site that minilora built."""
    try:
        return MARK in (folder / "index.html").read_text("utf-8")[:2000]
    except (OSError, UnicodeDecodeError):
        return False


def check(out: Path) -> None:
    """Raise ValueError, with the remedy, if no site can be written to `out`."""
    if out.is_dir() and any(out.iterdir()) and not is_site(out):
        raise ValueError(
            f"{out} exists and is not a site: give another name, or remove it first"
        )
    if out.is_dir() and (others := theirs(out)):
        raise ValueError(
            f"{out} has {others[0]}, which minilora did not write so ({len(others)} such files): "
            "give another name, or remove it first"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give the name of a folder")
    parent = _real(out).parent
    if not parent.is_dir():
        missing = parent if out.is_symlink() else out.parent
        raise ValueError(f"{out}: {missing} is not a folder: create it first, or give another")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".site-", dir=parent))
    except OSError as error:
        raise ValueError(
            f"{out} cannot be written ({reason(error)}): give another name, or a folder where you "
            "may write"
        ) from error


def write(out: Path, files: Mapping[str, bytes]) -> None:
    """Write these files (name -> bytes) to the folder `out`, replacing an old site."""
    check(out)
    target = _real(out)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}-", dir=target.parent, ignore_cleanup_errors=True
    ) as room:
        new, old = Path(room, "new"), Path(room, "old")
        for name, data in {**files, LIST: listed(files)}.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(data)
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(new, target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            raise


def _real(out: Path) -> Path:
    return Path(os.path.realpath(out))
