"""02. Sum a gradient back to the shape of its array.

NumPy broadcasts. In `x + y` with x of shape (2, 3) and y of shape (3,), y is used in both rows. The
gradient g of the result has the shape of the result, (2, 3), but y has only one number for each
column. Each number of y was used several times: its gradient is the sum over all its uses.

unbroadcast(g, shape) takes
    g      array, the gradient of the result; its shape is one to which `shape` broadcasts
    shape  tuple, the shape of the array that was broadcast; it may have fewer axes than g, and axes
           of size 1
and returns the gradient of that array: its shape is `shape`, its dtype is the dtype of g. g is not
changed.

    unbroadcast(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), (3,))      ->  [5.0, 7.0, 9.0]
    unbroadcast(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), (2, 1))    ->  [[6.0], [15.0]]
"""

import numpy as np


def unbroadcast(g, shape):
    """The gradient of shape `shape`: g summed over the repeated axes."""
    ### BEGIN SOLUTION
    new = g.ndim - len(shape)  # axes that broadcasting added in front
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
    "Broadcasting does two things: it adds new axes in front, and it repeats axes of size 1. Undo "
    "both.",
    "First sum over the first g.ndim - len(shape) axes. Then g has as many axes as `shape`.",
    "Then use g.sum(axis=..., keepdims=True) over the axes where `shape` has 1.",
)


SIZES = kit.sizes(1, 3)


@st.composite
def broadcasts(draw, least_in_front=0, most_in_front=2, ones=True, repeated=False, sizes=SIZES,
               axes=(0, 3)):
    """A shape, and a gradient of a shape to which it broadcasts; repeated: along some axis.

    axes: the least and the most axes of the shape.
    """
    full = draw(st.lists(sizes if ones else kit.sizes(2, 3), min_size=axes[0], max_size=axes[1]))
    shape = tuple(1 if ones and draw(st.booleans()) else size for size in full)
    if repeated:
        full, shape = [*full[:2], draw(kit.sizes(2, 3))], (*shape[:2], 1)
    in_front = draw(st.lists(sizes, min_size=least_in_front, max_size=most_in_front))
    return {"g": draw(kit.numbers())(*in_front, *full), "shape": shape}


def _adjoint(student, g, shape):
    """sum(gradient * x) = sum(g * broadcast(x)) for each x with one 1 and zeros."""
    expected = np.zeros(shape)
    for place in np.ndindex(shape):
        x = np.zeros(shape)
        x[place] = 1.0
        expected[place] = np.sum(g * np.broadcast_to(x, g.shape))
    got = student.unbroadcast(g, shape)
    kit.number(got, shape, "the gradient")
    dtype = np.result_type(got, np.float16)  # a wrong dtype costs another check
    kit.equal(got, expected, "the gradient", rtol=256 * float(np.finfo(dtype).eps), size=g)


@kit.check(broadcasts(least_in_front=1, ones=False), points=3)
def new_axes(student, g, shape):
    """New axes in front are summed: sum(gradient * x) = sum(g * broadcast(x))."""
    _adjoint(student, g, shape)


@kit.check(broadcasts(most_in_front=0, repeated=True), points=3)
def stretched_axes(student, g, shape):
    """Repeated axes are summed, and stay as axes of size 1."""
    _adjoint(student, g, shape)


@kit.check(
    broadcasts(), broadcasts(least_in_front=1, repeated=True), broadcasts(3, 4),
    broadcasts(sizes=st.sampled_from([1, 0, 2])), broadcasts(1, sizes=kit.sizes(4, 6)),
    broadcasts(most_in_front=1, axes=(4, 5)),
    points=3, examples=120,
)
def both(student, g, shape):
    """Both kinds of axes at once, scalars, and arrays without numbers."""
    _adjoint(student, g, shape)


def in_dtype(cases, dtype):
    return cases.map(lambda case: {**case, "g": case["g"].astype(dtype)})


@kit.check(*(in_dtype(broadcasts(least_in_front=front), dtype) for front in (1, 0)
             for dtype in ("float32", "float64", "float16")), points=1, examples=120)
def dtypes(student, g, shape):
    """The gradient has the dtype of g, whichever axes are summed: float32 stays float32."""
    got = student.unbroadcast(g, shape)
    if 1 not in shape:  # a wrong shape after repeated axes costs other checks
        kit.number(got, shape, "the gradient")
    dtype = np.asarray(got).dtype
    kit.holds(dtype == g.dtype, f"the gradient in {g.dtype}", f"{dtype}")


PROMISES = {
    new_axes: ("Sum a gradient back", "g is not changed"),
    stretched_axes: ("the sum over all its uses",), both: ("unbroadcast(g, shape) takes",),
    dtypes: ("its dtype is the dtype of g",),
}
EXPLAINS = ("NumPy broadcasts", "In `x + y`", "The gradient g of the result")


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
        "you cut g to the shape, and lose the other uses": lambda g, s: g[
            (0,) * (g.ndim - len(s)) + tuple(slice(size) for size in s)
        ],
        "you sum the new axes in front, but not the repeated ones": lambda g, s: g.sum(
            axis=tuple(range(g.ndim - len(s)))),
        "you sum the repeated axes without keepdims=True": lambda g, s: g.sum(
            axis=tuple(range(g.ndim - len(s)))
        ).sum(axis=tuple(i for i, size in enumerate(s) if size == 1)),
        "you convert float64 to float32": lambda g, s: _summed(np.sum, g, s).astype("float32"),
        "you return float64 for any dtype of g": lambda g, s: _summed(np.sum, g, s).astype(float),
        "you lose the numbers of more than three axes": lambda g, s: (
            _summed(np.sum, g, s) * (len(s) < 4)).astype(g.dtype),
        "you change g in place": _in_place,
    }
}
