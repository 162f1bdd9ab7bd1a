"""The report as one HTML page, from the facts of each experiment. It requests nothing."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .. import __version__, viz
from . import markdown
from .experiment import FAILS, REPRODUCES, UNDECIDED
from .facts import SMOKE
from .order import BRIEF, SECTIONS, in_order

Facts = Mapping[str, Any]
STYLE = Path(__file__).with_name("report.css")
TITLE = "Does LoRA do what it says?"
ABOUT = "The claims of the LoRA paper and of later work, each measured on a laptop"
LONG = 16  # rows: a longer table is folded
BADGES = {  # verdict -> its class, and a sign beside the word, as colour alone tells nobody
    REPRODUCES: ("yes", "✓"), FAILS: ("no", "✗"), UNDECIDED: ("open", "?"),
}


def style() -> str:
    """Return the style of the page: that of all pages, and the report's own."""
    return viz.STYLE.read_text("utf-8") + STYLE.read_text("utf-8")


def page(pages: Sequence[Facts], files: Mapping[str, bytes]) -> str:
    """Return the self-contained page. files: name -> bytes, with the figures as PNG."""
    def source(name: str) -> str:
        return f"data:image/png;base64,{base64.b64encode(files[f'{name}.png']).decode()}"

    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{TITLE} - minilora</title>\n"
        f'<meta name="description" content="{ABOUT}">\n'
        '<link rel="icon" href="data:,">\n'
        f"<style>\n{style()}</style>\n</head>\n"
        '<body class="report">\n<a class="skip" href="#main">Skip to the text</a>\n'
        f'<main id="main" tabindex="-1">\n{body(pages, files, source)}</main>\n'
        f"<footer><p>minilora {__version__}: LoRA on NumPy. MIT licence.</p></footer>\n"
        "</body>\n</html>\n"
    )


def body(
    pages: Sequence[Facts], files: Mapping[str, bytes], source: Callable[[str], str]
) -> str:
    """Return what the page shows. source: a figure's name -> the address of its PNG."""
    by_name = {facts["name"]: facts for facts in pages}
    parts = [
        f'<h1 id="title">{TITLE}</h1>',
        f'<p class="lead"><strong>{markdown.toy(pages)}</strong> The claims of the paper '
        '(<a href="https://arxiv.org/abs/2106.09685">Hu et al. 2021</a>), and what has been '
        "learned since, each as an experiment that a laptop runs. The rules of the verdicts "
        f"were set before the runs. {markdown.summary(pages)}</p>",
        *[f'<p class="smoke">{SMOKE}</p>' * any(facts["smoke"] for facts in pages)],
        '<div class="answers">',
    ]
    for i, (heading, names) in enumerate(SECTIONS):
        there = [by_name[name] for name in names if name in by_name]
        if there:
            parts += [f'<section aria-labelledby="answers-{i}"><h2 id="answers-{i}">{heading}</h2>',
                      *map(_answers, there), "</section>"]
    parts += ["</div>", f"<p>{BRIEF}</p>" * ("rank" in by_name or "matrices" in by_name)]
    parts += [_experiment(by_name[name], files, source) for name in in_order([*by_name])]
    return "\n".join(filter(None, parts)) + "\n"


def badge(word: str, says: str = "") -> str:
    """Return a verdict with its sign. says: the word in another language."""
    kind, sign = BADGES.get(word, ("none", "–"))
    return (f'<span class="badge {kind}"><span aria-hidden="true">{sign}</span> '
            f"{escape(says or word)}</span>")


def _answers(facts: Facts) -> str:
    lines = "".join(
        f'<li><a href="#{facts["name"]}-{n}">{text(claim["says"])}</a> {badge(claim["verdict"])}'
        "</li>" for n, claim in enumerate(facts["claims"], 1)
    )
    name = facts["name"]
    return (f'<div><p><a href="#{name}">{text(facts["title"])}</a></p>'
            f'<ul class="claims">{lines}</ul></div>')


