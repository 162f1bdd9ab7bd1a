"""backend/shapes: an array of shapes has all properties of NumPy's array but the numbers."""

import copy
import operator
import os
import subprocess
import sys
import time
import tracemalloc
from warnings import catch_warnings, simplefilter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from strategies import gpt2, ids

import minilora as ml
from minilora import backend as backends
from minilora import lora, optim
from minilora.accounting.traced import Traced
from minilora.backend import asarray, xp
from minilora.backend.fuse import fused
from minilora.backend.shapes import Cost, Shapes

DTYPES = st.sampled_from(["float32", "float64", "float16", "int64", "uint32", "bool"])
SIDES = st.integers(0, 4)
REFUSALS = (ValueError, TypeError, IndexError)


pytestmark = pytest.mark.usefixtures("numpy_only")


@pytest.fixture
def shapes():
    with backends.using("shapes") as library:
        yield library


@pytest.fixture
def device():
    with backends.using("shapes:cupy") as library:
        yield library


@st.composite
def layouts(draw, shape=None):
    """Draw (dtype, shape in memory, axes, steps): an array that is transposed and sliced."""
    shape = tuple(draw(st.lists(SIDES, max_size=4))) if shape is None else shape
    axes = draw(st.permutations(range(len(shape))))
    steps = draw(st.tuples(*[st.sampled_from([1, 1, 2]) for _ in shape]))
    memory = [0] * len(shape)
    for i, axis in enumerate(axes):
        memory[axis] = shape[i] * steps[i]
    return draw(DTYPES), tuple(memory), tuple(axes), steps


def build(module, layout):
    dtype, shape, axes, steps = layout
    x = module.zeros(shape, dtype)
    if axes == tuple(range(len(axes))) and set(steps) <= {1}:
        return x
    return x.transpose(axes)[tuple(slice(None, None, step) for step in steps)]


def owner(array):
    while isinstance(getattr(array, "base", None), np.ndarray):
        array = array.base
    return array


def assert_alike(real, array, *inputs):
    """Compare shape, dtype, order and ownership; return the bytes that the result owns."""
    assert (array.shape, array.dtype) == (real.shape, real.dtype)
    assert array.nbytes == real.nbytes and array.ndim == real.ndim and array.size == real.size
    if real.size and all(x.size for x in inputs):
        for flag in ("c_contiguous", "f_contiguous"):
            assert getattr(array.flags, flag) == getattr(real.flags, flag), flag
        sides = [i for i, n in enumerate(real.shape) if n > 1]
        assert [array.strides[i] for i in sides] == [real.strides[i] for i in sides]
    assert array.is_number == isinstance(real, np.generic)
    if isinstance(real, np.generic):
        return 0
    assert (array.base is None) == (real.base is None)
    assert array.base is None or array.base.base is None
    return 0 if any(owner(real) is owner(x) for x in inputs) else owner(real).nbytes or 1


def result(f, module, arrays):
    """Return f's result, or None if f raises."""
    try:
        return f(module, *arrays)
    except REFUSALS:
        return None


def check(f, *layouts):
    """Check that f(module, *arrays) is alike on NumPy and shapes, and its bytes are counted.

    Is there a result? What NumPy refuses, shapes refuse.
    """
    with backends.using("shapes") as library, np.errstate(all="ignore"), catch_warnings():
        simplefilter("ignore")  # such as the mean of an empty array
        reals, mades = ([build(m, layout) for layout in layouts] for m in (np, xp))
        before = library.counts.live
        assert before == sum(x.buffer.nbytes for x in mades)
        real, array = result(f, np, reals), result(f, xp, mades)
        if real is None:
            assert array is None
        else:
            own = assert_alike(real, array, *reals)
            assert library.counts.live == before + own
            del array
        assert library.counts.live == before
        del mades
        assert library.counts.live == 0
        return real is not None


