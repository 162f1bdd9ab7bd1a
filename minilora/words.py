"""Names that other packages use for an argument, and the errors that give the name used here.

`our_words` decorates a public function or an `__init__`. A config calls `refuse` by itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, NoReturn, ParamSpec, TypeVar

INSTALL = "pip install '.[{}]' in the checkout of minilora".format  # no index has the package yet
P = ParamSpec("P")
R = TypeVar("R")


class Table(NamedTuple):
    """words.json, which is read when an argument is refused.

    names     another package's name -> names here, of which the first accepted one is given
    remedies  another package's name -> the rest of the sentence, where there is no counterpart
    values    name here -> the start of a foreign value -> the rest of the sentence
    """

    names: dict[str, list[str]]
    remedies: dict[str, str]
    values: dict[str, dict[str, str]]


@functools.cache
def table() -> Table:
    """Return the table of foreign words."""
    import json
    from pathlib import Path

    read = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    names = {word: ours for group in read["names"].values() for word, ours in group.items()}
    return Table(names, read["remedies"], read["values"])


def refuse(
    who: str, word: str, names: Collection[str], notes: Mapping[str, str] = {}
) -> NoReturn:
    """Raise TypeError for the unknown keyword `word` of `who`, which accepts `names`.

    The message gives our name for it, or a remedy, or the closest name and all names.
    notes: foreign name -> what to add to the message.
    """
    ours = counterpart(word, names)
    if ours:
        raise TypeError(f"{who}: {word} is called {ours} here{notes.get(word, '')}")
    if word in table().remedies:
        raise TypeError(f"{who}: {word} {table().remedies[word]}")
    from difflib import get_close_matches

    near = get_close_matches(word, names, 1, 0.8) or [n for n in names if n.startswith(f"{word}_")]
    hint = f"did you mean {near[0]}? It" if near else "it"
    takes = ", ".join(names) or "no arguments"
    raise TypeError(f"{who}: unknown argument {word!r}: {hint} takes {takes}")


def counterpart(word: str, names: Collection[str]) -> str | None:
    """Return the name here for a foreign `word`: the first that is among `names`; else None."""
    return next((ours for ours in table().names.get(word, ()) if ours in names), None)


def refuse_value(who: str, name: str, value: Any) -> None:
    """Raise TypeError if `value` names what is a method here, such as init="pissa"."""
    for start, remedy in table().values.get(name, {}).items():
        if isinstance(value, str) and value.startswith(start):
            raise TypeError(f"{who}: {name}={value!r} {remedy}")


def our_words(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that an unknown keyword raises the TypeError of `refuse`.

    A function with **settings hands them on: there, only a word with a counterpart among the
    function's own names is refused.
    """
    own = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    names = [p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    passes_on = any(p.kind is p.VAR_KEYWORD for p in own)
    accepted = frozenset(names)
    path = function.__qualname__.rpartition("<locals>.")[2]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not accepted.issuperset(kwargs):
            who = type(args[0]).__name__ if path.endswith(".__init__") and args else path
            for word in kwargs:
                if word not in accepted and (not passes_on or counterpart(word, names)):
                    refuse(who, word, names)
        return function(*args, **kwargs)

    return checked
