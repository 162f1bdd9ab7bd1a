"""rsLoRA, PiSSA, DoRA, LoRA+; combined adapters, and one adapter per batch row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    assert_near,
    dtypes,
    gpt2,
    ids,
    in_use,
    layers,
    logits,
    normal,
    roundings,
    same_bytes,
    seeds,
    shake,
    snapshot,
    wide,
)

import minilora as ml
from minilora import lora, methods, rounding
from minilora.adapters.merging import merged_layer
from minilora.lora.layers import LoRALinear
from minilora.tensor import Tensor

MERGED = ["lora", "rslora", "pissa", "dora"]
merged = pytest.mark.parametrize("called", MERGED)
few = settings(max_examples=5)
IDS = ids()
alphas = st.sampled_from([0.5, 7.0])


def varied(
    called: str, seed: int = 0, dtype: str = "float64", r: int = 3, alpha: float = 5.0, **how
):
    """A model with a method of which nothing is 0 any more."""
    model = gpt2(seed, dtype)
    methods.apply(model, called, rng=seed, r=r, alpha=alpha, targets=("q", "up", "o"), **how)
    shake(model.trainable_parameters().values(), seed + 1, 0.2)
    return model


def far(got, wanted) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


# Merging.


@merged
@given(seeds, st.integers(1, 4), alphas)
@few
def test_merged_it_is_the_same_function_and_afterwards_the_same_bits(called, seed, r, alpha):
    model = varied(called, seed, r=r, alpha=alpha)
    outputs, before = logits(model, IDS), snapshot(model)
    with lora.merged(model):
        assert far(logits(model, IDS), outputs) < 1e-12
        assert not layers(model)
    assert snapshot(model) == before and same_bytes(logits(model, IDS), outputs)
    with methods.disabled(model):
        base = logits(model, IDS)
    assert far(base, outputs) > 1e-6 and same_bytes(base, logits(gpt2(seed), IDS))
    lora.merge(model)
    assert not layers(model) and far(logits(model, IDS), outputs) < 1e-12


@merged
@given(seeds, st.integers(1, 4), alphas)
@few
def test_merged_in_float32_it_is_off_by_its_roundings(called, seed, r, alpha):
    """Sums of k, r and r terms, twice; the size of what is added up, term by term."""
    model = varied(called, seed, "float32", r, alpha)
    for layer in layers(model).values():
        (a,), k = in_use(layer), layer.base.W.shape[1]
        x = normal(seed, 2, 3, k, dtype="float32")
        whole = np.abs(wide(layer.base.W)) + abs(a.scale) * np.abs(wide(a.B)) @ np.abs(wide(a.A))
        if called == "pissa":
            whole = whole + abs(a.scale) * np.abs(wide(a.start.B)) @ np.abs(wide(a.start.A))
        if called == "dora":
            V = wide(layer.base.W) + a.scale * wide(a.B) @ wide(a.A)
            whole = whole * (np.abs(wide(a.m)) / np.linalg.norm(V, axis=1))[:, None]
            whole = whole * (1 + k)  # the length's own error counts for the whole of a row
        size = np.abs(x.astype("float64")) @ whole.T + np.abs(wide(layer.base.b))
        plain, _ = merged_layer("it", layer)
        got, wanted = (ml.asnumpy(f(Tensor(x)).data) for f in (plain, layer))
        assert got.dtype == np.float32
        assert_near(got, wanted, roundings(k + 2 * a.r + 6, size, "float32"))


@pytest.mark.parametrize("called", [*MERGED, "lora+preembed", "lora+prelayer"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_merge_is_verified_by_the_bound_of_lora(called, dtype):
    model = gpt2(0, dtype)
    methods.apply(model, called, rng=0, r=3, alpha=5)
    shake(methods.trained_by(model, "default").values(), 1, 0.2)
    for layer in layers(model).values():
        if (called, dtype) == (
            "dora",
            "float64",
        ):  # lengths so short that W0 is large beside what becomes of it
            in_use(layer)[0].m.data *= 1e-6
    found = lora.verify(model, IDS[:, :4])
    assert found.passed and found.apart < 1e-12, str(found)
    if dtype == "float32":  # no wider than half a unit in the last place, and a little
        assert max(w.allowed for w in found.weights.values()) < 0.5001


@pytest.mark.parametrize(
    "called, mistake", [("pissa", 1.001), ("dora", 1.001), ("dora", 0)]
)
def test_a_wrong_merge_of_pissa_or_dora_is_seen(numpy_only, monkeypatch, called, mistake):
    model = varied(called, dtype="float32")
    right = lora.Adapted.delta
    monkeypatch.setattr(lora.Adapted, "delta", lambda self: right(self) * mistake)
    found = lora.verify(model, IDS[:, :4])
    assert not any(w.right for w in found.weights.values()) and not found.checks["float64"]
    with pytest.raises(ValueError, match=r"(PiSSA|DoRA)Linear is not a single update B A"):
        rounding.layer_bound(layers(model)["blocks.0.attn.q"], np.zeros((1, 8), "float32"))


@merged
def test_one_of_a_kind_leaves_another_alone(called):
    model = varied(called)
    outputs = logits(model, IDS)
    methods.apply(model, called, "two", rng=1, r=2, alpha=3, targets=("q", "k"))
    shake(model.trainable_parameters().values(), 1, 0.2)
    second = logits(model, IDS)
    methods.activate(model, "default")
    assert same_bytes(logits(model, IDS), outputs)
    methods.remove(model, "default")
    methods.activate(model, "two")
    assert same_bytes(logits(model, IDS), second) and far(second, outputs) > 1e-6


# rsLoRA: alpha / √r.


@given(seeds, st.integers(1, 6), alphas)
@few
def test_rslora_is_scaled_by_the_root_of_r(numpy_only, tmp_path_factory, seed, r, alpha):
    patterns = {"rank_pattern": {"up": 2}, "alpha_pattern": {"o": 3.0}}
    model = varied("rslora", seed, r=r, alpha=alpha, **patterns)
    for path, layer in layers(model).items():
        (a,) = in_use(layer)
        rank, share = (
            (2, alpha) if path.endswith("up") else (r, 3.0 if path.endswith("o") else alpha)
        )
        assert a.r == rank and abs(a.scale - share / rank**0.5) < 1e-15 * share
    path, plain = tmp_path_factory.mktemp("rs") / "a.npz", gpt2(seed)
    lora.save(model, path)
    lora.load(plain, path)
    assert same_bytes(logits(plain, IDS), logits(model, IDS))


# PiSSA: the principal part of W0.


@pytest.mark.parametrize("alpha", [0.5, 7.0, -2.0])  # a negative one, too, turns nothing around
@given(seeds, st.integers(1, 9), dtypes)
@few
def test_pissa_starts_at_the_nearest_matrix_of_rank_r(alpha, seed, r, dtype):
    model = gpt2(seed, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # r = 9 is above the layer's rank
        methods.apply(model, "pissa", r=r, alpha=alpha, targets=("q", "up"), rng=0)
    for layer in layers(model).values():
        (a,), W0 = in_use(layer), wide(layer.base.W)
        BA, s = a.scale * wide(a.B) @ wide(a.A), np.linalg.svd(W0)[1]
        eps = 200 * np.finfo(dtype).eps
        left = np.linalg.svd(W0 - BA)[1]
        np.testing.assert_allclose(left[: max(0, len(s) - r)], s[r:], atol=eps * s[0])
        assert np.linalg.matrix_rank(BA, tol=eps * s[0]) == min(r, len(s))
        sizes = [np.linalg.norm(x) for x in (wide(a.A), wide(a.B))]
        assert r > len(s) or abs(sizes[0] / sizes[1] - 1) < eps
        assert same_bytes(wide(a.start.A), wide(a.A))


def test_pissa_is_kept_as_a_plain_lora_by_either_save(numpy_only, tmp_path):
    model = varied("pissa", rank_pattern={"up": 1}, bias="lora")
    outputs = logits(model, IDS)
    lora.save(model, tmp_path / "a.npz")
    other = gpt2(0)
    lora.load(other, tmp_path / "a.npz")
    assert [type(a) for x in layers(other).values() for a in in_use(x)] == [LoRALinear] * 6
    assert far(logits(other, IDS), outputs) < 1e-12
    assert {in_use(x)[0].r for x in layers(other).values()} == {2, 6}
    methods.save(model, tmp_path / "b.npz")
    third = gpt2(0)
    methods.load(third, tmp_path / "b.npz")
    assert same_bytes(logits(third, IDS), logits(other, IDS))


def test_pissa_s_dropout_is_of_what_is_trained():
    model = varied("pissa", dropout=0.5)
    layer = layers(model)["blocks.0.attn.q"]
    (a,), x = in_use(layer), Tensor(normal(0, 2, 3, 8))
    a.rng = np.random.default_rng(7)
    mask = wide(ml.ops.dropout_mask(x.shape, 0.5, np.random.default_rng(7), "float64"))
    z = wide(x)
    wanted = a.scale * (
        (z * mask) @ wide(a.A).T @ wide(a.B).T - z @ wide(a.start.A).T @ wide(a.start.B).T
    )
    zero = Tensor(np.zeros((2, 3, layer.base.W.shape[0])))
    got = a(lambda _: zero, x)
    np.testing.assert_allclose(ml.asnumpy(got), wanted, rtol=1e-11, atol=1e-12)


# DoRA: direction and length.


@given(seeds, st.integers(1, 4), alphas)
@few
def test_dora_is_its_formula_and_its_lengths_are_m(seed, r, alpha):
    model = varied("dora", seed, r=r, alpha=alpha)
    layer = layers(model)["blocks.0.mlp.up"]
    (a,), x = in_use(layer), normal(seed, 2, 3, 8)
    V = wide(layer.base.W) + alpha / r * wide(a.B) @ wide(a.A)
    W = wide(a.m)[:, None] * V / np.linalg.norm(V, axis=1, keepdims=True)
    np.testing.assert_allclose(
        ml.asnumpy(layer(Tensor(x))), x @ W.T + wide(layer.base.b), rtol=1e-11, atol=1e-12
    )
    plain, _ = merged_layer("it", layer)
    np.testing.assert_allclose(np.linalg.norm(wide(plain.W), axis=1), np.abs(wide(a.m)), rtol=1e-12)
    np.testing.assert_allclose(wide(plain.W), W, rtol=1e-11, atol=1e-13)


def test_dora_s_dropout_is_of_what_A_gets():
    model = varied("dora", dropout=0.5)
    layer, x = layers(model)["blocks.0.mlp.up"], normal(0, 2, 3, 8)
    (a,) = in_use(layer)
    a.rng = np.random.default_rng(7)
    mask = wide(ml.ops.dropout_mask(x.shape, 0.5, np.random.default_rng(7), "float64"))
    W0, BA = wide(layer.base.W), a.scale * wide(a.B) @ wide(a.A)
    y = (x @ W0.T + (x * mask) @ BA.T) * wide(a.m) / np.linalg.norm(W0 + BA, axis=1)
    np.testing.assert_allclose(
        ml.asnumpy(layer(Tensor(x))), y + wide(layer.base.b), rtol=1e-11, atol=1e-12
    )


def test_dora_s_gradient_takes_the_lengths_for_constants():
    model = varied("dora")
    layer, x = layers(model)["blocks.0.mlp.up"], normal(1, 3, 8)
    (a,) = in_use(layer)
    V = wide(layer.base.W) + a.scale * wide(a.B) @ wide(a.A)
    n = np.linalg.norm(V, axis=1)
    (layer(Tensor(x)) * ml.backend.asarray(g := normal(2, 3, 32))).sum().backward()
    h, near = g * wide(a.m) / n, {"rtol": 1e-10, "atol": 1e-12}
    A, B = wide(a.A), wide(a.B)
    np.testing.assert_allclose(wide(a.B.grad), a.scale * h.T @ x @ A.T, **near)
    np.testing.assert_allclose(wide(a.A.grad), a.scale * B.T @ h.T @ x, **near)
    np.testing.assert_allclose(wide(a.m.grad), (g * (x @ V.T) / n).sum(0), **near)


def test_dora_stands_alone_and_is_no_plain_lora(numpy_only, tmp_path):
    model = varied("dora")
    methods.apply(model, "lora", "two", targets=("q",), rng=0)
    with pytest.raises(ValueError, match=r"default and two cannot be active together: DoRA"):
        methods.activate(model, "default", "two")
    with pytest.raises(ValueError, match="tok is an Embedding"):
        methods.apply(gpt2(), "dora", targets=("tok",))
    methods.activate(model, "two")
    shake(model.trainable_parameters().values(), 3)
    other = gpt2(0)
    lora.save(model, tmp_path / "a.npz", "two")
    lora.load(other, tmp_path / "a.npz")
    assert same_bytes(logits(other, IDS), logits(model, IDS))


# LoRA+: a rate of its own for B.


def test_lora_plus_multiplies_the_rate_of_B_alone():
    def steps(make, n=2, **how):
        model = gpt2(0)
        methods.apply(model, "lora", rng=0)
        shake(model.trainable_parameters().values(), 1)
        optimizer = make(model.trainable_parameters(), lr=0.01, weight_decay=0.1, **how)
        for _ in range(n):
            optimizer.zero_grad()
            ml.ops.cross_entropy(model(IDS), IDS).backward()
            optimizer.step()
        assert optimizer.lr == 0.01
        return {n: ml.asnumpy(p).copy() for n, p in model.trainable_parameters().items()}

    slow, one = steps(ml.AdamW), steps(methods.LoRAPlus, rates={"*.B": 1})
    assert all(same_bytes(slow[n], one[n]) for n in slow)
    plus, slow = steps(methods.LoRAPlus, 1), steps(ml.AdamW, 1)
    model = gpt2(0)
    methods.apply(model, "lora", rng=0)
    shake(model.trainable_parameters().values(), 1)
    for name, p in model.trainable_parameters().items():
        moved, once = plus[name] - wide(p), slow[name] - wide(p)
        times = 16 if name.endswith("B") else 1
        np.testing.assert_allclose(moved, times * once, rtol=1e-9, atol=1e-15)
    with pytest.raises(ValueError, match="no parameter matches 'C'"):
        steps(methods.LoRAPlus, rates={"C": 2})
    with pytest.raises(ValueError, match=r"rates\['\*.B'\] must be"):
        steps(methods.LoRAPlus, rates={"*.B": -1})


# Combining.


def factors_of(model) -> list:
    """A and B of every adapter."""
    adapters = [a for layer in layers(model).values() for a in layer.adapters.values()]
    return [p for a in adapters for p in (a.A, a.B)]


def two(seed: int = 0, ranks=(2, 3), dtype: str = "float64"):
    """Adapters "a" and "b", which share q, of scales 2.5 and -0.5, or 5 and so on."""
    model = gpt2(seed, dtype)
    for name, r, alpha, targets in zip("ab", ranks, (5.0, 1.5), (("q", "up"), ("q", "tok"))):
        lora.attach(model, ml.LoRAConfig(r=r, alpha=alpha, targets=targets), name, rng=r)
    shake(factors_of(model), seed + 5)
    return model


def sums(model, weights):
    """Σ weight · ΔW by layer, in B A's orientation."""
    return {
        path: sum(
            w * a.alpha / a.r * wide(a.B) @ wide(a.A)
            for n, w in weights.items() if (a := layer.adapters.get(n))
        )
        for path, layer in layers(model).items()
    }


