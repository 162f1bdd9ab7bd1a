"""Markdown, formulas and code as static HTML, with links to headings, public names and chapters."""

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
ALIGNED = re.compile(r"^\s|\S {2,}\S")  # a docstring's line that is aligned with spaces
FULL = 70  # letters of a docstring's line that is full
BARS = re.compile(r'<mo(?: fence="false")? stretchy="false">(&#x0007C;|&#x02016;)</mo>')
FUNCTIONS = re.compile(r"(<mi>(?:ln|log|exp|sin|cos|tanh|max|min)</mi>)(?=<(?!/|mo))")
CODE = re.compile(r"`([^`]+)`")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
WORD = r'<span class="n\w?">\w+</span>'
CHAIN = re.compile(  # not after a dot, and no keyword argument
    rf'(?<!<span class="o">\.</span>){WORD}(?:<span class="o">\.</span>{WORD})*'
    '(?!<span class="o">=</span>)'
)


class Prose:
    """Renders text as HTML, with links.

    known: name in code -> full dotted name   usual: further names in prose -> full dotted name
    pages: chapter number -> its page
    """

    def __init__(
        self, known: Mapping[str, str], usual: Mapping[str, str], pages: Mapping[str, str]
    ) -> None:
        self.known, self.pages = known, pages
        self.in_prose = {**usual, **known}
        self.anchors: set[str] = set()

    def markdown(self, text: str) -> str:
        """Return a markdown cell as HTML."""
        renderer = _Renderer(self)
        return str(MarkdownWithMath(renderer=renderer).render(text))

    def line(self, text: str) -> str:
        """Return one line of markdown as HTML, without a paragraph."""
        return self.markdown(text).strip().removeprefix("<p>").removesuffix("</p>")

    def code(self, source: str) -> str:
        """Return highlighted Python, with links at public names, line by line."""
        marked = highlight(source, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip("\n")
        return lines(CHAIN.sub(lambda match: self._linked(match[0]), marked))

    def _linked(self, spans: str) -> str:
        chain = re.sub(r"<[^>]+>", "", spans)
        place = names.place(chain, self.known)
        if place is None:
            return spans
        ends = [at.end() for at in re.finditer(WORD, spans)]
        end = ends[place[0].count(".")]
        return f'<a href="{place[1]}">{spans[:end]}</a>{spans[end:]}'

    def name(self, text: str) -> str:
        """Return code in prose as HTML: a link if it is a public name or a call of one."""
        inside = html.escape(text, quote=False)
        match = re.fullmatch(r"([A-Za-z_][\w.]*)(\(.*\))?", text)
        place = names.place(match[1], self.in_prose) if match else None
        if place is None or (match and place[0] != match[1]):
            return f"<code>{inside}</code>"
        return f'<a href="{place[1]}"><code>{inside}</code></a>'

    def anchor(self, heading: str) -> str:
        """Return a unique anchor for a heading."""
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
        plain = html.escape(code.rstrip("\n"), quote=False)
        inside = self.prose.code(code) if info == "python" else lines(plain)
        return f'<div class="input"><pre><code>{inside}</code></pre></div>\n'

    def paragraph(self, text: str) -> str:
        return str(super().paragraph(CHAPTERS.sub(self._chapters, text)))

    def block_text(self, text: str) -> str:
        return str(super().block_text(CHAPTERS.sub(self._chapters, text)))

    def _chapters(self, match: re.Match[str]) -> str:
        return re.sub(r"\d\d", lambda m: self._page(m[0]), match[0])

    def _page(self, number: str) -> str:
        page = self.prose.pages.get(number)
        return f'<a href="{page}">{number}</a>' if page else number

    def inline_math(self, body: str) -> str:
        return formula(body, "inline")

    def block_math(self, body: str) -> str:
        parts = re.split(r"\\q?quad", body)  # separate formulas, so that a narrow page can wrap
        if any(part.count("{") != part.count("}") or r"\begin" in part for part in parts):
            parts = [body]
        formulas = "".join(formula(part, "block") for part in parts)
        return f'<div class="formula">{formulas}</div>'


def formula(body: str, display: str) -> str:
    """Return LaTeX as MathML. Raises ValueError for invalid LaTeX."""
    try:
        mathml = str(convert(" ".join(body.split()), display=display))
    except Exception as error:
        raise ValueError(f"the formula ${body.strip()}$ cannot be read ({error!r})") from error
    unknown = re.search(r"\\\w+", mathml)
    if unknown:
        raise ValueError(f"the formula ${body.strip()}$ cannot be read: {unknown[0]} is unknown")
    mathml = BARS.sub(r'<mo lspace="0" rspace="0" stretchy="false">\1</mo>', mathml)
    return FUNCTIONS.sub(r'\1<mspace width="0.167em" />', mathml)


def lines(marked: str) -> str:
    """Return the lines of code or output (HTML) as elements: a long one wraps, with an indent.

    A control character, which has no letter, is written as its escape.
    """
    result = []
    for line in marked.split("\n"):
        plain = html.unescape(re.sub(r"<[^>]+>", "", line))
        indent = min(16, len(plain) - len(plain.lstrip()) + 2)
        shown = CONTROL.sub(lambda match: ascii(match[0])[1:-1], line)
        result.append(f'<span class="line" style="--in:{indent}ch">{shown}\n</span>')
    return "".join(result)


def statement(text: str) -> str:
    """Return an exercise's statement as HTML: indented blocks keep their lines, others wrap."""
    result = ""
    for block in re.findall(r"(?:^ +.*\n|^\n(?= ))+|(?:^\S.*\n)+", text.strip("\n") + "\n", re.M):
        safe = html.escape(textwrap.dedent(block).strip("\n"), quote=False)
        safe = CODE.sub(r"<code>\1</code>", safe)
        laid_out = block.lstrip("\n").startswith(" ")
        result += f"<pre>{lines(safe)}</pre>" if laid_out else f"<p>{safe}</p>"
    return result


def docstring(prose: Prose, text: str) -> str:
    """Return a docstring as HTML: paragraphs wrap, lines "name: text" or "name   text" become a
    list, and other lines aligned with spaces stay lines.
    """
    mark = partial(CODE.sub, lambda m: prose.name(html.unescape(m[1])))
    parts: list[list[str]] = []
    laid_out = False
    for i, line in enumerate(text.splitlines()):
        before, laid_out = laid_out, i > 0 and bool(ALIGNED.search(line))
        last = parts[-1][-1] if parts and parts[-1] else ""
        broken = len(last) > FULL and last[-1] not in ".:" and not laid_out  # the sentence goes on
        if line and last and (broken or (i > 1 and before == laid_out)):
            parts[-1].append(line)
        else:
            parts.append([line] if line else [])
    result = ""
    for part in filter(None, parts):
        safe = [html.escape(line, quote=False) for line in part]
        aligned = len(part) > 1 and all(map(ALIGNED.search, part))
        pairs = _named(safe, r"(\w+) {2,}(.+)", "  ") if aligned else _named(safe, r"(\w+): (.+)")
        if not aligned and len(pairs) < 2:
            result += f"<p>{mark(' '.join(safe))}</p>"
        elif pairs:
            inside = "".join(f"<dt><code>{n}</code></dt><dd>{mark(t)}</dd>" for n, t in pairs)
            result += f"<dl>{inside}</dl>"
        else:
            marked = mark("\n".join(safe))
            result += f"<pre>{lines(marked)}</pre>"
    return result


def _named(lines: list[str], pattern: str, indent: str = "") -> list[list[str]]:
    """Return [name, text] of lines that match, with continuation lines; [] for other lines."""
    pairs: list[list[str]] = []
    for line in lines:
        match = re.fullmatch(pattern, line)
        if match:
            pairs.append([match[1], match[2]])
        elif pairs and line.startswith(indent):
            pairs[-1][1] += " " + line.strip()
        else:
            return []
    return pairs
