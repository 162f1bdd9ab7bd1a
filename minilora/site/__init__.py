"""The tutorials: a list, as notebooks, and as a static site.

contents.py finds the chapters and reads their headers. execution.py runs them, and cache.py stores
the results. prose.py renders text and code as HTML, pages.py a chapter, names.py the public names;
cover.py computes the cover's figures, report.py the page of results,
library.py the one about array libraries. publish.py makes all pages,
words.py the search index, and folder.py writes the site. assets/ has the templates, the style
sheet and the script.

The chapters are in `tutorials/` beside the package (a checkout, an editable installation), or in
`minilora/tutorials/` (a wheel).
"""

from .contents import Chapter, chapter, chapters, notebook, notebook_text
from .publish import build

__all__ = ["Chapter", "build", "chapter", "chapters", "notebook", "notebook_text"]