weights = st.tuples(*[st.sampled_from([0.3, 1.0, -0.7])] * 2).map(lambda w: dict(zip("ab", w)))


@pytest.mark.parametrize("how", ["cat", "svd", "linear"])
@given(seeds, weights)
@few
def test_combine_returns_the_error_of_the_result(how, seed, weights):
    model = two(seed, (2, 2))
    wanted = sums(model, weights)
    errors = lora.combine(model, weights, how, "c")
    assert model.adapters.active == ("c",)
    for path, layer in layers(model).items():
        (a,) = in_use(layer)
        made = a.alpha / a.r * wide(a.B) @ wide(a.A)
        off = np.linalg.norm(made - wanted[path]) / np.linalg.norm(wanted[path])
        assert abs(off - errors[path]) < 1e-12
        s = np.linalg.svd(wanted[path])[1]
        shared = path.endswith("q")
        if how == "cat" or not shared:
            assert off < 1e-14 * len(s) and a.r == (4 if shared and how == "cat" else 2)
        elif how == "svd":  # the nearest of its rank: Eckart and Young
            assert a.r == 2 and abs(off - np.linalg.norm(s[2:]) / np.linalg.norm(s)) < 1e-12
        else:  # the cross terms, and nothing else
            parts = [layer.adapters[n] for n in "ab"]
            shares = [w * p.scale for w, p in zip(weights.values(), parts)]
            c, d = [np.sign(w) * abs(w) ** 0.5 for w in shares], [abs(w) ** 0.5 for w in shares]
            crossed = ((c[i] * d[1 - i], parts[i].B, parts[1 - i].A) for i in range(2))
            cross = sum(s * wide(B) @ wide(A) for s, B, A in crossed)
            np.testing.assert_allclose(made - wanted[path], cross, rtol=1e-9, atol=1e-13)
            assert off > 1e-3
    outputs, before = logits(model, IDS), snapshot(model)
    with lora.merged(model):
        assert far(logits(model, IDS), outputs) < 1e-12
    assert snapshot(model) == before


