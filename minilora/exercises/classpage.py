"""A class's results as one page that needs nothing else: what to look at before the next lecture.

First the mistakes, as they are what a lecture can mend; then the exercises, who is stuck, and all.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .. import __version__
from ..site.publish import ASSETS
from .grading import Class, Result, Task
from .submissions import plain

UNTRIED = ("absent", "not begun")
STUCK = 0.5  # of an exercise's points: who tried and has less is stuck
NAMES = 6  # of students, told with a mistake
SHOWN = 12  # mistakes, and students who are stuck; the rest is folded

PARTS = {
    "mistakes": "Which mistakes were made", "exercises": "How each exercise went",
    "stuck": "Who is stuck", "all": "Everybody",
}

STYLE = """
main { max-width: 60rem; }
main h2 { margin-top: 2.5rem; }
table { width: 100%; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
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
.wide { overflow-x: auto; } .wide td:first-child, .wide th:first-child { min-width: 9rem; }
@media (max-width: 40rem) {
  .stack thead { display: none; } .stack td { display: block; border: 0; padding: 0; }
  .stack, .stack tbody { display: block; }
  .stack td.n { text-align: left; } .stack td.n::before { content: "passed: "; }
  .stack tr { display: block; padding: .6rem 0; border-bottom: 1px solid var(--line); }
  .stack td:first-child { font-weight: 600; } .stack small { font-weight: 400; }
  .stack .name:empty { display: none; }
}
td.full { color: var(--B); font-weight: 600; } td.none { color: var(--soft); }
"""


@dataclass(frozen=True)
class Made:
    """A mistake, where it was made, and who made it."""

    number: str
    title: str
    mistake: str
    names: tuple[str, ...]


def mistakes(of: Class) -> list[Made]:
    """The known mistakes that the class made, the most frequent first."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for pupil in of.pupils:
        for task, result in zip(of.tasks, pupil.results):
            for mistake in result.mistakes:
                found.setdefault((task.number, task.title, mistake), []).append(pupil.name)
    made = [Made(*key, tuple(names)) for key, names in found.items()]
    return sorted(made, key=lambda one: (-len(one.names), one.number, one.mistake))


def stuck(of: Class) -> list[tuple[str, list[tuple[Task, Result]]]]:
    """Who tried an exercise and has less than half of its points; the most such first."""
    found = []
    for pupil in of.pupils:
        where = [
            (task, result) for task, result in zip(of.tasks, pupil.results)
            if result.state not in UNTRIED and result.points < STUCK * result.of
        ]
        if where:
            found.append((pupil.name, where))
    return sorted(found, key=lambda one: -len(one[1]))


def page(of: Class) -> bytes:
    """The page, as bytes of HTML."""
    style = (ASSETS / "style.css").read_text("utf-8") + STYLE
    body = "\n".join([*_head(of), *_mistakes(of), *_tasks(of), *_stuck(of), *_all(of)])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>The class</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<main id="main">\n{body}\n</main>\n'
        f"<footer><p>minilora {__version__}, seed {of.seed}.</p></footer>\n</body>\n</html>\n"
    ).encode()


def _text(words: str) -> str:
    return html.escape(plain(words))


def _count(n: int, one: str, more: str) -> str:
    return f"{n} {one if n == 1 else more}"


def _heading(part: str) -> str:
    return f'<h2 id="{part}">{PARTS[part]}</h2>'


def _folded(rows: Sequence[str], before: str, after: str) -> Iterator[str]:
    """The first rows, and a fold with the rest of them."""
    yield from (before, *rows[:SHOWN], after)
    if rest := rows[SHOWN:]:
        yield f"<details><summary>{len(rest)} more</summary>"
        yield from (before, *rest, after, "</details>")


def _head(of: Class) -> Iterator[str]:
    mean = sum(pupil.points for pupil in of.pupils) / len(of.pupils)
    yield "<h1>The class</h1>"
    yield (
        f"<p>{_count(len(of.pupils), 'student', 'students')}, "
        f"{_count(len(of.tasks), 'exercise', 'exercises')}, {mean:.1f} of {of.of} points on "
        "average.</p>"
    )
    if of.left_out:
        yield f'<p class="soft">No submissions: {_text(", ".join(of.left_out))}.</p>'
    links = " · ".join(f'<a href="#{part}">{title}</a>' for part, title in PARTS.items())
    yield f"<nav><p>{links}</p></nav>"


