"""checks: a valid number passes unchanged; anything else is refused in one sentence."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.checks import describe, integer, real

no_numbers = st.sampled_from([None, True, False, "3", b"3", [3], (), {}, 3j, np.ones(2), np.True_])
numbers = st.one_of(st.integers(-9, 9), st.floats(-9, 9), st.fractions(-9, 9))


@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(-9, 9) | st.none())
def test_an_integer_in_the_bounds_passes_as_an_int(value, least, most):
    fits = value >= least and (most is None or value <= most)
    for given_ in (value, np.int8(value)):
        if fits:
            assert integer("f", "n", given_, least, most) == value
            assert type(integer("f", "n", given_, least, most)) is int
        else:
            span = f">= {least}" if most is None else f"from {least} to {most}"
            with pytest.raises(ValueError, match=rf"^f: n must be an integer {span}, not -?\d"):
                integer("f", "n", given_, least, most)


@given(no_numbers | st.floats() | st.fractions().filter(lambda x: x.denominator > 1))
def test_anything_but_an_integer_is_refused(value):
    with pytest.raises(ValueError, match=r"^f: n must be an integer >= 0, not "):
        integer("f", "n", value)


@given(numbers, st.integers(-3, 3), st.integers(0, 3), st.sampled_from("[("), st.sampled_from("])"))
def test_a_number_in_the_interval_passes_as_a_float(value, low, size, left, right):
    high = low + size
    fits = (low <= value if left == "[" else low < value) and (
        value <= high if right == "]" else value < high
    )
    within = f"{left}{low}, {high}{right}"
    for given_ in (value, np.float64(value)):
        if fits:
            assert real("f", "x", given_, within) == float(value)
            assert type(real("f", "x", given_, within)) is float
        else:
            with pytest.raises(ValueError) as error:
                real("f", "x", given_, within)
            assert str(error.value).startswith(f"f: x must be in {within}, not ")
            assert "np." not in str(error.value)


@given(no_numbers, st.sampled_from(["(-inf, inf)", "[0, inf)", "(0, inf]", "[0, 9)"]))
def test_anything_but_a_number_is_refused(value, within):
    with pytest.raises(ValueError, match=r"^f: x must be "):
        real("f", "x", value, within)


@pytest.mark.parametrize(
    "within, good, words",
    [
        ("(-inf, inf)", {-1.0, 0.0, 1.0}, "a finite number"),
        ("[0, inf)", {0.0, 1.0}, "finite and not negative"),
        ("(0, inf)", {1.0}, "finite and positive"),
        ("(0, inf]", {1.0, math.inf}, "positive"),
    ],
)
def test_an_interval_with_an_infinite_end_is_given_in_words(within, good, words):
    for value in (-math.inf, -1.0, 0.0, 1.0, math.inf, math.nan, 10**400):
        if value in good:
            assert real("f", "x", value, within) == value
        else:
            with pytest.raises(ValueError, match=f"^f: x must be {words}, not -?([01in]|nan)"):
                real("f", "x", value, within)


def test_the_description_of_a_value_is_short_and_has_its_type():
    assert describe(3) == describe(np.int64(3)) == "3"
    assert describe(np.float32(0.5)) == describe(0.5) == "0.5"
    assert describe(Fraction(1, 2)) == "Fraction(1, 2)" and describe(math.nan) == "nan"
    assert describe("3") == "the str '3'" and describe(True) == "the bool True"
    assert describe(None) == "None"
    assert len(describe("x" * 10**6)) < 50 and len(describe(10**1000)) < 50
    assert describe(np.eye(1)) == "the ndarray array([[1.]])"
    assert describe(np.eye(2, 1)) == "the ndarray"
    assert describe(np.zeros((2, 2))) == "the ndarray" and describe([1, 2]) == "the list [1, 2]"
