"""10. Adam, and the memory that it needs.

Adam (Kingma and Ba 2015, algorithm 1) gives each number its own step size. For each trained number
it keeps two running means: m of the gradient, and v of the squared gradient. Both are 0 before the
first step. In step t = 1, 2, 3, ..., Adam computes

    m = b1 m + (1 - b1) g
    v = b2 v + (1 - b2) g^2
    p = p - lr m_hat / (sqrt(v_hat) + eps)
        with m_hat = m / (1 - b1^t) and v_hat = v / (1 - b2^t)

g^2 is g times g, and b1^t is b1 to the power t. m and v start at 0, so they are too small in the
first steps. m_hat and v_hat correct that. Adam keeps m and v, not the corrected m_hat and v_hat.

adam_step(p, g, m, v, t, lr, b1, b2, eps) takes
    p, g, m, v       arrays of one shape and dtype: the parameter, its gradient, the running means
    t                integer, the number of this step, from 1
    lr, b1, b2, eps  numbers
and returns (p, m, v) after the step, three new arrays of that dtype. It does not change its
arguments. If m_hat and v_hat are 0, the step is 0, as long as eps > 0.

adam_bytes(shapes, dtype) takes
    shapes  list of tuples, the shape of each trained array; () is one number
    dtype   a NumPy dtype or its name: of the trained arrays, and of m and v
and returns how many bytes of arrays Adam keeps between two steps, an integer. The parameters
themselves do not count. Frozen arrays are not in the list: that is where LoRA saves most.

    adam_step(np.ones(1), np.full(1, -5.0), *np.zeros((2, 1)), 1, 0.1, 0.9, 0.99, 0)[0]  ->  [1.1]
    adam_bytes([(8, 16), (16, 8)], "float32")  ->  2048
"""

import numpy as np


def adam_step(p, g, m, v, t, lr, b1, b2, eps):
    """(p, m, v) after step t."""
    ### BEGIN SOLUTION
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v
    ### END SOLUTION


def adam_bytes(shapes, dtype):
    """The bytes of m and v for arrays of these shapes."""
    ### BEGIN SOLUTION
    return 2 * sum(int(np.prod(shape)) for shape in shapes) * np.dtype(dtype).itemsize
    ### END SOLUTION


### DRIVERS

from minilora.exercises import kit


def written(file, *args):
    """p, g, m and v after a step, and the same arrays after a write into its results."""
    arrays = [array.copy() for array in args[:4]]
    results, before = file.adam_step(*arrays, *args[4:]), kit.copied(arrays)
    for result in kit.parts(results, "p", "m", "v"):
        if isinstance(result, np.ndarray):
            result += 1
    file.adam_step(*kit.copied(args))
    return before, arrays


### CHECKS
# mypy: ignore-errors

import math

from hypothesis import strategies as st

TITLE = "Adam and its memory"
MINUTES = 25
CHAPTER = "03"

HINTS = (
    "Write the three lines of the statement in this order. The new m and v are new arrays, "
    "computed from the old ones.",
    "m_hat = m / (1 - b1**t) and v_hat = v / (1 - b2**t) are only for the step: return m and v.",
    "p - lr * m_hat / (np.sqrt(v_hat) + eps). Bytes: m and v have the shape and dtype of the "
    "trained array, so 2 * (number of entries) * np.dtype(dtype).itemsize.",
)


@st.composite
def steps(draw, dtype="float64", most=1, start=False, tiny=False):
    """A parameter, its gradients step by step, the running means before them, the settings.

    tiny: gradients so small that an eps below 1e-8 matters.
    """
    numbers = draw(kit.numbers())
    shape, rng = tuple(draw(st.lists(kit.sizes(1, 3), max_size=2))), numbers.rng
    before = 0 if start else draw(st.integers(0, 20))  # earlier steps
    scale = 1e-9 if tiny else draw(st.sampled_from([1, 0.01]))
    m = numbers(*shape) if before else np.zeros(shape)
    return {
        "p": np.asarray(numbers(*shape), dtype),
        "gradients": [np.asarray(numbers(*shape) * scale, dtype) for _ in range(most)],
        "m": np.asarray(m, dtype), "v": np.asarray(m * m * rng.uniform(1, 2, shape), dtype),
        "t": before + 1, "lr": draw(kit.scalars(0.1, 0.5, low=0.01, high=1.0)),
        "b1": draw(kit.scalars(0.5, 0.9, low=0.3, high=0.99)),
        "b2": draw(kit.scalars(0.8, 0.99, low=0.3, high=0.999)),
        "eps": 1e-10 if tiny else draw(kit.scalars(0.5, 1e-8, low=0.01, high=1.0)),
    }


