"""optim: the formulas of the papers, updates in place, and state that resumes to the bit."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import dtypes, gpt2, normal, seeds

import minilora as ml
from minilora import lora, nn, ops, optim

KINDS = {
    "SGD": lambda p: optim.SGD(p, 0.1),
    "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: optim.Adam(p, 0.01, (0.8, 0.95), 1e-6),
    "AdamW": lambda p: optim.AdamW(p, 0.01, (0.8, 0.95), 1e-6, weight_decay=0.3),
}
kinds = st.sampled_from(sorted(KINDS))


def parameters(seed: int = 0, dtype: str = "float64") -> dict[str, nn.Parameter]:
    shapes = {"x.W": (3, 2), "x.b": (4,), "norm.g": (2,), "one": ()}
    return {
        name: nn.Parameter(normal(seed + i, *shape, dtype=dtype))
        for i, (name, shape) in enumerate(shapes.items())
    }


def set_grads(params, seed: int) -> dict[str, np.ndarray]:
    """Set random gradients; return copies on the host."""
    grads = {n: normal(seed + 7 * i, *p.shape) for i, (n, p) in enumerate(params.items())}
    for name, p in params.items():
        p.grad = ml.backend.asarray(grads[name].astype(str(p.dtype)))
    return grads


def values(params) -> dict[str, np.ndarray]:
    return {name: ml.asnumpy(p.data).copy() for name, p in params.items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def run(params, optimizer, steps, seed: int = 0) -> None:
    for step in steps:
        set_grads(params, seed + 100 * step)
        optimizer.step()


def adam(p, grads, lr, betas, eps, decay=0.0):
    """Kingma & Ba's algorithm 1, with Loshchilov & Hutter's decoupled decay."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p = p - lr * decay * p - lr * m_hat / (np.sqrt(v_hat) + eps)
    return p


def sgd(p, grads, lr, momentum):
    m = np.zeros_like(p)
    for g in grads:
        m = momentum * m + g
        p = p - lr * m
    return p


def close(params, expected) -> None:
    for name, array in values(params).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-12, atol=1e-13)


@given(seeds, st.floats(1e-4, 0.5), st.floats(0, 0.99), st.floats(0, 0.999),
       st.sampled_from([1e-8, 1e-2]), st.integers(1, 6))
def test_adam_is_algorithm_1(seed, lr, b1, b2, eps, steps):
    params = parameters(seed)
    before, optimizer = values(params), optim.Adam(params, lr, (b1, b2), eps)
    grads = []
    for step in range(steps):
        grads.append(set_grads(params, seed + step))
        optimizer.step()
    each = {n: [g[n] for g in grads] for n in params}
    close(params, {n: adam(before[n], each[n], lr, (b1, b2), eps) for n in params})


@given(seeds, st.floats(1e-4, 0.5), st.floats(0, 1), st.integers(1, 6))
def test_adamw_decay_is_decoupled_and_spares_biases_and_norms(seed, lr, decay, steps):
    params = parameters(seed)
    before = values(params)
    optimizer = optim.AdamW(params, lr, (0.8, 0.9), 1e-3, weight_decay=decay)
    assert optimizer.decays == {"x.W"}
    grads = []
    for step in range(steps):
        grads.append(set_grads(params, seed + step))
        optimizer.step()
    expected = {
        n: adam(before[n], [g[n] for g in grads], lr, (0.8, 0.9), 1e-3,
                decay if n == "x.W" else 0.0)
        for n in params
    }
    close(params, expected)


@given(seeds, st.floats(1e-4, 0.5), st.floats(0, 0.99), st.integers(1, 6))
def test_sgd_is_its_formula(seed, lr, momentum, steps):
    params = parameters(seed)
    before, optimizer = values(params), optim.SGD(params, lr, momentum)
    grads = []
    for step in range(steps):
        grads.append(set_grads(params, seed + step))
        optimizer.step()
    close(params, {n: sgd(before[n], [g[n] for g in grads], lr, momentum) for n in params})


