"""Answers in other styles than the solution's: right ones pass, and no slip gets a wrong name."""

import sys
from dataclasses import replace

import answers
import pytest
from conftest import THOROUGH, kept

from minilora.exercises import book, dev
from minilora.exercises.judge import judge_here
from minilora.exercises.naming import alike

pytestmark = [
    pytest.mark.usefixtures("numpy_only"),
    pytest.mark.filterwarnings("ignore:The recursion limit"),  # an answer sets it
]
CASES, SLIPS = 6, 3  # of each check, and of each exercise; all of them in the thorough run


@pytest.fixture(autouse=True)
def recursion_limit():
    before = sys.getrecursionlimit()
    yield
    sys.setrecursionlimit(before)


def exercise(number):
    of = book.exercise(number)
    if THOROUGH:
        return of
    few = (replace(one, examples=min(one.examples, CASES)) for one in of.checks)
    return replace(of, checks=tuple(few))


def judged(of, source, **options):
    space = {"__name__": "student"}
    exec(source, space)
    return judge_here(of, {name: space[name] for name in of.functions}, **options)


@pytest.mark.parametrize("number", kept(answers.ANSWERS, "01", "02", "11", "12"))
def test_a_right_answer_in_another_style_passes(number):
    of = exercise(number)
    for source, words, style in answers.sources(number, of.solution()):
        if words is None:
            verdict = judged(of, source, explain=False)
            assert verdict.passed, (style, [one for one in verdict.outcomes if not one.points])


@pytest.mark.parametrize("number", kept(answers.ANSWERS, "01", "12"))
def test_a_slip_gets_no_wrong_name(number):
    of = exercise(number)
    known = [mistake for _, mistake in dev.known(of)]
    slips = [one for one in answers.sources(number, of.solution()) if one[1] is not None]
    for source, words, style in slips[:: 1 if THOROUGH else len(slips) // SLIPS]:
        named = {*judged(of, source).mistakes}
        assert not named or named & {*answers.labels(words, known)}, (style, words, named)


def test_integers_of_any_size_are_compared():
    """A slip of a count can give more than 64 bits; it is a wrong answer, and no broken check."""
    of, slip = book.exercise("07"), "def count_lora(shapes, r): return 10**30 + len(shapes)"
    (failed,) = (one for one in judged(of, of.solution() + slip).outcomes if not one.points)
    assert failed.lines[1].endswith("e+30"), failed.lines
    assert alike(10**30, 10**30) and not alike(10**30, 10**30 + 1)