def _engine(p, gradients, m, v, t, lr, b1, b2, eps):
    """(p, m, v) after these steps of the library's Adam."""
    from minilora import nn, using
    from minilora.training import optim

    with using("numpy"):
        parameter = nn.Parameter(p.copy())
        adam = optim.Adam({"p": parameter}, lr=lr, betas=(b1, b2), eps=eps)
        adam.t = t - 1
        for name, mean in (("m", m), ("v", v)):
            adam.state["p"][name][...] = mean
        for g in gradients:
            parameter.grad = g.copy()
            adam.step()
        state = adam.state["p"]
        return parameter.data, state["m"], state["v"]


def _compared(student, p, gradients, m, v, t, **settings):
    expected = _engine(p, gradients, m, v, t, **settings)
    for i, g in enumerate(gradients):
        done = kit.parts(student.adam_step(p, g, m, v, t + i, *settings.values()), "p", "m", "v")
        for name, got, before in zip(("p", "m", "v"), done, (p, m, v)):
            kit.number(got, before.shape, f"{name} after the step")
            kit.holds(
                np.asarray(got).dtype == before.dtype, f"{name} in {before.dtype}",
                f"{name} in {np.asarray(got).dtype}",
            )
        p, m, v = map(np.asarray, done)
    # each step rounds p, m and v a few times, relative to their size
    steps = f"{len(gradients)} steps" if len(gradients) > 1 else "the step"
    n = 8 * (len(gradients) + 8)
    eps = float(np.finfo(p.dtype).eps)
    for name, got, exact in zip(
        ("m", "v", "p"), (m, v, p), (expected[1], expected[2], expected[0])
    ):
        size = max(float(np.max(np.abs(exact), initial=0.0)), 1.0)
        unit = size / max(float(np.max(np.abs(exact), initial=0.0)), 1e-30)
        kit.equal(got, exact, f"{name} after {steps}", rtol=n * eps * unit)


@kit.check(steps(start=True), steps(start=True, tiny=True), points=2, examples=60)
def first(student, p, gradients, m, v, **settings):
    """The first step, from m = 0 and v = 0."""
    _compared(student, p, gradients, m, v, **settings)


@kit.check(steps(), points=2)
def later(student, p, gradients, m, v, **settings):
    """A later step, from any m and v."""
    _compared(student, p, gradients, m, v, **settings)


@kit.check(steps(most=50, start=True), points=2, examples=15)
def many(student, p, gradients, m, v, **settings):
    """50 steps, compared with the library's Adam; the results of a step are new arrays."""
    both = student.written(p, gradients[0], m, v, *settings.values())
    for name, old, new in zip("pgmv", *both):
        kit.holds(old.tobytes() == new.tobytes(), f"{name} unchanged after a write into the "
                  "results", kit.shown(new))
    _compared(student, p, gradients, m, v, **settings)


@kit.check(steps("float32", most=3, start=True), points=2)
def in_float32(student, p, gradients, m, v, **settings):
    """float32 stays float32."""
    _compared(student, p, gradients, m, v, **settings)


def shapes(*sizes, dtypes=("float32", "float64", "float16")):
    """Shapes of these sizes, and a dtype or its name."""
    shape = st.lists(st.integers(*sizes), max_size=3).map(tuple)
    dtype = st.sampled_from([*dtypes, *map(np.dtype, dtypes)])
    return st.fixed_dictionaries({"shapes": st.lists(shape, max_size=4), "dtype": dtype})


@kit.check(shapes(2, 9), shapes(2**16, 2**20), points=2, examples=60)
def counted(student, shapes, dtype):
    """adam_bytes gives the bytes of two arrays of each shape, also of more than 2 GiB."""
    total = sum(2 * math.prod(shape) * np.dtype(dtype).itemsize for shape in shapes)
    got = student.adam_bytes(shapes, dtype)
    kit.number(got, (), "the bytes")
    whole = np.asarray(got).dtype.kind in "iu" or isinstance(got, int)
    kit.holds(whole and int(got) == total, f"the bytes = {total}, an integer",
              f"{kit.shown(got)} of type {type(got).__name__}")


PROMISES = {
    first: ("and returns (p, m, v) after", "Both are 0 before the first step"),
    later: ("m and v start at 0", "In step t = 1", "m = b1 m", "Adam keeps m and v, not"),
    many: ("three new arrays", "adam_step(p, g, m, v, t, lr, b1, b2, eps) takes",
           "m_hat and v_hat correct that"),
    in_float32: ("of that dtype", "It does not change its arguments", "If m_hat and v_hat are 0"),
    counted: ("adam_bytes(shapes, dtype) takes", "The parameters themselves do not count"),
}
EXPLAINS = ("Adam, and the memory", "Adam (Kingma", "For each trained number", "g^2 is g times g",
            "Frozen arrays are not in the list")


