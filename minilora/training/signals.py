"""SIGINT and SIGTERM, kept until what is in hand is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def kept(wanted: bool = True) -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM are only noted, in the list that this gives, for `answer`.

    A second SIGINT interrupts at once. Afterwards the handlers are as they were, and a signal that
    was not answered comes through. Signals that the process ignores stay ignored; in a thread other
    than the main one nothing changes, as Python brings no signal there.
    """
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        if noted and number == signal.SIGINT:
            noted.clear()
            raise KeyboardInterrupt
        noted.append(number)

    before: dict[int, Any] = {}
    if wanted and threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {n: h for n, h in found.items() if h not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, note)
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])


def answer(noted: list[int], message: str, say: Callable[[str], None]) -> BaseException:
    """What to raise for the first of them: KeyboardInterrupt(message), or SystemExit(143) for a
    SIGTERM, whose message is said, as that exit has none."""
    number = noted[0]
    noted.clear()
    if number == signal.SIGINT:
        return KeyboardInterrupt(message)
    say(message)
    return SystemExit(128 + number)
