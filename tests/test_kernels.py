"""Every kernel of the table equals its plain op: value and gradients, for any cut of its work."""

import inspect
import itertools
import math
import weakref
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import (
    adapted,
    assert_near,
    ids,
    in_pieces,
    normal,
    roundings,
    same_bytes,
    seeds,
    sizes,
)

import minilora as ml
from minilora import Tensor, kernels, ops
from minilora.backend import asarray, quantised, threads
from minilora.backend.quantised import LEVELS
from minilora.kernels import TABLE
from minilora.kernels.products import widened
from minilora.training.adam import adam

DTYPES = st.sampled_from(["float16", "float32", "float64"])
FLOATS_AND_CODES = ["float16", "float32", "float64", "uint8"]


class Case(NamedTuple):
    """An op's arrays and settings, and the allowed distance of two correct results.

    allowed(arrays, g), all of them in float64: (roundings of the inputs' dtype that the kernel may
    make where that is a half, roundings of its sums, sizes of the value and of each gradient).
    """

    op: Callable
    arrays: list  # host arrays of floats, None, integers
    settings: dict
    allowed: Callable


def biggest(x: np.ndarray) -> float:
    return float(np.abs(x).max(initial=0.0))


def rows_of(draw) -> tuple[int, ...]:
    """Draw leading axes, sometimes with more rows than a block of a thin product has."""
    return draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=4) | st.just((300,)))


def sums(op, settings, steps, halves):
    """Return `allowed` for sums of products: the sizes are the same op on absolute values."""

    def allowed(arrays, g):
        value, grads = plain(op, [x if x is None else abs(x) for x in arrays], settings, abs(g))
        return halves, steps + math.prod(g.shape[:-1]), [value, *grads]

    return allowed


def linear(draw):
    lead, k, d, seed = rows_of(draw), draw(sizes), draw(sizes), draw(seeds)
    b = normal(seed + 2, d) if draw(st.booleans()) else None
    arrays = [normal(seed, *lead, k), normal(seed + 1, d, k), b]
    return Case(ops.linear, arrays, {}, sums(ops.linear, {}, k + d + 8, 2))


def quantised_linear(draw):
    lead, k, d, seed = rows_of(draw), draw(sizes), draw(sizes) + 30, draw(seeds)
    Q = quantised(ml.backend.asarray(normal(seed + 1, d, k)), draw(st.sampled_from([*LEVELS])))
    b = normal(seed + 2, d) if draw(st.booleans()) else None
    arrays, how = [normal(seed, *lead, k), *map(ml.asnumpy, Q.arrays), b], {"shape": (d, k)}
    return Case(ops.quantised_linear, arrays, how, sums(ops.quantised_linear, how, k + d + 8, 5))


def lora_linear(draw):
    lead, k, d, r, seed = rows_of(draw), draw(sizes), draw(sizes), draw(sizes), draw(seeds)
    scale, ones = draw(st.floats(0.25, 3)), np.random.default_rng(seed).integers(0, 2, (*lead, k))
    b = normal(seed + 2, d) if draw(st.booleans()) else None
    mask = ones * 2.0 if draw(st.booleans()) else None
    shapes = [(*lead, k), (d, k), (r, k), (d, r)]
    x, W, A, B = (normal(seed + i, *shape) for i, shape in enumerate(shapes))
    settings = {"scale": scale}
    allowed = sums(ops.lora_linear, settings, k + d + r + 8, 8)
    return Case(ops.lora_linear, [x, W, b, A, B, mask], settings, allowed)


def layer_norm(draw):
    shape, seed, eps = draw(hnp.array_shapes(max_dims=3, max_side=5)), draw(seeds), 0.1
    d, rows = shape[-1], math.prod(shape[:-1])

    def allowed(arrays, g):
        # x - mean is off by (d + 2)·eps·|x|, which 1/√(variance + eps) magnifies, in dx twice
        x, gain, shift = arrays
        rate = 1 / math.sqrt(x.var(axis=-1).min(initial=np.inf) + eps)
        off, back = 1 + biggest(x) * rate, (1 + biggest(gain)) * biggest(g)
        size = [off**2 * biggest(gain) + biggest(shift), back * rate * off**3 * d]
        return 1, 4 * d + 16 + rows, [*size, back * off**2 * rows, back * rows]

    arrays = [normal(seed + i, *s) for i, s in enumerate([shape, (d,), (d,)])]
    return Case(ops.layer_norm, arrays, {"eps": eps}, allowed)


