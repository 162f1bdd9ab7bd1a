"""08. Merge, and undo it to the bit.

A layer with LoRA computes y = x W^T + (alpha / r) x A^T B^T, where W is (d, k), A is (r, k) and B
is (d, r). One matrix can do the same. It is called the merged W: y = x (merged W)^T.

merge(W, A, B, alpha) takes
    W, A, B  arrays of these shapes, all of one dtype, float32 or float64
    alpha    number; r is not an argument: the shapes of A and B contain it
and returns the merged W, a new array of the shape and dtype of W. W, A and B are not changed.

    merge(np.zeros((2, 3)), np.ones((1, 3)), np.ones((2, 1)), 3)  ->  [[3., 3., 3.], [3., 3., 3.]]

Subtracting the update does not restore W: the sum was rounded, and digits are lost. Here the last
digit is lost: 0.1 + 0.2 - 0.2 is 0.10000000000000003.

unmerge_exactly(W0, A, B, alpha) takes the same arguments (W0 is W). It returns two functions
without arguments, do_merge and undo, in this order:
    do_merge()  returns the merged W; a second call returns the same again
    undo()      returns W0 with exactly the same bits: the array itself or a copy
They can be called in any order and any number of times; undo() can come before any do_merge(). The
caller may write into a merged W: later calls must still give the same results. W0, A and B are not
changed. Below, [0] is do_merge, [1] is undo, and () calls it:

    unmerge_exactly(np.ones((1, 2)), np.ones((1, 2)), np.ones((1, 1)), 3)[0]()  ->  [[4., 4.]]
    unmerge_exactly(np.ones((1, 2)), np.ones((1, 2)), np.ones((1, 1)), 3)[1]()  ->  [[1., 1.]]
"""

import numpy as np


def merge(W, A, B, alpha):
    """W plus the update: one matrix instead of three."""
    ### BEGIN SOLUTION
    r = len(A)
    return W + alpha / r * (B @ A)
    ### END SOLUTION


def unmerge_exactly(W0, A, B, alpha):
    """Two functions: one returns the merged W, the other W0."""
    ### BEGIN SOLUTION
    return lambda: merge(W0, A, B, alpha), lambda: W0.copy()
    ### END SOLUTION


### DRIVERS


def written(file, W, A, B, alpha):
    """(W, A, B) after a call of merge and after a write into its result; that, and a second one."""
    arrays = [W.copy(), A.copy(), B.copy()]
    result = file.merge(*arrays, alpha)
    before, first = kit.copied(arrays), kit.copied(result)
    if isinstance(result, np.ndarray):
        result += 1
    second = file.merge(W.copy(), A.copy(), B.copy(), alpha)
    return before, arrays, first, second


def called(file, W0, A, B, alpha, calls):
    """The results of the calls, and W0, A and B afterwards; text if there are no two functions.

    A call is "do_merge", "undo", or "write": into the last merged W that was returned.
    """
    W0, A, B = W0.copy(), A.copy(), B.copy()
    pair = file.unmerge_exactly(W0, A, B, alpha)
    file.unmerge_exactly(W0 + 1, A + 1, B + 1, alpha)  # each pair of functions has its own W0
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(callable, pair)):
        parts = pair if isinstance(pair, tuple | list) else [pair]
        kinds = ["a function" if callable(part) else kit.kind(part) for part in parts]
        return f"unmerge_exactly returned {' and '.join(kinds) or 'nothing'}"
    functions, results, last = dict(zip(("do_merge", "undo"), pair)), [], None
    for call in calls:
        if call in functions:
            got = functions[call]()
            results.append(got.copy() if isinstance(got, np.ndarray) else got)
            last = got if call == "do_merge" else last
        elif isinstance(last, np.ndarray):
            last += 1
    return results, W0, A, B


### CHECKS
# mypy: ignore-errors

from hypothesis import assume
from hypothesis import strategies as st

from minilora.exercises import kit

TITLE = "merge and unmerge"
MINUTES = 20
CHAPTER = "09"

HINTS = (
    "x (W + M)^T = x W^T + x M^T. Compute M from alpha, r, A and B such that x M^T is the update. "
    "For undo: you need not reverse any rounding if you still have W0.",
    "x A^T B^T = x (B A)^T. Inside unmerge_exactly, write def do_merge(): and def undo():, each "
    "with a return. They can use W0, A, B and alpha. Return the two functions without calling "
    "them: return do_merge, undo.",
    "merge: return W + alpha / len(A) * (B @ A). unmerge_exactly: def do_merge(): return "
    "merge(W0, A, B, alpha); def undo(): return W0.copy(); return do_merge, undo",
)


