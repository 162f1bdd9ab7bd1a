"""The proof of a merge: right merges pass, and the proper check catches each wrong one. The bounds
on rounding hold, and are not much too wide."""

import dataclasses
import json
import math
from copy import copy
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    adapted,
    families,
    family,
    gpt2,
    ids,
    in_use,
    layers,
    leaves,
    lora_of,
    made,
    normal,
    seeds,
    shake,
    snapshot,
    wide,
)

import minilora as ml
from minilora import lora, nn, ops, rounding
from minilora.adapters import merging as adapter_merging
from minilora.backend import asarray
from minilora.rounding import roundings as counted
from minilora.rounding import weights

DTYPES = ["float16", "float32", "float64"]
LOW = {"float16": -24, "float32": -149, "float64": -1074}  # 2 to these is the smallest float
U = {dtype: float(np.finfo(dtype).eps) / 2 for dtype in DTYPES}
few = settings(max_examples=15)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


class One(nn.Module):
    """ids -> a layer's output for a fixed x per id, so all rounding is the layer's."""

    def __init__(self, layer, x):
        self.only, self.x = layer, asarray(x)

    def forward(self, ids):
        x = ml.Tensor(self.x[asarray(ids)].astype(self.only_dtype()))
        table = isinstance(getattr(self.only, "base", self.only), nn.Embedding)
        return self.only.project(x) if table else self.only(x)

    def only_dtype(self):
        return getattr(self.only, "base", self.only).dtype


def one(seed, d, k, r, dtype, *, adapters=1, kind=nn.Linear, powers=(0, 0, 0, 0, 0)):
    """A model of one layer, k numbers in and d out, alpha ≠ r; its x, W, b, A, B are Gaussian times
    2 to these powers."""
    scales = dict(zip("xWbAB", (2.0**power for power in powers)))
    size = (k, d) if kind is nn.Linear else (d, k)
    x = (normal(seed, 5, k) * scales["x"]).astype(dtype)
    model = One(kind(*size, rng=seed, dtype=dtype), x)
    for i in range(adapters):
        lora.attach(model, ml.LoRAConfig(r=r, alpha=2.5 * r, targets="only"), f"a{i}", rng=seed)
    lora.activate(model, *(f"a{i}" for i in range(adapters)))
    for i, (name, p) in enumerate(model.named_parameters()):
        numbers = normal(seed + i + 1, *p.shape) * scales[name[-1]]
        p.data[...] = asarray(numbers.astype(str(p.dtype)))
    return model


def differing(model) -> np.ndarray:
    """|merged - unmerged| for every x, (x's, d)."""
    with ml.no_grad():
        before = wide(model(np.arange(5)).data)
        with lora.merged(model):
            return np.abs(wide(model(np.arange(5)).data) - before)


# One layer: the bound for each of its outputs.


@given(seeds, st.integers(1, 40), st.integers(1, 40), st.integers(1, 6))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_merged_and_unmerged_stay_under_the_bound(dtype, seed, d, k, r):
    model = one(seed, d, k, r, dtype)
    bound = wide(rounding.layer_bound(model.only, model.x))
    assert (differing(model) <= bound).all()
    size = np.abs(wide(model(np.arange(5)).data)).max()  # no wider than a worst case, with room
    assert bound.max() <= 50 * (k + r) ** 1.5 * np.finfo(dtype).eps * max(size, 1)


