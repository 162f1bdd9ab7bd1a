"""Chapters executed in kernels of this interpreter, two at a time; or what is kept of them."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import cache as kept
from .contents import PACKAGE, Chapter, notebook

TOGETHER = 2  # kernels at a time
PATIENCE = 300  # seconds for one cell: a chapter takes 20


def executed(chapters: Sequence[Chapter], say: Callable[[str], None]) -> list[Any]:
    """Each chapter as a notebook with what its cells print and draw.

    Raises RuntimeError where one fails: which cell, which line, and why.
    """
    return asyncio.run(_all(chapters, say))


async def _all(chapters: Sequence[Chapter], say: Callable[[str], None]) -> list[Any]:
    free = asyncio.Semaphore(TOGETHER)

    async def one(chapter: Chapter) -> Any:
        async with free:
            return await _one(chapter, say)

    tasks = [asyncio.create_task(one(chapter)) for chapter in chapters]
    try:
        return await asyncio.gather(*tasks)
    finally:  # one has failed: nobody waits for the others
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(chapter: Chapter, say: Callable[[str], None]) -> Any:
    import nbformat

    source = chapter.source
    name = f"{chapter.name}-{kept.key(source)}.ipynb"
    text = kept.get(name)
    if text is not None:
        say(f"{chapter.number} {chapter.title}: kept")
        return nbformat.reads(text, as_version=4)
    began = time.monotonic()
    book = await _run(chapter, notebook(source))
    say(f"{chapter.number} {chapter.title}: ran in {time.monotonic() - began:.1f} s")
    kept.put(name, nbformat.writes(book))
    return book


async def _run(chapter: Chapter, book: Any) -> Any:
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    class Here(KernelSpecManager):
        """Whatever kernels are registered: the interpreter that runs now."""

        def get_kernel_spec(self, kernel_name: str) -> Any:
            return KernelSpec(**get_kernel_dict())

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        kernel = AsyncKernelManager(
            kernel_spec_manager=Here(), transport="ipc" if os.name == "posix" else "tcp",
            connection_file=os.path.join(folder, "kernel.json"),
        )
        paths = filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])
        own = {
            "MPLBACKEND": "Agg",  # viz.show() shows what there is
            "OPENBLAS_NUM_THREADS": "1",  # two kernels, two cores
            # Idle lanes of a BLAS kernel may raise this flag; wrong values fail a chapter's check.
            "PYTHONWARNINGS": "ignore:invalid value encountered in matmul:RuntimeWarning",
            "IPYTHONDIR": folder, "PYTHONPATH": os.pathsep.join(paths),
        }
        client = NotebookClient(book, kernel, timeout=PATIENCE, coalesce_streams=True)
        try:  # cell by cell: `execute` would take the signals of this process for itself
            await kernel.start_kernel(
                env={**os.environ, **own}, cwd=folder, stderr=subprocess.DEVNULL
            )
            client.kc = kernel.client()
            client.kc.start_channels()
            await client.kc.wait_for_ready(timeout=60)
            for i, cell in enumerate(book.cells):
                try:
                    await client.async_execute_cell(cell, i)
                except (CellControlSignal, DeadKernelError) as error:
                    raise RuntimeError(_told(chapter, cell.source, error)) from error
        finally:
            if client.kc is not None:
                client.kc.stop_channels()
            await kernel.shutdown_kernel(now=True)
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # when it ran
    return book


def _told(chapter: Chapter, cell: str, error: Any) -> str:
    """Where it stopped, and why."""
    line = chapter.source[: max(0, chapter.source.find(cell))].count("\n") + 1
    if isinstance(error, TimeoutError):
        why = f"a cell took more than {PATIENCE} s"
    elif not hasattr(error, "ename"):
        why = "its process died"
    else:
        why = " ".join(f"{error.ename}: {error.evalue}".split()).removesuffix(":")
        plain = re.sub(r"\x1b\[[\d;]*m", "", str(error))
        inside = re.search(r"Cell In\s?\[\d+\], line (\d+)", plain)
        line += int(inside[1]) - 1 if inside else 0
    return f"chapter {chapter.number} fails at {chapter.path.name}, line {line}: {why}"
