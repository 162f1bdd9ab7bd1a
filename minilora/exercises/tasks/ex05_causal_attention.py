"""05. Causal attention with several heads.

Each token looks at itself and at the tokens before it, and takes an average of their values. The
weights of this average depend on the token itself: on how well its query fits the keys.

For one head: the score of query i and key j is their dot product divided by the square root of the
head's size. The size is the number of features in a query and in a key. A query must not see later
tokens: only scores with j <= i count. Softmax over j turns the scores of query i into weights (for
j > i they are 0). Output i is the sum of the values with these weights:
    score[i, j] = sum over c of q[i, c] * k[j, c] / sqrt(size)
    y[i]        = sum over j <= i of softmax(score[i, :i + 1])[j] * v[j]

With several heads, the d features are cut into pieces of size d / heads: head 0 has the first piece
of q, k and v, head 1 the next piece, and so on. Each head works alone, with its own weights, and
writes its result into its own piece of the output. The sequences of the batch are independent too.

causal_attention(q, k, v, heads) takes
    q, k, v   arrays (batch, tokens, d), the queries, keys and values
    heads     int, the number of heads; d is a multiple of it
and returns the output, an array (batch, tokens, d) of the dtype of q: float32 stays float32. (A
float64 mask would turn it into float64, and so would np.sqrt. math.sqrt does not.) Large scores,
such as 10,000, must work: remember exercise 04.

If all queries and keys are 0, all scores are equal, and each output is the mean of the values so
far:

    causal_attention(ZEROS, ZEROS, np.array([[[1], [3], [8]]]), 1)  ->  [[[1], [2], [4]]]
"""

import math

import numpy as np

ZEROS = np.zeros((1, 3, 1))  # 1 sequence of 3 tokens with 1 feature


def causal_attention(q, k, v, heads):
    """For each token, the weighted average of the values up to it, in each head."""
    ### BEGIN SOLUTION
    batch, tokens, d = q.shape
    size = d // heads

    def cut(x):  # (batch, tokens, d) -> (batch, heads, tokens, size)
        return x.reshape(batch, tokens, heads, size).transpose(0, 2, 1, 3)

    scores = cut(q) @ cut(k).transpose(0, 1, 3, 2) / math.sqrt(size)
    later = np.triu(np.ones((tokens, tokens), bool), 1)  # [i, j]: is j > i?
    scores = np.where(later, -np.inf, scores)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = e / e.sum(axis=-1, keepdims=True)
    return (weights @ cut(v)).transpose(0, 2, 1, 3).reshape(batch, tokens, d)
    ### END SOLUTION


### CHECKS
# mypy: ignore-errors

from hypothesis import strategies as st

from minilora import asnumpy, ops
from minilora.exercises import kit

TITLE = "causal attention"
MINUTES = 40
CHAPTER = "04"

HINTS = (
    "Start with one head and one sequence: scores = q @ k.T / math.sqrt(size), -np.inf where j > "
    "i, softmax along the last axis, weights @ v. Then cut into heads.",
    "To cut: x.reshape(batch, tokens, heads, size), then transpose the axes to the order (0, 2, "
    "1, 3). Then @ works on the (tokens, size) of each head. np.triu(np.ones((tokens, tokens), "
    "bool), 1) is True where j > i.",
    "scores = cut(q) @ cut(k).transpose(0, 1, 3, 2) / math.sqrt(size); scores = np.where(later, "
    "-np.inf, scores); softmax as in exercise 04; then undo the cut: (weights @ "
    "cut(v)).transpose(0, 2, 1, 3).reshape(batch, tokens, d).",
)


