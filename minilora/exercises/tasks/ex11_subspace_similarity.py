"""11. How similar are the directions of two updates?

Two LoRA runs give A1 and A2. In each, some directions matter more than others. These directions are
its right singular vectors, in the order of the singular values. Do the first i directions of A1 and
the first j directions of A2 span the same space? The paper (section 7.2, equation 4) measures this
as

    phi(A1, A2, i, j) = ||V1_i^T V2_j||^2 / min(i, j)

The columns of V1_i (k, i) are the first i right singular vectors of A1. The columns of V2_j (k, j)
are the first j of A2. ||M||^2 is the sum of the squares of the numbers of M. phi is 1 if one of the
two spaces lies in the other, and 0 if they are orthogonal. For two random spaces with a large k, it
is close to max(i, j) / k, not to 0. Compare any measured value with that.

subspace_similarity(A1, A2, i, j) takes
    A1, A2  float64 arrays (r1, k) and (r2, k), one direction a row; r1 and r2 may differ
    i, j    integers, 1 <= i <= min(r1, k), 1 <= j <= min(r2, k)
and returns one number from 0 to 1.

np.linalg.svd(A, full_matrices=False) returns U (r, m), S (m,) and Vh (m, k), where m = min(r, k), A
= U diag(S) Vh, and S goes from large to small. Which of them contains the right singular vectors:
in its rows, or in its columns?

    subspace_similarity(np.eye(2, 3), np.eye(2, 3), 2, 2)  ->  1.0
    subspace_similarity(np.array([[3.0, 0, 0], [0, 2, 0]]), np.array([[0, 5.0, 0]]), 1, 1)  ->  0.0
    subspace_similarity(np.array([[3.0, 0, 0], [0, 2, 0]]), np.array([[0, 5.0, 0]]), 2, 1)  ->  1.0
"""

import numpy as np


def subspace_similarity(A1, A2, i, j):
    """||V1_i^T V2_j||^2 / min(i, j), a number from 0 to 1."""
    ### BEGIN SOLUTION
    V1 = np.linalg.svd(A1, full_matrices=False)[2][:i]
    V2 = np.linalg.svd(A2, full_matrices=False)[2][:j]
    return np.sum((V1 @ V2.T) ** 2) / min(i, j)
    ### END SOLUTION


### CHECKS
# mypy: ignore-errors

from hypothesis import strategies as st

from minilora.exercises import kit

TITLE = "subspace similarity"
MINUTES = 25
CHAPTER = "10"

HINTS = (
    "The directions lie in the space of the inputs, which has k dimensions. Which part of the SVD "
    "has vectors of length k?",
    "Vh[:i] contains the first i right singular vectors as rows. One matrix product gives all "
    "inner products with the vectors of the other.",
    "np.sum((Vh1[:i] @ Vh2[:j].T) ** 2) / min(i, j)",
)


def _rotation(rng, size):
    """A random rotation, float64 (size, size)."""
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def _matrix(rng, V):
    """A matrix (r, k) whose right singular vectors are the rows of V (r, k), in this order."""
    return _rotation(rng, len(V)) @ (np.arange(len(V), 0, -1.0)[:, None] * V)


@st.composite
def pairs(draw):
    """Two matrices with random directions."""
    rng, k = draw(kit.generators()), draw(kit.sizes(3, 6))
    r1, r2 = draw(kit.sizes(1, k)), draw(kit.sizes(1, k))
    V1, V2 = _rotation(rng, k), _rotation(rng, k)
    i, j = draw(kit.sizes(1, r1)), draw(kit.sizes(1, r2))
    return {"A1": _matrix(rng, V1[:r1]), "A2": _matrix(rng, V2[:r2]), "i": i, "j": j}


@st.composite
def one_space(draw):
    """Two matrices: the space of i directions of A1 contains that of j of A2, or the reverse."""
    rng, k = draw(kit.generators()), draw(kit.sizes(3, 6))
    i, j = draw(kit.sizes(1, k)), draw(kit.sizes(1, k))
    V, few = _rotation(rng, k), min(i, j)
    inside = _rotation(rng, few) @ V[:few]  # other vectors of the same space
    A2 = _matrix(rng, np.vstack([inside, V[few:j]]))
    return {"A1": _matrix(rng, V[:i]), "A2": A2, "i": i, "j": j}


@st.composite
def apart(draw):
    """Two matrices whose first directions are orthogonal, but not their later ones."""
    rng, k = draw(kit.generators()), draw(kit.sizes(3, 6))
    i = draw(kit.sizes(1, k - 1))
    j = draw(kit.sizes(1, k - i))
    V = _rotation(rng, k)
    A2 = _matrix(rng, np.vstack([V[i : i + j], V[:i]]))
    return {"A1": _matrix(rng, V), "A2": A2, "i": i, "j": j}


def _exact(A1, A2, i, j):
    """The same from projectors: trace(P1 P2) / min(i, j), P projects onto the span."""

    def projector(A, n):
        _, vectors = np.linalg.eigh(A.T @ A)  # from small to large
        first = vectors[:, ::-1][:, :n]
        return first @ first.T

    return np.trace(projector(A1, i) @ projector(A2, j)) / min(i, j)


def _near(got, expected):
    kit.equal(got, np.float64(expected), "the similarity", rtol=1e-10, size=1.0)


