"""02. Sum a gradient back to the shape that it came from.

NumPy broadcasts: in `x + y` with x of shape (2, 3) and y of shape (3,), y is used in both rows.
The gradient g that comes back has the shape of the result, (2, 3), but y has one number for each
column. Each number of y was used several times: its gradient is the sum over all of its uses.

unbroadcast(g, shape) takes
    g      array, the gradient of the result; its shape is what `shape` broadcasts to
    shape  tuple, the shape of what was broadcast; it may have fewer axes than g, and axes of size 1
and returns the gradient, an array of that shape and of the dtype of g. g stays as it is.

    unbroadcast(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), (3,))      ->  [5.0, 7.0, 9.0]
    unbroadcast(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), (2, 1))    ->  [[6.0], [15.0]]
"""

import numpy as np


def unbroadcast(g, shape):
    """The gradient of shape `shape`: g summed over what broadcasting repeated."""
    ### BEGIN SOLUTION
    new = g.ndim - len(shape)  # axes that broadcasting put in front
    g = g.sum(axis=tuple(range(new)))
    stretched = tuple(i for i, size in enumerate(shape) if size == 1)
    return g.sum(axis=stretched, keepdims=True)
    ### END SOLUTION


### CHECKS
# mypy: ignore-errors

from hypothesis import strategies as st

from minilora.exercises import kit

TITLE = "un-broadcast"
MINUTES = 10
CHAPTER = "02"

HINTS = (
    "NumPy does two things: it puts new axes in front, and it stretches axes of size 1. Undo each.",
    "First sum over the first g.ndim - len(shape) axes, so that g has as many axes as `shape`.",
    "Then g.sum(axis=..., keepdims=True) over the axes where `shape` has 1.",
)


@st.composite
def broadcasts(draw, least_in_front=0, most_in_front=2, ones=True):
    """A shape, and a gradient of a shape that it broadcasts to."""
    full = draw(st.lists(kit.sizes(1, 3), max_size=3))
    shape = tuple(1 if ones and draw(st.booleans()) else size for size in full)
    in_front = draw(st.lists(kit.sizes(1, 3), min_size=least_in_front, max_size=most_in_front))
    return {"g": kit.small(draw(kit.generators()), *in_front, *full), "shape": shape}


def _adjoint(student, g, shape):
    """sum(gradient * x) = sum(g * broadcast(x)) for each x that is 1 in one place, else 0."""
    expected = np.zeros(shape)
    for place in np.ndindex(shape):
        x = np.zeros(shape)
        x[place] = 1.0
        expected[place] = np.sum(g * np.broadcast_to(x, g.shape))
    got = student.unbroadcast(g, shape)
    kit.equal(got, expected, "the gradient")
    dtype = np.asarray(got).dtype
    kit.holds(dtype == g.dtype, f"the gradient in {g.dtype}", f"{dtype}")


@kit.check(broadcasts(least_in_front=1, ones=False), points=3)
def new_axes(student, g, shape):
    """New axes in front are summed away: sum(gradient * x) = sum(g * broadcast(x))."""
    _adjoint(student, g, shape)


@kit.check(broadcasts(most_in_front=0), points=3)
def stretched_axes(student, g, shape):
    """Stretched axes are summed, and stay as axes of size 1."""
    _adjoint(student, g, shape)


@kit.check(broadcasts(), points=4, examples=60)
def both(student, g, shape):
    """Both at once, scalars included."""
    _adjoint(student, g, shape)


def _summed(how, g, shape):
    g = how(g, axis=tuple(range(g.ndim - len(shape))))
    return how(g, axis=tuple(i for i, size in enumerate(shape) if size == 1), keepdims=True)


def _in_place(g, shape):
    result = _summed(np.sum, g, shape)
    g *= 0
    return result


WRONG = {
    "unbroadcast": {
        "you take the mean of the uses, not their sum": lambda g, s: _summed(np.mean, g, s),
        "you take the largest use, not the sum of all": lambda g, s: _summed(np.max, g, s),
        "you only cut g to the shape, and lose the other uses": lambda g, s: g[
            (0,) * (g.ndim - len(s)) + tuple(slice(size) for size in s)
        ],
        "you sum the new axes in front, but not the stretched ones": lambda g, s: g.sum(
            axis=tuple(range(g.ndim - len(s)))
        ),
        "you sum the stretched axes without keepdims=True": lambda g, s: g.sum(
            axis=tuple(range(g.ndim - len(s)))
        ).sum(axis=tuple(i for i, size in enumerate(s) if size == 1)),
        "you make float32 of float64": lambda g, s: _summed(np.sum, g, s).astype("float32"),
        "you change g in place": _in_place,
    }
}
