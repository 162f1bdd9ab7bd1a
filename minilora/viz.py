"""Every figure. Each function draws on `ax` (None: a new figure) and returns it.

One palette, safe for the colour-blind, with one meaning everywhere: see `COLOURS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .accounting import Ledger
from .train import History

try:
    import matplotlib.pyplot as plt
except ImportError as error:
    raise ImportError(f"figures need matplotlib: pip install 'minilora[viz]' ({error})") from error

Axes = Any  # a matplotlib.axes.Axes

COLOURS = {
    "frozen": "#7890A8",  # W0, and a model that is only W0
    "A": "#E08A00",
    "B": "#009E73",
    "LoRA": "#E08A00",  # a model that trains A and B
    "merged": "#7B3FA0",  # W0 + ΔW in one array
    "full": "#111111",  # all of W trained
    "wrong": "#C2262E",  # what a check catches; never told by colour alone
}
OTHERS = ("#0072B2", "#56B4E9", "#CC79A7", "#8C6D31")  # for names without a meaning of their own
_ROWS = {
    "frozen weights": COLOURS["frozen"],
    "trained weights": "#A35F00",
    "gradients": "#E08A00",
    "Adam moments": "#F7C873",
    "activations": "#D9DCE0",
}
_ENGINES = {
    **dict.fromkeys(("minilora", "minilora recompute", "minilora float16"), COLOURS["LoRA"]),
    "minilora full": COLOURS["full"],
    "torch+peft": OTHERS[0],
    "torch": OTHERS[1],
    "torch decode": OTHERS[1],
    "autograd": OTHERS[2],
    "base forward": COLOURS["frozen"],
    "merged forward": COLOURS["merged"],
    "decode": COLOURS["merged"],  # it decodes with the merged weights
}
_NOT_SHAPES = ("threads", "rounds", "missing", "growth")  # what else `bench` returns
_BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}


def colour(label: str, i: int = 0) -> str:
    """The colour of the first word of `label` that has a meaning, else the i-th of the others."""
    words = re.findall(r"[A-Za-z]+", label)
    meant = next((c for word in words for name, c in COLOURS.items() if word == name), None)
    return meant or OTHERS[i % len(OTHERS)]


def show() -> None:
    """Show the open figures, where there is a window or a notebook to show them in."""
    if plt.get_backend().lower() != "agg":
        plt.show()


def loss_curves(histories: Mapping[str, Sequence[float] | History], ax: Axes = None) -> Axes:
    """Loss against steps done. A `History`: held out as a line with dots, each batch's as a thin
    line; a sequence: loss i before step i.
    """
    ax = _axes(ax)
    thin = False
    for i, (label, history) in enumerate(histories.items()):
        if not isinstance(history, History):
            ax.plot(range(len(history)), history, color=colour(label, i), label=label)
            continue
        batches = {} if history.held_out else {"label": label}
        if history.losses:
            thin = thin or bool(history.held_out)
            style: dict[str, Any] = {"lw": 0.8, "alpha": 0.45} if history.held_out else {}
            ax.plot(history.losses, color=colour(label, i), **style, **batches)
        if history.held_out:
            steps, losses = zip(*history.held_out)
            ax.plot(steps, losses, "o-", color=colour(label, i), ms=4, label=label)
    if thin:
        ax.plot([], [], color="0.5", lw=0.8, label="the batch trained on")
    ax.set(xlabel="steps", ylabel="loss (nats a token)")
    ax.legend(**_BESIDE)
    return ax


def parameter_bars(counts: Mapping[str, int], ax: Axes = None) -> Axes:
    """Numbers of parameters, on a log axis, each written at its bar; the first name on top."""
    ax = _axes(ax, (6.4, 0.9 + 0.5 * len(counts)))
    names, values = list(counts), list(counts.values())
    bars = ax.barh(names, values, color=[colour(n, i) for i, n in enumerate(names)], height=0.6)
    ax.bar_label(bars, [f"{value:,}" for value in values], padding=4)
    ax.set_xscale("log")
    ax.set_xlim(1, 20 * max([10, *values]))  # room for the numbers
    ax.invert_yaxis()
    ax.set(xlabel="parameters")
    return ax


def memory_bars(ledgers: Mapping[str, Ledger], ax: Axes = None) -> Axes:
    """The measured bytes of one training step, stacked by kind, the total written at the end."""
    ax = _axes(ax, (7.2, 1.6 + 0.5 * len(ledgers)))
    names = list(ledgers)
    left = np.zeros(len(names))
    for i, row in enumerate(next(iter(ledgers.values())).rows):
        width = np.array([ledger[row.name].measured for ledger in ledgers.values()]) / 2**20
        fill = _ROWS.get(row.name, OTHERS[i % len(OTHERS)])
        bars = ax.barh(names, width, left=left, height=0.6, color=fill, label=row.name)
        left += width
    ax.bar_label(bars, [f"{total:.1f} MiB" for total in left], padding=4)
    ax.set_xlim(0, 1.3 * left.max())
    ax.invert_yaxis()
    ax.set(xlabel="memory of one training step (MiB)")
    ax.legend(**_BESIDE)
    return ax


def merge_error(errors: Mapping[str, tuple[Any, Any]], ax: Axes = None) -> Axes:
    """name -> (|merged - unmerged|, its bound), number by number: dots, and the bound as a line.

    One column for each name, its numbers in order of their bounds, on a log axis. A number above
    its bound is a cross. Exact zeros have no place on the axis: the tick says how many there are.
    """
    ax = _axes(ax)
    ticks, above = [], False
    for i, (name, pair) in enumerate(errors.items()):
        error, bound = (np.ravel(part).astype(np.float64) for part in pair)
        bound = np.broadcast_to(bound, error.shape)
        order = np.argsort(bound, kind="stable")
        at, error, bound = i + np.linspace(-0.36, 0.36, len(order)), error[order], bound[order]
        over = ~(error <= bound)  # nan is over, too
        under = (error > 0) & ~over
        ax.plot(at[under], error[under], ".", color=COLOURS["merged"], ms=4)
        ax.plot(at[over], error[over], "x", color=COLOURS["wrong"], ms=5)
        ax.plot(at, bound, "-", color=COLOURS["full"], lw=1.5)
        above = above or bool(over.any())
        zeros = int((error == 0).sum())
        ticks.append(f"{name}\n{zeros} equal" if zeros else name)
    ax.set_yscale("log")
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set(ylabel="|merged − unmerged|")
    ax.plot([], [], "-", color=COLOURS["full"], lw=1.5, label="bound")
    ax.plot([], [], ".", color=COLOURS["merged"], label="under its bound")
    if above:
        ax.plot([], [], "x", color=COLOURS["wrong"], label="above its bound")
    ax.legend(**_BESIDE)
    return ax


def bench_bars(table: Mapping[str, Mapping[str, Any]], ax: Axes = None, of: str = "ms") -> Axes:
    """One shape of `minilora bench`: engine -> numbers, as bars of the median `of` "ms", the
    fastest turn as a mark, or of "peak" memory. At each bar its number, and minilora's at the same
    work divided by it, where that was measured.
    """
    ax = _axes(ax, (7.2, 1.2 + 0.4 * len(table)))
    time = of == "ms"
    values = [row["ms"][1] if time else row["peak"] / 2**20 for row in table.values()]
    colours = [_ENGINES.get(name, OTHERS[3]) for name in table]
    bars = ax.barh(list(table), values, color=colours, height=0.6)
    ratios = [row.get("ratio" if time else "memory_ratio") for row in table.values()]
    texts = [f"{value:,.{1 if value < 100 else 0}f}" for value in values]
    ax.bar_label(bars, [t if r is None else f"{t}  ({r:.2f})" for t, r in zip(texts, ratios)],
                 padding=5)  # fmt: skip
    if time:
        best = [row["ms"][0] for row in table.values()]
        ax.plot(best, list(table), "D", ms=4, mfc="white", mec="0.2", label="fastest turn")
    ax.set_xlim(0, 1.4 * max(values))  # room for the numbers
    ax.invert_yaxis()
    told = "ms a step: median, ◇ fastest turn" if time else "peak memory of the process, MiB"
    compared = any(ratio is not None for ratio in ratios)
    ax.set(xlabel=told + "\n(in brackets: minilora's at the same work, divided by it)" * compared)
    return ax


def bench_page(result: Mapping[str, Any]) -> Any:
    """A figure of all that `bench()` returned: a line for each shape, time and memory in it."""
    tables = {shape: result[shape] for shape in result if shape not in _NOT_SHAPES}
    if not tables:
        raise ValueError("bench_page: there is no shape in this result, so nothing to draw")
    heights = [1.3 + 0.32 * len(table) for table in tables.values()]
    figure, grid = plt.subplots(
        len(tables), 2, figsize=(12, sum(heights)), layout="constrained", squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    for (shape, table), (left, right) in zip(tables.items(), grid):
        bench_bars(table, left, "ms")
        bench_bars(table, right, "peak")
        left.set_title(shape, loc="left", fontweight="bold")
        left.tick_params(axis="y", length=0)
        right.set_yticks([])  # the names stand at the left
        right.set_ylim(left.get_ylim())
    return figure


def _axes(ax: Axes, size: tuple[float, float] = (7.2, 4.0)) -> Axes:
    """`ax`, or the axes of a new figure; without the two spines that say nothing."""
    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
