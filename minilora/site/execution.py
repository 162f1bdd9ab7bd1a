"""Run chapters as notebooks, two at a time, in kernels of this interpreter."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import cache
from .contents import PACKAGE, Chapter, notebook

TOGETHER = 2  # kernels at a time
PATIENCE = 300  # seconds for one cell; a chapter takes about 20


def executed(chapters: Sequence[Chapter], say: Callable[[str], None]) -> list[Any]:
    """Return each chapter as a notebook with outputs, run or from the cache.

    Raises RuntimeError if a chapter fails, with the line and the reason.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_all(chapters, say))
    with ThreadPoolExecutor(1) as other:  # a notebook has a running loop, and a thread has one only
        return other.submit(lambda: asyncio.run(_all(chapters, say))).result()


async def _all(chapters: Sequence[Chapter], say: Callable[[str], None]) -> list[Any]:
    free = asyncio.Semaphore(TOGETHER)

    async def one(chapter: Chapter) -> Any:
        async with free:
            return await _one(chapter, say)

    say(f"{len(chapters)} chapters, {TOGETHER} at a time; one takes up to a minute")
    tasks = [asyncio.create_task(one(chapter)) for chapter in chapters]
    try:
        return await asyncio.gather(*tasks)
    finally:  # if one has failed, stop the others
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(chapter: Chapter, say: Callable[[str], None]) -> Any:
    import nbformat

    source = chapter.source
    name = f"{chapter.name}-{cache.key(source)}.ipynb"
    text = cache.get(name)
    if text is not None:
        say(f"{chapter.number} {chapter.title}: from the cache")
        return nbformat.reads(text, as_version=4)
    began = time.monotonic()
    book = await _run(chapter, notebook(source))
    say(f"{chapter.number} {chapter.title}: ran in {time.monotonic() - began:.1f} s")
    cache.put(name, nbformat.writes(book))
    return book


async def _run(chapter: Chapter, book: Any) -> Any:
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    class Here(KernelSpecManager):
        """A kernel of this interpreter, whichever kernels are registered."""

        def get_kernel_spec(self, kernel_name: str) -> Any:
            return KernelSpec(**get_kernel_dict())

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        kernel = AsyncKernelManager(
            kernel_spec_manager=Here(), transport="ipc" if os.name == "posix" else "tcp",
            connection_file=os.path.join(folder, "kernel.json"),
        )
        paths = filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])
        variables = {
            "MPLBACKEND": "Agg",  # figures appear as images, not in windows
            "OPENBLAS_NUM_THREADS": "1",  # two kernels run at a time
            # Unused lanes of a BLAS kernel may raise this flag; the chapters check the values.
            "PYTHONWARNINGS": "ignore:invalid value encountered in matmul:RuntimeWarning",
            "IPYTHONDIR": folder, "PYTHONPATH": os.pathsep.join(paths),
        }
        client = NotebookClient(book, kernel, timeout=PATIENCE, coalesce_streams=True)
        try:  # cell by cell, as `execute` installs signal handlers of its own
            await kernel.start_kernel(
                env={**os.environ, **variables}, cwd=folder, stderr=subprocess.DEVNULL
            )
            client.kc = kernel.client()
            client.kc.start_channels()
            await client.kc.wait_for_ready(timeout=60)
            for i, cell in enumerate(book.cells):
                try:
                    await client.async_execute_cell(cell, i)
                except (CellControlSignal, DeadKernelError) as error:
                    raise RuntimeError(_failure(chapter, cell.source, error)) from error
        finally:
            if client.kc is not None:
                client.kc.stop_channels()
            await kernel.shutdown_kernel(now=True)
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # times, which differ in every run
    return book


def _failure(chapter: Chapter, cell: str, error: Any) -> str:
    """Return the chapter, the line and the reason of a failure."""
    line = chapter.source[: max(0, chapter.source.find(cell))].count("\n") + 1
    if isinstance(error, TimeoutError):
        why = f"a cell took more than {PATIENCE} s"
    elif not hasattr(error, "ename"):
        why = "its process ended"
    else:
        why = " ".join(f"{error.ename}: {error.evalue}".split()).removesuffix(":")
        plain = re.sub(r"\x1b\[[\d;]*m", "", str(error))
        inside = re.search(r"Cell In\s?\[\d+\], line (\d+)", plain)
        line += int(inside[1]) - 1 if inside else 0
    return f"chapter {chapter.number} fails at {chapter.path.name}, line {line}: {why}"