def test_the_defaults_are_those_of_the_papers():
    optimizer = optim.AdamW(parameters())
    assert (optimizer.lr, optimizer.betas, optimizer.eps) == (1e-3, (0.9, 0.999), 1e-8)
    assert optimizer.weight_decay == 0.01
    assert optim.Adam(parameters()).betas == (0.9, 0.999)


def test_decay_of_a_gpt2_spares_biases_and_norms():
    names = gpt2().trainable_parameters()
    decays = optim.AdamW(names).decays
    assert decays == {n for n in names if n.endswith(".W")}
    assert optim.AdamW(names, exclude=()).decays == set(names)
    assert "tok.W" not in optim.AdamW(names, exclude=("tok.*",)).decays
    assert optim.AdamW(names, exclude=("tok.W",)).decays == set(names) - {"tok.W"}


@given(kinds, seeds, dtypes)
def test_a_step_works_in_place_and_leaves_gradients_alone(kind, seed, dtype):
    params = parameters(seed, dtype)
    optimizer = KINDS[kind](params)
    arrays = {n: p.data for n, p in params.items()}
    state = [a for s in optimizer.state.values() for a in s.values()]
    for step in range(3):
        before = values(params)
        grads = set_grads(params, seed + step)
        optimizer.step()
        assert not any(np.array_equal(a, before[n]) for n, a in values(params).items())
        assert all(p.data is arrays[n] and str(p.dtype) == dtype for n, p in params.items())
        for n, p in params.items():
            assert np.array_equal(ml.asnumpy(p.grad), grads[n].astype(dtype))
    after = [a for s in optimizer.state.values() for a in s.values()]
    assert all(a is b and str(a.dtype) == dtype for a, b in zip(state, after))
    assert optimizer.t == 3


@given(kinds, seeds, st.integers(1, 7), dtypes)
def test_the_size_of_a_chunk_changes_no_bit(kind, seed, chunk, dtype):
    one, two = parameters(seed, dtype), parameters(seed, dtype)
    run(one, KINDS[kind](one), range(3), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ml.current()), "piece", chunk)
        run(two, KINDS[kind](two), range(3), seed)
    assert same(values(one), values(two))


def test_more_numbers_than_one_chunk_are_all_updated(monkeypatch):
    monkeypatch.setattr(type(ml.current()), "piece", 1 << 10)
    n = 3 * ml.current().piece + 5
    params = {"x": nn.Parameter(np.ones(n, "float32"))}
    params["x"].grad = ml.backend.asarray(np.ones(n, "float32"))
    optim.SGD(params, 0.25).step()
    assert np.all(values(params)["x"] == 0.75)


@given(kinds, seeds)
def test_a_gradient_in_any_memory_order_is_the_same_gradient(kind, seed):
    one, two = parameters(seed), parameters(seed)
    a, b = KINDS[kind](one), KINDS[kind](two)
    set_grads(one, seed), set_grads(two, seed)
    turned = np.ascontiguousarray(ml.asnumpy(two["x.W"].grad).T)
    two["x.W"].grad = ml.backend.asarray(turned).T
    a.step(), b.step()
    assert same(values(one), values(two))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_gradient_of_zero_moves_nothing_without_eps(dtype):
    params = {"x": nn.Parameter(np.array([1.0, 1.0], dtype))}
    optimizer = optim.Adam(params, 0.5, eps=0.0)
    params["x"].grad = ml.backend.asarray(np.array([0.0, 1.0], dtype))
    optimizer.step()  # the smallest subnormal is added to the root and does not change it
    within = 0 if dtype != "float16" else 2e-3
    np.testing.assert_allclose(values(params)["x"].astype("float64"), [1.0, 0.5], atol=within)


@given(kinds, seeds)
def test_a_numpy_number_is_a_learning_rate(kind, seed):
    one, two = parameters(seed, "float32"), parameters(seed, "float32")
    a, b = KINDS[kind](one), KINDS[kind](two)
    b.lr = np.float64(b.lr)
    run(one, a, range(2), seed), run(two, b, range(2), seed)
    assert same(values(one), values(two))


