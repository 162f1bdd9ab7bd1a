"""When arrays were written to in place. The tape asks before it uses an array that it kept."""

from collections.abc import Iterator
from itertools import count
from types import FunctionType, ModuleType
from typing import Any

from .library import current

ticks = count(1)  # the time: one tick for each step of the tape and each write
_last: dict[int, int] = {}  # id of the array that owns the memory -> tick of the last write to it


def wrote(*arrays: Any) -> None:
    """Note that these arrays were written to: their owners, if they are views."""
    for array in arrays:
        if hasattr(array, "strides"):  # a matrix of codes has said it of its own arrays
            _last[id(current().owner(array))] = _last[0] = next(ticks)


def last_write(array: Any = None) -> int:
    """Return when this array (None: any array) was last written to; 0: never."""
    return _last.get(0 if array is None else id(current().owner(array)), 0)


def held(thing: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yield the arrays that a rule keeps: in closures, tensors, containers and objects, at any
    depth."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, type | ModuleType | str | int | float | None):
        return
    seen.add(id(thing))
    if hasattr(thing, "dtype") and hasattr(thing, "strides"):
        yield thing
        return
    inside: Any = getattr(thing, "__dict__", {}).values()
    if isinstance(thing, FunctionType):
        inside = map(_content, thing.__closure__ or ())
    elif isinstance(thing, list | tuple | dict):
        inside = thing.values() if isinstance(thing, dict) else thing
    elif hasattr(thing, "_data"):  # a Tensor
        inside = [thing._data]
    for item in inside:
        yield from held(item, seen)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the variable was deleted
        return None
