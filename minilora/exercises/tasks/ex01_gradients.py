"""01. The gradients of a sum, a product and a matrix product.

Training asks: if this number grows a little, how much does the loss grow? This slope is the
gradient of the number. Say z is computed from x and y, and g is the gradient of z. g is an array of
the shape of z: for each number of z, it says how fast the loss grows with it. What are the
gradients of x and y? Change one number of x a little. See which numbers of z change, and by how
much. Multiply each change by its number of g, and add up.

Your answer is checked in the same way. The loss is sum(g * z): its slope at each number of z is g.
Each number of x and y is moved by e in both directions, and the slope is measured:
    (loss(x + e) - loss(x - e)) / (2 e)
Such slopes are called central differences.

Each function takes
    g      array, the gradient of the result; it has the shape of the result
    x, y   arrays from which the result was computed
and returns (dx, dy), the gradients of x and y: dx has the shape of x, dy has the shape of y.

    grad_add     of z = x + y, with g, x, y of one shape
    grad_mul     of z = x * y, with g, x, y of one shape
    grad_matmul  of z = x @ y, with x (m, k), y (k, n) and g (m, n)

    grad_add(np.array([5, 7]), np.array([1, 2]), np.array([3, 4]))  ->  ([5, 7], [5, 7])
    grad_mul(np.array([5, 7]), np.array([1, 2]), np.array([3, 4]))  ->  ([15, 28], [5, 14])
    grad_matmul(np.array([[5, 7]]), np.array([[2]]), np.array([[3, 4]]))[0]  ->  [[43]]
    grad_matmul(np.array([[5, 7]]), np.array([[2]]), np.array([[3, 4]]))[1]  ->  [[10, 14]]
"""

import numpy as np


def grad_add(g, x, y):
    """(dx, dy) of x + y."""
    ### BEGIN SOLUTION
    return g, g
    ### END SOLUTION


def grad_mul(g, x, y):
    """(dx, dy) of x * y."""
    ### BEGIN SOLUTION
    return g * y, g * x
    ### END SOLUTION


def grad_matmul(g, x, y):
    """(dx, dy) of x @ y."""
    ### BEGIN SOLUTION
    return g @ y.T, x.T @ g
    ### END SOLUTION


### CHECKS
# mypy: ignore-errors

from hypothesis import strategies as st

from minilora.exercises import kit

TITLE = "gradients of a sum, a product and a matrix product"
MINUTES = 20
CHAPTER = "01"

HINTS = (
    "Change one number of x by a small e. Then the same number of x + y changes by e, and the "
    "same number of x * y changes by e * y. In x @ y, a change of x[i, k] changes row i: its "
    "number j changes by e * y[k, j].",
    "dx is g times the change of z for each unit of e, summed over all numbers of z that change. "
    "For x @ y: dx[i, k] is the sum over j of g[i, j] * y[k, j]. Which matrix product is that? "
    "Look at the shapes: (m, n) and (k, n) must give (m, k).",
    "Sum: (g, g). Product: (g * y, ...). Matrix product: dx = g @ y.T. For dy, a (k, m) matrix "
    "times an (m, n) matrix must give (k, n): so transpose x, and put it on the left.",
)


LARGE = 100.0


def _measured(f, g, x, y):
    """(dx, dy) of sum(g * f(x, y)) by central differences: exact, because f is bilinear."""

    def loss():
        return np.sum(g * f(x, y))

    grads = np.zeros_like(x), np.zeros_like(y)
    for array, grad in zip((x, y), grads):
        step = max(1.0, float(np.max(np.abs(array))))  # as large as the numbers: little is rounded
        for place in np.ndindex(array.shape):
            old = array[place]
            array[place] = old + step
            above = loss()
            array[place] = old - step
            grad[place] = (above - loss()) / (2.0 * step)
            array[place] = old
    return grads


def _same(student, name, f, g, x, y, which="xy"):
    expected = dict(zip("xy", _measured(f, g, x, y)))
    got = dict(zip("xy", kit.parts(getattr(student, name)(g, x, y), "dx", "dy")))
    for one in which:
        kit.equal(got[one], expected[one], f"d{one}", size=g)


@st.composite
def alike(draw, scale=0.1):
    """g, x and y of one shape; scale: of all numbers."""
    shape = draw(st.lists(kit.sizes(2, 3), min_size=1, max_size=3))
    numbers = draw(kit.numbers())
    return {name: numbers(*shape) * scale for name in ("g", "x", "y")}