@given(kinds, seeds)
def test_a_parameter_without_a_gradient_does_not_change(kind, seed):
    params = parameters(seed)
    optimizer = KINDS[kind](params)
    set_grads(params, seed)
    params["x.W"].grad = None
    before = values(params)
    optimizer.step()
    after = values(params)
    assert np.array_equal(before["x.W"], after["x.W"]) and optimizer.t == 1
    assert not np.array_equal(before["x.b"], after["x.b"])
    optimizer.zero_grad()
    assert all(p.grad is None for p in params.values())


@pytest.mark.parametrize("make", [optim.Adam, optim.AdamW])
def test_eps_0_and_gradients_of_0_move_nothing(make):
    params = parameters()
    optimizer = make(params, 0.1, eps=0.0, **({"weight_decay": 0.0} if make is optim.AdamW else {}))
    before = values(params)
    for _ in range(2):
        for p in params.values():
            p.grad = ml.backend.asarray(np.zeros(p.shape))
        optimizer.step()
    assert same(values(params), before)
    set_grads(params, 0)
    optimizer.step()
    assert all(np.isfinite(a).all() for a in values(params).values())


def test_eps_0_makes_the_first_step_of_size_lr():
    params = parameters()
    optimizer = optim.Adam(params, 0.1, eps=0.0)
    before, grads = values(params), set_grads(params, 3)
    optimizer.step()
    close(params, {n: before[n] - 0.1 * np.sign(grads[n]) for n in params})


@given(kinds, seeds)
def test_a_half_is_its_float32_master_rounded_after_each_step(kind, seed):
    halves = parameters(seed, "float16")
    twin = {n: nn.Parameter(a.astype("float32")) for n, a in values(halves).items()}
    ours, theirs = KINDS[kind](halves), KINDS[kind](twin)
    for step in range(4):
        set_grads(halves, seed + step)
        for name, p in twin.items():
            p.grad = halves[name].grad.astype("float32")
        ours.step(), theirs.step()
        assert same(values(halves), {n: a.astype("float16") for n, a in values(twin).items()})
    assert {str(a.dtype) for a in ours.arrays().values()} == {"float32"}
    params = {n for n in ours.state_dict() if n.endswith(".master")}
    assert params == {f"{n}.master" for n in halves} and "x.W.master" not in theirs.state_dict()


def test_updates_below_half_an_ulp_add_up():
    params = {"x": nn.Parameter(np.array([1.0, -1.0], "float16"))}
    optimizer, update = optim.SGD(params, 1.0), 2.0**-14
    assert np.float16(1 - update) == 1  # a single update is lost
    for _ in range(64):
        params["x"].grad = ml.backend.asarray(np.full(2, update, "float16"))
        optimizer.step()
    assert values(params)["x"].tolist() == [1 - 64 * update, -1 - 64 * update]


def test_a_value_written_into_a_half_is_not_reverted_by_its_master():
    params = {"x": nn.Parameter(np.zeros(3, "float16"))}
    optimizer = optim.SGD(params, 1.0)
    for written in (0.0, 5.0):  # at 5 the spacing is 2⁻⁸
        params["x"].data[1:] = written
        params["x"].grad = ml.backend.asarray(np.full(3, -(2.0**-9), "float16"))
        optimizer.step()
    first, second = 2.0**-9, 2.0**-8
    assert values(params)["x"].tolist() == [second, 5.0, 5.0]
    assert ml.asnumpy(optimizer.arrays()["x.master"]).tolist() == [second, 5 + first, 5 + first]


