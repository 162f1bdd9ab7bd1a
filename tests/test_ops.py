"""Every op, plain and as a kernel: its gradient, dtypes, behaviour and formula."""

import math
import re
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import (
    assert_near,
    dtypes,
    leaves,
    normal,
    roundings,
    same_bytes,
    seeds,
    sizes,
    value_and_grads,
)

import minilora as ml
from minilora import Tensor, kernels, ops
from minilora.backend import quantised
from minilora.backend.quantised import LEVELS
from minilora.tensor import OPS, gradients

small = st.integers(1, 3)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
solid = hnp.array_shapes(min_dims=1, max_dims=3, max_side=3)
forms = st.sampled_from(["tanh", "none"])


def on_device(x: np.ndarray, like: Tensor):
    """Return a constant of the library and dtype of `like`."""
    return ml.backend.asarray(x.astype(np.dtype(str(like.dtype))))


def apart(x: np.ndarray, by: float = 0.5) -> np.ndarray:
    """Return x, moved away from 0."""
    return x + np.copysign(by, x)


def biggest(x: np.ndarray) -> float:
    return float(np.abs(x).max(initial=0.0))


# One case per op: draw -> (a function of Tensors, its arrays). An op without a case fails a test.


def unary(name, domain=lambda x: x):
    return lambda draw: (OPS[name], [domain(normal(draw(seeds), *draw(shapes)))])


def power(draw):
    exponent = draw(st.sampled_from([-2, -1.5, -1, 0, 0.5, 1, 2, 3]))
    x = normal(draw(seeds), *draw(shapes))
    positive = exponent < 0 or exponent % 1
    return lambda x: x**exponent, [np.abs(apart(x)) if positive else x]


def binary(name, domain=lambda y: y):
    def case(draw):
        two = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=3))
        x, y = (normal(draw(seeds), *shape) for shape in two.input_shapes)
        return OPS[name], [x, domain(y)]

    return case


def along_axes(name):
    def case(draw):
        shape = draw(solid)
        every = st.permutations(range(len(shape))).map(tuple)
        axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1) | every)
        settings = {"axis": axis, "keepdims": draw(st.booleans())}
        return lambda x: OPS[name](x, **settings), [normal(draw(seeds), *shape)]

    return case


def along_axis(name):
    def case(draw):
        shape = draw(solid)
        axis = draw(st.integers(-len(shape), len(shape) - 1))
        return lambda x: OPS[name](x, axis=axis), [normal(draw(seeds), *shape)]

    return case


def matmul(draw):
    two = draw(hnp.mutually_broadcastable_shapes(signature="(n,k),(k,m)->(n,m)", max_side=3))
    return ops.matmul, [normal(draw(seeds), *shape) for shape in two.input_shapes]


def linear(draw):
    k, d, seed = draw(small), draw(small), draw(seeds)
    lead = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
    arrays = [normal(seed, *lead, k), normal(seed + 1, d, k), normal(seed + 2, d)]
    return ops.linear, arrays[: draw(st.integers(2, 3))]


def quantised_linear(draw):
    k, d, seed, format = draw(small), draw(small), draw(seeds), draw(st.sampled_from([*LEVELS]))
    lead = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
    shape = d, k + 60 * draw(st.booleans())                       # sometimes several blocks
    Q = quantised(ml.backend.asarray(normal(seed + 1, *shape)), format)

    def f(x, *b):
        return ops.quantised_linear(x, *map(Tensor.of, Q.arrays), *b, shape=shape)

    arrays = [normal(seed, *lead, shape[1]), normal(seed + 2, d)]
    return f, arrays[: draw(st.integers(1, 2))]


def lora_linear(draw):
    k, d, r, seed = draw(small), draw(small), draw(small), draw(seeds)
    lead = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
    bias, masked, scale = draw(st.booleans()), draw(st.booleans()), draw(st.floats(0.25, 3))
    mask = normal(seed + 9, *lead, k)
    shapes = [(*lead, k), (d, k), (r, k), (d, r)] + [(d,)] * bias

    def f(x, W, A, B, b=None):
        return ops.lora_linear(x, W, b, A, B, on_device(mask, x) if masked else None, scale=scale)

    return f, [normal(seed + i, *shape) for i, shape in enumerate(shapes)]


def reshape(draw):
    a, b, c = draw(small), draw(small), draw(small)
    shape = draw(st.permutations([a, b * c, 1]) | st.just([-1]) | st.just([c, -1]))
    return lambda x: x.reshape(*shape), [normal(draw(seeds), a, b, c)]


def transpose(draw):
    shape = draw(shapes)
    axes = draw(st.none() | st.permutations(range(len(shape))).map(tuple))
    return lambda x: ops.transpose(x, axes=axes), [normal(draw(seeds), *shape)]


def getitem(draw):
    shape = draw(solid)
    index = draw(hnp.basic_indices(shape, allow_newaxis=True))
    return lambda x: x[index], [normal(draw(seeds), *shape)]


def concat(draw):
    shape, count = draw(solid), draw(small)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    lengths = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    parts = [list(shape) for _ in lengths]
    for part, length in zip(parts, lengths):
        part[axis] = length
    f = lambda *xs: ops.concat(*xs, axis=axis)  # noqa: E731
    return f, [normal(draw(seeds) + i, *part) for i, part in enumerate(parts)]


def embedding(draw):
    n, d, seed = draw(sizes), draw(small), draw(seeds)
    ids = np.random.default_rng(seed).integers(0, n, draw(shapes))
    if draw(st.booleans()):
        ids = draw(st.slices(n))
    return lambda W: ops.embedding(W, ids), [normal(seed, n, d)]


def dropout(draw):
    rate, seed = draw(st.sampled_from([0.25, 0.5])), draw(seeds)
    f = lambda x: ops.dropout(x, rate, np.random.default_rng(seed))  # noqa: E731
    return f, [normal(seed, *draw(shapes))]


def layer_norm(draw):
    shape, seed = draw(solid), draw(seeds)
    arrays = [normal(seed, *shape), normal(seed + 1, shape[-1]), normal(seed + 2, shape[-1])]
    return lambda x, g, b: ops.layer_norm(x, g, b, eps=0.1), arrays


def rms_norm(draw):
    shape, seed = draw(solid), draw(seeds)
    arrays = [normal(seed, *shape), normal(seed + 1, shape[-1])]
    return lambda x, g: ops.rms_norm(x, g, eps=0.1), arrays


def swiglu(draw):
    shape, seed = draw(solid), draw(seeds)
    return ops.swiglu, [normal(seed, *shape), normal(seed + 1, *shape)]


def rotary(draw):
    batch, tokens, heads, half, start = (draw(small) for _ in range(5))
    each = np.random.default_rng(start).integers(0, 9, (batch, tokens))
    start = draw(st.sampled_from([start - 1, each]))  # a position of each token, too
    settings = {"heads": heads, "theta": draw(st.floats(1, 1e6)), "start": start}
    x = normal(draw(seeds), batch, tokens, heads * half * 2)
    return lambda x: ops.rotary(x, **settings), [x]


def gelu(draw):
    form = draw(forms)
    return lambda x: ops.gelu(x, approximate=form), [normal(draw(seeds), *draw(solid))]


def cross_entropy(draw):
    shape, seed = draw(solid), draw(seeds)
    targets = np.random.default_rng(seed).integers(0, shape[-1], shape[:-1])
    if targets.size > 1 and draw(st.booleans()):
        targets[(0,) * targets.ndim] = -100
    return lambda z: ops.cross_entropy(z, targets), [normal(seed, *shape)]


