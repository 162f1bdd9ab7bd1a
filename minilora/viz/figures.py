"""Figures of training: losses, parameters, memory, what merging rounds, what a choice does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..accounting import Ledger
from ..training.fit import History
from .axes import BESIDE, Axes, axes, figure
from .palette import COLOURS, OTHERS, ROWS, colour

FEWEST = 3  # seeds that make a band
_LIMITS: list[dict[str, Any]] = [{"lw": 1.5}, {"ls": "", "marker": "_", "ms": 4, "mew": 1.2}]


@figure
def curves(
    series: Mapping[str, Any], ax: Axes = None, title: str = "", xlabel: str = "",
    ylabel: str = "", log: str = "", dotted: Mapping[str, Any] | None = None,
) -> Axes:
    """Lines by name: y, or (x, y). log: the axes that are logarithmic, "x", "y" or "xy".

    dotted: what belongs to the line of the same name, such as its bound, in its colour.
    """
    ax = axes(ax, title)
    for i, (name, line) in enumerate(series.items()):
        ax.plot(*_line(line), color=colour(name, i), label=name)
        if dotted and name in dotted:
            ax.plot(*_line(dotted[name]), ":", color=colour(name, i))
    _log(ax, log)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(**BESIDE)
    return ax


@figure
def spectrum(
    values: Mapping[str, Any], ax: Axes = None, title: str = "", log: str = "y",
    ylabel: str = "singular value",
) -> Axes:
    """Singular values by the name of their matrix, the largest first, counted from 1."""
    ax = axes(ax, title)
    for i, (name, sizes) in enumerate(values.items()):
        sizes = np.sort(np.ravel(sizes))[::-1]
        style = {"marker": "o", "ms": 3} if len(sizes) <= 40 else {}
        ax.plot(np.arange(1, len(sizes) + 1), sizes, color=colour(name, i), label=name, **style)
    _log(ax, log)
    ax.set(xlabel="i, from the largest", ylabel=ylabel)
    ax.legend(**BESIDE)
    return ax


@figure
def loss_curves(
    histories: Mapping[str, Sequence[float] | History], ax: Axes = None, title: str = "",
    ylabel: str = "",
) -> Axes:
    """Loss against steps done. A `History`: held out as a line with dots, each batch's as a thin
    line; a sequence: loss i before step i.
    """
    ax = axes(ax, title)
    kinds = set()
    for i, (label, history) in enumerate(histories.items()):
        if not isinstance(history, History):
            history = History(losses=[*history])
        thin = bool(history.held_out)
        if history.losses:
            style: dict[str, Any] = {"lw": 0.8, "alpha": 0.45} if thin else {"label": label}
            ax.plot(history.losses, color=colour(label, i), **style)
            kinds.add("batch")
        if thin:
            steps, losses = zip(*history.held_out)
            ax.plot(steps, losses, "o-", color=colour(label, i), ms=4, label=label)
            kinds.add("held out")
    if len(kinds) > 1:
        ax.plot([], [], "o-", color="0.5", ms=4, label="held out")
        ax.plot([], [], color="0.5", lw=0.8, label="the batch trained on")
    ax.xaxis.set_major_locator(_whole(8))
    which = "held-out loss" if kinds == {"held out"} else "loss"
    ax.set(xlabel="steps", ylabel=ylabel or f"{which} (nats a token)")
    ax.legend(**BESIDE)
    return ax


@figure
def rank_sweep(
    results: Mapping[Any, Any], ax: Axes = None, title: str = "", xlabel: str = "rank r",
    ylabel: str = "held-out loss (nats a token)", levels: Mapping[str, float] | None = None,
) -> Axes:
    """{x: losses, one a seed}, or such by name: the median as a line, smallest to largest a band.

    Fewer than three seeds make no band: each is a dot. levels: horizontal lines by name.
    """
    ax = axes(ax, title)
    by_name = results if isinstance(next(iter(results.values())), Mapping) else {"LoRA": results}
    at, seeds = sorted({x for sweep in by_name.values() for x in sweep}), set()
    for i, (name, sweep) in enumerate(by_name.items()):
        xs, tint = sorted(sweep), colour(name, i)
        draws = [np.ravel(sweep[x]).astype(np.float64) for x in xs]
        seeds |= {len(losses) for losses in draws}
        ax.plot(xs, [np.median(losses) for losses in draws], "o-", color=tint, ms=4, label=name)
        if min(map(len, draws)) >= FEWEST:
            low, high = ([f(losses) for losses in draws] for f in (np.min, np.max))
            ax.fill_between(xs, low, high, color=tint, alpha=0.2, lw=0)
        else:
            for x, losses in zip(xs, draws):
                ax.plot([x] * len(losses), losses, ".", color=tint, ms=4)
    for i, (name, level) in enumerate((levels or {}).items()):
        ax.axhline(level, color=colour(name, i + 2), lw=1.2, ls="--", label=name)
    if min(at) > 0:
        ax.set_xscale("log", base=2)
    ax.set_xticks(at, [f"{x:g}" for x in at])
    ax.minorticks_off()
    many = "–".join(str(n) for n in sorted({min(seeds), max(seeds)}))
    band = f"median of {many} seeds, band: smallest to largest" if min(seeds) >= FEWEST else (
        f"{many} seed{'s' * (max(seeds) > 1)}: no band")
    ax.set(xlabel=f"{xlabel}\n({band})", ylabel=ylabel)
    ax.legend(**BESIDE)
    return ax


@figure
def parameter_bars(counts: Mapping[str, int], ax: Axes = None, title: str = "") -> Axes:
    """Numbers of parameters as lengths from 0; at each bar its number and its share of the largest.

    The first name is on top. The axis is linear: half as long is half as many.
    """
    ax = axes(ax, title, (6.4, 0.9 + 0.5 * len(counts)))
    names, values, most = list(counts), list(counts.values()), max([1, *counts.values()])
    bars = ax.barh(names, values, color=[colour(n, i) for i, n in enumerate(names)], height=0.6)
    texts = [f"{v:,}" + f"  ({100 * v / most:.2g} %)" * (v < most) for v in values]
    ax.bar_label(bars, texts, padding=4)
    ax.set_xlim(0, 1.35 * most)  # room for the numbers
    ax.xaxis.set_major_locator(_whole(4))
    ax.xaxis.set_major_formatter(lambda x, _: _in_words(x, most))
    ax.invert_yaxis()
    ax.set(xlabel="parameters")
    return ax


@figure
def memory_bars(ledgers: Mapping[str, Ledger], ax: Axes = None, title: str = "") -> Axes:
    """The measured bytes of one training step, stacked by kind, the total written at the end."""
    ax = axes(ax, title, (7.2, 1.6 + 0.5 * len(ledgers)))
    names = list(ledgers)
    left = np.zeros(len(names))
    for i, row in enumerate(next(iter(ledgers.values())).rows):
        width = np.array([ledger[row.name].measured for ledger in ledgers.values()]) / 2**20
        fill = ROWS.get(row.name, OTHERS[i % len(OTHERS)])
        bars = ax.barh(names, width, left=left, height=0.6, color=fill, label=row.name)
        left += width
    ax.bar_label(bars, [f"{total:.1f} MiB" for total in left], padding=4)
    ax.set_xlim(0, 1.3 * left.max())
    ax.invert_yaxis()
    ax.set(xlabel="memory of one training step (MiB)")
    ax.legend(**BESIDE)
    return ax


@figure
def merge_error(
    errors: Mapping[str, tuple[Any, ...]], ax: Axes = None, title: str = "",
    bounds: Sequence[str] = ("bound",),
) -> Axes:
    """name -> (|merged - unmerged|, its bound, ...), output by output: dots, and bounds as lines.

    One column a name; in it the outputs stand in order of their (first) bounds, on a log axis. An
    output above a bound is a cross. Exact zeros have no place on the axis: the tick says how many
    there are. bounds: what each is called, at most two: the first is a line, the second marks.
    """
    ax = axes(ax, title)
    ticks, above = [], False
    for i, (name, given) in enumerate(errors.items()):
        error, *limits = (np.ravel(part).astype(np.float64) for part in given)
        limits = [np.broadcast_to(limit, error.shape) for limit in limits]
        order = np.argsort(limits[0], kind="stable")
        at, error = i + np.linspace(-0.36, 0.36, len(order)), error[order]
        limits = [limit[order] for limit in limits]
        over = ~np.all([error <= limit for limit in limits], axis=0)  # nan is over, too
        under = (error > 0) & ~over
        ax.plot(at[under], error[under], ".", color=COLOURS["merged"], ms=4)
        ax.plot(at[over], error[over], "x", color=COLOURS["wrong"], ms=5)
        for limit, look in zip(limits, _LIMITS):
            ax.plot(at, limit, color=COLOURS["full"], **look)
        above = above or bool(over.any())
        zeros = int((error == 0).sum())
        ticks.append(f"{name}\n{zeros} equal" if zeros else name)
    ax.set_yscale("log")
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set(
        xlabel="each column: its outputs, in order of their bounds", ylabel="|merged − unmerged|"
    )
    for bound, look in zip(bounds, _LIMITS):
        ax.plot([], [], color=COLOURS["full"], label=bound, **look)
    ax.plot([], [], ".", color=COLOURS["merged"], label="an output")
    if above:
        ax.plot([], [], "x", color=COLOURS["wrong"], label="above its bound")
    ax.legend(**BESIDE)
    return ax


def _line(given: Any) -> tuple[Any, Any]:
    """(x, y) of what is (x, y) already, or only y."""
    pair = given if isinstance(given, tuple) and len(given) == 2 else (range(len(given)), given)
    return pair[0], pair[1]


def _log(ax: Axes, which: str) -> None:
    for axis in which:
        ax.set(**{f"{axis}scale": "log"})


def _in_words(x: float, most: float) -> str:
    """A number on an axis that goes up to `most`: 1.5 million."""
    units = {1e9: " billion", 1e6: " million", 1e3: " thousand"}
    size = next((size for size in units if most >= size), 1.0)
    return f"{x / size:g}{units.get(size, '')}" if x else "0"


def _whole(most: int) -> Any:
    """Ticks at whole numbers, so many at most."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=True)
