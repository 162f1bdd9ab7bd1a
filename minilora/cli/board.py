"""What a sweep shows: a table with a row for each setting, and a figure, over the seeds."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import viz
from ..viz.axes import WIDE

DATA, TABLE = "sweep.json", "table.md"
KINDS = ("png", "svg")
PAGES = (DATA, TABLE, *(f"sweep.{kind}" for kind in KINDS))
DIVERGED, CRASHED = "diverged", "crashed"
COLUMNS = {"method": "method", "r": "r", "targets": "targets", "lr": "rate"}
Row = dict[str, Any]


def rows(points: Sequence[Mapping[str, str]], results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row for each setting: its options but the seed, and the numbers of its seeds.

    The best rate of a method, rank and targets has the lowest median loss, and no seed without one.
    """
    found = dict[tuple[Any, ...], Row]()
    for options, result in zip(points, results):
        own = {name: options[name] for name in COLUMNS if name in options}
        row = found.setdefault(tuple(own.items()), {
            **own, "trained": None, "before": [], "losses": [], "accuracies": [], DIVERGED: 0,
            CRASHED: 0, "best": False, "task": options.get("task", "text")})
        for problem in (DIVERGED, CRASHED):
            row[problem] += problem in result
        if "after" in result:
            row["trained"] = result["trainable"]
            row["before"].append(result["before"])
            row["losses"].append(result["after"])
        if "accuracy" in result:
            row["accuracies"].append(result["accuracy"])
    for group in grouped(found.values()).values():
        whole = [row for row in group if row["losses"] and not (row[DIVERGED] or row[CRASHED])]
        if whole:
            min(whole, key=lambda row: statistics.median(row["losses"]))["best"] = True
    return [*found.values()]


def grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows that differ in the rate alone, by their name, such as "lora r=4 q,v"."""
    groups = dict[str, list[Row]]()
    for row in rows:
        rank = f"r={row['r']}" if "r" in row else ""
        words = row["method"], rank, row.get("targets", "")
        groups.setdefault(" ".join(filter(None, words)), []).append(row)
    return groups


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown that can be read as it is, with what it shows."""
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    scored = any(row["accuracies"] for row in rows)
    many = any(len(row["losses"]) > 1 for row in rows)
    head = [*(COLUMNS[name] for name in names), "trained", "loss", *["from–to"] * many,
            *["accuracy"] * scored, "seeds", ""]
    lines = [head]
    for row in rows:
        losses, accuracies = row["losses"], row["accuracies"]
        shown = [f"{row['trained']:,}", f"{statistics.median(losses):.4f}"] if losses else ["", ""]
        spread = f"{min(losses):.4f}–{max(losses):.4f}" if losses else ""
        score = f"{statistics.median(accuracies):.4f}" if accuracies else ""
        notes = [f"{row[problem]} {problem}" for problem in (DIVERGED, CRASHED) if row[problem]]
        notes += ["best rate"] * (row["best"] and len(_rates(rows)) > 1)
        lines.append([*(row.get(name, "") for name in names), *shown, *[spread] * many,
                      *[score] * scored, str(len(losses)), ", ".join(notes)])
    left = [name in ("method", "targets", "") for name in head]
    widths = [max(3, *map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * n if to else "-" * (n - 1) + ":" for n, to in zip(widths, left)])
    text = "\n".join("| " + " | ".join(
        cell.ljust(n) if to else cell.rjust(n) for cell, n, to in zip(line, widths, left)
    ) + " |" for line in lines)
    return f"{text}\n\n{_about(rows)}\n"


def _about(rows: Sequence[Row]) -> str:
    """Say what the numbers of the table are."""
    before = sorted({x for row in rows for x in row["before"]})
    start = "–".join(f"{x:.4f}" for x in sorted({*before[:1], *before[-1:]}))
    words = f"loss: held-out, in {_unit(rows)}, the median of the seeds"
    words += f"; before the training it is {start}." * bool(before)
    if len(_rates(rows)) > 1:
        words += (" The best rate of a line has the lowest loss on the same held-out data, so this "
                  "loss is a little too good.")
    return words


def _rates(rows: Iterable[Row]) -> set[str]:
    return {row["lr"] for row in rows if "lr" in row}


def _unit(rows: Sequence[Row]) -> str:
    return f"nats a {'sentence' if rows[0]['task'] == 'classify' else 'token'}"


def pictures(rows: Sequence[Row]) -> dict[str, bytes]:
    """Return the files of the figure, name -> bytes: the loss against the rate, where there are
    several, and against the number of trained parameters. Without matplotlib there are none."""
    whole = {name: [row for row in group if row["losses"]] for name, group in grouped(rows).items()}
    whole = {name: group for name, group in whole.items() if group}
    if not whole or not viz.available():
        return {}
    several = len(_rates(rows)) > 1
    high = (3.4 + 0.25 * len(whole) / 2) * (1 + several)  # inches; a legend has two columns
    axes, files = viz.panels(1 + several, size=(WIDE, high)), dict[str, bytes]()
    label = f"held-out loss ({_unit(rows)})"
    if several:
        by_rate = {name: {float(row["lr"]): row["losses"] for row in group}
                   for name, group in whole.items()}
        viz.rank_sweep(by_rate, axes[0], "Learning rates", "learning rate", label)
    sizes = dict[str, dict[int, list[float]]]()
    for group in whole.values():
        row = next((row for row in group if row["best"]), group[0])
        name = f"{row['method']} {row.get('targets', '')}".rstrip()
        sizes.setdefault(name, {})[row["trained"]] = row["losses"]
    title = "Each at its best rate" if several else "Trained parameters"
    viz.quality_vs_parameters(sizes, axes[-1], title, label)
    for kind in KINDS:
        file = io.BytesIO()
        with viz.need().rc_context({"svg.hashsalt": "sweep"}):
            axes[0].figure.savefig(file, format=kind, dpi=2 * 96,
                                   metadata={"Software" if kind == "png" else "Date": None})
        files[f"sweep.{kind}"] = file.getvalue()
    viz.need().close(axes[0].figure)
    return files
