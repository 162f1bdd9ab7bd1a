"""When arrays were written to in place. The tape asks before it uses an array that it kept."""

from itertools import count
from typing import Any

ticks = count(1)  # the time: one tick for each step of the tape and each write
_last: dict[int, int] = {}  # id of the array that owns the memory -> tick of the last write to it


def wrote(*arrays: Any) -> None:
    """Note that these arrays were written to: their owners, if they are views."""
    for array in arrays:
        _last[id(owner(array))] = _last[0] = next(ticks)


def last_write(array: Any = None) -> int:
    """Return when this array (None: any array) was last written to; 0: never."""
    return _last.get(0 if array is None else id(owner(array)), 0)


def owner(array: Any) -> Any:
    """Return the array that owns the memory of a view."""
    while hasattr(getattr(array, "base", None), "dtype"):
        array = array.base
    return array
