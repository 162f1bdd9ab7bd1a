"""11. How alike are the directions of two updates?

Two LoRA runs give A1 and A2. Each has directions that matter more than others: its right singular
vectors, in the order of their singular values. Do the first i directions of A1 and the first j of
A2 span the same space? The paper (section 7.2, equation 4) measures it as

    phi(A1, A2, i, j) = ||V1_i^T V2_j||^2 / min(i, j)

where the columns of V1_i (k, i) are the first i right singular vectors of A1, those of V2_j (k, j)
the first j of A2, and ||M||^2 is the sum of the squares of the numbers of M. It is 1 where one of
the two spaces lies in the other, 0 where they are orthogonal. Two random spaces of a large k come
close to max(i, j) / k, not to 0: that is what a finding has to be compared with.

subspace_similarity(A1, A2, i, j) takes
    A1, A2  arrays (r1, k) and (r2, k), one direction in each row; r1 and r2 may differ
    i, j    integers, 1 <= i <= min(r1, k), 1 <= j <= min(r2, k)
and returns one number from 0 to 1.

np.linalg.svd(A, full_matrices=False) returns U (r, m), S (m,), Vh (m, k) with m = min(r, k),
A = U diag(S) Vh, S from large to small. Mind which of them holds the right singular vectors, and
whether in rows or in columns.

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
CHAPTER = "06"

HINTS = (
    "Directions live in the space of the inputs, of size k. Which part of the SVD has vectors of "
    "length k?",
    "Vh[:i] are the first i right singular vectors, as rows. All their inner products with those "
    "of the other are one matrix product.",
    "np.sum((Vh1[:i] @ Vh2[:j].T) ** 2) / min(i, j)",
)


def _turned(rng, size):
    """A random rotation, float64 (size, size)."""
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def _made(rng, V):
    """A matrix (r, k) whose right singular vectors are the rows of V (r, k), in that order."""
    return _turned(rng, len(V)) @ (np.arange(len(V), 0, -1.0)[:, None] * V)


@st.composite
def pairs(draw, shared=None):
    """Two matrices of known directions; the first `shared` of them are the same."""
    rng, k = draw(kit.generators()), draw(kit.sizes(3, 6))
    r1, r2 = draw(kit.sizes(1, k)), draw(kit.sizes(1, k))
    V1, V2 = _turned(rng, k), _turned(rng, k)
    i, j = draw(kit.sizes(1, r1)), draw(kit.sizes(1, r2))
    return {"A1": _made(rng, V1[:r1]), "A2": _made(rng, V2[:r2]), "i": i, "j": j}


@st.composite
def one_space(draw):
    """Two matrices, the first i directions of which span what the first j of the other lie in."""
    rng, k = draw(kit.generators()), draw(kit.sizes(3, 6))
    i, j = draw(kit.sizes(1, k)), draw(kit.sizes(1, k))
    V, few = _turned(rng, k), min(i, j)
    inside = _turned(rng, few) @ V[:few]  # the same space, by other vectors
    return {
        "A1": _made(rng, V[:i]),
        "A2": _made(rng, np.vstack([inside, V[few:j]])),
        "i": i,
        "j": j,
    }


@st.composite
def apart(draw):
    """Two matrices whose first directions are orthogonal, and whose others are not."""
    rng, k = draw(kit.generators()), draw(kit.sizes(3, 6))
    i = draw(kit.sizes(1, k - 1))
    j = draw(kit.sizes(1, k - i))
    V = _turned(rng, k)
    return {
        "A1": _made(rng, V), "A2": _made(rng, np.vstack([V[i : i + j], V[:i]])), "i": i, "j": j
    }


def _exact(A1, A2, i, j):
    """By projections: trace(P1 P2) / min(i, j), with P = the projector on a span."""

    def projector(A, n):
        _, vectors = np.linalg.eigh(A.T @ A)  # from small to large
        first = vectors[:, ::-1][:, :n]
        return first @ first.T

    return np.trace(projector(A1, i) @ projector(A2, j)) / min(i, j)


def _near(got, expected):
    kit.equal(got, np.float64(expected), "the similarity", rtol=1e-6)


@kit.check(one_space(), points=2)
def one(student, A1, A2, i, j):
    """1 where one space lies in the other, whatever vectors span it."""
    _near(student.subspace_similarity(A1, A2, i, j), 1.0)


@kit.check(apart(), points=2)
def none(student, A1, A2, i, j):
    """0 where the first directions are orthogonal, though later ones are not."""
    got = student.subspace_similarity(A1, A2, i, j)
    kit.number(got, (), "the similarity")
    kit.holds(abs(got) <= 1e-9, "the similarity = 0", f"the similarity = {kit.shown(got)}")


@kit.check(pairs(), points=3, examples=60)
def between(student, A1, A2, i, j):
    """In between, it is the trace of the product of the projectors over min(i, j)."""
    _near(student.subspace_similarity(A1, A2, i, j), _exact(A1, A2, i, j))


@kit.check(st.tuples(pairs(), st.sampled_from([0.01, 100.0])).map(lambda p: p[0] | {"c": p[1]}),
           points=2)
def other_units(student, A1, A2, i, j, c):
    """It stays the same when A1 is scaled, and when its rows are mixed by a rotation."""
    turned = c * _turned(np.random.default_rng(0), len(A1)) @ A1
    _near(student.subspace_similarity(turned, A2, i, j), _exact(A1, A2, i, j))


@st.composite
def wide(draw):
    """Random matrices of many columns."""
    rng, k = draw(kit.generators()), draw(kit.sizes(50, 100))
    A1, A2 = rng.normal(size=(4, k)), rng.normal(size=(5, k))
    return {"A1": A1, "A2": A2, "i": draw(kit.sizes(1, 4)), "j": draw(kit.sizes(1, 5))}


@kit.check(wide(), points=1, examples=20)
def random_spaces(student, A1, A2, i, j):
    """Random spaces in many dimensions: not 0, but near max(i, j) / k."""
    _near(student.subspace_similarity(A1, A2, i, j), _exact(A1, A2, i, j))


def _by(how):
    """The solution with another core: how(svd of A1, svd of A2, i, j)."""
    return lambda A1, A2, i, j: how(
        np.linalg.svd(A1, full_matrices=False), np.linalg.svd(A2, full_matrices=False), i, j
    )


def _mean(V1, V2, n):
    return np.sum((V1 @ V2.T) ** 2) / n


WRONG = {
    "subspace_similarity": {
        "you divide by max(i, j), not by min(i, j)": _by(
            lambda a, b, i, j: _mean(a[2][:i], b[2][:j], max(i, j))
        ),
        "you divide by i * j": _by(lambda a, b, i, j: _mean(a[2][:i], b[2][:j], i * j)),
        "you divide by nothing": _by(lambda a, b, i, j: _mean(a[2][:i], b[2][:j], 1)),
        "you take the norm, not its square": _by(
            lambda a, b, i, j: np.linalg.norm(a[2][:i] @ b[2][:j].T) / min(i, j)
        ),
        "you take the last directions, not the first": _by(
            lambda a, b, i, j: _mean(a[2][-i:], b[2][-j:], min(i, j))
        ),
        "you take columns of Vh, not rows": _by(
            lambda a, b, i, j: (
                np.sum((a[2][:, :i].T @ b[2][:, :j]) ** 2) / min(i, j)
                if len(a[2]) == len(b[2])
                else a[2][:, :i].T @ b[2][:, :j]
            )
        ),
        "you take the largest number of the product, not the sum of squares": _by(
            lambda a, b, i, j: np.max(np.abs(a[2][:i] @ b[2][:j].T))
        ),
        "you add the inner products without squaring them": _by(
            lambda a, b, i, j: np.sum(a[2][:i] @ b[2][:j].T) / min(i, j)
        ),
        "you take rows of A1 and A2 themselves, not their singular vectors": lambda A1, A2, i, j: (
            _mean(A1[:i], A2[:j], min(i, j))
        ),
        "you take all directions, not the first i and j": _by(
            lambda a, b, i, j: _mean(a[2], b[2], min(i, j))
        ),
        "you weigh the directions by their singular values": _by(
            lambda a, b, i, j: _mean(
                a[1][:i, None] * a[2][:i], b[1][:j, None] * b[2][:j], min(i, j)
            )
        ),
        "you take the first i of both": _by(
            lambda a, b, i, j: _mean(a[2][:i], b[2][:i], min(i, j))
        ),
    }
}
