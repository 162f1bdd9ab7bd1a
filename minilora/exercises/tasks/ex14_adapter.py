"""14. A rival: the adapter of Houlsby et al., and what it costs.

Adapter-H puts a small network after attention and after the MLP of every block. It takes the output
h of that layer, reduces each row of d numbers to r, and adds what it makes of them:

    y = h + relu(h D^T + b) U^T + c        D is (r, d), b is (r,), U is (d, r), c is (d,)

relu(z) is z where z is above 0, and 0 elsewhere. The model itself is frozen.

adapter_start(d, r, rng) takes
    d, r      integers
    rng       NumPy generator, the source of all random numbers: rng.normal(...)
and returns D, b, U, c, in this order, separate float64 arrays as they are before training. Every
number of D is drawn from one normal distribution with mean 0 and standard deviation 0.02. b is 0.
Choose U and c such that y equals h before training.

adapter_forward(h, D, b, U, c) takes
    h            array (..., d): one row (d,), or n rows (n, d), or (batch, tokens, d)
    D, b, U, c   arrays of the shapes above
and returns y, a new array with the shape of h. No argument is changed.

    adapter_forward(np.ones(1), np.eye(1), np.zeros(1), np.eye(1), np.ones(1))  ->  [3.]

adapter_count(d, n_blocks, r) takes three integers and returns an integer: how many numbers the
adapters of a model with n_blocks blocks have, all D, b, U and c together. The sizes can be those of
GPT-3, so do not create the arrays.

    adapter_count(2, 1, 1)  ->  14
"""

import numpy as np


def adapter_start(d, r, rng):
    """D, b, U and c before training."""
    ### BEGIN SOLUTION
    D = rng.normal(0.0, 0.02, size=(r, d))
    return D, np.zeros(r), np.zeros((d, r)), np.zeros(d)
    ### END SOLUTION


def adapter_forward(h, D, b, U, c):
    """h + relu(h D^T + b) U^T + c"""
    ### BEGIN SOLUTION
    z = np.maximum(h @ D.T + b, 0.0)
    return h + z @ U.T + c
    ### END SOLUTION


def adapter_count(d, n_blocks, r):
    """The numbers of all adapters: two in each block."""
    ### BEGIN SOLUTION
    return 2 * n_blocks * (2 * d * r + r + d)
    ### END SOLUTION


### DRIVERS


def filled(file, d, r, rng):
    """D, b, U and c after 1, 2, 3 and 4 are written into them, one after the other."""
    start = file.adapter_start(d, r, rng)
    for i, array in enumerate(start):
        array[...] = i + 1
    file.adapter_start(d, r, rng)  # what is written arrives with the next call
    return start


def forward_again(file, h, D, b, U, c):
    """y of a second call, after the first y is written into."""
    arguments = [array.copy() for array in (h, D, b, U, c)]
    file.adapter_forward(*arguments)[...] = 7.0
    return file.adapter_forward(*arguments)


### CHECKS
# mypy: ignore-errors

from hypothesis import strategies as st

from minilora.exercises import kit

TITLE = "a rival: the adapter"
MINUTES = 20
CHAPTER = "12"

HINTS = (
    "y equals h if the part that is added is 0, whatever h and D are: which of the other arrays "
    "have to be 0? For the count, add up the sizes of D, b, U and c, and count the adapters.",
    "np.maximum(z, 0.0) is relu. Follow the shapes: (..., d) times (d, r) times (r, d). One "
    "adapter has 2 d r + r + d numbers, and each block has two adapters.",
    "return h + np.maximum(h @ D.T + b, 0.0) @ U.T + c",
)


@st.composite
def adapters(draw, rows=None):
    """An input and an adapter whose hidden numbers have both signs."""
    d, r, n = draw(kit.sizes()), draw(kit.sizes(1, 3)), (draw(kit.sizes(2, 3)),)
    n = n if rows is None else draw(rows)
    numbers = draw(kit.numbers())
    return {"h": numbers(*n, d), "D": numbers(r, d), "b": numbers(r), "U": numbers(d, r),
            "c": numbers(d)}