def _constant(student):
    """Raise Wrong if the similarity of a line with itself, and with another one, is the same."""
    x, y = np.eye(2)[:1], np.eye(2)[1:]
    same, other = (student.subspace_similarity(x, one, 1, 1) for one in (x, y))
    kit.number(same, (), "the similarity")
    kit.holds(same != other, "the similarity of [[1, 0]] with itself and with [[0, 1]] to differ",
              f"{kit.shown(same)} for both")


@kit.check(one_space(), points=2)
def one(student, A1, A2, i, j):
    """It is 1 if one space lies in the other, for any vectors that span it."""
    _near(student.subspace_similarity(A1, A2, i, j), 1.0)
    _constant(student)


@kit.check(apart(), points=2)
def none(student, A1, A2, i, j):
    """It is 0 if the first directions are orthogonal, even if later ones are not."""
    _near(student.subspace_similarity(A1, A2, i, j), 0.0)
    _constant(student)


@kit.check(pairs(), points=3, examples=60)
def between(student, A1, A2, i, j):
    """In general, it is trace(P1 P2) / min(i, j), where P1 and P2 project onto the two spaces."""
    _near(student.subspace_similarity(A1, A2, i, j), _exact(A1, A2, i, j))


@kit.check(st.tuples(pairs(), st.sampled_from([0.01, 100.0])).map(lambda p: p[0] | {"c": p[1]}),
           points=2)
def other_units(student, A1, A2, i, j, c):
    """It does not change if A1 is scaled and its rows are mixed by a rotation."""
    rotated = c * _rotation(np.random.default_rng(0), len(A1)) @ A1
    _near(student.subspace_similarity(rotated, A2, i, j), _exact(A1, A2, i, j))


@st.composite
def wide(draw):
    """Matrices with many columns and random directions."""
    rng, k = draw(kit.generators()), draw(kit.sizes(50, 100))
    A1, A2 = (_matrix(rng, np.linalg.qr(rng.normal(size=(k, r)))[0].T) for r in (4, 5))
    return {"A1": A1, "A2": A2, "i": draw(kit.sizes(1, 4)), "j": draw(kit.sizes(1, 5))}


@kit.check(wide(), points=1, examples=20)
def random_spaces(student, A1, A2, i, j):
    """For random spaces in many dimensions, it is near max(i, j) / k, not 0."""
    _near(student.subspace_similarity(A1, A2, i, j), _exact(A1, A2, i, j))


PROMISES = {
    one: ("phi is 1 if", "Do the first i directions"), none: ("phi is 1 if",),
    between: ("phi(A1, A2, i, j) =", "The paper (section 7.2", "||M||^2 is the sum",
              "subspace_similarity(A1, A2, i, j)"),
    other_units: ("These directions are its right singular vectors",),
    random_spaces: ("For two random spaces",),
}
EXPLAINS = (
    "How similar are", "Two LoRA runs", "In each, some directions", "The columns of V1_i",
    "The columns of V2_j", "Compare any measured", "np.linalg.svd(A, full_matrices=False) returns",
    "Which of them contains",
)


def _by(how):
    """The solution with another formula: how(svd of A1, svd of A2, i, j)."""
    return lambda A1, A2, i, j: how(
        np.linalg.svd(A1, full_matrices=False), np.linalg.svd(A2, full_matrices=False), i, j
    )


def _mean(V1, V2, n):
    return np.sum((V1 @ V2.T) ** 2) / n


WRONG = {
    "subspace_similarity": {
        "you divide by max(i, j), not by min(i, j)": _by(
            lambda a, b, i, j: _mean(a[2][:i], b[2][:j], max(i, j))),
        "you divide by i * j": _by(lambda a, b, i, j: _mean(a[2][:i], b[2][:j], i * j)),
        "you do not divide by min(i, j)": _by(lambda a, b, i, j: _mean(a[2][:i], b[2][:j], 1)),
        "you take the norm, not its square": _by(
            lambda a, b, i, j: np.linalg.norm(a[2][:i] @ b[2][:j].T) / min(i, j)),
        "you take the last directions, not the first": _by(
            lambda a, b, i, j: _mean(a[2][-i:], b[2][-j:], min(i, j))),
        "you take columns of Vh, not rows": _by(
            lambda a, b, i, j: (
                np.sum((a[2][:, :i].T @ b[2][:, :j]) ** 2) / min(i, j)
                if len(a[2]) == len(b[2])
                else a[2][:, :i].T @ b[2][:, :j])),
        "you take the largest number of the product, not the sum of the squares": _by(
            lambda a, b, i, j: np.max(np.abs(a[2][:i] @ b[2][:j].T))),
        "you add the inner products without squaring them": _by(
            lambda a, b, i, j: np.sum(a[2][:i] @ b[2][:j].T) / min(i, j)),
        "you take rows of A1 and A2 themselves, not their singular vectors": lambda A1, A2, i, j: (
            _mean(A1[:i], A2[:j], min(i, j))),
        "you take all directions, not the first i and j": _by(
            lambda a, b, i, j: _mean(a[2], b[2], min(i, j))),
        "you weight the directions by their singular values": _by(
            lambda a, b, i, j: _mean(
                a[1][:i, None] * a[2][:i], b[1][:j, None] * b[2][:j], min(i, j))),
        "you take the first i directions of both": _by(
            lambda a, b, i, j: _mean(a[2][:i], b[2][:i], min(i, j))),
    }
}