@given(st.data(), seeds, st.integers(1, 20), st.integers(1, 30), st.integers(1, 5))
@dtypes
def test_the_bound_holds_at_every_scale(dtype, data, seed, d, k, r):
    """Where products are about the smallest floats, W x, B A x and A x by itself; and up to a bias
    beside which all else is nothing."""
    low, some = LOW[dtype], data.draw
    total = low + some(st.integers(-2, 11))
    x = some(st.sampled_from([0, total // 2]) | st.integers(low, 0))
    A = some(st.sampled_from([0, total - x]) | st.integers(low, 4))
    b = some(st.sampled_from([low, total, 0, 10]))
    powers = x, max(total - x, low - 4), b, A, min(total - x - A, 4)
    model = one(seed, d, k, r, dtype, adapters=some(st.integers(1, 3)), powers=powers)
    bound = wide(rounding.layer_bound(model.only, model.x))
    assert (differing(model) <= bound).all()
    result = lora.verify(model, np.arange(5)[None])
    assert result.passed, result


LOSSES = {  # dtype, k, r, and all numbers of x, W0, A, B, and s; 0.49 of the smallest is lost
    "W0 x": ("float32", 9, 1, 2.0**-149, 0.4999, 1.0, 2.0**-12, 1.0),
    "W": ("float32", 9, 1, 64.0, 0.0, 2.0**-75, 2.0**-75, 1.0),
    "A x": ("float32", 9, 1, 2.0**-149, 0.0, 0.49, 2.0**20, 1.0),
    "B (A x)": ("float32", 1, 64, 1.0, 0.0, 2.0**-75, 0.49 * 2.0**-74, 1.0),
    "s B (A x)": ("float32", 1, 64, 1.0, 0.0, 2.0**-75, 0.49 * 2.0**-64, 2.0**-10),
    "s B": ("float32", 9, 1, 1.0, 0.0, 2.0**40, 0.49 * 2.0**-100, 2.0**-49),
    "A in halves": ("float16", 9, 1, 64.0, 0.0, 2.0**-26, 2.0**10, 1.0),
    "B in halves": ("float16", 9, 1, 1.0, 0.0, 2.0**10, 2.0**-26, 1.0),
    "s in halves": ("float16", 9, 1, 1.0, 0.0, 1.0, 2.0**10, 2.0**-26),
    "B A": ("float64", 9, 64, 2.0**10, 0.0, 0.49 * 2.0**-537, 2.0**-537, 1.0),
}


@pytest.mark.parametrize("what", LOSSES)
def test_each_kind_of_underflow_is_in_the_bound(what):
    """The underflow is the only difference, and its parts add up."""
    dtype, k, r, x, W0, A, B, s = LOSSES[what]
    model = one(0, 2, k, r, dtype)
    in_use(model.only)[0].alpha = s * r
    for array, number in zip((model.x, *(p.data for p in model.parameters())), (x, W0, 0, A, B)):
        array[...] = number
    bound = wide(rounding.layer_bound(model.only, model.x))
    seen = differing(model)
    assert (bound / 20 < seen).all() and (seen <= bound).all()
    checks = lora.verify(model, np.arange(5)[None]).checks
    assert all(checks.values()) or what == "B A"  # there float64 has no digits to compare
    assert checks["weights"] and checks["rounding"]


def test_mistakes_in_merging_break_the_bound():
    model = one(0, 24, 24, 3, "float32")
    layer, x = model.only, wide(model.x)
    unmerged = wide(model(np.arange(5)).data)
    bound = wide(rounding.layer_bound(layer, model.x))
    a = layer.adapters["a0"]
    delta = 2.5 * wide(a.B.data) @ wide(a.A.data)
    for wrong in (3 * delta, -delta, delta.T, 2 * delta, delta / 2.5, 0 * delta, 1.001 * delta):
        merged = x @ (wide(layer.base.W.data) + wrong).T + wide(layer.base.b.data)
        assert (np.abs(merged - unmerged) > bound).any()


@given(st.integers(1, 1000))
def test_gamma_is_n_roundings_in_a_row(n):
    u = U["float32"]
    assert rounding.gamma(n, "float32") == pytest.approx(n * u, rel=2 * n * u)
    assert rounding.gamma(n, "float32") >= (1 + u) ** n - 1


def test_gamma_is_infinite_for_too_many_roundings():
    assert 0 < rounding.gamma(2047, "float16") < math.inf == rounding.gamma(2048, "float16")


# A whole model: the bounds for its worst logit.


def by_hand(model, x: np.ndarray, i: int, dtype: str) -> tuple[float, float]:
    """(Σ|c|, Σc²) of output i of a model of one layer for this x: every rounding, spelled out."""
    base, (a,) = model.only.base, in_use(model.only)
    A, B = wide(a.A.data), wide(a.B.data)
    if isinstance(base, nn.Embedding):
        A, B = B.T, A.T
    W0, s, (r, k) = wide(base.W.data), a.alpha / a.r, A.shape
    b = 0.0 if getattr(base, "b", None) is None else wide(base.b.data)[i]
    z, row = A @ x, np.abs(s * B[i])
    W = W0[i] + s * B[i] @ A
    many = [  # (how often, the sizes of what is rounded)
        (k + 1, [np.abs(W0[i]) @ np.abs(x) + abs(b)]),
        (k + 1, row * (np.abs(A) @ np.abs(x))),
        (r + 1, [row @ np.abs(z)]),
        (1, [s * B[i] @ z]),  # times s
        (1, [W @ x + b]),  # the sum of both
        (1, np.outer(row, np.abs(x)) * np.abs(A)),  # A, in half precision
        (2, row * np.abs(z)),  # B, and s B
        (1, [s * B[i] @ z]),  # s
        (k + 1, [np.abs(W) @ np.abs(x) + abs(b)]),  # merged
        (1, W * x),
        (r + 2, (row @ np.abs(A)) * np.abs(x) * (U["float64"] / U[dtype])),  # ΔW
    ]
    if isinstance(base, nn.Embedding):  # there A is what comes second
        many[5:7] = [(2, many[5][1]), (1, many[6][1])]
    return tuple(sum(n * (np.abs(sizes) ** power).sum() for n, sizes in many) for power in (1, 2))


@few
@given(seeds, st.integers(1, 8), st.integers(1, 40), st.integers(1, 4))
@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_rounding_of_a_layer_or_a_tied_head_is_counted(dtype, kind, seed, d, k, r):
    """With a bias larger than everything else, which is half of the bound, or absent."""
    model = one(seed, d, k, r, dtype, kind=kind, powers=(0, 0, 6, 0, 0))
    result = rounding.compare(model, np.arange(5)[:, None])
    sequence, _, i = result.logit
    sizes, squares = by_hand(model, wide(model.x)[sequence], i, dtype)
    assert result.bound == pytest.approx(U[dtype] * sizes, rel=1e-5)
    spread = math.sqrt(2 * math.log(2 * 5 * d / 1e-6) * squares)
    assert result.probable == pytest.approx(min(result.bound, U[dtype] * spread), rel=1e-5)


@family
@pytest.mark.parametrize("targets", [("q", "v"), ("tok", "o", "up"), ("blocks.*",)])
@pytest.mark.usefixtures("numpy_first")
def test_compare_bounds_the_largest_logit_difference(family, targets):
    model, _ = lora_of(family, dtype="float32", targets=targets)
    result = rounding.compare(model, ids())
    assert 0 < result.difference <= result.probable <= result.bound < 1
    with lora.merged(model):
        merged = ml.asnumpy(model(ids()).data)
    apart = np.abs(merged.astype("float64") - ml.asnumpy(model(ids()).data))
    assert apart.max() == result.difference == apart[result.logit]
    assert result.dtype == "float32"


def test_the_probable_bound_is_near_the_observed_difference():
    ratios = []
    for seed in range(5):
        sizes = {"d_model": 32, "vocab_size": 50}
        model, _ = adapted(seed, dtype="float32", targets=("q", "v", "up"), sizes=sizes)
        result = rounding.compare(model, ids(seed, tokens=12, vocabulary=50))
        ratios.append(result.probable / result.difference)
    assert 1 < min(ratios) < max(ratios) < 100


def test_a_model_that_recomputes_has_the_same_bounds():
    model, _ = adapted(dtype="float32", targets=("q", "tok"))
    result = rounding.compare(model, ids())
    model.recompute = True
    assert rounding.compare(model, ids()) == result


def test_every_op_that_rounds_is_counted():
    moves = {"concat", "embedding", "getitem", "max", "neg", "relu", "reshape", "transpose"}
    off, of_ops, losses = {"dropout"}, {"attention"}, {"cross_entropy", "log_softmax"}
    of_ops = of_ops | {"quantised_linear"}  # in float64 it is linear: see `twin`
    known = counted.ROUNDINGS.keys() | counted.COMPOSED.keys()
    assert known | moves | off | of_ops | losses == ml.tensor.OPS.keys()
    assert not known & (moves | off | of_ops | losses)


CASES = {
    "add": ((3, 4), (3, 4)), "sub": ((3, 4), (3, 4)), "mul": ((3, 4), (3, 4)),
    "div": ((3, 4), (3, 4)), "exp": ((3, 4),), "log": ((3, 4),), "sqrt": ((3, 4),),
    "tanh": ((3, 4),), "sum": ((3, 4),), "mean": ((3, 4),), "matmul": ((2, 3, 9), (2, 9, 4)),
    "linear": ((3, 9), (4, 9), (4,)), "gelu": ((3, 4),), "sigmoid": ((3, 4),),
    "power": ((3, 4),),
}


@few
@given(st.data(), seeds, st.booleans())
@pytest.mark.parametrize("name", CASES)
def test_the_count_of_an_op_covers_its_rounding(name, data, seed, plain):
    """Compare every op with itself in float64, each input at a different scale."""
    assert CASES.keys() == counted.ROUNDINGS.keys()
    scales = [data.draw(st.sampled_from([0, 5, -75, -149])) for _ in CASES[name]]
    arrays = [(normal(seed + i, *shape) * 2.0**scale).astype("float32")
              for i, (shape, scale) in enumerate(zip(CASES[name], scales))]
    if name in ("log", "sqrt", "div", "power"):
        arrays[-1] = np.abs(arrays[-1]) + np.float32(2.0**-100)
    how = {"axis": data.draw(st.sampled_from([0, 1, None]))} if name in ("sum", "mean") else {}
    if name == "power":
        how = {"exponent": data.draw(st.sampled_from([-1, 0, 0.5, 1, 2, 3]))}
    if name == "gelu":
        how = {"approximate": data.draw(st.sampled_from(["tanh", "none"]))}
    with ml.plain(plain), np.errstate(all="ignore"):
        y = wide(ml.tensor.OPS[name](*leaves(*arrays), **how).data)
        exact = [asarray(a.astype("float64")) for a in arrays]
        z = ml.tensor.OPS[name](*exact, **how).data
    roundings, size, lost = counted.ROUNDINGS[name](z, *exact, **how)
    assert (wide(asarray(lost)) >= 0).all()
    lost = wide(asarray(lost)) * float(np.finfo("float32").smallest_subnormal)
    finite = np.isfinite(y)
    assert (np.abs(y - wide(z)) <= roundings * U["float32"] * wide(size) * 1.001 + lost)[
        finite
    ].all()


def test_composed_ops_equal_the_ops_that_they_replace():
    x, gain, shift = (normal(i, *shape) for i, shape in enumerate([(2, 3, 4), (4,), (4,)]))
    W, A, B = (normal(i, *shape) for i, shape in enumerate([(5, 4), (2, 4), (5, 2)]))
    for how in ({}, {"axis": 0}, {"axis": 1}, {"axis": -1}):
        for z in (x, 1e4 * x):
            mine = wide(counted.COMPOSED["softmax"](ml.Tensor(asarray(z)), **how).data)
            assert np.abs(mine - wide(ops.softmax(asarray(z), **how).data)).max() < 1e-15
    cases = [("layer_norm", (x, gain, shift), {"eps": 0.1}),
             ("rms_norm", (x, gain), {"eps": 0.1}), ("swiglu", (x, 2 - x), {}),
             ("rotary", (x,), {"heads": 1}),
             ("rotary", (x,), {"heads": 2, "theta": 7.0, "start": 3}),
             ("lora_linear", (x, W, None, A, B), {"scale": 1.7})]
    for name, arrays, how in cases:
        given = [None if a is None else ml.Tensor(asarray(a)) for a in arrays]
        mine, op = counted.COMPOSED[name], ml.tensor.OPS[name]
        assert np.abs(wide(mine(*given, **how).data) - wide(op(*given, **how).data)).max() < 1e-14


# Each merged W, entry by entry.


@given(seeds, st.integers(0, 3), st.integers(1, 4), st.integers(-30, 30), st.integers(-30, 30))
def test_the_sum_with_twice_the_digits_is_the_sum_of_fractions(seed, adapters, r, one, two):
    W0 = normal(seed, 3, 4)
    updates = [
        (normal(seed + i, 3, r) * 2.0**one, normal(seed + 10 + i, r, 4) * 2.0**two, 0.7 + i)
        for i in range(1, adapters + 1)
    ]
    high, low = weights._exact(W0, updates)
    for i in range(3):
        for j in range(4):
            exact, size = Fraction(W0[i, j]), abs(Fraction(W0[i, j]))
            for left, right, scale in updates:
                terms = [Fraction(left[i, h]) * Fraction(right[h, j]) for h in range(r)]
                exact += Fraction(scale) * sum(terms)
                size += Fraction(scale) * sum(map(abs, terms))
            error = abs(Fraction(high[i, j]) + Fraction(low[i, j]) - exact)
            assert error <= size * Fraction(1, 2**98)


@given(seeds, st.integers(-1100, 100))
@dtypes
def test_a_unit_in_the_last_place_is_the_spacing_of_floats(dtype, seed, power):
    with np.errstate(all="ignore"):
        x = np.abs(np.append(normal(seed, 20) * 2.0**power, [0, 2.0**power])).astype(dtype)
    x = x[np.isfinite(x)]
    assert (weights.place(x.astype("float64"), dtype) == np.spacing(x).astype("float64")).all()
    assert (weights.place(np.nextafter(x.astype("float64"), np.inf), dtype) == np.spacing(x)).all()


def random_model(data, seed):
    """Any number of adapters, of any rank, on any layers, some not active, one that trains a bias;
    over any dtype, or a base that is stored in half precision."""
    dtype = data.draw(st.sampled_from(DTYPES))
    model = made(data.draw(families), seed, dtype)
    half = "float16" if dtype != "float16" and data.draw(st.booleans()) else None
    names, spots = [], ["tok", "q", "v", "o", "up", "down"]
    spots += ["pos"] if hasattr(model, "pos") else ["gate", "k"]
    for i in range(data.draw(st.integers(1, 4))):
        targets = data.draw(st.lists(st.sampled_from(spots), min_size=1, unique=True))
        r, alpha = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([0.7, 5.0, 11.0]))
        whole = ("blocks.1.ln2", "blocks.0.attn.q.b") if i == 1 else ()
        config = ml.LoRAConfig(r=r, alpha=alpha, targets=targets, trainable=whole)
        lora.attach(model, config, f"a{i}", rng=seed, base_dtype=None if i else half)
        shake(model.trainable_parameters().values(), seed + i, 0.2)
        names.append(f"a{i}")
    lora.activate(model, *data.draw(st.lists(st.sampled_from(names), unique=True)))
    return model


@few
@given(st.data(), seeds)
def test_a_right_merge_passes_and_the_model_stays_as_it_was(data, seed):
    model = random_model(data, seed)
    before = snapshot(model)
    result = lora.verify(model, ids(seed))
    assert result.passed, result
    assert snapshot(model) == before
    assert result.apart < 1e-13
    assert result.weights.keys() == {f"{path}.W" for path in layers(model)}
    if model.blocks[0].ln1.g.dtype != "float64":
        assert all(weight.off <= 0.5000001 for weight in result.weights.values())


def three(dtype="float32", **config):
    """Three active adapters on square layers, the embedding among them; alpha ≠ r."""
    model = gpt2(3, dtype, vocab_size=8, n_positions=8)
    for i in range(3):
        targets = ("q", "tok", "up")[: 3 - i] if i < 2 else ("q",)
        settings = {"r": 2 + i, "alpha": 5.0, "targets": targets, **config}
        lora.attach(model, ml.LoRAConfig(**settings), f"a{i}", rng=i)
        shake(model.trainable_parameters().values(), i)
    lora.activate(model, "a0", "a1", "a2")
    return model


def failed(model) -> set[str]:
    result = lora.verify(model, ids(vocabulary=8))
    wrong = {name for name, good in result.checks.items() if not good}
    assert result.passed == (not wrong)
    return wrong


ALL = {"weights", "float64", "rounding"}


def merging(monkeypatch, weigh, transposed=True):
    """Make a merge add Σ weigh(adapter) · B A, which is wrong."""

    def delta(self):
        total = sum(weigh(a) * (wide(a.B) @ wide(a.A)) for a in in_use(self))
        return asarray(total.T if transposed and isinstance(self.base, nn.Embedding) else total)

    monkeypatch.setattr(lora.Adapted, "delta", delta)


@pytest.mark.parametrize("share", [1.01, 1.001, 0.999, 0.0, -1.0])
def test_an_update_that_is_merged_wrong_is_caught_by_all(share, monkeypatch):
    merging(monkeypatch, lambda a: share * a.scale)
    assert failed(three()) == ALL


@dtypes
def test_0_1_percent_is_caught_in_every_dtype(dtype, monkeypatch):
    merging(monkeypatch, lambda a: 1.001 * a.scale)
    assert {"weights", "float64"} <= failed(three(dtype))


def test_alpha_for_alpha_over_r_is_caught(monkeypatch):
    with monkeypatch.context() as patch:
        merging(patch, lambda a: a.alpha)
        assert failed(three()) == ALL
    update = lora.LoRALinear.update  # or where the forward pass has it
    monkeypatch.setattr(lora.LoRALinear, "update", lambda self, x: update(self, x) * self.r)
    assert failed(three()) == {"float64", "rounding"}


def test_a_right_merge_is_not_refused(monkeypatch):
    merging(monkeypatch, lambda a: a.alpha / a.r)
    assert failed(three()) == set()


def planted(monkeypatch, path, change):
    """Replace merged_layer by one that changes the layer at `path` afterwards."""
    right = adapter_merging.merged_layer

    def wrong(at, module, *how):
        layer, lost = right(at, module, *how)
        if at == path:
            change(layer)
        return layer, lost

    monkeypatch.setattr(adapter_merging, "merged_layer", wrong)


@few
@given(seeds, st.integers(0, 7), st.integers(0, 7), st.sampled_from([-np.inf, np.inf]))
@dtypes
def test_one_ulp_in_one_entry_is_caught_and_named(dtype, seed, i, j, towards):
    """In float64 only for a small ΔW: for a large one the merge itself rounds more."""

    def change(layer):
        W = np.array(ml.asnumpy(layer.W.data))
        W[i, j] = np.nextafter(W[i, j], np.dtype(dtype).type(towards))
        layer.W.data = asarray(W)

    model = three(dtype)
    for name, p in model.named_parameters():
        if name.endswith(".B") and dtype == "float64":
            p.data *= 2.0**-20
    with pytest.MonkeyPatch.context() as patch:
        planted(patch, "blocks.1.attn.q", change)
        patch.setattr(weights, "PIECE", 20)  # some rows at a time
        worst, _ = weights.weigh(model)
    assert [name for name, weight in worst.items() if not weight.right] == ["blocks.1.attn.q.W"]
    assert worst["blocks.1.attn.q.W"].entry == (i, j)


@given(st.integers(1, 64), st.integers(1, 4))
def test_a_merge_in_float64_may_lose_one_rounding_per_step(r, adapters):
    """All numbers and the scale are 1, so every update is r."""
    update = np.ones((3, r)), np.ones((r, 2)), 1.0
    result = weights.furthest(
        np.full((3, 2), 1.0 + adapters * r), np.ones((3, 2)), [update] * adapters
    )
    assert result.off == 0 and 0.5 < result.allowed <= 0.5 + (r + adapters + 2) * 1.001


def test_a_sum_that_float64_rounds_to_a_tie_is_right():
    """1 + 2⁻²⁴ + 2⁻⁶⁴ is above the middle of two float32 by less than float64 resolves."""
    one, update = np.ones((1, 1), np.float32), np.full((1, 1), 2.0**-24)
    result = weights.furthest(one, one, [(update, np.full((1, 1), 1 + 2.0**-40), 1.0)])
    assert 0.5 < result.off <= result.allowed < 0.5 + 1e-6


def test_one_ulp_is_caught_by_the_weights_alone(monkeypatch):
    def change(layer):
        if layer.dtype == "float32":
            W = np.array(ml.asnumpy(layer.W.data))
            W[3, 4] = np.nextafter(W[3, 4], np.float32(9))
            layer.W.data = asarray(W)

    planted(monkeypatch, "tok", change)
    assert failed(three()) == {"weights"}
    text = str(lora.verify(three(), ids(vocabulary=8)))
    assert "the merge is WRONG: weights" in text and "tok.W[3, 4]" in text


def test_a_mistake_that_is_too_small_for_float32_is_caught_in_float64(monkeypatch):
    merging(monkeypatch, lambda a: a.scale * (1 + 2e-10))
    wrong = failed(three())
    assert "float64" in wrong and "rounding" not in wrong


def test_a_merge_that_is_rounded_twice_is_caught(monkeypatch):
    def change(layer):
        layer.W.data = layer.W.data.astype("float16").astype(layer.W.dtype)

    planted(monkeypatch, "blocks.0.mlp.up", change)
    assert failed(three()) == ALL


def test_a_merge_in_another_dtype_or_a_bias_that_moved_is_named(monkeypatch):
    def change(layer):
        layer.b = copy(layer.b)
        layer.b.data = layer.b.data * (1 + float(np.finfo(str(layer.b.dtype)).eps))

    with monkeypatch.context() as patch:
        planted(patch, "blocks.0.attn.q", change)
        result = lora.verify(three(), ids(vocabulary=8))
        assert result.changed == ("blocks.0.attn.q.b",) and not result.checks["unchanged"]
        assert "WRONG: unchanged" in str(result) and "attn.q.b" in str(result).splitlines()[-1]

    def wider(layer):
        layer.W.data = layer.W.data.astype("float64")
        layer.more = nn.Parameter(layer.W.data)

    planted(monkeypatch, "blocks.0.attn.q", wider)
    result = lora.verify(three(), ids(vocabulary=8))
    assert result.changed == ("blocks.0.attn.q.W", "blocks.0.attn.q.more")


def test_a_missing_transpose_of_the_embedding_is_caught(monkeypatch):
    merging(monkeypatch, lambda a: a.scale, transposed=False)
    assert failed(three()) == ALL


def test_an_adapter_that_is_merged_but_not_active_is_caught(monkeypatch):
    """Each merged W is right, so only the logits show the mistake."""

    def forward(self, x):
        return self.compose(self.base, "forward", self.active[:2])(x)

    monkeypatch.setattr(lora.Adapted, "forward", forward)
    assert failed(three()) == {"float64", "rounding"}


def test_an_adapter_that_is_active_but_not_merged_is_caught(monkeypatch):
    active = lora.Adapted.delta

    def delta(self):
        some = copy(self)
        some.active = self.active[:2]
        return active(some)

    monkeypatch.setattr(lora.Adapted, "delta", delta)
    assert failed(three()) == ALL


# What verify is to the outside.


def test_a_verification_is_json():
    result = lora.verify(three(), ids(vocabulary=8))
    read = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert read["passed"] is True and read["checks"] == result.checks
    assert read["weights"]["tok.W"]["off"] == result.weights["tok.W"].off
    assert read["logits"]["probable"] == result.logits.probable
    assert str(result).endswith("the merge is right")
    assert "the merge is right" in str(dataclasses.replace(result, weights={}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.apart = 0.0


def test_apart_is_relative_to_the_largest_logit():
    model, _ = adapted(dtype="float64")
    result, largest = lora.verify(model, ids()), np.abs(wide(model(ids()).data)).max()
    assert 0 < result.apart == pytest.approx(result.logits.difference / largest)


def test_nothing_active_is_verified_too():
    model, _ = adapted(dtype="float32", targets="q")
    model.blocks[0].attn.q.adapters["default"].alpha = 0.0
    assert lora.verify(model, ids()).passed
    lora.activate(model)
    result = lora.verify(model, ids())
    assert result.passed and result.apart == result.logits.difference == 0
    assert {weight.off for weight in result.weights.values()} == {0}


def test_nan_is_never_right():
    assert not weights.Weight(float("nan"), 0.5, (0, 0)).right
    W = np.array([[1.0, float("nan")], [3.0, 4.0]])
    assert not weights.furthest(W, np.ones((2, 2)), []).right


def test_what_cannot_be_verified_raises():
    with pytest.raises(ValueError, match="no adapter"):
        lora.verify(gpt2(), ids())
    model, _ = adapted(dtype="float32")
    with pytest.raises(ValueError, match=r"compare: ids are \(0, 5\): give at least one token"):
        lora.verify(model, np.zeros((0, 5), int))
    with lora.merged(model), pytest.raises(RuntimeError, match=r"leave lora\.merged"):
        lora.verify(model, ids())
    model.ln_f.g.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"compare: a logit .* not finite in float32"):
        lora.verify(model, ids())


@pytest.mark.parametrize("calls", [0, 7, 12, 17, 22, 27, 30])
def test_the_model_is_as_it_was_after_an_interrupt(calls, monkeypatch):
    model, _ = adapted(dtype="float32", dropout=0.5, trainable="ln_f")
    gradients = {p: asarray(normal(0, *p.shape, dtype="float32"))
            for p in model.trainable_parameters().values()}
    for p, gradient in gradients.items():
        p.grad = gradient
    before = snapshot(model), {p: ml.asnumpy(g).tobytes() for p, g in gradients.items()}
    states = [m.rng.bit_generator.state for _, m in model.named_modules() if hasattr(m, "rng")]
    left, forward = [calls], nn.LayerNorm.forward

    def interrupted(self, x):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(nn.LayerNorm, "forward", interrupted)
    try:
        assert lora.verify(model, ids()).passed
        assert calls == 30  # five norms in each of six runs
    except KeyboardInterrupt:
        assert calls < 30
    for p in model.parameters():
        assert p.grad is gradients.get(p)
    assert before == (snapshot(model), {p: ml.asnumpy(g).tobytes() for p, g in gradients.items()})
    assert all(module.training for _, module in model.named_modules())
    assert states == [
        m.rng.bit_generator.state for _, m in model.named_modules() if hasattr(m, "rng")
    ]
