"""The page "Bring an array library": its text, with hooks and functions as the code has them."""

from __future__ import annotations

import html
import inspect
import re
from pathlib import Path

from ..backend import Backend, asked
from . import names
from .prose import Prose, docstring

TEXT = Path(__file__).parent / "assets" / "library.md"


def body(prose: Prose) -> str:
    """Return the page's HTML."""
    parts = {"hooks": _hooks(prose), "plain": _names(asked.PLAIN), "kernels": _names(asked.KERNELS),
             "array": _names(asked.ARRAY)}
    text, *rest = re.split(r"^\{\{(\w+)\}\}$", TEXT.read_text("utf-8"), flags=re.MULTILINE)
    result = prose.markdown(text)
    for name, text in zip(rest[::2], rest[1::2]):
        result += parts[name] + prose.markdown(text)
    return result


def code() -> list[str]:
    """Return the Python of the page, block by block."""
    return re.findall(r"```python\n(.*?)```", TEXT.read_text("utf-8"), flags=re.DOTALL)


def _hooks(prose: Prose) -> str:
    """Return each hook of Backend with its signature and its docstring."""
    rows = ""
    hooks = {name: getattr(Backend, name) for name in vars(Backend) if not name.startswith("_")}
    for name, hook in hooks.items():
        if not inspect.isfunction(hook) or "self" not in inspect.signature(hook).parameters:
            continue
        inside = html.escape(f".{name}{names.signature(hook)}", quote=False)
        why = docstring(prose, inspect.getdoc(hook) or "")
        rows += f"<dt><code>{inside}</code></dt><dd>{why}</dd>"
    return f'<dl class="methods">{rows}</dl>'


def _names(lines: list[str] | tuple[str, ...]) -> str:
    return f"<p>{', '.join(f'<code>{html.escape(line)}</code>' for line in lines)}</p>"
