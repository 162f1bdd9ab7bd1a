"""09. Write the test that finds a wrong merge.

Merging adds a LoRA update to the weight: W + (alpha / r) B A. Somebody wrote a function for it. Is
it right? Do not read the function: write a test that calls it and asserts what must be true.

A right merge(W, A, B, alpha) takes
    W      float64 array (d, k), the frozen weight
    A, B   float64 arrays (r, k) and (d, r), the factors of the update, of rank r
    alpha  number above 0, an integer or not
and returns a new float64 array (d, k), W + (alpha / r) B A. It does not change W, A and B.

test_merge(merge) takes such a function. If the merge is wrong, the test raises AssertionError, as
`assert` does. If the merge is right, the test just ends. Its return value has no meaning. (An error
that the merge itself raises may pass through.)

    test_merge(lambda W, A, B, alpha: W + alpha / len(A) * (B @ A))    -> None

With W + alpha * (B @ A) it raises AssertionError: that merge forgets to divide by r.

Your test is tried on:
    right merges   They compute the same in another order. Each rounds differently, by some units in
                   the last place of the largest numbers. A test that fails one of them gets no
                   points.
    wrong merges   More than twenty. Some are wrong only for some shapes, ranks or alphas. Some are
                   only slightly wrong, as float32 is: by about 1e-8 of the largest numbers. Some
                   give the right result, but change something else.
"""

import numpy as np


def test_merge(merge):
    """Raise AssertionError unless merge(W, A, B, alpha) is right."""
    ### BEGIN SOLUTION
    rng = np.random.default_rng(0)
    for _ in range(30):
        d, k, r = rng.integers(1, 6, size=3)
        alpha = rng.uniform(0.5, 20.0)
        W, A, B = rng.normal(size=(d, k)), rng.normal(size=(r, k)), rng.normal(size=(d, r))
        given = W.copy(), A.copy(), B.copy()
        expected = W + alpha / r * (B @ A)
        got = merge(W, A, B, alpha)
        assert got.shape == (d, k)
        assert np.abs(got - expected).max() <= 1e-12 * np.abs(expected).max()  # false for NaN
        for now, before in zip((W, A, B), given):
            assert (now == before).all()
    ### END SOLUTION


### DRIVERS

import contextlib

from minilora.exercises import kit
from minilora.exercises.student import Raised
from minilora.exercises.tasks.watched_merge import Merge

UNWRITTEN = ("NotImplementedError", "NameError")  # an error in the test itself


def tried(file, body):
    """Does the student's test pass on the merge with this body?"""
    try:
        file.test_merge(Merge(body))
    except Raised as error:
        if error.kind in UNWRITTEN:
            raise
        return False
    return True


def why(file, body):
    """A possible reason why the test passes on this wrong merge."""
    merge = Merge(body)
    try:
        returned = file.test_merge(merge)
    except Raised:
        return "but fails it in a second run: give your random numbers a seed"
    if returned is not None:
        return "your test returns a value, which has no meaning: assert it instead"
    if not merge.calls:
        return "your test does not call its argument `merge`"
    return merge.misfit


def again(file, body):
    """Run the test again on a right merge that it failed: (line, text) of its error, the reason."""
    merge = Merge(body)
    try:
        file.test_merge(merge)
    except Raised as error:
        if not merge.misfit and error.kind != "AssertionError":
            raise
        lines = [(line, text) for line, _, text in error.frames[-1:]]
        return lines, merge.misfit, merge.last()
    return None


def common(file, body):
    """What all cases have in common on which the test calls a merge with this body."""
    merge = Merge(body)
    with contextlib.suppress(Raised):
        file.test_merge(merge)
    return merge.common()


### CHECKS
# mypy: ignore-errors

from hypothesis import strategies as st

from minilora.exercises.tasks import planted_merges as planted
from minilora.exercises.tasks.planted_merges import RIGHT

TITLE = "write the property test"
MINUTES = 30
CHAPTER = "09"

HINTS = (
    "Draw many cases: d, k and r different from each other, alpha not a multiple of r. Compute "
    "the expected result before the call. Keep copies of W, A and B, and compare them afterwards.",
    "Allow a gap, do not use ==: rounding is about 1e-16 of the largest number, float32 is 1e-7 "
    "of it. np.allclose allows 1e-5 unless you pass rtol and atol.",
    "assert got.shape == (d, k); assert np.abs(got - expected).max() <= 1e-12 * "
    "np.abs(expected).max(); assert (W == W_before).all(), the same for A and B; all of it in a "
    "loop over random shapes, ranks and alphas.",
)

