"""mini-sql, after WikiSQL: the columns of a table and a question about it -> SQL.

    table players : age team name goals <sep> which name with team reds and age above 24 ? <sep>
    select name from players where team = reds and age > 24

The answer is run on a small table, which the model does not see. The base answers the same
questions in other languages: filter team is reds then age over 24 then take name, or, after "query"
instead of "table": take name with team is reds and age over 24.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..words import SEP, Words
from .task import Example, Task, same
from .vocabulary import CITIES, COLUMNS, DECODER, PEOPLE, TEAMS

NUMBERS = ("goals", "age")  # the columns that contain numbers
ASKS = {"": "which", "count": "how many", "max": "the highest", "min": "the lowest",
        "sum": "the total", "avg": "the mean"}
COMPARISONS = {"=": ("", "is"), ">": ("above", "over"), "<": ("below", "under")}
TEXT = frozenset((*PEOPLE, *TEAMS, *CITIES))  # values to be quoted
ROWS, MOST_STEPS = 8, 20_000  # of a table; of SQLite's machine, for one query


@dataclass(frozen=True)
class Table:
    """A table: the names of its columns, and its rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Question:
    """The `total` of a column ("": its values), where (column, comparison, value) are all true."""

    table: Table
    total: str
    column: str
    conditions: tuple[tuple[str, str, str], ...]

    @property
    def inputs(self) -> str:
        where = " and ".join(
            f"with {column} {COMPARISONS[sign][0]} {value}"
            for column, sign, value in self.conditions
        )
        text = (f"table players : {' '.join(self.table.columns)} {SEP} {ASKS[self.total]} "
                f"{self.column} {where} ? {SEP}")
        return " ".join(text.split())

    @property
    def sql(self) -> str:
        what = f"{self.total} ( {self.column} )" if self.total else self.column
        where = " and ".join(" ".join(condition) for condition in self.conditions)
        return f"select {what} from players where {where}"

    def dialect(self, what_first: bool) -> str:
        """The answer in a language of the base."""
        where = [
            f"{column} {COMPARISONS[sign][1]} {value}" for column, sign, value in self.conditions
        ]
        take = f"take {self.total} {self.column}"
        text = f"{take} with {' and '.join(where)}" if what_first else (
            f"filter {' then '.join(where)} then {take}")
        return " ".join(text.split())


def question(rng: np.random.Generator) -> Question:
    """Draw a table and a question that at least one of its rows answers."""
    columns = tuple(rng.permutation([*COLUMNS])[:4].tolist())
    values = {c: rng.choice(COLUMNS[c], ROWS, replace=c != "name").tolist() for c in columns}
    rows = tuple(
        tuple(int(v) if c in NUMBERS else v for c, v in zip(columns, row))
        for row in zip(*(values[c] for c in columns))
    )
    column, *others = rng.permutation(columns).tolist()
    kinds = ["", "count", "max", "min", "sum", "avg"] if column in NUMBERS else ["", "count"]
    conditions = []
    at = int(rng.integers(ROWS))  # this row is an answer
    for other in others[: rng.integers(1, 3)]:
        value, sign = values[other][at], "="
        if other in NUMBERS:
            sign = str(rng.choice(["=", ">", "<"]))
            domain = COLUMNS[other]
            beside = domain.index(value) + {"=": 0, ">": -1, "<": 1}[sign]
            if 0 <= beside < len(domain):
                value = domain[beside]
            else:
                sign = "="
        conditions.append((other, sign, value))
    return Question(Table(columns, rows), str(rng.choice(kinds)), column, tuple(conditions))


def execute(sql: str, table: Table) -> list[str] | None:
    """Return the sorted rows that a query gives, or None if SQLite refuses it or takes too long.

    Raises ImportError where Python came without SQLite.
    """
    try:
        import sqlite3
    except ImportError as error:
        raise ImportError(
            f"mini-sql runs its queries in SQLite, which this Python came without ({error}): in a "
            "browser, load Pyodide's package sqlite3; elsewhere, install a Python that has it"
        ) from error
    text = " ".join(f"'{word}'" if word in TEXT else word for word in sql.split())
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"create table players ({', '.join(table.columns)})")
        marks = ", ".join("?" * len(table.columns))
        connection.executemany(f"insert into players values ({marks})", table.rows)
        connection.set_progress_handler(lambda: 1, MOST_STEPS)
        return sorted(map(repr, connection.execute(text).fetchall()))
    except (sqlite3.Error, sqlite3.Warning, ValueError):  # the last for "\0" and lone surrogates
        return None
    finally:
        connection.close()


def base_example(rng: np.random.Generator) -> Example:
    """Draw an example of the base: the answer in one of its own languages."""
    asked = question(rng)
    if rng.random() < 0.3:
        return Example(asked.inputs.replace("table", "query", 1), (asked.dialect(True),))
    return Example(asked.inputs, (asked.dialect(False),))


class SQL(Task):
    """The answer in SQL. accuracy: the share of outputs that give the same rows as the answer."""

    name = "mini-sql"
    stands_for = "WikiSQL"
    base = "mini-decoder"
    metrics = ("accuracy", "exact")
    longest = 20

    @property
    def words(self) -> Words:
        return DECODER

    def draw(self, rng: np.random.Generator) -> Example:
        asked = question(rng)
        return Example(asked.inputs, (asked.sql,), asked.table)

    def score(self, examples: Sequence[Example], outputs: Sequence[Any]) -> dict[str, float]:
        exact = same(examples, outputs)
        right = [
            is_same or ((rows := execute(out, x.facts)) is not None
            and rows == execute(x.answer[0], x.facts))  # type: ignore[index]
            for x, out, is_same in zip(examples, outputs, exact)
        ]
        return {"accuracy": float(np.mean(right)), "exact": float(np.mean(exact))}
