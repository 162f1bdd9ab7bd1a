"""11. How much of one subspace lies in another.

The paper (equation 4) asks whether two adapters learned the same directions. A is (r, k): r rows
in a space of k dimensions. Its singular value decomposition A = U S V^T gives r directions, the
rows of V^T, from the most important to the least: each of length 1, at right angles to each other.
With V1 the first i directions of A1 as columns, (k, i), and V2 the first j of A2, (k, j), the
similarity is

    |V1^T V2|^2 / min(i, j)        |M|^2 is the sum of the squares of all numbers in M

It is 1 if the smaller of the two subspaces lies in the other, and 0 if they are at right angles.

subspace_similarity(A1, A2, i, j) takes
    A1, A2  arrays (r1, k) and (r2, k), with r1 and r2 at most k
    i, j    whole numbers, from 1 to r1 and from 1 to r2: how many directions are compared
and returns the similarity, a number. np.linalg.svd(A, full_matrices=False) returns U, S and V^T.

    subspace_similarity(np.array([[3.0, 4.0]]), np.array([[0.0, 2.0]]), 1, 1)  ->  0.64

The direction of the first is (0.6, 0.8), of the second (0, 1): 0.8 squared is 0.64.
"""

import numpy as np


def subspace_similarity(A1, A2, i, j):
    """How much of the first i directions of A1 lies in the first j of A2, from 0 to 1."""
    ### BEGIN SOLUTION
    V1 = np.linalg.svd(A1, full_matrices=False)[2][:i]
    V2 = np.linalg.svd(A2, full_matrices=False)[2][:j]
    return np.sum((V1 @ V2.T) ** 2) / min(i, j)
    ### END SOLUTION


### CHECKS
# mypy: ignore-errors

from hypothesis import strategies as st

from . import kit

TITLE = "subspace similarity"
MINUTES = 20
CHAPTER = "06"

HINTS = (
    "Two steps: the directions of each, from np.linalg.svd; then all products of a direction of "
    "the one with a direction of the other, squared and added up.",
    "The third result of svd has the directions as rows, so the first i of them are its first i "
    "rows: Vt[:i]. V1^T V2 is then V1t @ V2t.T, (i, j).",
    "V1 = np.linalg.svd(A1, full_matrices=False)[2][:i], V2 likewise with j; "
    "return np.sum((V1 @ V2.T) ** 2) / min(i, j)",
)


def _directions(rng, r, k):
    """r directions at right angles in k dimensions, as rows."""
    return np.linalg.qr(rng.normal(size=(k, r)))[0].T


def _with(rng, directions):
    """A matrix with these right singular vectors, and singular values well apart."""
    r = len(directions)
    return np.round(_directions(rng, r, r) @ np.diag(2.0 ** np.arange(r, 0, -1)) @ directions, 9)


@st.composite
def pairs(draw, one=False):
    """Two matrices, and how many directions of each."""
    k = draw(kit.sizes(3, 6))
    r1, r2 = (1, 1) if one else (draw(kit.sizes(2, 3)), draw(kit.sizes(2, 3)))
    rng = draw(kit.generators())
    A1, A2 = (_with(rng, _directions(rng, r, k)) for r in (r1, r2))
    return {"A1": A1, "A2": A2, "i": draw(kit.sizes(1, r1)), "j": draw(kit.sizes(1, r2))}


def _expected(A1, A2, i, j):
    """By projections: the directions are those of A^T A, the similarity is a trace."""
    found = []
    for A, count in ((A1, i), (A2, j)):
        directions = np.linalg.eigh(A.T @ A)[1][:, ::-1][:, :count]
        found.append(directions @ directions.T)
    return np.trace(found[0] @ found[1]) / min(i, j)


EXACT = 1e-9  # singular vectors from A^T A keep fewer digits


def _similar(student, A1, A2, i, j):
    got = student.subspace_similarity(A1, A2, i, j)
    kit.equal(got, np.float64(_expected(A1, A2, i, j)), "the similarity", rtol=1e-7)
    return got


@kit.check(pairs(one=True), points=2)
def one_direction(student, A1, A2, i, j):
    """With one row each it is the squared cosine of the angle between the rows."""
    a, b = A1[0], A2[0]
    got = student.subspace_similarity(A1, A2, i, j)
    kit.equal(got, (a @ b) ** 2 / (a @ a) / (b @ b), "the similarity", rtol=EXACT)


