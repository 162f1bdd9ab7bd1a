"""Docstrings that are shown: in the command line's help, a check's title, the page of the API."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from typing import Any


def docstring(thing: Any) -> str:
    """Return the docstring of a function or class, or "". Under `python -OO` it is in the source.

    There Python drops docstrings, and a dataclass gets its signature instead.
    """
    if sys.flags.optimize < 2 or (inspect.isfunction(thing) and thing.__doc__):
        return inspect.cleandoc(thing.__doc__ or "")
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    except (OSError, TypeError, SyntaxError):  # it has no source
        return ""
    kinds = ast.FunctionDef | ast.ClassDef
    return ast.get_docstring(node) or "" if isinstance(node, kinds) else ""