@st.composite
def products(draw, square=False, inner=False, scale=0.1):
    """x, y, and g of the shape of x @ y: all sizes are different.

    square: all are equal. inner: x is one row, y is one column. scale: of all numbers.
    """
    size = draw(kit.sizes(1, 3))
    m, k, n = (size,) * 3 if square else draw(st.permutations([1, 2, 3, 4]))[:3]
    m, k, n = (1, size + 1, 1) if inner else (m, k, n)
    numbers, shapes = draw(kit.numbers()), {"g": (m, n), "x": (m, k), "y": (k, n)}
    return {name: numbers(*shape) * scale for name, shape in shapes.items()}


@kit.check(alike(), alike(LARGE), points=2, examples=60)
def a_sum(student, g, x, y):
    """grad_add equals the central differences of sum(g * (x + y))."""
    _same(student, "grad_add", np.add, g, x, y)


@kit.check(alike(), alike(LARGE), points=2, examples=60)
def a_product(student, g, x, y):
    """grad_mul equals the central differences of sum(g * x * y)."""
    _same(student, "grad_mul", np.multiply, g, x, y)


@kit.check(products(square=True), points=2)
def square_matrices(student, g, x, y):
    """grad_matmul of square matrices equals the central differences of sum(g * (x @ y))."""
    _same(student, "grad_matmul", np.matmul, g, x, y)


@kit.check(products(), products(inner=True), products(scale=LARGE), points=2, examples=90)
def dx_of_matmul(student, g, x, y):
    """grad_matmul gives the right dx for matrices that are not square."""
    _same(student, "grad_matmul", np.matmul, g, x, y, "x")


@kit.check(products(), products(inner=True), products(scale=LARGE), points=2, examples=90)
def dy_of_matmul(student, g, x, y):
    """grad_matmul gives the right dy for matrices that are not square."""
    _same(student, "grad_matmul", np.matmul, g, x, y, "y")


PROMISES = {
    a_sum: ("What are the gradients", "Each function takes"), a_product: ("grad_add",),
    square_matrices: ("The gradients of", "Multiply each change"),
    dx_of_matmul: ("Each function takes",), dy_of_matmul: ("Your answer is checked",),
}
EXPLAINS = (
    "Training asks", "This slope is", "Say z is", "g is an array", "Change one number",
    "See which", "The loss is sum", "Each number of x and y is moved", "Such slopes",
)


def _in_place(g, x, y):
    x *= g
    y *= g
    return y.copy(), x.copy()


def _into_g(g, x, y):
    g *= y
    return g, g * x


def _one_number(g, x, y):
    return (g * y[:1], g * x[:, :1]) if g.size == 1 else (g @ y.T, x.T @ g)


WRONG = {
    "grad_add": {
        "you leave out g in the sum: the slope is 1, but it must be multiplied by g":
            lambda g, x, y: (np.ones_like(x), np.ones_like(y)),
        "you give x and y one half of g each": lambda g, x, y: (g / 2, g / 2),
        "you multiply by x and y in the sum too": lambda g, x, y: (g * x, g * y),
        "you return x and y, not their gradients": lambda g, x, y: (x, y),
        "you give the gradients of x - y": lambda g, x, y: (g, -g),
    },
    "grad_mul": {
        "you leave out g in the product": lambda g, x, y: (y, x),
        "you multiply g by x for dx and by y for dy; swap them": lambda g, x, y: (g * x, g * y),
        "you keep g between -100 and 100": lambda g, x, y: (
            np.clip(g, -100, 100) * y, np.clip(g, -100, 100) * x),
        "you write dx into g, but dy needs the old g": _into_g,
        "you multiply by both x and y": lambda g, x, y: (g * x * y, g * x * y),
        "you return g alone for the product": lambda g, x, y: (g, g),
        "you change x and y in place": _in_place,
    },
    "grad_matmul": {
        "you leave out both transposes": lambda g, x, y: (g @ y, x @ g),
        "you take a result of one number for a product of two numbers": _one_number,
        "you swap the two operands: y.T @ g and g @ x.T": lambda g, x, y: (y.T @ g, g @ x.T),
        "you return dy first, then dx": lambda g, x, y: (x.T @ g, g @ y.T),
        "you leave out g in the matrix product": lambda g, x, y: (
            np.ones_like(g) @ y.T, x.T @ np.ones_like(g)),
        "you multiply elementwise, as for x * y": lambda g, x, y: (g * y, g * x),
        "you transpose g too": lambda g, x, y: (g.T @ y.T, x.T @ g.T),
        "you return dy transposed": lambda g, x, y: (g @ y.T, g.T @ x),
        "you return dx and dy transposed": lambda g, x, y: (y @ g.T, g.T @ x),
    },
}
