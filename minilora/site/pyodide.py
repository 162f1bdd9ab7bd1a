"""Pyodide, a Python for browsers: at an address, or its files from a folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "matplotlib")  # what the page asks Pyodide for
CORE = re.compile(r"pyodide\.mjs|pyodide\.asm\.(js|mjs|wasm)|python_stdlib\.zip|pyodide-lock\.json")
ADDRESS = re.compile(r"https?://", re.IGNORECASE)


def check(place: str) -> None:
    """Raise ValueError, with the remedy, unless `place` is an address or a folder of Pyodide."""
    if not ADDRESS.match(place):
        _lock(Path(place))


def at(place: str) -> tuple[str, dict[str, bytes]]:
    """Return Pyodide's address for a page of the site, and the files that the site needs for it.

    place: an address, which needs no file, or a folder, whose files go to pyodide/ in the site.
    """
    if ADDRESS.match(place):
        return place.rstrip("/") + "/", {}
    folder, packages = Path(place), _lock(Path(place))
    names = [path.name for path in folder.iterdir() if CORE.fullmatch(path.name)]
    names += [packages[one]["file_name"] for one in _with_needs(packages)]
    return "pyodide/", {
        f"pyodide/{name}": (folder / name).read_bytes()
        for name in sorted(names) if (folder / name).is_file()
    }


def _lock(folder: Path) -> dict[str, Any]:
    """Return Pyodide's list of packages, by name."""
    needed, found = ["pyodide.mjs", "pyodide.asm.wasm", "python_stdlib.zip"], {}
    try:
        found = json.loads((folder / "pyodide-lock.json").read_text("utf-8"))["packages"]
        needed.append(found["numpy"]["file_name"])
    except (OSError, ValueError, KeyError, TypeError):
        needed.append("pyodide-lock.json with NumPy in it")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"--live {folder}: this folder has no {missing[0]}: give a folder with Pyodide and "
            "NumPy, or the address of one, which begins with https://"
        )
    return dict(found)


def _with_needs(packages: dict[str, Any]) -> list[str]:
    """Return the PACKAGES that there are, and all that they need."""
    result, todo = [], [*PACKAGES]
    while todo:
        name = todo.pop()
        if name in packages and name not in result:
            result.append(name)
            todo += packages[name]["depends"]
    return sorted(result)