def rms_norm(draw):
    shape, seed, eps = draw(hnp.array_shapes(max_dims=3, max_side=5)), draw(seeds), 0.1
    d, rows = shape[-1], math.prod(shape[:-1])

    def allowed(arrays, g):
        x, gain = arrays
        rate = 1 / math.sqrt((x * x).mean(axis=-1).min(initial=np.inf) + eps)
        off, back = 1 + biggest(x) * rate, (1 + biggest(gain)) * biggest(g)
        return 1, 2 * d + 16 + rows, [off * biggest(gain), back * rate * off**2 * d,
                                      back * off * rows]

    return Case(ops.rms_norm, [normal(seed, *shape), normal(seed + 1, d)], {"eps": eps}, allowed)


def swiglu(draw):
    shape, seed = draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=5)), draw(seeds)

    def allowed(arrays, g):
        x, y, g = (1 + biggest(a) for a in (*arrays, g))
        return 3, 20 + 4 * x, [x * y, 2 * x * y * g, x * g]  # e^-x is off by x roundings

    arrays = [normal(seed, *shape) * 2, normal(seed + 1, *shape)]
    return Case(ops.swiglu, arrays, {}, allowed)


def gelu(draw):
    x = normal(draw(seeds), *draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=5))) * 2

    def allowed(arrays, g):
        top = 1 + biggest(arrays[0])
        inner = math.sqrt(2 / math.pi) * (top + 0.044715 * top**3)  # u is off by 4·eps·u,
        slope = 1 + 0.134145 * top**2  # which e^u, and 1 - tanh² twice, magnify
        return 3, 12 + 8 * inner + 2 * top * top, [top, biggest(g) * (1 + top * slope)]

    settings = {"approximate": draw(st.sampled_from(["tanh", "none"]))}
    return Case(ops.gelu, [x], settings, allowed)


def cross_entropy(draw):
    shape, seed = draw(hnp.array_shapes(max_dims=3, max_side=5)), draw(seeds)
    targets = np.random.default_rng(seed).integers(0, shape[-1], shape[:-1])
    if targets.size > 1 and draw(st.booleans()):
        targets[(0,) * targets.ndim] = -100

    def allowed(arrays, g):
        top, d = biggest(arrays[0]), shape[-1]
        steps = 2 * top + 2 * d + arrays[0].size // d + 8
        return 1, steps, [1 + 2 * top + math.log(d), 2 * biggest(g)]

    return Case(ops.cross_entropy, [normal(seed, *shape) * 2, targets], {}, allowed)


def attention(draw):
    batch, m, past, heads, width = (draw(sizes) for _ in range(5))
    causal, seed, size = draw(st.booleans()), draw(seeds), draw(st.sampled_from([1.0, 6.0]))
    n = m + past - 1 if causal or draw(st.booleans()) else past
    mask = None
    if draw(st.booleans()):
        mask = np.random.default_rng(seed).random((batch, n)) < 0.6
        mask[:, 0] = True  # every query sees a key
    group = draw(st.integers(1, 3))
    widths = [heads * group * width, heads * width, heads * width]
    arrays = [normal(seed + i, batch, t, w) * size
              for i, (t, w) in enumerate(zip([m, n, n], widths))]

    def allowed(arrays, g):
        # a score is off by (width + 3) roundings of its terms, a weight by twice that and n
        (Q, K, V), G, scale = map(biggest, arrays), biggest(g), 1 / math.sqrt(width)
        steps = 2 * (width + 3) * (width * Q * K * scale + 1) + 4 * n + 2 * width + m * group + 8
        back = 2 * width * G * V * scale  # |P (dP - Σ P dP)| / √width, summed over the keys
        return 1, steps, [V, back * K, back * Q * m * group, G * m * group]

    settings = {"heads": heads * group, "kv_heads": heads, "causal": causal, "mask": mask}
    return Case(ops.attention, arrays, settings, allowed)