ONE = {
    "neg": lambda xp, x: -x,
    "abs": lambda xp, x: abs(x),
    "invert": lambda xp, x: ~x,
    "exp": lambda xp, x: xp.exp(x),
    "sqrt": lambda xp, x: xp.sqrt(x),
    "tanh": lambda xp, x: xp.tanh(x),
    "isfinite": lambda xp, x: xp.isfinite(x),
    "square": lambda xp, x: xp.square(x),
    "exp in place": lambda xp, x: xp.exp(x, out=x),
    "half": lambda xp, x: x * 0.5,
    "from one": lambda xp, x: 1 - x,
    "add 2 in place": lambda xp, x: operator.iadd(x, 2),
    "divide in place": lambda xp, x: operator.itruediv(x, 2.0),
    "shift": lambda xp, x: x >> 3,
    "xor in place": lambda xp, x: operator.ixor(x, 3),
    "scalar": lambda xp, x: x * np.float64(2),
    "below": lambda xp, x: x < 40,
    "maximum": lambda xp, x: xp.maximum(x, 0),
    "clip": lambda xp, x: xp.clip(x, 0, 1),
    "where": lambda xp, x: xp.where(x > 0, x, 0.0),
    "triu": lambda xp, x: xp.triu(x[None, None], k=1),
    "tril": lambda xp, x: xp.tril(x[None, None]),
    "sum": lambda xp, x: x.sum(),
    "sum of the last": lambda xp, x: x.sum(axis=-1),
    "sum of the first": lambda xp, x: x.sum(axis=0, keepdims=True),
    "sum of two": lambda xp, x: x.sum(axis=(0, -1)),
    "sum wide": lambda xp, x: x.sum(axis=0, dtype="float32"),
    "sum function": lambda xp, x: xp.sum(x, axis=1),
    "max": lambda xp, x: x.max(axis=-1, keepdims=True),
    "max of all": lambda xp, x: x.max(),
    "min": lambda xp, x: xp.min(x, axis=0),
    "mean": lambda xp, x: x.mean(axis=-1, keepdims=True),
    "mean of all": lambda xp, x: x.mean(),
    "all": lambda xp, x: x.all(),
    "any": lambda xp, x: x.any(axis=0),
    "argmax": lambda xp, x: x.argmax(axis=-1),
    "prod": lambda xp, x: xp.prod(x, axis=0),
    "add.reduce": lambda xp, x: xp.add.reduce(x[None], axis=0),
    "add.reduce wide": lambda xp, x: xp.add.reduce(x, dtype="float64", keepdims=True),
    "accumulate": lambda xp, x: xp.maximum.accumulate(x[..., None], axis=-1),
    "zeros_like": lambda xp, x: xp.zeros_like(x),
    "ones_like": lambda xp, x: xp.ones_like(x, dtype="float16"),
    "full_like": lambda xp, x: xp.full_like(x, 3),
    "empty_like": lambda xp, x: xp.empty_like(x, dtype="float64"),
    "copy": lambda xp, x: x.copy(),
    "copy module": lambda xp, x: copy.copy(x),
    "astype": lambda xp, x: x.astype("float32"),
    "astype C": lambda xp, x: x.astype("float32", order="C"),
    "astype same": lambda xp, x: x.astype("float32", copy=False),
    "astype of a number": lambda xp, x: x.sum().astype("float32"),
    "asarray": lambda xp, x: xp.asarray(x),
    "asarray of a number": lambda xp, x: xp.asarray(x.sum()),
    "asarray float64": lambda xp, x: xp.asarray(x, dtype="float64"),
    "array": lambda xp, x: xp.array(x),
    "T": lambda xp, x: x.T,
    "mT": lambda xp, x: x.mT,
    "transpose": lambda xp, x: xp.transpose(x, None),
    "swapaxes": lambda xp, x: x.swapaxes(-1, -2),
    "moveaxis": lambda xp, x: xp.moveaxis(x, 0, -1),
    "squeeze": lambda xp, x: xp.squeeze(x),
    "squeeze axis": lambda xp, x: x.squeeze(0),
    "expand_dims": lambda xp, x: xp.expand_dims(x, 1),
    "broadcast_to": lambda xp, x: xp.broadcast_to(x, (3, *x.shape)),
    "flat": lambda xp, x: x.reshape(-1),
    "rows": lambda xp, x: x.reshape(-1, x.shape[-1]),
    "reshape": lambda xp, x: xp.reshape(x, (2, -1)),
    "ravel": lambda xp, x: x.ravel(),
    "view": lambda xp, x: x.view("int16"),
    "first": lambda xp, x: x[0],
    "last": lambda xp, x: x[..., -1],
    "all of it": lambda xp, x: x[()],
    "slices": lambda xp, x: x[1:, None, ::2],
    "dots": lambda xp, x: x[..., 1:],
    "backwards": lambda xp, x: x[::-1],
    "number": lambda xp, x: x[(0,) * x.ndim],
    "rows by number": lambda xp, x: x[xp.asarray(np.array([0, 0, 0]))],
    "columns by number": lambda xp, x: x[:, xp.asarray(np.array([[0], [0]]))],
    "numbers by row": lambda xp, x: x[xp.arange(1), xp.asarray(np.array([0]))],
    "apart": lambda xp, x: x[xp.asarray(np.array([0, 0])), :, 0],
    "far apart": lambda xp, x: x[None][:, xp.asarray(np.array([0, 0])), :, 0],
    "repeat": lambda xp, x: xp.repeat(x[None], 3, axis=-1),
    "take": lambda xp, x: xp.take(x, xp.asarray(np.array([[0, 0]])), axis=0),
    "pair": lambda xp, x: [*x][-1],
}
TWO = {
    "add": lambda xp, x, y: x + y,
    "subtract": lambda xp, x, y: x - y,
    "multiply": lambda xp, x, y: x * y,
    "divide": lambda xp, x, y: x / y,
    "equal": lambda xp, x, y: x == y,
    "and": lambda xp, x, y: x & y,
    "in place": lambda xp, x, y: operator.iadd(x, y),
    "add out": lambda xp, x, y: xp.add(x, y, out=x),
    "greater_equal out": lambda xp, x, y: xp.greater_equal(x, y, out=x),
    "minimum": lambda xp, x, y: xp.minimum(x, y),
    "power": lambda xp, x, y: x**y,
    "where": lambda xp, x, y: xp.where(x > 0, x, y),
    "assign": lambda xp, x, y: (operator.setitem(x, ..., y), x)[1],
    "assign a slice": lambda xp, x, y: (operator.setitem(x, slice(1, None), y), x)[1],
    "add to a slice": lambda xp, x, y: (operator.setitem(x, 0, x[0] + y), x)[1],
    "copyto": lambda xp, x, y: (xp.copyto(x, y, where=x > 0), x)[1],
    "chain": lambda xp, x, y: (x * y - x) / (1 + xp.exp(-y)),
}