def attention(draw):
    batch, m, past, heads, width = (draw(small) for _ in range(5))
    causal, seed, mask, n = draw(st.booleans()), draw(seeds), None, m + past - 1
    if draw(st.booleans()):
        mask = seen(seed, batch, n)
    group = draw(small)
    settings = {"heads": heads * group, "kv_heads": heads, "causal": causal, "mask": mask}
    f = lambda q, k, v: ops.attention(q, k, v, **settings)  # noqa: E731
    k, v = (normal(seed + i, batch, n, heads * width) for i in (1, 2))
    return f, [normal(seed, batch, m, heads * group * width), k, v]


def seen(seed: int, batch: int, n: int) -> np.ndarray:
    """Draw a mask with holes; the first key is visible, so every query sees a key."""
    mask = np.random.default_rng(seed).random((batch, n)) < 0.6
    mask[:, 0] = True
    return mask


CASES = {
    "add": binary("add"),
    "sub": binary("sub"),
    "mul": binary("mul"),
    "div": binary("div", apart),
    "neg": unary("neg"),
    "exp": unary("exp"),
    "log": unary("log", lambda x: np.abs(apart(x))),
    "sqrt": unary("sqrt", lambda x: np.abs(apart(x))),
    "tanh": unary("tanh"),
    "relu": unary("relu", apart),
    "sigmoid": unary("sigmoid"),
    "power": power,
    "sum": along_axes("sum"),
    "max": along_axes("max"),
    "mean": along_axes("mean"),
    "matmul": matmul,
    "linear": linear,
    "quantised_linear": quantised_linear,
    "lora_linear": lora_linear,
    "reshape": reshape,
    "transpose": transpose,
    "getitem": getitem,
    "concat": concat,
    "embedding": embedding,
    "dropout": dropout,
    "softmax": along_axis("softmax"),
    "log_softmax": along_axis("log_softmax"),
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "gelu": gelu,
    "swiglu": swiglu,
    "rotary": rotary,
    "cross_entropy": cross_entropy,
    "attention": attention,
}
ELEMENTWISE = ["add", "sub", "mul", "div", "neg", "exp", "log", "sqrt", "tanh", "relu", "gelu",
               "swiglu"]
FAST = [name for name in CASES if OPS[name] in kernels.TABLE]
WAYS = [(name, True) for name in CASES] + [(name, False) for name in FAST]
every_op = pytest.mark.parametrize(
    ("name", "plain"),
    WAYS,
    ids=[f"{name}-{'plain' if plain else 'kernel'}" for name, plain in WAYS],
)
both_ways = pytest.mark.parametrize("plain", [True, False], ids=["plain", "kernel"])


def test_every_op_has_a_case():
    ours = {name: f for name, f in vars(ops).items() if hasattr(f, "formula")}
    assert ours == OPS and OPS.keys() == CASES.keys()
    assert {*FAST} == {
        "linear", "quantised_linear", "lora_linear", "layer_norm", "gelu", "cross_entropy",
        "attention", "rms_norm", "swiglu",
    }


@every_op
@given(data=st.data())
def test_gradients_equal_finite_differences(name, plain, data):
    f, arrays = CASES[name](data.draw)
    met = []

    def spy(*inputs, **settings):
        met.append(name)
        return OPS[name](*inputs, **settings)

    with ops.replaced(**{name: spy}):
        f(*map(Tensor, arrays))
    assert met == [name], "the case is one of this op"
    with ops.plain(plain):
        assert ml.gradcheck(f, *arrays) <= 1e-6


@every_op
@given(data=st.data(), dtype=dtypes)
def test_dtype_in_is_dtype_out(name, plain, data, dtype):
    f, arrays = CASES[name](data.draw)
    with ops.plain(plain):
        value, grads = value_and_grads(f, *(a.astype(dtype) for a in arrays))
    assert {str(a.dtype) for a in [value, *grads]} == {dtype}


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(data=st.data())
def test_half_precision_stays_half_precision(name, data):
    f, arrays = CASES[name](data.draw)
    value, grads = value_and_grads(f, *(a.astype("float16") for a in arrays))
    assert {str(a.dtype) for a in [value, *grads]} == {"float16"}


@every_op
@given(data=st.data())
def test_ops_and_rules_write_to_nothing_that_they_were_given(name, plain, data):
    f, arrays = CASES[name](data.draw)
    tensors = leaves(*arrays)
    before = [a.copy() for a in arrays]
    with ops.plain(plain):
        out = f(*tensors)
    value = ml.asnumpy(out).copy()
    g = ml.backend.asarray(normal(3, *out.shape))
    g_before = ml.asnumpy(g).copy()
    gradients(out._node, g)
    assert same_bytes(ml.asnumpy(g), g_before)
    assert same_bytes(ml.asnumpy(out), value)
    assert all(same_bytes(ml.asnumpy(t), a) for t, a in zip(tensors, before))


@every_op
@given(data=st.data())
def test_gradients_belong_to_their_leaf_alone(name, plain, data):
    f, arrays = CASES[name](data.draw)
    tensors = leaves(*arrays)
    with ops.plain(plain):
        out = f(*tensors)
    weight = ml.backend.asarray(normal(3, *out.shape))
    (out * weight).sum().backward()
    for t in tensors:
        others = [out.data, weight, *(u.data for u in tensors)]
        others += [u.grad for u in tensors if u is not t]
        before = [ml.asnumpy(a).copy() for a in others]
        t.grad += 1
        assert all(same_bytes(ml.asnumpy(a), b) for a, b in zip(others, before))


@every_op
@given(data=st.data())
def test_a_gradient_does_not_depend_on_what_else_is_trained(name, plain, data):
    f, arrays = CASES[name](data.draw)
    with ops.plain(plain):
        _, together = value_and_grads(f, *arrays)
        for i, (x, wanted) in enumerate(zip(arrays, together)):
            frozen = [Tensor(a) for a in arrays]
            before, after = frozen[:i], frozen[i + 1 :]
            _, (alone,) = value_and_grads(lambda t, b=before, a=after: f(*b, t, *a), x)
            assert same_bytes(alone, wanted)


# The empty batch


@both_ways
@pytest.mark.parametrize(
    ("f", "shapes", "wanted"),
    [
        (ops.softmax, [(0, 3)], (0, 3)),
        (ops.log_softmax, [(0, 3)], (0, 3)),
        (ops.gelu, [(0, 3)], (0, 3)),
        (ops.layer_norm, [(0, 3), (3,), (3,)], (0, 3)),
        (ops.matmul, [(0, 2, 3), (3, 4)], (0, 2, 4)),
        (lambda W: ops.embedding(W, np.zeros((0, 2), int)), [(5, 3)], (0, 2, 3)),
        # reshape(0, -1) would be ambiguous
        (ops.linear, [(0, 3), (4, 3), (4,)], (0, 4)),
        (
            lambda x, W, A, B: ops.lora_linear(x, W, None, A, B, scale=2.0),
            [(2, 0, 3), (4, 3), (1, 3), (4, 1)],
            (2, 0, 4),
        ),
        (lambda q, k, v: ops.attention(q, k, v, heads=2), [(0, 3, 4)] * 3, (0, 3, 4)),
        (lambda q, k, v: ops.attention(q, k, v, heads=2), [(2, 0, 4)] + [(2, 3, 4)] * 2, (2, 0, 4)),
    ],
    ids=[
        "softmax",
        "log_softmax",
        "gelu",
        "layer_norm",
        "matmul",
        "embedding",
        "linear",
        "lora_linear",
        "attention",
        "attention_without_queries",
    ],
)
def test_an_empty_batch_has_an_empty_result_and_no_gradient(f, shapes, wanted, plain):
    with ops.plain(plain):
        value, grads = value_and_grads(f, *(normal(i, *shape) for i, shape in enumerate(shapes)))
    assert value.shape == wanted
    assert all(not grad.any() for grad in grads)