@st.composite
def layers(
    draw, unit=False, tenths=False, calls=None, dtype=np.float64, start=False, odd=False
):
    """Weights and an update; tenths: numbers that floats cannot represent; start: B or alpha is 0;
    odd: W has numbers that are not finite, or nearly 0."""
    d, k, r = draw(kit.sizes()), draw(kit.sizes()), 1 if unit else draw(kit.sizes(1, 3))
    numbers = draw(kit.numbers(easy=False if tenths else None))
    alpha = 1 if unit else draw(kit.scalars(2, 1, 3, 8, 0.5, -0.7))
    assume(unit or alpha != r)
    W, A, B = numbers(d, k), numbers(r, k), numbers(d, r)
    if start:
        alpha, B = draw(st.sampled_from([(alpha, 0 * B), (0.0, B)]))
    W = W.astype(dtype)
    if odd:
        W.flat[:] = draw(st.sampled_from([np.nan, np.inf, np.finfo(dtype).smallest_subnormal]))
    case = {"W": W, "A": A.astype(dtype), "B": B.astype(dtype), "alpha": alpha}
    return case if calls is None else case | {"calls": draw(calls)}


def either(**options):
    """Layers in float64 and in float32."""
    return layers(**options), layers(dtype=np.float32, **options)


def _merged(W, A, B, alpha):
    """W + (alpha / r) B A in float64, without a matrix product."""
    W, A, B = (np.float64(array) for array in (W, A, B))
    update = (B[:, :, None] * A[None]).sum(axis=1)
    return W + alpha * update / A.shape[0]


def _right(got, W, A, B, alpha, what="the merged W"):
    size = _merged(*map(np.abs, (W, A, B)), abs(alpha))  # terms may cancel, but not their errors
    kit.equal(got, _merged(W, A, B, alpha).astype(W.dtype), what, size=size)
    kit.holds(got.dtype == W.dtype, f"{what} in {W.dtype}", f"{got.dtype}")


@kit.check(layers(unit=True), points=1)
def update(student, W, A, B, alpha):
    """If alpha = r = 1, merge gives W + B A."""
    _right(student.merge(W, A, B, alpha), W, A, B, alpha)


@kit.check(layers(), points=2, examples=50)
def scaled(student, W, A, B, alpha):
    """merge scales the update by alpha / r."""
    _right(student.merge(W, A, B, alpha), W, A, B, alpha)


@kit.check(*either(tenths=True), points=1)
def same_output(student, W, A, B, alpha):
    """Merged and unmerged give the same y up to rounding, and the dtype is that of W."""
    got = student.merge(W, A, B, alpha)
    kit.number(got, W.shape, "the merged W")
    x = np.linspace(1, 2, W.shape[1])
    expected = x @ W.T + alpha / len(A) * (x @ A.T @ B.T)
    size = x @ _merged(*map(np.abs, (W, A, B)), abs(alpha)).T
    kit.equal(x @ got.T, expected.astype(W.dtype), f"y for x = {kit.shown(x)}", size=size)
    kit.holds(got.dtype == W.dtype, f"the merged W in {W.dtype}", f"{got.dtype}")


@kit.check(*either(tenths=True), *either(start=True), points=1)
def again(student, W, A, B, alpha):
    """merge gives a new array: after a write into it, W, A and B, and the next call, are as before.
    """
    before, after, once, twice = student.written(W, A, B, alpha)
    _right(once, W, A, B, alpha)
    for name, old, new in zip("WAB", before, after):
        kit.holds(old.tobytes() == new.tobytes(), f"{name} to remain {kit.shown(old)} after a "
                  "write into the merged W", kit.shown(new))
    kit.holds(np.array_equal(once, twice), f"{kit.shown(once)} again", kit.shown(twice))


def _calls(student, W, A, B, alpha, calls):
    answer = student.called(W, A, B, alpha, calls)
    kit.holds(not isinstance(answer, str), "two functions, do_merge and undo", answer)
    results, *after = answer
    numbered = [(i, call) for i, call in enumerate(calls, 1) if call != "write"]
    for (i, call), got in zip(numbered, results):
        what = f"the result of {call}()" + (f", number {i} of calls" if len(calls) > 1 else "")
        if call == "undo" and "do_merge" not in calls[:i]:
            what += ", before any do_merge()"
        if call == "do_merge":
            if np.all(np.isfinite(W)):
                _right(got, W, A, B, alpha, what)
        else:
            kit.equal(got, W, what)
            kit.holds(got.dtype == W.dtype, f"{what} in {W.dtype}", f"{got.dtype}")
            with np.errstate(invalid="ignore"):
                gap = np.max(np.abs(np.float64(got) - W))
            kit.holds(got.tobytes() == W.tobytes(), f"{what} = {kit.shown(W)}, bit by bit",
                      f"other last digits: the gap is up to {gap:.1e}")
    for name, old, new in zip(("W0", "A", "B"), (W, A, B), after):
        kit.holds(old.tobytes() == new.tobytes(), f"{name} to remain {kit.shown(old)}",
                  kit.shown(new))