@settings(max_examples=400)
@given(st.sampled_from(sorted(ONE)), layouts())
@example("sum", ("float32", (), (), ()))
def test_a_function_of_one_array_is_alike(name, layout):
    check(ONE[name], layout)


@settings(max_examples=300)
@given(st.sampled_from(sorted(TWO)), mutually_broadcastable_shapes(num_shapes=2, max_side=4),
       st.data())
def test_a_function_of_two_arrays_is_alike(name, both, data):
    check(TWO[name], *(data.draw(layouts(shape)) for shape in both.input_shapes))


@pytest.mark.parametrize("name", ONE)
def test_every_function_of_one_array_has_results(name):
    results = [
        check(ONE[name], (dtype, shape, tuple(range(len(shape)))[::way], (1,) * len(shape)))
        for shape in ((3, 4), (2, 1, 4), (4,), (1,), ())
        for way in (1, -1)
        for dtype in ("float32", "int64")
    ]
    assert any(results)


@settings(max_examples=100)
@given(mutually_broadcastable_shapes(signature="(n?,k),(k,m?)->(n?,m?)", max_dims=2, max_side=3),
       st.booleans(), st.data())
def test_a_product_of_matrices_is_alike(both, out, data):
    def product(xp, x, y):
        there = xp.zeros(both.result_shape, dtype="float64") if out else None
        return xp.matmul(x, y, out=there) if out else x @ y

    check(product, *(data.draw(layouts(shape)) for shape in both.input_shapes))


@given(st.integers(0, 2), st.data())
def test_what_is_put_together_is_alike(axis, data):
    shape = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    several = [data.draw(layouts(shape)) for _ in range(3)]
    check(lambda xp, *arrays: xp.concatenate(arrays, axis=axis), *several)
    check(lambda xp, *arrays: xp.stack(arrays, axis=axis), *several)
    check(lambda xp, *arrays: xp.concatenate(arrays), *several)
    check(lambda xp, x: xp.concatenate([x], axis=axis), several[0])