@pytest.mark.parametrize("how", ["cat", "svd", "linear"])
def test_one_adapter_combined_is_itself(how):
    model = two()
    lora.activate(model, "b")
    outputs = logits(model, IDS)
    errors = lora.combine(model, {"b": 1}, how)
    assert max(errors.values()) < 1e-13 and far(logits(model, IDS), outputs) < 1e-12
    made = [a for x in layers(model).values() if (a := x.adapters.get("combined"))]
    assert made and not any(p.requires_grad for a in made for p in a.parameters())


def test_combined_by_cat_is_both_active_and_merges():
    model = two()
    lora.activate(model, "a", "b")
    outputs = logits(model, IDS)
    lora.combine(model, {"a": 1, "b": 1})
    assert far(logits(model, IDS), outputs) < 1e-12
    with lora.merged(model):
        assert far(logits(model, IDS), outputs) < 1e-12
    lora.detach(model, "a"), lora.detach(model, "b")
    assert far(logits(model, IDS), outputs) < 1e-12
    lora.merge(model)
    assert far(logits(model, IDS), outputs) < 1e-12


def test_svd_of_a_higher_rank_is_exact():
    model = two()
    assert max(lora.combine(model, {"a": 0.5, "b": 2}, "svd", r=5).values()) < 1e-13
    lora.combine(model, {"a": 0.5, "b": 2}, "svd", "largest")
    assert layers(model)["blocks.0.attn.q"].adapters["largest"].r == 3
    lora.combine(model, {"a": 0.5, "b": 2}, "svd", "r1", r=1)
    assert {x.adapters["r1"].r for x in layers(model).values()} == {1}


