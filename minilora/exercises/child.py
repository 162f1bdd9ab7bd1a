"""The judge's processes: how they are started, and what is said if they cannot begin."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

BEGIN = 60.0  # seconds until a process is ready; importing NumPy can be slow on a busy machine
PASSED_ON = ("OPENBLAS_", "MKL_", "BLIS_", "NPY_")  # variables that choose how numbers are computed
ERROR = re.compile(r"[A-Za-z_.]+(Error|Exception|Exit|Interrupt)\b")  # a traceback's last line


class Fault(RuntimeError):
    """A process of the judge cannot begin. No student is to blame: no file is judged."""


def start(module: str, function: str, **options: Any) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start a function of this folder in a new Python process, with pipes to it and from it.

    The process imports what this one imports: it has the same sys.path. Returns it, and the file
    with its stderr. Raises Fault if it cannot be started.
    """
    package = str(Path(__file__).resolve().parents[2])
    where = [os.path.abspath(one) for one in sys.path if isinstance(one, str)]
    where = where if package in map(os.path.realpath, where) else [package, *where]
    code = f"import sys; sys.path[:] = {where!a}; " \
           f"from minilora.exercises.{module} import {function}; {function}()"
    with contextlib.ExitStack() as opened:
        try:
            words = opened.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=words, **options,
            )
        except (OSError, ValueError) as error:
            raise fault(f"a process cannot be started: {error}") from error
        opened.pop_all()  # whoever ends the process closes the file
    return process, words


def fault(why: str, words: IO[bytes] | None = None) -> Fault:
    """Return the error of a judge that cannot begin, with its process's words and a remedy."""
    lines: list[str] = []
    if words is not None:
        words.seek(0)
        text = words.read().decode("utf-8", "replace")
        lines = [line for line in map(str.strip, text.splitlines()) if line]
    first = next((i for i in range(len(lines) - 1, -1, -1) if ERROR.match(lines[i])), -1)
    said = " ".join(dict.fromkeys(lines[first:][:1] + lines[-1:]))[:300]
    python = sys.executable or "python"
    return Fault(
        f"the judge cannot run exercises: {why}{f': {said}' if said else ''}. No file was judged. "
        f"Try {python} -c 'import minilora.exercises.worker': when it works, and when the disk and "
        "the memory have room, run this command again"
    )


def environment(folder: Path) -> dict[str, str]:
    """Return an environment with only the variables that Python and NumPy need, and one thread."""
    names = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "VIRTUAL_ENV",
             "PYTHONHOME")
    return {
        **{name: value for name, value in os.environ.items()
           if name in names or name.startswith(PASSED_ON)},
        "HOME": str(folder), "TMPDIR": str(folder), "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1", "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg",
    }
