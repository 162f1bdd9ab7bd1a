"""12. How equal is equal: bound the rounding error of a merge.

On paper, x V^T with V = W + s B A equals x W^T + s ((x A^T) B^T), where s = alpha / r. On a
computer every operation rounds, and the two sides differ. How large can the difference be? A larger
one is not rounding, but a mistake.

merge_bound(x, W, A, B, alpha, dtype) takes
    x, W, A, B  arrays of that dtype, of shapes (n, k), (d, k), (r, k), (d, r)
    alpha       number above 0, such that s = alpha / r is far from the smallest floats
    dtype       np.float32 or np.float16
and returns one number that is never below max |merged - unmerged|, where
    merged      V = W + s (B A), then x V^T
    unmerged    x W^T + s ((x A^T) B^T)
Here s is rounded to the dtype once. Each product and each addition is rounded to the dtype. The
terms of a sum are added in any order, which may differ between the two sides. Nothing overflows.

The standard model uses u = eps / 2 and the smallest float h > 0 of the dtype:
    float(a + b) = (a + b) (1 + t)            |t| <= u
    float(a * b) = a b (1 + t) + e            |e| <= h / 2, the loss near 0, only in products
The product of n factors (1 + t) differs from 1 by at most gamma_n = n u / (1 - n u).

How often is a term s b a x rounded on its way into the result? Its product with x and the sum over
the k columns round it k times. Its product b a and the sum over the r ranks round it r times. s
itself, the product with s, and the addition of W's part round it once each. So its error is at most
gamma_n times its size, with n = k + r + 3, on each side. The error of W's terms is smaller. Use the
sizes |x|, |W|, |A|, |B|: terms may cancel, but their errors do not.

Then add the losses of the products. Each product loses e, times everything by which it is
multiplied later. Count h for each, not h / 2: that leaves room for later roundings. Each product
has one e. There are k products in an output of x W^T and k in x V^T, and one for s times the
update. There are r in each number of B A, and one more for its product with s; these are then
multiplied by x. There are k in each number of x A^T; these are then multiplied by B and s; ...

Your bound may be smaller than this one if it is never violated. It may be at most 100 times as
large.

    round(merge_bound(*[np.ones((1, 1))] * 4, 1.0, np.float16), 4)    -> 0.0098
"""

import numpy as np


def merge_bound(x, W, A, B, alpha, dtype):
    """An upper bound of |merged - unmerged| in every output, for any order of the sums."""
    ### BEGIN SOLUTION
    x, W, A, B = (np.abs(a.astype(np.float64)) for a in (x, W, A, B))
    (r, k), s = A.shape, abs(alpha) / len(A)
    u, h = float(np.finfo(dtype).eps) / 2, float(np.finfo(dtype).smallest_subnormal)
    n = k + r + 3
    size = x @ W.T + s * (x @ A.T) @ B.T
    in_xA, in_BA = k * s * B.sum(axis=1), (r * s + 1) * x.sum(axis=1, keepdims=True)
    lost = 2 * k + r * s + 1 + in_xA + in_BA
    return np.max(2 * n * u / (1 - n * u) * size + h * lost)
    ### END SOLUTION


### CHECKS
# mypy: ignore-errors

import functools
import itertools

from hypothesis import strategies as st

from minilora.exercises import kit

TITLE = "how equal is equal"
MINUTES = 40
CHAPTER = "09"

HINTS = (
    "The bound has two parts: 2 gamma_n times the sizes of all terms, and h times the number of "
    "products, each times its later factors. Compute both in float64 for each output, then take "
    "the largest sum.",
    "The sizes are np.abs(x) @ np.abs(W).T + s * (np.abs(x) @ np.abs(A).T) @ np.abs(B).T. eps and "
    "h are np.finfo(dtype).eps and np.finfo(dtype).smallest_subnormal.",
    "The loss of the products, for each output: h * (2 * k + r * s + 1 + k * s * (the sum of its "
    "row of |B|) + (r * s + 1) * (the sum of its row of |x|)).",
)

FACTOR = 100  # how much larger than the reference a bound may be
ORDERS = ("left to right", "right to left", "in pairs", "as NumPy does")


def _summed(terms, order):
    """The sum over the last axis, in the dtype of the terms."""
    parts = [terms[..., i] for i in range(terms.shape[-1])]
    if order == "in pairs":
        while len(parts) > 1:
            parts = [functools.reduce(np.add, parts[i : i + 2]) for i in range(0, len(parts), 2)]
        return parts[0]
    return functools.reduce(np.add, parts[:: -1 if order == "right to left" else 1])


def _times(a, b, order):
    """a b^T for a (n, k) and b (m, k); each product and addition is rounded to the dtype."""
    if order == "as NumPy does":
        return a @ b.T
    return _summed(a[:, None, :] * b[None, :, :], order)


