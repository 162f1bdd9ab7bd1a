"""Figures of losses, parameters, memory, singular values, sweeps and merge errors."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..accounting import Count, Ledger
from ..training.fit import History
from .axes import WIDE, Axes, axes, figure, legend
from .palette import COLOURS, OTHERS, ROWS, colour

FEWEST = 3  # seeds for a band
DASHES = ("-", "--", ":", "-.")


@figure
def curves(
    series: Mapping[str, Any], ax: Axes = None, title: str = "", xlabel: str = "",
    ylabel: str = "", log: str = "", dotted: Mapping[str, Any] | None = None,
) -> Axes:
    """Draw lines, name -> y or (x, y). log: the logarithmic axes, "x", "y" or "xy".

    dotted: name -> a dotted line in the colour of the line of that name, such as its bound.
    """
    ax = axes(ax, title)
    for i, (name, line) in enumerate(series.items()):
        ax.plot(*_line(line), color=colour(name, i), label=name)
        if dotted and name in dotted:
            ax.plot(*_line(dotted[name]), ":", color=colour(name, i))
    _log(ax, log)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    legend(ax)
    return ax


@figure
def spectrum(
    values: Mapping[str, Any], ax: Axes = None, title: str = "", log: str = "y",
    ylabel: str = "singular value", norm: float | None = None,
) -> Axes:
    """Draw singular values, name of the matrix -> values, the largest first, counted from 1.

    norm: what the values are scaled to, so that matrices of different sizes can be compared.
    """
    ax = axes(ax, title)
    for i, (name, sizes) in enumerate(values.items()):
        sizes = np.sort(np.ravel(sizes))[::-1]
        sizes = sizes if norm is None else sizes * norm / np.linalg.norm(sizes)
        style = {"marker": "o", "ms": 3} if len(sizes) <= 40 else {}
        ax.plot(np.arange(1, len(sizes) + 1), sizes, color=colour(name, i), label=name, **style)
    _log(ax, log)
    scaled = "" if norm is None else f" (each matrix scaled to norm {norm:g})"
    ax.set(xlabel=f"i, from the largest{scaled}", ylabel=ylabel)
    legend(ax)
    return ax


@figure
def loss_curves(
    histories: Mapping[str, Sequence[float] | History], ax: Axes = None, title: str = "",
    ylabel: str = "", levels: Mapping[str, float] | None = None,
) -> Axes:
    """Draw losses against steps, name -> a `History` or a sequence (loss i is before step i).

    A `History` has the held-out losses as a line with dots, the batch losses as a thin line.
    levels: name -> height of a horizontal line.
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
    horizontal(ax, levels)
    if len(kinds) > 1:
        ax.plot([], [], "o-", color="0.5", ms=4, label="held out")
        ax.plot([], [], color="0.5", lw=0.8, label="the batch trained on")
    ax.xaxis.set_major_locator(_integer_ticks(8))
    quantity = "held-out loss" if kinds == {"held out"} else "loss"
    ax.set(xlabel="steps", ylabel=ylabel or f"{quantity} (nats a token)")
    legend(ax)
    return ax


@figure
def rank_sweep(
    results: Mapping[Any, Any], ax: Axes = None, title: str = "", xlabel: str = "rank r",
    ylabel: str = "held-out loss (nats a token)", levels: Mapping[str, float] | None = None,
) -> Axes:
    """Draw {x: losses, one for each seed}, or name -> such: the median with a min-max band.

    With fewer than three seeds there is no band, and each loss is a dot. levels: name -> height
    of a horizontal line.
    """
    ax = axes(ax, title)
    by_name = results if isinstance(next(iter(results.values())), Mapping) else {"LoRA": results}
    at = sorted({x for sweep in by_name.values() for x in sweep})
    words = bands(ax, by_name)
    horizontal(ax, levels)
    if min(at) > 0:
        ax.set_xscale("log", base=2)
    ax.set_xticks(at, [f"{x:g}" for x in at])
    ax.minorticks_off()
    ax.set(xlabel=f"{xlabel}\n({words})", ylabel=ylabel)
    legend(ax)
    return ax


