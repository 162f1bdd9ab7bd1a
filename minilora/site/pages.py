"""A chapter with its outputs as the body of a page, and its figures as files."""

from __future__ import annotations

import ast
import base64
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters.ansi import ansi2html

from . import names
from .contents import Chapter
from .prose import Prose, lines

ASSETS = Path(__file__).parent / "assets"
SOURCE = re.compile(r'<pre><code class="language-python">(.*)</code></pre>', re.DOTALL)
HEADING = re.compile(r'<h2 id="([^"]+)">(.*?) <a [^>]*class="anchor"')
TITLE = re.compile(r"\A# .+\n")


class Page:
    """A chapter's HTML, and its files."""

    def __init__(self, chapter: Chapter, book: Any, pages: Mapping[str, str]) -> None:
        self.chapter = chapter
        self.files: dict[str, bytes] = {}
        own = names.bound(ast.parse(chapter.source))
        usual = {name: full for name, full in names.usual().items() if name not in own}
        self.prose = Prose(names.known_in(chapter.source), usual, pages)
        exporter = HTMLExporter(
            template_name="basic", raw_template=(ASSETS / "chapter.html.j2").read_text("utf-8"),
            filters={"markdown2html": self.prose.markdown, "highlight_code": self._code,
                     "figure": self._figure, "own_html": self._own_html, "lines": _printed},
        )
        try:
            self.body, _ = exporter.from_notebook_node(nbformat.from_dict(without_header(book)))
        except ValueError as error:
            raise ValueError(f"{chapter.path.name}: {error}") from error
        self.headings = HEADING.findall(self.body)

    def _code(self, source: str, **_: Any) -> str:
        """Return a cell's code as HTML, with at most one blank line in a row."""
        return self.prose.code(re.sub(r"\n{3,}", "\n\n", source.strip()))

    def _figure(self, output: Any) -> str:
        """Store the figure as a file, and return an image with alt text."""
        kind = "image/svg+xml" if "image/svg+xml" in output.data else "image/png"
        data, about = output.data[kind], output.metadata.get(kind, {})
        name = f"figures/{self.chapter.name}-{len(self.files) + 1}.{kind[6:9]}"
        self.files[name] = base64.b64decode(data) if kind == "image/png" else data.encode()
        settings = {"alt": about.get("alt") or output.data.get("text/plain", ""), **about}
        sizes = {way: settings[way] for way in ("width", "height") if way in settings}
        size = "".join(f' {way}="{pixels:.0f}"' for way, pixels in sizes.items())
        alt = html.escape(" ".join(settings["alt"].split()))
        smallest = f' data-smallest="{about["smallest"]:.2f}"' if "smallest" in about else ""
        image = f'<img src="{name}" alt="{alt}"{size}{smallest} loading="lazy">'
        return f'<figure><a href="{name}">{image}</a></figure>'

    def _own_html(self, inside: str) -> str:
        """Return an output that is HTML; source code is highlighted like a cell."""
        code = SOURCE.fullmatch(inside)
        if code:
            marked = self.prose.code(html.unescape(code[1]))
            group = '<div class="output" role="group" aria-label="Source">'
            return f"{group}<pre><code>{marked}</code></pre></div>"
        return f'<div class="live">{inside}</div>'


def _printed(text: str) -> str:
    """Return printed output as HTML, its colours too."""
    return lines("\n".join(map(ansi2html, text.rstrip("\n").split("\n"))))


def without_header(book: Any) -> Any:
    """Return the notebook without its title and header lines, which the page shows itself.

    Each heading starts a new cell, so that code is beside the text that it belongs to.
    """
    first, cells = book.cells[0], []
    paragraphs = re.split(r"\n\s*\n", TITLE.sub("", first.source))
    first.source = "\n\n".join(p for p in paragraphs if "*Time:*" not in p).strip()
    for cell in book.cells:
        parts = re.split(r"\n(?=## )", cell.source) if cell.cell_type == "markdown" else []
        cells += [
            {**cell, "source": part, "id": f"{cell.id}-{i}"} for i, part in enumerate(parts)
        ] or [cell]
    return {**book, "cells": cells}
