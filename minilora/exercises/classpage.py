"""A class's results as one HTML file: what to discuss in the next lecture.

First the mistakes, which a lecture can address; then the exercises, the students who are stuck, and
all results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from xml.etree.ElementTree import Element, SubElement, tostring

from .. import __version__
from .results import Class, Result, Task
from .submissions import plain

UNTRIED = ("absent", "not begun")
STUCK = 0.5  # a student is stuck who tried an exercise and has a smaller share of its points
NAMES = 6  # students listed with a mistake
VISIBLE = 12  # mistakes, and stuck students; the rest is folded

ASSETS = Path(__file__).parent.parent / "site" / "assets"  # the same style as the site
STYLE = """
main { max-width: 60rem; }
main h2 { margin-top: 2.5rem; }
table { width: 100%; }
.tasks tr > :nth-child(2), .all tr > :not(:first-child) {
  text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td { overflow-wrap: anywhere; }
.bar { display: flex; width: 100%; min-width: 8rem; height: 1.1rem; background: var(--panel);
  border: 1px solid var(--line); border-radius: 3px; overflow: hidden; margin-top: .3rem; }
.bar i { display: block; }
.passed { background: var(--B); } .partly { background: var(--A); }
.failed { background: var(--soft); }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; }
.key span { white-space: nowrap; margin-right: 1rem; }
ol.mistakes { list-style: none; padding: 0; }
ol.mistakes li { padding: .6rem 0; border-bottom: 1px solid var(--line); }
.count { font-weight: 700; color: var(--accent); }
.wide { overflow-x: auto; } .all tr > :first-child { min-width: 9rem; }
@media (max-width: 40rem) {
  .stack thead { display: none; } .stack td { display: block; border: 0; padding: 0; }
  .stack, .stack tbody { display: block; }
  .stack.tasks td:nth-child(2) { text-align: left; }
  .tasks td:nth-child(2)::before { content: "passed: "; }
  .stack tr { display: block; padding: .6rem 0; border-bottom: 1px solid var(--line); }
  .stack td:first-child { font-weight: 600; } .stack small { font-weight: 400; }
  .stack td:empty { display: none; }
}
td.full { color: var(--B); font-weight: 600; } td.none { color: var(--soft); }
"""
T = TypeVar("T")


@dataclass(frozen=True)
class Mistake:
    """A known mistake in an exercise, and the students who made it."""

    number: str
    title: str
    mistake: str
    names: tuple[str, ...]


def mistakes(of: Class) -> list[Mistake]:
    """Return the known mistakes of a class, the most frequent first."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for pupil in of.pupils:
        for task, result in zip(of.tasks, pupil.results):
            for mistake in result.mistakes:
                names.setdefault((task.number, task.title, mistake), []).append(pupil.name)
    entries = [Mistake(*key, tuple(those)) for key, those in names.items()]
    return sorted(entries, key=lambda one: (-len(one.names), one.number, one.mistake))


def stuck(of: Class) -> list[tuple[str, list[tuple[Task, Result]]]]:
    """Return the students who tried an exercise and have less than half of its points.

    Each with these exercises; the student with the most of them first.
    """
    entries = []
    for pupil in of.pupils:
        where = [
            (task, result) for task, result in zip(of.tasks, pupil.results)
            if result.state not in UNTRIED and result.points < STUCK * result.of
        ]
        if where:
            entries.append((pupil.name, where))
    return sorted(entries, key=lambda one: -len(one[1]))