def bands(ax: Axes, by_name: Mapping[str, Mapping[Any, Any]], markers: str = "o") -> str:
    """Draw name -> {x: a number for each seed} as medians with min-max bands; return what they are.

    The band of a single x is a line. With fewer than three seeds there is no band, and each number
    is a dot. markers: the i-th name has the i-th; of the names of one colour, the n-th has the n-th
    kind of line.
    """
    seeds, tints, dotted = set[int](), list[str](), set[bool]()
    for i, (name, sweep) in enumerate(by_name.items()):
        xs, tint = sorted(sweep), colour(name, i)
        draws = [np.ravel(sweep[x]).astype(np.float64) for x in xs]
        seeds |= {len(numbers) for numbers in draws}
        line = markers[i % len(markers)] + DASHES[tints.count(tint) % len(DASHES)]
        ax.plot(xs, [np.median(numbers) for numbers in draws], line, color=tint, ms=4, label=name)
        tints.append(tint)
        dotted.add(few := min(map(len, draws)) < FEWEST)
        if not few:
            low, high = ([f(numbers) for numbers in draws] for f in (np.min, np.max))
            if len(xs) > 1:
                ax.fill_between(xs, low, high, color=tint, alpha=0.2, lw=0)
            else:
                ax.vlines(xs, low, high, color=tint, lw=1)
        else:
            for x, numbers in zip(xs, draws):
                ax.plot([x] * len(numbers), numbers, ".", color=tint, ms=4)
    if dotted == {True}:
        return f"{counted(seeds)}: no band"
    dots = ",\ndots: each seed" * (True in dotted)
    return f"median of {counted(seeds)}, band: minimum to maximum{dots}"


def counted(seeds: Collection[int]) -> str:
    """Return "3–5 seeds" for numbers of seeds."""
    count = "–".join(str(n) for n in sorted({min(seeds), max(seeds)}))
    return f"{count} seed{'s' * (max(seeds) > 1)}"


@figure
def rate_sweep(
    results: Mapping[tuple[int, float], Any], ax: Axes = None, title: str = "",
    above: float | None = None,
) -> Axes:
    """Draw {(rank, learning rate): (loss, ...) of each seed}: a line for each rank.

    above: the highest loss in the figure, such as the base's; a line may leave it.
    """
    by_rank: dict[str, dict[float, Any]] = {}
    for (r, rate), seeds in results.items():
        by_rank.setdefault(f"r = {r}", {})[rate] = [seed[0] for seed in seeds]
    ax = rank_sweep(by_rank, ax, title, "learning rate")
    if above is not None:
        lowest = min(seed[0] for seeds in results.values() for seed in seeds)
        ax.set_ylim(lowest - 0.05 * (above - lowest), above)
    return ax


@figure
def parameter_bars(
    counts: Mapping[str, int | Count], ax: Axes = None, title: str = ""
) -> Axes:
    """Draw numbers of (trained) parameters as bars on a linear axis, the first name on top.

    Each bar has its number and its share of the largest.
    """
    ax = axes(ax, title, (WIDE, 1.2 + 0.5 * len(counts)))
    values = [n.trainable if isinstance(n, Count) else n for n in counts.values()]
    most = max([1, *values])
    tints = [colour(name, i) for i, name in enumerate(counts)]
    bars = ax.barh(broken(counts), values, color=tints, height=0.6)
    texts = [f"{v:,}" + f"  ({100 * v / most:.2g} %)" * (v < most) for v in values]
    ax.bar_label(bars, texts, padding=4)
    ax.set_xlim(0, 1.75 * most)  # space for the numbers
    ax.xaxis.set_major_locator(_integer_ticks(4))
    ax.xaxis.set_major_formatter(lambda x, _: _with_unit(x, most))
    ax.invert_yaxis()
    ax.set(xlabel="parameters")
    return ax


