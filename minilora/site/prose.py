"""Markdown, formulas and code as HTML that needs nothing but itself; headings have anchors, public
names and chapters are links.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Mapping
from functools import partial
from typing import Any

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from . import names

CHAPTERS = re.compile(r"\b[Cc]hapters?\s\d\d(?:(?:,|\sand|,\sand|\sto)\s\d\d)*")
ALIGNED = re.compile(r"^\s|\S {2,}\S")  # a docstring's line in which spaces have a meaning
FULL = 70  # letters of a docstring's line that has no room for another word
BARS = re.compile(r'<mo(?: fence="false")? stretchy="false">(&#x0007C;|&#x02016;)</mo>')
FUNCTIONS = re.compile(r"(<mi>(?:ln|log|exp|sin|cos|tanh|max|min)</mi>)(?=<(?!/|mo))")
WORD = r'<span class="n\w?">\w+</span>'
CHAIN = re.compile(  # not after a dot, and no keyword argument
    rf'(?<!<span class="o">\.</span>){WORD}(?:<span class="o">\.</span>{WORD})*'
    '(?!<span class="o">=</span>)'
)


class Prose:
    """Turns text into HTML, knowing what the text calls things.

    known: name in code -> full dotted name of the package   usual: the same, of names that prose
    uses besides   pages: chapter number -> its page
    """

    def __init__(
        self, known: Mapping[str, str], usual: Mapping[str, str], pages: Mapping[str, str]
    ) -> None:
        self.known, self.pages = known, pages
        self.told = {**usual, **known}
        self.anchors: set[str] = set()

    def markdown(self, text: str) -> str:
        """A markdown cell."""
        renderer = _Renderer(self)
        return str(MarkdownWithMath(renderer=renderer).render(text))

    def line(self, text: str) -> str:
        """One line of markdown, without a paragraph around it."""
        return self.markdown(text).strip().removeprefix("<p>").removesuffix("</p>")

    def code(self, source: str) -> str:
        """Python, highlighted; public names are links."""
        marked = highlight(source, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip("\n")
        return CHAIN.sub(lambda found: self._linked(found[0]), marked)

    def _linked(self, spans: str) -> str:
        chain = re.sub(r"<[^>]+>", "", spans)
        found = names.place(chain, self.known)
        if found is None:
            return spans
        ends = [at.end() for at in re.finditer(WORD, spans)]
        end = ends[found[0].count(".")]
        return f'<a href="{found[1]}">{spans[:end]}</a>{spans[end:]}'

    def name(self, text: str) -> str:
        """Code inside prose: a link if it is a public name, called or not."""
        inside = html.escape(text, quote=False)
        found = re.fullmatch(r"([A-Za-z_][\w.]*)(\(.*\))?", text)
        place = names.place(found[1], self.told) if found else None
        if place is None or (found and place[0] != found[1]):
            return f"<code>{inside}</code>"
        return f'<a href="{place[1]}"><code>{inside}</code></a>'

    def anchor(self, heading: str) -> str:
        """A name for a heading that no other has."""
        plain = html.unescape(re.sub(r"<annotation.*?</annotation>|<[^>]+>", "", heading))
        name = "-".join(re.findall(r"\w+", plain.lower())) or "section"
        while name in self.anchors:
            name += "-"
        self.anchors.add(name)
        return name


class _Renderer(IPythonRenderer):
    def __init__(self, prose: Prose) -> None:
        super().__init__(escape=False)
        self.prose = prose

    def heading(self, text: str, level: int, **_: Any) -> str:
        name = self.prose.anchor(text)
        plain = html.escape(html.unescape(re.sub("<[^>]+>", "", text)))
        return (
            f'<h{level} id="{name}">{text} <a class="anchor" href="#{name}" '
            f'aria-label="Link to {plain}">#</a></h{level}>\n'
        )

    def codespan(self, text: str) -> str:
        return self.prose.name(text)

    def block_code(self, code: str, info: str | None = None) -> str:
        inside = self.prose.code(code) if info == "python" else html.escape(code, quote=False)
        return f'<div class="input"><pre><code>{inside}</code></pre></div>\n'

    def paragraph(self, text: str) -> str:
        return str(super().paragraph(CHAPTERS.sub(self._chapters, text)))

    def block_text(self, text: str) -> str:
        return str(super().block_text(CHAPTERS.sub(self._chapters, text)))

    def _chapters(self, found: re.Match[str]) -> str:
        return re.sub(r"\d\d", lambda m: self._page(m[0]), found[0])

    def _page(self, number: str) -> str:
        page = self.prose.pages.get(number)
        return f'<a href="{page}">{number}</a>' if page else number

    def inline_math(self, body: str) -> str:
        return formula(body, "inline")

    def block_math(self, body: str) -> str:
        parts = re.split(r"\\q?quad", body)  # these may stand below each other where it is narrow
        if any(part.count("{") != part.count("}") or r"\begin" in part for part in parts):
            parts = [body]
        made = "".join(formula(part, "block") for part in parts)
        return f'<div class="formula">{made}</div>'


def formula(body: str, display: str) -> str:
    """LaTeX as MathML. Raises ValueError for what is no formula."""
    try:
        made = str(convert(" ".join(body.split()), display=display))
    except Exception as error:
        raise ValueError(f"the formula ${body.strip()}$ cannot be read ({error!r})") from error
    unknown = re.search(r"\\\w+", made)
    if unknown:
        raise ValueError(f"the formula ${body.strip()}$ cannot be read: {unknown[0]} is unknown")
    made = BARS.sub(r'<mo lspace="0" rspace="0" stretchy="false">\1</mo>', made)
    return FUNCTIONS.sub(r'\1<mspace width="0.167em" />', made)


def statement(text: str) -> str:
    """An exercise's statement as HTML: what is indented stays as it is laid out, the rest flows."""
    told = ""
    for block in re.findall(r"(?:^ +.*\n|^\n(?= ))+|(?:^\S.*\n)+", text.strip("\n") + "\n", re.M):
        safe = html.escape(textwrap.dedent(block).strip("\n"), quote=False)
        told += f"<pre>{safe}</pre>" if block.lstrip("\n").startswith(" ") else f"<p>{safe}</p>"
    return told


