"""Messages between the judge and the process that runs a student's code: values as bytes.

They carry data only, never code: numbers, text, arrays of numbers; lists, tuples, dicts of them. A
function or another object crosses as a number. On the other side, something stands in for it.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Callable
from typing import IO, Any, BinaryIO

import numpy as np

MOST = 4 << 20  # bytes of one message; a judge keeps many of them in memory
READY = b"minilora is ready\n"  # the first line of a process; what it printed before is no answer


class Opaque:
    """Stands for a value of another type: the type's name, and the start of the value's repr."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind, self.text = kind, text

    def __repr__(self) -> str:
        return self.text


class New:
    """An object that the other side has to make, of a class with this name: the first of all."""

    def __init__(self, stand_in: Any, name: str, args: tuple[Any, ...]) -> None:
        self.stand_in, self.name, self.args = stand_in, name, args


class TooLong(ValueError):
    """A message of more than MOST bytes."""


def streams() -> tuple[BinaryIO, BinaryIO]:
    """Return this process's input and output as files. What it prints goes to stderr from now on.
    """
    asked, answer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return asked, answer


def ready(to: IO[bytes]) -> None:
    """Say that the messages begin."""
    to.write(b"\n" + READY)
    to.flush()


def wait(source: IO[bytes]) -> None:
    """Read until the messages begin. Raises EOFError if the process ends before."""
    while (line := source.readline()) != READY:
        if not line:
            raise EOFError


def send(to: IO[bytes], data: bytes) -> None:
    """Write one message."""
    to.write(struct.pack("<Q", len(data)) + data)
    to.flush()


def receive(source: IO[bytes]) -> bytes:
    """Read one message. Raises EOFError at the end, ValueError for bytes that are no message."""
    (length,) = struct.unpack("<Q", _exactly(source, 8))
    if length > MOST:
        raise ValueError("not a message")
    return _exactly(source, length)


