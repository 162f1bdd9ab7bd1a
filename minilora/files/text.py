"""Text files: the one reader."""

from __future__ import annotations

import io
import os
from pathlib import Path

from .atomic import reason


def read(path: str | os.PathLike[str], most: int | None = None, name: str = "") -> str:
    r"""Return the text of a UTF-8 file, with \n between its lines.

    The mark that some editors put in front (a BOM) is no part of the text.
    most: the largest size in bytes. name: what an error calls the file; its path by default.
    Raises ValueError, with the remedy, for a file that is too large, no text or not readable.
    """
    name, path = name or str(path), Path(path)
    if path.is_dir() or path.is_block_device() or path.is_char_device():
        raise ValueError(f"{name} is a {'folder' if path.is_dir() else 'device'}: give a text file")
    try:
        with path.open("rb") as file:
            content = bytearray()  # in pieces: read(n) takes memory for n bytes at once
            while (most is None or len(content) <= most) and (piece := file.read(1 << 20)):
                content += piece
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {reason(error)}") from error
    if most is not None and len(content) > most:
        raise ValueError(f"{name} is larger than {most >> 20} MiB, the limit")
    try:
        return io.TextIOWrapper(io.BytesIO(content), "utf-8-sig").read()
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} is {error.object[error.start]:#04x}"
        raise ValueError(f"{name} is not UTF-8 text: {wrong}: save it as UTF-8") from None
