"""What is typed, understood; or refused, in a sentence that names the option, value and remedy."""

from __future__ import annotations

import argparse
import difflib
import functools
import math
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__, accounting, data
from ..accounting.plan import POLICIES
from ..bench.engines import ENGINES, SHAPES
from ..files import atomic
from ..methods import METHODS
from ..pretrain import STEPS
from . import commands, inputs
from .exercises import DOES as EX
from .exercises import exercises
from .finetune import finetune
from .reproduce import reproduce
from .tutorials import DOES, tutorials

Read = Callable[[str], Any]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, and in `.command` what to run with them. Raises ValueError for what is odd."""
    words = [*(sys.argv[1:] if argv is None else argv)]
    top, known = parser()
    name = _command(words, known)
    args, odd = top.parse_known_args(words)
    for word in sorted(odd, key=lambda word: not word.startswith("-")):
        see = f"see `minilora {name} --help`"
        if not word.startswith("-"):
            raise ValueError(f"{name} takes no {word!r}: {see}")
        option = word.partition("=")[0]
        raise ValueError(f"{name} has no option {_meant(option, _options(known[name]), see)}")
    needed, what = getattr(args, "needs", (None, ""))
    if needed and getattr(args, needed) is None:
        raise ValueError(f"{name} needs {what}")
    return args


def _command(words: Sequence[str], known: Mapping[str, Parser]) -> str:
    """The command's name, or nothing; what stands before it is of every command, or refused."""
    waiting = iter(words)
    for word in waiting:
        option = word.partition("=")[0]
        if not word.startswith("-"):
            if word not in known:
                there = f"there are {', '.join(known)}"
                raise ValueError(f"there is no command {_meant(word, known, there)}")
            return word
        if option in ("-h", "--help", "--version"):
            break
        if option not in COMMON:
            theirs = sorted(known, key=words.count)  # what is typed comes last, and counts
            of = {option: name for name in theirs for option in _options(known[name])}
            if option in of:
                raise ValueError(
                    f"{option} goes behind its command: minilora {of[option]} {option}"
                )
            raise ValueError(f"there is no option {_meant(option, of, 'see `minilora --help`')}")
        if "=" not in word and "action" not in COMMON[option]:
            next(waiting, "")
    return ""


def _options(of: Parser) -> list[str]:
    return re.findall(r"--[\w-]+", of.format_usage())


def _meant(word: str, known: Collection[str], otherwise: str) -> str:
    """The word, and what may have been meant."""
    near = difflib.get_close_matches(word, known, 1)
    return f"{word or repr(word)}: " + (f"did you mean {near[0]}?" if near else otherwise)


class Parser(argparse.ArgumentParser):
    """argparse, in our words: an option is written out, and what is wrong is a ValueError."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise it: "argument --steps: 0: give ..." as "--steps 0: give ..."."""
        option, _, said = message.removeprefix("argument ").partition(": ")
        option = option.rpartition("/")[2]  # -o/--out
        if said.startswith("expected"):
            said = f"needs a value; if it begins with -, write {option}=-..."
        said = said.replace("ignored explicit argument", "takes no value, not")
        raise ValueError(f"{option} {said}")


# Readers of a value. What is no such value is told, behind the option's name, as "0: give ...".


def _odd(text: str, words: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text or repr(text)}: give {words}")


def whole(least: int, most: int = 10**9) -> Read:
    """A whole number."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]+", text) or int(text[:99]) < least:
            raise _odd(text, f"a whole number from {least}")
        if int(text[:99]) > most:
            raise _odd(text, f"{most:,} or less")
        return int(text)

    return read


def real(words: str, holds: Callable[[float], bool]) -> Read:
    """A number with this property, which nan has not."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise _odd(text, words)
        return value

    return read


above_0 = real("a finite number above 0", lambda x: 0 < x < math.inf)
from_0 = real("a finite number from 0", lambda x: 0 <= x < math.inf)
below_1 = real("a number from 0 to below 1", lambda x: 0 <= x < 1)
share = real("a number above 0, up to 1", lambda x: 0 < x <= 1)


def one_of(*known: str) -> dict[str, Any]:
    """One of these names."""

    def read(text: str) -> str:
        if text not in known:
            many = known if len(known) > 6 else ()
            raise argparse.ArgumentTypeError(_meant(text, many, f"give {' or '.join(known)}"))
        return text

    return {"type": read, "metavar": f"{{{','.join(known)}}}"}


def to_write(*suffixes: str) -> Read:
    """A file that can be written."""

    def read(text: str) -> Path:
        try:
            atomic.check(text, *suffixes)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return Path(text)

    return read