# The op against its formula. The error of each is bounded by (roundings) · eps · (sizes).


@given(seeds, solid, dtypes)
def test_softmax_and_log_softmax_equal_their_formulas(seed, shape, dtype):
    x = normal(seed, *shape, dtype=dtype)

    def normalizer(t):
        return ops.exp(t).sum(axis=-1).reshape(*shape[:-1], 1)

    d, top, g = shape[-1], biggest(x), biggest(normal(1, *shape))
    # a relative error of 2·top + d + 4 roundings in eˣ/Σ, of d + 3 more in the gradient's sum
    steps = 2 * top + 2 * d + 7
    for fused, twin, size in [
        (ops.softmax, lambda t: ops.exp(t) / normalizer(t), 1.0),
        (ops.log_softmax, lambda t: t - ops.log(normalizer(t)), 1 + 2 * top + math.log(d)),
    ]:
        value, (grad,) = value_and_grads(fused, x)
        wanted, (wanted_grad,) = value_and_grads(twin, x)
        assert_near(value, wanted, roundings(steps, size, dtype))
        assert_near(grad, wanted_grad, roundings(steps, (1 + d) * g, dtype))


@given(seeds, solid, st.floats(-1e3, 1e3))
def test_softmax_ignores_a_shift(seed, shape, shift):
    x = normal(seed, *shape)
    moved = biggest(x) + abs(shift)  # x + shift is rounded: a relative error of eps·moved in e^x
    for f, size in [(ops.softmax, 1.0), (ops.log_softmax, 1 + 2 * biggest(x))]:
        value, wanted = ml.asnumpy(f(Tensor(x + shift))), ml.asnumpy(f(Tensor(x)))
        assert_near(value, wanted, roundings(2 * moved + 2 * shape[-1] + 8, size, "float64"))


@given(dtypes, st.sampled_from([-1, 1]))
def test_softmax_of_huge_logits_is_finite_and_right(dtype, sign):
    x = np.array([[sign * 3e4, 0, sign * 3e4]], dtype)
    y, (dy,) = value_and_grads(ops.softmax, x)
    z, (dz,) = value_and_grads(ops.log_softmax, x)
    assert np.array_equal(y, np.array([[0.5, 0, 0.5] if sign > 0 else [0, 1, 0]], dtype))
    log2 = math.log(2)
    wanted = np.array([[-log2, -3e4 - log2, -log2] if sign > 0 else [-3e4, 0, -3e4]])
    assert_near(z, wanted.astype(dtype), roundings(2, 3e4, dtype))
    assert np.isfinite(dy).all() and np.isfinite(dz).all()


@given(seeds, solid, st.sampled_from([1e-5, 0.1]), dtypes)
def test_layer_norm_equals_its_formula(seed, shape, eps, dtype):
    d = shape[-1]
    x, gain, shift = (normal(seed + i, *s, dtype=dtype) for i, s in enumerate([shape, (d,), (d,)]))

    def twin(x, gain, shift):
        centred = x - x.mean(axis=-1).reshape(*shape[:-1], 1)
        variance = (centred * centred).mean(axis=-1).reshape(*shape[:-1], 1)
        return centred / ops.sqrt(variance + eps) * gain + shift

    value, grads = value_and_grads(lambda *ts: ops.layer_norm(*ts, eps=eps), x, gain, shift)
    wanted, wanted_grads = value_and_grads(twin, x, gain, shift)
    # x - mean is off by (d + 2)·eps·|x|, which 1/√(variance + eps) magnifies, in dx a second time
    rate = 1 / math.sqrt(x.astype(np.float64).var(axis=-1).min(initial=np.inf) + eps)
    off, g = 1 + biggest(x) * rate, (1 + biggest(gain)) * biggest(normal(1, *shape))
    rows, steps = x.size // d, 4 * d + 16
    assert_near(value, wanted, roundings(steps, off**2 * biggest(gain) + biggest(shift), dtype))
    for grad, wanted_grad, size in zip(
        grads, wanted_grads, [rate * off**3 * d, off**2 * rows, rows]
    ):
        assert_near(grad, wanted_grad, roundings(steps + rows, g * size, dtype))


@given(seeds, solid, dtypes)
def test_gelu_equals_its_formulas(seed, shape, dtype):
    x = normal(seed, *shape, dtype=dtype) * np.dtype(dtype).type(2)
    c = math.sqrt(2 / math.pi)

    def twin(x):
        return 0.5 * x * (1 + ops.tanh(c * (x + 0.044715 * x * x * x)))

    top, g = 1 + biggest(x), biggest(normal(1, *shape))
    inner, slope = c * (top + 0.044715 * top**3), c * (1 + 0.134145 * top**2)
    steps = 12 + 8 * inner  # an argument of u and 4 roundings is off by 4·eps·u, 1 - tanh² twice
    value, (grad,) = value_and_grads(ops.gelu, x)
    wanted, (wanted_grad,) = value_and_grads(twin, x)
    assert_near(value, wanted, roundings(steps, top, dtype))
    assert_near(grad, wanted_grad, roundings(steps, g * (1 + top * slope), dtype))

    value, (grad,) = value_and_grads(lambda t: ops.gelu(t, approximate="none"), x)
    exact = x.astype(np.float64)
    share = np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in exact.flat]).reshape(shape)
    bell = np.exp(-exact * exact / 2) / math.sqrt(2 * math.pi)
    wanted_grad = normal(1, *shape, dtype=dtype) * (share + exact * bell)
    steps = 12 + 2 * top * top
    assert_near(value, (exact * share).astype(dtype), roundings(steps, top, dtype))
    assert_near(grad, wanted_grad.astype(dtype), roundings(steps, g * (1 + top), dtype))


@given(st.sampled_from([50.0, 1e3, 1e6]), dtypes, forms)
def test_gelu_far_from_zero_is_x_or_nothing(far, dtype, form):
    x = np.array([far, -far], dtype)
    value, (grad,) = value_and_grads(lambda t: ops.gelu(t, approximate=form), x)
    g = normal(1, 2, dtype=dtype)
    allowed = far * math.exp(-80) + np.finfo(dtype).eps
    assert_near(value, np.array([far, 0], dtype), far * allowed)
    assert_near(grad, np.array([g[0], 0], dtype), far**3 * math.exp(-80) + np.finfo(dtype).eps)


def test_gelu_in_half_precision_far_from_zero_is_x_or_nothing():
    # e^80 is not finite in float16: it would overflow with a warning
    value, _ = value_and_grads(ops.gelu, np.array([20, -20], "float16"))
    assert_near(value, np.array([20, 0], "float16"), 20 * np.finfo("float16").eps)


@both_ways
def test_gelu_has_two_forms(plain):
    message = r'gelu: x is \(2,\): approximate must be "tanh" or "none", not \'exact\''
    with pytest.raises(ValueError, match=message), ops.plain(plain):
        ops.gelu(Tensor([1.0, 2.0]), approximate="exact")


@both_ways
@given(seeds, solid, dtypes, st.sampled_from([-100, -1, 0, 2, 7]), st.booleans())
def test_cross_entropy_is_the_mean_over_what_is_not_ignored(
    plain, seed, shape, dtype, ignored, wide
):
    rng = np.random.default_rng(seed)
    logits, d = normal(seed, *shape, dtype=dtype), shape[-1]
    targets = rng.integers(0, d, shape[:-1]).astype("int64" if wide else "int16")
    targets = np.where(rng.random(shape[:-1]) < 0.3, np.array(ignored, targets.dtype), targets)
    counted = targets != ignored
    if not counted.any():
        return
    one_hot = (np.arange(d) == targets[..., None]) & counted[..., None]
    share = one_hot / counted.sum()

    def twin(z):
        total = ops.exp(z).sum(axis=-1).reshape(*shape[:-1], 1)
        return ((ops.log(total) - z) * on_device(share, z)).sum()

    f = lambda z: ops.cross_entropy(z, targets, ignore_index=ignored)  # noqa: E731
    with ops.plain(plain):
        value, (grad,) = value_and_grads(f, logits)
    wanted, (wanted_grad,) = value_and_grads(twin, logits)
    top, g, rows = biggest(logits), biggest(normal(1)), logits.size // d
    steps = 2 * top + 2 * d + rows + 8
    assert_near(value, wanted, roundings(steps, 1 + 2 * top + math.log(d), dtype))
    assert_near(grad, wanted_grad, roundings(steps, 2 * g, dtype))
    assert not grad[~counted].any()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "int32", "uint64"])
