"""06. A layer with LoRA, and how it starts.

A layer computes y = x W^T. Each row of x is an input of k numbers, each row of y is its output of d
numbers, and W is (d, k). LoRA does not change W. It adds an update with two small factors:

    y = x W^T + (alpha / r) x A^T B^T        A is (r, k), B is (d, r)

lora_init(d, k, r, rng) takes
    d, k, r   integers
    rng       NumPy generator, the source of all random numbers: rng.normal(...)
and returns A, B, in this order, as they are before training. Every number of A is drawn from one
normal distribution with mean 0. Its standard deviation is your choice, between 0.001 and 1; 1 /
sqrt(k) is usual. Choose B such that the layer first computes the same as W alone.

lora_forward(x, W, A, B, alpha) takes
    x         array (..., k): one row (k,), or n rows (n, k), or (batch, tokens, k)
    W, A, B   arrays of the shapes above
    alpha     number; r is not an argument: the shapes of A and B contain it
and returns y, array (..., d). No argument is changed.

    lora_init(3, 4, 2, np.random.default_rng(0))[1]  ->  [[0., 0.], [0., 0.], [0., 0.]]

Now d is 3, k and r are 2. x W^T is [3. 3. 3.], and the update adds 4 / 2 times 3 to each:

    lora_forward(np.array([1, 2]), np.ones((3, 2)), np.eye(2), np.ones((3, 2)), 4)  ->  [9., 9., 9.]
"""

import numpy as np


def lora_init(d, k, r, rng):
    """A (r, k) and B (d, r) before training."""
    ### BEGIN SOLUTION
    A = rng.normal(0.0, 1 / np.sqrt(k), size=(r, k))
    return A, np.zeros((d, r))
    ### END SOLUTION


def lora_forward(x, W, A, B, alpha):
    """The layer's output: x W^T plus the scaled update."""
    ### BEGIN SOLUTION
    r = len(A)
    return x @ W.T + (alpha / r) * (x @ A.T @ B.T)
    ### END SOLUTION


### CHECKS
# mypy: ignore-errors

from hypothesis import assume
from hypothesis import strategies as st

from minilora.exercises import kit

TITLE = "LoRA's layer"
MINUTES = 20
CHAPTER = "07"

HINTS = (
    "If A or B is zero, the update is zero. A is random, so B is zero. In lora_forward, follow "
    "the shapes: (..., k) times (k, r) times (r, d).",
    "A = rng.normal(0.0, sigma, size=(r, k)), and B is np.zeros. A^T is A.T in NumPy, a matrix "
    "product is @, and r is the number of rows of A, A.shape[0].",
    "return x @ W.T + (alpha / A.shape[0]) * (x @ A.T @ B.T)",
)


@st.composite
def layers(draw, rows=None, unit=False):
    """An input, a layer, and an update that is not zero; unit: alpha = r = 1."""
    d, k, r = draw(kit.sizes()), draw(kit.sizes()), 1 if unit else draw(kit.sizes(1, 3))
    numbers = draw(kit.numbers())
    n = draw(st.tuples(kit.sizes(1, 3)) if rows is None else rows)
    alpha = 1 if unit else draw(kit.scalars(1, 2, 3, 8, 0.5, -0.7))
    assume(unit or alpha != r)
    W, A, B = numbers(d, k), numbers(r, k), numbers(d, r)
    return {"x": numbers(*n, k), "W": W, "A": A, "B": B, "alpha": alpha}


@st.composite
def starts(draw, least=1, most=4):
    d, k, r = (draw(kit.sizes(least, most)) for _ in range(3))
    return {"d": d, "k": k, "r": r, "rng": draw(kit.generators())}


def _factors(student, d, k, r, rng):
    A, B = kit.parts(student.lora_init(d, k, r, rng), "A", "B")
    for name, factor, shape in (("A", A, (r, k)), ("B", B, (d, r))):
        if isinstance(factor, np.ndarray | float) and np.shape(factor) in ((), (2,)):
            raise kit.Wrong(
                f"expected {name} of shape {shape}", f"got      {kit.shown(factor)}",
                "rng.normal takes mean, standard deviation and size, in this order: size=(r, k)",
            )
        kit.number(factor, shape, name)
        kit.holds(factor.dtype.kind == "f", f"floats in {name}", f"{factor.dtype}")
    return A, B


def _different(*factors):
    """Raise Wrong if all numbers are equal: a constant has the right shape too."""
    every = np.concatenate([np.ravel(factor) for factor in factors])
    kit.holds(len({*every}) > 1 or len(every) < 3, "random numbers in A", "the same everywhere")


@kit.check(starts(), points=1)
def shapes(student, d, k, r, rng):
    """lora_init returns A of shape (r, k) and B of shape (d, r)"""
    _different(*_factors(student, d, k, r, rng))