CASES = {
    ops.linear: linear,
    ops.quantised_linear: quantised_linear,
    ops.lora_linear: lora_linear,
    ops.layer_norm: layer_norm,
    ops.rms_norm: rms_norm,
    ops.gelu: gelu,
    ops.swiglu: swiglu,
    ops.cross_entropy: cross_entropy,
    ops.attention: attention,
}
FUNCTIONS = {adam}  # functions of arrays, not ops: they have their own tests
cuts = st.fixed_dictionaries(
    {"piece": st.sampled_from([1, 7, 1 << 18]), "queries": st.sampled_from([1, 3, 64])}
)


def floating(arrays) -> list[bool]:
    return [x is not None and x.dtype.kind == "f" for x in arrays]


def placed(arrays) -> list[bool]:
    """Return which of the arrays are on the device: floats and codes, and not targets or ids."""
    return [x is not None and x.dtype in FLOATS_AND_CODES for x in arrays]


def trainable(op, arrays) -> list[bool]:
    """Return which of the arrays may require a gradient: a mask and W's codes may not."""
    not_these = {ops.lora_linear: {5}, ops.quantised_linear: {1, 2, 3}}.get(op, ())
    return [f and i not in not_these for i, f in enumerate(floating(arrays))]


def plain(op, arrays, settings, g, needs=None):
    """Return (value, gradients) of the plain op; None where no gradient is needed."""
    needs = trainable(op, arrays) if needs is None else needs
    inputs = [Tensor(x, need) if on else x for x, need, on in zip(arrays, needs, placed(arrays))]
    with ops.plain():
        out = op(*inputs, **settings)
    if any(needs):
        (out * ml.backend.asarray(g)).sum().backward()
    grads = [ml.asnumpy(x.grad) if need else None for x, need in zip(inputs, needs)]
    return ml.asnumpy(out), grads


def fast(op, arrays, settings, g, needs):
    """Return the same for its kernel, called as the engine calls it."""
    there = [ml.backend.asarray(x) if on else x for x, on in zip(arrays, placed(arrays))]
    value, gradients = op.kernel(*there, needs=needs, **settings)
    before = ml.asnumpy(value).copy()
    grads = gradients(ml.backend.asarray(g)) if any(needs) else [None] * len(arrays)
    assert len(grads) == len(arrays)
    assert same_bytes(ml.asnumpy(value), before), "the backward pass leaves the value alone"
    assert all(map(unchanged, there, arrays)), "and a kernel all that it was given"
    return before, [x if x is None else ml.asnumpy(x) for x in grads]


def unchanged(there, here) -> bool:
    return there is here or same_bytes(ml.asnumpy(there), here)


def test_every_entry_of_the_table_has_a_case():
    assert TABLE.keys() == CASES.keys() | FUNCTIONS
    assert all(plain.kernel is kernel for plain, kernel in TABLE.items())
    given = {f for f in ops.__dict__.values() if getattr(f, "kernel", None)}
    assert given | {adam} == TABLE.keys(), "what has a kernel is in the table"


@pytest.mark.parametrize("plain", TABLE, ids=lambda plain: plain.__name__)
def test_a_kernel_has_the_signature_of_its_op(plain):
    def parameters(f):
        given = inspect.signature(f).parameters.values()
        return [(p.name, p.kind, p.default) for p in given if p.name != "needs"]

    kernel = TABLE[plain]
    assert parameters(kernel) == parameters(plain) and kernel.__name__ == plain.__name__
    assert ("needs" in inspect.signature(kernel).parameters) == (plain not in FUNCTIONS)