def test_cross_entropy_takes_targets_of_every_integer_type(dtype):
    logits = Tensor(normal(0, 4, 3))
    targets = np.array([0, 2, 1, 2])
    wanted = ops.cross_entropy(logits, targets).item()
    assert ops.cross_entropy(logits, targets.astype(dtype)).item() == wanted


def test_cross_entropy_of_huge_logits_is_finite_and_of_one_class_zero():
    huge = np.array([[3e4, -3e4, 0.0]])
    assert ops.cross_entropy(Tensor(huge), [1]).item() == 6e4
    value, (grad,) = value_and_grads(lambda z: ops.cross_entropy(z, [0]), np.array([[7.0]]))
    assert value == 0 and not grad.any()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 3], "target 3 is not one of the 3 classes"),
        ([0, -1], "target -1 is not one of the 3 classes"),
        ([-100, -100], "all 2 targets are ignored"),
        ([0, 1, 2], r"logits are \(2, 3\), so targets must be \(2,\), not \(3,\)"),
        ([[0, 1]], r"targets must be \(2,\), not \(1, 2\)"),
    ],
)
def test_cross_entropy_names_what_is_wrong_with_its_targets(targets, message):
    with pytest.raises(ValueError, match=f"cross_entropy: .*{message}"):
        ops.cross_entropy(Tensor(normal(0, 2, 3)), targets)


def test_cross_entropy_refuses_targets_that_are_not_integers():
    with pytest.raises(TypeError, match=r"cross_entropy: .*integers, not float64"):
        ops.cross_entropy(Tensor(normal(0, 2, 3)), np.array([0.0, 1.0]))


# Attention