@given(kinds, seeds, st.integers(0, 3), st.sampled_from(["float16", "float64"]))
def test_saved_state_resumes_with_the_same_bits(kind, seed, k, dtype):
    complete, first = parameters(seed, dtype), parameters(seed, dtype)
    run(complete, KINDS[kind](complete), range(5), seed)
    one = KINDS[kind](first)
    run(first, one, range(k), seed)
    state, at = one.state_dict(), values(first)
    run(first, one, range(k, 5), seed)  # the saved state must not change
    second = parameters(seed + 1, dtype)
    for name, p in second.items():
        p.data[...] = ml.backend.asarray(at[name])
    two = KINDS[kind](second)
    run(second, two, range(2), seed + 5)  # it has other state, which is replaced
    for name, p in second.items():
        p.data[...] = ml.backend.asarray(at[name])
    two.load_state_dict(state)
    assert two.t == k
    run(second, two, range(k, 5), seed)
    assert same(values(second), values(complete))
    ours, theirs = one.state_dict(), two.state_dict()
    assert same(ours, theirs) and all(type(a) is np.ndarray for a in ours.values())


def test_the_state_is_named_after_the_parameters():
    names = set(optim.Adam(parameters()).state_dict())
    assert names == {"t"} | {f"{n}.{s}" for n in parameters() for s in "mv"}
    assert set(optim.SGD(parameters(), 0.1).state_dict()) == {"t"}


@pytest.mark.parametrize("fault", ["missing", "unexpected", "t", "kind"])
def test_the_state_of_other_parameters_raises_and_changes_nothing(fault):
    params = parameters()
    optimizer = optim.Adam(params)
    run(params, optimizer, range(2))
    before, state = optimizer.state_dict(), optim.Adam(parameters()).state_dict()
    if fault == "missing":
        del state["x.W.v"]
    elif fault == "unexpected":
        state["y.m"] = state["x.W.m"]
    elif fault == "t":
        del state["t"]
    else:
        state = optim.SGD(parameters(), 0.1, momentum=0.5).state_dict()
    with pytest.raises(KeyError, match=r"Adam: missing .*, unexpected"):
        optimizer.load_state_dict(state)
    assert same(optimizer.state_dict(), before)


def test_state_of_other_shapes_raises_and_changes_nothing():
    params = parameters()
    optimizer = optim.Adam(params)
    run(params, optimizer, range(2))
    before, state = optimizer.state_dict(), optim.Adam(parameters()).state_dict()
    state["norm.g.v"] = state["norm.g.v"][:1]  # would broadcast
    with pytest.raises(ValueError, match=r"norm\.g"):
        optimizer.load_state_dict(state)
    assert same(optimizer.state_dict(), before)


BAD_STATES = [
    ("t", -1, "integers >= 0, not .*-1"), ("t", 2.5, "integers >= 0, not .*2.5"),
    ("t", math.nan, "integers >= 0"), ("t", math.inf, "integers >= 0"),
    ("t", 2.0**70, "integers >= 0"), ("t", [1, 2], r"\(\) here, \(2,\)"),
    ("t", "3", "numbers, not .*'3'"), ("x.W.v", np.full((3, 2), math.nan), "not finite"),
    ("x.W.v", np.full((3, 2), -math.inf), "not finite"), ("one.m", None, "numbers, not None"),
    ("x.W.m", np.full((3, 2), "a"), "numbers"),
]


@pytest.mark.parametrize("name, bad, words", BAD_STATES)
def test_an_invalid_state_raises_and_changes_nothing(name, bad, words):
    params = parameters()
    optimizer = optim.Adam(params)
    run(params, optimizer, range(2))
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=rf"^Adam: {name} .*{words}"):
        optimizer.load_state_dict(optim.Adam(parameters()).state_dict() | {name: bad})
    assert same(optimizer.state_dict(), before) and optimizer.t == 2
    optimizer.load_state_dict(before | {"t": np.float32(7)})
    assert optimizer.t == 7 and type(optimizer.t) is int


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_step_without_any_gradient_raises_with_the_reason(kind):
    params = parameters()
    optimizer = KINDS[kind](params)
    for _ in range(2):
        before = optimizer.state_dict(), values(params)
        with pytest.raises(RuntimeError, match=r"^\w+: none of its parameters has .*backward\(\)"):
            optimizer.step()
        assert same(optimizer.state_dict(), before[0]) and same(values(params), before[1])
        run(params, optimizer, [1])
        optimizer.zero_grad()
    params["x.W"].requires_grad = False  # first one frozen parameter, then all
    with pytest.raises(RuntimeError, match="none of its parameters has"):
        optimizer.step()
    for p in params.values():
        p.requires_grad = False
    with pytest.raises(RuntimeError, match=r"all its parameters have been frozen .* after lora"):
        optimizer.step()