@pytest.mark.parametrize("op", CASES, ids=lambda op: op.__name__)
@settings(max_examples=150)
@given(data=st.data(), dtype=DTYPES, cut=cuts, keep=st.sampled_from([0, 512]))
def test_a_kernel_is_its_plain_op(op, data, dtype, cut, keep):
    """Value and every gradient, within roundings; the same bits on 1, 2 and 3 threads."""
    _, arrays, settings, allowed = CASES[op](data.draw)
    floats = floating(arrays)
    needs = [may and data.draw(st.booleans()) for may in trainable(op, arrays)]
    arrays = [x.astype(dtype) if f else x for x, f in zip(arrays, floats)]
    wide = [x.astype("float64") if f else x for x, f in zip(arrays, floats)]
    half = dtype == "float16"
    shape = np.shape(plain(op, wide, settings, 0.0)[0])
    out = "float32" if half and op is ops.cross_entropy else dtype  # a loss that can be scaled
    g = normal(data.draw(seeds), *shape, dtype=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.attention, "KEEP", keep)
        runs = []
        for among in (1, 2, 3):
            with in_pieces(**cut, among=among):
                runs.append(fast(op, arrays, settings, g, needs))
                unneeded = fast(op, arrays, settings, g, [False] * len(needs))
    value, grads = runs[0]
    for other, others in runs[1:]:
        assert same_bytes(other, value)
        assert all(map(same_bytes_or_none, others, grads))
    assert same_bytes(unneeded[0], value), "the value does not depend on what is trained"
    assert [x is not None for x in grads] == needs

    given = wide if half else arrays  # in halves, the plain op is too coarse
    wanted, wanted_grads = plain(op, given, settings, g.astype("float64") if half else g, needs)
    coarse, steps, bounds = allowed(wide, g.astype("float64"))
    assert value.dtype == out
    for got, want, size in zip([value, *grads], [wanted, *wanted_grads], bounds):
        if got is not None:
            assert half or got.dtype == dtype
            error = roundings(steps, size, "float32" if half else dtype)
            if half:  # each rounding to a half, of the numbers themselves and below the normal ones
                error = error + roundings(coarse, size, "float16") + coarse * 2.0**-24
            assert_near(got.astype("float64"), want.astype("float64"), error)


def same_bytes_or_none(a, b) -> bool:
    return a is b is None or same_bytes(a, b)


@pytest.mark.parametrize("op", CASES, ids=lambda op: op.__name__)
def test_at_such_sizes_work_is_cut_and_shared(op, backend, monkeypatch):
    """Otherwise the property above would prove little. A device shares by itself."""
    met, together = [], threads._together
    spy = lambda task, cuts, crew: met.append(len(cuts)) or together(task, cuts, crew)  # noqa: E731
    monkeypatch.setattr(threads, "_together", spy)
    arrays = {
        ops.linear: [normal(0, 4, 3), normal(1, 5, 3), normal(2, 5)],
        ops.quantised_linear: [
            normal(0, 4, 3), *map(ml.asnumpy, quantised(asarray(normal(1, 5, 3)), "nf4").arrays),
            normal(2, 5),
        ],
        ops.lora_linear: [
            *(normal(i, *s) for i, s in enumerate([(4, 3), (5, 3), (5,), (2, 3), (5, 2)])),
            None,
        ],
        ops.layer_norm: [normal(0, 4, 3), normal(1, 3), normal(2, 3)],
        ops.rms_norm: [normal(0, 4, 3), normal(1, 3)],
        ops.gelu: [normal(0, 4, 3)],
        ops.swiglu: [normal(0, 4, 3), normal(1, 4, 3)],
        ops.cross_entropy: [normal(0, 4, 3), np.array([0, 1, 2, 0])],
        ops.attention: [normal(i, 2, 4, 4) for i in range(3)],
    }[op]
    settings = {ops.attention: {"heads": 2}, ops.lora_linear: {"scale": 2.0},
                ops.quantised_linear: {"shape": (5, 3)}}.get(op, {})
    needs = trainable(op, arrays)
    with in_pieces(piece=1):
        g = normal(9, *np.shape(plain(op, arrays, settings, 0.0, needs)[0]))
        fast(op, arrays, settings, g, needs)
    assert len(met) >= 2 * backend.on_host, "forward and backward"
    assert all(cuts > 1 for cuts in met)


# Two functions of arrays


