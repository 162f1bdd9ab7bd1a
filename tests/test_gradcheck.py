"""Finite differences find a wrong gradient, and say where (minilora.gradcheck)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import normal, same_bytes, seeds, sizes

import minilora as ml
from minilora import ops
from minilora.tensor import op


@op
def crooked(x, y, *, spoil_x, spoil_y):
    """x · y, with rules that a test may spoil."""

    def dx(g):
        return spoil_x(g * y)

    def dy(g):
        return spoil_y(g * x)

    return x * y, (dx, dy)


def fine(g):
    return g


def spoilt(g, at, by):
    g = g.copy()
    g[at] += by
    return g


@given(seeds, hnp.array_shapes(max_dims=3, max_side=3))
def test_a_right_gradient_passes_and_its_error_is_small(seed, shape):
    x, y = normal(seed, *shape), normal(seed + 1, *shape)
    error = ml.gradcheck(lambda a, b: crooked(a, b, spoil_x=fine, spoil_y=fine), x, y)
    assert isinstance(error, float) and 0 <= error <= 1e-8


@given(seeds, sizes, st.data())
def test_one_wrong_entry_is_named_by_input_and_index(seed, n, data):
    which, at = data.draw(st.integers(0, 1)), (data.draw(st.integers(0, n - 1)), 1)
    spoils = [fine, fine]
    spoils[which] = lambda g: spoilt(g, at, 0.01)
    message = rf"input {which}, index \({at[0]}, 1\): the rule gives .*, central differences"
    with pytest.raises(AssertionError, match=message):
        ml.gradcheck(
            lambda a, b: crooked(a, b, spoil_x=spoils[0], spoil_y=spoils[1]),
            normal(seed, n, 2),
            normal(seed + 1, n, 2),
        )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda g: -g,
        lambda g: g * 2,
        lambda g: g * 0.5,
        lambda g: g * 0,
        lambda g: g.T,
        lambda g: g * 1.00001,
        lambda g: g[::-1],
    ],
    ids=["sign", "double", "half", "nothing", "transpose", "scale", "order"],
)
def test_every_usual_mistake_is_found(spoil):
    with pytest.raises(AssertionError):
        f = lambda a, b: crooked(a, b, spoil_x=spoil, spoil_y=fine)  # noqa: E731
        ml.gradcheck(f, normal(0, 3, 3), normal(1, 3, 3))


@given(seeds, st.floats(1e-5, 1e-2))
def test_the_tolerance_is_relative_to_the_size_of_the_gradient(seed, off):
    f = lambda a, b: crooked(a, b, spoil_x=lambda g: g * (1 + off), spoil_y=fine)  # noqa: E731
    x, y = normal(seed, 3), normal(seed + 1, 3) * 1e3 + 3e3
    assert ml.gradcheck(f, x, y, tolerance=2 * off) == pytest.approx(off, rel=1e-2)
    with pytest.raises(AssertionError):
        ml.gradcheck(f, x, y, tolerance=off / 2)


def test_large_inputs_are_stepped_in_proportion():
    assert ml.gradcheck(lambda x: x * x, np.array([1e8, 1.0])) < 1e-6


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64"])
def test_any_dtype_is_checked_in_float64(dtype):
    seen = []
    f = lambda x: (seen.append(str(x.dtype)), x * x)[1]  # noqa: E731
    assert ml.gradcheck(f, np.array([[1, 2], [3, 4]], dtype)) < 1e-8
    assert set(seen) == {"float64"}


@given(seeds)
def test_inputs_are_left_as_they_were(seed):
    x = normal(seed, 2, 3)
    before = x.copy()
    ml.gradcheck(lambda t: ops.softmax(t) * t, x)
    assert same_bytes(x, before)


def test_every_entry_of_the_output_counts():
    # Σ x / Σ x is 1 whatever x is: without weights, a rule that gives 0 would pass
    @op
    def flat(x):
        def dx(g):
            return g * 0

        return x / x.sum(), (dx,)

    with pytest.raises(AssertionError):
        ml.gradcheck(flat, normal(0, 4))


def test_an_input_that_does_not_matter_has_gradient_zero():
    assert ml.gradcheck(lambda x, y: x * 2.0, normal(0, 2), normal(1, 3)) < 1e-9


def test_a_dependence_that_the_tape_lost_is_found():
    with pytest.raises(AssertionError, match="input 1"):
        ml.gradcheck(lambda x, y: x * y.detach(), normal(0, 2), normal(1, 2))


def test_the_empty_array_passes():
    assert ml.gradcheck(lambda x: x * x, np.zeros((0, 3))) == 0


def test_numbers_and_arrays_of_the_device_are_inputs_too():
    assert ml.gradcheck(lambda x, y: x * y, 3.0, ml.backend.asarray(normal(0, 2))) < 1e-9


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_difference_that_is_not_a_number_never_passes():
    # Python's max(0.0, nan) is 0.0: it would drop the nan
    with pytest.raises((AssertionError, FloatingPointError)):
        ml.gradcheck(ops.sqrt, np.array([1e-6]))


def test_a_function_that_returns_no_tensor_is_refused():
    for out, name in ((3.0, "float"), (np.ones(2), "ndarray"), (None, "NoneType")):
        with pytest.raises(
            TypeError, match=f"^gradcheck: f returned a {name}: it must return a Tensor"
        ):
            ml.gradcheck(lambda x, out=out: out, np.ones(2))
