"""SIGINT and SIGTERM, deferred until the current step is finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..backend.blocks import block, restoring


@block
def deferred(wanted: bool = True) -> Iterator[list[int]]:
    """Defer SIGINT and SIGTERM in the block. Yield the list of those received, for `answer`.

    A second SIGINT interrupts at once. After the block the handlers are as before, and a signal
    without an answer is raised again. Signals that the process ignores stay ignored. Outside the
    main thread nothing changes, because Python delivers signals there only.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            received.clear()
            raise KeyboardInterrupt
        received.append(number)

    before: dict[int, Any] = {}
    if wanted and threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {n: h for n, h in handlers.items() if h not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    with restoring(restore):
        for number in before:
            signal.signal(number, note)
        yield received
    if received:
        signal.raise_signal(received[0])


def answer(received: list[int], message: str, say: Callable[[str], None]) -> BaseException:
    """Return the exception for the first signal, and clear the list.

    KeyboardInterrupt(message) for SIGINT. SystemExit(143) for SIGTERM, which has no message, so the
    message is passed to `say`.
    """
    number = received[0]
    received.clear()
    if number == signal.SIGINT:
        return KeyboardInterrupt(message)
    say(message)
    return SystemExit(128 + number)
