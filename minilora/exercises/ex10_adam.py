"""10. Adam, and what it remembers.

Adam keeps two arrays for each parameter p, of its shape, zero at first: m, a running mean of the
gradient g, and v, a running mean of g². As they start at 0, they are too small at first; m' and v'
mend that. Step t (1, 2, 3, ...) is

    m = beta1 m + (1 - beta1) g          m' = m / (1 - beta1^t)
    v = beta2 v + (1 - beta2) g²         v' = v / (1 - beta2^t)
    p = p - lr m' / (sqrt(v') + eps)

adam_step(p, g, m, v, t, lr, beta1, beta2, eps) takes
    p, g, m, v             arrays of one shape
    t                      whole number, 1 at the first step
    lr, beta1, beta2, eps  numbers
and changes p, m and v in place. What is kept is m and v, not m' and v'. It returns nothing; g stays
as it is. With p = 1, g = 2, m = v = eps = 0, t = 1 and lr = 0.1 the new p is 0.9, for any betas.

adam_bytes(shapes, dtype) takes
    shapes  list of the shapes of what is trained
    dtype   NumPy dtype of p, m and v, such as np.float32
and returns how many bytes all m and v together take.

    adam_bytes([(2, 3), (4,)], np.float32)  ->  80
"""

import numpy as np


def adam_step(p, g, m, v, t, lr, beta1, beta2, eps):
    """One step of Adam, in place."""
    ### BEGIN SOLUTION
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    p -= lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    ### END SOLUTION


def adam_bytes(shapes, dtype):
    """The bytes of Adam's m and v."""
    ### BEGIN SOLUTION
    return 2 * sum(int(np.prod(shape)) for shape in shapes) * np.dtype(dtype).itemsize
    ### END SOLUTION


### BESIDE THE STUDENT


def many_steps(student, p, gradients, *options):
    """p, m and v after a step with each of the gradients."""
    p, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        student.adam_step(p, g.copy(), m, v, t, *options)
    return p, m, v


### CHECKS
# mypy: ignore-errors

from hypothesis import strategies as st

from .. import optim
from ..nn import Parameter
from . import kit

TITLE = "Adam"
MINUTES = 25
CHAPTER = "03"
IN_PLACE = {"adam_step": ("p", "m", "v")}

HINTS = (
    "Write the five formulas in their order. To change an array in place: m[...] = ..., p -= ... . "
    "For the bytes: how many numbers do m and v have, and how many bytes has one of them?",
    "m' and v' are only for this step: give them names of their own. eps stands outside of the "
    "root. np.prod(shape) counts numbers, np.dtype(dtype).itemsize is the bytes of one.",
    "m[...] = beta1 * m + (1 - beta1) * g; v likewise with g * g; p -= lr * (m / (1 - beta1**t)) / "
    "(np.sqrt(v / (1 - beta2**t)) + eps). Bytes: 2 * numbers * itemsize.",
)


@st.composite
def moments(draw, first=False):
    """A parameter with a gradient, at its first step or a later one."""
    shape = draw(st.lists(kit.sizes(1, 3), min_size=1, max_size=2))
    rng = draw(kit.generators())
    p, g, m = (kit.small(rng, *shape) for _ in range(3))
    return {
        "p": p, "g": g, "m": 0 * m if first else m, "v": 0 * m if first else np.abs(m) + 3,
        "t": 1 if first else draw(st.integers(2, 9)), "lr": draw(st.sampled_from([0.25, 0.1])),
        "beta1": draw(st.sampled_from([0.75, 0.9])), "beta2": draw(st.sampled_from([0.5, 0.99])),
        "eps": draw(st.sampled_from([1e-3, 1e-8, 0.5])),
    }  # fmt: skip


def _engine(p, gradients, lr, beta1, beta2, eps):
    """p, m and v after the engine's Adam."""
    held = Parameter(p.copy())
    adam = optim.Adam({"p": held}, lr, (beta1, beta2), eps)
    for g in gradients:
        held.grad = g
        adam.step()
    return held.data, *adam.state["p"].values()


def _after(student, p, g, m, v, t, lr, beta1, beta2, eps):
    new = [p.copy(), m.copy(), v.copy()]
    student.adam_step(new[0], g, new[1], new[2], t, lr, beta1, beta2, eps)
    return new


def _step(p, g, m, v, t, lr, beta1, beta2, eps):
    """The formulas, as the paper's section 2 has them: the corrections in the step size."""
    m, v = m + (1 - beta1) * (g - m), v + (1 - beta2) * (g**2 - v)
    root = np.sqrt(1 - beta2**t)
    return p - lr * root / (1 - beta1**t) * m / (np.sqrt(v) + eps * root), m, v


@kit.check(moments(), points=2)
def means(student, **case):
    """m and v become the running means of g and of g², in place."""
    _, m, v = _after(student, **case)
    _, expected_m, expected_v = _step(**case)
    kit.equal(m, expected_m, "m after the step")
    kit.equal(v, expected_v, "v after the step")


@kit.check(moments(first=True), points=1)
def first_step(student, **case):
    """At the first step, p goes lr · g / (|g| + eps) down."""
    g = case["g"]
    expected = case["p"] - case["lr"] * g / (np.abs(g) + case["eps"])
    kit.equal(_after(student, **case)[0], expected, "p after the step")


