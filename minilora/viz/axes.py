"""What all figures share: importing matplotlib, axes with a title, a description in words."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable
from typing import Any, ParamSpec

from ..words import INSTALL

Axes = Any  # a matplotlib.axes.Axes
P = ParamSpec("P")

LEFT_OUT = f"figure left out: {INSTALL('viz')}"
SHORT = 16  # letters of a title that always fits
WIDE = 4.5  # inches: on a phone, letters of 10 points are still 11 pixels high
LETTER = 0.078  # inches: width of a letter of 10 points


def need() -> Any:
    """Return matplotlib.pyplot. Raises ImportError, with the command to install it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        message = f"figures need matplotlib: {INSTALL('viz')} ({error})"
        raise ImportError(message) from error
    return plt


def available() -> bool:
    """Return whether matplotlib is installed, so that figures can be drawn."""
    try:
        need()
    except ImportError:
        return False
    return True


def figure(draw: Callable[P, Axes]) -> Callable[P, Axes]:
    """Decorate a function that draws: without matplotlib it prints one line and returns None."""

    @functools.wraps(draw)
    def draw_or_skip(*args: P.args, **settings: P.kwargs) -> Axes:
        if not available():
            print(LEFT_OUT)
            return None
        ax = draw(*args, **settings)
        ax.figure.draw_without_rendering()  # computes the layout
        lower_legend(ax)
        break_title(ax)
        return ax

    return draw_or_skip


def axes(ax: Axes, title: str = "", size: tuple[float, float] = (WIDE, 3.4)) -> Axes:
    """Return `ax`, or the axes of a new figure, without the top and right spines."""
    if ax is None:
        _, ax = need().subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    if title:
        ax.set_title(title)
    return ax


def legend(ax: Axes) -> None:
    """Give the axes a legend of as many columns as fit; `lower_legend` puts it below the label."""
    labels = ax.get_legend_handles_labels()[1]
    fit = int(WIDE / (LETTER * max(map(len, labels), default=0) + 0.6))
    ax.legend(loc="upper right", bbox_to_anchor=(1, 0), frameon=False, ncols=max(1, min(3, fit)))


def lower_legend(ax: Axes) -> None:
    """Move a legend below the label of the x axis."""
    from matplotlib.transforms import ScaledTranslation

    if ax.get_legend() is None:
        return
    high = (ax.bbox.y0 - ax.xaxis.get_tightbbox().y0) / ax.figure.dpi  # inches
    below = ScaledTranslation(0, -high, ax.figure.dpi_scale_trans)
    ax.get_legend().set_bbox_to_anchor((1, 0), ax.transAxes + below)


def break_title(ax: Axes) -> None:
    """Break a title that is wider than its cell of the figure into lines."""
    page, place, words = ax.figure, ax.get_subplotspec(), ax.get_title()
    if len(words) < SHORT or place is None:
        return
    columns, cell = place.get_gridspec().ncols, page.bbox.width
    left, right = (cell * n / columns for n in (place.colspan.start, place.colspan.stop))
    middle = ax.get_window_extent().x0 + ax.get_window_extent().width / 2
    room, wide = 2 * min(middle - left, right - middle), ax.title.get_window_extent().width
    if wide > room:
        ax.set_title(textwrap.fill(words, max(SHORT, int(0.95 * len(words) * room / wide))))


def panels(rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None) -> list[Axes]:
    """Return the axes of a new figure of rows x columns panels, in reading order.

    size: (width, height) in inches; a wider figure than the default is hard to read on a phone.
    Without matplotlib it returns as many None, which every figure function accepts.
    """
    if not available():
        return [None] * (rows * columns)
    size = size or (WIDE * columns, 3.4 * rows)
    page, grid = need().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    page.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches, around each panel
    return [*grid.flat]


def smallest(figure: Any) -> float:
    """Return the size of the smallest letters of a figure, in pixels at its own width."""
    from matplotlib.text import Text

    texts = figure.findobj(lambda part: isinstance(part, Text) and part.get_visible())
    points = min((text.get_fontsize() for text in texts if text.get_text().strip()), default=0.0)
    return float(points) * 96 / 72


def alt(figure: Any) -> str:
    """Return a description of a figure for readers who cannot see it: titles, axes, names."""
    sentences = [figure.get_suptitle()]
    for ax in figure.axes:
        x, y, texts = ax.get_xlabel(), ax.get_ylabel(), [text.get_text() for text in ax.texts]
        ticks = [tick.get_text() for tick in ax.get_yticklabels()]
        if len(ticks) == len(texts):
            texts = [f"{tick} {text}" for tick, text in zip(ticks, texts)]
        if ax.get_legend():
            texts += [text.get_text() for text in ax.get_legend().get_texts()]
        title = ax.get_title() or ax.get_title("left")
        parts = [title, f"{y} against {x}" if x and y else x or y, ", ".join(texts)]
        sentences.append(": ".join(filter(None, parts)))
    return ". ".join(" ".join(words.split()) for words in sentences if words) or "figure"
