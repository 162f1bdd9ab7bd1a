"""The parser class of every command, the options that all commands share, and readers of values.

A refusal is a ValueError that names the option, the value and the remedy.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..docstrings import docstring
from ..files import atomic
from .foreign import OURS

Say = Callable[[str], None]
Run = Callable[[argparse.Namespace, Say], dict[str, Any]]
Read = Callable[[str], Any]


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, with the common options, and with errors in our own words.

    needs     argument -> how to give it: the arguments that a command cannot run without
    instead   option that people expect -> what to do instead
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.name = self.prog.partition(" ")[2]  # "ex check"; "" is minilora itself
        self.needs: dict[str, str] = {}
        self.instead: dict[str, str] = {}
        self._group: Any = None
        self._common = self.add_argument_group("options of every command")
        for option, how in COMMON.items():
            self._common.add_argument(option, default=argparse.SUPPRESS, **how)

    def command(self, name: str, run: Run | None, does: str = "", **settings: Any) -> Parser:
        """Add a command; return its parser. `run` runs it, and its docstring describes it."""
        self._group = self._group or self.add_subparsers(title="commands", metavar="COMMAND")
        self._action_groups.sort(key=lambda group: group is self._common)  # the last in a help
        does = does or docstring(run).partition("\n")[0]
        parser: Parser = self._group.add_parser(name, help=does, description=does, **settings)
        parser.set_defaults(command=run)
        return parser

    def argument(self, name: str, help: str, needs: str = "", read: Read = str) -> None:
        """Add an argument without dashes; `needs` describes one that must be given."""
        metavar = getattr(read, "metavar", None) and name
        self.add_argument(name, nargs="?", help=help, type=read, metavar=metavar)
        if needs:
            self.needs[name] = needs

    def option(self, *names: str, read: Read, help: str, default: Any = None,
               many: bool = False) -> None:
        """Add an option with a value. Its help ends with the default, where it has one.

        many: it may be given several times, and its value is a list.
        """
        if default is not None:
            words = ",".join(default) if isinstance(default, tuple) else default
            help += f" ({words:g})" if isinstance(words, float) else f" ({words})"
        metavar = getattr(read, "metavar", None)
        action = "append" if many else "store"
        self.add_argument(
            *names, type=read, help=help, default=default, metavar=metavar, action=action)

    def flag(self, *names: str, help: str) -> None:
        """Add an option without a value."""
        self.add_argument(*names, action="store_true", help=help)

    def describe_only(self, common: dict[str, str]) -> None:
        """Show in the help, of the options of every command, only these, with these words."""
        self._common.title = "more options"
        for action in self._common._group_actions:
            action.help = common.get(action.option_strings[0], argparse.SUPPRESS)

    @property
    def commands(self) -> dict[str, Parser]:
        return self._group.choices if self._group else {}

    @property
    def options(self) -> list[str]:
        return [option for option in self._option_string_actions if option not in ("-h", "--help")]

    def leaves(self) -> Iterator[Parser]:
        """The commands that have no commands of their own."""
        for parser in self.commands.values():
            yield from parser.leaves() if parser.commands else [parser]

    def error(self, message: str) -> NoReturn:
        """Raise ValueError: "argument --steps: 0: give ..." becomes "--steps 0: give ..."."""
        option, _, reason = message.removeprefix("argument ").partition(": ")
        option = option.rpartition("/")[2]  # -o/--out
        if reason == "expected 2 arguments":
            values = self._option_string_actions[option].metavar or ()
            reason = f"needs a value for each: {option} {' '.join(values)}"
        elif reason.startswith("expected"):
            reason = f"needs a value; if it begins with -, write {option}=-..."
        reason = reason.replace("ignored explicit argument", "takes no value: leave out")
        raise ValueError(f"{option} {reason}")


def parse(top: Parser, words: Sequence[str]) -> argparse.Namespace:
    """Return the options; `.command` is the function to run. Raises ValueError for bad input."""
    parser = _chosen(top, words)
    see = f"see `minilora {parser.name} --help`"
    args, unknown = top.parse_known_args(words)
    for word in sorted(unknown, key=lambda word: not word.startswith("-")):
        if word.startswith("-"):
            raise ValueError(_no_option(word.partition("=")[0], parser, top, see))
        if words[words.index(word) - 1] == "--json":
            raise ValueError(f"{parser.name} takes no file after --json: only ex grade does")
        raise ValueError(f"{parser.name} takes no {word!r}: {see}")
    if parser.commands and parser is not top:
        raise ValueError(f"{parser.name} needs a command: {either(parser.commands)}; {see}")
    for name, how in parser.needs.items():
        if getattr(args, name) is None:
            raise ValueError(f"{parser.name} needs {how}")
    return args


def _chosen(top: Parser, words: Sequence[str]) -> Parser:
    """The parser of the command that is typed. Only common options may stand before a command."""
    parser, waiting = top, iter(words)
    for word in waiting:
        option = word.partition("=")[0]
        if not parser.commands or option in ("-h", "--help", "--version"):
            break
        if not word.startswith("-"):
            if word not in parser.commands:
                reason = f"{parser.name} has no" if parser.name else "unknown"
                hint = meant(word, parser.commands, f"choose {either(parser.commands)}")
                raise ValueError(f"{reason} command {hint}")
            parser = parser.commands[word]
        elif option not in COMMON:
            having = [leaf for leaf in parser.leaves() if option in leaf.options]
            if having:
                leaf = max(having, key=lambda leaf: sum(map(words.count, leaf.name.split())))
                raise ValueError(
                    f"{option} goes after its command: minilora {leaf.name} {option}"
                )
            every = {option for leaf in parser.leaves() for option in leaf.options}
            see = f"see `minilora {parser.name}".rstrip() + " --help`"
            raise ValueError(f"unknown option {meant(option, every, see)}")
        elif "=" not in word and "action" not in COMMON[option]:
            next(waiting, "")
    return parser


def _no_option(option: str, parser: Parser, top: Parser, see: str) -> str:
    """Why a command refuses an option, and what to type instead."""
    having = [leaf.name for leaf in top.leaves() if option in leaf.options]
    see = f"{', '.join(having)} {'have' if having[1:] else 'has'} it; {see}" if having else see
    hint = parser.instead.get(option)
    known = [ours for ours in parser.options if not having or option.strip("-") == ours.strip("-")]
    hint = f"{option}: {hint}" if hint else meant(option, known, see)
    return f"{parser.name} has no option {hint}"


def meant(word: str, known: Iterable[str], otherwise: str) -> str:
    """The word and the known one that it stands for; or `otherwise`, where it is near none.

    Near is the name here for another package's option, and nothing else for such a name. For other
    words it is what begins so, or a spelling with one wrong letter in a word of three letters or
    more, two in a word of six or more.
    """
    letters, known = word.strip("-"), [*known]
    ours = OURS.get(letters.replace("_", "-")) if word.startswith("-") else None
    if ours is not None:
        best = [ours] if ours in known else []
    else:
        wrong = {name: edits(letters, name.strip("-")) for name in known}
        near = [name for name in wrong if wrong[name] <= (len(letters) > 2) + (len(letters) > 5)]
        best = [name for name in known if len(letters) > 2 and name.startswith(word)]
        best += sorted(near, key=wrong.__getitem__)
    return f"{word or repr(word)}: " + (f"did you mean {best[0]}?" if best else otherwise)


@functools.cache
def edits(a: str, b: str) -> int:
    """How many letters to add, drop, replace or swap with the next make `a` into `b`."""
    if abs(len(a) - len(b)) > 2 or not (a and b):
        return max(len(a), len(b))
    if a[0] == b[0]:
        return edits(a[1:], b[1:])
    swapped = edits(a[2:], b[2:]) if a[:2] == b[1::-1] else len(a + b)
    return 1 + min(edits(a[1:], b), edits(a, b[1:]), edits(a[1:], b[1:]), swapped)


def either(names: Iterable[str]) -> str:
    """ "a, b or c"."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


