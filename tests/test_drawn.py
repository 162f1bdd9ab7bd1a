"""Cases without Hypothesis: what a strategy may give, and how small a failing case becomes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import kept
from hypothesis import given
from hypothesis import strategies as st

from minilora.exercises import drawn
from minilora.exercises.drawn import (
    Choices,
    Flaky,
    Phase,
    assume,
    booleans,
    composite,
    fixed_dictionaries,
    integers,
    just,
    lists,
    permutations,
    sampled_from,
    tuples,
)

pytestmark = pytest.mark.usefixtures("numpy_only")
choices = st.lists(st.integers(0, 2**33), max_size=30).map(Choices)


def test_of(cases, run, examples=100, seed=0, phases=(Phase.generate, Phase.shrink)):
    drawn.seed(seed)(drawn.settings(examples, phases, deadline=None)(drawn.given(cases)(run)))()


test_of.__test__ = False


@given(choices, st.integers(-5, 5), st.integers(0, 9))
def test_a_value_is_one_that_its_strategy_allows(given, least, more):
    n = integers(least, least + more).make(given)
    assert least <= n <= least + more
    assert sampled_from("abc").make(given) in "abc" and booleans().make(given) in (True, False)
    assert just(given).make(given) is given
    assert sorted(permutations([3, 1, 1, 2]).make(given)) == [1, 1, 2, 3]
    a, b = tuples(just(1), integers(2, 3)).make(given)
    assert a == 1 and b in (2, 3)
    assert fixed_dictionaries({"x": integers(0, 1)}).make(given)["x"] in (0, 1)
    found = lists(integers(0, 9), min_size=1, max_size=3).make(given)
    assert 1 <= len(found) <= 3 and all(0 <= one <= 9 for one in found)
    assert (just(1) | just(2)).map(str).make(given) in ("1", "2")


@given(choices)
def test_the_same_choices_make_the_same_value(given):
    some = lists(integers(0, 99)) | permutations(range(5))
    assert some.make(given) == some.make(Choices(given.made))


def test_every_value_comes_and_the_same_seed_draws_the_same():
    cases = tuples(integers(0, 2), lists(booleans(), max_size=1))
    runs = []
    for seed in (1, 1, 2):
        seen = []
        test_of(cases, seen.append, seed=seed)
        runs.append(seen)
    assert runs[0] == runs[1] != runs[2] and len(runs[0]) == 100
    assert {str(case) for case in runs[0]} == {str((n, b)) for n in range(3)
                                               for b in ([], [False], [True])}


@composite
def pairs(draw, most):
    n = draw(integers(0, most))
    assume(n != 3)
    return n, draw(lists(integers(0, n), max_size=6))


@pytest.mark.parametrize("seed", range(10))
def test_the_last_run_is_on_the_smallest_failing_case(seed):
    seen = []

    def run(case):
        seen.append(case)
        assert not (case[0] > 4 and sum(case[1]) > 6)

    with pytest.raises(AssertionError):
        test_of(pairs(50), run, seed=seed)
    n, numbers = seen[-1]
    assert sum(numbers) == 7 and 0 not in numbers and n in (5, max(numbers))
    seen.clear()
    with pytest.raises(AssertionError):
        test_of(pairs(50), run, seed=seed, phases=(Phase.generate,))
    assert all(case[0] <= 4 or sum(case[1]) <= 6 for case in seen[:-1])


def test_another_error_is_another_failure():
    def run(n):
        if n > 20:
            raise KeyError(n)
        assert n < 5

    found = []
    for seed in range(10):
        with pytest.raises((KeyError, AssertionError)) as error:
            test_of(integers(0, 1000), run, seed=seed)
        found.append(error.value.args)
    assert found.count((21,)) > 5  # most of the first failures are above 20


def test_a_failure_that_does_not_come_again_is_flaky():
    left = [1]
    with pytest.raises(Flaky):
        test_of(booleans(), lambda case: 1 / 0 if left and left.pop() else None)


def test_a_strategy_that_rejects_all_is_an_error():
    with pytest.raises(ValueError, match="rejected: assume less"):
        test_of(integers(0, 1).map(lambda n: assume(False)), print)


def test_it_has_every_strategy_that_an_exercise_uses():
    folder = Path(drawn.__file__).parent
    for file in (folder / "kit.py", *folder.glob("tasks/*.py")):
        used = {*re.findall(r"\bst\.(\w+)", file.read_text("utf-8"))}
        assert used <= {*vars(drawn)}, (file.name, used - {*vars(drawn)})


@pytest.mark.parametrize("number", kept(["02", "06", "08", "12"], "02"))
def test_the_judge_names_mistakes_with_it(number):
    """In a process in which Hypothesis was never imported."""
    code = f"""
from minilora.exercises import drawn
drawn.take_the_place_of_hypothesis()
from minilora.exercises import book, here
from minilora.exercises.judge import judge_here
import sys
of = book.exercise({number!r})
text, passed = here.check(of.number, of.solution())
assert passed and text.count("✓") == len(of.checks) and "minilora" not in text, text
text, passed = here.check(of.number, of.stub())
assert not passed and f"{{of.functions[0]}} is not written yet" in text, text
for function, known in of.wrong.items():
    for mistake in known:
        verdict = judge_here(of, {{**of.reference, function: known[mistake]}})
        assert mistake in verdict.mistakes, mistake
assert sys.modules["hypothesis"] is drawn
"""
    subprocess.run([sys.executable, "-c", code], check=True)
