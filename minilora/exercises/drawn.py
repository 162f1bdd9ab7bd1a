"""Cases drawn by NumPy, where Hypothesis is not to be had, as in a browser.

It has what the exercises and their judge use of Hypothesis, under the same names, and nothing else.
A case is made of choices, integers from 0 on: the same choices make the same case, and smaller or
fewer choices make a simpler one. So a failing case is made smaller without knowing what it is.
"""

from __future__ import annotations

import enum
import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

T = TypeVar("T")
S = TypeVar("S")
REJECTED = 50  # cases rejected by `assume`, for each that is wanted
TRIED = 300  # smaller cases, once one fails


def take_the_place_of_hypothesis() -> None:
    """Let `import hypothesis` import this module, for the rest of the process."""
    names = ("", ".strategies", ".errors", ".configuration")
    sys.modules.update({f"hypothesis{name}": strategies for name in names})


strategies = errors = configuration = sys.modules[__name__]  # from hypothesis import strategies


class Flaky(Exception):
    """A case failed, and then did not."""


class Rejected(Exception):
    """The choices make no case."""


class Choices:
    """The choices of one case: those given first, then drawn ones; without a generator, 0."""

    def __init__(self, given: Sequence[int] = (), rng: np.random.Generator | None = None) -> None:
        self._given, self._rng = given, rng
        self.made: list[int] = []

    def pick(self, most: int) -> int:
        """Return the next choice, an integer from 0 to `most`."""
        if len(self.made) < len(self._given):
            choice = min(self._given[len(self.made)], most)
        else:
            choice = 0 if self._rng is None else int(self._rng.integers(most, endpoint=True))
        self.made.append(choice)
        return choice


class SearchStrategy(Generic[T]):
    """A value for each sequence of choices."""

    def __init__(self, make: Callable[[Choices], T]) -> None:
        self.make = make

    def map(self, change: Callable[[T], S]) -> SearchStrategy[S]:
        return SearchStrategy(lambda choices: change(self.make(choices)))

    def __or__(self, other: SearchStrategy[Any]) -> SearchStrategy[Any]:
        return SearchStrategy(lambda choices: (self, other)[choices.pick(1)].make(choices))


def integers(least: int, most: int) -> SearchStrategy[int]:
    return SearchStrategy(lambda choices: least + choices.pick(most - least))


def sampled_from(values: Sequence[T]) -> SearchStrategy[T]:
    return integers(0, len(values) - 1).map(values.__getitem__)


def booleans() -> SearchStrategy[bool]:
    return sampled_from([False, True])


def just(value: T) -> SearchStrategy[T]:
    return SearchStrategy(lambda choices: value)


def tuples(*members: SearchStrategy[Any]) -> SearchStrategy[tuple[Any, ...]]:
    return SearchStrategy(lambda choices: tuple(one.make(choices) for one in members))


def fixed_dictionaries(members: Mapping[Any, SearchStrategy[Any]]) -> SearchStrategy[Any]:
    return tuples(*members.values()).map(lambda values: dict(zip(members, values)))


def lists(
    members: SearchStrategy[T], *, min_size: int = 0, max_size: int = 8, unique: bool = False
) -> SearchStrategy[list[T]]:
    def make(choices: Choices) -> list[T]:
        result: list[T] = []
        for _ in range(min_size + choices.pick(max_size - min_size)):
            member = members.make(choices)
            assume(not (unique and member in result))
            result.append(member)
        return result

    return SearchStrategy(make)


def permutations(values: Sequence[T]) -> SearchStrategy[list[T]]:
    def make(choices: Choices) -> list[T]:
        left = [*values]
        return [left.pop(choices.pick(len(left) - 1)) for _ in values]

    return SearchStrategy(make)


def composite(function: Callable[..., T]) -> Callable[..., SearchStrategy[T]]:
    """Make a strategy of a function whose first argument draws from other strategies."""

    @functools.wraps(function)
    def called(*args: Any, **settings: Any) -> SearchStrategy[T]:
        return SearchStrategy(
            lambda choices: function(lambda one: one.make(choices), *args, **settings))

    return called


def assume(true: Any) -> None:
    if not true:
        raise Rejected


class Phase(enum.Enum):
    generate, shrink = range(2)


class HealthCheck(enum.Enum):
    """Hypothesis's doubts about a strategy. There are none here."""


def set_hypothesis_home_dir(folder: Any) -> None:
    """Nothing is stored."""


class settings:
    """Set how many cases are drawn, and whether a failing one is made smaller."""

    def __init__(self, max_examples: int, phases: Sequence[Phase], **_: Any) -> None:
        self.examples, self.shrink = max_examples, Phase.shrink in phases

    def __call__(self, test: Test) -> Test:
        test.settings = self
        return test


def seed(number: int) -> Callable[[Test], Test]:
    def decorate(test: Test) -> Test:
        test.seed = number
        return test

    return decorate


def given(cases: SearchStrategy[Any]) -> Callable[[Callable[[Any], None]], Test]:
    return lambda run: Test(cases, run)


class Test:
    """Runs a function on drawn cases. If one fails, the last run is on the smallest that was found.

    Raises what that case raises, or Flaky if it does not fail again.
    """

    settings: settings
    seed: int

    def __init__(self, cases: SearchStrategy[Any], run: Callable[[Any], None]) -> None:
        self._cases, self._run = cases, run

    def __call__(self) -> None:
        rng, left = np.random.default_rng(self.seed), self.settings.examples
        for _ in range(REJECTED * left):
            choices = Choices(rng=rng)
            try:
                error = self._error(choices)
            except Rejected:
                continue
            if error is not None:
                raise self._smallest(choices.made, error) if self.settings.shrink else error
            left -= 1
            if not left:
                return
        raise ValueError(f"{REJECTED} cases in a row were rejected: assume less")

    def _error(self, choices: Choices) -> Exception | None:
        """Return what the case of these choices raises. Raises Rejected if they make none."""
        case = self._cases.make(choices)
        try:
            self._run(case)
        except Exception as error:
            return error
        return None

    def _smallest(self, made: list[int], error: Exception) -> Exception:
        """Return the error of the smallest failing case that is found, after one more run on it."""
        kind, tried, better = type(error), 0, True
        while better:
            better = False
            for smaller in _smaller(made):
                tried += 1
                if tried > TRIED:
                    break
                choices = Choices(smaller)
                try:
                    fails = type(self._error(choices)) is kind
                except Rejected:
                    continue
                if fails and (len(choices.made), choices.made) < (len(made), made):
                    made, better = choices.made, True
                    break
        again = self._error(Choices(made))
        return again or Flaky("a case failed, and then did not")


def _smaller(made: list[int]) -> itertools.chain[list[int]]:
    """Return simpler choices: without one of them, or with one that is smaller.

    The last kind takes a member out of a list, whose length is a choice before its members.
    """
    without = (made[:i] + made[i + 1 :] for i in range(len(made)))
    lower = (
        [*made[:i], less, *made[i + 1 :]]
        for i, choice in enumerate(made) for less in dict.fromkeys((0, choice // 2, choice - 1))
        if 0 <= less < choice
    )
    shorter = (
        [*made[:i], made[i] - 1, *made[i + 1 : j], *made[j + 1 :]]
        for i, j in itertools.combinations(range(len(made)), 2) if made[i]
    )
    return itertools.chain(without, lower, shorter)