def docstring(prose: Prose, text: str) -> str:
    """A docstring as HTML: its paragraphs flow; what lines say of names, after a colon or a gap, is
    a list; other lines that align things with spaces stay lines.
    """
    mark = partial(re.compile(r"`([^`]+)`").sub, lambda m: prose.name(html.unescape(m[1])))
    parts: list[list[str]] = []
    laid_out = False
    for i, line in enumerate(text.splitlines()):
        before, laid_out = laid_out, i > 0 and bool(ALIGNED.search(line))
        last = parts[-1][-1] if parts and parts[-1] else ""
        broken = len(last) > FULL and last[-1] not in ".:" and not laid_out  # in mid-sentence
        if line and last and (broken or (i > 1 and before == laid_out)):
            parts[-1].append(line)
        else:
            parts.append([line] if line else [])
    told = ""
    for lines in filter(None, parts):
        safe = [html.escape(line, quote=False) for line in lines]
        aligned = len(lines) > 1 and all(map(ALIGNED.search, lines))
        pairs = _named(safe, r"(\w+) {2,}(.+)", "  ") if aligned else _named(safe, r"(\w+): (.+)")
        if not aligned and len(pairs) < 2:
            told += f"<p>{mark(' '.join(safe))}</p>"
        elif pairs:
            inside = "".join(f"<dt><code>{n}</code></dt><dd>{mark(t)}</dd>" for n, t in pairs)
            told += f"<dl>{inside}</dl>"
        else:
            told += "<pre>" + mark("\n".join(safe)) + "</pre>"
    return told


def _named(lines: list[str], pattern: str, on: str = "") -> list[list[str]]:
    """[name, what it is] of lines that begin so, or go on, indented by `on`; [] of others."""
    pairs: list[list[str]] = []
    for line in lines:
        found = re.fullmatch(pattern, line)
        if found:
            pairs.append([found[1], found[2]])
        elif pairs and line.startswith(on):
            pairs[-1][1] += " " + line.strip()
        else:
            return []
    return pairs