def step(update, arrays, settings):
    """Return p, m and v after one step of Adam; the gradient is read-only."""
    there = [ml.backend.asarray(x.copy()) for x in arrays]
    update(*there, **settings)
    p, g, m, v = map(ml.asnumpy, there)
    assert same_bytes(g, arrays[1])
    return p, m, v


@given(
    seeds,
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=5),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from([1, 7, 1 << 18]),
    st.integers(1, 1000),
    st.sampled_from([1.0, 0.99]),
)
def test_adams_kernel_is_its_formula(seed, shape, dtype, piece, t, kept):
    p, g, m, v = (normal(seed + i, *shape, dtype=dtype) for i in range(4))
    v, (b1, b2) = v * v, (0.9, 0.99)
    settings = {"betas": (b1, b2), "rate": 0.1 / (1 - b1**t), "spread": 1 / math.sqrt(1 - b2**t),
                "eps": 1e-8, "kept": kept}
    runs = []
    for among in (1, 2, 3):
        with in_pieces(piece, among=among):
            runs.append(step(adam, [p, g, m, v], settings))
    assert all(all(map(same_bytes, run, runs[0])) for run in runs)
    with ops.plain():
        wanted = step(adam, [p, g, m, v], settings)
    top = b1 * abs(m) + (1 - b1) * abs(g)
    root = settings["spread"] * np.sqrt(wanted[2].astype("float64")) + settings["eps"]
    sizes = abs(p) + settings["rate"] * top / root, top, wanted[2]
    for got, want, size in zip(runs[0], wanted, sizes):
        assert_near(got, want, roundings(10, size, dtype))


@pytest.mark.parametrize("turned", [lambda x: x.T, lambda x: x[:, :3]])
def test_adams_kernel_moves_what_does_not_lie_row_by_row_in_memory(turned):
    def run(plain):
        p, g, m = (turned(ml.backend.asarray(normal(i, 6, 4))) for i in range(3))
        v, p0 = m * m, p.copy()
        with ops.plain(plain), in_pieces(7):
            adam(p, g, m, v, betas=(0.9, 0.99), rate=0.1, spread=1.0, eps=1e-8, kept=1.0)
        assert (ml.asnumpy(p) != ml.asnumpy(p0)).all()
        return [ml.asnumpy(x) for x in (p, m, v)]

    for got, wanted in zip(run(False), run(True)):
        assert_near(got, wanted, roundings(10, 9, "float64"))


@given(
    seeds,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
    st.sampled_from([0.1, 0.5, 0.75]),
    DTYPES,
)
def test_a_dropout_mask_has_the_same_bits_on_every_library(seed, shape, rate, dtype):
    def mask():
        rng = np.random.default_rng(seed)
        factors = ml.asnumpy(ops.dropout_mask(shape, rate, rng, np.dtype(dtype)))
        return factors, rng.random()  # it draws as many numbers, too

    factors, after = mask()
    assert factors.dtype == dtype and factors.shape == shape
    assert set(factors.ravel().tolist()) <= {0, float(np.dtype(dtype).type(1 / (1 - rate)))}
    with ml.using("numpy"):
        other, at = mask()
    assert same_bytes(other, factors) and at == after


# All of them together


@pytest.mark.parametrize("recompute", [False, True])
def test_a_models_step_is_the_same_without_kernels(recompute):
    """Loss and gradients, dropout included: the masks are the same."""
    results = []
    for flag in (False, True):
        model, _ = adapted(targets=("q", "v", "up"), dropout=0.2, sizes={"dropout": 0.1})
        model.recompute = recompute
        with ops.plain(flag):
            loss = ops.cross_entropy(model(ids(0)), ids(1))
        loss.backward()
        grads = [p.grad for p in model.trainable_parameters().values()]
        results.append([ml.asnumpy(x) for x in (loss, *grads)])
    for fast, plain in zip(*results):  # some 10 sums of up to 100 terms, one after the other
        assert_near(fast, plain, roundings(1e3, biggest(plain), "float64"))


# More than the property draws


