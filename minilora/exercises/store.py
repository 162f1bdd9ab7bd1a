"""Finished results on the disk, so that an interrupted grading can continue."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..files import text
from ..files.journal import Journal
from ..jobs.driver import Job
from .book import FOLDER, Exercise
from .results import STATES, UNJUDGED, Result, result_of
from .student import Limits

JOURNAL = "grades.jsonl"  # in the folder of finished results


@dataclass(frozen=True)
class File(Job):
    """The judging of one file, with everything that its result depends on."""

    @classmethod
    def of(cls, one: Exercise, source: str, seed: int, limits: Limits) -> File:
        """Return the judging of a file with this text."""
        config = {"number": one.number, "source": source, "seed": seed, "limits": asdict(limits),
                  "versions": versions(one)}
        return cls("grade", config, f"a file of {one.number}")

    def line(self, result: Any, seconds: float) -> dict[str, Any]:
        """Return what the journal keeps: not the file's text."""
        config = {name: value for name, value in self.config.items() if name != "source"}
        return super().line(result, seconds) | {"config": config}


class Grades(Journal):
    """The journal of finished results. What could not be judged is not kept: it is judged again.

    note: is called with the key and the result of each file that is judged.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, note: Callable[[str, Result], None]
    ) -> None:
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        super().__init__(None if folder is None else Path(folder) / JOURNAL)
        self._note = note

    def add(self, key: str, facts: Mapping[str, Any]) -> None:
        result = result_of(facts["result"])
        if result.state == STATES[UNJUDGED]:
            self.lines[key] = {"key": key, **facts}
        else:
            super().add(key, facts)
        self._note(key, result)


def versions(of: Exercise) -> str:
    """The versions of the package, Python and NumPy, and digests of the judge and the exercise."""
    return f"{_versions()} {hashlib.sha256(text.read(of.path).encode()).hexdigest()[:16]}"


@functools.cache
def _versions() -> str:
    code = hashlib.sha256()
    for path in sorted(FOLDER.rglob("*.py")):
        code.update(path.read_bytes())
    return f"{__version__} {sys.version} {np.__version__} {code.hexdigest()[:16]}"
