"""04. Softmax, cross-entropy, and its gradient.

A classifier gives a row of numbers for each example: the logits, one number for each class. Softmax
turns a row into probabilities: they are positive, and their sum is 1. If z_j are the logits of one
row,
    softmax(z)_j = exp(z_j) / sum over i of exp(z_i)
The cross-entropy of one example is -log of the probability of its true class. It is 0 if that
probability is 1, and large if it is small. The loss is the mean over all examples.

exp of a large number is infinite. The probabilities do not change if you subtract one number from
all logits of a row: subtract the largest. A probability can still round to 0, and log(0) is -inf.
So write the log of the quotient as a difference, and compute that. Logits of 1000 and of -1000 must
work. The arrays that you return have the dtype of the logits: float32 stays float32.

softmax(z) takes
    z        array (..., classes): the logits of one example lie along the last axis
and returns the probabilities, an array of the same shape.

cross_entropy(z, targets) takes
    z        array (examples, classes)
    targets  array (examples,) of integers: the number of each example's true class, from 0
and returns the loss, one number.

grad_cross_entropy(z, targets) takes the same arguments. It returns the gradient of the loss with
respect to z: how fast the loss grows with each logit, an array of the shape of z. There is a short
formula.

    softmax(np.array([[0.0, 0.0], [1000.0, -1000.0]]))  ->  [[0.5, 0.5], [1.0, 0.0]]
    cross_entropy(np.array([[0.0, 0.0], [1000.0, -1000.0]]), np.array([0, 1]))  ->  1000.34657359028
    grad_cross_entropy(np.array([[0.0, 0.0]]), np.array([1]))  ->  [[0.5, -0.5]]
"""

import numpy as np


def softmax(z):
    """The probabilities of logits z (..., classes)."""
    ### BEGIN SOLUTION
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
    ### END SOLUTION


def cross_entropy(z, targets):
    """The mean over the examples of -log softmax(z)[target]."""
    ### BEGIN SOLUTION
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(z)), targets].mean()
    ### END SOLUTION


def grad_cross_entropy(z, targets):
    """The gradient of cross_entropy(z, targets) with respect to z, of the shape of z."""
    ### BEGIN SOLUTION
    grad = softmax(z)
    grad[np.arange(len(z)), targets] -= 1
    return grad / len(z)
    ### END SOLUTION


### CHECKS
# mypy: ignore-errors

from hypothesis import strategies as st

from minilora.exercises import kit

TITLE = "softmax and cross-entropy"
MINUTES = 30
CHAPTER = "04"

HINTS = (
    "Softmax: subtract the largest logit of each row, take exp, divide by the sum of each row. "
    "Use axis=-1 and keepdims=True. Loss: log(e / s) is log(e) - log(s), and log(exp(z)) is z.",
    "Loss: shift z as in softmax. Then log_p = z - np.log(sum of exp(z) in each row). From row i "
    "you need log_p[i, targets[i]]. Gradient of one example: the slope of -z_t is -1 at the "
    "target, and the slope of log(sum of exp(z)) is softmax(z).",
    "log_p[np.arange(len(z)), targets] picks one number from each row; the loss is minus their "
    "mean. Gradient: grad = softmax(z); grad[np.arange(len(z)), targets] -= 1; return grad / "
    "len(z), because the loss is a mean.",
)


def _log_p(z):
    """log softmax along the last axis."""
    return z - np.logaddexp.reduce(z, axis=-1, keepdims=True)


def _loss(z, targets):
    return -np.mean([row[target] for row, target in zip(_log_p(z), targets)])


def _slopes(z, targets):
    """The slope of the loss for each logit, by an imaginary step, which loses no digits."""
    slopes, step = np.zeros_like(z), 1e-30
    for place in np.ndindex(z.shape):
        moved = (z - z.max(axis=1, keepdims=True)).astype(complex)
        moved[place] += step * 1j
        log_p = moved - np.log(np.exp(moved).sum(axis=1, keepdims=True))
        slopes[place] = -sum(row[t] for row, t in zip(log_p, targets)).imag / step / len(z)
    return slopes