def _apart(x, W, A, B, alpha, dtype):
    """(the largest gap between the two sides, the order of the sums on each side)."""
    merged, unmerged = {}, {}
    s = dtype.type(alpha / len(A))
    with np.errstate(all="ignore"):
        for order in ORDERS:
            V = W + s * _times(B, A.T, order)
            merged[order] = _times(x, V, order)
            unmerged[order] = _times(x, W, order) + s * _times(_times(x, A, order), B, order)
    pairs = itertools.product(ORDERS, ORDERS)
    return max(
        (np.abs(merged[a].astype(np.float64) - unmerged[b]).max(), a, b) for a, b in pairs
    )


def _bounds(student, x, W, A, B, alpha, dtype):
    """Raise Wrong if the bound is below the gap, or too large."""
    got = student.merge_bound(x, W, A, B, alpha, dtype)
    kit.number(got, (), "a bound")
    gap, first, second = _apart(x, W, A, B, alpha, dtype)
    if not got >= gap:
        raise kit.Wrong(
            f"expected a bound of at least {gap:.3g}: the gap in {dtype} between",
            f"         merged, summed {first}, and unmerged, summed {second}",
            f"got      {float(got):.3g}",
        )
    most = merge_bound(x, W, A, B, alpha, dtype)
    if not got <= FACTOR * most:
        raise kit.Wrong(
            f"expected a bound of at most {FACTOR * most:.3g}, {FACTOR} times the reference",
            f"got      {float(got):.3g}, {float(got) / most:.3g} times the reference: it would not "
            "detect a mistake of that size",
        )


def _cast(dtype, alpha, **arrays):
    dtype = np.dtype(dtype)
    cast = {name: np.asarray(a, dtype) for name, a in arrays.items()}
    return {**cast, "alpha": float(alpha), "dtype": dtype}


@st.composite
def ordinary(draw, dtype, uneven=0, sign=np.abs):
    """Random numbers; uneven: large columns of x meet small ones of W and A, and the reverse."""
    n, d, r, k = (draw(kit.sizes(1, most)) for most in (2, 3, 3, 6))
    k += 2 * (uneven > 0)
    rng, s = draw(kit.generators()), 2.0 ** draw(st.integers(-3, 4))
    columns = 2.0 ** rng.integers(-uneven, uneven + 1, size=k)
    columns[:2] = (2.0**uneven, 2.0**-uneven)[:k]
    x, W, A, B = (sign(rng.normal(size=shape)) for shape in ((n, k), (d, k), (r, k), (d, r)))
    x *= 2.0 ** rng.integers(-uneven, 1, size=(n, 1))
    return _cast(dtype, s * r, x=x * columns, W=W / columns, A=A / columns, B=B)


@st.composite
def worst(draw, dtype):
    """One number each, the worst of many: the few roundings nearly all have the same direction."""
    rng = draw(kit.generators())
    x, A, B, s = rng.uniform(1, 1.1, (4, 20_000)).astype(dtype)
    W, s = (rng.uniform(-1, 1, x.shape) * 4).astype(dtype), s * dtype(32)
    gap = np.abs(x * (W + s * (B * A)) - (x * W + s * (x * A * B)))
    i = np.argmax(gap / (np.abs(x * W) + np.abs(x * s * A * B)))
    return _cast(dtype, s[i], x=[[x[i]]], W=[[W[i]]], A=[[A[i]]], B=[[B[i]]])


@st.composite
def cancelling(draw, dtype):
    """W cancels the update: the result is nearly 0, but its terms are not."""
    case = draw(ordinary(dtype, sign=np.asarray))
    A, B, alpha = case["A"], case["B"], case["alpha"]
    W = -alpha / len(A) * (B.astype(np.float64) @ A)
    return {**case, "W": W.astype(case["dtype"])}


@st.composite
def cancelling_inside(draw, dtype, where):
    """Two large terms cancel in each number of B A, of x A^T or of x W^T."""
    rng, s = draw(kit.generators()), 2.0 ** draw(st.integers(-1, 3))
    d, one, other = draw(kit.sizes(1, 3)), *rng.uniform(1, 2, (2, 3, 1))
    x, W, A, B = rng.normal(size=(1, 2)), rng.normal(size=(d, 2)) / 512, *rng.normal(size=(2, 2, 2))
    B = np.resize(B, (d, 2)) / 512
    if where == "B A":
        A, B = np.vstack([one[:2, 0], -one[:2, 0]]), np.ones((d, 1)) * other[0] * [[1, 1]]
    elif where == "x A":
        x, A, B = other[0] * np.ones((1, 2)), one[:2] * [[1, -1]], B * 256
    else:
        x, W = other[0] * np.ones((1, 2)), np.resize(one, (d, 1)) * [[1, -1]]
    third = np.concatenate([x, rng.normal(size=(1, 1)) / 512], 1)  # the sums do not end at 0
    A, W = (np.concatenate([a, rng.normal(size=(len(a), 1)) / 512], 1) for a in (A, W))
    return _cast(dtype, s * 2, x=third, W=W, A=A, B=B)