def _mistakes(of: Class) -> Iterator[str]:
    yield _heading("mistakes")
    made = mistakes(of)
    if not made:
        yield "<p>None that the exercises know by name.</p>"
        return
    rows = []
    for one in made:
        names = ", ".join(map(_text, one.names[:NAMES]))
        more = f" and {len(one.names) - NAMES} more" if len(one.names) > NAMES else ""
        share = 100 * len(one.names) / len(of.pupils)
        rows.append(
            f'<li><span class="count">{_count(len(one.names), "student", "students")}</span>: '
            f"{_text(one.mistake)}<br>"
            f'<small class="soft">{one.number} {_text(one.title)} · {names}{more}</small>'
            f'<div class="bar" aria-hidden="true"><i class="partly" style="width:{share:.1f}%">'
            "</i></div></li>"
        )
    yield from _folded(rows, '<ol class="mistakes">', "</ol>")


def _tasks(of: Class) -> Iterator[str]:
    yield _heading("exercises")
    yield (
        '<p class="key"><span><i class="passed"></i> passed</span> <span><i class="partly"></i> '
        'some points</span> <span><i class="failed"></i> tried, no points</span> '
        "<span>empty: not tried</span></p>"
    )
    yield '<table class="stack"><thead><tr><th>exercise</th>'
    yield '<th class="n">passed</th><th>most often failed</th>'
    yield "</tr></thead><tbody>"
    for i, task in enumerate(of.tasks):
        results = [pupil.results[i] for pupil in of.pupils]
        tried = [one for one in results if one.state not in UNTRIED]
        passed = sum(one.passed for one in tried)
        partly = sum(0 < one.points < one.of for one in tried)
        bars = zip(("passed", "partly", "failed"), (passed, partly, len(tried) - passed - partly))
        bar = "".join(
            f'<i class="{kind}" style="width:{100 * n / len(results):.1f}%"></i>'
            for kind, n in bars
        )
        other = Counter(one.state for one in results) - Counter(("passed", "partly", "wrong"))
        states = ", ".join(
            f"{n} {kind}" for kind, n in sorted(other.items())
            if kind not in ("passed", "partly", "wrong")
        )
        failed = Counter(
            part.title for one in tried for part in one.parts if part.points < part.of
        ).most_common(1)
        often = f"{_text(failed[0][0])} ({failed[0][1]})" if failed else ""
        yield (
            f'<tr><td>{task.number} {_text(task.title)}<div class="bar" aria-hidden="true">{bar}'
            f'</div><small class="soft">{passed} passed, {partly} with some points, '
            f"{len(tried) - passed - partly} with none; {states or 'all tried it'}</small></td>"
            f'<td class="n">{100 * passed / len(results):.0f} %</td><td>{often}</td></tr>'
        )
    yield "</tbody></table>"


def _stuck(of: Class) -> Iterator[str]:
    yield _heading("stuck")
    found = stuck(of)
    if not found:
        yield "<p>Nobody who tried an exercise has less than half of its points.</p>"
        return
    yield '<p class="soft">Tried it, and has less than half of its points.</p>'
    rows = []
    for name, where in found:
        row = ""
        for i, (task, result) in enumerate(where):
            part = next(one for one in result.parts if one.points < one.of)
            said = "; ".join(result.mistakes) or " / ".join(part.lines)
            row += (
                f"<tr><td class='name'>{_text(name) if i == 0 else ''}</td><td>{task.number} "
                f"{_text(task.title)}</td><td>{_text(said[:200])}</td></tr>"
            )
        rows.append(row)
    yield from _folded(
        rows,
        "<table class='stack'><thead><tr><th>student</th><th>exercise</th><th>first message</th>"
        "</tr></thead><tbody>",
        "</tbody></table>",
    )


def _all(of: Class) -> Iterator[str]:
    yield _heading("all")
    heads = "".join(
        f'<th class="n" title="{_text(task.title)}">{task.number}</th>' for task in of.tasks
    )
    yield f'<div class="wide"><table><thead><tr><th>student</th>{heads}<th class="n">sum</th>'
    yield "</tr></thead><tbody>"
    for pupil in of.pupils:
        cells = "".join(
            f'<td class="n {"full" if one.passed else "" if one.points else "none"}" '
            f'title="{_text(one.state)}">'
            f"{'–' if one.state in UNTRIED else one.points}</td>"
            for one in pupil.results
        )
        yield f'<tr><td>{_text(pupil.name)}</td>{cells}<td class="n">{pupil.points}</td></tr>'
    yield "</tbody></table></div>"
