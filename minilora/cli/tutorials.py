"""`minilora tutorials`: the chapters as a list, as scripts, as notebooks, as a site."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import http.server
import runpy
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import site
from ..exercises.book import exercises
from ..files import atomic
from ..site import folder, publish

Say = Callable[[str], None]
SITE = Path("site")
DOES = ("list", "run", "build", "notebook", "serve")
TAKES = {  # what goes with which of them
    "chapter": ("run", "notebook"), "out": ("build", "notebook", "serve"), "port": ("serve",),
}


def tutorials(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """The chapters: list, run 07, notebook 07, build -o site, serve."""
    for name, where in TAKES.items():
        given = getattr(args, name)
        if given is not None and args.do not in where:
            odd = f"{given!r}" if name == "chapter" else f"--{name}"
            raise ValueError(f"tutorials {args.do} takes no {odd}: see `minilora tutorials --help`")
    if args.chapter is None and args.do in TAKES["chapter"]:
        raise ValueError(f"tutorials {args.do} needs a chapter: tutorials {args.do} 07")
    done: dict[str, Any] = {"list": _list, "run": _run, "build": _build, "notebook": _notebook,
                            "serve": _serve}[args.do](args, say)
    return done


def _list(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    told = site.chapters()
    wide = max(len(chapter.title) for chapter in told)
    for chapter in told:
        say(f"{chapter.number}  {chapter.title:<{wide}}  {chapter.time:>10}  {chapter.can}")
    return {"chapters": [
        {"number": c.number, "title": c.title, "time": c.time, "needs": c.needs, "can": c.can,
         "remember": c.remember, "path": str(c.path)} for c in told
    ]}


def _run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """In this very process, on the backend that was asked for."""
    chapter, began = site.chapter(args.chapter), time.monotonic()
    try:
        with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
            runpy.run_path(str(chapter.path), run_name="__main__")
    except Exception as error:
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__)
                 if at.filename == str(chapter.path)]
        where = f"{chapter.path}, line {lines[-1] if lines else '?'}"
        why = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise RuntimeError(f"chapter {chapter.number} fails at {where}: {why}") from error
    seconds = time.monotonic() - began
    tasks = [one.number for one in exercises() if one.chapter == chapter.number]
    if tasks:
        say(f"\nTo try it yourself: exercise {', '.join(tasks)}, after minilora ex init")
    return {"chapter": chapter.number, "seconds": seconds, "exercises": tasks}


def _build(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    if args.backend != "numpy" or args.plain:
        odd = "--plain" if args.plain else f"--backend {args.backend}"
        raise ValueError(f"tutorials build takes no {odd}: tutorials run 07 {odd} does")
    return site.build(args.out or SITE, say)


def _notebook(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    chapter = site.chapter(args.chapter)
    out = args.out or Path(f"{chapter.name}.ipynb")
    atomic.check(out, ".ipynb")
    publish.need("jupytext")
    with atomic.writing(out) as file:
        file.write(site.notebook_text(chapter).encode())
    say(f"{out}: {chapter.number}. {chapter.title}")
    return {"chapter": chapter.number, "notebook": str(out)}


def _serve(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Until it is interrupted, on this machine alone."""
    out = args.out or SITE
    if not folder.is_site(out):
        raise ValueError(f"{out} holds no site: minilora tutorials build -o {out} makes it")
    handler = functools.partial(_Quiet, directory=str(out))
    port = 8000 if args.port is None else args.port
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "may not be used" if error.errno == errno.EACCES else "is taken"
        raise ValueError(f"--port {port} {why}: give another") from error
    with server, contextlib.suppress(KeyboardInterrupt):
        where = f"http://127.0.0.1:{server.server_address[1]}/"
        say(f"{out} is at {where} until you press Ctrl-C")
        server.serve_forever()
    return {"site": str(out)}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing: what is asked for is not of interest."""
