"""Which modules a config names: PEFT's rules, on paths of `transformers`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from .config import PeftConfig

T = TypeVar("T")
HEADS = "classifier", "score"  # what PEFT saves with these tasks, beside modules_to_save
TASKS = "SEQ_CLS", "TOKEN_CLS"


def targeted(config: PeftConfig, paths: Collection[str], linear: Collection[str]) -> list[str]:
    """Return the paths of the modules that get an adapter, in order.

    paths: of all that can have one   linear: those that "all-linear" means.
    A list has whole paths, or their last parts; a string is a regular expression for a whole path.
    """
    targets = config.target_modules
    if isinstance(targets, str) and targets.lower() == "all-linear":
        chosen = [path for path in paths if path in linear]
    else:
        chosen = [path for path in paths if _named(path, targets)]
    if config.layers_to_transform not in (None, []):
        wanted = config.layers_to_transform
        numbers = wanted if isinstance(wanted, list) else [wanted]
        chosen = [path for path in chosen
                  if path in (targets or ()) or _number(path, config.layers_pattern) in numbers]
    return [path for path in chosen
            if not _named(path, config.exclude_modules) and not _saved(path, config)]


def saved(config: PeftConfig, modules: Iterable[str]) -> list[str]:
    """Return the paths of the modules that are trained and saved as they are: by any end."""
    return [path for path in modules if path.endswith(_whole(config))]


def first(patterns: Mapping[str, T], path: str, otherwise: T) -> T:
    """Return the value of the first pattern that matches the path or, after a dot, its end."""
    for pattern, value in patterns.items():
        if _match(rf"(.*\.)?({pattern})$", path, pattern):
            return value
    return otherwise


def shortest(chosen: Collection[str], paths: Iterable[str]) -> list[str]:
    """Return target_modules that select exactly these paths: last parts, or else whole paths."""
    ends = sorted({path.rpartition(".")[2] for path in chosen})
    return ends if all(_named(path, ends) == (path in chosen) for path in paths) else [*chosen]


def _named(path: str, names: str | list[str] | None) -> bool:
    if isinstance(names, str):
        return bool(names) and _match(rf"(?:{names})\Z", path, names) is not None
    return any(path == name or path.endswith(f".{name}") for name in names or ())


def _number(path: str, pattern: str | list[str] | None) -> int | None:
    """Return the number of the block that a path is in."""
    patterns = [pattern] if isinstance(pattern, str) else pattern
    for rule in [rf"(?:^|.*?\.){p}\." for p in patterns or ()] or [r".*?\.[^.]*\."]:
        if match := _match(rf"{rule}(?P<number>\d+)\.", path, rule):
            return int(match["number"])
    return None


def _whole(config: PeftConfig) -> tuple[str, ...]:
    heads = HEADS if config.task_type in TASKS else ()
    return (*(config.modules_to_save or ()), *heads)


def _saved(path: str, config: PeftConfig) -> bool:
    """Return whether a module is, or is in, one that is trained as it is."""
    return any(_match(rf"(^|.*\.){name}($|\..*)", path, name) for name in _whole(config))


def _match(rule: str, path: str, given: str) -> re.Match[str] | None:
    try:
        return re.match(rule, path)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{given[:80]!r} is not a regular expression: {error}") from error
