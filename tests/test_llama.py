"""Llama: its function, its positions, its cache, and all methods on it (minilora.models.llama)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import fits, ids, logits, made, normal, same_bytes, seeds, shake, snapshot, train

import minilora as ml
from minilora import accounting, lora, methods, ops
from minilora.accounting import plan
from minilora.models.families import SHAPES

KINDS = [  # every setting of Llama's own, each way
    {}, {"qkv_bias": False, "tied": False}, {"n_heads": 4, "n_kv_heads": 2, "rope_theta": 7.0},
    {"n_heads": 4, "n_kv_heads": 4, "qkv_bias": False, "eps": 0.1},
]
kinds = st.sampled_from(KINDS)
few = settings(max_examples=10)


def reference(model, at: np.ndarray) -> np.ndarray:
    """Llama written out with plain NumPy, one row, one head and one pair at a time."""
    w, c = model.state_dict(), model.config
    width = c.d_model // c.n_heads

    def norm(x, path):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.eps) * w[f"{path}.g"]

    def linear(x, path):
        return x @ w[f"{path}.W"].T + w.get(f"{path}.b", 0.0)

    def turned(x):
        z = x[:, : width // 2] + 1j * x[:, width // 2 :]  # a pair is a complex number
        speeds = np.array([c.rope_theta ** (-2 * i / width) for i in range(width // 2)])
        z = z * np.exp(1j * np.arange(len(x))[:, None] * speeds)
        return np.concatenate([z.real, z.imag], -1)

    rows = []
    for row in at:
        x = w["tok.W"][row]
        for i in range(c.n_layers):
            y, at_block = norm(x, f"blocks.{i}.ln1"), f"blocks.{i}"
            q, k, v = (linear(y, f"{at_block}.attn.{name}") for name in "qkv")
            heads = []
            for h in range(c.n_heads):
                shared = h * c.n_kv_heads // c.n_heads
                mine, theirs = (slice(j * width, (j + 1) * width) for j in (h, shared))
                s = turned(q[:, mine]) @ turned(k[:, theirs]).T / np.sqrt(width)
                s[np.triu_indices(len(row), 1)] = -np.inf
                p = np.exp(s - s.max(-1, keepdims=True))
                heads.append(p / p.sum(-1, keepdims=True) @ v[:, theirs])
            x = x + linear(np.concatenate(heads, -1), f"{at_block}.attn.o")
            y = norm(x, f"{at_block}.ln2")
            gate, up = (linear(y, f"{at_block}.mlp.{name}") for name in ("gate", "up"))
            x = x + linear(gate / (1 + np.exp(-gate)) * up, f"{at_block}.mlp.down")
        rows.append(norm(x, "ln_f") @ w["tok.W" if c.tied else "head.W"].T)
    return np.stack(rows)


@given(seeds, kinds, st.booleans())
def test_llama_is_what_its_formulas_say(seed, sizes, plain):
    model, at = made("llama", seed, **sizes), ids(seed, 2, 12)
    with ml.plain(plain):
        np.testing.assert_allclose(logits(model, at), reference(model, at), rtol=0, atol=1e-11)


@given(seeds, kinds, st.booleans())
@few
def test_the_gradient_along_any_direction_is_the_difference_of_two_losses(seed, sizes, recompute):
    model, at = made("llama", seed, **sizes), ids(seed, 2, 9)
    model.recompute = recompute
    ops.cross_entropy(model(at), at[:, ::-1]).backward()
    ways = [normal(seed + i, *p.shape) for i, p in enumerate(model.parameters())]
    slope = sum((ml.asnumpy(p.grad) * way).sum() for p, way in zip(model.parameters(), ways))
    losses = []
    for step in (-1e-6, 2e-6):
        for p, way in zip(model.parameters(), ways):
            p.data = p.data + ml.backend.asarray(step * way)
        losses.append(ops.cross_entropy(model(at), at[:, ::-1]).item())
    size = 1 + abs(slope)
    assert abs((losses[1] - losses[0]) / 2e-6 - slope) <= 1e-6 * size


@given(seeds, st.integers(0, 9), st.integers(1, 3))
def test_a_score_depends_on_the_distance_of_its_tokens_alone(seed, start, heads):
    """⟨turn(q, i), turn(k, j)⟩ = ⟨turn(q, i + s), turn(k, j + s)⟩, and no turn changes a length."""
    x = normal(seed, 2, 5, heads * 6)

    def turned(x, start):
        y = ml.asnumpy(ops.rotary(ml.Tensor(x), heads=heads, start=start).data)
        return y.reshape(2, 5, heads, 6).swapaxes(1, 2)

    one, two = (turned(x, s) @ turned(x[::-1], s).swapaxes(2, 3) for s in (0, start))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-11)
    lengths = np.linalg.norm(turned(x, start), axis=-1), np.linalg.norm(
        x.reshape(2, 5, heads, 6).swapaxes(1, 2), axis=-1)
    np.testing.assert_allclose(*lengths, rtol=1e-12)


@given(seeds, st.integers(1, 3))
def test_grouped_attention_is_attention_with_repeated_heads(seed, group):
    q, k, v = (normal(seed + i, 2, 4, 2 * n * 3) for i, n in enumerate((group, 1, 1)))
    wide = [x.reshape(2, 4, 2, 3).repeat(group, axis=2).reshape(2, 4, -1) for x in (k, v)]
    one = ops.attention(*map(ml.Tensor, (q, k, v)), heads=2 * group, kv_heads=2)
    two = ops.attention(*map(ml.Tensor, (q, *wide)), heads=2 * group)
    np.testing.assert_allclose(ml.asnumpy(one.data), ml.asnumpy(two.data), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 2), (2, 0), (2, 4)])
def test_heads_that_do_not_fit_are_refused(numpy_only, heads, kv_heads):
    x = ml.Tensor(np.ones((1, 2, 12)))
    with pytest.raises(ValueError, match=f"^attention: heads is {heads}, kv_heads is {kv_heads}"):
        ops.attention(x, x, x, heads=heads, kv_heads=kv_heads)
    with pytest.raises(ValueError, match=r"k is \(1, 2, 12\).*\(batch, n, d / 2\) twice"):
        ops.attention(x, x, x, heads=4, kv_heads=2)
    with pytest.raises(ValueError, match=r"^rotary: x is .* an even number of features"):
        ops.rotary(x, heads=4)
    with pytest.raises(ValueError, match=r"^swiglu: x is .* one shape"):
        ops.swiglu(x, ml.Tensor(np.ones(12)))
    with pytest.raises(ValueError, match=r"^rms_norm: .* gain must be \(12,\)"):
        ops.rms_norm(x, ml.Tensor(np.ones(11)))


@pytest.mark.parametrize(("bad", "words"), [
    ({"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
    ({"n_kv_heads": 0}, "n_kv_heads must be an integer >= 1, not 0"),
    ({"n_heads": 8}, "d_model 8 gives each of 8 heads an odd number of features"),
    ({"rope_theta": 0.0}, "rope_theta must be finite and positive, not 0.0"),
    ({"eps": -1}, "eps must be finite and positive, not -1"),
    ({"tied": 1}, "tied must be True or False, not 1"),
    ({"qkv_bias": None}, "qkv_bias must be True or False, not None"),
])
def test_a_config_that_does_not_fit_is_refused(numpy_only, bad, words):
    with pytest.raises(ValueError, match=f"^LlamaConfig: {words}"):
        ml.LlamaConfig(**{"d_model": 8, "n_heads": 4, "n_kv_heads": 2} | bad)
    with pytest.raises(TypeError, match="num_key_value_heads is called n_kv_heads here"):
        ml.LlamaConfig(num_key_value_heads=2)


def test_the_published_size_has_the_published_number_of_parameters(numpy_only):
    assert methods.Full().count(SHAPES["smollm2-135m"]) == 134_515_008
    qwen2 = ml.LlamaConfig(151936, 32768, 896, 24, 14, 4864, 0.0, 2, 1e-6, 1e6, True, True)
    assert methods.Full().count(qwen2) == 494_032_768


@given(seeds, kinds, st.integers(1, 5), st.integers(1, 9), st.booleans())
@few
def test_with_and_without_cache_the_tokens_are_the_same(seed, sizes, given_tokens, n, adapt):
    model, at = made("llama", seed, **sizes), ids(seed, 2, given_tokens)
    if adapt:
        lora.attach(model, ml.LoRAConfig(r=2, targets=("q", "v", "gate")), rng=seed)
        shake(model.trainable_parameters().values(), seed)
    cache, whole = model.new_cache(2), ids(seed, 2, 12)
    with ml.no_grad():
        parts = [ml.asnumpy(model(whole[:, a:b], cache=cache).data)
                 for a, b in ((0, given_tokens), (given_tokens, 11), (11, 12))]
    np.testing.assert_allclose(np.concatenate(parts, 1), logits(model, whole), rtol=0, atol=1e-11)
    assert cache[0].kv.shape == (2, 2, 12, model.config.kv_width)
    how = {"temperature": 0}
    cached = ml.generate(model, at, n, **how)  # past n_positions, too
    assert np.array_equal(cached, ml.generate(model, at, n, cache=False, **how))


@pytest.mark.parametrize("called", methods.METHODS)
@pytest.mark.parametrize("sizes", KINDS[:2])
@pytest.mark.usefixtures("numpy_first")
def test_every_method_is_attached_counted_trained_and_taken_off(called, sizes):
    if called == "bitfit" and not sizes.get("qkv_bias", True):
        pytest.skip("there is no bias to train")
    model = made("llama", 0, **sizes)
    before, first = snapshot(model), logits(model, ids())
    own = {"targets": ("q", "k", "gate", "down"), "r": 2, "lp": 2, "li": 0}
    names = methods.METHODS[called].__dataclass_fields__
    method = methods.METHODS[called](**{n: x for n, x in own.items() if n in names})
    method.apply(model, rng=0)
    trained = model.trainable_parameters()
    assert method.count(model.config) == sum(p.data.size for p in trained.values())
    assert not any(name.endswith("ln1.g") for name in trained) or called in ("full", "fttop2")
    train(model)
    wanted = logits(model, ids())
    assert not np.allclose(wanted, first)
    if isinstance(method, methods.LoRA):
        with lora.merged(model):
            np.testing.assert_allclose(logits(model, ids()), wanted, rtol=1e-10, atol=1e-11)
        assert lora.verify(model, ids()).passed
    methods.remove(model)
    assert snapshot(model) == before and same_bytes(logits(model, ids()), first)


@pytest.mark.parametrize("called", ["lora", "prelayer", "adapter-h"])
def test_what_a_step_takes_is_predicted_on_shapes(numpy_only, called):
    """And the plan of the published size runs, whose attention keeps k and v of three heads."""
    model = made("llama", 0, "float32", n_positions=30)
    methods.METHODS[called]().apply(model, rng=0)
    ledger = accounting.ledger(model, ml.AdamW(model.trainable_parameters(), lr=1e-3), 2, 9)
    assert all(abs(row.predicted - row.measured) <= 2000 for row in ledger.rows)
    whole = plan("smollm2-135m", method=called, tokens=64)
    assert whole.count.frozen == 134_515_008
    assert 2 * 64 * whole.count.frozen < whole.forward.products < 2.5 * 64 * whole.count.total


def test_the_targets_of_a_llama_are_its_seven_matrices_and_its_tables(numpy_only):
    model = made("llama", tied=False)
    assert {at.split(".")[-1] for at in lora.adaptable(model)} == {
        "tok", "q", "k", "v", "o", "gate", "up", "down", "head"}
    assert fits("llama", ("pos", "q")) == ("gate", "q")
    shapes = {n.split(".")[-1]: m.W.shape for n, m in model.named_modules() if "blocks.0" in n
              and hasattr(m, "W")}
    assert shapes == model.config.linears()