@st.composite
def mixed(draw, wrong):
    """The bodies of each wrong merge of a group, mixed with the right merges."""
    rng = draw(kit.generators())
    share = {name: f"{1 + rng.choice([-1, 1]) * rng.uniform(0.5, 2.0) * size:.6g}"
             for name, size in (("percent", 1e-2), ("thousandth", 1e-3))}
    bodies = {way.format(**share): what for what, ways in wrong.items() for way in ways}
    order = rng.permutation([*bodies, *RIGHT])
    return {"_merges": [(str(body), bodies.get(str(body), "")) for body in order]}


def _kills(student, merges):
    """The test passes on each right merge, and fails on each wrong one."""
    passes = {body: student.tried(body) for body, _ in merges}
    failed = [body for body in RIGHT if not passes[body]]
    if failed:
        raise kit.Wrong(*_unfair(student, failed))
    for body, what in merges:
        if what and passes[body]:
            raise kit.Wrong(
                "expected your test to fail for each wrong merge",
                f"got      a pass for a merge that {what}:",
                *_lines(body), *filter(None, [student.why(body)]),
            )


def _unfair(student, failed):
    """The lines about a right merge that failed: which, where and why."""
    yield "expected your test to pass for each right merge"
    yield "got      a failure for this one:"
    yield from _lines(failed[0])
    second = student.again(failed[0])
    if second is None:
        yield "but a pass in a second run: give your random numbers a seed"
        return
    where, misfit, call = second
    yield from (f"at line {line}: {text}" for line, text in where)
    yield from [misfit] if misfit else call
    if not misfit:
        # how many an exact comparison fails depends on the order of sums of this machine's BLAS
        good = len(RIGHT) - len(failed)
        yield f"{good} of {len(RIGHT)} right merges pass: do you expect W + (alpha / r) B A, and " \
              "do you allow for rounding?"


def _lines(body):
    return ("             " + line for line in body.split("; "))


def group(title, wrong):
    """A check with these wrong merges."""

    def run(student, _merges):
        _kills(student, _merges)

    run.__doc__ = f"Your test finds {title}"
    return kit.check(mixed(wrong), examples=2)(run)


scale = group("merges without alpha, without r, or with both swapped", planted.SCALE)
number = group("merges whose scale is right only for some alpha and r", planted.NUMBER)
terms = group("merges that lose W or the update, or add it wrongly", planted.TERMS)
product = group("merges that are wrong only for some shapes", planted.PRODUCT)
parts = group("merges that leave out a part of the update", planted.PARTS)
form = group("results with a wrong shape or with NaN", planted.FORM)
share = group("updates that are slightly too large or too small", planted.SHARE)
coarse = group("merges that are less precise than float64", planted.COARSE)
broken_w = group("merges that change W", planted.BROKEN_W)
broken_factors = group("merges that change A or B", planted.BROKEN_FACTORS)


PROMISES = {
    scale: ("Write the test that", "With W + alpha * (B @ A)"), parts: ("More than twenty",),
    number: ("Some are wrong only for some",), product: ("Some are wrong only for some",),
    terms: ("If the merge is wrong",), form: ("A right merge(W, A, B, alpha) takes",),
    share: ("Some are only slight",), coarse: ("Each rounds differently", "A test that fails"),
    broken_w: ("It does not change W, A and B",), broken_factors: ("but change something else",),
}
EXPLAINS = ("Merging adds", "Somebody", "Is it right?", "Do not read", "test_merge(merge) takes",
            "If the merge is right", "Its return", "(An error", "Your test is tried", "They comp")

SUM = "S = W + alpha / r * (B @ A); m = abs(S).max() + 1; "
CHANGES = {  # what is wrong with a merge in each of its calls -> its body
    "by far": SUM + "return S + 3 * m", "by 2 percent": SUM + "return S + 0.02 * m",
    "by 1e-7": SUM + "return S + 1e-7 * m", "by 1e-10": SUM + "return S + 1e-10 * m",
    "in one number of several": SUM + "S.flat[0] += m * (S.size > 1); return S",
    "in its shape": SUM + "return S[None]", "by r": "return W + alpha * (B @ A)",
    "but not in its sum": SUM + "S.flat[0] += m; S.flat[-1] -= m; return S",
    "with NaN": SUM + "S[0, 0] = 1e999 - 1e999; return S", "and W": SUM + "W += m; return S",
    "and A": SUM + "A += m; return S", "and B": SUM + "B += m; return S",
    "and W, A and B, but not their sums":
        SUM + "for X in (W, A, B): X.flat[:2] = X.flat[:2][::-1]; return S",
}


