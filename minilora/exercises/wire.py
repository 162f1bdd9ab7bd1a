"""Messages between the judge and the process that runs a student's code: values as bytes.

They carry data only, never code: numbers, text, arrays of numbers; lists, tuples, dicts of them.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
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


def send(to: IO[bytes], value: Any) -> None:
    """Write one message. Raises TooLong, or another exception for a value that is no data."""
    arrays: list[np.ndarray] = []
    head = json.dumps(_plain(value, arrays)).encode()
    body = io.BytesIO()
    for array in arrays:
        np.lib.format.write_array(body, array, allow_pickle=False)
    if len(head) + body.tell() > MOST:
        raise TooLong(f"a message of {len(head) + body.tell()} bytes")
    to.write(struct.pack("<QQ", len(head), body.tell()) + head + body.getvalue())
    to.flush()


def receive(source: IO[bytes]) -> Any:
    """Read one message. Raises EOFError at the end, ValueError for bytes that are no message."""
    lengths = _exactly(source, 16)
    first, second = struct.unpack("<QQ", lengths)
    if first + second > MOST:
        raise ValueError("not a message")
    head, body = _exactly(source, first), io.BytesIO(_exactly(source, second))
    return _value(json.loads(head), body)


def _exactly(source: IO[bytes], count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.read(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _plain(value: Any, arrays: list[np.ndarray]) -> Any:
    """A value as JSON data; its arrays are appended to `arrays`."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        arrays.append(np.ascontiguousarray(value).reshape(np.shape(value)))
        return {"array": isinstance(value, np.ndarray)}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_plain(member, arrays) for member in value]}
    if type(value) is dict:
        return {"dict": [[_plain(k, arrays), _plain(v, arrays)] for k, v in value.items()]}
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return {"dtype": np.dtype(value).str}
    if isinstance(value, np.random.Generator):
        return {"generator": value.bit_generator.state["state"]}
    if isinstance(value, Opaque):
        return {"opaque": [value.kind, value.text]}
    return {"opaque": [type(value).__name__, repr(value)[:200]]}


def _value(plain: Any, body: IO[bytes]) -> Any:
    """The inverse of _plain."""
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "array":
        array = np.lib.format.read_array(body, allow_pickle=False)
        if array.dtype.kind not in "biufc":
            raise ValueError("not an array of numbers")
        return array if content else array[()]
    if kind in ("list", "tuple"):
        members = [_value(member, body) for member in content]
        return members if kind == "list" else tuple(members)
    if kind == "dict":
        return {_value(k, body): _value(v, body) for k, v in content}
    if kind == "dtype":
        return np.dtype(content)
    if kind == "generator":
        bits = np.random.PCG64()
        bits.state = {**bits.state, "state": content}
        return np.random.Generator(bits)
    return Opaque(str(content[0])[:80], str(content[1])[:200])
