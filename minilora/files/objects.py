"""JSON objects in files, which may come from a stranger: read strictly."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from ..checks import describe
from . import text
from .blame import blamed

LARGEST = 1 << 23  # bytes of a file


def read(path: str | os.PathLike[str], most: int = LARGEST) -> dict[str, Any]:
    """Return the JSON object in a file. A ValueError begins with the file's name; see `parse`."""
    with blamed(path):
        return parse(text.read(path, most).encode(), os.path.basename(path))


def parse(content: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object in these bytes, which errors call "its `name`".

    Raises ValueError for nan, infinity, a repeated name, a huge integer and too many levels.
    """

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number} is not a finite number")
        return value

    def integer(digits: str) -> int:
        if len(digits) > 40:
            raise ValueError(f"a number has {len(digits):,} digits")
        return int(digits)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise ValueError("a name appears twice")
        return result

    try:
        result = json.loads(
            content.decode(), parse_float=finite, parse_int=integer, parse_constant=finite,
            object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(f"its {name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"its {name}: {error}") from error
    if not isinstance(result, dict):
        raise ValueError(f"its {name} is {describe(result)}, not an object")
    return result
