"""The tutorials: which there are, as notebooks, and as a site that needs no server.

contents.py finds them and reads their headers. running.py executes them, and kept.py keeps what
they showed. prose.py turns text and code into HTML, pages.py a whole chapter, names.py the
docstrings; cover.py computes what rank is worth. publish.py makes all pages, words.py the index to
search in, and folder.py puts them in place. assets/ has the templates, the style and the script.

Where the chapters are: `tutorials/` beside the package, in a checkout and in an editable
installation; in a wheel they are packaged as `minilora/tutorials/` (pyproject.toml says so).
"""

from .contents import Chapter, chapter, chapters, notebook, notebook_text
from .publish import build

__all__ = ["Chapter", "build", "chapter", "chapters", "notebook", "notebook_text"]