def test_an_optimizer_created_before_attach_raises():
    model, at = gpt2(), np.array([[1, 2, 3]])
    optimizer = optim.AdamW(model.trainable_parameters())
    lora.attach(model, ml.LoRAConfig(), rng=0)
    ops.cross_entropy(model(at), at).backward()
    with pytest.raises(RuntimeError, match=r"^AdamW: all its parameters have been frozen since"):
        optimizer.step()


def test_an_optimizer_of_an_inactive_adapter_raises():
    model, at = gpt2(), np.array([[1, 2, 3]])
    lora.attach(model, ml.LoRAConfig(), "poet", rng=0)
    optimizer = optim.AdamW(model.trainable_parameters())
    lora.activate(model)
    model.ln_f.g.requires_grad = True
    ops.cross_entropy(model(at), at).backward()
    with pytest.raises(
        RuntimeError, match=r"^AdamW: none of .*inactive adapter gets no gradient"
    ):
        optimizer.step()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e-3, "0.1", None, True])
def test_an_invalid_learning_rate_is_refused_at_creation_and_in_a_step(bad):
    for kind in (optim.SGD, optim.Adam, optim.AdamW):
        words = rf"^{kind.__name__}: lr must be finite and not negative, not .*{bad}"
        with pytest.raises(ValueError, match=words):
            kind(parameters(), lr=bad)
        params = parameters()
        optimizer, before, _ = kind(params, lr=0), values(params), set_grads(params, 0)
        optimizer.lr = bad
        with pytest.raises(ValueError, match=words):
            optimizer.step()
        assert same(values(params), before) and optimizer.t == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1, "0.9"])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=rf"^SGD: momentum must be in \[0, 1\), not .*{bad}"):
        optim.SGD(parameters(), 0.1, momentum=bad)
    for kind in (optim.Adam, optim.AdamW):
        for betas in ((bad, 0.9), (0.9, bad)):
            with pytest.raises(
                ValueError, match=rf"^{kind.__name__}: each of betas must be in \[0"
            ):
                kind(parameters(), betas=betas)
    if bad != 1:
        with pytest.raises(ValueError, match=rf"^Adam: eps must be finite and not .*{bad}"):
            optim.Adam(parameters(), eps=bad)
        with pytest.raises(ValueError, match=rf"^AdamW: weight_decay must be finite and .*{bad}"):
            optim.AdamW(parameters(), weight_decay=bad)