def _close(got, expected, what, z):
    """Raise Wrong unless equal up to rounding, which grows with the size of the logits."""
    kit.number(got, np.shape(expected), what)
    bound = (64 + 8 * np.max(np.abs(z))) * float(np.finfo(z.dtype).eps)
    if not np.all(np.abs(np.asarray(got, np.float64) - expected) <= bound):
        kit.equal(got, np.asarray(expected), what, rtol=0.0)


@st.composite
def logits(draw, axes=2, large=False, dtype=np.float64, rows=(1, 3), classes=(2, 4)):
    """z (..., classes) with 1 to `axes` axes; axes=2: always 2. large: far apart, far from 0."""
    few = draw(st.integers(0, 2)) if axes != 2 else 1
    shape = (*(draw(kit.sizes(*rows)) for _ in range(few)), draw(kit.sizes(*classes)))
    numbers = draw(kit.numbers())
    z, rng = numbers(*shape), numbers.rng
    if large:
        z += rng.choice([-1000.0, 0.0, 1000.0], size=(*shape[:-1], 1))
        z += rng.choice([0.0, 0.0, 1500.0], size=shape)  # 750 above the mean of two
    return z.astype(dtype)


@st.composite
def examples(draw, **options):
    """z (examples, classes) and targets (examples,); options: see logits."""
    z = draw(logits(**options))
    targets = draw(kit.generators()).integers(0, z.shape[1], size=len(z))
    return {"z": z, "targets": targets}


@kit.check(
    *(logits(axes=3, **sizes).map(lambda z: {"z": z}) for sizes in ({}, {"classes": (1, 1)})),
    points=1, examples=60,
)
def probabilities(student, z):
    """softmax gives exp(z) divided by its sum, for each row"""
    _close(student.softmax(z), np.exp(_log_p(z)), "softmax(z)", z)


@kit.check(logits(axes=3, large=True).map(lambda z: {"z": z}), points=2, examples=60)
def large_probabilities(student, z):
    """softmax of large logits of both signs: only their differences matter"""
    _close(student.softmax(z), np.exp(_log_p(z)), "softmax(z)", z)


@kit.check(examples(), examples(rows=(4, 9), classes=(130, 300)), points=2, examples=60)
def loss(student, z, targets):
    """cross_entropy is the mean of -log softmax(z)[target]"""
    _close(student.cross_entropy(z, targets), _loss(z, targets), "the loss", z)


@kit.check(examples(large=True), points=1, examples=60)
def large_loss(student, z, targets):
    """cross_entropy of large logits: a probability can round to 0"""
    _close(student.cross_entropy(z, targets), _loss(z, targets), "the loss", z)


@kit.check(examples(), examples(rows=(4, 9), classes=(1, 12)), points=2, examples=60)
def gradient(student, z, targets):
    """grad_cross_entropy is the slope of the loss for each logit"""
    got = student.grad_cross_entropy(z, targets)
    _close(got, _slopes(z, targets), "the gradient", z)


@kit.check(examples(large=True), points=1, examples=60)
def large_gradient(student, z, targets):
    """grad_cross_entropy of large logits"""
    got = student.grad_cross_entropy(z, targets)
    _close(got, _slopes(z, targets), "the gradient", z)


@kit.check(
    examples(dtype=np.float32), examples(dtype=np.float32, large=True), points=1, examples=30
)
def dtypes(student, z, targets):
    """float32 logits give float32 probabilities and gradients, also one row or three axes"""
    wide = z.astype(np.float64)
    for rows in (z, z[0], z[None]):
        softmax = student.softmax(rows)
        _close(softmax, np.exp(_log_p(np.float64(rows))), "softmax(z)", z)
        kit.holds(softmax.dtype == z.dtype, "softmax(z) in float32", f"{softmax.dtype}")
    grad = student.grad_cross_entropy(z, targets)
    _close(grad, _slopes(wide, targets), "the gradient", z)
    kit.holds(grad.dtype == z.dtype, "the gradient in float32", f"{grad.dtype}")


