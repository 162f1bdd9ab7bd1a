"""What every figure needs: matplotlib where it is, axes with a title, words for who cannot see."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable
from typing import Any, ParamSpec

Axes = Any  # a matplotlib.axes.Axes
Given = ParamSpec("Given")

LEFT_OUT = "figure left out: pip install 'minilora[viz]'"
SHORT = 16  # letters of a title that need no care
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}


def need() -> Any:
    """matplotlib.pyplot; raises an ImportError that says what to install where it is missing."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        told = f"figures need matplotlib: pip install 'minilora[viz]' ({error})"
        raise ImportError(told) from error
    return plt


def available() -> bool:
    """Can figures be drawn here, that is, is matplotlib installed?"""
    try:
        need()
    except ImportError:
        return False
    return True


def figure(draw: Callable[Given, Axes]) -> Callable[Given, Axes]:
    """A function that draws; without matplotlib it prints one line instead and returns None."""

    @functools.wraps(draw)
    def drawn(*args: Given.args, **settings: Given.kwargs) -> Axes:
        if not available():
            print(LEFT_OUT)
            return None
        ax = draw(*args, **settings)
        break_title(ax)
        return ax

    return drawn


def axes(ax: Axes, title: str = "", size: tuple[float, float] = (7.2, 4.0)) -> Axes:
    """`ax`, or the axes of a new figure; without the two spines that say nothing."""
    if ax is None:
        _, ax = need().subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    if title:
        ax.set_title(title)
    return ax


def break_title(ax: Axes) -> None:
    """Break a title that is too long for its place in the figure into lines."""
    page, place, words = ax.figure, ax.get_subplotspec(), ax.get_title()
    if len(words) < SHORT or place is None:
        return
    page.draw_without_rendering()  # the layout, from which the room is found
    columns, cell = place.get_gridspec().ncols, page.bbox.width
    left, right = (cell * n / columns for n in (place.colspan.start, place.colspan.stop))
    middle = ax.get_window_extent().x0 + ax.get_window_extent().width / 2
    room, wide = 2 * min(middle - left, right - middle), ax.title.get_window_extent().width
    if wide > room:
        ax.set_title(textwrap.fill(words, max(SHORT, int(0.95 * len(words) * room / wide))))


def panels(rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None) -> list[Axes]:
    """The axes of a new figure of rows x columns panels, in reading order; size in inches.

    Without matplotlib as many None, which every figure function takes.
    """
    if not available():
        return [None] * (rows * columns)
    size = size or (4.2 * columns + 0.6, 2.9 * rows + 0.3)
    page, grid = need().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    page.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches, around each panel
    return [*grid.flat]


def alt(figure: Any) -> str:
    """A figure in words, from its titles, axes and names: for those who cannot see it."""
    told = [figure.get_suptitle()]
    for ax in figure.axes:
        x, y, written = ax.get_xlabel(), ax.get_ylabel(), [text.get_text() for text in ax.texts]
        ticks = [tick.get_text() for tick in ax.get_yticklabels()]
        if len(ticks) == len(written):
            written = [f"{tick} {text}" for tick, text in zip(ticks, written)]
        if ax.get_legend():
            written += [text.get_text() for text in ax.get_legend().get_texts()]
        title = ax.get_title() or ax.get_title("left")
        parts = [title, f"{y} against {x}" if x and y else x or y, ", ".join(written)]
        told.append(": ".join(filter(None, parts)))
    return ". ".join(" ".join(words.split()) for words in told if words) or "figure"