def text(words: str) -> str:
    """Return words as HTML; what stands in backticks is code, an arXiv number a link."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(words))
    return re.sub(r"\b(arXiv:? ?)(\d{4}\.\d{4,5})\b",
                  r'<a href="https://arxiv.org/abs/\2">\1\2</a>', marked)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> str:
    """Return a table; numbers are on the right."""
    right = [' class="n"' * markdown.numeric(rows, i) for i in range(len(head))]
    caption = f"<caption>{text(title)}</caption>" * bool(title)
    top = "".join(f'<th scope="col"{side}>{text(cell)}</th>' if cell else "<td></td>"
                  for cell, side in zip(head, right))
    lines = "".join(
        "<tr>" + "".join(f"<td{side}>{text(markdown.shown(cell))}</td>"
                         for cell, side in zip(row, right)) + "</tr>\n" for row in rows
    )
    return (f'<div class="wide" tabindex="0" role="group" aria-label="{escape(title or head[0])}">'
            f"<table>{caption}<thead><tr>{top}</tr></thead>\n<tbody>{lines}</tbody></table></div>")


def _experiment(
    facts: Facts, files: Mapping[str, bytes], source: Callable[[str], str]
) -> str:
    name = facts["name"]
    link = f'<a class="anchor" href="#{name}" aria-label="Link to {escape(facts["title"])}">#</a>'
    parts = [
        f'<section class="experiment" aria-labelledby="{name}">',
        f'<h2 id="{name}">{text(facts["title"])} {link}</h2>',
        f'<p class="stamp">{text(markdown.stamp(facts))}</p>',
        *(_claim(name, n, claim) for n, claim in enumerate(facts["claims"], 1)),
    ]
    if any(claim["effects"] for claim in facts["claims"]):
        parts.append(f'<p class="soft">{text(facts["noise"])}</p>')
    for one in facts["tables"]:
        shown = table(one["head"], one["rows"], one["title"])
        if len(one["rows"]) > LONG:
            shown = (f"<details><summary>{text(one['title'])}: {len(one['rows'])} rows</summary>"
                     f"{table(one['head'], one['rows'])}</details>")
        parts += [shown, f'<p class="soft">{text(one["note"])}</p>' * bool(one["note"])]
    if facts["figures"]:
        parts.append('<div class="figures">')
        parts += [_figure(one, files, source) for one in facts["figures"]]
        parts.append("</div>")
    if facts["rates"]:
        warned = sum(bool(one["warning"]) for one in facts["rates"])
        at_edge = f", {warned} at the edge of the grid" * bool(warned)
        parts.append(f"<details><summary>The learning rates{at_edge}</summary>"
                     f"<p>{markdown.RATES}</p>{table(*markdown.rates(facts))}</details>")
    if facts["questions"]:
        answers = "".join(f"<dt>{text(q)}</dt><dd>{text(a)}</dd>" for q, a in facts["questions"])
        parts.append(f"<details><summary>How it was run</summary><dl>{answers}</dl></details>")
    parts += [f"<p class=\"soft\">Made by <code>minilora reproduce {name}</code>. "
              '<a href="#title">All claims</a></p>', "</section>"]
    return "\n".join(filter(None, parts))


def _claim(name: str, n: int, claim: Facts) -> str:
    numbers = markdown.sentence(claim)
    facts = [("Source", claim["source"]), ("Printed there", claim["printed"])]
    facts += [("Measured here", numbers)] * bool(numbers)
    facts.append(("The rule", claim["rule"]))
    if claim["mistake"]:
        facts.append(("A planted mistake", markdown.planted(claim)))
    rows = "".join(f"<dt>{key}</dt><dd>{text(value)}</dd>" for key, value in facts)
    return (
        f'<section class="claim" aria-labelledby="{name}-{n}">'
        f'<h3 id="{name}-{n}">{text(claim["says"])}</h3>\n<p>{badge(claim["verdict"])}</p>'
        f'<dl class="facts">{rows}</dl>'
        + (table(*markdown.effects(claim)) if claim["effects"] else "") + "</section>"
    )


def _figure(one: Facts, files: Mapping[str, bytes], source: Callable[[str], str]) -> str:
    png = files[f"{one['name']}.png"]
    width, height = (int.from_bytes(png[at : at + 4]) // 2 for at in (16, 20))
    return (
        f'<figure><img src="{source(one["name"])}" alt="{escape(one["alt"])}" width="{width}" '
        f'height="{height}" data-smallest="{one["smallest"]:.2f}">'
        f"<figcaption>{text(one['alt'])}</figcaption></figure>"
    )
