"""The public names: what their docstrings say, and where the API page says it."""

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

ROOT = "minilora"
PAGE = "api.html"
BARE = re.compile(r"minilora\.(lora\.)?\w+")
ALSO = ("rounding", "viz")  # modules that chapters use, beside those that public.py names


@dataclass(frozen=True)
class Entry:
    """One name of the API page."""

    name: str  # as it is written: "lora.attach", "ml.fit"
    anchor: str
    signature: str
    doc: str
    source: str  # of an op: its plain formula
    methods: tuple[Entry, ...]


@dataclass(frozen=True)
class Section:
    """A module: what it is for, its entries, and names that stand in another section."""

    name: str
    doc: str
    entries: tuple[Entry, ...]
    elsewhere: tuple[tuple[str, str], ...]  # (name, anchor)


@functools.cache
def sections() -> tuple[Section, ...]:
    """Every public name, in the modules that public.py names; each object stands in one place."""
    public = importlib.import_module(f"{ROOT}.public").__all__
    package = importlib.import_module(ROOT)
    modules = [n for n in public if isinstance(getattr(package, n), types.ModuleType)]
    found: dict[int, str] = {}  # an object's id -> its anchor
    told = []
    for module in ["", *modules, *(name for name in ALSO if name not in modules)]:
        home = importlib.import_module(f"{ROOT}.{module}") if module else package
        names = [n for n in public if n not in modules] if not module else _names(home)
        entries, elsewhere = [], []
        for name in names:
            thing = getattr(home, name)
            if id(thing) in found:
                elsewhere.append((name, found[id(thing)]))
                continue
            entries.append(_entry(thing, f"{module or 'ml'}.{name}"))
            found[id(thing)] = entries[-1].anchor
        doc = inspect.getdoc(home) or ""
        told.append(Section(module or ROOT, doc, tuple(entries), tuple(elsewhere)))
    return tuple(told)


@functools.cache
def places() -> dict[str, str]:
    """Full dotted name -> where the API page tells it."""
    found = {}
    for section in sections():
        inside = "" if section.name == ROOT else f".{section.name}"
        if inside:
            found[ROOT + inside] = f"{PAGE}#{section.name}"
        for entry in section.entries:
            found[f"{ROOT}{inside}.{entry.name.partition('.')[2]}"] = f"{PAGE}#{entry.anchor}"
        for name, anchor in section.elsewhere:
            found[f"{ROOT}{inside}.{name}"] = f"{PAGE}#{anchor}"
    return found


def usual() -> dict[str, str]:
    """What prose calls things: the modules that it names, and names that stand for themselves."""
    bare = {full.rpartition(".")[2]: full for full in places() if BARE.fullmatch(full)}
    return {**bare, "ml": ROOT, ROOT: ROOT, "lora": f"{ROOT}.lora", "ops": f"{ROOT}.ops"}


def known_in(source: str) -> dict[str, str]:
    """What a script calls the package and its modules, and the names that it imports from them."""
    tree = ast.parse(source)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {a.asname or a.name: a.name for a in node.names if a.name.startswith(ROOT)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOT):
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return {name: full for name, full in known.items() if name not in bound(tree)}


def bound(tree: ast.AST) -> set[str]:
    """The names that a script defines itself."""
    nodes = [*ast.walk(tree)]
    own = {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return own | {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def place(chain: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    """(the part of "ops.softmax.formula" that is a public name, where it is told), or None."""
    first, _, rest = chain.partition(".")
    full = known.get(first)
    if full is None:
        return None
    parts = rest.split(".") if rest else []
    for n in range(len(parts), -1, -1):
        where = places().get(".".join([full, *parts[:n]]))
        if where:
            return ".".join([first, *parts[:n]]), where
    return None


def _names(module: Any) -> list[str]:
    """A module's public names."""
    if hasattr(module, "__all__"):
        return [*module.__all__]
    return [
        name for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(module.__name__)
    ]


def _entry(thing: Any, name: str) -> Entry:
    formula = getattr(thing, "formula", None)
    told = inspect.unwrap(formula or thing) if callable(thing) else thing
    doc = inspect.getdoc(told if callable(thing) else type(thing)) or ""
    if type(thing).__module__ == "builtins" and not callable(thing):
        doc = reprlib.repr(thing)
    source = inspect.getsource(told) if formula else ""
    methods = tuple(_methods(thing, name)) if isinstance(thing, type) else ()
    return Entry(name, name, _signature(told), doc, source, methods)


def _methods(thing: type, name: str) -> Iterator[Entry]:
    for method, value in vars(thing).items():
        value = getattr(value, "__func__", value)
        if method.startswith("_") or not inspect.isfunction(value) or not value.__doc__:
            continue
        yield Entry(
            method, f"{name}.{method}", _signature(value), inspect.getdoc(value) or "", "", ()
        )


class _Bare(str):
    """An annotation as it was written."""

    __slots__ = ()
    __repr__ = str.__str__


def _signature(thing: Any) -> str:
    """Its parameters, as the source has them; "" for what cannot be called."""
    try:
        whole = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""
    fields = getattr(thing, "__dataclass_fields__", {})
    bare = [
        p.replace(annotation=_bare(p.annotation), default=_made(p.default, fields.get(p.name)))
        for p in whole.parameters.values()
        if p.name != "self"
    ]
    text = str(whole.replace(parameters=bare, return_annotation=_bare(whole.return_annotation)))
    text = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text.removesuffix(" -> None"))
    return re.sub(r"\b(collections\.abc|minilora(\.\w+)*)\.(?=\w)", "", text)


def _made(default: Any, field: Any) -> Any:
    """A default; where a dataclass makes one for each object, such a one."""
    makes = getattr(field, "default_factory", MISSING)
    return default if makes is MISSING else makes()


def parameters(signature: str) -> list[str]:
    """A signature cut after each parameter."""
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
