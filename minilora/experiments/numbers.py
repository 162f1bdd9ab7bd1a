"""The paper's numbers of parameters and bytes, each by its formula and by running the code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..accounting import claims
from ..accounting.paper import Ratio, Row

PARTS = {"counts": "Trained parameters, in millions", "sizes": "Bytes", "ratios": "Ratios"}
Facts = Mapping[str, Any]


def registered() -> dict[str, Iterable[Row | Ratio]]:
    """Return the rows of each part."""
    return {"counts": claims.ROWS, "sizes": claims.SIZES, "ratios": claims.RATIOS}


def numbers(begins: Callable[[str], Any] = lambda what: None) -> dict[str, list[dict[str, Any]]]:
    """Return the facts of all rows, by part. begins: is called with the name of each row."""
    return {part: [facts(row, begins) for row in rows] for part, rows in registered().items()}


def facts(row: Row | Ratio, begins: Callable[[str], Any] = lambda what: None) -> dict[str, Any]:
    """Return a row as plain values; agree: formula, code and the registered number are equal."""
    begins(row.what)
    known = {"source": row.source, "what": row.what, "exact": row.exact, "printed": row.printed,
             "status": row.status, "why": row.why, "shape": "", "agree": True}
    if not isinstance(row, Row):
        return known
    ran, formula = row.ran(), row.formula
    shape = row.shape if isinstance(row.shape, str) else "gpt3-175b"
    return known | {"shape": shape, "formula": formula, "ran": ran,
                    "agree": ran == formula == row.exact}


def statuses(parts: Mapping[str, Iterable[Facts]]) -> tuple[Counter[str], Counter[str]]:
    """Return how many numbers have each status, and of rows tried as an explanation, how many."""
    every_row = [row for rows in parts.values() for row in rows]
    tried = Counter(row["status"] for row in every_row if row["what"].endswith("(tried)"))
    return Counter(row["status"] for row in every_row) - tried, tried


def summary(counted: Counter[str], what: str) -> str:
    """Return counts as words: "83 numbers: 38 match, 21 mismatch"."""
    parts = ", ".join(f"{n} {name}" for name, n in counted.most_common())
    return f"{counted.total()} {what}" + f": {parts}" * bool(parts)


def exact(row: Facts) -> str:
    """Return the exact number of a row as text."""
    value = row["exact"]
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
