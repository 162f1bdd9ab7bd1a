"""`minilora reproduce`: what the paper prints, found again here."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

from .commands import Say

if TYPE_CHECKING:
    from ..accounting.paper import Ratio, Row

HEAD = ("source", "what", "shape", "exact", "printed", "")
TITLES = {
    "counts": "Trained parameters, in millions",
    "sizes": "Bytes",
    "ratios": "Ratios",
}


def reproduce(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Every number of parameters and bytes that the paper prints, by formula and by running."""
    from ..accounting import claims  # which takes a while

    found: dict[str, Any] = {}
    why: list[str] = []
    for part, rows in (
        ("counts", claims.ROWS), ("sizes", claims.SIZES), ("ratios", claims.RATIOS),
    ):
        found[part] = [_facts(row, why) for row in rows]
        _table(TITLES[part], found[part], args.markdown, say)
    for n, reason in enumerate(why, 1):
        say(f"{n}. {reason}" if args.markdown else f"[{n}] {reason}")
    shown = [row for part in found.values() for row in part]
    wrong = [row for row in shown if not row["agree"]]
    tried = Counter(row["status"] for row in shown if row["what"].endswith("(tried)"))
    every = Counter(row["status"] for row in shown) - tried
    say(f"\n{_counted(every, 'numbers')}; {_counted(tried, 'more were tried as an explanation')}")
    for sentence in claims.RESTS:
        say(f"- {sentence}")
    found |= {"statuses": dict(every), "tried": dict(tried), "passed": not wrong}
    if wrong:
        row = wrong[0]
        found["failed"] = (
            f"{len(wrong)} rows do not give what is registered, such as {row['source']}, "
            f"{row['what']}: formula {row['formula']}, run {row['ran']}, registered {row['exact']}"
        )
    return found


def _counted(statuses: Counter[str], what: str) -> str:
    told = ", ".join(f"{n} {name}" for name, n in statuses.most_common())
    return f"{statuses.total()} {what}" + f": {told}" * bool(told)


def _facts(row: Row | Ratio, why: list[str]) -> dict[str, Any]:
    """A row as plain numbers; `why` gathers the reasons, each once."""
    from ..accounting.paper import Row

    told = {"source": row.source, "what": row.what, "exact": row.exact, "printed": row.printed,
            "status": row.status, "why": row.why}
    if row.why and row.why not in why:
        why.append(row.why)
    note = f" [{why.index(row.why) + 1}]" if row.why else ""
    if not isinstance(row, Row):
        return told | {"shape": "", "agree": True, "note": note}
    ran, formula = row.ran(), row.formula
    shape = row.shape if isinstance(row.shape, str) else "gpt3-175b"
    return told | {"shape": shape, "formula": formula, "ran": ran, "note": note,
                   "agree": ran == formula == row.exact}


def _table(title: str, rows: list[dict[str, Any]], markdown: bool, say: Say) -> None:
    cells = [HEAD]
    for row in rows:
        exact = f"{row['exact']:,}" if isinstance(row["exact"], int) else f"{row['exact']:,.4g}"
        cells.append((row["source"], row["what"], row["shape"], exact, row["printed"],
                      row["status"] + row["note"]))
    say(f"## {title}\n" if markdown else title)
    if markdown:
        say("| " + " | ".join(HEAD) + " |")
        say("|---|---|---|---:|---:|---|")
        for line in cells[1:]:
            say("| " + " | ".join(line) + " |")
    else:
        wide = [max(map(len, column)) for column in zip(*cells)]
        for line in cells:
            told = [cell.rjust(n) if i in (3, 4) else cell.ljust(n)
                    for i, (cell, n) in enumerate(zip(line, wide))]
            say("  ".join(told).rstrip())
    say("")