@st.composite
def starts(draw, least=1, most=4):
    return {"d": draw(kit.sizes(least, most)), "r": draw(kit.sizes(least, most)),
            "rng": draw(kit.generators())}


def _start(student, d, r, rng):
    start = kit.parts(student.adapter_start(d, r, rng), "D", "b", "U", "c")
    for name, array, shape in zip("DbUc", start, ((r, d), (r,), (d, r), (d,))):
        kit.number(array, shape, name)
        kit.holds(array.dtype == np.float64, f"float64 numbers in {name}", f"{array.dtype}")
    return start


@kit.check(starts(60, 80), points=2, examples=8)
def random_start(student, d, r, rng):
    """D is drawn from rng: normal, mean 0, standard deviation 0.02."""
    D = _start(student, d, r, rng)[0]
    again = _start(student, d, r, rng)[0]
    kit.holds(np.array_equal(D, again), "the same D from generators with the same seed",
              "a different D: does it come from rng?")
    another = _start(student, d, r, np.random.default_rng(d))[0]
    kit.holds(not np.array_equal(D, another), "a different D from a generator with another seed",
              "the same D: does it come from rng?")
    gap = 7 * 0.02 / (2 * D.size) ** 0.5  # seven standard deviations
    kit.holds(abs(D.std() - 0.02) < gap, "a standard deviation of D near 0.02", f"{D.std():.3g}")
    kit.holds(abs(D.mean()) < 7 * 0.02 / D.size**0.5, "a mean of D near 0", f"{D.mean():.3g}")
    near = np.mean(np.abs(D) < 0.02)
    kit.holds(abs(near - 0.683) < 7 * 0.465 / D.size**0.5,
              "68 % of D within one standard deviation, as in a normal distribution",
              f"{100 * near:.0f} %: is it another distribution?")
    kit.holds(len(np.unique(np.abs(D))) > 0.99 * D.size, "every number of D drawn separately",
              "many numbers that are equal, or equal but for their sign")


@st.composite
def beginnings(draw):
    """An input and the sizes of an adapter."""
    start = draw(starts())
    n = draw(st.lists(kit.sizes(1, 3), max_size=2).map(tuple))
    return {"h": draw(kit.numbers())(*n, start["d"]), **start}


@kit.check(beginnings(), points=2)
def as_the_base(student, h, d, r, rng):
    """Before training, y equals h, and is a new array."""
    D, b, U, c = _start(student, d, r, rng)
    kit.holds(np.any(D), "a random D", "zeros: then no step would ever change D or U")
    for name, array in (("b", b), ("U", U), ("c", c)):
        kit.equal(array, np.zeros(array.shape), f"{name} before training")
    kit.equal(student.adapter_forward(h, D, b, U, c), h, "y before training")
    for i, (name, array) in enumerate(zip("DbUc", student.filled(d, r, rng))):
        kit.holds(np.all(array == i + 1), "four separate arrays",
                  f"{name} changes when another of them is written into")
    student.adapter_forward(h, D, b, U + 1, c + 1)  # an h that is changed is told first
    kit.equal(student.forward_again(h, D, b, U, c), h,
              "y of a second call, after the first y was written into")


def _right(student, h, D, b, U, c):
    """Compare with sums over single numbers."""
    y, sizes = np.zeros(h.shape), np.zeros(h.shape)
    for at in np.ndindex(h.shape[:-1]):
        row = h[at]
        z = [max(sum(D[s, j] * row[j] for j in range(len(row))) + b[s], 0.0) for s in range(len(b))]
        for i in range(len(row)):
            y[*at, i] = row[i] + sum(U[i, s] * z[s] for s in range(len(b))) + c[i]
    hidden = np.abs(h) @ np.abs(D).T + np.abs(b)
    sizes = np.abs(h) + hidden @ np.abs(U).T + np.abs(c)
    kit.equal(student.adapter_forward(h, D, b, U, c), y, "y", size=sizes)


@kit.check(adapters(), points=3, examples=50)
def forward(student, h, D, b, U, c):
    """y is h + relu(h D^T + b) U^T + c."""
    _right(student, h, D, b, U, c)


