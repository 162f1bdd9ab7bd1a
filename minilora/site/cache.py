"""A cache of chapter results in the user's cache folder, so the next build need not run them."""

from __future__ import annotations

import contextlib
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
    """Return the text stored under this name; None if there is none, or if it is damaged."""
    try:
        path = _folder() / name
        os.utime(path)  # keeps entries that are in use
        digest, _, text = path.read_text("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return text if digest == _digest(text) else None


def put(name: str, text: str) -> None:
    """Store a text, and remove entries not used for a month.

    A folder that cannot be written is ignored: the next build runs the chapter again.
    """
    with contextlib.suppress(OSError, ValueError):
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        with atomic.writing(folder / name) as file:
            file.write(f"{_digest(text)}\n{text}".encode())
        for path in folder.iterdir():
            if path.stat().st_mtime < time.time() - DAYS * 86400:
                path.unlink()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
