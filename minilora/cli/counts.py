"""`minilora reproduce counts`: compare the paper's numbers with what this package computes."""

from __future__ import annotations

import argparse
from typing import Any

from .parser import Say
from .streams import Progress

HEAD = ("source", "what", "shape", "exact", "printed", "")


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Compute the paper's numbers of parameters and bytes, with formulas and by running code."""
    from ..accounting import claims  # slow to import
    from ..experiments import numbers

    result: dict[str, Any] = {}
    reasons: list[str] = []
    parts = numbers.registered()
    with Progress(sum(len([*rows]) for rows in parts.values())) as begins:
        for part, rows in parts.items():
            result[part] = [_noted(numbers.facts(row, begins), reasons) for row in rows]
            begins.clear()
            _print(numbers.PARTS[part], result[part], args.markdown, say)
    for n, reason in enumerate(reasons, 1):
        say(f"{n}. {reason}" if args.markdown else f"[{n}] {reason}")
    wrong = [row for part in result.values() for row in part if not row["agree"]]
    statuses, tried = numbers.statuses(result)
    say(f"\n{numbers.summary(statuses, 'numbers')}; "
        f"{numbers.summary(tried, 'more were tried as an explanation')}")
    for sentence in claims.RESTS:
        say(f"- {sentence}")
    result |= {"statuses": dict(statuses), "tried": dict(tried), "passed": not wrong}
    if wrong:
        row = wrong[0]
        result["failed"] = (
            f"{len(wrong)} rows differ from the registered value, such as {row['source']}, "
            f"{row['what']}: formula {row['formula']}, run {row['ran']}, registered {row['exact']}"
        )
    return result


def _noted(row: dict[str, Any], reasons: list[str]) -> dict[str, Any]:
    """Return a row with a note that refers to its reason; add the reason if it is new."""
    if row["why"] and row["why"] not in reasons:
        reasons.append(row["why"])
    return row | {"note": f" [{reasons.index(row['why']) + 1}]" if row["why"] else ""}


def _print(title: str, rows: list[dict[str, Any]], markdown: bool, say: Say) -> None:
    """Print a table."""
    from ..experiments.numbers import exact

    cells = [HEAD]
    for row in rows:
        cells.append((row["source"], row["what"], row["shape"], exact(row), row["printed"],
                      row["status"] + row["note"]))
    say(f"## {title}\n" if markdown else title)
    if markdown:
        say("| " + " | ".join(HEAD) + " |\n|---|---|---|---:|---:|---|")
        for line in cells[1:]:
            say("| " + " | ".join(line) + " |")
    else:
        widths = [max(map(len, column)) for column in zip(*cells)]
        for line in cells:
            padded = [cell.rjust(n) if i in (3, 4) else cell.ljust(n)
                      for i, (cell, n) in enumerate(zip(line, widths))]
            say("  ".join(padded).rstrip())
    say("")