@pytest.mark.parametrize("shape", [(200, 768, 256, 64), (40, 300, 64, 64)])
def test_threads_do_not_write_what_others_read(shape, backend):
    """With more columns than rows, each thread computes x Aᵀ, at this size in several passes."""
    n, d, k, r = shape
    x, W, A, B = (
        normal(i, *s, dtype="float32") for i, s in enumerate([(n, k), (d, k), (r, k), (d, r)])
    )
    g = normal(9, n, d, dtype="float32")
    needs = [True, False, False, True, True, False]
    runs = []
    for among in (1, *[3] * 10):
        with in_pieces(1 << 18, among=among):
            runs.append(fast(ops.lora_linear, [x, W, None, A, B, None], {"scale": 2.0}, g, needs))
    for value, grads in runs:
        assert same_bytes(value, runs[0][0])
        assert all(map(same_bytes_or_none, grads, runs[0][1]))


@pytest.mark.parametrize("keep", [0, 512])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_blocks_of_its_own_size(causal, keep, monkeypatch):
    """More queries than a block has, and not a multiple of it; two of three sequences in a task."""
    monkeypatch.setattr(kernels.attention, "KEEP", keep)
    m, n, d = 130, 150, 4
    q, k, v = (normal(i, 3, t, d) for i, t in enumerate([m, n, n]))
    g, settings = normal(9, 3, m, d), {"heads": 2, "causal": causal, "mask": None}
    with in_pieces(piece=2 * 2 * 64 * n):
        value, grads = fast(ops.attention, [q, k, v], settings, g, [True] * 3)
    wanted, wanted_grads = plain(ops.attention, [q, k, v], settings, g)
    (Q, K, V), G, width = map(biggest, (q, k, v)), biggest(g), d // 2
    steps = 2 * (width + 3) * (width * Q * K + 1) + 4 * n + m
    for got, want, size in zip(
        [value, *grads], [wanted, *wanted_grads], [V, 4 * G * V * K, 4 * G * V * Q * m, G * m]
    ):
        assert_near(got, want, roundings(steps, size, "float64"))


@pytest.mark.parametrize("wanted", [True, False])
def test_attentions_weights_are_kept_up_to_keep_tokens_and_for_a_backward_pass_only(
    wanted, monkeypatch
):
    """The weights, tokens × tokens numbers, are alive between the passes, or not."""
    weights, exp_shifted = [], kernels.attention.exp_shifted

    def spy(x, top, out):
        weights.append(weakref.ref(out))
        exp_shifted(x, top, out)

    monkeypatch.setattr(kernels.attention, "exp_shifted", spy)
    monkeypatch.setattr(kernels.attention, "KEEP", 8)
    for tokens in (8, 9):
        weights.clear()
        x = Tensor(normal(0, 1, tokens, 2) * 40, requires_grad=wanted)  # e^x needs its shift
        out = ops.attention(x, x, x, heads=1)
        assert weights and any(E() is not None for E in weights) == (wanted and tokens == 8)
        del out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("grown", [np.s_[1:], np.s_[:, :, 2:]], ids=["a sequence", "a head"])
def test_what_one_sequence_and_one_head_give_does_not_depend_on_the_others(grown, causal):
    """Not in a single bit: each decides alone whether its scores need a shift."""
    q, k, v = (normal(i, 2, 5, 4) for i in range(3))
    others = np.zeros(v.shape, bool)
    others[grown] = True
    settings = {"heads": 2, "causal": causal, "mask": None}
    runs = []
    for size in (1.0, 100.0):
        large = [np.where(others, size * x, x) for x in (q, k)]
        value, grads = fast(ops.attention, [*large, v], settings, normal(9, 2, 5, 4), [True] * 3)
        runs.append([x[~others] for x in (value, *grads)])
    assert all(map(same_bytes, *runs))


def test_with_an_input_in_halves_the_adapter_is_used_in_halves():
    shapes = [(6, 5), (4, 5), (2, 5), (4, 2)]
    x, W, A, B = (normal(i, *shape, dtype="float16") for i, shape in enumerate(shapes))
    needs, g = [True, False, False, True, True, False], normal(9, 6, 4, dtype="float16")
    fine = [a.astype("float32") * np.float32(1 + 1e-5) for a in (A, B)]
    runs = [fast(ops.lora_linear, [x, W, None, *ab, None], {"scale": 2.0}, g, needs)
            for ab in ((A, B), fine)]
    (value, grads), (other, others) = runs
    assert same_bytes(value, other) and all(map(same_bytes_or_none, grads, others))