def test_pissa_and_a_float32_model_combine(numpy_only):
    model = gpt2(0, "float32")
    methods.apply(model, "pissa", "p", rng=0, r=2)
    shake(model.trainable_parameters().values(), 1)
    outputs = logits(model, IDS)
    lora.combine(model, {"p": 1})
    assert far(logits(model, IDS), outputs) < 1e-5
    assert lora.verify(model, IDS).passed


@pytest.mark.parametrize(
    "how, says",
    [
        ({"weights": {"a": 1, "b": 1}, "how": "linear"}, "adapters of one rank, not of \\[2, 3\\]"),
        ({"weights": {"a": 1}, "how": "mean"}, "how must be one of cat, svd, linear"),
        ({"weights": {"a": float("nan")}}, "weights\\['a'\\] must be"),
        ({"weights": {}}, "at least one adapter"),
        ({"weights": {"a": 1}, "name": "b"}, "'b' cannot be an adapter's name"),
        ({"weights": {"a": 1}, "r": 2}, 'give r with how="svd" only'),
        ({"weights": {"a": 1}, "how": "svd", "r": 0}, "combine: r must be an integer >= 1"),
        ({"weights": {"w": 1}}, "'w' trains a copy of a parameter"),
        ({"weights": {"x": 1}}, "no adapter is called 'x'"),
    ],
)
def test_combine_refuses_and_leaves_the_model_as_it_was(numpy_only, how, says):
    model = two()
    lora.attach(model, ml.LoRAConfig(r=2, bias="all"), "w", rng=0)
    before = snapshot(model)
    with pytest.raises((ValueError, KeyError), match=says):
        lora.combine(model, **how)
    assert snapshot(model) == before


