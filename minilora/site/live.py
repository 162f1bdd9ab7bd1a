"""The page "Try it": a chapter and two exercises that run in the reader's browser.

assets/try.js is the page's script. assets/try-worker.js runs Pyodide in a worker, which the page
ends to stop a cell, and cells.py is what runs there.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any

from ..exercises.book import exercise
from . import pages, pyodide
from .cells import without_statement
from .contents import Chapter, chapter, notebook
from .prose import Prose
from .wheel import wheel

PAGE = "try.html"
CHAPTER, EXERCISES = "00", ("02", "06")
PYTHON = 16  # MB of Pyodide with NumPy
SCRIPTS = ("try.js", "try-worker.js")
COMMANDS = re.compile(r"python tutorials/|MINILORA_FAST")  # a paragraph on how to run a script


def facts(place: str, links: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what the page's template shows, and the other files that the page needs.

    place: Pyodide's address or folder. links: chapter number -> its page.
    """
    address, files = pyodide.at(place)
    name, data = wheel()
    files |= {f"get/{name}": data}
    files |= {name: (pages.ASSETS / name).read_bytes() for name in SCRIPTS}
    return {
        "lesson": chapter(CHAPTER), "rows": _rows(chapter(CHAPTER), links),
        "exercises": [exercise(number) for number in EXERCISES], "bare": without_statement,
        "full": links.get(CHAPTER), "pyodide": address,
        "wheel": f"get/{name}?{zlib.crc32(data):08x}",  # no wheel of an earlier site is reused
        "megabytes": PYTHON + round(len(data) / 1e6),
    }, files


def _rows(of: Chapter, links: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Return the chapter's rows: text as HTML, and the code of the cells beside it."""
    prose = Prose({}, {}, links)
    rows: list[tuple[str, list[str]]] = []
    for cell in pages.without_header(notebook(of.source))["cells"]:
        if cell["cell_type"] == "code":
            rows[-1][1].append(cell["source"])
            continue
        paragraphs = re.split(r"\n\s*\n", cell["source"])
        text = "\n\n".join(p for p in paragraphs if not COMMANDS.search(p))
        rows.append((prose.markdown(text), []))
    return rows