def test_the_ends_of_the_ranges_are_valid():
    optimizer = optim.AdamW(parameters(), np.float32(0), (0, np.float64(0)), 0, 0)
    assert (optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (
        0,
        (0, 0),
        0,
        0,
    )
    assert optim.SGD(parameters(), 0, momentum=0).state_names == ()


def clip(parameters):
    return optim.clip_grad_norm(parameters, 1.0)


TAKERS = {**KINDS, "clip_grad_norm": clip}


@pytest.mark.parametrize("kind", sorted(TAKERS))
def test_anything_but_parameters_is_refused(kind):
    who = "SGD" if kind == "momentum" else kind
    model, params = gpt2(), parameters()
    remedy = r": pass model\.trainable_parameters\(\)$"
    for bad, description in (
        (model, "the GPT2"),
        (params["x.W"], "the Parameter"),
        (None, "None"),
        (3, "3"),
    ):
        words = rf"^{who}: it takes parameters, not {description}.*{remedy}"
        with pytest.raises(TypeError, match=words):
            TAKERS[kind](bad)
    for bad in (np.ones(3), ml.Tensor(np.ones(3), requires_grad=True), "x.W", None):
        with pytest.raises(TypeError, match=rf"^{who}: parameter y is .*, not a Parameter{remedy}"):
            TAKERS[kind]({**params, "y": bad})
        with pytest.raises(TypeError, match=rf"^{who}: parameter 4 is .*, not a Parameter{remedy}"):
            TAKERS[kind]([*params.values(), bad])
    with pytest.raises(TypeError, match=rf"^{who}: parameter 0 is the tuple \('tok.W'"):
        TAKERS[kind](model.named_parameters())
    with pytest.raises(ValueError, match=f"^{who}: parameters x.b and y are the same: pass it"):
        TAKERS[kind]({**params, "y": params["x.b"]})
    with pytest.raises(ValueError, match=f"^{who}: parameters 1 and 4 are the same"):
        TAKERS[kind]([*params.values(), params["x.b"]])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_nothing_to_train_and_frozen_parameters_raise(kind):
    with pytest.raises(ValueError, match="nothing to train"):
        KINDS[kind]({})
    params = parameters()
    params["x.b"].requires_grad = False
    with pytest.raises(ValueError, match=r"x\.b is frozen"):
        KINDS[kind](params)


@pytest.mark.parametrize("lr", [-1.0, math.inf, math.nan])
def test_a_learning_rate_that_is_negative_or_not_finite_raises(lr):
    with pytest.raises(ValueError, match="lr must be finite"):
        optim.Adam(parameters(), lr)


def test_a_list_of_parameters_is_named_by_number():
    params = list(parameters().values())
    optimizer = optim.SGD(iter(params), 0.5)
    assert list(optimizer.parameters) == ["0", "1", "2", "3"]
    before = ml.asnumpy(params[0].data).copy()
    params[0].grad = ml.backend.asarray(np.ones((3, 2)))
    optimizer.step()
    np.testing.assert_array_equal(ml.asnumpy(params[0].data), before - 0.5)


steps_and_warmup = st.integers(2, 60).flatmap(
    lambda steps: st.tuples(st.just(steps), st.integers(0, steps - 1))
)


@given(steps_and_warmup, st.floats(1e-5, 1.0), st.sampled_from(["linear", "cosine"]))
def test_a_schedule_warms_up_evenly_peaks_once_and_falls_to_0(shape, peak, kind):
    steps, warmup = shape
    make = optim.linear_schedule if kind == "linear" else optim.cosine_schedule
    lr = [make(peak, steps, warmup)(i) for i in range(steps + 3)]
    near = pytest.approx
    assert lr[:warmup] == near([peak * (i + 1) / (warmup + 1) for i in range(warmup)])
    assert lr[warmup] == near(peak) and all(x < peak for i, x in enumerate(lr) if i != warmup)
    assert all(a < b for a, b in pairwise(lr[: warmup + 1]))
    assert all(a > b > 0 for a, b in pairwise(lr[warmup:steps]))
    assert lr[steps:] == near([0.0] * 3, abs=1e-12 * peak)


@given(st.integers(1, 30), st.integers(0, 10), st.floats(0.0, 0.5))
def test_the_middle_and_the_end_of_both_schedules(half, warmup, floor):
    steps = warmup + 2 * half
    straight, cosine = optim.linear_schedule(2.0, steps, warmup), None
    cosine = optim.cosine_schedule(2.0, steps, warmup, floor)
    assert straight(warmup + half) == pytest.approx(1.0)
    assert cosine(warmup + half) == pytest.approx((2.0 + floor) / 2)
    assert cosine(steps) == pytest.approx(floor) == cosine(steps + 5)
    for i in range(warmup, steps + 1):
        done = (i - warmup) / (2 * half)
        assert straight(i) == pytest.approx(2 * (1 - done))
        angle = math.cos(math.pi * done)
        assert cosine(i) == pytest.approx(floor + (2 - floor) * (1 + angle) / 2)


@given(seeds, st.floats(0.01, 20.0), dtypes, st.booleans())
def test_clipping_bounds_the_norm_and_returns_the_norm_before(
    seed, most, dtype, mapping
):
    params = parameters(seed, dtype)
    set_grads(params, seed)
    arrays = {n: p.grad for n, p in params.items()}
    before = {n: ml.asnumpy(g).copy() for n, g in arrays.items()}
    norm = math.sqrt(sum((g.astype("float64") ** 2).sum() for g in before.values()))
    eps = 20 * float(np.finfo(dtype).eps)
    measured = optim.clip_grad_norm(params if mapping else list(params.values()), most)
    assert float(measured) == pytest.approx(norm, rel=eps)
    factor = min(1.0, most / norm)
    for name, p in params.items():
        assert str(p.grad.dtype) == dtype
        np.testing.assert_allclose(ml.asnumpy(p.grad), before[name] * factor, rtol=eps)
        assert np.array_equal(ml.asnumpy(arrays[name]), before[name]), "replaced, not written to"
        if ml.current().on_host:  # a device multiplies in any case
            assert (p.grad is arrays[name]) == (measured <= most)


@pytest.mark.parametrize("most", [0.0, -1.0, math.nan, "1", None, True])
def test_a_bound_that_is_not_positive_raises(most):
    with pytest.raises(
        ValueError, match=f"^clip_grad_norm: max_norm must be positive, not .*{most}"
    ):
        optim.clip_grad_norm(parameters(), most)


def test_an_infinite_bound_measures_and_clips_nothing():
    params = parameters()
    grads = set_grads(params, 3)
    norm = math.sqrt(sum((g * g).sum() for g in grads.values()))
    assert float(optim.clip_grad_norm(params, math.inf)) == pytest.approx(norm, rel=1e-12)
    assert all(np.array_equal(ml.asnumpy(p.grad), grads[name]) for name, p in params.items())


SCHEDULES = [optim.linear_schedule, optim.cosine_schedule]


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize(
    "name, bad, words",
    [
        *(("steps", bad, "an integer >= 1") for bad in (0, -1, 10.0, math.nan, None, True)),
        *(("warmup", bad, "an integer >= 0") for bad in (-1, 0.5, math.inf, None, True)),
        *(("peak", bad, "finite and not negative") for bad in (math.nan, math.inf, -0.1, "1")),
    ],
)
def test_invalid_arguments_of_a_schedule_are_refused(make, name, bad, words):
    with pytest.raises(ValueError, match=rf"^{make.__name__}: {name} must be {words}, not .*{bad}"):
        make(**{"peak": 1.0, "steps": 10, "warmup": 0, name: bad})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
def test_the_floor_of_a_schedule_is_a_rate(bad):
    with pytest.raises(
        ValueError, match=f"^cosine_schedule: floor must be finite and .*, not {bad}"
    ):
        optim.cosine_schedule(1.0, 10, floor=bad)
    for make in SCHEDULES:
        assert make(0, 1)(0) == 0 and make(1.0, 1)(0) == 1


def test_without_gradients_the_norm_is_0():
    params = parameters()
    params["x.b"].requires_grad = False  # clipping ignores the flag
    assert optim.clip_grad_norm(params, 1.0) == optim.clip_grad_norm([], 1.0) == 0.0
    params["one"].grad = ml.backend.asarray(np.array(3.0))
    assert optim.clip_grad_norm(params, 1.0) == 3.0 and params["x.W"].grad is None


def test_gradients_whose_squares_overflow_are_clipped():
    params = {"x": nn.Parameter(np.ones(4, "float32"))}
    params["x"].grad = ml.backend.asarray(np.full(4, 1e30, "float32"))
    assert float(optim.clip_grad_norm(params, 1.0)) == pytest.approx(2e30, rel=1e-6)
    np.testing.assert_allclose(ml.asnumpy(params["x"].grad), 0.5, rtol=1e-6)
