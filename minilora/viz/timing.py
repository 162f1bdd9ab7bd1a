"""The figures of `minilora bench`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .axes import Axes, axes, figure, need
from .palette import COLOURS, OTHERS

_ENGINES = {
    **dict.fromkeys(("minilora", "minilora recompute", "minilora float16"), COLOURS["LoRA"]),
    "minilora full": COLOURS["full"],
    "torch+peft": OTHERS[0],
    "torch": OTHERS[1],
    "torch decode": OTHERS[1],
    "autograd": OTHERS[2],
    "base forward": COLOURS["frozen"],
    "merged forward": COLOURS["merged"],
    "decode": COLOURS["merged"],  # decodes with merged weights
}
_NOT_SHAPES = ("threads", "rounds", "missing")  # the other keys of a result of `bench`


@figure
def bench_bars(
    table: Mapping[str, Mapping[str, Any]], ax: Axes = None, title: str = "", of: str = "ms"
) -> Axes:
    """Draw the engines of one shape of `bench()` as bars: time (of="ms") or memory (of="peak").

    A time bar is the median, with a mark at the fastest turn. Each bar has its number and, in
    brackets, minilora's at the same work divided by it.
    """
    ax = axes(ax, title, (7.2, 1.2 + 0.4 * len(table)))
    time = of == "ms"
    values = [row["ms"][1] if time else row["peak"] / 2**20 for row in table.values()]
    colours = [_ENGINES.get(name, OTHERS[3]) for name in table]
    bars = ax.barh(list(table), values, color=colours, height=0.6)
    ratios = [row.get("ratio" if time else "memory_ratio") for row in table.values()]
    texts = [f"{value:,.{1 if value < 100 else 0}f}" for value in values]
    ax.bar_label(bars, [t if r is None else f"{t}  ({r:.2f})" for t, r in zip(texts, ratios)],
                 padding=5)
    if time:
        best = [row["ms"][0] for row in table.values()]
        ax.plot(best, list(table), "D", ms=4, mfc="white", mec="0.2", label="fastest turn")
    ax.set_xlim(0, 1.4 * max(values))  # space for the numbers
    ax.invert_yaxis()
    label = "ms a step: median, ◇ fastest turn" if time else "peak memory of the process, MiB"
    compared = any(ratio is not None for ratio in ratios)
    ax.set(xlabel=label + "\n(in brackets: minilora's at the same work, divided by it)" * compared)
    return ax


def bench_page(result: Mapping[str, Any]) -> Any:
    """Return a figure of a result of `bench()`: a row for each shape, with time and memory."""
    tables = {shape: result[shape] for shape in result if shape not in _NOT_SHAPES}
    if not tables:
        raise ValueError("bench_page: no shape to draw: give bench() at least one")
    heights = [1.3 + 0.32 * len(table) for table in tables.values()]
    page, grid = need().subplots(
        len(tables), 2, figsize=(12, sum(heights)), layout="constrained", squeeze=False,
        height_ratios=heights,
    )
    for (shape, table), (left, right) in zip(tables.items(), grid):
        bench_bars(table, left, of="ms")
        bench_bars(table, right, of="peak")
        left.set_title(shape, loc="left", fontweight="bold")
        left.tick_params(axis="y", length=0)
        right.set_yticks([])  # the names are on the left
        right.set_ylim(left.get_ylim())
    return page