def page(of: Class) -> bytes:
    """Return the page as bytes of HTML."""
    html = Element("html", lang="en")
    head, body = _add(html, "head"), _add(html, "body")
    _add(head, "meta", charset="utf-8")
    _add(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    _add(head, "title", "The class")
    _add(head, "style").text = (ASSETS / "style.css").read_text("utf-8") + STYLE
    main = _add(body, "main", id="main")
    _add(main, "h1", "The class")
    mean = sum(pupil.points for pupil in of.pupils) / len(of.pupils)
    _add(main, "p", f"{_count(len(of.pupils), 'student')}, {_count(len(of.tasks), 'exercise')}, "
                    f"{mean:.1f} of {of.of} points on average.")
    if of.left_out:
        _add(main, "p", f"Not submissions: {', '.join(of.left_out)}.", class_="soft")
    sections = {"mistakes": ("Frequent mistakes", _mistakes), "exercises": ("Exercises", _tasks),
                "stuck": ("Students who are stuck", _stuck), "all": ("All results", _all)}
    links = _add(_add(main, "nav"), "p")
    for name, (title, _) in sections.items():
        _add(links, "a", title, " · " if name != "all" else "", href=f"#{name}")
    for name, (title, write) in sections.items():
        _add(main, "h2", title, id=name)
        write(main, of)
    _add(_add(body, "footer"), "p", f"minilora {__version__}, seed {of.seed}.")
    text: bytes = tostring(html, "utf-8", method="html")
    return b"<!DOCTYPE html>\n" + text + b"\n"


def _add(parent: Element, tag: str, text: str = "", after: str = "", **attributes: str) -> Element:
    """Append an element with this text in it and this text after it."""
    names = {k.rstrip("_").replace("_", "-"): plain(v) for k, v in attributes.items() if v}
    element = SubElement(parent, tag, names)
    element.text, element.tail = plain(text), plain(after)
    return element


def _bar(parent: Element, **shares: float) -> None:
    bar = _add(parent, "div", class_="bar", aria_hidden="true")
    for kind, share in shares.items():
        _add(bar, "i", class_=kind, style=f"width:{100 * share:.1f}%")


def _table(parent: Element, kind: str, *heads: str, titles: Mapping[str, str] = {}) -> Element:
    """Append a table with these column heads and their titles. Return its body."""
    table = _add(parent, "table", class_=kind)
    row = _add(_add(table, "thead"), "tr")
    for head in heads:
        _add(row, "th", head, title=titles.get(head, ""))
    return _add(table, "tbody")


def _folded(parent: Element, entries: Sequence[T]) -> Iterator[tuple[Element, Sequence[T]]]:
    """Yield a parent for the first entries, and a fold for the others."""
    yield parent, entries[:VISIBLE]
    if others := entries[VISIBLE:]:
        fold = _add(parent, "details")
        _add(fold, "summary", f"{len(others)} more")
        yield fold, others


def _count(n: int, one: str) -> str:
    return f"{n} {one}{'s' if n != 1 else ''}"


def _mistakes(main: Element, of: Class) -> None:
    entries = mistakes(of)
    if not entries:
        _add(main, "p", "None of the known mistakes was made.")
    for parent, some in _folded(main, entries):
        listing = _add(parent, "ol", class_="mistakes")
        for one in some:
            item = _add(listing, "li")
            _add(item, "span", _count(len(one.names), "student"), f": {one.mistake}",
                 class_="count")
            _add(item, "br")
            more = f" and {len(one.names) - NAMES} more" if len(one.names) > NAMES else ""
            names = ", ".join(one.names[:NAMES])
            _add(item, "small", f"{one.number} {one.title} · {names}{more}", class_="soft")
            _bar(item, partly=len(one.names) / len(of.pupils))


def _tasks(main: Element, of: Class) -> None:
    key = _add(main, "p", class_="key")
    for kind, text in (("passed", "passed"), ("partly", "some points"),
                       ("failed", "tried, no points")):
        _add(_add(key, "span", after=" "), "i", "", f" {text}", class_=kind)
    _add(key, "span", "empty: not tried")
    body = _table(main, "stack tasks", "exercise", "passed", "most often failed")
    for i, task in enumerate(of.tasks):
        results = [pupil.results[i] for pupil in of.pupils]
        tried = [one for one in results if one.state not in UNTRIED]
        passed = sum(one.passed for one in tried)
        partly = sum(0 < one.points < one.of for one in tried)
        failed = len(tried) - passed - partly
        states = Counter(one.state for one in results
                         if one.state not in ("passed", "partly", "wrong"))
        others = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
        checks = Counter(part.title for one in tried for part in one.parts if part.points < part.of)
        row, n = _add(body, "tr"), len(results)
        cell = _add(row, "td", f"{task.number} {task.title}")
        _bar(cell, passed=passed / n, partly=partly / n, failed=failed / n)
        _add(cell, "small", f"{passed} passed, {partly} with some points, {failed} with none; "
                            f"{others or 'all tried it'}", class_="soft")
        _add(row, "td", f"{100 * passed / n:.0f} %")
        _add(row, "td", "".join(f"{title} ({m})" for title, m in checks.most_common(1)))


def _stuck(main: Element, of: Class) -> None:
    entries = stuck(of)
    if not entries:
        _add(main, "p", "Nobody who tried an exercise has less than half of its points.")
        return
    _add(main, "p", "They tried it, and have less than half of its points.", class_="soft")
    for parent, some in _folded(main, entries):
        body = _table(parent, "stack", "student", "exercise", "first message")
        for name, where in some:
            for i, (task, result) in enumerate(where):
                part = next(one for one in result.parts if one.points < one.of)
                message = "; ".join(result.mistakes) or " / ".join(part.lines)
                row = _add(body, "tr")
                for text in (name if i == 0 else "", f"{task.number} {task.title}", message[:200]):
                    _add(row, "td", text)


def _all(main: Element, of: Class) -> None:
    titles = {task.number: task.title for task in of.tasks}
    wide = _add(main, "div", class_="wide")
    body = _table(wide, "all", "student", *titles, "sum", titles=titles)
    for pupil in of.pupils:
        row = _add(body, "tr")
        _add(row, "td", pupil.name)
        for one in pupil.results:
            kind = "full" if one.passed else "" if one.points else "none"
            text = "–" if one.state in UNTRIED else str(one.points)
            _add(row, "td", text, class_=kind, title=one.state)
        _add(row, "td", str(pupil.points))
