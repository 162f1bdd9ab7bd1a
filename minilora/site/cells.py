"""What the page "Try it" runs in the browser's Python: the cells of a chapter, and checks."""

from __future__ import annotations

import ast
import base64
import io
import linecache
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from ..exercises import drawn

MOST = 20_000  # letters that a cell may print: a page with very many lines is slow


class Output(io.StringIO):
    """A stream that hands on each line. Raises RuntimeError beyond MOST letters."""

    def __init__(self, say: Callable[[str], Any]) -> None:
        super().__init__()
        self._say, self._said = say, 0

    def write(self, text: str) -> int:
        if self.tell() + len(text) > MOST:
            raise RuntimeError(f"this cell has printed more than {MOST:,} letters: print less")
        super().write(text)
        if "\n" in text:
            self.say()
        return len(text)

    def say(self) -> None:
        """Hand on what has been printed since."""
        if new := self.getvalue()[self._said :]:
            self._said += len(new)
            self._say(new)


class Cells:
    """Runs cells one after the other, with the same variables."""

    def __init__(self) -> None:
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # not that it looks for fonts
        os.environ |= {"MINILORA_FAST": "1", "MPLBACKEND": "Agg"}
        self._space: dict[str, Any] = {"__name__": "__main__"}

    def run(self, code: str, name: str, say: Callable[[str], Any]) -> str:
        """Run a cell; return "", or its error as Python shows it. say: gets the printed text.

        The value of a last line that is an expression is printed, as in a notebook.
        """
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = output = Output(say)
        try:
            tree = ast.parse(code, name)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, name, "exec"), self._space)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), name, "eval"), self._space)
                if value is not None:
                    print(value if isinstance(value, str) else repr(value))
        except BaseException as error:
            return _words(error, name)
        finally:
            sys.stdout, sys.stderr = before
            output.say()
        return ""

    def check(self, number: str, source: str) -> tuple[str, str]:
        """Check an exercise; return the verdict, and a solution if it passed."""
        if "hypothesis" not in sys.modules:
            drawn.take_the_place_of_hypothesis()
        from ..exercises import book, here

        text, passed = here.check(number, source)
        return text, without_statement(book.exercise(number).solution()) if passed else ""


def without_statement(code: str) -> str:
    """Return a stub or a solution without its docstring: the page shows the statement beside it."""
    return code.split('"""', 2)[2].strip()


def figures() -> list[tuple[str, str, int]]:
    """Return the open figures, and close them: PNG in base64, text for readers, width in pixels."""
    if "matplotlib.pyplot" not in sys.modules:
        return []
    from ..viz.axes import alt

    plt: Any = sys.modules["matplotlib.pyplot"]
    result = []
    for number in plt.get_fignums():
        figure, file = plt.figure(number), io.BytesIO()
        figure.savefig(file, format="png", dpi=2 * 96)
        width = round(figure.get_figwidth() * 96)
        result.append((base64.b64encode(file.getvalue()).decode(), alt(figure), width))
        plt.close(figure)
    return result


def _words(error: BaseException, name: str) -> str:
    """Return an error as Python shows it, from the cell on."""
    shown = traceback.TracebackException.from_exception(error)
    while shown.stack and shown.stack[0].filename != name:
        shown.stack.pop(0)
    shown.stack[:] = [frame for frame in shown.stack if frame.filename != __file__]
    return "".join(shown.format()).rstrip()