# Readers of values. argparse puts the option's name before "0: give ...".


def refused(text: str, remedy: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text or repr(text)}: give {remedy}")


def integer(least: int, most: int = 10**9) -> Read:
    """Return a reader of integers from `least` to `most`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]+", text) or int(text[:99]) < least:
            raise refused(text, f"an integer >= {least}")
        if int(text[:99]) > most:
            raise refused(text, f"an integer <= {most:,}")
        return int(text)

    return read


def number(kind: str, accepts: Callable[[float], bool]) -> Read:
    """Return a reader of the numbers for which `accepts` is true (nan compares false)."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not accepts(value):
            raise refused(text, kind)
        return value

    return read


above_0 = number("a finite number > 0", lambda x: 0 < x < math.inf)
below_1 = number("a number in [0, 1)", lambda x: 0 <= x < 1)


class OneOf:
    """A reader of one of these names."""

    def __init__(self, *known: str, metavar: str = "") -> None:
        self.known = known
        self.metavar = metavar or f"{{{','.join(known)}}}"

    def __call__(self, text: str) -> str:
        if text not in self.known:
            many = self.known if len(self.known) > 6 else ()
            raise argparse.ArgumentTypeError(meant(text, many, f"choose {either(self.known)}"))
        return text


def to_write(*suffixes: str) -> Read:
    """Return a reader of the paths at which a file can be written."""

    def read(text: str) -> Path:
        try:
            atomic.check(text, *suffixes)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return Path(text)

    return read


def names(text: str) -> tuple[str, ...]:
    """Names, separated by commas; perhaps none."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def some_names(text: str) -> tuple[str, ...]:
    """Names, separated by commas; at least one."""
    if not names(text):
        raise refused(text, "one name or more, separated by commas")
    return names(text)


def blocks(text: str) -> tuple[int, ...]:
    """Numbers of blocks, separated by commas; at least one."""
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text):
        raise refused(text, "numbers of blocks from 0, separated by commas")
    return tuple(map(int, text.split(",")))


def array_library(text: str) -> str:
    """A backend that computes numbers."""
    if not re.fullmatch(r"numpy|cupy(:\d+)?", text):
        raise refused(text, "numpy, cupy, or cupy:1")
    return text


COMMON: dict[str, dict[str, Any]] = {  # they may stand before the command or after it
    "--seed": {"type": integer(0, 2**63 - 1), "help": "seed of all random numbers (0)"},
    "--backend": {"type": array_library, "help": "numpy, cupy, or cupy:1 for GPU 1 (numpy)"},
    "--threads": {
        "type": integer(0, 1024), "help": "number of threads (0: one for each core)"
    },
    "--plain": {"action": "store_true", "help": "run all ops without kernels: slower"},
    "--json": {"action": "store_true", "help": "print the result as JSON"},
}
