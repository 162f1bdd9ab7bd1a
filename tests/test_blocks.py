"""Blocks restore what they changed: at their end, after an error, and where they are freed."""

import contextlib
import sys

import pytest

import minilora as ml
from minilora.backend.blocks import block, restoring
from minilora.tensor import recording

pytestmark = pytest.mark.usefixtures("numpy_only")


@block
def noted(log: list, name: str = "a"):
    log.append(f"in {name}")
    with restoring(lambda: log.append(f"out {name}")):
        yield name


def test_a_block_yields_its_value_and_restores_at_its_end():
    log = []
    with noted(log) as name, noted(log, name="b"):
        log.append(name)
    assert log == ["in a", "in b", "a", "out b", "out a"]


def test_an_error_in_the_block_is_the_callers_own():
    log, error = [], ValueError()
    with pytest.raises(ValueError) as caught, noted(log):
        raise error
    assert caught.value is error and error.__context__ is None and log == ["in a", "out a"]


def test_restoring_is_tried_again_once():
    tries = []

    def restore():
        tries.append(1)
        if len(tries) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), restoring(restore):
        pass
    assert len(tries) == 2


def test_an_error_on_the_way_in_is_raised_there():
    @block
    def fails():
        with restoring(lambda: log.append("out")):
            raise ValueError("no")
        yield

    log = []
    with pytest.raises(ValueError, match="no"), fails():
        pytest.fail("it was entered")
    assert log == ["out"]


def test_a_block_that_is_freed_before_its_end_restores_at_once():
    """As where an interrupt comes between the last line of a block and its end."""
    log = []
    left = noted(log)
    left.__enter__()
    assert log == ["in a"]
    del left
    assert log == ["in a", "out a"]


def test_no_frame_of_python_lies_on_the_way_in_or_out():
    seen = []

    def trace(frame, event, arg):
        seen.append((frame.f_code.co_name, event))
        return trace

    log = []
    with noted(log):
        made = noted(log, "b")
        before = sys.gettrace()
        sys.settrace(trace)
        with made:
            pass
        sys.settrace(before)
    names = {name for name, _ in seen}
    assert "__exit__" not in names and "__enter__" not in names
    calls = [name for name, event in seen if event == "call"]
    assert calls.index("noted") > calls.index("__get__")  # nothing has changed before that


def test_it_is_entered_once_and_works_as_a_decorator_and_on_a_stack():
    log = []
    once = noted(log)
    with once:
        pass
    with pytest.raises(RuntimeError, match="entered before: call its function again"), once:
        pass
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(noted(log)) == "a"

    @ml.no_grad()
    def depth(n):
        return [recording(), *(depth(n - 1) if n else [])]

    assert depth(2) == [False] * 3 and recording() and log == ["in a", "out a"] * 2
    with pytest.raises(TypeError, match="positional"):
        noted(log, "a", "b")