@kit.check(moments(), points=2)
def later_step(student, **case):
    """At a later step, p goes lr m' / (sqrt(v') + eps) down."""
    kit.equal(_after(student, **case)[0], _step(**case)[0], "p after the step")


@st.composite
def runs(draw):
    """Fifty gradients."""
    rng, shape = draw(kit.generators()), (draw(kit.sizes(1, 3)), draw(kit.sizes(1, 3)))
    return {"p": rng.normal(size=shape), "gradients": rng.normal(size=(50, *shape)), "lr": 0.01,
            "eps": draw(st.sampled_from([1e-8, 1e-3]))}  # fmt: skip


@kit.check(runs(), points=2, examples=15)
def fifty_steps(student, p, gradients, lr, eps):
    """Fifty steps end where the engine's Adam ends, up to rounding."""
    got = kit.parts(student.many_steps(p, gradients, lr, 0.9, 0.999, eps), "p", "m", "v")
    for name, a, b in zip("pmv", got, _engine(p, gradients, lr, 0.9, 0.999, eps)):
        steps = len(gradients)  # each rounds a dozen times, in sizes of b's: eps is 2 roundings
        kit.equal(a, b, f"{name} after 50 steps", rtol=16 * steps * float(np.finfo(b.dtype).eps))


@kit.check(
    st.fixed_dictionaries({
        "shapes": st.lists(st.lists(st.sampled_from([3, 1, 2, 5]), min_size=1, max_size=3)
                           .map(tuple), min_size=1, max_size=3),
        "dtype": st.sampled_from([np.dtype(np.float32), np.dtype(np.float64)]),
    }),
    points=3, examples=60,
)  # fmt: skip
def counted(student, shapes, dtype):
    """adam_bytes is what the engine's ledger counts for its Adam."""
    parameters = {str(i): Parameter(np.ones(shape, dtype)) for i, shape in enumerate(shapes)}
    held = optim.Adam(parameters).arrays().values()
    kit.equal(student.adam_bytes(shapes, dtype), sum(array.nbytes for array in held), "the bytes")


def _adam(m_=lambda m, b: m / b, v_=lambda v, b: v / b, root=lambda v, eps: np.sqrt(v) + eps,
          square=lambda g: g * g, sign=-1, power=lambda t: t):  # fmt: skip
    def adam_step(p, g, m, v, t, lr, beta1, beta2, eps):
        m[...] = beta1 * m + (1 - beta1) * g
        v[...] = beta2 * v + (1 - beta2) * square(g)
        first, second = m_(m, 1 - beta1 ** power(t)), v_(v, 1 - beta2 ** power(t))
        p += sign * lr * first / root(second, eps)

    return adam_step


def _keeping_corrected(p, g, m, v, t, lr, beta1, beta2, eps):
    m[...] = (beta1 * m + (1 - beta1) * g) / (1 - beta1**t)
    v[...] = (beta2 * v + (1 - beta2) * g * g) / (1 - beta2**t)
    p -= lr * m / (np.sqrt(v) + eps)


def _not_in_place(p, g, m, v, t, lr, beta1, beta2, eps):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    p -= lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)


def _swapped(p, g, m, v, t, lr, beta1, beta2, eps):
    _adam()(p, g, m, v, t, lr, beta2, beta1, eps)


def _bytes(each, times=2):
    return lambda shapes, dtype: times * sum(each(s, np.dtype(dtype).itemsize) for s in shapes)


WRONG = {
    "adam_step": {
        "you leave out both corrections": _adam(lambda m, b: m, lambda v, b: v),
        "you correct m, but not v": _adam(v_=lambda v, b: v),
        "you correct v, but not m": _adam(m_=lambda m, b: m),
        "you put eps inside of the root": _adam(root=lambda v, eps: np.sqrt(v + eps)),
        "you take no root of v'": _adam(root=lambda v, eps: v + eps),
        "you average g in v, not g²": _adam(square=lambda g: g),
        "you go uphill": _adam(sign=1),
        "you count t from 0 in the corrections": _adam(power=lambda t: t - 1),
        "you count t from 2 in the corrections": _adam(power=lambda t: t + 1),
        "you keep m' and v' as the new m and v": _keeping_corrected,
        "you give names to the new m and v, and do not write into the arrays": _not_in_place,
        "you swap beta1 and beta2": _swapped,
    },
    "adam_bytes": {
        "you count one of m and v": _bytes(lambda s, size: int(np.prod(s)) * size, 1),
        "you count p, too": _bytes(lambda s, size: int(np.prod(s)) * size, 3),
        "you count numbers, not bytes": _bytes(lambda s, size: int(np.prod(s))),
        "you take 4 bytes for each number, whatever the dtype is": _bytes(
            lambda s, size: 4 * int(np.prod(s))
        ),
        "you add the sizes of a shape, and do not multiply them": _bytes(
            lambda s, size: sum(s) * size
        ),
        "you count bits": _bytes(lambda s, size: 8 * int(np.prod(s)) * size),
    },
}
