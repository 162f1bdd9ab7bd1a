"""`minilora reproduce counts`: compare the paper's numbers with what this package computes."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

from .parser import Say
from .streams import Progress

if TYPE_CHECKING:
    from ..accounting.paper import Ratio, Row

HEAD = ("source", "what", "shape", "exact", "printed", "")


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Compute the paper's numbers of parameters and bytes, with formulas and by running code."""
    from ..accounting import claims  # slow to import

    result: dict[str, Any] = {}
    reasons: list[str] = []
    parts = (
        ("counts", "Trained parameters, in millions", claims.ROWS),
        ("sizes", "Bytes", claims.SIZES), ("ratios", "Ratios", claims.RATIOS),
    )
    with Progress(sum(len(rows) for _, _, rows in parts)) as begins:
        for part, title, rows in parts:
            result[part] = []
            for row in rows:
                begins(row.what)
                result[part].append(_facts(row, reasons))
            begins.clear()
            _print(title, result[part], args.markdown, say)
    for n, reason in enumerate(reasons, 1):
        say(f"{n}. {reason}" if args.markdown else f"[{n}] {reason}")
    every_row = [row for part in result.values() for row in part]
    wrong = [row for row in every_row if not row["agree"]]
    tried = Counter(row["status"] for row in every_row if row["what"].endswith("(tried)"))
    statuses = Counter(row["status"] for row in every_row) - tried
    say(f"\n{_summary(statuses, 'numbers')}; "
        f"{_summary(tried, 'more were tried as an explanation')}")
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


def _summary(statuses: Counter[str], what: str) -> str:
    parts = ", ".join(f"{n} {name}" for name, n in statuses.most_common())
    return f"{statuses.total()} {what}" + f": {parts}" * bool(parts)


def _facts(row: Row | Ratio, reasons: list[str]) -> dict[str, Any]:
    """Return a row as plain values; add its reason to `reasons` if it is new."""
    from ..accounting.paper import Row

    facts = {"source": row.source, "what": row.what, "exact": row.exact, "printed": row.printed,
             "status": row.status, "why": row.why}
    if row.why and row.why not in reasons:
        reasons.append(row.why)
    note = f" [{reasons.index(row.why) + 1}]" if row.why else ""
    if not isinstance(row, Row):
        return facts | {"shape": "", "agree": True, "note": note}
    ran, formula = row.ran(), row.formula
    shape = row.shape if isinstance(row.shape, str) else "gpt3-175b"
    return facts | {"shape": shape, "formula": formula, "ran": ran, "note": note,
                    "agree": ran == formula == row.exact}


def _print(title: str, rows: list[dict[str, Any]], markdown: bool, say: Say) -> None:
    """Print a table."""
    cells = [HEAD]
    for row in rows:
        exact = f"{row['exact']:,}" if isinstance(row["exact"], int) else f"{row['exact']:,.4g}"
        cells.append((row["source"], row["what"], row["shape"], exact, row["printed"],
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
