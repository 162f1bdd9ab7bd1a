"""The folder for what can be computed again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def folder(name: str) -> Path:
    """Return the folder of this name in the user's cache; it may not exist yet.

    A user without a home folder, as in some containers, has one in the folder of temporary files.
    """
    place = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    try:
        top = Path(place) if place else Path.home() / ".cache"
    except RuntimeError:
        top = Path(tempfile.gettempdir())
    return top / "minilora" / name