@kit.check(starts(90, 110), points=2, examples=8)
def gaussian(student, d, k, r, rng):
    """A is drawn from rng: a normal distribution, mean 0, every number drawn separately."""
    A, _ = _factors(student, d, k, r, rng)
    again, _ = _factors(student, d, k, r, rng)
    kit.holds(np.array_equal(A, again), "the same A from generators with the same seed",
              "a different A: does it come from rng?")
    A = A.astype(np.float64)
    kit.holds(np.all(np.isfinite(A)), "finite numbers in A")
    std, mean = A.std(), A.mean()
    kit.holds(0.9e-3 < std < 1.1, "a standard deviation of A between 0.001 and 1",
              f"{std:.3g}")
    rank = np.linalg.matrix_rank(A)
    kit.holds(rank == min(r, k), f"an A of rank {min(r, k)}",
              f"rank {rank}: is every number drawn separately?")
    kit.holds(abs(mean) < 7 * std / np.sqrt(A.size), "a mean of A near 0",
              f"a mean of {mean:.3g}, with a standard deviation of {std:.3g}")
    z, n = (A - mean) / std, A.size  # the bounds below are seven of their standard deviations
    near = np.mean(np.abs(z) < 1)
    kit.holds(abs(near - 0.683) < 7 * 0.465 / n**0.5,
              "68 % of A within one standard deviation, as in a normal distribution",
              f"{100 * near:.0f} %: is it another distribution?")
    for power, normal, apart in ((3, 0, 15), (4, 3, 96)):
        gap = 7 * (apart / n) ** 0.5
        kit.holds(abs(np.mean(z**power) - normal) < gap,
                  f"a mean of ((A - mean) / std)^{power} near {normal}, as in a normal one",
                  f"{np.mean(z**power):.3g}: is it another distribution?")
    kit.holds(len(np.unique(np.abs(A))) > 0.99 * n, "every number of A drawn separately",
              "many numbers that are equal, or equal but for their sign")
    for axis in (0, 1):
        lines = A.std(axis=axis) / std
        kit.holds(np.all(np.abs(lines - 1) < 0.55), "one standard deviation for all of A",
                  f"rows or columns with {lines.min():.2g} to {lines.max():.2g} times that of A")
    another, _ = _factors(student, d, k, r, np.random.default_rng(d))
    kit.holds(not np.array_equal(A, another), "a different A from a generator with another seed",
              "the same A: does it come from rng?")


@st.composite
def beginnings(draw):
    """A layer before training."""
    layer, start = draw(layers()), draw(starts())
    d, k = layer["W"].shape
    r, alpha = start["r"], layer["alpha"]
    return {"x": layer["x"], "W": layer["W"], "d": d, "k": k, "r": r, "alpha": alpha,
            "rng": start["rng"]}


@kit.check(beginnings(), points=2)
def as_the_base(student, x, W, d, k, r, alpha, rng):
    """Before training, the layer gives what W alone gives, and B is zero."""
    A, B = _factors(student, d, k, r, rng)
    y, size = (np.einsum("nk,dk->nd", *both) for both in ((x, W), (np.abs(x), np.abs(W))))
    kit.equal(student.lora_forward(x, W, A, B, alpha), y, "y before training", size=size)
    kit.equal(B, np.zeros((d, r)), "B before training")


def _right(student, x, W, A, B, alpha):
    """Compare with the merged weights, computed number by number."""
    r, k = A.shape
    merged = np.array([
        [W[i, j] + alpha / r * sum(B[i, s] * A[s, j] for s in range(r)) for j in range(k)]
        for i in range(len(W))
    ])
    y = np.einsum("...k,dk->...d", x, merged)
    kit.equal(student.lora_forward(x, W, A, B, alpha), y, "y", size=_size(x, W, A, B, alpha))


def _size(x, W, A, B, alpha):
    """The largest sum of |terms|: terms may cancel in y, but not their rounding errors."""
    x, W, A, B = map(np.abs, (x, W, A, B))
    return np.max(x @ (W + abs(alpha) / len(A) * B @ A).T)


@kit.check(layers(unit=True), points=1)
def update(student, x, W, A, B, alpha):
    """If alpha = r = 1, y is x W^T + x A^T B^T."""
    _right(student, x, W, A, B, alpha)


@kit.check(layers(), points=2, examples=50)
def scaled(student, x, W, A, B, alpha):
    """The update is scaled by alpha / r."""
    _right(student, x, W, A, B, alpha)


@kit.check(layers(st.lists(kit.sizes(1, 5), max_size=2).map(tuple), unit=True), points=1)
def more_axes(student, x, W, A, B, alpha):
    """x can be one row, or have three axes."""
    _right(student, x, W, A, B, alpha)


def _output(student, x, W, A, B, alpha):
    y = student.lora_forward(x, W, A, B, alpha)
    kit.number(y, (len(x), len(W)), "y")
    kit.holds(np.all(np.isfinite(y)), "finite numbers in y", f"y = {kit.shown(y)}")
    return y


