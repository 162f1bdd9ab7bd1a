"""signals: noted, answered once, never lost; and every handler put back as it was."""

import signal
import threading

import pytest

from minilora.training import signals

BOTH = signal.SIGINT, signal.SIGTERM


@pytest.fixture(autouse=True)
def as_they_were(backend):
    if backend.name != "numpy":
        pytest.skip("no array in it")
    before = [signal.getsignal(number) for number in BOTH]
    yield
    after = [signal.getsignal(number) for number in BOTH]
    for number, handler in zip(BOTH, before):
        signal.signal(number, handler)
    assert before == after


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_is_noted_and_waits(number):
    with signals.kept() as noted:
        assert noted == []
        signal.raise_signal(number)
        assert noted == [number]
        noted.clear()


def test_the_first_is_answered_and_only_once():
    told = []
    with pytest.raises(KeyboardInterrupt, match="after 3") as interrupt, signals.kept() as noted:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        raise signals.answer(noted, "after 3", told.append)
    assert interrupt.value.__context__ is None and told == []
    with pytest.raises(SystemExit) as left, signals.kept() as noted:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        raise signals.answer(noted, "after 3", told.append)
    assert left.value.code == 128 + signal.SIGTERM and told == ["after 3"]


@pytest.mark.parametrize("first", BOTH)
def test_a_second_sigint_interrupts_at_once(first):
    steps = []
    with pytest.raises(KeyboardInterrupt), signals.kept():
        signal.raise_signal(first)
        steps.append(1)
        signal.raise_signal(signal.SIGINT)
        steps.append(2)
    assert steps == [1]


def test_a_second_sigterm_waits_like_the_first():
    with signals.kept() as noted:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert noted
        noted.clear()


@pytest.mark.parametrize("way", ["end", "error"])
def test_what_was_not_answered_comes_through(way):
    with pytest.raises(KeyboardInterrupt), signals.kept():
        signal.raise_signal(signal.SIGINT)
        if way == "error":
            raise ArithmeticError


def test_it_reaches_a_handler_of_the_callers_own():
    came = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with signals.kept():
            signal.raise_signal(signal.SIGTERM)
            assert not came
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_signal_that_the_process_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.kept() as noted:
            signal.raise_signal(signal.SIGINT)
            assert noted == [] and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    """There, getsignal knows None, and nobody could put it back."""
    own, put = signal.getsignal, []
    foreign = {signal.SIGTERM: None}
    monkeypatch.setattr(
        signals.signal, "getsignal", lambda n: foreign[n] if n in foreign else own(n)
    )
    monkeypatch.setattr(signals.signal, "signal", lambda n, handler: put.append(n))
    with signals.kept():
        pass
    assert put == [signal.SIGINT] * 2


def test_nothing_is_kept_where_it_is_not_wanted_or_in_another_thread():
    before, seen = [signal.getsignal(n) for n in BOTH], []

    def look(wanted: bool) -> None:
        with signals.kept(wanted):
            seen.append([signal.getsignal(n) for n in BOTH])

    look(False)
    thread = threading.Thread(target=look, args=(True,))
    thread.start()
    thread.join()
    assert seen == [before, before]
    look(True)
    assert seen[2] != before


def test_one_inside_another_keeps_its_own():
    with signals.kept() as outer:
        with signals.kept() as inner:
            signal.raise_signal(signal.SIGINT)
            assert inner and not outer
            inner.clear()
        signal.raise_signal(signal.SIGTERM)
        assert outer == [signal.SIGTERM]
        outer.clear()
