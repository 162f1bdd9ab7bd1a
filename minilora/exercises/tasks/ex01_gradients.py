"""01. The gradients of a sum, a product and a matrix product.

Training asks: if this number grew a little, how much would the loss grow? That slope is its
gradient. Say z was computed from x and y, and we have g, the gradient of z: an array of the shape
of z, which holds for each number of z how fast the loss grows with it. What are the gradients of x
and y? Nudge one number of x, see which numbers of z move and how far, and add up what that does to
the loss.

That is also how your answer is checked. The loss is sum(g * z), its slope at each number of z is g,
and each number of x and y is nudged both ways: (loss(x + e) - loss(x - e)) / (2 e) is measured for
it. Such slopes are called central differences.

Each function takes
    g      array, the gradient of the result; it has the shape of the result
    x, y   arrays, what the result was computed from
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
    "Nudge one x by a little e. x + y moves by e. x * y moves by e * y. Of x @ y, row i moves "
    "where x[i, k] was nudged: number j of it by e * y[k, j].",
    "dx is g times how far z moved, added up over all numbers of z that moved. For x @ y: "
    "dx[i, k] is the sum over j of g[i, j] * y[k, j]. Which matrix product is that? Look at the "
    "shapes: (m, n) and (k, n) must give (m, k).",
    "Sum: (g, g). Product: (g * y, ...). Matrix product: dx = g @ y.T; for dy, (k, m) times (m, n) "
    "must give (k, n), so x has to be transposed, and it stands on the left.",
)


def _measured(f, g, x, y):
    """(dx, dy) of sum(g * f(x, y)), by central differences; they are exact, as f is bilinear."""

    def loss():
        return np.sum(g * f(x, y))

    grads = np.zeros_like(x), np.zeros_like(y)
    for array, grad in zip((x, y), grads):
        for place in np.ndindex(array.shape):
            old = array[place]
            array[place] = old + 1.0
            above = loss()
            array[place] = old - 1.0
            grad[place] = (above - loss()) / 2.0
            array[place] = old
    return grads


def _same(student, name, f, g, x, y, which="xy"):
    expected = dict(zip("xy", _measured(f, g, x, y)))
    got = dict(zip("xy", kit.parts(getattr(student, name)(g, x, y), "dx", "dy")))
    for one in which:
        kit.equal(got[one], expected[one], f"d{one}")


@st.composite
def alike(draw):
    """g, x and y of one shape."""
    shape = draw(st.lists(kit.sizes(2, 3), min_size=1, max_size=3))
    rng = draw(kit.generators())
    return {name: kit.small(rng, *shape) / 10 for name in ("g", "x", "y")}


@st.composite
def products(draw, square=False):
    """x, y, and g of the shape of x @ y; no two sizes alike, or all of them."""
    size = draw(kit.sizes(1, 3))
    m, k, n = (size,) * 3 if square else draw(st.permutations([1, 2, 3, 4]))[:3]
    rng = draw(kit.generators())
    shapes = {"g": (m, n), "x": (m, k), "y": (k, n)}
    return {name: kit.small(rng, *shape) / 10 for name, shape in shapes.items()}


@kit.check(alike(), points=2)
def a_sum(student, g, x, y):
    """grad_add gives what central differences of sum(g * (x + y)) give."""
    _same(student, "grad_add", np.add, g, x, y)


@kit.check(alike(), points=2)
def a_product(student, g, x, y):
    """grad_mul gives what central differences of sum(g * x * y) give."""
    _same(student, "grad_mul", np.multiply, g, x, y)


@kit.check(products(square=True), points=2)
def square_matrices(student, g, x, y):
    """grad_matmul of square matrices gives what central differences of sum(g * (x @ y)) give."""
    _same(student, "grad_matmul", np.matmul, g, x, y)


@kit.check(products(), points=2)
def dx_of_matmul(student, g, x, y):
    """grad_matmul's dx, of matrices that are not square."""
    _same(student, "grad_matmul", np.matmul, g, x, y, "x")


@kit.check(products(), points=2)
def dy_of_matmul(student, g, x, y):
    """grad_matmul's dy, of matrices that are not square."""
    _same(student, "grad_matmul", np.matmul, g, x, y, "y")


def _in_place(g, x, y):
    x *= g
    y *= g
    return y.copy(), x.copy()


def _into_g(g, x, y):
    g *= y
    return g, g * x


WRONG = {
    "grad_add": {
        "you leave out g in the sum: its slope is 1, and that still has to be multiplied by g":
            lambda g, x, y: (np.ones_like(x), np.ones_like(y)),
        "you give each part of the sum one half of g": lambda g, x, y: (g / 2, g / 2),
        "you multiply by x and y in the sum, too": lambda g, x, y: (g * x, g * y),
        "you return x and y, not their gradients": lambda g, x, y: (x, y),
        "you give the gradients of x - y": lambda g, x, y: (g, -g),
    },
    "grad_mul": {
        "you leave out g in the product": lambda g, x, y: (y, x),
        "you multiply dx by x and dy by y, not by the other one": lambda g, x, y: (g * x, g * y),
        "you write the product into g, where dy needs the g that came": _into_g,
        "you multiply by both x and y": lambda g, x, y: (g * x * y, g * x * y),
        "you pass on g alone in the product": lambda g, x, y: (g, g),
        "you change x and y in place": _in_place,
    },
    "grad_matmul": {
        "you leave out both transposes": lambda g, x, y: (g @ y, x @ g),
        "you swap the two operands: y.T @ g and g @ x.T": lambda g, x, y:
            (y.T @ g, g @ x.T),
        "you return dy first, then dx": lambda g, x, y: (x.T @ g, g @ y.T),
        "you leave out g in the matrix product": lambda g, x, y: (
            np.ones_like(g) @ y.T, x.T @ np.ones_like(g)),
        "you multiply number by number, as for x * y": lambda g, x, y: (g * y, g * x),
        "you transpose g, too": lambda g, x, y: (g.T @ y.T, x.T @ g.T),
        "you return dy transposed": lambda g, x, y: (g @ y.T, g.T @ x),
        "you return dx and dy transposed": lambda g, x, y: (y @ g.T, g.T @ x),
    },
}
