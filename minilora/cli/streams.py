"""The streams of a command: what they cannot show changes neither its work nor its exit code.

A letter that the stream's encoding lacks is shown as "?". A stream that is closed, full, or whose
reader went away shows nothing more.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

EVERY = 10  # seconds between two lines of progress in a file


class Stream(io.TextIOBase):
    """A stream (None: there is none) to which everything can be written; error: why it ended."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.error: OSError | ValueError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def fileno(self) -> int:
        return io.IOBase.fileno(self) if self.stream is None else self.stream.fileno()

    def isatty(self) -> bool:
        return bool(self._try(lambda stream: stream.isatty()))

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(shown(text, self.encoding)))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def _try(self, action: Callable[[TextIO], Any]) -> Any:
        if self.stream is None:
            return None
        try:
            return action(self.stream)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.error = error
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                # What waits in its buffer goes there. Else Python tries it again as it ends.
                os.dup2(nowhere.fileno(), self.stream.fileno())
            self.stream = None
            return None


def shown(text: str, encoding: str) -> str:
    """Return the text with "?" for each letter that the encoding lacks."""
    return text.encode(encoding, "replace").decode(encoding)


@contextlib.contextmanager
def safe() -> Iterator[None]:
    """In this block, sys.stdout and sys.stderr take any text, whatever becomes of them.

    Output that is lost for another reason than its reader is reported on stderr.
    """
    _occupy()
    before = sys.stdout, sys.stderr
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.flush()
        if out.error and not isinstance(out.error, BrokenPipeError):
            why = getattr(out.error, "strerror", None) or out.error
            print(f"minilora: warning: the output could not be shown: {why}", file=err)
        err.flush()
        sys.stdout, sys.stderr = before


def _occupy() -> None:
    """Open a closed standard stream as the null device, so that no file gets its number.

    Libraries and child processes write to these numbers, whoever has them.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


class Progress:
    """How far long work is, on stderr: `with Progress(14) as begins: begins("full")` for each part.

    In a terminal it is one line, which is written again; elsewhere a line every EVERY seconds.
    """

    def __init__(self, parts: int) -> None:
        self.parts, self.part, self.began = parts, 0, time.monotonic()
        self.last = self.began

    def __enter__(self) -> Progress:
        return self

    def __call__(self, what: str = "") -> None:
        """Report that the next part begins, and how long it and those after it will take."""
        now, done, self.part = time.monotonic(), self.part, self.part + 1
        self.parts = max(self.parts, self.part)
        line = f"{self.part} of {self.parts}" + f": {what}" * bool(what)
        if done:
            seconds = round((now - self.began) / done * (self.parts - done))
            line += f", about {seconds // 60}:{seconds % 60:02} left"
        if sys.stderr.isatty():
            print(f"\r{line:.79}\x1b[K", end="", file=sys.stderr, flush=True)
        elif now - self.last >= EVERY:
            print(line, file=sys.stderr, flush=True)
            self.last = now

    def clear(self) -> None:
        """Remove the line from a terminal, before another is printed there."""
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        self.clear()