@given(st.tuples(SIDES, SIDES), DTYPES)
def test_new_arrays_are_alike(shape, dtype):
    for f in (
        lambda xp: xp.empty(shape, dtype=dtype), lambda xp: xp.zeros(shape),
        lambda xp: xp.ones(shape[0]),
        lambda xp: xp.full(shape, 2.5, dtype=dtype), lambda xp: xp.full(shape, True),
        lambda xp: xp.full((), 3), lambda xp: xp.eye(shape[0], dtype=dtype),
        lambda xp: xp.arange(shape[0]), lambda xp: xp.arange(2, 9, 3, dtype="uint32"),
        lambda xp: xp.asarray([1.0, 2.0]), lambda xp: xp.asarray(3), lambda xp: xp.array(2.5),
    ):
        check(f)


@given(st.data())
@settings(max_examples=100)
def test_indexing_is_alike(data):
    layout = data.draw(layouts(data.draw(st.tuples(*[st.integers(1, 4)] * 3))))
    part = st.one_of(
        st.integers(-1, 0), st.slices(3), st.just(...),
        st.lists(st.integers(-1, 0), min_size=1, max_size=3).map(np.array),
    )
    key = tuple(data.draw(st.lists(part, max_size=3)))
    if sum(part is ... for part in key) < 2:
        check(lambda xp, x: x[tuple(xp.asarray(p) if np.ndim(p) else p for p in key)], layout)
        check(lambda xp, x: (operator.setitem(x, key, 1), x)[1], layout)


def test_adding_to_chosen_numbers_reads_and_writes_them(shapes):
    x, rows = xp.zeros((3, 4), dtype="float32"), xp.asarray(np.array([0, 1]))
    shapes.counts.reset()
    x[rows, rows] += 1
    assert shapes.counts.cost.calls == 3 and shapes.counts.read()[0] == 48 + 16
    shapes.counts.reset()
    x[:2] += 1  # the view is written to, and then assigned to its own place
    assert shapes.counts.cost == Cost(0, 8, 64, 1, 1)
    shapes.counts.reset()
    x[:2] = x[1:]  # the same size, another place
    assert shapes.counts.cost == Cost(0, 0, 64, 1, 1)
    x[:2] = x[:1]
    assert shapes.counts.cost.calls == 2


def test_rows_that_are_taken_are_all_that_is_read_of_an_array(shapes):
    x, rows = xp.zeros((50, 4), dtype="float32"), xp.asarray(np.array([0, 1, 1]))
    shapes.counts.reset()
    xp.take(x, rows, axis=0)
    assert shapes.counts.cost == Cost(0, 0, 2 * 48, 1, 1)


@pytest.mark.parametrize("a, b", [((2, 3), (2, 3)), ((3,), (2, 3)), ((2, 3), (4,)), ((), (3, 3))])
def test_matrices_that_do_not_fit_have_no_product(a, b, shapes):
    for kind in (np.ones, xp.ones):
        with pytest.raises(ValueError, match="matmul"):
            kind(a) @ kind(b)


def test_what_does_not_fit_is_not_copied_to(shapes):
    x = xp.zeros(2)
    for wrong in ((xp.zeros(3), True), (1.0, xp.zeros(3, dtype=bool)), (xp.zeros((2, 2)), True)):
        with pytest.raises(ValueError, match=r"cannot be broadcast|shape mismatch"):
            xp.copyto(x, wrong[0], where=wrong[1])


def test_numbers_that_have_names(shapes):
    assert (xp.pi, xp.e, xp.inf, xp.newaxis) == (np.pi, np.e, np.inf, None) and np.isnan(xp.nan)


@pytest.mark.parametrize("f", [
    lambda x: float(x), lambda x: int(x), lambda x: bool(x), lambda x: complex(x),
    lambda x: x.item(), lambda x: x.tolist(), lambda x: ml.asnumpy(x), lambda x: np.asarray(x),
    lambda x: 1 in x, lambda x: [0][x], lambda x: x.tobytes(), lambda x: f"{x:.3f}",
])
def test_there_are_no_numbers(shapes, f):
    with pytest.raises(TypeError, match=r"no numbers|unsupported format"):
        f(xp.zeros(3))


