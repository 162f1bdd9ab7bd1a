"""The chapters: their folder, their headers, and a chapter as a notebook."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent
HEADER = {  # the fields of a header: words in italics and the text after them
    "can": r"\*The reader can then:\*(.+)",
    "time": r"\*Time:\*(.+?)\.\s*\*Needs:",
    "needs": r"\*Needs:\*(.+)",
    "remember": r"\*Remember:\*(.+)",
}


@dataclass(frozen=True)
class Chapter:
    """A chapter's file and header."""

    path: Path
    number: str  # "07"
    title: str
    can: str  # what the reader can do afterwards
    time: str  # "20 minutes"
    needs: str
    remember: str

    @property
    def name(self) -> str:
        """The file's name without the suffix: "07_lora_layer"."""
        return self.path.stem

    @property
    def source(self) -> str:
        """The text of the script."""
        return self.path.read_text("utf-8")


def folder() -> Path:
    """Return the folder of the chapters: in the installed package, or beside it in a checkout.

    Raises ValueError if there are none.
    """
    for place in (PACKAGE / "tutorials", PACKAGE.parent / "tutorials"):
        if any(place.glob("[0-9][0-9]_*.py")):
            return place
    raise ValueError(
        f"no tutorials in {PACKAGE} or beside it: install minilora from its wheel, or use a "
        "checkout"
    )


def chapters(of: Path | None = None) -> list[Chapter]:
    """Return the chapters of a folder (None: the built-in ones), in order."""
    return [read(path) for path in sorted((of or folder()).glob("[0-9][0-9]_*.py"))]


def chapter(which: str) -> Chapter:
    """Return the built-in chapter "07", "7" or "07_lora_layer". Raises ValueError if unknown."""
    paths = sorted(folder().glob("[0-9][0-9]_*.py"))
    for path in paths:
        if which.zfill(2) in (path.stem, path.stem[:2]):
            return read(path)
    numbers = ", ".join(path.stem[:2] for path in paths)
    raise ValueError(f"unknown chapter {which or repr(which)}: choose {numbers}")


def read(path: Path) -> Chapter:
    """Read a chapter's header. Raises ValueError if one of its lines is missing."""
    text = prose(path.read_text("utf-8").partition("# %% [markdown]\n")[2].partition("\n# %%")[0])
    title = re.match(r"# (\d\d)\. (.+)", text)
    if not title or title[1] != path.stem[:2]:
        raise ValueError(f"{path.name}: its first line must be the title, '# {path.stem[:2]}. ...'")
    fields = {}
    for key, pattern in HEADER.items():
        match = re.search(pattern, text)
        if not match:
            words = pattern[2 : pattern.index(":")]
            raise ValueError(f"{path.name}: its header has no line that begins '*{words}:*'")
        fields[key] = match[1].strip()
    return Chapter(path, title[1], title[2], **fields)


def prose(cell: str) -> str:
    """Return a markdown cell without comment signs, each paragraph on one line."""
    text = re.sub(r"^# ?", "", cell, flags=re.MULTILINE)
    return re.sub(r"(?<=\S)\n(?![\n*#])", " ", text)


def notebook(source: str) -> Any:
    """Return a chapter's source as a notebook without outputs, for any Python kernel."""
    import jupytext

    book = jupytext.reads(source, fmt="py:percent")
    book.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    for i, cell in enumerate(book.cells):
        cell.id = f"cell-{i}"  # jupytext's ids are random; these are reproducible
    return book


def notebook_text(chapter: Chapter) -> str:
    """Return a chapter as the text of an .ipynb file."""
    import nbformat

    return str(nbformat.writes(notebook(chapter.source))) + "\n"
