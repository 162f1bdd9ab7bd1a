"""The bound on merging: never broken by rounding, broken by mistakes, and not much too wide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import adapted, ids, normal, seeds

import minilora as ml
from minilora import lora, nn, rounding


def layer(seed: int, d: int, k: int, r: int, dtype: str) -> lora.LoRALinear:
    """A LoRA layer whose numbers are all random, alpha ≠ r."""
    model = nn.Module()
    model.only = nn.Linear(k, d, rng=seed, dtype=dtype)
    lora.attach(model, ml.LoRAConfig(r=r, alpha=2.5 * r, targets="only"), rng=seed)
    for i, p in enumerate(model.parameters()):
        p.data[...] = ml.backend.asarray(normal(seed + i, *p.shape, dtype=dtype))
    return model.only


@given(seeds, st.integers(1, 40), st.integers(1, 40), st.integers(1, 6))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_merged_and_unmerged_stay_under_the_bound(dtype, seed, d, k, r):
    only = layer(seed, d, k, r, dtype)
    x = ml.Tensor(normal(seed, 5, k, dtype=dtype))
    unmerged, merged = (ml.asnumpy(f(x).data) for f in (only, only.plain("only")[0]))
    bound = ml.asnumpy(rounding.layer_bound(only, x.data))
    apart = np.abs(merged.astype("float64") - unmerged)
    assert (apart <= bound).all()
    size = np.abs(unmerged).max()  # no wider than the worst case that it is, with room for sums
    assert bound.max() <= 50 * (k + r) ** 1.5 * np.finfo(dtype).eps * max(size, 1)


def test_mistakes_in_merging_break_the_bound():
    only = layer(0, 24, 24, 3, "float32")
    x = ml.Tensor(normal(1, 5, 24, dtype="float32"))
    unmerged = ml.asnumpy(only(x).data)
    bound = ml.asnumpy(rounding.layer_bound(only, x.data))
    W0, b = (ml.asnumpy(p.data) for p in (only.base.W, only.base.b))
    A, B = (ml.asnumpy(p.data) for p in (only.adapters["default"].A, only.adapters["default"].B))
    delta = 2.5 * B @ A
    for wrong in (3 * delta, -delta, delta.T, 2 * delta, delta / 2.5, 0 * delta, 1.001 * delta):
        merged = ml.asnumpy(x.data) @ (W0 + wrong).T + b
        assert (np.abs(merged - unmerged) > bound).any()


@pytest.mark.parametrize("targets", [("q", "v"), ("tok", "o", "up"), ("blocks.*",)])
def test_compare_bounds_the_largest_logit_difference(targets):
    model, _ = adapted(dtype="float32", targets=targets)
    told = rounding.compare(model, ids())
    assert 0 < told.difference <= told.bound < 1
    with lora.merged(model):
        merged = ml.asnumpy(model(ids()).data)
    apart = np.abs(merged.astype("float64") - ml.asnumpy(model(ids()).data))
    assert apart.max() == told.difference == apart[told.logit]


def test_compare_notices_a_wrong_merge(monkeypatch):
    model, _ = adapted(dtype="float32", alpha=50.0)
    delta = lora.Adapter.delta
    monkeypatch.setattr(lora.Adapter, "delta", lambda self: delta(self) * self.r)  # alpha, not /r
    told = rounding.compare(model, ids())
    assert told.difference > told.bound


def test_compare_leaves_the_model_as_it_was():
    model, _ = adapted(dtype="float32", dropout=0.5)
    before = {name: ml.asnumpy(p.data).tobytes() for name, p in model.named_parameters()}
    types = [type(m) for _, m in model.named_modules()]
    held = {p: ml.backend.asarray(normal(0, *p.shape, dtype="float32"))
            for p in model.trainable_parameters().values()}  # fmt: skip
    for p, gradient in held.items():
        p.grad = gradient
    kept = {p: ml.asnumpy(gradient).tobytes() for p, gradient in held.items()}
    rounding.compare(model, ids())
    for p in model.parameters():
        assert p.grad is held.get(p)
    assert kept == {p: ml.asnumpy(gradient).tobytes() for p, gradient in held.items()}
    assert before == {name: ml.asnumpy(p.data).tobytes() for name, p in model.named_parameters()}
    assert types == [type(m) for _, m in model.named_modules()]
    assert all(module.training for _, module in model.named_modules())


@given(st.integers(1, 1000))
def test_gamma_is_n_roundings_in_a_row(n):
    u = float(np.finfo("float32").eps) / 2
    assert rounding.gamma(n, "float32") == pytest.approx(n * u, rel=2 * n * u)
    assert rounding.gamma(n, "float32") >= (1 + u) ** n - 1
