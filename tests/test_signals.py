"""signals: deferred, answered once, never lost; every handler is restored back."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

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


def test_a_second_signal_while_handlers_are_restored_leaves_none_of_ours(monkeypatch):
    before, own, raised = [signal.getsignal(n) for n in BOTH], signal.signal, []

    def set_handler(number, handler):
        if handler in before and not raised:  # on the way out
            raised.append(number)
            signal.raise_signal(signal.SIGINT)
        return own(number, handler)

    with pytest.raises(KeyboardInterrupt), signals.deferred():
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(signals.signal, "signal", set_handler)
    assert raised and [signal.getsignal(n) for n in BOTH] == before


FINETUNE = "finetune words.txt --out out.npz --steps 6 --batch 2 --window 16 --checks 1"
PRETRAIN = """
import functools, sys
import minilora.pretrain as command
from minilora.models.gpt2 import GPT2Config
from minilora.__main__ import main
sizes = {"vocab_size": 270, "n_positions": 32, "d_model": 32, "n_layers": 1, "n_heads": 2}
command.pretrain = functools.partial(
    command.pretrain, config=GPT2Config(**sizes), batch=2, text=open("words.txt").read())
sys.argv[1:] = "pretrain --out out.npz --steps 6".split()
print("begun", flush=True)
sys.exit(main())
"""


@pytest.mark.thorough
@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("command", [["-m", "minilora", *FINETUNE.split()], ["-c", PRETRAIN]],
                         ids=["finetune", "pretrain"])
def test_a_command_that_is_interrupted_twice_leaves_no_half_and_goes_on(command, tmp_path):
    def start():
        return subprocess.Popen([sys.executable, *command], cwd=tmp_path, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    (tmp_path / "words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    out, rng, codes = tmp_path / "out.npz", random.Random(0), set()
    process = start()
    process.stdout.readline()
    began = time.perf_counter()
    assert process.communicate() and process.returncode == 0
    whole, wanted = time.perf_counter() - began, out.read_bytes()
    for run in range(12):
        for path in (out, out.with_suffix(".run.npz")):
            if run % 3 == 0:  # else it goes on from what the interrupts left
                path.unlink(missing_ok=True)
        process = start()
        process.stdout.readline()
        time.sleep(rng.random() * whole)
        for _ in range(2 + run % 2):
            process.send_signal(signal.SIGINT)
            time.sleep(abs(rng.gauss(0, 0.01)))
        _, said = process.communicate()
        codes.add(process.returncode)
        assert process.returncode in (0, 130), said
        assert said.count("\n") <= 1 and "Traceback" not in said, said
        assert not list(tmp_path.glob(".*.tmp"))
        assert not out.exists() or out.read_bytes() == wanted
    process = start()
    assert process.communicate() and process.returncode == 0 and out.read_bytes() == wanted
    assert 130 in codes