@kit.check(adapters(st.sampled_from([(), (1,), (2, 3), (1, 2)])), points=1)
def more_axes(student, h, D, b, U, c):
    """h can be one row, or have three axes."""
    _right(student, h, D, b, U, c)


def _counted(student, d, n_blocks, r):
    got = student.adapter_count(d, n_blocks, r)
    sizes = {"D": r * d, "b": r, "U": d * r, "c": d}
    kit.equal(got, 2 * n_blocks * sum(sizes.values()), "the number of parameters")
    return got


@st.composite
def models(draw, most=9):
    return {"d": draw(kit.sizes(1, most)), "n_blocks": draw(kit.sizes(1, most)),
            "r": draw(kit.sizes(1, most))}


@kit.check(models(), points=1)
def small_count(student, d, n_blocks, r):
    """adapter_count counts D, b, U and c of both adapters of each block."""
    got = _counted(student, d, n_blocks, r)
    kit.holds(isinstance(got, int | np.integer), "an integer", kit.described(got))


@kit.check(models(100_000), points=1)
def large_count(student, d, n_blocks, r):
    """adapter_count is exact for the largest models."""
    _counted(student, d, n_blocks, r)


PROMISES = {
    random_start: ("Every number of D", "adapter_start(d, r, rng) takes",
            "and returns D, b, U, c, in this order"),
    as_the_base: ("b is 0", "Choose U and", "separate float64 arrays",
                  "and returns y, a new array", "No argument is changed"),
    forward: ("It takes the output h", "relu(z) is z", "adapter_forward(h, D, b, U, c) takes",
              "y = h + relu"),
    more_axes: ("one row (d,)",),
    small_count: ("adapter_count(d, n_blocks, r) takes", "Adapter-H puts a small network"),
    large_count: ("The sizes can be those of",),
}
EXPLAINS = ("A rival: the adapter", "The model itself is frozen")


def _start_with(
    D=lambda rng, d, r: rng.normal(0.0, 0.02, size=(r, d)), U=lambda rng, d, r: np.zeros((d, r)),
    order=None, b=lambda rng, r: np.zeros(r), c=lambda rng, d: np.zeros(d),
):
    def adapter_start(d, r, rng):
        start = D(rng, d, r), b(rng, r), U(rng, d, r), c(rng, d)
        return start if order is None else tuple(start[i] for i in order)

    return adapter_start


def _rows(h, D, b, U, c):
    y = np.zeros(h.shape)
    for i in range(len(h)):
        y[i] = h[i] + U @ np.maximum(D @ h[i] + b, 0.0) + c
    return y


def _in_place(h, D, b, U, c):
    h += np.maximum(h @ D.T + b, 0.0) @ U.T + c
    return h