@st.composite
def one_way(draw, dtype):
    """Long sums in which all roundings have the same direction: 1 and many terms of about u."""
    long, d, s = draw(st.integers(20, 40)), draw(kit.sizes(1, 3)), 2.0 ** draw(st.integers(0, 4))
    u, over_k, first = np.finfo(dtype).eps / 2, draw(st.booleans()), (np.arange(d) == 0)[:, None]
    row = np.where(np.arange(long) == 0, 1.0, 0.98 * u)  # 1 plus such a term is 1
    x = np.ones((draw(kit.sizes(1, 2)), 1))
    x[:-1] = 0.0
    if over_k:  # with the update, 1.02 u: each addition to 1 is rounded up by 2 u
        A = np.where(np.arange(long) == 0, 0.0, 1.0)[None]
        return _cast(dtype, s, x=x * np.ones(long), W=16 * first * row, A=A,
                     B=16 / s * first * 0.04 * u)
    return _cast(dtype, s * long, x=x, W=np.zeros((d, 1)), A=np.ones((long, 1)),
                 B=first * row)


@st.composite
def tiny(draw, dtype, where):
    """Products of nearly half of the smallest float, or slightly more."""
    lowest = int(-np.log2(float(np.finfo(dtype).smallest_subnormal)))  # 24 or 149
    one, other = 2.0 ** -(lowest // 2), 2.0 ** (lowest // 2 - lowest)
    d, k, r = draw(kit.sizes(1, 3)), draw(kit.sizes(1, 6)), draw(kit.sizes(1, 3))
    x, W, A, B = np.ones((1, k)), np.zeros((d, k)), np.ones((r, k)), np.ones((d, r))
    if where == "x W":  # lost in x W^T, not in x V^T
        return _cast(dtype, r, x=x * one, W=W + 0.49 * other, A=A, B=B * 0.04 * other / r)
    if where == "x A":
        return _cast(dtype, 16 * r, x=x * one, W=W, A=A * other * 0.49, B=B * 64)
    return _cast(dtype, 16 * r, x=x * 64, W=W, A=A * one, B=B * other * 0.49)


HALVES = np.float32, np.float16


@kit.check(ordinary(np.float32), ordinary(np.float32, 6), worst(np.float32), points=2, examples=60)
def in_float32(student, **case):
    """The bound holds in float32, and is not too large."""
    _bounds(student, **case)


@kit.check(ordinary(np.float16), ordinary(np.float16, 6), worst(np.float16), points=2, examples=60)
def in_float16(student, **case):
    """The bound holds in float16, and is not too large."""
    _bounds(student, **case)


@kit.check(
    *map(cancelling, HALVES),
    *itertools.starmap(cancelling_inside, itertools.product(HALVES, ("B A", "x A", "x W"))),
    points=2, examples=80,
)
def where_terms_cancel(student, **case):
    """The bound holds if large terms cancel, in the result or in one of the products."""
    _bounds(student, **case)


@kit.check(*map(one_way, HALVES), points=2, examples=40)
def where_all_round_one_way(student, **case):
    """The bound holds in long sums where all roundings have the same direction."""
    _bounds(student, **case)


@kit.check(
    *itertools.starmap(tiny, itertools.product(HALVES, ("x W", "x A", "B A"))),
    points=2, examples=60,
)
def near_zero(student, **case):
    """The bound holds if products are lost below the smallest float, and is not too large."""
    _bounds(student, **case)


PROMISES = {
    in_float32: ("and returns one number that is never below", "merge_bound(x, W, A, B, alpha"),
    in_float16: ("How large can the difference be",), where_terms_cancel: ("Use the sizes |x|",),
    where_all_round_one_way: ("The terms of a sum are added in any order",
                              "Each product and each addition"),
    near_zero: ("Then add the losses", "Your bound may be smaller", "It may be at most 100"),
}
EXPLAINS = (
    "How equal is equal", "On paper", "On a computer every", "A larger one is not",
    "Here s is rounded", "Nothing overflows", "The standard model uses", "The product of n factors",
    "How often is a term", "Its product with x", "Its product b a", "s itself", "So its error",
    "The error of W's", "Each product loses e", "Count h for each", "Each product has one e",
    "There are k products", "There are r in each", "There are k in each",
)


def _share(got, right):
    """A bound as a share of the reference, in a word: right bounds differ by small factors."""
    if np.shape(got) != ():
        return "an array"
    share = float(got) / right
    limits = {"nearly nothing": 0.02, "little": 0.4, "half": 0.65, "right": 3.0, "more": 100.0}
    return next((word for word, most in limits.items() if share <= most), "far more")


def behaviour(student):
    """How large the bound is, as a share of the reference, where one part of it decides."""
    one, few, long = np.ones((1, 1)), np.ones((1, 60)), np.ones((1, 4000))
    none, high, low = 0 * one, one * 64, one * 2.0**-12
    signs, uneven = np.array([[1.0, -1.0]]), np.array([[1e3, 1e-3]])
    cases = {  # (x, W, A, B, s)
        "long sums over k": (long, 0 * long, long, one, 1.0),
        "long sums of x W": (long, long, 0 * long, one, 1.0),
        "long sums over r": (one, none, long.T, long, 1.0),
        "long sums in float16": (few, 0 * few, few, one, 1.0),
        "a scale of 32": (long, 0 * long, long, one, 32.0),
        "one of each": (one, none, one, one, 1.0),
        "the sides cancel": (long, -long, long, one, 1.0),
        "x W cancels": (signs, abs(signs), 0 * signs, one, 1.0),
        "B A cancels": (one, none, signs.T, abs(signs), 1.0),
        "uneven columns": (uneven, uneven[:, ::-1], 0 * uneven, one, 1.0),
        "two outputs": (np.array([[1.0], [0.0]]), one, one, one, 1.0),
        "lost in x W, in float16": (low, low, none, none, 1.0),
        "lost in x A, in float16": (low, none, low, high, 16.0),
        "lost in B A, in float16": (high, none, low, low, 16.0),
    }
    does = {}
    for what, (*arrays, s) in cases.items():
        dtype = np.float16 if "float16" in what else np.float32
        case = _cast(dtype, s * len(arrays[2]), **dict(zip(("x", "W", "A", "B"), arrays)))
        does[what] = _share(student.merge_bound(*case.values()), merge_bound(**case))
    return does


def _bound(
    terms=lambda k, r: k + r + 3, sides=2, eps=lambda dtype: np.finfo(dtype).eps, low="norm",
    over=np.max, scaled=True, signed=False, norms=False, lost_in=("all", "x A", "B A"),
):
    """The reference with one part changed."""

    def merge_bound(x, W, A, B, alpha, dtype):
        sign = np.asarray if signed else np.abs
        x, W, A, B = (sign(a.astype(np.float64)) for a in (x, W, A, B))
        (r, k), s = A.shape, alpha / len(A)
        nu = terms(k, r) * float(eps(dtype)) / 2
        size = np.abs(x @ W.T + (s if scaled else 1) * (x @ A.T) @ B.T)
        if norms:
            x_, W_, A_, B_ = map(np.linalg.norm, (x, W, A, B))
            size = np.array(x_ * W_ + s * x_ * A_ * B_)
        x, B = np.abs(x), np.abs(B)
        lost = {
            "all": 2 * k + r * s + 1, "x A": k * s * B.sum(axis=1),
            "B A": (r * s + 1) * x.sum(axis=1, keepdims=True),
        }
        smallest = "tiny" if low == "tiny" else "smallest_subnormal"
        h = float(getattr(np.finfo(dtype), smallest))
        return over(sides * nu / (1 - nu) * size + h * sum(lost[name] for name in lost_in))

    return merge_bound


WRONG = {
    "merge_bound": {
        "you take the eps of float64 for each dtype": _bound(eps=lambda _: 2.0**-52),
        "you take the eps of float32 for float16 too": _bound(eps=lambda _: 2.0**-23),
        "you count one rounding for a sum, not one for each addition": _bound(terms=lambda k, r: 1),
        "you forget the roundings of s, of the product with s, and of the addition to W": _bound(
            terms=lambda k, r: k + r),
        "you count no roundings for the sum over the r ranks": _bound(terms=lambda k, r: k + 3),
        "you count no roundings for the sum over the k columns": _bound(terms=lambda k, r: r + 3),
        "you count only the roundings of one side": _bound(sides=1),
        "you take the root of n, but all roundings can have the same direction": _bound(
            terms=lambda k, r: (k + r + 3) ** 0.5),
        "you use the size of the result, but its terms may cancel": _bound(signed=True),
        "you leave the scale alpha / r out of the size of the update": _bound(scaled=False),
        "you leave out the losses of products below the smallest float": _bound(lost_in=()),
        "you take the smallest normal float (tiny), not the smallest float": _bound(low="tiny"),
        "you forget that the losses in x A^T are multiplied by s and B": _bound(
            lost_in=("all", "B A")),
        "you forget that the losses in B A are multiplied by x": _bound(lost_in=("all", "x A")),
        "you multiply norms, but large columns of x may meet small columns of W": _bound(
            norms=True),
        "you take the mean over the outputs, not the largest": _bound(over=np.mean),
        "you return a bound for each output, not the largest one": _bound(over=np.asarray),
    }
}
