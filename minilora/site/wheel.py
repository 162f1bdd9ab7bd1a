"""The package as a wheel, made of the files that are running: installed, or in a checkout.

No build tool and no index is asked, so a published page loads the code that built it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import zipfile
from pathlib import Path

from .. import __version__
from .contents import PACKAGE, folder

WHEN = (1980, 1, 1, 0, 0, 0)  # of every file: the same code gives the same bytes


def wheel() -> tuple[str, bytes]:
    """Return the name and the bytes of the wheel: what `pip install` and Pyodide take."""
    about = f"minilora-{__version__}.dist-info"
    files = {
        f"minilora/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes()
        for path in sorted(PACKAGE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    files |= {
        f"minilora/tutorials/{path.name}": path.read_bytes()
        for path in sorted(folder().iterdir()) if path.is_file()
    }
    files[f"{about}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: minilora\nVersion: {__version__}\n"
        "License: MIT\nRequires-Dist: numpy>=2.0\n"  # 2.1 is for `shapes`, which no browser runs
    ).encode()
    files[f"{about}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: minilora\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files |= {f"{about}/licenses/LICENSE": path.read_bytes() for path in _licence()}
    rows = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{about}/RECORD"] = "\n".join([*rows, f"{about}/RECORD,,", ""]).encode()
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, WHEN)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
    return f"minilora-{__version__}-py3-none-any.whl", result.getvalue()


def _licence() -> list[Path]:
    """Return the licence's file: of a checkout, or of the installed package. None: []."""
    places = [PACKAGE.parent / "LICENSE"] if (PACKAGE.parent / "pyproject.toml").exists() else []
    try:
        files = importlib.metadata.files("minilora") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    places += [Path(str(file.locate())) for file in files if file.name == "LICENSE"]
    return [path for path in places if path.is_file()][:1]


def _digest(data: bytes) -> str:
    """Return a file's digest as a RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
