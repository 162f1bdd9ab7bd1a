"""Finished results on the disk, so that an interrupted grading can continue."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .. import __version__
from ..files import atomic, text
from .book import FOLDER, Exercise
from .results import Result, result_of
from .student import Limits


class Store:
    """Finished results, by a digest of everything that they depend on."""

    def __init__(self, folder: Path | None, seed: int, limits: Limits) -> None:
        self._folder, self._basis = folder, f"{seed} {asdict(limits)} {_versions()}"
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def key(self, of: Exercise, source: str) -> str:
        """Return the digest for one file."""
        parts = (self._basis, text.read(of.path), source)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]

    def get(self, key: str) -> Result | None:
        if self._folder is None:
            return None
        try:
            return result_of(json.loads((self._folder / f"{key}.json").read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # missing or damaged: judge the file again

    def put(self, key: str, result: Result) -> None:
        if self._folder is not None:
            with atomic.writing(self._folder / f"{key}.json") as file:
                file.write(json.dumps(asdict(result)).encode())


@functools.cache
def _versions() -> str:
    """The versions of the package, Python and NumPy, and a digest of this folder's code."""
    code = hashlib.sha256()
    for path in sorted(FOLDER.rglob("*.py")):
        code.update(path.read_bytes())
    return f"{__version__} {code.hexdigest()} {sys.version} {np.__version__}"