def attended(q, k, v, heads, causal, mask):
    """softmax(q kᵀ / √d_head) v in float64; a hidden key has the score -∞."""
    (batch, m, d), n = q.shape, k.shape[1]
    Q, K, V = (x.astype("float64").reshape(batch, -1, heads, d // heads) for x in (q, k, v))
    scores = np.einsum("bihd,bjhd->bhij", Q, K) / math.sqrt(d // heads)
    if causal:
        scores[..., np.arange(n) > np.arange(n - m, n)[:, None]] = -np.inf
    if mask is not None:
        scores = np.where(mask[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhij,bjhd->bihd", weights, V).reshape(q.shape)


@both_ways
@given(st.data(), seeds, dtypes, st.booleans(), st.booleans())
def test_attention_equals_its_formula(plain, data, seed, dtype, causal, masked):
    batch, m, past, heads, width = (data.draw(sizes) for _ in range(5))
    n = m + past - 1 if causal else past
    q, k, v = (
        normal(seed + i, batch, t, heads * width, dtype=dtype) for i, t in enumerate([m, n, n])
    )
    mask = seen(seed, batch, n) if masked else None
    with ops.plain(plain):
        out = ops.attention(*map(Tensor, (q, k, v)), heads=heads, causal=causal, mask=mask)
    # a score is off by (width + 3) roundings of its terms, a weight relatively by twice that and n
    scores = width * biggest(q) * biggest(k) / math.sqrt(width)
    steps = 2 * (width + 3) * (scores + 1) + 2 * n + 8
    wanted = attended(q, k, v, heads, causal, mask).astype(dtype)
    assert_near(ml.asnumpy(out), wanted, roundings(steps, biggest(v), dtype))


@both_ways
@pytest.mark.parametrize("tokens", [9, 140])
@given(seed=seeds, data=st.data(), masked=st.booleans())
def test_the_future_never_changes_the_past(plain, tokens, seed, data, masked):
    at = data.draw(st.integers(0, tokens - 1))
    x, mask = normal(seed, 2, tokens, 4), seen(seed, 2, tokens) if masked else None
    other = x.copy()
    other[:, at:] = normal(seed + 1, 2, tokens - at, 4) * 3

    def past(t):
        return ops.attention(t, t, t, heads=2, mask=mask)[:, :at]

    with ops.plain(plain):
        value, (grad,) = value_and_grads(past, x)
        assert same_bytes(ml.asnumpy(past(Tensor(other))), value)
    assert not grad[:, at:].any()


# Padding: keys that no query sees. The output of a query that sees no key has no meaning.


def padded(data, seed, causal):
    """Return (q, k, v, mask); some keys are padding, the first never is."""
    batch, m, past, width = (data.draw(sizes) for _ in range(4))
    n = m + past - 1
    q, k, v = (normal(seed + i, batch, t, 2 * width) for i, t in enumerate([m, n, n]))
    return q, k, v, seen(seed, batch, n)


@both_ways
@given(st.data(), seeds, st.booleans(), st.sampled_from([1.0, 1e3]))
def test_what_a_padded_key_holds_never_changes_a_result(plain, data, seed, causal, size):
    q, k, v, mask = padded(data, seed, causal)
    f = lambda *qkv: ops.attention(*qkv, heads=2, causal=causal, mask=mask)  # noqa: E731
    with ops.plain(plain):
        value, (dq, dk, dv) = value_and_grads(f, q, k, v)
        for x, i in ((k, 9), (v, 10)):
            x[~mask] = normal(seed + i, *x.shape)[~mask] * size
        other, (dq_too, dk_too, dv_too) = value_and_grads(f, q, k, v)
    assert same_bytes(other, value) and same_bytes(dq_too, dq)
    assert same_bytes(dk_too[mask], dk[mask]) and same_bytes(dv_too[mask], dv[mask])
    assert not dk[~mask].any() and not dv[~mask].any()


@both_ways
@given(st.data(), seeds)
def test_padding_is_as_if_the_keys_were_not_there(plain, data, seed):
    q, k, v, mask = padded(data, seed, False)
    with ops.plain(plain):
        out = ops.attention(*map(Tensor, (q, k, v)), heads=2, causal=False, mask=mask)
        rows = [
            ops.attention(
                *map(Tensor, (q[i : i + 1], k[i : i + 1, at], v[i : i + 1, at])),
                heads=2,
                causal=False,
            )
            for i, at in enumerate(mask)
        ]
    width = q.shape[-1] // 2
    steps = 2 * (width + 3) * (width * biggest(q) * biggest(k) + 1) + 4 * len(mask.T) + 16
    wanted = np.concatenate([ml.asnumpy(row) for row in rows])
    assert_near(ml.asnumpy(out), wanted, roundings(steps, biggest(v), "float64"))


@both_ways
@given(st.data(), seeds, st.booleans(), dtypes)
def test_no_mask_is_a_mask_that_hides_nothing(plain, data, seed, causal, dtype):
    q, k, v, mask = padded(data, seed, causal)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    runs = []
    for given_mask in (None, np.ones_like(mask), np.ones(mask.shape, "int8").tolist()):
        f = lambda *qkv, at=given_mask: ops.attention(*qkv, heads=2, causal=causal, mask=at)  # noqa: E731
        with ops.plain(plain):
            value, grads = value_and_grads(f, q, k, v)
        runs.append([value, *grads])
    assert all(map(same_bytes, runs[1], runs[2]))
    if plain:
        assert all(map(np.array_equal, runs[0], runs[1]))  # -0.0 + 0.0 is 0.0
    m, n, width = q.shape[1], k.shape[1], q.shape[2] // 2
    Q, K, V, g = biggest(q), biggest(k), biggest(v), biggest(normal(1, *q.shape))
    steps = 2 * (width + 3) * (width * Q * K + 1) + 4 * n + 2 * width + m + 8
    back = 2 * width * g * V
    for without, within, size in zip(*runs[:2], [V, back * K, back * Q * m, g * m]):
        assert_near(within, without, roundings(steps, size, dtype))


@both_ways
@given(st.data(), seeds, st.booleans())
def test_each_sequence_has_its_own_row_of_the_mask(plain, data, seed, causal):
    q, k, v, mask = padded(data, seed, causal)
    order = data.draw(st.permutations(range(len(mask))))

    def run(*arrays):
        f = lambda *qkv: ops.attention(*qkv, heads=2, causal=causal, mask=arrays[3])  # noqa: E731
        return ml.asnumpy(f(*map(Tensor, arrays[:3])))

    with ops.plain(plain):
        assert same_bytes(run(*(x[order] for x in (q, k, v, mask))), run(q, k, v, mask)[order])


@both_ways
@pytest.mark.parametrize(
    "mask",
    [
        np.ones((2, 2), bool),
        np.ones((3, 2), bool),
        np.ones(3, bool),
        np.array([[True] * 3, [False] * 3]),
    ],
    ids=["keys", "turned", "one row", "nothing left"],
)
def test_attention_refuses_a_mask_that_does_not_fit(mask, plain):
    x = Tensor(normal(0, 2, 3, 4))
    shape = re.escape(str(mask.shape))
    message = rf"attention: mask is {shape}: it must be \(2, 3\), with a true in"
    with pytest.raises(ValueError, match=message), ops.plain(plain):
        ops.attention(x, x, x, heads=2, mask=mask)


@both_ways
@given(seeds, dtypes)
def test_a_query_that_sees_nothing_is_finite(plain, seed, dtype):
    mask = np.arange(5) >= np.array([[3], [0]])  # padding on the left
    f = lambda *qkv: ops.attention(*qkv, heads=2, mask=mask)  # noqa: E731
    with ops.plain(plain):
        value, grads = value_and_grads(
            f, *(normal(seed + i, 2, 5, 4, dtype=dtype) for i in range(3))
        )
    assert all(np.isfinite(x).all() for x in [value, *grads])


@both_ways
def test_attention_of_huge_scores_is_finite_and_picks_the_largest(plain):
    q = np.full((1, 1, 1), 1e3)
    k = np.array([[[0.0], [1e3], [-1e3]]])  # the first one alone would need no shift
    v = np.array([[[1.0], [2.0], [3.0]]])
    with ops.plain(plain):
        value, grads = value_and_grads(lambda *qkv: ops.attention(*qkv, heads=1), q, k, v)
    assert value.item() == 2 and all(np.isfinite(grad).all() for grad in grads)


@both_ways
@pytest.mark.parametrize(
    ("shapes", "heads", "causal"),
    [
        ([(1, 2, 4), (1, 2, 4), (1, 2, 4)], 3, False),
        ([(1, 2, 4), (1, 3, 4), (1, 2, 4)], 2, False),
        ([(1, 2, 4), (2, 2, 4), (2, 2, 4)], 2, False),
        ([(1, 2, 4), (1, 2, 6), (1, 2, 6)], 2, False),
        ([(1, 3, 4), (1, 2, 4), (1, 2, 4)], 2, True),
        ([(1, 2, 4), (1, 0, 4), (1, 0, 4)], 2, True),
    ],
)
def test_attention_refuses_shapes_that_do_not_fit(shapes, heads, causal, plain):
    q, k, v = (Tensor(np.zeros(shape)) for shape in shapes)
    message = "attention: q is .* m at most n" if causal else "attention: q is .* a multiple of"
    with pytest.raises(ValueError, match=message), ops.plain(plain):
        ops.attention(q, k, v, heads=heads, causal=causal)


@both_ways
def test_attention_to_no_key_at_all_is_refused(plain):
    q, none = Tensor(np.ones((1, 2, 4))), Tensor(np.ones((1, 0, 4)))
    with pytest.raises(ValueError), ops.plain(plain):
        ops.attention(q, none, none, heads=2, causal=False)


# Linear layers: sums of products, so the sizes are the same op on absolute values


@given(st.data(), seeds, dtypes, st.booleans(), st.booleans(), st.floats(0.25, 3))
def test_lora_linear_equals_a_linear_and_two_more(data, seed, dtype, bias, masked, scale):
    k, d, r = data.draw(sizes), data.draw(sizes), data.draw(small)
    lead = data.draw(hnp.array_shapes(max_dims=2, max_side=4))
    keep = np.random.default_rng(seed).integers(0, 2, (*lead, k)) * 2.0
    shapes = [(*lead, k), (d, k), (r, k), (d, r)] + [(d,)] * bias
    arrays = [normal(seed + i, *shape, dtype=dtype) for i, shape in enumerate(shapes)]

    def fused(x, W, A, B, b=None):
        return ops.lora_linear(x, W, b, A, B, on_device(keep, x) if masked else None, scale=scale)

    def twin(x, W, A, B, b=None):
        into = x * on_device(keep, x) if masked else x
        return ops.linear(x, W, b) + ops.linear(ops.linear(into, A), B) * scale

    value, grads = value_and_grads(fused, *arrays)
    wanted, wanted_grads = value_and_grads(twin, *arrays)
    size, grad_sizes = value_and_grads(twin, *map(np.abs, arrays), weigh=np.abs)
    steps = k + d + r + math.prod(lead) + 8
    assert_near(value, wanted, roundings(steps, size, dtype))
    for grad, wanted_grad, size in zip(grads, wanted_grads, grad_sizes):
        assert_near(grad, wanted_grad, roundings(steps, size, dtype))


@pytest.mark.parametrize("trained", ["x", "A", "B"])
def test_lora_linear_computes_with_no_memory_that_nothing_was_written_to(trained, monkeypatch):
    shapes = {"x": (600, 3), "W": (4, 3), "A": (2, 3), "B": (4, 2)}
    arrays = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}

    def run():
        t = {name: Tensor(array, requires_grad=name == trained) for name, array in arrays.items()}
        ops.lora_linear(t["x"], t["W"], None, t["A"], t["B"], scale=2.5).sum().backward()
        return ml.asnumpy(t[trained].grad)

    wanted, full = run(), ml.xp.full
    monkeypatch.setattr(ml.xp, "empty", lambda shape, dtype: full(shape, 1.7e308, dtype=dtype))
    assert same_bytes(run(), wanted)  # an overflow would be a warning, and warnings are errors


@given(linear_case=st.data(), dtype=dtypes)
def test_linear_equals_a_product_with_the_transpose(linear_case, dtype):
    _, arrays = linear(linear_case.draw)
    arrays = [a.astype(dtype) for a in arrays]
    arrays[0] = arrays[0].reshape(-1, arrays[0].shape[-1])

    def twin(x, W, b=0.0):
        return x @ W.T + b

    value, grads = value_and_grads(ops.linear, *arrays)
    wanted, wanted_grads = value_and_grads(twin, *arrays)
    size, grad_sizes = value_and_grads(twin, *map(np.abs, arrays), weigh=np.abs)
    steps = sum(arrays[0].shape) + len(arrays[1]) + 2
    for got, want, most in zip([value, *grads], [wanted, *wanted_grads], [size, *grad_sizes]):
        assert_near(got, want, roundings(steps, most, dtype))


@both_ways
@pytest.mark.parametrize(
    ("x", "W", "message"),
    [
        ((2, 3), (5, 4), "x has 3 features, W takes 4"),
        ((2, 3), (3,), "x has 3 features, W takes 3"),
        ((2, 3), (1, 5, 3), "x has 3 features, W takes 3"),
        ((), (5, 1), "x has 0 features, W takes 1"),
    ],
)
def test_linear_layers_refuse_shapes_that_do_not_fit(x, W, message, plain):
    x, W, A, B = (Tensor(np.ones(shape)) for shape in (x, W, (2, 3), (5, 2)))
    with ops.plain(plain):
        with pytest.raises(ValueError, match=f"^linear: x is .*{message}"):
            ops.linear(x, W)
        with pytest.raises(ValueError, match=f"^lora_linear: x is .*{message}"):
            ops.lora_linear(x, W, None, A, B, scale=1.0)


@pytest.mark.parametrize("shapes", [((3,), (3, 2)), ((2, 3), (3,)), ((), (1, 1)), ((2, 3), (2, 3))])
def test_matmul_refuses_vectors_and_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match=r"^matmul: x is .* needs \(\.\.\., n, k\) and"):
        ops.matmul(*(Tensor(np.ones(shape)) for shape in shapes))


@pytest.mark.parametrize("name", ["sum", "mean"])
@given(st.data(), seeds, solid)
def test_sums_and_means_drop_their_axes_and_no_others(name, data, seed, shape):
    every = st.permutations(range(len(shape))).map(lambda axes: tuple(axes[:2]))
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1) | every)
    x = normal(seed, *shape)
    wanted = np.asarray(getattr(np, name)(x, axis=axis))
    assert_near(
        ml.asnumpy(OPS[name](Tensor(x), axis=axis)), wanted, roundings(x.size, biggest(x), "f8")
    )


# Embedding and dropout


@given(seeds, st.sampled_from(["float32", "float64"]), shapes)
def test_rows_of_a_narrow_table_come_in_the_dtype_asked_for(seed, dtype, shape):
    at = np.random.default_rng(seed).integers(0, 7, shape)
    half = normal(seed, 7, 3, dtype="float16")
    table = Tensor(half)
    assert same_bytes(
        ml.asnumpy(ops.embedding(table, at, dtype=dtype).data), half.astype(dtype)[at]
    )
    assert same_bytes(ml.asnumpy(ops.embedding(table, at).data), half[at])
    _, (grad,) = value_and_grads(lambda W: ops.embedding(W, at, dtype=dtype), half)
    assert grad.dtype == "float16", "the table's own"


@given(seeds, sizes, small, shapes, st.sampled_from(["int64", "int32", "int8"]))
def test_embedding_picks_rows_and_equal_ids_add_up(seed, n, d, shape, dtype):
    W, ids = normal(seed, n, d), np.random.default_rng(seed).integers(0, n, shape).astype(dtype)
    value, (grad,) = value_and_grads(lambda t: ops.embedding(t, ids), W)
    assert same_bytes(value, W[ids])
    wanted = np.zeros_like(W)
    np.add.at(wanted, ids.reshape(-1), normal(1, *shape, d).reshape(-1, d))
    assert_near(
        grad, wanted, roundings(ids.size + 1, ids.size * biggest(normal(1, *shape, d)), "f8")
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_embedding_takes_unsigned_ids(dtype):
    ids = np.array([2, 0, 0], dtype)
    _, (grad,) = value_and_grads(lambda t: ops.embedding(t, ids), normal(0, 3, 1))
    g = normal(1, 3, 1)
    assert_near(grad, np.stack([g[1] + g[2], [0.0], g[0]]), roundings(1, 4, "f8"))


@given(st.integers(3, 10**9), st.booleans(), st.booleans())
def test_embedding_names_an_id_that_is_out_of_range(far, negative, lists):
    bad = -far if negative else far
    ids = [[0, 1], [bad, 2]] if lists else np.array(bad)
    with pytest.raises(ValueError, match=f"embedding: id {bad} is out of range.* rows 0 to 2"):
        ops.embedding(Tensor(normal(0, 3, 2)), ids)


@pytest.mark.parametrize("bad", [-1, 3])
def test_embedding_accepts_the_last_row_and_not_the_next(bad):
    W = normal(0, 3, 2)
    assert same_bytes(ml.asnumpy(ops.embedding(Tensor(W), [0, 2])), W[[0, 2]])
    with pytest.raises(ValueError, match=f"id {bad} "):
        ops.embedding(Tensor(W), [0, bad])


@pytest.mark.parametrize("ids", [[0.0, 1.0], [True, False], np.zeros(2, "float32")])
def test_embedding_refuses_ids_that_are_not_integers(ids):
    with pytest.raises(TypeError, match=r"embedding: ids must be integers, not (float|bool)"):
        ops.embedding(Tensor(normal(0, 3, 2)), ids)


@given(seeds, st.floats(0.01, 0.95), dtypes)
def test_dropout_keeps_the_expectation(seed, rate, dtype):
    n = 20_000
    x = np.ones((4, n // 4), dtype)
    y = ml.asnumpy(ops.dropout(Tensor(x), rate, np.random.default_rng(seed)))
    assert set(np.unique(y)) <= {0, np.dtype(dtype).type(1 / (1 - rate))} and y.dtype == x.dtype
    sigma = math.sqrt(rate / (1 - rate) / n)  # of the mean; 6 sigma: one seed in 10⁹
    assert abs(y.mean(dtype=np.float64) - 1) <= 6 * sigma + np.finfo(dtype).eps


@given(seeds, st.floats(0.1, 0.9))
def test_dropout_drops_the_gradient_of_what_it_dropped(seed, rate):
    f = lambda t: ops.dropout(t, rate, np.random.default_rng(seed))  # noqa: E731
    value, (grad,) = value_and_grads(f, np.ones((5, 4)))
    assert same_bytes(grad, normal(1, 5, 4) * value)


def test_a_mask_of_rate_zero_keeps_everything(rng):
    assert mask(rng, 500, 0.0).tolist() == [1] * 500


def test_dropout_of_rate_zero_is_off_and_draws_nothing(rng):
    x = Tensor(np.ones(3))
    before = rng.bit_generator.state
    assert ops.dropout(x, 0.0, rng) is x
    assert rng.bit_generator.state == before


def test_a_mask_is_the_hash_that_it_says():
    one, two = (int(key) for key in np.random.default_rng(5).integers(1 << 32, size=2))

    def fate(i):
        i ^= one
        i = i * 0x85EBCA6B % 2**32
        i ^= i >> 13
        i ^= two
        i = i * 0xC2B2AE35 % 2**32
        i ^= i >> 16
        return i * 0x85EBCA6B % 2**32 >= round(0.3 * 2**32)

    factors = mask(np.random.default_rng(5), 500, 0.3)
    assert (factors > 0).tolist() == [fate(i) for i in range(500)]


@pytest.mark.parametrize("rows", [
    slice(1, 4), slice(0, 6), slice(5, 2), slice(None, None, 2),
    slice(None, None, -1), slice(4, None, -2), slice(-2, 0, -1),
])
def test_rows_of_a_slice_get_their_gradient_and_no_other(rows):
    W, expected = normal(0, 6, 2), np.zeros((6, 2))
    expected[rows] = g = normal(1, *W[rows].shape)
    (leaf,) = leaves(W)
    value = ops.embedding(leaf, rows)
    (value * ml.backend.asarray(g)).sum().backward()
    assert np.array_equal(ml.asnumpy(value), W[rows])
    assert np.array_equal(ml.asnumpy(leaf.grad), expected)
    leaf.data[...] = 7
    assert (ml.asnumpy(value) == 7).all(), "a slice of rows copies nothing"


def test_layer_norms_gradient_of_halves_does_not_overflow():
    x, gain = normal(0, 3, 8, dtype="float16") * np.float16(100), np.full(8, 4, "float16")
    g = np.where(np.arange(8) % 2, 30000, 100).astype("float16")
    leaf = Tensor(x, requires_grad=True)
    y = ops.layer_norm(leaf, Tensor(gain), Tensor(np.zeros(8, "float16")))
    ((y - y.data) * ml.backend.asarray(g)).sum().backward()
    grad = np.abs(ml.asnumpy(leaf.grad).astype("float64"))
    assert np.isfinite(grad).all() and grad.max() > 100


@pytest.mark.parametrize(("dtype", "more", "within"), [("float16", 0, 2e-2), ("float32", 8, 1e-4)])
def test_attention_of_scores_that_need_a_shift(dtype, more, within):
    q, k, v = ((normal(i, 1, 5, 4) * 0.2 + 3.2 + more).astype(dtype) for i in range(3))
    out = ops.attention(Tensor(q), Tensor(k), Tensor(v), heads=1)
    s = q[0].astype("float64") @ k[0].T.astype("float64") / 2
    assert s.max() > math.log(np.finfo(dtype).max)
    s += np.triu(np.full((5, 5), -np.inf), 1)
    p = np.exp(s - s.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    wanted = p @ v[0].astype("float64")
    np.testing.assert_allclose(ml.asnumpy(out)[0], wanted, rtol=within)
    assert str(out.dtype) == dtype


def mask(rng, n=1 << 16, rate=0.5, dtype="float32"):
    return ml.asnumpy(ops.dropout_mask((n,), rate, rng, np.dtype(dtype)))


def sigmas(x: np.ndarray) -> float:
    """Return the distance of the sum of independent ±1 from 0, in standard deviations."""
    return abs(float(x.sum())) / math.sqrt(x.size)


def test_masks_are_as_good_as_random():
    rng = np.random.default_rng(0)
    signs = [mask(rng) - 1 for _ in range(40)]  # ±1, equally likely
    assert max(map(sigmas, signs)) < 4
    for step in (1, 2, 3, 8, 64, 256, 4096):  # a number and its neighbours, in every direction
        assert max(sigmas(s[:-step] * s[step:]) for s in signs) < 4
    assert max(sigmas(a * b) for i, a in enumerate(signs) for b in signs[:i]) < 5
    for rate in (0.01, 0.1, 0.9):
        share = np.mean([mask(rng, rate=rate) > 0 for _ in range(20)])
        assert abs(share - (1 - rate)) < 4 * math.sqrt(rate * (1 - rate) / (20 << 16))


def test_a_mask_takes_two_numbers_from_its_generator(rng):
    mask(rng)
    other = np.random.default_rng(0)
    other.integers(1 << 32, size=2)
    assert rng.random() == other.random()


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.nan])
def test_dropout_names_a_rate_that_is_none(rate, rng):
    with pytest.raises(ValueError, match=rf"dropout: the rate must be in \[0, 1\), not {rate}"):
        ops.dropout(Tensor(np.ones(3)), rate, rng)


# Small edges


@pytest.mark.parametrize("form", ["tanh", "none"])
def test_gelu_of_a_number_is_that_of_an_array(form):
    # of a 0-d array, x * x is a scalar, which `out=` would refuse
    wanted, (slope,) = value_and_grads(
        lambda t: ops.gelu(t, approximate=form).sum(), np.array([0.7])
    )
    value, (grad,) = value_and_grads(lambda t: ops.gelu(t, approximate=form), np.array(0.7))
    assert (value, grad) == (wanted, slope[0])


def test_relu_has_slope_zero_at_zero():
    value, (grad,) = value_and_grads(ops.relu, np.array([0.0, -0.0]))
    assert not value.any() and not grad.any()


def test_relu_of_minus_infinity_is_zero():
    # x * (x > 0) would be -inf * 0
    value = ml.asnumpy(ops.relu(Tensor([-np.inf, np.inf])))
    assert value.tolist() == [0, np.inf]


@pytest.mark.parametrize("axes", [(1, 2, 0), (2, 0, 1), (0, 2, 1), None])
def test_transpose_turns_the_gradient_back(axes):
    value, (grad,) = value_and_grads(lambda t: ops.transpose(t, axes=axes), normal(0, 2, 3, 4))
    assert same_bytes(value, np.transpose(normal(0, 2, 3, 4), axes).copy())
    assert np.array_equal(np.transpose(grad, axes), normal(1, *value.shape))


def test_getitem_refuses_arrays_of_ids():
    with pytest.raises(ValueError, match=r"getitem: x is \(3,\): .*use embedding"):
        Tensor(normal(0, 3))[np.array([0, 1])]


def test_getitem_takes_the_integers_of_numpy():
    assert Tensor([1.0, 2.0])[np.int64(1)].item() == 2


def test_iteration_over_a_tensor_ends():
    assert [row.shape for row in Tensor(normal(0, 3, 2))] == [(2,)] * 3


def test_the_mean_of_nothing_raises():
    with pytest.raises(ValueError, match=r"mean: x is \(0, 3\): the mean of an empty array"):
        ops.mean(Tensor(np.zeros((0, 3))))


@both_ways
@pytest.mark.parametrize(("dtype", "ignored"), [("uint8", 255), ("uint64", 7), ("uint64", -100)])
def test_unsigned_targets_are_those_of_signed_ones(dtype, ignored, plain):
    targets = np.array([0, 2, max(ignored, 0), 1])

    def run(targets):
        with ops.plain(plain):
            f = lambda z: ops.cross_entropy(z, targets, ignore_index=ignored)  # noqa: E731
            return value_and_grads(f, normal(0, 4, 3))

    (value, (grad,)), (wanted, (slope,)) = run(targets.astype(dtype)), run(targets)
    assert same_bytes(value, wanted) and same_bytes(grad, slope)


@both_ways
def test_an_ignored_target_is_ignored_where_logits_are_minus_infinity(plain):
    z = normal(0, 2, 3)
    z[1, [0, 2]] = -np.inf  # whichever class replaces the ignored one
    with ops.plain(plain), np.errstate(all="ignore"):
        value, (grad,) = value_and_grads(lambda t: ops.cross_entropy(t, [1, -100]), z)
        wanted, (slope,) = value_and_grads(lambda t: ops.cross_entropy(t, [1]), z[:1])
    assert_near(value, wanted, roundings(9, 9, "float64"))
    assert_near(grad, np.vstack([slope, np.zeros((1, 3))]), roundings(9, 9, "float64"))


# The tape keeps only the arrays that the rules of trained inputs close over


def kept_alive(f, rows: int = 2) -> bool:
    """Does the tape behind f(h) keep h's array alive after h itself is deleted?"""
    h = Tensor(normal(0, rows, 3), requires_grad=True) + 1.0
    array = weakref.ref(h.data)
    out = f(h)
    del h
    assert out.requires_grad
    return array() is not None


W, b, A, B = normal(1, 3, 3), normal(2, 3), normal(3, 2, 3), normal(4, 3, 2)


@both_ways
@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda h: ops.linear(h, Tensor(W), Tensor(b)), False),
        (lambda h: ops.linear(h, Tensor(W, True)), True),
        (lambda h: h @ Tensor(W), False),
        (lambda h: h @ Tensor(W, True), True),
        (lambda h: h * Tensor(b), False),
        (lambda h: h * Tensor(b, True), True),
        (lambda h: h + Tensor(b, True), False),
        (lambda h: h - Tensor(b, True), False),
        (lambda h: h / Tensor(b, True), False),
        (lambda h: ops.layer_norm(h, Tensor(b), Tensor(b)), False),
        (lambda h: ops.layer_norm(h, Tensor(b, True), Tensor(b, True)), False),
        (lambda h: ops.lora_linear(h, *map(Tensor, (W, b, A)), Tensor(B, True), scale=2.0), False),
        (lambda h: ops.lora_linear(h, *map(Tensor, (W, b)), *leaves(A, B), scale=2.0), True),
        (
            lambda h: ops.lora_linear(
                h, *map(Tensor, (W, b)), *leaves(A, B), ml.xp.ones((2, 3)), scale=2.0
            ),
            False,
        ),
        (ops.gelu, "as it is printed"),
        (lambda h: ops.gelu(h, approximate="none"), "as it is printed"),
        (ops.softmax, False),
        (ops.log_softmax, False),
        (ops.exp, False),
        (ops.tanh, False),
        (ops.sqrt, False),
        (ops.relu, False),
        (ops.sum, False),
        (ops.mean, False),
        (lambda h: ops.cross_entropy(h, [0, 1]), False),
        (ops.log, True),
    ],
)
def test_the_tape_keeps_an_input_only_where_a_rule_needs_it(f, expected, plain):
    with ops.plain(plain):
        assert kept_alive(f) == (plain if expected == "as it is printed" else expected)


