"""`minilora tutorials`: the chapters as a list, as scripts, as notebooks and as a site."""

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
from pathlib import Path
from typing import Any

from .. import site
from ..exercises.book import exercises
from ..files import atomic
from ..site import folder, publish
from . import inputs
from .parser import Parser, Say, integer


def add_to(top: Parser) -> None:
    to = top.command("tutorials", None, "List, run or read the chapters.")
    to.command("list", list_chapters)
    for name, run in (("run", run_chapter), ("notebook", write_notebook)):
        sub = to.command(name, run)
        sub.argument("chapter", "its number, such as 07", needs=f"a chapter: tutorials {name} 07")
    sub.option("-o", "--out", read=Path, help="the file to write (named after the chapter)")
    sub.flag("--force", help="replace the file, if it is there and differs")
    for name, run in (("build", build), ("serve", serve)):
        sub = to.command(name, run)
        sub.option("-o", "--out", read=Path, help="the folder of the site", default="site")
        if run is build:
            sub.option("--live", read=str, help="add a page that runs Python in the browser: "
                       "Pyodide's address, or a folder with it, which is copied")
    sub.option("--port", read=integer(0, 65535), help="port; 0: any free port", default=8000)


def list_chapters(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """List the chapters: title, time, and what you can do afterwards."""
    chapters = site.chapters()
    width = max(len(chapter.title) for chapter in chapters)
    for chapter in chapters:
        say(f"{chapter.number}  {chapter.title:<{width}}  {chapter.time:>10}  {chapter.can}")
    return {"chapters": [
        {"number": c.number, "title": c.title, "time": c.time, "needs": c.needs, "can": c.can,
         "remember": c.remember, "path": str(c.path)} for c in chapters
    ]}


def run_chapter(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Run a chapter as a script."""
    chapter, start = site.chapter(args.chapter), time.monotonic()
    try:
        with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
            runpy.run_path(str(chapter.path), run_name="__main__")
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == str(chapter.path)]
        place = f"{chapter.path}, line {lines[-1] if lines else '?'}"
        reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise RuntimeError(f"chapter {chapter.number} fails at {place}: {reason}") from error
    seconds = time.monotonic() - start
    numbers = [one.number for one in exercises() if one.chapter == chapter.number]
    if numbers:
        say(f"\nTo try it yourself: exercise {', '.join(numbers)}, after minilora ex init")
    return {"chapter": chapter.number, "seconds": seconds, "exercises": numbers}


def build(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Run all chapters and write the site."""
    if args.backend != "numpy" or args.plain:
        option = "--plain" if args.plain else f"--backend {args.backend}"
        raise ValueError(
            f"tutorials build takes no {option}: tutorials run 07 {option} runs one chapter so"
        )
    return site.build(args.out, say, live=args.live)


def write_notebook(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Write a chapter as a notebook for Jupyter."""
    chapter = site.chapter(args.chapter)
    out = args.out or Path(f"{chapter.name}.ipynb")
    atomic.check(out, ".ipynb")
    publish.need("jupytext")
    book = site.notebook_text(chapter).encode()
    if not (out.exists() and out.read_bytes() == book):
        inputs.check_new(out, args.force, "give another name with -o, or --force")
        with atomic.writing(out) as file:
            file.write(book)
    say(f"{out}: {chapter.number}. {chapter.title}")
    return {"chapter": chapter.number, "notebook": str(out)}


def serve(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Serve the site on this machine; Ctrl-C stops."""
    if not folder.is_site(args.out):
        raise ValueError(
            f"{args.out} holds no site: minilora tutorials build -o {args.out} writes one"
        )
    handler = functools.partial(_Quiet, directory=str(args.out))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", args.port), handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        reason = "needs more rights" if error.errno == errno.EACCES else "is taken"
        raise ValueError(f"--port {args.port} {reason}: give another") from error
    with server, contextlib.suppress(KeyboardInterrupt):
        say(f"{args.out} is at http://127.0.0.1:{server.server_address[1]}/ until you press Ctrl-C")
        server.serve_forever()
    return {"site": str(args.out)}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Print nothing for a request."""