WRONG = {
    "adapter_start": {
        "you start with U random too": _start_with(
            U=lambda rng, d, r: rng.normal(0.0, 0.02, size=(d, r))),
        "you start with D zero and U random": _start_with(
            lambda rng, d, r: np.zeros((r, d)),
            U=lambda rng, d, r: rng.normal(0.0, 0.02, size=(d, r))),
        "you start with D zero too (then no step ever changes D or U)": _start_with(
            lambda rng, d, r: np.zeros((r, d))),
        "you return U before b": _start_with(order=(0, 2, 1, 3)),
        "you return D of shape (d, r)": _start_with(
            lambda rng, d, r: rng.normal(0.0, 0.02, size=(d, r))),
        "you return D of shape (d, r), and U of shape (r, d)": _start_with(
            lambda rng, d, r: rng.normal(0.0, 0.02, size=(d, r)),
            U=lambda rng, d, r: np.zeros((r, d))),
        "you draw b at random too": _start_with(b=lambda rng, r: rng.normal(0.0, 0.02, size=r)),
        "you draw c at random too": _start_with(c=lambda rng, d: rng.normal(0.0, 0.02, size=d)),
        "you draw D with variance 0.02": _start_with(
            lambda rng, d, r: rng.normal(0.0, 0.02**0.5, size=(r, d))),
        "you draw D with standard deviation 1": _start_with(
            lambda rng, d, r: rng.normal(0.0, 1.0, size=(r, d))),
        "you draw D from your own generator, np.random.default_rng(0)": _start_with(
            lambda rng, d, r: np.random.default_rng(0).normal(0.0, 0.02, size=(r, d))),
        "you draw D with rng.uniform, which is not a normal distribution": _start_with(
            lambda rng, d, r: rng.uniform(-0.02 * 3**0.5, 0.02 * 3**0.5, (r, d))),
    },
    "adapter_forward": {
        "you leave out h: the skip connection": lambda h, D, b, U, c: (
            np.maximum(h @ D.T + b, 0.0) @ U.T + c),
        "you leave out relu": lambda h, D, b, U, c: h + (h @ D.T + b) @ U.T + c,
        "you take relu of the result, not of the hidden numbers": lambda h, D, b, U, c: (
            h + np.maximum((h @ D.T + b) @ U.T + c, 0.0)),
        "you take relu of h": lambda h, D, b, U, c: (
            h + (np.maximum(h, 0.0) @ D.T + b) @ U.T + c),
        "you add b after relu": lambda h, D, b, U, c: (
            h + (np.maximum(h @ D.T, 0.0) + b) @ U.T + c),
        "you leave out b": lambda h, D, b, U, c: h + np.maximum(h @ D.T, 0.0) @ U.T + c,
        "you leave out c": lambda h, D, b, U, c: h + np.maximum(h @ D.T + b, 0.0) @ U.T,
        "you take the absolute value instead of relu": lambda h, D, b, U, c: (
            h + np.abs(h @ D.T + b) @ U.T + c),
        "you use np.max, which takes a largest number, instead of np.maximum": (
            lambda h, D, b, U, c: h + np.max(h @ D.T + b, 0) @ U.T + c),
        "you reshape D instead of transposing it": lambda h, D, b, U, c: (
            h + np.maximum(h @ D.reshape(D.T.shape) + b, 0.0) @ U.T + c),
        "you reshape U instead of transposing it": lambda h, D, b, U, c: (
            h + np.maximum(h @ D.T + b, 0.0) @ U.reshape(U.T.shape) + c),
        "you take relu of y": lambda h, D, b, U, c: (
            np.maximum(h + np.maximum(h @ D.T + b, 0.0) @ U.T + c, 0.0)),
        "you loop over the first axis as if h always had two": _rows,
        "you subtract the adapter's part": lambda h, D, b, U, c: (
            h - np.maximum(h @ D.T + b, 0.0) @ U.T - c),
        "you change h in place": _in_place,
    },
    "adapter_count": {
        "you count one adapter in each block, not two": lambda d, n_blocks, r: (
            n_blocks * (2 * d * r + r + d)),
        "you count D and U, but not b and c": lambda d, n_blocks, r: 2 * n_blocks * 2 * d * r,
        "you count d numbers for b, as for c": lambda d, n_blocks, r: (
            2 * n_blocks * (2 * d * r + 2 * d)),
        "you count r numbers for c, as for b": lambda d, n_blocks, r: (
            2 * n_blocks * (2 * d * r + 2 * r)),
        "you count b and c of only one adapter in each block": lambda d, n_blocks, r: (
            n_blocks * (4 * d * r + r + d)),
        "you return a float": lambda d, n_blocks, r: 2.0 * n_blocks * (2 * d * r + r + d),
        "you count one of D and U": lambda d, n_blocks, r: 2 * n_blocks * (d * r + r + d),
        "you forget the number of blocks": lambda d, n_blocks, r: 2 * (2 * d * r + r + d),
        "you count in 32 bits, which wraps for large models": lambda d, n_blocks, r: int(
            np.array([2 * n_blocks * (2 * d * r + r + d)], np.int64).astype(np.int32)[0]),
        "you compute in floats, which drops digits of large numbers": lambda d, n_blocks, r: int(
            np.float32(2.0 * n_blocks * (2.0 * d * r + r + d))),
    },
}
