"""Showing pictures: as images in a notebook, as text in a script."""

from __future__ import annotations

import inspect
import io
import sys
import textwrap
from dataclasses import dataclass
from html import escape
from typing import Any

from .axes import alt, available, need, smallest


@dataclass(frozen=True, repr=False)
class Source:
    """Python source; a notebook shows it as code."""

    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f'<pre><code class="language-python">{escape(self.text)}</code></pre>'


def source(op: Any) -> None:
    """Show the source of an op (formula and gradient rules), or of any function or class."""
    show(Source(textwrap.dedent(inspect.getsource(op)).rstrip()))


def show(*things: Any) -> None:
    """Show the given graphs and steppers; without arguments, all open figures.

    A notebook shows images with alt text. A script prints graphs and steppers as text, and opens
    figures in windows if matplotlib can.
    """
    display = _display()
    for thing in things:
        if thing is not None:
            (display or print)(thing)
    if things or not available():
        return
    plt = need()
    if display:
        from IPython.display import Image  # type: ignore[import-not-found, unused-ignore]

        for number in plt.get_fignums():
            figure, file = plt.figure(number), io.BytesIO()
            figure.savefig(file, format="png", dpi=2 * 96)
            text = {"smallest": smallest(figure)}
            display(Image(file.getvalue(), alt=alt(figure), retina=True, metadata=text))
            plt.close(figure)
    elif plt.get_backend().lower() != "agg":
        plt.show()


def _display() -> Any:
    """Return IPython's display function in a notebook, else None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return ipython.display.display if ipython and getattr(shell, "kernel", None) else None
