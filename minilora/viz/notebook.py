"""Showing: in a notebook as a picture, in a plain script as text."""

from __future__ import annotations

import inspect
import io
import sys
import textwrap
from dataclasses import dataclass
from html import escape
from typing import Any

from .axes import alt, available, need


@dataclass(frozen=True, repr=False)
class Source:
    """Python source: str() is the text, a notebook shows it as code."""

    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f'<pre><code class="language-python">{escape(self.text)}</code></pre>'


def source(op: Any) -> None:
    """Show the source of an op as it stands in ops/, formula and rules; or that of anything."""
    show(Source(textwrap.dedent(inspect.getsource(op)).rstrip()))


def show(*things: Any) -> None:
    """Show these, as `graph`, `stepper` made them; or, of none, the figures that are open.

    In a notebook as pictures, which carry a description in words; in a script a graph or stepper
    is printed as text, and figures come in windows where there is a screen for them.
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
            display(Image(file.getvalue(), alt=alt(figure), retina=True))
            plt.close(figure)
    elif plt.get_backend().lower() != "agg":
        plt.show()


def _display() -> Any:
    """IPython's display where a notebook runs this, else None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return ipython.display.display if ipython and getattr(shell, "kernel", None) else None