# One adapter for each row.


def three(dtype: str = "float64", **how):
    model = gpt2(0, dtype)
    for i, name in enumerate(("poet", "clerk", "judge")):
        config = ml.LoRAConfig(r=i + 1, alpha=5 - 2 * i, targets=("q", "up")[: i + 1], **how)
        lora.attach(model, config, name, rng=i)
    shake(factors_of(model), 5, 0.4)
    return model


rows = st.lists(st.sampled_from(["poet", "clerk", "judge", "base"]), min_size=1, max_size=4)


@given(rows)
@few
def test_each_row_is_what_it_would_be_alone(names):
    model, x = three(), ids(1, len(names), 5)
    apart = []
    for name, row in zip(names, x):
        lora.activate(model, *[] if name == "base" else [name])
        apart.append(logits(model, row[None])[0])
    before = snapshot(model)
    with lora.per_row(model, names):
        np.testing.assert_allclose(logits(model, x), apart, rtol=1e-11, atol=1e-12)
        together = ml.generate(model, x, 9, temperature=0)
        assert (together == ml.generate(model, x, 9, temperature=0, cache=False)).all()
    assert snapshot(model) == before
    for name, row, got in zip(names, x, together):
        lora.activate(model, *[] if name == "base" else [name])
        assert (ml.generate(model, row, 9, temperature=0) == got).all()