PROMISES = {
    probabilities: ("If z_j are the logits", "Softmax turns a row", "softmax(z) takes"),
    large_probabilities: ("exp of a large number is infinite", "Logits of 1000"),
    loss: ("The loss is the mean", "The cross-entropy of one example", "cross_entropy(z, targets)"),
    large_loss: ("A probability can still round to 0", "Logits of 1000"),
    gradient: ("It returns the gradient of the loss",), large_gradient: ("Logits of 1000",),
    dtypes: ("The arrays that you return",),
}
EXPLAINS = (
    "Softmax, cross-entropy, and", "A classifier gives", "It is 0 if that probability",
    "The probabilities do not change", "So write the log", "grad_cross_entropy(z, targets) takes",
    "There is a short formula",
)


def _shifted(z, shift=None, axis=-1):
    e = np.exp(z - (z.max(axis=axis, keepdims=True) if shift is None else shift))
    return e / e.sum(axis=axis, keepdims=True)


def _picked(z, targets):
    return _log_p(z)[np.arange(len(z)), targets]


def _grad(z, targets, p=None, hot=1.0):
    p = _shifted(z) if p is None else p
    one = np.zeros_like(z)
    one[np.arange(len(z)), targets] = hot
    return (p - one) / z.dtype.type(len(z))


def _unscaled(z):
    return np.exp(z - z.max(axis=-1, keepdims=True))


def _softmax_in_place(z):
    z -= z.max(axis=-1, keepdims=True)
    return _shifted(z)


def _every_target(z, targets):
    grad = _shifted(z)
    grad[:, targets] -= 1
    return grad / z.dtype.type(len(z))


WRONG = {
    "softmax": {
        "you do not subtract the largest logit of each row first":
            lambda z: _shifted(z, shift=0),
        "you subtract the largest logit of the entire array, not of each row":
            lambda z: _shifted(z, shift=z.max()),
        "you subtract the mean of each row, not its largest logit":
            lambda z: _shifted(z, shift=z.mean(axis=-1, keepdims=True)),
        "you divide by the sum of the entire array, not of each row":
            lambda z: _unscaled(z) / _unscaled(z).sum(),
        "you work along the first axis, not the last": lambda z: _shifted(z, axis=0),
        "you return the log of the probabilities": _log_p,
        "you do not divide by the sum": _unscaled,
        "you change z in place in softmax": _softmax_in_place,
    },
    "cross_entropy": {
        "you take the sum over the examples, not the mean":
            lambda z, targets: -_picked(z, targets).sum(),
        "you leave out the minus sign": lambda z, targets: _picked(z, targets).mean(),
        "you divide by the number of all logits, not by the number of examples":
            lambda z, targets: -_picked(z, targets).sum() / z.size,
        "you take the log of probabilities that can round to 0":
            lambda z, targets: -np.log(_shifted(z)[np.arange(len(z)), targets]).mean(),
        "you add 1e-9 to the probability before the log":
            lambda z, targets: -np.log(_shifted(z)[np.arange(len(z)), targets] + 1e-9).mean(),
        "you take log_p[:, targets]: all targets in every row, not the target of each row":
            lambda z, targets: -_log_p(z)[:, targets].mean(),
        "you take the probability, not its log":
            lambda z, targets: -np.exp(_picked(z, targets)).mean(),
        "you return a loss for each example, not the mean":
            lambda z, targets: -_picked(z, targets),
    },
    "grad_cross_entropy": {
        "you do not divide the gradient by the number of examples":
            lambda z, targets: _grad(z, targets) * z.dtype.type(len(z)),
        "you leave out the -1 at the target":
            lambda z, targets: _grad(z, targets, hot=0.0),
        "your gradient has the wrong sign":
            lambda z, targets: -_grad(z, targets),
        "you take grad[:, targets] -= 1: all targets in every row, not the target of each row":
            _every_target,
        "you divide the gradient by the number of all logits":
            lambda z, targets: _grad(z, targets) / z.dtype.type(z.shape[1]),
        "you use the logits instead of their softmax":
            lambda z, targets: _grad(z, targets, p=z),
        "you return a float64 gradient for float32 logits":
            lambda z, targets: _shifted(z) / len(z) - np.eye(z.shape[1])[targets] / len(z),
    },
}
