"""Modules and parameters found by name: a path, its end, or a glob."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any


def matches(path: str, pattern: str) -> bool:
    """Is `pattern` this path, its end ("q", "attn.q"), or a glob for it ("blocks.*.attn.[qv]")?"""
    return path == pattern or path.endswith(f".{pattern}") or fnmatchcase(path, pattern)


def matching(paths: Collection[str], patterns: Iterable[str], what: str) -> list[str]:
    """The paths that one of the patterns matches, in their order.

    Raises ValueError naming a pattern that matches none; what: who asks, and of which kind the
    paths are, as in "attach: no layer".
    """
    for pattern in patterns:
        if not any(matches(path, pattern) for path in paths):
            names = ", ".join(sorted({path.split(".")[-1] for path in paths}))
            raise ValueError(f"{what} matches {pattern!r}: there are {names}")
    return [path for path in paths if any(matches(path, pattern) for pattern in patterns)]


def first(patterns: Mapping[str, Any], path: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the path."""
    return next((value for p, value in patterns.items() if matches(path, p)), otherwise)


def below(names: Sequence[str], patterns: Iterable[str], what: str) -> list[str]:
    """Those of these parameters that a pattern names, or that are in a module that one names.

    Raises ValueError as `matching` does.
    """
    above = {part: None for name in names for part in _with_above(name)}
    named = set(matching(above, patterns, what))
    return [name for name in names if not named.isdisjoint(_with_above(name))]


def _with_above(path: str) -> list[str]:
    """ "a.b.c" -> "a", "a.b", "a.b.c": naming a module names all that is in it."""
    names = path.split(".")
    return [".".join(names[: i + 1]) for i in range(len(names))]
