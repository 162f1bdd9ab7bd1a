"""A folder that is a site when it is whole: made beside the old one, which stays if that fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..files.atomic import said

MARK = '<meta name="generator" content="minilora">'


def is_site(folder: Path) -> bool:
    """Was it built by us?"""
    try:
        return MARK in (folder / "index.html").read_text("utf-8")[:2000]
    except (OSError, UnicodeDecodeError):
        return False


def check(out: Path) -> None:
    """Raise ValueError, with the remedy, if no site can be written to `out`: before the work."""
    if out.is_dir() and any(out.iterdir()) and not is_site(out):
        raise ValueError(
            f"{out} is there, and holds no site: give another name, or remove it first"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give the name of a folder")
    parent = _real(out).parent
    if not parent.is_dir():
        told = parent if out.is_symlink() else out.parent
        raise ValueError(f"{out}: {told} is not a folder: create it first, or give another")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".site-", dir=parent))
    except OSError as error:
        raise ValueError(
            f"{out} cannot be written ({said(error)}): give another name, or a folder that you may "
            "write in"
        ) from error


def write(out: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder with these files at `out`, in place of the site that was there."""
    check(out)
    target = _real(out)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}-", dir=target.parent, ignore_cleanup_errors=True
    ) as room:
        new, old = Path(room, "new"), Path(room, "old")
        for name, data in files.items():
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