UNKNOWN = {
    "cumsum": lambda x: np.cumsum(x),
    "linspace": lambda x: xp.linspace(0, 1, 3),
    "flatten": lambda x: x.flatten(),
    "einsum": lambda x: np.einsum("ij->j", x),
    "add.at": lambda x: np.add.at(x, [0], 1),
    "add.outer": lambda x: np.add.outer(x, x),
    "vecdot": lambda x: np.vecdot(x, x),
    "modf": lambda x: np.modf(x),
    "where": lambda x: np.add(x, x, where=x > 0),
    "initial": lambda x: np.add.reduce(x, initial=1),
    "booleans": lambda x: x[x > 0],
    "None beside arrays": lambda x: x[None, xp.asarray(np.array([0]))],
    "argsort": lambda x: x.argsort(),
    "triu": lambda x: xp.triu(x[0]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_named_and_refused(shapes, name):
    with pytest.raises((TypeError, AttributeError), match=rf"shapes: .*{name}.* is not known here"):
        UNKNOWN[name](xp.zeros((2, 2)))


def test_arrays_of_any_size_take_no_memory(shapes):
    start = time.process_time()
    tracemalloc.start()
    try:
        W = xp.zeros((1 << 20, 1 << 20), dtype="float32")  # four terabytes
        y = (W @ W.T + 1)[::2, ::2].reshape(-1).sum()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert y.shape == () and shapes.counts.read() == (4 << 40, 12 << 40)
    assert peak < 1 << 20 and time.process_time() - start < 5


def peak_of(f, *arguments) -> int:
    """Return the bytes of the arrays that a call has at its peak beside its arguments."""
    with Traced() as counted:
        f(*arguments)
        return counted.read()[1]


EXPRESSIONS = {
    "x * x * x": lambda x, y: x * x * x,
    "2 (x y)": lambda x, y: 2.0 * (x * y),
    "(x y) 2": lambda x, y: (x * y) * 2.0,
    "x + x y": lambda x, y: x + x * y,
    "x - x y": lambda x, y: x - x * y,
    "x y - x": lambda x, y: x * y - x,
    "x y / y": lambda x, y: x * y / y,
    "-(x y)": lambda x, y: -(x * y),
    "1 - x y": lambda x, y: 1 - x * y,
    "broadcast": lambda x, y: (x * y) * x[:1],
    "tanh": lambda x, y: np.tanh(x * y) * y,
    "of a view": lambda x, y: (x * y)[:] * y,
    "mixed": lambda x, y: (x * y) * x.astype("float16"),
    "widened": lambda x, y: (x * y) * x.astype("float64"),
    "GELU": lambda x, y: y * (x + 2 * x * y * (1 - y) * 0.8 * (1 + 0.134 * x * x)),
    "mean": lambda x, y: x.mean(axis=-1, keepdims=True) * y,
    "product": lambda x, y: x.astype("float16") @ y.T,
    "products": lambda x, y: x[None] @ y.T.astype("float64"),
    "triu": lambda x, y: np.triu(x, 1),
    "softmax": lambda x, y: np.exp(x - x.max(-1, keepdims=True)) / x.sum(-1, keepdims=True),
    "erf": lambda x, y: backends.erf(x),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_temporary_arrays_are_numpys(name, dtype):
    f, x, y = EXPRESSIONS[name], np.ones((512, 512), dtype), np.ones((512, 512), dtype)
    f(x, y)
    measured = peak_of(f, x, y)
    with backends.using("shapes") as library:
        x, y = xp.zeros((512, 512), dtype=dtype), xp.zeros((512, 512), dtype=dtype)
        before, _ = library.counts.read()
        library.counts.reset()
        f(x, y)
        assert abs(library.counts.peak - before - measured) <= 0.01 * measured


REUSED = {
    "at 256 KiB": lambda xp: (xp.zeros(1 << 15) + 1) + 1,
    "just below": lambda xp: (xp.zeros((1 << 15) - 1) + 1) + 1,
    "what has a name": lambda xp: (lambda x: (x + 1, -x, x))(xp.zeros(1 << 15)),
    "one triangle, several times": lambda xp: xp.triu(xp.zeros((6, 200, 200))),
}


@pytest.mark.parametrize("name", REUSED)
def test_numpy_computes_in_the_place_of_what_is_large_and_has_no_name(name):
    measured = peak_of(REUSED[name], np)
    with backends.using("shapes") as library:
        library.counts.reset()
        REUSED[name](xp)
        assert abs(library.counts.peak - measured) < 1_000


def test_scatter_adds_temporary_arrays_are_numpys():
    target, rows = np.zeros((2000, 64), "float32"), np.ones((3000, 64), "float32")
    index = np.random.default_rng(0).integers(0, 2000, 3000)
    measured = peak_of(backends.scatter_add, target, index, rows)
    with backends.using("shapes") as library:
        arrays = [asarray(x) for x in (target, index, rows)]
        before, _ = library.counts.read()
        library.counts.reset()
        backends.scatter_add(*arrays)
        assert abs(library.counts.peak - before - measured) <= 0.01 * measured


def test_the_cost_of_a_few_calls(shapes):
    x, W = xp.zeros((2, 3, 4), dtype="float32"), xp.zeros((5, 4), dtype="float32")
    shapes.counts.reset()
    y = x @ W.T
    assert shapes.counts.cost == Cost(2 * 2 * 3 * 4 * 5, 0, 4 * (24 + 20 + 30), 1, 1)
    shapes.counts.reset()
    z = xp.exp(y).sum(axis=-1) + 1
    assert shapes.counts.cost == Cost(0, 30 + 30 + 6, 4 * (60 + 36 + 12), 3, 3)
    shapes.counts.reset()
    z *= 2
    xp.exp(z, out=z)
    xp.zeros(3)
    assert shapes.counts.cost.depth == 2 and shapes.counts.cost.calls == 3


@given(st.lists(st.sampled_from(["side", "chain", "join"]), max_size=12))
def test_depth_is_the_longest_chain(program):
    with backends.using("shapes") as library:
        x = xp.zeros(3)
        library.counts.reset()
        ends, depths = [x], [0]
        for step in program:
            if step == "side":
                ends, depths = [*ends, -x], [*depths, 1]
            elif step == "chain":
                ends[-1], depths[-1] = -ends[-1], depths[-1] + 1
            elif len(ends) > 1:
                ends.append(ends.pop() + ends.pop())
                depths.append(1 + max(depths.pop(), depths.pop()))
        longest, reached = max(x.buffer.depth for x in ends), library.counts.cost.depth
        assert longest - library.counts.start == max(depths) <= reached


@given(st.integers(1, 200), st.integers(0, 20), st.booleans())
def test_pieces_that_are_alike_are_counted_and_not_run(n, piece, keeps):
    ran, stays = [], []
    with backends.using("shapes") as library:
        x, y = xp.zeros((n, 1 << 15)), xp.zeros((n, 1 << 15))

        def task(at):
            ran.append(at)
            xp.exp(x[at], out=y[at])
            work = x[at] * 2
            if keeps:
                stays.append(work)

        library.counts.reset()
        library.share(task, n, x.size, piece)
        cost = library.counts.cost
        cuts = backends.threads.pieces(n, x.size, piece)
    assert cost == Cost(0, 2 * x.size, 4 * x.nbytes, 2 * len(cuts), 1)
    assert sorted(ran, key=lambda at: at.start) == cuts if keeps else len(ran) <= 4


def test_pieces_of_different_cost_are_all_run(shapes):
    x, ran = xp.zeros((8, 8)), []

    def task(at):
        ran.append(at)
        xp.exp(x[: at.start + 1])

    shapes.share(task, 8, 1, 1)
    assert len(ran) == 8 and shapes.counts.cost.elementwise == 8 * sum(range(1, 9))


def test_pieces_do_not_wait_for_each_other_and_what_follows_waits_for_all(shapes):
    x, out = xp.zeros((6, 2)), xp.zeros((6, 2))
    shapes.counts.reset()

    def task(at):
        part = x[at]
        for _ in range(3):
            part = -part
        out[at] += part  # out existed before: it depends on this part, and on no other piece

    shapes.share(task, 6, 1 << 20, 1)
    assert shapes.counts.cost.depth == 4
    xp.exp(out)
    assert shapes.counts.cost.depth == 5
    shapes.share(lambda at: shapes.share(task, 6, 1 << 20, 1), 2, 1 << 20, 1)
    assert shapes.counts.cost.depth == 5


def test_a_numpy_array_is_counted_once_while_it_is_alive(shapes):
    there = np.zeros((4, 4))
    x, y, z = xp.asarray(there), xp.asarray(there[1:]), xp.asarray(there, dtype="float32")
    assert shapes.counts.read() == (128 + 64, 128 + 64)
    assert x.base is None and y.base is not None
    del x
    assert shapes.counts.live == 128 + 64
    del y, z
    assert shapes.counts.live == 0
    shapes.counts.ignore(there)
    x = xp.asarray(there[::2])
    assert (x.shape, x.strides, shapes.counts.live) == ((2, 4), (64, 8), 0)


def test_a_meter_starts_anew(shapes):
    with shapes.meter() as meter:
        x = xp.zeros(100)
        y = x + 1
        del y
        assert meter.read() == (800, 1600) and meter.cost.calls == 2
        meter.reset()
        assert meter.read() == (800, 800) and meter.cost == Cost() == (0, 0, 0, 0, 0)


@given(st.integers(0, 2**32))
def test_a_generator_draws_real_integers_and_no_other_numbers(seed):
    with backends.using("shapes"):
        rng = backends.generator(seed)
        real = np.random.default_rng(seed)
        assert np.array_equal(rng.integers(9, size=5), real.integers(9, size=5))
        for x in (rng.standard_normal((2, 3)), rng.random((2, 3)), rng.normal(0, 1, (2, 3)),
                  rng.uniform(-1, 1, (2, 3))):
            assert (x.shape, x.dtype, x.nbytes) == ((2, 3), np.float64, 48)
        assert type(backends.normal(rng, (3, 2), 0.1, "float16")) is type(x)
        assert backends.generator(rng).bit_generator is rng.bit_generator


def test_the_hooks_answer_for_numbers_that_are_not_there(shapes):
    loss, g = xp.zeros((), dtype="float32"), xp.zeros(3, dtype="float16")
    assert shapes.read(loss, 7.0) == shapes.peek(loss, 7.0) == 7.0
    shapes.counts.reset()
    assert shapes.finite(loss, [g]) is loss
    assert shapes.counts.cost == Cost(0, 3, 6 + 4, 1, 1), "a look at each number"
    target, index = xp.zeros((50, 4)), asarray(np.arange(100) % 50)
    before = shapes.counts.live
    shapes.scatter_add(target, index, xp.zeros((100, 4)))
    assert shapes.counts.live == before
    shapes.counts.reset()
    for _ in range(2):
        depth = shapes.counts.cost.depth
        shapes.scatter_add(target, index, xp.zeros((100, 4)))
    assert shapes.counts.cost.depth > depth, "the second waits for the first"
    assert backends.current().describe() == "shapes of numpy: arrays without numbers"


def test_what_a_library_is_called():
    with pytest.raises(ValueError, match="choose shapes:numpy or shapes:cupy"):
        ml.use("shapes:torch")
    for name, on_host in (("shapes", True), ("shapes:numpy", True), ("shapes:cupy", False)):
        with backends.using(name) as library:
            assert library.name == "shapes" and library.on_host == on_host
    assert ml.current().name == "numpy"


# Behaviour of CuPy.


def test_a_device_hands_out_blocks(device):
    x = xp.zeros((3, 5), dtype="float32")
    assert device.counts.live == 512
    y = x.T + 1
    assert y.flags.c_contiguous and device.counts.live == 1024
    total = y.sum()
    assert total.shape == () and device.counts.live == 1536  # an array, not a scalar
    copy = x.T.reshape(-1)
    assert copy.base is None and x.T[:, xp.asarray(np.array([0, 1]))].flags.c_contiguous
    assert asarray(np.zeros(200)).buffer.nbytes == 2048


def test_a_device_fuses_a_formula(device):
    @fused
    def formula(x, y):
        y *= 2
        work = x * 3
        y += work * work

    x, y = xp.zeros((8, 8), dtype="float32"), xp.zeros((8, 8), dtype="float32")
    device.counts.reset()
    formula(x, y)
    assert device.counts.cost == Cost(0, 4 * 64, 3 * 256, 1, 1)
    assert device.counts.read() == (1024, 1024)


def test_a_device_copies_factors_that_are_turned(device):
    x, y = xp.zeros((2, 8, 16), dtype="float32"), xp.zeros((2, 8, 16), dtype="float32")
    device.counts.reset()
    x @ y.swapaxes(-1, -2)
    assert device.counts.peak - device.counts.live == y.nbytes + 512
    x, y = x.astype("float16"), y.astype("float16").swapaxes(-1, -2)
    device.counts.reset()
    x @ y
    assert device.counts.peak - device.counts.live == 4 * (256 + 256 + 128) + 512
    device.counts.reset()
    x[0] @ y[0]
    assert device.counts.peak - device.counts.live == 512


def test_a_device_gets_one_task_and_checks_no_gradient(device):
    ran = []
    device.share(ran.append, 10, 1 << 20, 2)
    device.share(ran.append, 0, 1 << 20, 2)
    assert ran == [slice(0, 10)]
    loss = device.finite(xp.zeros((), dtype="float32"), [xp.zeros(3, dtype="float16"), xp.zeros(3)])
    assert (loss.shape, loss.dtype) == ((), np.float32)
    target = xp.zeros((50, 4))
    device.counts.reset()
    device.scatter_add(target, asarray(np.arange(100) % 50), xp.zeros((100, 4)))
    device.erf(target)
    assert device.counts.cost.calls == 3


# The engine.


def arrays_of(model, optimizer):
    for name, p in model.named_parameters():
        yield name, p.data
        yield f"{name}'s gradient", p.grad
    yield from optimizer.arrays().items()


@settings(max_examples=25)
@given(st.data())
def test_the_engine_runs_as_it_is(data):
    draw = data.draw
    dtype = draw(st.sampled_from(["float32", "float64", "float16"]))
    how = draw(st.sampled_from(["full", "lora", "tied"]))
    sizes = {"n_layers": draw(st.integers(1, 2)), "dropout": draw(st.sampled_from([0.0, 0.2]))}
    recompute, plain = draw(st.booleans()), draw(st.booleans())

    def facts(name):
        with backends.using(name, plain=plain), np.errstate(all="ignore"):
            if name == "numpy":
                model = gpt2(0, dtype, **sizes)
            else:
                config = {"vocab_size": 11, "n_positions": 12, "d_model": 8, "n_heads": 2}
                model = ml.GPT2(ml.GPT2Config(**config, **sizes), rng=0, dtype=dtype)
            model.recompute = recompute
            if how != "full":
                targets = ("q", "v", "up") if how == "lora" else ("tok",)
                lora.attach(model, ml.LoRAConfig(r=2, dropout=0.1, targets=targets), rng=0)
            optimizer = optim.AdamW(model.trainable_parameters())
            loss = ml.ops.cross_entropy(model(ids(0)), ids(1))
            loss.backward()
            optimizer.step()
            arrays = {"loss": loss.data, **dict(arrays_of(model, optimizer))}
            return {
                name: array is not None and (array.shape, array.dtype, array.flags.c_contiguous)
                for name, array in arrays.items()
            }

    assert facts("numpy") == facts("shapes")


def test_shapes_count_for_themselves():
    one, two = Shapes(), Shapes()
    with backends.using(one):
        x = xp.zeros(10)
        with backends.using(two):
            y = xp.zeros(20)
        assert (one.counts.live, two.counts.live) == (80, 160)
        del x, y
    assert one.counts.live == two.counts.live == 0


@pytest.mark.skipif(os.name != "posix", reason="there is no ulimit")
def test_a_limit_of_address_space_is_named_with_the_remedy():
    limited = f"ulimit -v 4000000; '{sys.executable}' -m minilora account gpt2"
    done = subprocess.run(["sh", "-c", limited], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "lift the limit of this process's address space" in done.stderr