def behaviour(student):
    """Which changes of a merge the test notices, and what all of its cases have in common."""
    does = {what: student.tried(body) for what, body in CHANGES.items()}
    return {**does, "right": all(map(student.tried, RIGHT)), **student.common(RIGHT[0])}


def _close(got, expected, rtol=1e-12):
    return got.shape == expected.shape and np.all(
        np.abs(got - expected) <= rtol * np.abs(expected).max()
    )


def _right(W, A, B, alpha):
    return W + alpha / len(A) * (B @ A)


def _test(
    good=_close, formula=_right, shapes=None, alphas=None, cases=20, W0=1.0, B0=1.0, same="WAB",
    unchanged=lambda now, before: (now == before).all(),
):
    """The reference with one part changed."""

    def test_merge(merge):
        rng = np.random.default_rng(1)
        for _ in range(cases):
            d, k, r = shapes(rng) if shapes else rng.integers(1, 6, size=3)
            alpha = alphas(rng, r) if alphas else rng.uniform(0.5, 20.0)
            W, A, B = rng.normal(size=(d, k)), rng.normal(size=(r, k)), rng.normal(size=(d, r))
            given = {"W": W * W0, "A": A, "B": B * B0}
            copies = {name: array.copy() for name, array in given.items()}
            got = merge(*copies.values(), alpha)
            assert good(got, formula(*given.values(), alpha))
            assert all(unchanged(copies[name], given[name]) for name in same)

    return test_merge


def _silent(merge):
    with contextlib.suppress(Exception):
        _test()(merge)


WRONG = {
    "test_merge": {
        "your test computes whether the merge is right, but asserts nothing": _test(
            good=lambda got, expected: True, same=""),
        "your test catches its own AssertionError": _silent,
        "your test looks only at the shape": _test(
            good=lambda got, expected: got.shape == expected.shape, same=""),
        "your test compares with ==": _test(
            good=lambda a, b: a.shape == b.shape and (a == b).all()),
        "your test expects alpha B A, without the division by r": _test(
            formula=lambda W, A, B, alpha: W + alpha * (B @ A)),
        "your test tries only square W": _test(
            shapes=lambda rng: (*[rng.integers(1, 6)] * 2, rng.integers(1, 6))),
        "your test has alpha = r in each case": _test(alphas=lambda rng, r: float(r)),
        "your test has a multiple of r as alpha in each case": _test(
            alphas=lambda rng, r: float(r * rng.integers(2, 9))),
        "your test tries only r = 1": _test(
            shapes=lambda rng: (rng.integers(1, 6), rng.integers(1, 6), 1)),
        "your test tries only one case": _test(cases=1, shapes=lambda rng: (3, 2, 2)),
        "your test has B = 0, as at the start of training": _test(B0=0.0),
        "your test has W = 0": _test(W0=0.0),
        "your test does not notice that W, A or B changed (.copy() makes a copy)": _test(same=""),
        "your test checks whether W changed, but not A and B": _test(same="W"),
        "your test compares the sums of W, A and B before and after, not the numbers": _test(
            unchanged=lambda now, before: now.sum() == before.sum()),
        "your test allows the gap of np.allclose: 1e-5": _test(
            good=lambda a, b: a.shape == b.shape and np.allclose(a, b)),
        "your test allows a gap of 5 percent": _test(good=lambda a, b: _close(a, b, 0.05)),
        "your test compares sums, not single numbers": _test(
            good=lambda a, b: a.shape == b.shape and abs(a.sum() - b.sum()) <= 1e-12 * abs(b).sum()
        ),
        "your test checks whether any number is right, not whether all are": _test(
            shapes=lambda rng: rng.integers(2, 6, size=3),
            good=lambda a, b: (
                a.shape == b.shape and np.any(np.abs(a - b) <= 1e-12 * np.abs(b).max()))),
        "your test lets NumPy broadcast a result of another shape": _test(
            good=lambda a, b: np.all(np.abs(a - b) <= 1e-12 * np.abs(b).max())),
        "your test does not see NaN: `NaN > gap` is always False": _test(
            good=lambda a, b: (
                a.shape == b.shape and not np.any(np.abs(a - b) > 1e-12 * np.abs(b).max()))),
    }
}