@kit.check(pairs(), points=3, examples=60)
def first_directions(student, A1, A2, i, j):
    """It compares the first i directions with the first j, and lies in [0, 1]."""
    got = _similar(student, A1, A2, i, j)
    kit.holds(-EXACT <= got <= 1 + EXACT, "a similarity in [0, 1]", kit.shown(got))


@kit.check(pairs(), points=2)
def same_space(student, A1, A2, i, j):
    """It is 1 for a space with itself, and for one that lies in the other."""
    r = len(A1)
    for most, least in ((r, r), (i, i), (r, i), (i, r)):
        got = student.subspace_similarity(A1, A1, most, least)
        what = f"the similarity of A1's first {most} with its own first {least}"
        kit.equal(got, np.float64(1.0), what, rtol=EXACT)


@st.composite
def turned(draw):
    case = draw(pairs())
    return case | {"rng": draw(kit.generators())}


@kit.check(turned(), points=2)
def invariant(student, A1, A2, i, j, rng):
    """It stays if both are turned alike, if rows are rotated, if one is scaled, if they swap."""
    expected = _similar(student, A1, A2, i, j)
    R, Q = _directions(rng, A1.shape[1], A1.shape[1]), _directions(rng, len(A1), len(A1))
    for what, args in (
        ("with A1 R and A2 R, for a rotation R", (A1 @ R, A2 @ R, i, j)),
        ("with Q A1 for A1, for a rotation Q", (Q @ A1, A2, i, j)),
        ("with 3 A1 for A1", (3 * A1, A2, i, j)),
        ("with A1 and A2 swapped", (A2, A1, j, i)),
    ):
        got = student.subspace_similarity(*args)
        kit.equal(got, np.float64(expected), f"the similarity {what}", rtol=1e-7)


@kit.check(
    st.fixed_dictionaries({"rng": kit.generators(), "i": kit.sizes(2, 4), "j": kit.sizes(5, 8)}),
    points=1, examples=5,
)  # fmt: skip
def by_chance(student, rng, i, j):
    """Of random directions in 100 dimensions it is small: max(i, j) / 100, on average."""
    rng = np.random.default_rng(rng.bit_generator.state["state"]["state"] % 2**32)
    found = [student.subspace_similarity(*rng.normal(size=(2, 8, 100)), i, j) for _ in range(40)]
    for one in found:
        kit.number(one, (), "the similarity")
    mean, expected = np.mean(found), j / 100
    kit.holds(abs(mean - expected) < 0.5 * expected, f"{expected:.2f} on average, or near it",
              f"{mean:.3f}")  # fmt: skip


def _formula(directions=lambda svd, n: svd[2][:n], size=lambda M: np.sum(M**2),
             over=lambda i, j, r: min(i, j)):  # fmt: skip
    def subspace_similarity(A1, A2, i, j):
        V1, V2 = (directions(np.linalg.svd(A, full_matrices=False), n)
                  for A, n in ((A1, i), (A2, j)))  # fmt: skip
        return size(V1 @ V2.T) / over(i, j, len(A1))

    return subspace_similarity


WRONG = {
    "subspace_similarity": {
        "you divide by max(i, j)": _formula(over=lambda i, j, r: max(i, j)),
        "you divide by i": _formula(over=lambda i, j, r: i),
        "you divide by i · j: the mean of the squares": _formula(over=lambda i, j, r: i * j),
        "you do not divide": _formula(over=lambda i, j, r: 1),
        "you do not square the norm": _formula(size=lambda M: np.sqrt(np.sum(M**2))),
        "you take the largest singular value as the norm": _formula(
            size=lambda M: np.linalg.norm(M, 2) ** 2
        ),
        "you add up the products without squaring them": _formula(size=np.sum),
        "you take the last directions, not the first": _formula(lambda svd, n: svd[2][-n:]),
        "you take columns of V^T, not rows": _formula(lambda svd, n: svd[2][:, :n].T),
        "you take all directions, not the first i and j": _formula(lambda svd, n: svd[2]),
        "you weigh the directions with their singular values": _formula(
            lambda svd, n: (svd[1][:, None] * svd[2])[:n]
        ),
    }
}