@kit.check(layers(calls=st.just(["do_merge"])), points=1)
def first_merge(student, W, A, B, alpha, calls):
    """do_merge() gives the merged W, and does not change W0, A and B."""
    _calls(student, W, A, B, alpha, calls)


MERGED = st.just(["do_merge", "undo"])


@kit.check(
    *either(tenths=True, calls=MERGED), *either(odd=True, calls=MERGED), points=2, examples=80
)
def bits(student, W, A, B, alpha, calls):
    """After do_merge(), undo() gives W0 with exactly the same bits."""
    _calls(student, W, A, B, alpha, calls)


CALLS = st.lists(st.sampled_from(["do_merge", "undo", "write"]), min_size=1, max_size=6)


@kit.check(
    *either(calls=CALLS), *either(calls=CALLS, start=True), *either(calls=st.sampled_from(
        [["undo"], ["do_merge", "write", "do_merge", "undo"], ["do_merge", "do_merge", "undo"]])),
    points=2, examples=90,
)
def any_order(student, W, A, B, alpha, calls):
    """do_merge() and undo() work in any order, repeatedly, and after a write into a merged W."""
    _calls(student, W, A, B, alpha, calls)


PROMISES = {
    update: ("merge(W, A, B, alpha) takes", "It is called the merged W"),
    scaled: ("A layer with LoRA computes",),
    same_output: ("It is called the merged W", "and returns the merged W"),
    again: ("W, A and B are not changed", "a new array"),
    first_merge: ("unmerge_exactly(W0, A, B, alpha) takes", "It returns two functions"),
    bits: ("Merge, and undo it to the bit", "It returns two functions"),
    any_order: ("They can be called in any order", "The caller may write into a merged W",
                "W0, A and B are not changed"),
}
EXPLAINS = ("One matrix can do the same", "Subtracting the update does not restore",
            "Here the last digit is lost", "Below, [0] is do_merge")


def _in_place(W, A, B, alpha):
    W += (alpha / len(A) * (B @ A)).astype(W.dtype)
    return W


def _subtracting(W0, A, B, alpha):
    merged = merge(W0, A, B, alpha)
    return lambda: merged.copy(), lambda: merged - alpha / len(A) * (B @ A)


def _adding_up(W0, A, B, alpha):
    now = [W0]

    def do_merge():
        now[0] = merge(now[0], A, B, alpha)
        return now[0].copy()

    def undo():
        now[0] = W0
        return W0.copy()

    return do_merge, undo


def _not_copied(W0, A, B, alpha):
    original = W0  # no copy: the same array

    def undo():
        W0[...] = original
        return W0

    return lambda: _in_place(W0, A, B, alpha), undo


def _same_array(W0, A, B, alpha):
    merged = merge(W0, A, B, alpha)
    return lambda: merged, lambda: W0.copy()


_kept = {}


def _global(W0, A, B, alpha):
    _kept["W0"] = W0.copy()
    return lambda: _kept["W0"] + alpha / len(A) * (B @ A), lambda: _kept["W0"].copy()


WRONG = {
    "merge": {
        "you scale by alpha, not by alpha / r": lambda W, A, B, alpha: W + alpha * (B @ A),
        "you do not scale the update": lambda W, A, B, alpha: W + B @ A,
        "you divide by k, A.shape[1], instead of r": lambda W, A, B, alpha: (
            W + alpha / A.shape[1] * (B @ A)),
        "you divide by r twice": lambda W, A, B, alpha: W + alpha / len(A) ** 2 * (B @ A),
        "you subtract the update": lambda W, A, B, alpha: W - alpha / len(A) * (B @ A),
        "you leave out W": lambda W, A, B, alpha: alpha / len(A) * (B @ A),
        "you transpose the update, which fits only a square W": lambda W, A, B, alpha: (
            W + alpha / len(A) * (B @ A).T),
        "you scale W too": lambda W, A, B, alpha: alpha / len(A) * (W + B @ A),
        "you write into W": _in_place,
        "you return float64 for a float32 W": lambda W, A, B, alpha: (
            W + np.float64(alpha / len(A)) * (B @ A)),
    },
    "unmerge_exactly": {
        "you undo by subtraction": _subtracting,
        "you add the update again to a merged W": _adding_up,
        "you merge into W0, and keep no copy of it": _not_copied,
        "your two functions use the W0 of the last call of unmerge_exactly, such as a global":
            _global,
        "you always return the same merged array, so a write into it stays": _same_array,
        "you return undo before do_merge": lambda W0, A, B, alpha: (
            lambda: W0.copy(), lambda: merge(W0, A, B, alpha)),
        "you return arrays, not functions: return do_merge, undo without ()": (
            lambda W0, A, B, alpha: (merge(W0, A, B, alpha), W0)),
        "you do not scale the update in do_merge": lambda W0, A, B, alpha: (
            lambda: W0 + B @ A, lambda: W0.copy()),
    },
}
