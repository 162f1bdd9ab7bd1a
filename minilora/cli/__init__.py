"""The command line: `minilora` is the demo; `minilora COMMAND --help` tells the rest.

parser.py understands what is typed, or says what is wrong with it; inputs.py reads bases, texts and
adapters; finetune.py and commands.py do the work.
"""

from __future__ import annotations

import json
import sys
import warnings

from .. import backend
from ..backend.threads import threads
from ..files.atomic import said
from .parser import parse

# What bad input leads to. A TypeError or an AttributeError does not: that is a mistake of ours.
REFUSED = (ValueError, KeyError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError,
           EOFError)


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its code.

    0: it worked   1: a comparison failed   2: bad input   130, 143: interrupted, terminated
    141: nobody reads what it prints
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where: _tell(f"warning: {message}")
        try:
            return _run(argv)
        except BrokenPipeError:
            return 141
        except KeyboardInterrupt as stop:
            _tell(str(stop) or "interrupted; nothing new was kept")
            return 130
        except REFUSED as error:
            _tell(_words(error))
            return 2


def _run(argv: list[str] | None) -> int:
    args = parse(argv)

    def say(line: str) -> None:
        print(line, file=sys.stderr if args.json is True else sys.stdout, flush=True)

    if args.threads is not None:
        threads(args.threads)
    if not getattr(args, "shape", None):  # a plan chooses its own
        backend.use(args.backend, plain=args.plain)
    result = args.command(args, say)
    if args.json is True:  # `ex grade --json FILE` writes a file
        print(json.dumps(result))
    sys.stdout.flush()
    if "failed" in result:
        _tell(result["failed"])
    return int(result.get("passed") is False)


def _tell(message: str) -> None:
    print(f"minilora: {message}", file=sys.stderr, flush=True)


def _words(error: BaseException) -> str:
    """One plain sentence."""
    if isinstance(error, MemoryError):
        why = f" ({error})" if str(error) else ""
        return f"there is not enough memory{why}: ask for less, such as a smaller --batch or --r"
    if isinstance(error, KeyError):
        return str(error.args[0])
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"there is no file {error.filename}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {said(error)}" if error.filename else said(error)
    return str(error)
