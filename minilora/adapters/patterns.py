"""Patterns that select modules and parameters: a path, its end, or a glob."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ..checks import describe


def matches(path: str, pattern: str) -> bool:
    """Return whether `pattern` is the path, its end ("attn.q") or a glob ("blocks.*.attn.[qv]")."""
    return path == pattern or path.endswith(f".{pattern}") or fnmatchcase(path, pattern)


def patterns_of(who: str, given: Any) -> tuple[str, ...]:
    """Return one pattern, or several, as a tuple; ValueError, which begins with `who`, if none."""
    patterns = given if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    for pattern in (patterns := tuple(patterns)):
        if not isinstance(pattern, str):
            raise ValueError(
                f'{who} takes patterns such as "q" and "attn.*", not {describe(pattern)}')
    return patterns


def matching(paths: Collection[str], patterns: Iterable[str], what: str) -> list[str]:
    """Return the paths that match a pattern, in order.

    Raises ValueError for a pattern without a match; its message starts with `what`, such as
    "targets: no layer".
    """
    for pattern in patterns:
        if not any(matches(path, pattern) for path in paths):
            names = ", ".join(sorted({path.split(".")[-1] for path in paths}))
            raise ValueError(f"{what} matches {pattern!r}: choose from {names}")
    return [path for path in paths if any(matches(path, pattern) for pattern in patterns)]


def first(patterns: Mapping[str, Any], path: str, otherwise: Any) -> Any:
    """Return the value of the first pattern that matches the path."""
    return next((value for p, value in patterns.items() if matches(path, p)), otherwise)


def hidden(patterns: Iterable[str], paths: Collection[str]) -> dict[str, str]:
    """Return the patterns that are never the `first` to match a path, each with one that is."""
    found: dict[str, str] = {}
    winners = {path: first({p: p for p in patterns}, path, "") for path in paths}
    for pattern in patterns:
        if pattern not in winners.values():
            found[pattern] = next(w for at, w in winners.items() if matches(at, pattern))
    return found


def below(names: Sequence[str], patterns: Iterable[str], what: str) -> list[str]:
    """Return the parameter names that match a pattern, by themselves or by a module above them.

    Raises ValueError as `matching` does.
    """
    above = {part: None for name in names for part in _with_above(name)}
    named = set(matching(above, patterns, what))
    return [name for name in names if not named.isdisjoint(_with_above(name))]


def _with_above(path: str) -> list[str]:
    """Return "a", "a.b" and "a.b.c" for "a.b.c": a module's name includes all in it."""
    names = path.split(".")
    return [".".join(names[: i + 1]) for i in range(len(names))]
