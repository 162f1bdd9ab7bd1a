"""signals: deferred, answered once, never lost; every handler is restored back."""

import signal
import threading

import pytest

from minilora.training import signals

BOTH = signal.SIGINT, signal.SIGTERM


@pytest.fixture(autouse=True)
def handlers_are_restored(backend):
    if backend.name != "numpy":
        pytest.skip("uses no array")
    before = [signal.getsignal(number) for number in BOTH]
    yield
    after = [signal.getsignal(number) for number in BOTH]
    for number, handler in zip(BOTH, before):
        signal.signal(number, handler)
    assert before == after


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_is_received_and_deferred(number):
    with signals.deferred() as received:
        assert received == []
        signal.raise_signal(number)
        assert received == [number]
        received.clear()


def test_the_first_is_answered_and_only_once():
    lines = []
    with (
        pytest.raises(KeyboardInterrupt, match="after 3") as interrupt,
        signals.deferred() as received,
    ):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        raise signals.answer(received, "after 3", lines.append)
    assert interrupt.value.__context__ is None and lines == []
    with pytest.raises(SystemExit) as left, signals.deferred() as received:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        raise signals.answer(received, "after 3", lines.append)
    assert left.value.code == 128 + signal.SIGTERM and lines == ["after 3"]


@pytest.mark.parametrize("first", BOTH)
def test_a_second_sigint_interrupts_at_once(first):
    steps = []
    with pytest.raises(KeyboardInterrupt), signals.deferred():
        signal.raise_signal(first)
        steps.append(1)
        signal.raise_signal(signal.SIGINT)
        steps.append(2)
    assert steps == [1]


def test_a_second_sigterm_waits_like_the_first():
    with signals.deferred() as received:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert received
        received.clear()


@pytest.mark.parametrize("way", ["end", "error"])
def test_a_signal_without_an_answer_is_raised_again(way):
    with pytest.raises(KeyboardInterrupt), signals.deferred():
        signal.raise_signal(signal.SIGINT)
        if way == "error":
            raise ArithmeticError


def test_it_reaches_the_callers_own_handler():
    arrived = []
    signal.signal(signal.SIGTERM, lambda number, frame: arrived.append(number))
    try:
        with signals.deferred():
            signal.raise_signal(signal.SIGTERM)
            assert not arrived
        assert arrived == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_signal_that_the_process_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.deferred() as received:
            signal.raise_signal(signal.SIGINT)
            assert received == [] and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    """There, getsignal returns None, which cannot be restored."""
    own, restored = signal.getsignal, []
    foreign = {signal.SIGTERM: None}
    monkeypatch.setattr(
        signals.signal, "getsignal", lambda n: foreign[n] if n in foreign else own(n)
    )
    monkeypatch.setattr(signals.signal, "signal", lambda n, handler: restored.append(n))
    with signals.deferred():
        pass
    assert restored == [signal.SIGINT] * 2


def test_nothing_is_deferred_where_it_is_not_wanted_or_in_another_thread():
    before, handlers = [signal.getsignal(n) for n in BOTH], []

    def look(wanted: bool) -> None:
        with signals.deferred(wanted):
            handlers.append([signal.getsignal(n) for n in BOTH])

    look(False)
    thread = threading.Thread(target=look, args=(True,))
    thread.start()
    thread.join()
    assert handlers == [before, before]
    look(True)
    assert handlers[2] != before


def test_one_inside_another_keeps_its_own():
    with signals.deferred() as outer:
        with signals.deferred() as inner:
            signal.raise_signal(signal.SIGINT)
            assert inner and not outer
            inner.clear()
        signal.raise_signal(signal.SIGTERM)
        assert outer == [signal.SIGTERM]
        outer.clear()