def _step(size, m_new=None, v_new=None):
    """The solution with another m, another v, or another step: size(m, v, t, b1, b2, eps)."""

    def step(p, g, m, v, t, lr, b1, b2, eps):
        m = (m_new or (lambda m, g, b: b * m + (1 - b) * g))(m, g, b1)
        v = (v_new or (lambda v, g, b: b * v + (1 - b) * g**2))(v, g, b2)
        return p - lr * size(m, v, t, b1, b2, eps), m, v

    return step


def _right(m, v, t, b1, b2, eps):
    return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def _corrected(p, g, m, v, t, lr, b1, b2, eps):
    m = (b1 * m + (1 - b1) * g) / (1 - b1**t)
    v = (b2 * v + (1 - b2) * g**2) / (1 - b2**t)
    return p - lr * m / (np.sqrt(v) + eps), m, v


def _in_place(p, g, m, v, t, lr, b1, b2, eps):
    m *= b1
    m += (1 - b1) * g
    v *= b2
    v += (1 - b2) * g**2
    p -= lr * _right(m, v, t, b1, b2, eps)
    return p, m, v


def _as_float64(p, g, m, v, t, lr, b1, b2, eps):
    b1, b2 = np.array([b1]), np.array([b2])  # float64 arrays make every result float64
    m = (b1 * m + (1 - b1) * g).reshape(p.shape)
    v = (b2 * v + (1 - b2) * g**2).reshape(p.shape)
    return p - lr * _right(m, v, t, b1[0], b2[0], eps), m, v


def _bytes(shapes, dtype, arrays=2):
    return arrays * sum(int(np.prod(shape)) for shape in shapes) * np.dtype(dtype).itemsize


WRONG = {
    "adam_step": {
        "you leave out the correction: you use m and v instead of m_hat and v_hat": _step(
            lambda m, v, t, b1, b2, eps: m / (np.sqrt(v) + eps)),
        "you correct m but not v": _step(
            lambda m, v, t, b1, b2, eps: m / (1 - b1**t) / (np.sqrt(v) + eps)),
        "you count steps from 0: b1^(t-1) instead of b1^t": _step(
            lambda m, v, t, b1, b2, eps: _right(m, v, max(t - 1, 1e-3), b1, b2, eps)),
        "you return m_hat and v_hat instead of m and v": _corrected,
        "you add eps inside the square root": _step(
            lambda m, v, t, b1, b2, eps: m / (1 - b1**t) / np.sqrt(v / (1 - b2**t) + eps)),
        "you leave out eps": _step(
            lambda m, v, t, b1, b2, eps: m / (1 - b1**t) / np.sqrt(v / (1 - b2**t))),
        "you do not allow an eps below 1e-8": _step(
            lambda m, v, t, b1, b2, eps: _right(m, v, t, b1, b2, max(eps, 1e-8))),
        "you take no square root of v_hat": _step(
            lambda m, v, t, b1, b2, eps: m / (1 - b1**t) / (v / (1 - b2**t) + eps)),
        "you add the step instead of subtracting it": _step(lambda *args: -_right(*args)),
        "you do not square the gradient in v": _step(
            _right, v_new=lambda v, g, b: b * v + (1 - b) * np.abs(g)),
        "you swap b1 and b2": lambda p, g, m, v, t, lr, b1, b2, eps: _step(_right)(
            p, g, m, v, t, lr, b2, b1, eps),
        "you add g without the factor (1 - b1)": _step(_right, m_new=lambda m, g, b: b * m + g),
        "you change p, m and v in place": _in_place,
        "you return float64 for float32 arguments": _as_float64,
    },
    "adam_bytes": {
        "you count one running mean, not two": lambda shapes, dtype: _bytes(shapes, dtype, 1),
        "you count the parameters too": lambda shapes, dtype: _bytes(shapes, dtype, 3),
        "you count entries, not bytes": lambda shapes, dtype: _bytes(shapes, "int8"),
        "you assume 4 bytes for each number, for any dtype": lambda shapes, dtype:
            _bytes(shapes, "float32"),
        "you add the sizes of a shape instead of multiplying them": lambda shapes, dtype:
            _bytes([(int(np.sum(shape)),) for shape in shapes], dtype),
        "you leave out arrays of shape ()": lambda shapes, dtype:
            _bytes([shape for shape in shapes if shape], dtype),
    },
}