@both_ways
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("needed", [False, True])
def test_the_tape_keeps_a_computed_W_only_for_the_gradient_of_x(adapted, needed, plain):
    x = Tensor(normal(0, 2, 3), requires_grad=needed)
    there = leaves(A, B)

    def f(h):
        if adapted:
            return ops.lora_linear(x, h, None, *there, scale=2.0)
        return ops.linear(x, h)

    with ops.plain(plain):
        assert kept_alive(f, 3) == needed


@both_ways
def test_the_bias_alone_keeps_nothing(plain):
    x = Tensor(normal(0, 2, 3))
    array = weakref.ref(x.data)
    with ops.plain(plain):
        out = ops.linear(x, Tensor(W), Tensor(b, requires_grad=True))
    del x
    assert out.requires_grad and array() is None


@pytest.mark.parametrize("size", [30, 45, 100, 200, 3000])
def test_attention_of_any_scores_is_its_formula_in_single_precision(size):
    # above 40 the scores are shifted, below they are not: test both sides, and near 40
    q, k, v = (normal(i, 1, 6, 4, dtype="float32") for i in range(3))
    norms = [np.sqrt((x * x).sum(-1)).max() for x in (q, k)]
    q *= np.float32(size * 2 / (norms[0] * norms[1]))  # the largest |q·k| / √d is about size
    y = ml.asnumpy(ops.attention(Tensor(q), Tensor(k), Tensor(v), heads=1).data)
    s = q[0].astype("float64") @ k[0].T.astype("float64") / 2
    s[np.triu_indices(6, 1)] = -np.inf
    p = np.exp(s - s.max(-1, keepdims=True))
    wanted = p / p.sum(-1, keepdims=True) @ v[0]
    error = 8 * size * np.finfo("float32").eps * np.abs(v).max()  # of the exponents, mostly
    assert np.abs(y[0] - wanted).max() <= error


