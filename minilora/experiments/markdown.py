"""The pages of the report as Markdown, from the facts of each experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import setup
from .experiment import FAILS, NO_VERDICT, REPRODUCES, UNDECIDED, Effect
from .facts import REAL, SMOKE, TOY
from .order import BRIEF, SECTIONS

Facts = Mapping[str, Any]
MANY = {REPRODUCES: "reproduce", FAILS: "do not reproduce", UNDECIDED: "undecided",
        NO_VERDICT: "without a verdict"}


def page(facts: Facts) -> str:
    """Return the page of an experiment."""
    parts = [f"# {facts['title']}", f"*{stamp(facts)}*"]
    parts += [_claim(n, claim) for n, claim in enumerate(facts["claims"], 1)]
    if any(claim["effects"] for claim in facts["claims"]):
        parts.append(facts["noise"])
    for one in facts["tables"]:
        parts += [f"## {one['title']}", table(one["head"], one["rows"]), one["note"]]
    if facts["figures"]:
        parts.append("## Figures")
        parts += [f"![{one['alt']}]({one['name']}.png)\n\n{one['alt']} "
                  f"([SVG]({one['name']}.svg))" for one in facts["figures"]]
    if facts["rates"]:
        parts += ["## Learning rates", RATES, table(*rates(facts))]
    if facts["questions"]:
        parts.append("## How it was run")
        parts += [f"**{question}** {answer}" for question, answer in facts["questions"]]
    parts.append(f"Made by `minilora reproduce {facts['name']}`. [All results](README.md)")
    return "\n\n".join(filter(None, parts)) + "\n"


def stamp(facts: Facts) -> str:
    """Return the sentence on how small everything is."""
    if not facts["models"] and facts["toy"]:
        return " ".join([facts["toy"], *[SMOKE] * facts["smoke"]])
    words = [TOY, facts["toy"]] if facts["toy"] else [TOY]
    sizes: dict[tuple[Any, ...], list[str]] = {}
    for one in facts["models"]:
        key = one["base"], one["parameters"], one["layers"], one["width"]
        sizes.setdefault(key, []).append(f"{one['task']} (stands for {one['stands_for']})")
    words += [
        f"{', '.join(tasks)}: the base {base} has {parameters:,} parameters, {layers} layers and "
        f"width {width}."
        for (base, parameters, layers, width), tasks in sizes.items()
    ]
    if facts["rates"]:
        words.append(f"{facts['seeds']} seeds.")
    return " ".join([*words, *[SMOKE] * facts["smoke"]])


def _claim(n: int, claim: Facts) -> str:
    numbers = sentence(claim)
    lines = [
        f"## Claim {n}: {claim['says']}", "",
        f"**{claim['verdict']}**" + f": {numbers}" * bool(numbers), "",
        f"- Source: {claim['source']}", f"- Printed there: {claim['printed']}",
        f"- The rule, set before the runs: {claim['rule']}",
    ]
    if claim["mistake"]:
        lines.append(f"- A planted mistake: {planted(claim)}")
    if claim["effects"]:
        lines += ["", table(*effects(claim))]
    return "\n".join(lines)


def sentence(claim: Facts) -> str:
    """Return the numbers of a verdict as a sentence; "" if they are those of its effects."""
    listed = "; ".join(str(Effect(**effect)) for effect in claim["effects"])
    return "" if listed == claim["because"] else claim["because"]


def planted(claim: Facts) -> str:
    """Return the planted mistake of a claim, and the verdict under it."""
    turned = f" Then the verdict is: {claim['under_mistake']}." * bool(claim["under_mistake"])
    return f"{claim['mistake']}.{turned}"


def effects(claim: Facts) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a claim's table of effects."""
    head = ["effect", "difference", "95 % interval", "noise floor"]
    return head, [
        [e["what"], f"{number(e['mean'], '+')}", f"{number(e['low'], '+')} to "
         f"{number(e['high'], '+')}", number(e["floor"])]
        for e in claim["effects"]
    ]


def rates(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of learning rates."""
    tried = sorted({rate for one in facts["rates"] for rate in one["tried"]}, key=float)
    rows = []
    for one in facts["rates"]:
        scores = ["" if rate not in one["tried"] else "diverged" if one["tried"][rate] is None
                  else number(one["tried"][rate]) for rate in tried]
        more = "".join(f", {one[name]:,} {name}" for name in ("examples", "steps") if name in one)
        rows.append([one["task"], one["cell"] + more, f"{one['rate']:g}", *scores, one["warning"]])
    return ["task", "method", "chosen", *tried, ""], rows


RATES = "Validation score of the first seed (the main metric) for each learning rate tried."


def number(value: float | None, sign: str = "") -> str:
    """Return a number of three digits, or more for the digits before its point; "–" for None."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.3g}"


def shown(cell: Any) -> str:
    """Return a cell of a table as text."""
    return number(cell) if isinstance(cell, int | float) or cell is None else str(cell)


def numeric(rows: Sequence[Sequence[Any]], column: int) -> bool:
    """Return whether a column of a table holds numbers, perhaps with their spread."""
    cells = [shown(row[column]).split(" ")[0].lstrip("+-−").replace(",", "") for row in rows]
    return any(cells) and all(cell[:1].isdigit() or cell in ("–", "", "diverged") for cell in cells)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown; numbers are on the right."""
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(shown(cell).replace("|", "\\|") for cell in cells) + " |"

    rule = "".join("---:|" if numeric(rows, i) else "---|" for i in range(len(head)))
    return "\n".join([line(head), f"|{rule}", *map(line, rows)])


def index(pages: Sequence[Facts]) -> str:
    """Return the front page: every claim with its verdict, in the order of the report."""
    by_name = {facts["name"]: facts for facts in pages}
    parts = ["# Does LoRA do what it says?", f"*{toy(pages)}*", summary(pages), BRIEF]
    parts += [SMOKE] * any(facts["smoke"] for facts in pages)
    for heading, names in SECTIONS:
        rows = [
            [f"[{facts['title']}]({name}.md)", claim["says"], f"**{claim['verdict']}**"]
            for name in names if (facts := by_name.get(name)) for claim in facts["claims"]
        ]
        if rows:
            parts += [f"## {heading}", table(["experiment", "claim", "verdict"], rows)]
    at_edge = [f"{facts['name']}: {one['cell']} on {one['task']}"
               for facts in pages for one in facts["rates"] if one["warning"]]
    if at_edge:
        parts += ["## Rates at the edge", f"{setup.EDGE[0].upper()}{setup.EDGE[1:]}.",
                  "\n".join(f"- {line}" for line in dict.fromkeys(at_edge))]
    return "\n\n".join(parts) + "\n"


def toy(pages: Sequence[Facts]) -> str:
    """Return the sentence on how small everything is, and the exception if there is its page."""
    return " ".join([TOY, *[REAL] * any(facts["name"] == "real" for facts in pages)])


def summary(pages: Sequence[Facts]) -> str:
    """Return how many claims have each verdict: "5 claims: 3 reproduce, 2 do not reproduce"."""
    words = [claim["verdict"] for facts in pages for claim in facts["claims"]]
    counts = [f"{n} {many if n != 1 else one}" for one, many in MANY.items()
              if (n := words.count(one))]
    return f"{len(words)} claims: {', '.join(counts)}."