@st.composite
def sequences(
    draw, batch=(1, 1), heads=(1, 1), dtype=np.float64, scale=1.0, tokens=(1, 4), loud=1.0
):
    """q, k, v (batch, tokens, heads * size) with few numbers, and heads.

    scale: of all scores. loud: of those in the first head of the first sequence alone.
    """
    heads = draw(kit.sizes(*heads))
    shape = draw(kit.sizes(*batch)), draw(kit.sizes(*tokens)), heads * draw(kit.sizes(1, 3))
    numbers = draw(kit.numbers())
    q, k, v = (numbers(*shape).astype(dtype) for _ in range(3))
    q[:1, :, : shape[2] // heads] *= dtype(loud)
    return {"q": q * dtype(scale), "k": k, "v": v, "heads": heads}


def _engine(student, q, k, v, heads):
    expected = asnumpy(ops.attention(q, k, v, heads=heads).data)
    eps = float(np.finfo(q.dtype).eps)
    largest = float(np.max(np.abs(q)) * np.max(np.abs(k))) * q.shape[-1]  # of the scores
    got = student.causal_attention(q, k, v, heads)
    kit.equal(got, expected, "the output", rtol=(64 + 16 * largest) * eps, size=v)
    return got


@kit.check(sequences(), points=2)
def one_head(student, q, k, v, heads):
    """One head gives the engine's output"""
    _engine(student, q, k, v, heads)


@kit.check(
    sequences(heads=(2, 3), tokens=(2, 4)), sequences(heads=(4, 6), tokens=(2, 4)),
    points=2, examples=60,
)
def several_heads(student, q, k, v, heads):
    """Several heads give the engine's output"""
    _engine(student, q, k, v, heads)


@st.composite
def futures(draw):
    """Sequences, and a change of all tokens from `since` on."""
    case = draw(sequences(tokens=(2, 5)))
    since = draw(st.integers(1, case["q"].shape[1] - 1))
    return {**case, "since": since, "by": draw(st.sampled_from([1.0, 10_000.0]))}


def _averages(student):
    """Raise Wrong if no output is an average of values: a constant would pass some checks."""
    y = student.causal_attention(ZEROS, ZEROS, np.array([[[1.0], [3.0], [8.0]]]), 1)
    kit.number(y, ZEROS.shape, "the output")
    between = (y > 1) & (y < 8) & (y != 3)
    kit.holds(np.any(between), "averages of the values 1, 3 and 8", f"{kit.shown(y)}")


@kit.check(futures(), points=2)
def the_past(student, q, k, v, heads, since, by):
    """No earlier output changes if keys and values from token `since` on grow by `by`"""
    before = student.causal_attention(q, k, v, heads)
    kit.number(before, q.shape, "the output")
    k, v = k.copy(), v.copy()
    k[:, since:] += by
    v[:, since:] += by
    after = student.causal_attention(q, k, v, heads)
    kit.number(after, q.shape, "the output")
    kit.equal(after[:, :since], before[:, :since], "the outputs before `since`")
    _averages(student)


@kit.check(sequences(heads=(1, 2), tokens=(2, 4)), points=1)
def weights_sum_to_one(student, q, k, v, heads):
    """If all values are 1, each output is 1: the weights of a query add up to 1"""
    got = student.causal_attention(q, k, np.ones_like(v), heads)
    kit.equal(got, np.ones_like(v), "the output")
    _averages(student)


@kit.check(
    sequences(batch=(2, 3), tokens=(2, 6)), sequences((2, 3), (1, 2), loud=10_000.0, tokens=(2, 4)),
    points=1, examples=60,
)
def batches(student, q, k, v, heads):
    """Several sequences in a batch give the engine's output"""
    _engine(student, q, k, v, heads)


@kit.check(sequences(scale=10_000.0, tokens=(2, 4)), points=1)
def large_scores(student, q, k, v, heads):
    """Scores of 10,000 and more give the engine's output"""
    _engine(student, q, k, v, heads)


@kit.check(
    sequences(dtype=np.float32), sequences((1, 2), (2, 3), np.float32, tokens=(2, 4)), points=1
)
def dtypes(student, q, k, v, heads):
    """float32 queries, keys and values give a float32 output, for any number of heads"""
    got = _engine(student, q, k, v, heads)
    kit.holds(got.dtype == q.dtype, "a float32 output", f"a {got.dtype} output")


PROMISES = {
    one_head: ("For one head: the score", "Softmax over j", "Output i is the sum", "The size"),
    several_heads: ("With several heads", "Each head works alone"),
    the_past: ("A query must not see", "Each token looks at itself"),
    weights_sum_to_one: ("takes an average of their values",),
    batches: ("The sequences of the batch are independent",),
    large_scores: ("Large scores",), dtypes: ("float32 stays float32", "(A float64 mask"),
}
EXPLAINS = (
    "Causal attention with", "The weights of this average", "If all queries and keys are 0",
)


def _attention(
    q, k, v, heads, *, first_hidden=1, scale=lambda size, d: 1 / math.sqrt(size), axis=-1,
    hide=None, cut=None, join=None, after=None, shift=True, shift_all=False, together=False,
):
    """Attention with one part changed."""
    batch, tokens, d = q.shape
    size = d // heads
    cut = cut or (lambda x: x.reshape(batch, tokens, heads, size).transpose(0, 2, 1, 3))
    scores = cut(q) @ np.swapaxes(cut(k), -1, -2) * q.dtype.type(scale(size, d))
    later = np.triu(np.ones((tokens, tokens), bool), first_hidden)
    largest = scores.max(axis=axis, keepdims=True)
    scores = hide(scores, later) if hide else np.where(later, -np.inf, scores).astype(q.dtype)
    largest = largest if shift_all else scores.max(axis=axis, keepdims=True)
    largest = largest.max(axis=(0, 1), keepdims=True) if together else largest
    e = np.exp(scores - largest if shift else scores)
    weights = e / e.sum(axis=axis, keepdims=True)
    weights = after(weights, later) if after else weights
    y = weights @ cut(v)
    return join(y) if join else y.transpose(0, 2, 1, 3).reshape(batch, tokens, d)


def _lowest(scores):
    return scores.dtype.type(-1e30)


def _with(**how):
    return lambda q, k, v, heads: _attention(q, k, v, heads, **how)


def _cut_without_transpose(q, k, v, heads):
    batch, tokens, d = q.shape
    shape = (batch, heads, tokens, d // heads)
    return _attention(q, k, v, heads, cut=lambda x: x.reshape(shape),
                      join=lambda y: y.reshape(batch, tokens, d))


def _scale_in_place(q, k, v, heads):
    q /= math.sqrt(q.shape[-1] // heads)
    return _attention(q, k, v, heads, scale=lambda size, d: 1.0)


def _first_sequence(q, k, v, heads):
    y = _attention(q[:1], k[:1], v[:1], heads)
    return np.repeat(y, len(q), axis=0)


WRONG = {
    "causal_attention": {
        "you hide nothing: each token sees the later ones too":
            _with(hide=lambda scores, later: scores),
        "your mask is off by one: each token sees the next one too": _with(first_hidden=2),
        "your mask is off by one: it hides the token from itself, so the first sees nothing":
            _with(first_hidden=0),
        "your mask is off by one: it hides the token from itself, and a large negative number "
        "instead of -np.inf lets the first see all": _with(
            first_hidden=0, hide=lambda scores, later: np.where(later, _lowest(scores), scores)),
        "you hide with a number that is not low enough, such as -10: use -np.inf": _with(
            hide=lambda scores, later: np.where(later, scores.dtype.type(-10), scores)),
        "you hide the earlier tokens, not the later ones": _with(
            hide=lambda scores, later: np.where(later.T, -np.inf, scores)),
        "you set the scores of later tokens to 0, which hides nothing: exp(0) is 1":
            _with(hide=lambda scores, later: np.where(later, 0, scores)),
        "you hide later tokens after softmax: the weights no longer add up to 1":
            _with(hide=lambda scores, later: scores,
                  after=lambda weights, later: np.where(later, 0, weights)),
        "you do not divide by the square root of the head's size":
            _with(scale=lambda size, d: 1.0),
        "you divide by the square root of d, not of the head's size d / heads":
            _with(scale=lambda size, d: 1 / math.sqrt(d)),
        "you divide by the head's size, not by its square root":
            _with(scale=lambda size, d: 1 / size),
        "you take softmax over the queries, not over the keys": _with(axis=-2),
        "you divide by the square root of d where there are more than three heads":
            _with(scale=lambda size, d: 1 / math.sqrt(d if d // size > 3 else size)),
        "you reshape to (batch, heads, tokens, size) in one step, which mixes tokens and features":
            _cut_without_transpose,
        "you do not transpose the axis of the heads back before the last reshape":
            lambda q, k, v, heads: _attention(q, k, v, heads, join=lambda y: y.reshape(q.shape)),
        "you use one head for all features, and ignore `heads`":
            lambda q, k, v, heads: _attention(q, k, v, 1),
        "you swap queries and keys": lambda q, k, v, heads: _attention(k, q, v, heads),
        "you do not subtract the largest score before exp": _with(shift=False),
        "you subtract the largest of all scores, also of the hidden ones, before exp": _with(
            shift_all=True),
        "you subtract the largest score of all sequences or heads, not of one row": _with(
            together=True),
        "you return the output of the first sequence for the entire batch": _first_sequence,
        "you change q in place": _scale_in_place,
        "you return a float64 output for float32 inputs":
            lambda q, k, v, heads: _attention(q, k, v, heads).astype(np.float64),
    }
}
