"""A cache of chapter results in the user's cache folder, so the next build need not run them."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

from ..files import atomic, cache
from .contents import PACKAGE

PACKAGES = ("numpy", "matplotlib", "ipykernel", "ipython", "jupytext", "nbclient")
RUNS = ("execution.py", "cover.py")  # the files of this folder that affect results
DAYS = 30


def key(source: str) -> str:
    """Return a digest of everything that a result of `source` depends on."""
    fast = os.environ.get("MINILORA_FAST", "")
    parts = [source, fast, _package(), sys.version, platform.platform()]
    parts += [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def get(name: str) -> str | None:
    """Return the text stored under this name, or None."""
    path = _folder() / name
    try:
        os.utime(path)  # keeps entries that are in use
        return path.read_text("utf-8")
    except OSError:
        return None


def put(name: str, text: str) -> None:
    """Store a text, and remove entries not used for a month.

    A folder that cannot be written is ignored: the next build runs the chapter again.
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
    return cache.folder("site")


@functools.cache
def _package() -> str:
    """Return a digest of the package's code and data; of this folder, only RUNS count."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] == "tutorials" or "__pycache__" in inside.parts or path.is_dir():
            continue
        if inside.parts[0] != "site" or inside.name in RUNS:
            digest.update(f"{inside}\0".encode() + path.read_bytes())
    return digest.hexdigest()