@pytest.mark.parametrize("keep", [0, 512])
@pytest.mark.parametrize("needs", [*itertools.product([False, True], repeat=3)][1:])
def test_attention_keeps_of_q_k_v_and_its_output_what_the_wanted_gradients_use(
    needs, keep, monkeypatch
):
    monkeypatch.setattr(kernels.attention, "KEEP", keep)
    arrays = [ml.backend.asarray(normal(i, 1, 5, 4)) for i in range(3)]
    references = [weakref.ref(x) for x in arrays]
    y, back = ops.attention.kernel(*arrays, heads=2, needs=[*needs])
    references, rule = [*references, weakref.ref(y)], back
    del arrays, y, back
    need_q, need_k, _ = needs
    uses = [need_k or not keep, need_q or not keep, *[need_q or need_k] * 2]  # E again is of q, k
    assert [x() is not None for x in references] == uses and rule is not None


@pytest.mark.parametrize("op", [ops.linear, ops.lora_linear, ops.layer_norm])
def test_halves_are_summed_in_float32(op):
    """In halves, 2048 + 1 is 2048."""
    x, W, b = (np.zeros(shape, "float16") for shape in [(4096, 2), (2, 2), (2,)])
    arrays, settings = {
        ops.linear: ([x, W, b], {}),
        ops.lora_linear: ([x, W, b, W, W, None], {"scale": 1.0}),
        ops.layer_norm: ([x, b, b], {}),
    }[op]
    needs = [i == 2 for i in range(len(arrays))]
    _, grads = fast(op, arrays, settings, np.ones((4096, 2), "float16"), needs)
    assert grads[2].tolist() == [4096, 4096]


# W stored in half precision: the op on the same W, widened


HALVES = np.arange(1 << 16, dtype="uint16").view("float16")
layouts = st.sampled_from([lambda W: W, lambda W: W.T, lambda W: W[::2, 1:], lambda W: W[None]])
wider = st.sampled_from(["float32", "float64"])


@given(layouts, wider)
def test_every_half_is_widened_to_the_same_number(layout, dtype):
    half = layout(HALVES.reshape(256, 256))
    with np.errstate(over="ignore"):
        there = widened(ml.backend.asarray(half), np.dtype(dtype))
        got = ml.asnumpy(there)
        wanted = half.astype(dtype)
    finite = np.isfinite(wanted)
    assert same_bytes(got[finite], wanted[finite]) and not np.isfinite(got[~finite]).any()
    if half.flags.forc:
        assert there.strides == wanted.strides  # BLAS reads it in the same order
    assert widened(wanted, np.dtype(dtype)) is wanted, "nothing to do, nothing done"


@pytest.mark.parametrize("among", [1, 2])
@given(st.data(), seeds, wider, st.booleans())
def test_a_narrow_W_counts_as_what_it_widens_to(among, data, seed, dtype, adapted):
    n, k, d, r = (data.draw(st.sampled_from([1, 3, 40, 200])) for _ in range(4))
    half = normal(seed + 1, d, k, dtype="float16")
    shapes = [(n, k), (d,), (r, k), (d, r)]
    x, b, A, B = (normal(seed + i, *shape, dtype=dtype) for i, shape in enumerate(shapes))
    op, settings = (ops.lora_linear, {"scale": 2.5}) if adapted else (ops.linear, {})
    g = normal(seed, n, d, dtype=dtype)

    def run(W):
        arrays = [x, W, b, A, B, None] if adapted else [x, W, b]
        return fast(op, arrays, settings, g, [i in (0, 3, 4) for i in range(len(arrays))])

    before = ml.threads(among)
    try:
        (value, grads), (wanted, wanted_grads) = run(half), run(half.astype(dtype))
    finally:
        ml.threads(before)
    assert value.dtype == dtype and same_bytes(value, wanted)
    assert all(map(same_bytes_or_none, grads, wanted_grads))
