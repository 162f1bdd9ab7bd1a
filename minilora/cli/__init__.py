"""The command line: `minilora` runs the demo, `minilora COMMAND --help` describes a command.

Each command has a file, which adds its parser and runs it. parser.py holds what all parsers share;
inputs.py reads bases, texts and adapters.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import warnings
from typing import Any

from .. import __version__, backend
from ..backend.threads import threads
from ..demo import demo
from ..files.atomic import reason
from ..words import INSTALL
from . import (
    account,
    bench,
    ex,
    finetune,
    generate,
    info,
    merge,
    pretrain,
    reproduce,
    sweep,
    tutorials,
)
from .parser import Parser, Say, parse
from .ranked import after_rank_0, begin, rank
from .streams import safe

COMMANDS = (finetune, sweep, generate, merge, account, reproduce, info, bench, pretrain, tutorials,
            ex)
# Errors that bad input causes. A TypeError or an AttributeError is a bug: it keeps its traceback.
BAD_INPUT = (ValueError, KeyError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError,
             EOFError)


@functools.cache
def command_line() -> Parser:
    """Return the parser of the entire command line."""
    top = Parser(prog="minilora", description="LoRA on NumPy. Without a command: run the demo.")
    top.add_argument("--version", action="version", version=__version__, help="print the version")
    top.set_defaults(
        command=run_demo, seed=0, backend="numpy", threads=None, plain=False, json=False,
        ranked=False
    )
    for command in COMMANDS:
        command.add_to(top)
    return top


def run_demo(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Adapt a small model to another text, account for the memory, merge and compare."""
    return demo(args.seed, say)


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit code.

    0: it worked   1: a comparison failed   2: bad input   130, 143: interrupted, terminated
    Under mpiexec an error of one rank alone, but for rank 0, is raised: 1, with its traceback.

    The code tells of the work: it is the same if the output cannot be shown.
    """
    with safe(), warnings.catch_warnings():
        warnings.showwarning = lambda message, *where: _warn(f"warning: {message}")
        try:
            return _run(argv)
        except KeyboardInterrupt as stop:
            after_rank_0()
            _complain(str(stop) or "interrupted; nothing new was saved")
            return 130
        except SystemExit:
            after_rank_0()
            raise
        except BAD_INPUT as error:
            if after_rank_0():
                raise
            _complain(_sentence(error))
            return 2


def _run(argv: list[str] | None) -> int:
    args = parse(command_line(), sys.argv[1:] if argv is None else argv)
    if args.ranked and argv is None:
        begin()

    def say(line: str) -> None:
        if rank() == 0:
            print(line, file=sys.stderr if args.json is True else sys.stdout, flush=True)

    if args.threads is not None:
        threads(args.threads)
    if not getattr(args, "shape", None):  # a plan chooses its own backend
        backend.use(args.backend, plain=args.plain)
    result = args.command(args, say)
    if args.json is True and rank() == 0:  # `ex grade --json FILE` writes a file
        print(json.dumps(result))
    sys.stdout.flush()
    if "failed" in result:
        _complain(result["failed"])
    return int(result.get("passed") is False)


def _warn(message: str) -> None:
    if rank() == 0:
        _complain(message)


def _complain(message: str) -> None:
    print(f"minilora: {message}", file=sys.stderr, flush=True)


def _sentence(error: BaseException) -> str:
    """The error as one sentence."""
    if isinstance(error, MemoryError):
        why = f" ({error})" if str(error) else ""
        return f"there is not enough memory{why}: try a smaller --batch or --r"
    if isinstance(error, ModuleNotFoundError) and error.name == "hypothesis":
        return f"the exercises need hypothesis: {INSTALL('exercises')}"
    if isinstance(error, KeyError):
        return str(error.args[0])
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"there is no file {error.filename}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {reason(error)}" if error.filename else reason(error)
    return str(error)
