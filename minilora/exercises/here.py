"""Check an exercise in this process, without limits: a browser has no other process.

Whoever asks ends the process if the student's code never ends.
"""

from __future__ import annotations

import contextlib
import io
import linecache
from typing import Any

from .book import Exercise, exercise
from .judge import judge
from .report import verdict
from .student import Limits, Local, Raised
from .worker import error_data, load

MOST = 20_000  # letters of output that are kept


class Here(Local):
    """Functions of a student's file. Raises Raised if the file cannot be loaded."""

    def __init__(self, exercise: Exercise, source: str, limits: Limits | None = None) -> None:
        name, self._output = exercise.name, _Output()
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        try:
            with contextlib.redirect_stdout(self._output):
                student = load(source, name)
        except (Exception, SystemExit) as error:
            data = error_data(error, name)
            raise Raised(data["error"], data["message"], data["frames"]) from error
        super().__init__(exercise, vars(student), name)
        self.missing = [n for n in exercise.functions if not callable(getattr(student, n, None))]

    def _call(self, name: str, args: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        with contextlib.redirect_stdout(self._output):
            return super()._call(name, args)

    def printed(self) -> str:
        return self._output.getvalue()


class _Output(io.StringIO):
    def write(self, text: str) -> int:
        return super().write(text[: max(0, MOST - self.tell())])


def check(number: str, source: str) -> tuple[str, bool]:
    """Return the verdict on a student's source as text, and whether it passed."""
    of = judge(exercise(number), source, opened=Here)
    lines = verdict(of).splitlines()
    # there is no command line here, and a line that says what to type would not help
    return "\n".join(line for line in lines if "minilora ex " not in line), of.passed
