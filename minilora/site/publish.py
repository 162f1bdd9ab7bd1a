"""Build the site: make all files in memory, then write them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import __version__
from ..words import INSTALL
from . import folder, pyodide
from .contents import Chapter, chapters, notebook_text

ASSETS = Path(__file__).parent / "assets"
NEEDS = ("jupytext", "nbclient", "nbconvert", "ipykernel", "latex2mathml", "matplotlib",
         "hypothesis")
START = 4  # the first rank on the cover
LARGEST = "gpt3-175b"  # the model whose numbers the cover counts, with the paper's r = 4 on q and v
HALF = 2  # bytes of a number in float16


def need(*names: str) -> None:
    """Raise ImportError, with the remedy, if one of these packages (none: NEEDS) is missing."""
    missing = [name for name in names or NEEDS if find_spec(name) is None]
    if missing:
        raise ImportError(f"this needs {', '.join(missing)}: {INSTALL('tutorials')}")


def build(
    out: Path, say: Callable[[str], None] = print, of: Sequence[Chapter] | None = None,
    live: str | None = None,
) -> dict[str, Any]:
    """Write the site of these chapters (None: all) to the folder `out`; return its size.

    An old site is replaced only after all pages are made.
    live: Pyodide's address, or a folder with it: the site gets a page that runs Python.

    Raises ImportError if a package is missing, ValueError if `out` cannot be written or a chapter
    cannot be read, RuntimeError if a chapter fails.
    """
    began = time.monotonic()
    need()
    folder.check(out)
    if live is not None:
        pyodide.check(live)
    with _home():
        files = _files([*(chapters() if of is None else of)], say, live)
    folder.write(out, files)
    size = sum(map(len, files.values()))
    took = time.monotonic() - began
    say(f"{out}: {len(files)} files, {size / 1024:,.0f} KB, in {took:.1f} s")
    return {"site": str(out), "files": len(files), "bytes": size, "seconds": took}


@contextlib.contextmanager
def _home() -> Iterator[None]:
    """Give a temporary home to a user without one: Jupyter needs it."""
    if os.path.expanduser("~") != "~":
        yield
        return
    before = os.environ.get("HOME")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            del os.environ["HOME"]
            os.environ |= {"HOME": before} if before is not None else {}


def _files(
    chapters: Sequence[Chapter], say: Callable[[str], None], live_at: str | None
) -> dict[str, bytes]:
    """Return all files of the site, name -> bytes."""
    import jinja2

    from ..exercises.book import exercises
    from ..experiments import html
    from . import korean, library, live, names, pages, prose
    from .cover import cover
    from .execution import executed
    from .report import report
    from .words import words

    books = executed(chapters, say)
    data, measured = cover(say), report(say)
    links = {chapter.number: f"{chapter.name}.html" for chapter in chapters}
    plain = prose.Prose({}, names.usual(), links)
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(ASSETS), autoescape=True)
    templates.globals["live"] = None if live_at is None else live
    templates.filters["doc"] = lambda text: _html(prose.docstring(plain, text))
    templates.filters["chapters"] = lambda text: _html(plain.line(text))
    templates.filters["statement"] = lambda text: _html(prose.statement(text))
    templates.filters["parameters"] = names.parameters
    templates.filters["badge"] = lambda verdict: _html(html.badge(verdict))
    templates.filters["code"] = lambda text: _html(plain.code(text))

    def page(template: str, **settings: Any) -> bytes:
        text: str = templates.get_template(template).render(version=__version__, **settings)
        return text.encode()

    tasks = exercises()
    used: dict[str, list[tuple[str, str]]] = {}  # name on the API page -> chapters that use it
    facts = {chapter.number: _facts(chapter, plain) for chapter in chapters}
    files = {
        f"figures/cover-{name}.png": base64.b64decode(png) for name, png in data["pictures"].items()
    }
    for i, (chapter, book) in enumerate(zip(chapters, books)):
        lesson = pages.Page(chapter, book, links)
        heading = f"{chapter.number}. {chapter.title}"
        files[f"{chapter.name}.html"] = page(
            "lesson.html.j2", kind="chapter", title=f"{heading} - minilora",
            description=chapter.can, heading=heading, facts=facts[chapter.number],
            name=chapter.name, body=_html(lesson.body),
            headings=[(anchor, _html(text)) for anchor, text in lesson.headings],
            tasks=[task for task in tasks if task.chapter == chapter.number],
            before=chapters[i - 1] if i else None,
            after=chapters[i + 1] if i + 1 < len(chapters) else None,
        )
        files |= lesson.files
        for anchor in dict.fromkeys(re.findall(rf'href="{names.PAGE}#([^"]+)"', lesson.body)):
            used.setdefault(anchor, []).append((links[chapter.number], chapter.number))
        files[f"get/{chapter.name}.py"] = chapter.source.encode()
        files[f"get/{chapter.name}.ipynb"] = notebook_text(chapter).encode()
    ranks = [_rank(data, r) for r in range(1, len(data["losses"]) + 1)]
    counted = _counted()
    files["index.html"] = page(
        "cover.html.j2", kind="index", title="minilora: LoRA on NumPy", c=data, start=START,
        description="LoRA in one screen, and chapters that build it on NumPy", ranks=ranks,
        ranks_json=_html(json.dumps(ranks)), math=lambda body: _html(prose.formula(body, "inline")),
        measured=measured, chapters=[*facts.values()], first=chapters[0] if chapters else None,
        counted=counted,
    )
    files["ko.html"] = page(
        "ko.html.j2", kind="ko", lang="ko", title="LoRA: 요약과 검증 - minilora",
        description="LoRA 논문의 요약, 항목마다 명령과 판정", counted=counted, html=_html,
        headings=korean.headings(measured["pages"]), verdicts=measured["verdicts"],
    )
    files["api.html"] = page(
        "api.html.j2", kind="api", title="API - minilora",
        description="Every public name of minilora", sections=names.sections(), used=used,
    )
    files["library.html"] = page(
        "report.html.j2", kind="library", title="Bring an array library - minilora",
        description="The class to write for an array library, hook by hook",
        body=_html(library.body(prose.Prose({}, names.usual(), links))),
    )
    files["report.html"] = page(
        "report.html.j2", kind="report", title=f"{html.TITLE} - minilora", description=html.ABOUT,
        body=_html(measured["body"]),
    )
    files |= {f"figures/report-{name}": base64.b64decode(png)
              for name, png in measured["pictures"].items()}
    files["exercises.html"] = page(
        "exercises.html.j2", kind="exercises", title="Exercises - minilora", links=links,
        description="Functions to write, each checked by properties", exercises=tasks,
        install=INSTALL("exercises").partition(" in "),
    )
    files |= {f"get/{task.name}": task.stub().encode() for task in tasks}
    if live_at is not None:
        shown, more = live.facts(live_at, links)
        files |= more
        files[live.PAGE] = page(
            "try.html.j2", kind="try", title="Try it - minilora",
            description="A chapter and two exercises, run in your browser", **shown)
    for name in ("site.js", "icon.svg"):
        files[name] = (ASSETS / name).read_bytes()
    files["style.css"] = html.style().encode() + (ASSETS / "style.css").read_bytes()
    entries = [
        entry for name in files if name.endswith(".html") and name != live.PAGE
        for entry in words(name, files[name])
    ]
    files["search.js"] = f"SEARCH = {json.dumps(entries, ensure_ascii=False)}\n".encode()
    return files


def _html(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _facts(chapter: Chapter, prose: Any) -> dict[str, Any]:
    """Return the fields of a chapter's header as HTML."""
    return {
        "name": chapter.name, "number": chapter.number, "title": chapter.title,
        "time": chapter.time,
        "can": _html(prose.line(chapter.can)), "needs": _html(prose.line(chapter.needs)),
        "remember": _html(prose.line(chapter.remember[:1].upper() + chapter.remember[1:])),
    }


def _counted() -> dict[str, str]:
    """Return what LoRA trains and saves of the largest model, and what full fine-tuning does."""
    from ..methods import Full, LoRA
    from ..models.families import SHAPES

    few, all_of_them = (method.count(SHAPES[LARGEST]) for method in (LoRA(r=4), Full()))
    return {
        "few": f"{few:,}", "all": f"{all_of_them:,}", "ratio": f"{all_of_them / few:,.0f}",
        "file": f"{HALF * few / 1e6:,.0f} MB", "model": f"{HALF * all_of_them / 1e9:,.0f} GB",
    }


def _rank(data: dict[str, Any], r: int) -> str:
    """Return the cover's sentence about a rank."""
    (d, k), loss = data["shape"], data["losses"][r - 1]
    gained = (data["before"] - loss) / (data["before"] - data["after"])
    return (
        f"{r * (d + k):,} numbers instead of {d * k:,}. The norm of the error is "
        f"{data['left'][r - 1]:.0%} of the norm of the update. The loss is {loss:.2f}: "
        f"{gained:.0%} of the way from {data['before']:.2f} (no update) to {data['after']:.2f} "
        "(full update)."
    )