@kit.check(layers(st.just((2,))), points=1)
def low_rank(student, x, W, A, B, alpha):
    """The update is linear in B, and its rank is at most r."""
    base, size = _output(student, x, W, A, 0 * B, alpha), _size(x, W, A, 3 * B, alpha)
    kit.equal(base, np.einsum("nk,dk->nd", x, W), "y for B = 0", size=size)
    once, thrice = (_output(student, x, W, A, factor * B, alpha) - base for factor in (1, 3))
    kit.equal(thrice, 3 * once, "the update for 3 B", size=size)
    unit = np.eye(W.shape[1])
    delta = _output(student, unit, W, A, B, alpha) - W.T
    rank = np.linalg.matrix_rank(delta, tol=1e-12 * _size(unit, W, A, B, alpha))
    kit.holds(rank <= len(A), f"an update of rank at most {len(A)}", f"rank {rank}")


PROMISES = {
    shapes: ("returns A, B, in this order", "It adds an update with two small factors"),
    gaussian: ("Every number of A is drawn", "lora_init(d, k, r, rng) takes",
               "Its standard deviation"),
    as_the_base: ("Choose B such that",), update: ("lora_forward(x, W, A, B, alpha) takes",),
    scaled: ("It adds an update with two small factors",), more_axes: ("one row (k,)",),
    low_rank: ("y = x W^T +", "No argument is changed",),
}
EXPLAINS = ("A layer with LoRA, and", "A layer computes", "Each row of x is", "LoRA does not",
            "Now d is 3", "x W^T is [3.")


def _init(A=lambda rng, d, k, r: rng.normal(0.0, 1 / np.sqrt(k), size=(r, k)),
          B=lambda rng, d, k, r: np.zeros((d, r))):
    return lambda d, k, r, rng: (A(rng, d, k, r), B(rng, d, k, r))


def _in_place(x, W, A, B, alpha):
    W += alpha / len(A) * (B @ A)
    return x @ W.T


def _scaled(by):
    return lambda x, W, A, B, alpha: x @ W.T + by(W, A, B, alpha) * (x @ A.T @ B.T)


WRONG = {
    "lora_init": {
        "you start with A zero and B random": _init(
            lambda rng, d, k, r: np.zeros((r, k)),
            lambda rng, d, k, r: rng.normal(0.0, 1 / np.sqrt(k), size=(d, r))),
        "you start with B random too": _init(
            B=lambda rng, d, k, r: rng.normal(0.0, 1 / np.sqrt(k), size=(d, r))),
        "you start with A zero too (then no step ever changes A or B)": _init(
            lambda rng, d, k, r: np.zeros((r, k))),
        "you return B before A": lambda d, k, r, rng: _init()(d, k, r, rng)[::-1],
        "you return A of shape (k, r) and B of shape (r, d)": _init(
            lambda rng, d, k, r: rng.normal(0.0, 1 / np.sqrt(k), size=(k, r)),
            lambda rng, d, k, r: np.zeros((r, d))),
        "you draw A with rng.random: from 0 to 1, never below 0": _init(
            lambda rng, d, k, r: rng.random((r, k))),
        "you draw A with rng.uniform(-1, 1), which is not a normal distribution": _init(
            lambda rng, d, k, r: rng.uniform(-1, 1, (r, k))),
        "you draw from your own generator, np.random.default_rng(0)": _init(
            lambda rng, d, k, r: np.random.default_rng(0).normal(0.0, 1 / np.sqrt(k), size=(r, k))),
        "you draw one row of A and repeat it": _init(
            lambda rng, d, k, r: np.tile(rng.normal(0.0, 1 / np.sqrt(k), size=k), (r, 1))),
    },
    "lora_forward": {
        "you scale by alpha, not by alpha / r": _scaled(lambda W, A, B, alpha: alpha),
        "you do not scale the update": _scaled(lambda W, A, B, alpha: 1),
        "you scale by r / alpha": _scaled(lambda W, A, B, alpha: len(A) / alpha),
        "you divide by k, A.shape[1], instead of r": _scaled(
            lambda W, A, B, alpha: alpha / A.shape[1]),
        "you divide by d, B.shape[0], instead of r": _scaled(lambda W, A, B, alpha: alpha / len(B)),
        "you scale by alpha // r, which drops the fraction": _scaled(
            lambda W, A, B, alpha: alpha // len(A)),
        "you round alpha / r to float32": _scaled(
            lambda W, A, B, alpha: np.float64(np.float32(alpha / len(A)))),
        "you scale x W^T too": lambda x, W, A, B, alpha: (
            alpha / len(A) * (x @ W.T + x @ A.T @ B.T)),
        "you leave out x W^T": lambda x, W, A, B, alpha: alpha / len(A) * (x @ A.T @ B.T),
        "you multiply x by W + (alpha / r) B A without the transpose": lambda x, W, A, B, alpha: (
            x @ (W + alpha / len(A) * (B @ A))),
        "you add the update to W in place": _in_place,
    },
}
