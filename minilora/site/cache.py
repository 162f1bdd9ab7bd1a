"""What a chapter showed, kept under what it was made from: the next build need not run it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

from ..files import atomic
from .contents import PACKAGE

WITH = ("numpy", "matplotlib", "ipykernel", "ipython", "jupytext", "nbclient")
RUNS = ("running.py", "cover.py")  # what of this folder decides on a result
DAYS = 30


def key(source: str) -> str:
    """A digest of all that a result of `source` depends on: it, the package, and the versions."""
    fast = os.environ.get("MINILORA_FAST", "")
    parts = [source, fast, _package(), sys.version, platform.platform()]
    parts += [f"{name} {importlib.metadata.version(name)}" for name in WITH]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def get(name: str) -> str | None:
    """What was put under this name, if it is still there."""
    path = _folder() / name
    try:
        os.utime(path)  # so that what is used stays
        return path.read_text("utf-8")
    except OSError:
        return None


def put(name: str, text: str) -> None:
    """Keep it, and forget what nobody asked for in a month. A folder that is full or closed to us
    only means that the next build runs the chapter again.
    """
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        with atomic.writing(_folder() / name) as file:
            file.write(text.encode())
        for path in _folder().iterdir():
            if path.stat().st_mtime < time.time() - DAYS * 86400:
                path.unlink()
    except (OSError, ValueError):
        return


def _folder() -> Path:
    own = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(own) if own else Path.home() / ".cache") / "minilora" / "site"


@functools.cache
def _package() -> str:
    """A digest of the package's code and data; of this folder, only of what runs chapters."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] == "tutorials" or "__pycache__" in inside.parts or path.is_dir():
            continue
        if inside.parts[0] != "site" or inside.name in RUNS:
            digest.update(f"{inside}\0".encode() + path.read_bytes())
    return digest.hexdigest()