def names(text: str) -> tuple[str, ...]:
    """Names, by commas."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def some_names(text: str) -> tuple[str, ...]:
    """Names, at least one."""
    if not names(text):
        raise _odd(text, "one name or several, by commas")
    return names(text)


def prompt(text: str) -> str:
    r"""A text that is not empty, in which \n is a new line."""
    if not text:
        raise _odd(text, r"at least one character; \n is a new line")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _odd(repr(text), "UTF-8 text") from None
    return text.replace("\\n", "\n")


def array_library(text: str) -> str:
    """A backend that has numbers."""
    if not re.fullmatch(r"numpy|cupy(:\d+)?", text):
        raise _odd(text, "numpy, cupy, or cupy:1")
    return text


# The commands.

COMMON: dict[str, dict[str, Any]] = {  # these may stand before the command or behind it
    "--seed": {"type": whole(0, 2**63 - 1), "help": "of everything random (0)"},
    "--backend": {"type": array_library, "help": "numpy, cupy, or cupy:1 (that GPU)"},
    "--threads": {"type": whole(0, 1024), "help": "to share work among (0: one per core)"},
    "--plain": {"action": "store_true", "help": "every op as printed, no kernels"},
    "--json": {"action": "store_true", "help": "print the numbers as JSON"},
}


def _common(to: Parser, **own: dict[str, Any]) -> None:
    for name, settings in COMMON.items():  # only the whole parser has defaults
        to.add_argument(name, default=argparse.SUPPRESS, **own.get(name[2:], settings))


def _based(to: Parser) -> None:
    to.add_argument(
        "--base", default="shakespeare", help="a built-in base, or a model's .npz (shakespeare)"
    )
    to.add_argument("--base-dtype", **one_of("float16"), help="the frozen base in half the bytes")


def _adapting(to: Parser) -> None:
    to.add_argument("--r", type=whole(1), help="rank (8)")
    to.add_argument("--alpha", type=above_0, help="ΔW = alpha / r · BA (16)")
    to.add_argument("--targets", type=some_names, help="names or globs, by commas (q,v)")
    to.set_defaults(**inputs.USUAL)
    to.add_argument("--batch", type=whole(1), help="sequences a step (8)")
    to.add_argument(
        "--window", type=whole(1), help="tokens a sequence (128, or as many as the base reads)"
    )
    to.add_argument(
        "--recompute", action="store_true",
        help="compute each block's activations again instead of keeping them: less memory",
    )


def _kept(to: Parser, out: str, steps: int) -> None:
    to.add_argument("--out", type=to_write(".npz"), default=out, help=f"({out})")
    to.add_argument("--steps", type=whole(1), default=steps, help=f"updates ({steps})")
    to.add_argument(
        "--restart", action="store_true",
        help="start anew, although the file of an interrupted run is there",
    )


@functools.cache
def parser() -> tuple[Parser, dict[str, Parser]]:
    """Every command and option there is: the whole parser, and that of each command."""
    top = Parser(prog="minilora", description="LoRA on NumPy; without a command: the demo.")
    top.add_argument("--version", action="version", version=__version__)
    _common(top)
    top.set_defaults(
        command=commands.show, seed=0, backend="numpy", threads=None, plain=False, json=False
    )
    all_of_them = top.add_subparsers(title="commands", metavar="")

    def command(name: str, run: Any, **own: dict[str, Any]) -> Parser:
        told = run.__doc__.strip()
        sub: Parser = all_of_them.add_parser(name, help=told, description=told)
        _common(sub, **own)
        sub.set_defaults(command=run)
        return sub

    sub = command("finetune", finetune)
    texts = ", ".join(data.TEXTS)
    sub.add_argument("text", nargs="?", help=f"a text file, or one of {texts}")
    sub.set_defaults(needs=("text", f"a text: a file, or one of {texts}"))
    _kept(sub, "adapter.npz", 200)
    _based(sub)
    _adapting(sub)
    sub.add_argument("--lr", type=above_0, default=5e-3, help="peak learning rate (0.005)")
    sub.add_argument(
        "--dtype", **one_of("float16", "float32", "float64"), default="float32",
        help="of the frozen base and all that is computed (float32). float16 scales the loss, for "
        "a GPU; its adapter then goes with --base-dtype float16",
    )
    sub.add_argument("--dropout", type=below_1, default=0.0, help="of the adapters' input (0)")
    sub.add_argument(
        "--checks", type=whole(1), default=8, help="held-out batches to evaluate on (8)"
    )
    sub = command("generate", commands.write)
    _based(sub)
    sub.add_argument("--adapter", type=Path, help="an adapter's .npz")
    sub.add_argument(
        "--prompt", type=prompt, default="\\n", help="what to continue; \\n is a new line"
    )
    sub.add_argument("--tokens", type=whole(0), default=100, help="how many to write (100)")
    sub.add_argument("--temperature", type=from_0, default=0.8, help="0 is greedy (0.8)")
    sub.add_argument("--top-k", type=whole(1), help="only the k likeliest tokens")
    sub.add_argument("--top-p", type=share, default=0.95, help="only the likeliest mass p (0.95)")
    sub.add_argument("--no-cache", action="store_true", help="without key/value cache: slower")
    sub = command("merge", commands.merge)
    _based(sub)
    sub.add_argument("--adapter", type=Path, help="an adapter's .npz")
    sub.set_defaults(needs=("adapter", "--adapter: the .npz that `minilora finetune` writes"))
    sub.add_argument("--out", type=to_write(".npz"), default="model.npz", help="(model.npz)")
    sub = command("account", commands.account)
    _based(sub)
    _adapting(sub)
    sub.add_argument(
        "shape", nargs="?", **one_of(*accounting.SHAPES) | {"metavar": "shape"},
        help=f"instead of the base: {', '.join(accounting.SHAPES)}; batch 1, its longest window",
    )
    sub.set_defaults(**dict.fromkeys(inputs.USUAL))  # it asks whether they were given
    sub.add_argument("--method", **one_of(*METHODS), help="of a shape (lora)")
    sub.add_argument("--lp", type=whole(0), help="trained tokens before the prompt (8)")
    sub.add_argument("--li", type=whole(0), help="trained tokens behind the prompt (0)")
    sub.add_argument(
        "--compare", action="store_true", help="of a shape: all methods of tables 2 to 4, in turn"
    )
    sub.add_argument(
        "--policy", **one_of(*POLICIES), default="float32",
        help="of a shape: float32; half base: the frozen matrices in float16; mixed: all in "
        "float16 but what is trained, which has float32 masters",
    )
    sub = command("reproduce", reproduce)
    sub.add_argument("what", nargs="?", **one_of("counts") | {"metavar": "what"}, help="counts")
    sub.set_defaults(needs=("what", "to know what: counts"))
    sub.add_argument("--markdown", action="store_true", help="as tables of Markdown")
    command("info", commands.info)
    sub = command("bench", commands.measure)
    sub.add_argument(
        "--shapes", type=names, default="classroom,long,gpt2-small",
        help=f"of {', '.join(SHAPES)}; classroom:4 has a batch of 4",
    )
    sub.add_argument(
        "--engines", type=some_names, help=f"of {', '.join(ENGINES)} (all that are there)"
    )
    sub.add_argument("--rounds", type=whole(1), help="turns of three steps each (10)")
    sub.add_argument("--no-whole", action="store_true", help="leave out start, 50 steps, exit")
    sub.add_argument(
        "--chart", type=to_write(".png", ".svg", ".pdf"),
        help="draw time and memory into this file, .png, .svg or .pdf",
    )
    sub = command("pretrain", commands.train_base)
    _kept(sub, "shakespeare.npz", STEPS)
    sub = command("tutorials", tutorials)
    sub.add_argument("do", nargs="?", **one_of(*DOES) | {"metavar": "what"}, help=", ".join(DOES))
    sub.add_argument("chapter", nargs="?", help="its number, to run or as a notebook")
    sub.set_defaults(needs=("do", f"to know what: {', '.join(DOES)}"))
    sub.add_argument(
        "-o", "--out", type=Path,
        help="the folder to build or serve (site), or the notebook's file (its name.ipynb)",
    )
    sub.add_argument("--port", type=whole(0, 65535), help="to serve at (8000; 0: any)")
    sub = command("ex", exercises, json={
        "nargs": "?", "const": True, "type": to_write(".json"),
        "help": "print the numbers as JSON; with a name, grade into that file",
    })
    sub.add_argument("do", nargs="?", **one_of(*EX) | {"metavar": "command"}, help=", ".join(EX))
    sub.add_argument("which", nargs="?", help="an exercise, such as 07; a folder, to init or grade")
    sub.add_argument("more", nargs="?", help="behind dev: an exercise, or a new one's name")
    sub.set_defaults(needs=("do", f"to know what: init begins, then {', '.join(EX[1:])}"))
    sub.add_argument("--only", type=some_names, help="a course: numbers in order, by commas")
    sub.add_argument("--give-up", action="store_true", help="show a solution before a pass")
    sub.add_argument(
        "-v", "--verbose", action="store_true", help="tell every failure, and all frames"
    )
    sub.add_argument("--jobs", type=whole(1, 256), help="to grade with so many processes (1)")
    sub.add_argument("--csv", type=to_write(".csv"), help="to grade into: a table")
    sub.add_argument("--html", type=to_write(".html"), help="to grade into: a page of the class")
    sub.add_argument("--gradescope", type=to_write(".json"), help="to grade into: for Gradescope")
    return top, all_of_them.choices