def test_rows_may_be_of_pissa_and_of_dora():
    model, x = varied("pissa"), ids(1, 3, 5)
    lora.attach(model, ml.LoRAConfig(r=2, targets=("q",)), "plain", rng=0)
    shake(model.trainable_parameters().values(), 3, 0.3)
    with lora.per_row(model, ["default", "base", "plain"]):
        together = logits(model, x)
    for row, name in enumerate(("default", None, "plain")):
        lora.activate(model, *[name] if name else [])
        np.testing.assert_allclose(together[row], logits(model, x)[row], rtol=1e-11, atol=1e-12)
    model = varied("dora")
    alone = [logits(model, x)[1]]
    with methods.disabled(model):
        alone.append(logits(model, x)[2])
    with lora.per_row(model, ["base", "default", "base"]):
        np.testing.assert_allclose(logits(model, x)[1:], alone, rtol=1e-11, atol=1e-12)
    methods.apply(model, "adapter-h", "wide", r=2, rng=0)
    with (
        pytest.raises(ValueError, match=r"'wide' .adapter-h. at blocks.0.attn is not an update"),
        lora.per_row(model, ["wide"]),
    ):
        pass


@pytest.mark.parametrize("again", [False, True])
def test_each_row_trains_its_own_adapter(again):
    names, x = ["judge", "poet", "base", "judge"], ids(1, 4, 6)

    def gradients(parts):
        model = three()
        model.recompute = again
        for name, p in model.named_parameters():
            p.requires_grad = name.endswith((".A", ".B"))
        for chosen, picked in parts:
            with lora.per_row(model, chosen):
                loss = ml.ops.cross_entropy(model(picked), picked) * len(picked)
            loss.backward()  # outside: who counts where is remembered
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    whole = gradients([(names, x)])
    apart = gradients([([name], x[i : i + 1]) for i, name in enumerate(names) if name != "base"])
    assert whole.keys() == apart.keys() and not any("clerk" in name for name in whole)
    for name, g in whole.items():
        np.testing.assert_allclose(ml.asnumpy(g), ml.asnumpy(apart[name]), rtol=1e-9, atol=1e-12)


def test_rows_are_of_one_model_in_one_thread():
    model, other, x = three(), three(), ids(1, 2, 4)
    lora.activate(other, "judge")
    outputs = logits(other, x)
    with lora.per_row(model, ["poet", "base"]):
        assert same_bytes(logits(other, x), outputs)
        with pytest.raises(ValueError, match="2 names for a batch of shape"):
            model(ids(1, 3, 4))
    with lora.per_row(model, "poet"):  # a name alone is that of the one row
        assert model(x[:1]).shape == (1, 4, 11)
    with pytest.raises(KeyError, match="no adapter is called 'x'"), lora.per_row(model, ["x"]):
        pass
    lora.attach(model, ml.LoRAConfig(targets="tok"), "table", rng=0)
    shake(model.trainable_parameters().values(), 1)
    alone = logits(model, x)
    with lora.per_row(model, ["poet", "table"]):
        np.testing.assert_allclose(logits(model, x)[1], alone[1], rtol=1e-11, atol=1e-12)
    lora.attach(model, ml.LoRAConfig(bias="all"), "biased", rng=0)
    with pytest.raises(ValueError, match="'biased' trains a copy"), lora.per_row(model, ["biased"]):
        pass