@figure
def memory_bars(ledgers: Mapping[str, Ledger], ax: Axes = None, title: str = "") -> Axes:
    """Draw the measured memory of one training step: stacked by kind, with the total."""
    ax = axes(ax, title, (WIDE, 2.0 + 0.5 * len(ledgers)))
    names = broken(ledgers)
    left = np.zeros(len(names))
    for i, row in enumerate(next(iter(ledgers.values())).rows):
        width = np.array([ledger[row.name].measured for ledger in ledgers.values()]) / 2**20
        fill = ROWS.get(row.name, OTHERS[i % len(OTHERS)])
        bars = ax.barh(names, width, left=left, height=0.6, color=fill, label=row.name, lw=0.8,
                       edgecolor="white")
        left += width
    ax.bar_label(bars, [f"{total:.1f} MiB" for total in left], padding=4)
    ax.set_xlim(0, 1.45 * left.max())
    ax.invert_yaxis()
    ax.set(xlabel="memory of one training step (MiB)")
    legend(ax)
    return ax


@figure
def merge_error(
    errors: Mapping[str, tuple[Any, Any]], ax: Axes = None, title: str = ""
) -> Axes:
    """Draw name -> (|merged - unmerged|, its bound) of each output: dots, and the bound as a line.

    Each name is a column with the outputs in order of their bounds, on a log axis. An output above
    its bound is a cross. Exact zeros cannot be drawn on a log axis; the tick counts them.
    """
    ax = axes(ax, title)
    ticks, above = [], False
    for i, (name, (error, bound)) in enumerate(errors.items()):
        error = np.ravel(error).astype(np.float64)
        bound = np.broadcast_to(np.ravel(bound).astype(np.float64), error.shape)
        order = np.argsort(bound, kind="stable")
        at, error, bound = i + np.linspace(-0.36, 0.36, len(order)), error[order], bound[order]
        over = ~(error <= bound)  # true for nan, too
        under = (error > 0) & ~over
        ax.plot(at[under], error[under], ".", color=COLOURS["merged"], ms=4)
        ax.plot(at[over], error[over], "x", color=COLOURS["wrong"], ms=5)
        ax.plot(at, bound, color=COLOURS["full"], lw=1.5)
        above = above or bool(over.any())
        zeros = int((error == 0).sum())
        ticks.append(f"{name}\n{zeros} equal" if zeros else name)
    ax.set_yscale("log")
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set(xlabel="each column: its outputs in order of their bounds", ylabel="|merged − unmerged|")
    ax.plot([], [], color=COLOURS["full"], label="bound", lw=1.5)
    ax.plot([], [], ".", color=COLOURS["merged"], label="an output")
    if above:
        ax.plot([], [], "x", color=COLOURS["wrong"], label="above its bound")
    legend(ax)
    return ax


def broken(names: Iterable[str]) -> list[str]:
    """Return the names with long ones broken into lines."""
    return [textwrap.fill(name, 12) for name in names]


def _line(line: Any) -> tuple[Any, Any]:
    """Return (x, y) of a line given as (x, y) or y."""
    pair = line if isinstance(line, tuple) and len(line) == 2 else (range(len(line)), line)
    return pair[0], pair[1]


def horizontal(ax: Axes, levels: Mapping[str, float] | None) -> None:
    """Draw a horizontal line at each level."""
    for i, (name, level) in enumerate((levels or {}).items()):
        ax.axhline(level, color=colour(name, i + 2), lw=1.2, ls="--", label=name)


def _log(ax: Axes, which: str) -> None:
    for axis in which:
        ax.set(**{f"{axis}scale": "log"})


def _with_unit(x: float, most: float) -> str:
    """Return a tick label on an axis up to `most`: "1.5 million"."""
    units = {1e9: " billion", 1e6: " million", 1e3: " thousand"}
    size = next((size for size in units if most >= size), 1.0)
    return f"{x / size:g}{units.get(size, '')}" if x else "0"


def _integer_ticks(most: int) -> Any:
    """Return a locator of at most `most` integer ticks."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=True, steps=[1, 2, 5, 10])
