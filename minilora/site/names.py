"""The public names: their docstrings and signatures, and their places on the API page."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import reprlib
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from ..docstrings import docstring

ROOT = "minilora"
PAGE = "api.html"
BARE = re.compile(r"minilora\.(lora\.)?\w+")
ALSO = ("rounding", "viz")  # further modules that chapters use, not in public.py


@dataclass(frozen=True)
class Entry:
    """One name of the API page."""

    name: str  # as in code: "lora.attach", "ml.fit"
    anchor: str
    signature: str
    doc: str
    source: str  # of an op: its plain definition
    methods: tuple[Entry, ...]


@dataclass(frozen=True)
class Section:
    """A module: its docstring, its entries, and names whose entry is in another section."""

    name: str
    doc: str
    entries: tuple[Entry, ...]
    elsewhere: tuple[tuple[str, str], ...]  # (name, anchor)


@functools.cache
def sections() -> tuple[Section, ...]:
    """Return every public name by module; each object has one entry."""
    public = importlib.import_module(f"{ROOT}.public").__all__
    package = importlib.import_module(ROOT)
    modules = [n for n in public if isinstance(getattr(package, n), types.ModuleType)]
    anchors: dict[int, str] = {}  # an object's id -> its anchor
    result = []
    for module in ["", *modules, *(name for name in ALSO if name not in modules)]:
        home = importlib.import_module(f"{ROOT}.{module}") if module else package
        names = [n for n in public if n not in modules] if not module else _names(home)
        entries, elsewhere = [], []
        for name in names:
            thing = getattr(home, name)
            if id(thing) in anchors:
                elsewhere.append((name, anchors[id(thing)]))
                continue
            entries.append(_entry(thing, f"{module or 'ml'}.{name}"))
            anchors[id(thing)] = entries[-1].anchor
        doc = inspect.getdoc(home) or ""
        result.append(Section(module or ROOT, doc, tuple(entries), tuple(elsewhere)))
    return tuple(result)


@functools.cache
def places() -> dict[str, str]:
    """Return full dotted name -> address on the API page."""
    addresses = {}
    for section in sections():
        inside = "" if section.name == ROOT else f".{section.name}"
        if inside:
            addresses[ROOT + inside] = f"{PAGE}#{section.name}"
        for entry in section.entries:
            addresses[f"{ROOT}{inside}.{entry.name.partition('.')[2]}"] = f"{PAGE}#{entry.anchor}"
        for name, anchor in section.elsewhere:
            addresses[f"{ROOT}{inside}.{name}"] = f"{PAGE}#{anchor}"
    return addresses


def usual() -> dict[str, str]:
    """Return the names that prose uses without an import -> full dotted names."""
    bare = {full.rpartition(".")[2]: full for full in places() if BARE.fullmatch(full)}
    return {**bare, "ml": ROOT, ROOT: ROOT, "lora": f"{ROOT}.lora", "ops": f"{ROOT}.ops"}


def known_in(source: str) -> dict[str, str]:
    """Return the names that a script imports from the package -> full dotted names."""
    tree = ast.parse(source)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {a.asname or a.name: a.name for a in node.names if a.name.startswith(ROOT)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOT):
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return {name: full for name, full in known.items() if name not in bound(tree)}


def bound(tree: ast.AST) -> set[str]:
    """Return the names that a script defines."""
    nodes = [*ast.walk(tree)]
    own = {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return own | {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def place(chain: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    """Return (the public name that "ops.softmax.formula" starts with, its address), or None."""
    first, _, rest = chain.partition(".")
    full = known.get(first)
    if full is None:
        return None
    parts = rest.split(".") if rest else []
    for n in range(len(parts), -1, -1):
        address = places().get(".".join([full, *parts[:n]]))
        if address:
            return ".".join([first, *parts[:n]]), address
    return None


def _names(module: Any) -> list[str]:
    """Return a module's public names."""
    if hasattr(module, "__all__"):
        return [*module.__all__]
    return [
        name for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(module.__name__)
    ]


def _entry(thing: Any, name: str) -> Entry:
    formula = getattr(thing, "formula", None)
    target = inspect.unwrap(formula or thing) if callable(thing) else thing
    doc = docstring(target if callable(thing) else type(thing))
    if type(thing).__module__ == "builtins" and not callable(thing):
        doc = reprlib.repr(thing)
    source = inspect.getsource(target) if formula else ""
    methods = tuple(_methods(thing, name)) if isinstance(thing, type) else ()
    return Entry(name, name, signature(target), doc, source, methods)


def _methods(thing: type, name: str) -> Iterator[Entry]:
    for method, value in vars(thing).items():
        value = getattr(value, "__func__", value)
        if method.startswith("_") or not inspect.isfunction(value):
            continue
        if doc := docstring(value):
            yield Entry(method, f"{name}.{method}", signature(value), doc, "", ())


class _Bare(str):
    """An annotation as in the source."""

    __slots__ = ()
    __repr__ = str.__str__


def signature(thing: Any) -> str:
    """Return the parameters as in the source; "" if `thing` cannot be called."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""
    fields = getattr(thing, "__dataclass_fields__", {})
    bare = [
        p.replace(annotation=_bare(p.annotation), default=_default(p.default, fields.get(p.name)))
        for p in found.parameters.values()
        if p.name != "self"
    ]
    returned = _bare(found.return_annotation)
    text = str(found.replace(parameters=bare, return_annotation=returned))
    text = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text.removesuffix(" -> None"))
    return re.sub(r"\b(collections\.abc|minilora(\.\w+)*)\.(?=\w)", "", text)


def _default(default: Any, field: Any) -> Any:
    """Return a default; for a dataclass field with a factory, its result."""
    factory = getattr(field, "default_factory", MISSING)
    return default if factory is MISSING else factory()


def parameters(signature: str) -> list[str]:
    """Split a signature after each parameter."""
    parts, depth, closed = [""], 0, False
    for letter in signature:
        depth += (letter in "([{") - (letter in ")]}")
        closed = closed or depth == 0
        if letter == " " and depth == 1 and not closed and parts[-1].endswith(","):
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _bare(annotation: Any) -> Any:
    annotation = getattr(annotation, "__forward_arg__", annotation)
    return _Bare(annotation) if isinstance(annotation, str) else annotation