# Sums over many halves


@given(st.integers(2049, 70_000), st.integers(0, 9))
@settings(max_examples=4)
def test_a_sum_over_many_halves_is_made_in_float32(n, seed):
    """In halves 2048 + 1 is 2048, and 65520 is inf. Each op that sums, both ways, value and
    gradient: as in float64, but for the rounding of the result and of the terms."""
    x = np.abs(normal(seed, n, 2)).astype("float16") + np.float16(0.5)
    W, b, g = (np.abs(normal(i, *shape)).astype("float16") for i, shape in
               enumerate([(3, 2), (3,), (2,)]))
    ids = np.zeros(n, int)
    cases = {
        "sum": (lambda x: x[:100].sum(), x),
        "mean": (lambda x: x.mean(), x),
        "mean along": (lambda x: x.mean(axis=0).sum(), x),
        "softmax": (lambda t: (ops.softmax(t, axis=0) * Tensor(x)).sum(), x),
        "log softmax": (lambda x: ops.log_softmax(x, axis=0).mean(), x),
        "softmax of a row": (lambda t: (ops.softmax(t.T) * Tensor(x.T)).sum(), x),
        "broadcast": (lambda b: (Tensor(x[:, :1]) * b).mean() * 2.0, b),
        "added": (lambda b: (Tensor(x[:, :1]) + b).mean(), b),
        "bias": (lambda b: ops.linear(Tensor(x), Tensor(W), b).mean(), b),
        "weight": (lambda W: ops.linear(Tensor(x), W, Tensor(b)).mean(), W),
        "shift": (lambda g: ops.layer_norm(Tensor(x), Tensor(g.data * 0 + 1), g).mean(), g),
        "gain": (lambda g: (ops.layer_norm(Tensor(x), g, g) * Tensor(x)).mean(), g),
        "A": (lambda A: ops.lora_linear(
            Tensor(x), Tensor(W), None, A, Tensor(W[:, :1]), scale=1.0).mean(), W[:1]),
        "B": (lambda B: ops.lora_linear(
            Tensor(x), Tensor(W), None, Tensor(W[:1]), B, scale=1.0).mean(), W[:, :1]),
        "table": (lambda W: (ops.embedding(W, ids) * Tensor(x[:, :1])).mean(), W[:1]),
        "uses": (lambda b: ops.concat(*[b] * (n // 10)).mean(), b),
        "head": (lambda x: ops.cross_entropy(x, np.arange(n) % 2), x),
        "classes": (lambda x: ops.cross_entropy(x.T, np.array([0, n - 1])), x),
    }
    for plain in (True, False):
        for name, (f, start) in cases.items():
            half, wide = (Tensor(start.astype(d), requires_grad=True) for d in ("float16", "f8"))
            with ml.plain(plain):
                value = f(half)
                (value * 64.0).backward()
                exact = f_exact(f, wide)
            assert abs(value.item() - exact) <= 4e-3 * max(1, abs(exact)), (name, plain)
            wanted = ml.asnumpy(wide.grad)
            error = np.abs(ml.asnumpy(half.grad) - wanted).max()
            assert error <= 8e-3 * np.abs(wanted).max() + 64 * 2**-24, (name, plain)


def f_exact(f, x):
    """The value of f and 64 x.grad in float64. The constants in f stay halves, which are exact.

    64, as for the halves: where an op computes in x's half all the same, 1/n would be too small.
    """
    value = f(x)
    (value * 64.0).backward()
    return value.item()


@both_ways
def test_the_gradients_of_A_and_B_add_many_blocks_of_halves(plain):
    n = 256 * 3000  # their sum in halves stops at 32, where 1/60 more is nothing
    x, W = np.full((n, 2), 0.05, "float16"), np.zeros((2, 2), "float16")
    A, B = (Tensor(np.ones(shape, "float16"), requires_grad=True) for shape in ((1, 2), (2, 1)))
    with ml.plain(plain):
        y = ops.lora_linear(Tensor(x), Tensor(W), None, A, B, scale=1.0)
        (y.mean() * 1000.0).backward()
    for grad in (A.grad, B.grad):
        np.testing.assert_allclose(ml.asnumpy(grad).astype(float), 1000 * float(x[0, 0]), rtol=5e-3)


def test_equal_maxima_share_the_gradient():
    t = Tensor(np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), requires_grad=True)
    t.max(axis=1).sum().backward()
    np.testing.assert_array_equal(ml.asnumpy(t.grad), [[0.5, 0.5, 0], [0, 1, 0]])


def test_gradients_of_halves_add_up_in_float32_over_many_backward_passes():
    b = Tensor(np.ones(1, "float16"), requires_grad=True)
    for _ in range(2100):
        b.sum().backward()
    assert b.grad.item() == 2100
