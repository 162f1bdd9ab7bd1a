"""A journal: a file to which one line is added for each finished piece of work.

A line is a JSON object with a "key". What is in the journal is done, whoever did it and however
the program ended. A last line that a crash tore is dropped. The journal knows nothing of the work.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..checks import describe
from .atomic import fcntl


def key_of(config: Any) -> str:
    """Return the key of a configuration: 16 letters that depend on every setting in it.

    config: what JSON can hold. Raises TypeError for anything else, and ValueError for nan.
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """The finished work in a file, by key; `add` writes a line and waits until the disk has it.

    path: the file, created by the first `add`; None: keep the lines in memory only.
    Raises ValueError, with the line, if the file is no journal or is damaged before its last line.
    One process at a time may add to a file: `add` raises ValueError in another.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self.lines: dict[str, dict[str, Any]] = {}
        self.length = 0  # of the whole lines in the file, in bytes
        self._file: BinaryIO | None = None
        if self.path is not None and self.path.exists():
            self._read(self.path.read_bytes())

    def __contains__(self, key: str) -> bool:
        return key in self.lines

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.lines[key]

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, key: str, facts: Mapping[str, Any]) -> None:
        """Write one line with this key. A key that is there already is not written again."""
        if key in self.lines:
            return
        line = {"key": key, **facts}
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        if self.path is not None:
            file = self._file or self._opened(self.path)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            self.length += len(data)
        self.lines[key] = json.loads(data)  # as it will be read again

    def close(self) -> None:
        """Close the file, so that another process may add to it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self, path: Path) -> BinaryIO:
        """Open the file for this process alone; cut off a last line that is torn."""
        file = path.open("ab")
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                raise ValueError(
                    f"{path} is in use by another process: wait for it, or write elsewhere"
                ) from None
        if (size := os.fstat(file.fileno()).st_size) > self.length:
            with path.open("rb") as again:
                again.seek(self.length)
                self._read(again.read())  # another process added lines since
        if size > self.length:
            file.truncate(self.length)
        self._file = file
        return file

    def _read(self, data: bytes) -> None:
        """Take the whole lines of `data`, which begins at self.length."""
        *whole, torn = data.split(b"\n")
        for n, text in enumerate(whole, 1):
            try:
                line = json.loads(text)
                key = line["key"]
                if not isinstance(key, str):
                    raise TypeError
            except (ValueError, TypeError, KeyError, RecursionError):
                if n == len(whole) and not torn:
                    return  # the last line, torn where a disk lost a part of it
                raise ValueError(
                    f"{self.path}: line {len(self.lines) + 1} is not one of a journal, but "
                    f"{describe(text[:40].decode('utf-8', 'replace'))}: remove the line, or write "
                    "elsewhere"
                ) from None
            self.lines.setdefault(key, line)
            self.length += len(text) + 1
