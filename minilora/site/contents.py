"""The chapters: where they are, what their headers say, and one as a notebook."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent
HEADER = {  # what a header says, and how: the words in italics, and what follows them
    "can": r"\*The reader can then:\*(.+)",
    "time": r"\*Time:\*(.+?)\.\s*\*Needs:",
    "needs": r"\*Needs:\*(.+)",
    "remember": r"\*Remember:\*(.+)",
}


@dataclass(frozen=True)
class Chapter:
    """A chapter's file, and what its header says."""

    path: Path
    number: str  # "07"
    title: str
    can: str  # what the reader can do then
    time: str  # "20 minutes"
    needs: str
    remember: str

    @property
    def name(self) -> str:
        """Its file's name without the suffix: "07_lora_layer"."""
        return self.path.stem

    @property
    def source(self) -> str:
        """The whole script."""
        return self.path.read_text("utf-8")


def folder() -> Path:
    """Where the chapters are: in the package as installed, or beside it in a checkout."""
    for place in (PACKAGE / "tutorials", PACKAGE.parent / "tutorials"):
        if any(place.glob("[0-9][0-9]_*.py")):
            return place
    raise ValueError(
        f"there are no tutorials in {PACKAGE} nor beside it: install minilora from its wheel, or "
        "work in a checkout"
    )


def chapters(of: Path | None = None) -> list[Chapter]:
    """All that are in a folder (None: the built-in ones), in order."""
    return [read(path) for path in sorted((of or folder()).glob("[0-9][0-9]_*.py"))]


def chapter(which: str) -> Chapter:
    """The built-in one of this number or name: "07", "7" or "07_lora_layer"."""
    paths = sorted(folder().glob("[0-9][0-9]_*.py"))
    for path in paths:
        if which.zfill(2) in (path.stem, path.stem[:2]):
            return read(path)
    there = ", ".join(path.stem[:2] for path in paths)
    raise ValueError(f"there is no chapter {which or repr(which)}: there are {there}")


def read(path: Path) -> Chapter:
    """A chapter's header. Raises ValueError where one of its lines is missing."""
    text = prose(path.read_text("utf-8").partition("# %% [markdown]\n")[2].partition("\n# %%")[0])
    title = re.match(r"# (\d\d)\. (.+)", text)
    if not title or title[1] != path.stem[:2]:
        raise ValueError(f"{path.name}: its first line must be the title, '# {path.stem[:2]}. ...'")
    told = {}
    for key, pattern in HEADER.items():
        found = re.search(pattern, text)
        if not found:
            words = pattern[2 : pattern.index(":")]
            raise ValueError(f"{path.name}: its header has no line that begins '*{words}:*'")
        told[key] = found[1].strip()
    return Chapter(path, title[1], title[2], **told)


def prose(cell: str) -> str:
    """A markdown cell without its comment signs, the paragraphs of its header on one line each."""
    text = re.sub(r"^# ?", "", cell, flags=re.MULTILINE)
    return re.sub(r"(?<=\S)\n(?![\n*#])", " ", text)


def notebook(source: str) -> Any:
    """A chapter's source as a notebook that has not run yet, for any Python kernel."""
    import jupytext

    book = jupytext.reads(source, fmt="py:percent")
    book.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    for i, cell in enumerate(book.cells):
        cell.id = f"cell-{i}"  # jupytext draws them by chance: the same chapter is the same file
    return book


def notebook_text(chapter: Chapter) -> str:
    """The .ipynb of a chapter."""
    import nbformat

    return str(nbformat.writes(notebook(chapter.source))) + "\n"