def _exactly(source: IO[bytes], count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.read(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


class Both:
    """What both processes hold, one of these on each side: it packs messages, and unpacks them.

    An array that has crossed is the same array from then on: what one process writes into it, the
    other has with the next message. An array that comes with a call from the student's side, or
    with its answers, is forgotten when the call returns; all the rest at a "fresh" message.

    stand_in: makes what stands for an object of the other side, of (kind, text, callable).
    make: makes an object that the other side asks for, of (name of its class, arguments).
    tells: does the other side get the kind and the text of an object of this one?
    """

    def __init__(self, stand_in: Callable[[str, str, bool], Any],
                 make: Callable[[str, list[Any]], Any] | None = None, tells: bool = True) -> None:
        self._stand_in, self._make, self._tells = stand_in, make, tells
        self.forget()

    def forget(self) -> None:
        """Hold nothing any more. Both sides do this at the same message, which is "fresh"."""
        self._arrays: list[tuple[np.ndarray, bytes]] = []  # with its content when it last crossed
        self._marks: list[int] = []  # how many arrays there were before each call
        self._mine: dict[int, Any] = {}  # number -> an object of this side
        self._theirs: dict[int, Any] = {}  # number -> what stands here for an object of theirs
        self._numbers: dict[int, tuple[str, int]] = {}  # id of an object -> whose it is, its number

    def _keep(self, number: int, value: Any) -> Any:
        self._mine[number], self._numbers[id(value)] = value, ("mine", number)
        return value

    def _expect(self, number: int, value: Any) -> Any:
        self._theirs[number], self._numbers[id(value)] = value, ("yours", number)
        return value

    def pack(self, message: dict[str, Any]) -> bytes:
        """Return a message as bytes. Raises an exception, and holds nothing new, if it is no data.
        """
        if "fresh" in message:
            self.forget()
        body = bytearray()
        changed = [
            (i, array, now) for i, (array, before) in enumerate(self._arrays)
            if (now := array.tobytes()) != before
        ]
        changes = [[i, _array(array, body)] for i, array, _ in changed]
        before, marks = len(self._arrays), len(self._marks)
        try:
            if "call" in message:
                self._marks.append(before)
            head = json.dumps([changes, self._plain(message, body)]).encode()
            if len(head) + len(body) > MOST:
                raise TooLong(f"a message of {len(head) + len(body)} bytes")
        except BaseException:
            del self._arrays[before:], self._marks[marks:]
            raise
        for i, array, now in changed:
            self._arrays[i] = array, now
        self._returned(message)
        return struct.pack("<Q", len(head)) + head + body

    def unpack(self, data: bytes) -> dict[str, Any]:
        """Return the message in these bytes. Raises an exception if there is none."""
        (length,) = struct.unpack("<Q", data[:8])
        changes, plain = json.loads(data[8 : 8 + length])
        rest = memoryview(data)[8 + length :]
        body, keys = [rest], [key for key, _ in plain["dict"]]
        if "fresh" in keys:
            self.forget()
        for i, change in changes:
            array, new = self._arrays[i][0], _filled(change, body)
            if array.shape == new.shape and array.dtype == new.dtype:
                array[...] = new
            else:  # it was given another shape or dtype: it is another array
                array = new
            self._arrays[i] = array, new.tobytes()
        if "call" in keys:
            self._marks.append(len(self._arrays))
        message: dict[str, Any] = self._value(plain, body)
        self._returned(message)
        return message

    def _returned(self, message: dict[str, Any]) -> None:
        if "return" in message or "raise" in message:
            del self._arrays[self._marks.pop() :]

    def _plain(self, value: Any, body: bytearray) -> Any:
        """A value as JSON data; the numbers of its arrays are appended to `body`."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, np.generic) and value.dtype.kind in "biufc":
            return {"number": _array(np.asarray(value), body)}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            for i, (array, _) in enumerate(self._arrays):
                if array is value:
                    return {"held": i}
            if value.nbytes > MOST:  # before it is copied
                raise TooLong(f"an array of {value.nbytes} bytes")
            self._arrays.append((value, value.tobytes()))
            return {"array": _array(value, body)}
        if type(value) in (list, tuple):
            return {type(value).__name__: [self._plain(member, body) for member in value]}
        if type(value) is dict:
            items = value.items()
            return {"dict": [[self._plain(k, body), self._plain(v, body)] for k, v in items]}
        kind = value if isinstance(value, type) else type(value)
        if isinstance(value, np.dtype) or (value is kind and issubclass(kind, np.generic)):
            return {"dtype": np.dtype(value).str}
        if isinstance(value, np.random.Generator):
            return {"generator": value.bit_generator.state["state"]}
        if isinstance(value, np.ufunc) and getattr(np, name := str(value.__name__), 0) is value:
            return {"ufunc": name}
        if isinstance(value, New):
            number = -1 - len(self._theirs)
            self._expect(number, value.stand_in)
            return {"new": [number, value.name, *(self._plain(one, body) for one in value.args)]}
        if id(value) not in self._numbers:
            self._keep(len(self._mine), value)
        whose, number = self._numbers[id(value)]
        if whose == "yours":
            return {"yours": number}
        words = [type(value).__name__, repr(value)[:200]] if self._tells else ["function", ""]
        return {"mine": [number, *words, callable(value)]}

    def _value(self, plain: Any, body: list[memoryview]) -> Any:
        """The inverse of _plain."""
        if not isinstance(plain, dict):
            return plain
        ((kind, content),) = plain.items()
        if kind == "number":
            return _filled(content, body)[()]
        if kind == "array":
            array = _filled(content, body)
            self._arrays.append((array, array.tobytes()))
            return array
        if kind == "held":
            return self._arrays[content][0]
        if kind in ("list", "tuple"):
            members = [self._value(member, body) for member in content]
            return members if kind == "list" else tuple(members)
        if kind == "dict":
            return {self._value(k, body): self._value(v, body) for k, v in content}
        if kind == "dtype":
            return np.dtype(content)
        if kind == "generator":
            bits = np.random.PCG64()
            bits.state = {**bits.state, "state": content}
            return np.random.Generator(bits)
        if kind == "ufunc":
            return getattr(np, str(content))
        if kind == "yours":
            return self._mine[content]
        if kind == "new" and self._make is not None:
            number, name, *args = content
            return self._keep(number, self._make(name, [self._value(one, body) for one in args]))
        return self._other(*content)

    def _other(self, number: int, kind: str, text: str, calls: bool) -> Any:
        if type(number) is not int:
            raise ValueError("not a number of an object")
        if number not in self._theirs:
            self._expect(number, self._stand_in(str(kind)[:80], str(text)[:200], bool(calls)))
        return self._theirs[number]


def _array(array: np.ndarray, body: bytearray) -> list[Any]:
    body += array.tobytes()
    return [array.dtype.str, list(array.shape)]


def _filled(plain: Any, body: list[memoryview]) -> np.ndarray:
    """A new array with the next numbers of `body`."""
    kind, shape = np.dtype(plain[0]), tuple(plain[1])
    if kind.kind not in "biufc" or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("not an array of numbers")
    count = kind.itemsize * math.prod(shape)
    array = np.ndarray(shape, kind, bytes(body[0][:count]))
    body[0] = body[0][count:]
    return array.copy()
