"""LoRA: it starts as the base, trains only A and B, and merges exactly (minilora.lora).

The mistakes of other implementations are in test_pitfalls.py.
"""

import warnings
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import (
    adapted,
    assert_near,
    bits,
    delta,
    dtypes,
    families,
    family,
    fits,
    gpt2,
    ids,
    in_use,
    layers,
    logits,
    lora_of,
    made,
    normal,
    roundings,
    same_bytes,
    seeds,
    shake,
    snapshot,
    train,
    unfelt,
    wide,
)

import minilora as ml
from minilora import accounting, lora, nn, rounding
from minilora.adapters.patterns import matches
from minilora.adapters.places import swap
from minilora.files import checkpoint
from minilora.tensor import Tensor

NAMES = ("tok", "pos", "q", "k", "v", "o", "up", "down")
targets = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)
ranks = st.integers(1, 4)
biases = st.sampled_from(["none", "lora", "all"])
alphas = st.sampled_from([0.5, 7.0, -2.5])  # never a rank
LINEARS = ("q", "k", "v", "o", "up", "down")
few = settings(max_examples=10)
IDS = ids()


def flags(model) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


def types(model) -> list[tuple[str, type]]:
    return [(path, type(module)) for path, module in model.named_modules()]


def two(seed: int = 0, family: str = "gpt2", **config):
    """A model with the adapters "one" (q, tok) and "two" (q, up), neither zero, "two" active."""
    model = made(family, seed)
    lora.attach(model, ml.LoRAConfig(r=2, alpha=3, targets=("q", "tok"), **config), "one", rng=1)
    lora.attach(model, ml.LoRAConfig(r=1, alpha=-2.5, targets=("q", "up")), "two", rng=2)
    parts = [x for layer in layers(model).values() for x in layer.adapters.values()]
    shake([p for adapter in parts for p in (adapter.A, adapter.B)], seed + 3)
    return model


# At first: nothing.


@given(families, seeds, dtypes, targets, ranks, alphas, st.sampled_from(["gaussian", "kaiming"]))
def test_attaching_changes_no_bit_of_the_logits(family, seed, dtype, names, r, alpha, init):
    model = made(family, seed, dtype)
    before = logits(model, IDS)
    names = fits(family, names)
    lora.attach(model, ml.LoRAConfig(r=r, alpha=alpha, targets=names, init=init, dropout=0.5))
    assert same_bytes(logits(model, IDS), before)  # in training, too
    assert same_bytes(logits(model.eval(), IDS), before)


@given(families, seeds, dtypes)
def test_the_seed_decides_and_each_layer_draws_its_own_A(family, seed, dtype):
    def A(seed):
        model = made(family, 0, dtype)
        lora.attach(model, ml.LoRAConfig(targets=fits(family, NAMES)), rng=seed)
        return [ml.asnumpy(layer.adapters["default"].A.data) for layer in layers(model).values()]

    first = A(seed)
    assert all(map(same_bytes, first, A(np.random.default_rng(seed))))
    assert len({a.tobytes() for a in first + A(seed + 1)}) == 2 * len(first)
    assert all(a.dtype == dtype for a in first)


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_A_is_drawn_with_the_spread_of_its_inputs_and_B_is_0(init):
    """N(0, 1/k), or uniform within ±1/√k, which is Kaiming's for a = √5; of a table, 1/r."""
    model, n = nn.Module(), 100 * 40
    model.layer, model.table = nn.Linear(100, 7, rng=0), nn.Embedding(100, 7, rng=0)
    lora.attach(model, ml.LoRAConfig(r=40, init=init, targets=("layer", "table")), rng=3)
    for path, inputs in (("layer", 100), ("table", 40)):
        adapter = layers(model)[path].adapters["default"]
        z = wide(adapter.A) * inputs**0.5
        assert z.shape == (40, 100) and not wide(adapter.B).any()
        spread, inside = (1, 0.6827) if init == "gaussian" else (3**-0.5, 1)
        assert abs(z.mean()) < 6 * spread / n**0.5
        assert abs(z.std() / spread - 1) < 6 / (2 * n) ** 0.5
        assert (
            abs((np.abs(z) <= 1 + 1e-6).mean() - inside)
            < 6 * (inside * (1 - inside) / n) ** 0.5 + 1e-9
        )


@given(families, targets, ranks, ranks, alphas)
@example("bert", ["k", "tok"], 1, 2, 0.5)  # *k matches both
def test_what_is_trained_is_r_times_d_plus_k_a_layer(family, names, r, other, alpha):
    model, names = made(family), fits(family, names)
    config = ml.LoRAConfig(
        r=r, alpha=alpha, targets=names,
        rank_pattern={f"*{names[0]}": other}, alpha_pattern={names[0]: 9.0},
    )
    sides = {at: sum(m.W.shape) for at, m in model.named_modules() if hasattr(m, "W")}
    paths = lora.attach(model, config, rng=0)
    sizes = [p.data.size for p in model.trainable_parameters().values()]
    rank = {name: other if name.endswith(names[0]) else r for name in names}
    lasts = [path.split(".")[-1] for path in paths]
    assert sum(sizes) == sum(rank[last] * sides[path] for last, path in zip(lasts, paths))
    assert len(sizes) == 2 * len(paths) == 2 * sum(1 if n in ("tok", "pos") else 2 for n in names)
    for path, layer in layers(model).items():
        last, adapter = path.split(".")[-1], layer.adapters["default"]
        assert adapter.A.shape[0] == adapter.B.shape[1] == adapter.r == rank[last]
        assert adapter.scale == (9.0 if last == names[0] else alpha) / rank[last]


def test_the_first_pattern_that_matches_decides():
    model, at = gpt2(), "blocks.1.attn.q"
    lora.attach(model, ml.LoRAConfig(r=2, rank_pattern={at: 1, "q": 3}, targets="q"), rng=0)
    assert [layer.adapters["default"].r for layer in layers(model).values()] == [3, 1]


@pytest.mark.parametrize(
    "chosen, paths",
    [
        ("q", ["blocks.0.attn.q", "blocks.1.attn.q"]),
        ("attn.q", ["blocks.0.attn.q", "blocks.1.attn.q"]),
        ("blocks.1.attn.q", ["blocks.1.attn.q"]),
        ("blocks.0.attn.[qv]", ["blocks.0.attn.q", "blocks.0.attn.v"]),
        (("*.up", "tok"), ["tok", "blocks.0.mlp.up", "blocks.1.mlp.up"]),
        (("q", "*.q"), ["blocks.0.attn.q", "blocks.1.attn.q"]),
    ],
)
def test_targets_are_names_globs_and_paths(chosen, paths):
    model = gpt2()
    assert lora.attach(model, ml.LoRAConfig(targets=chosen), rng=0) == paths == list(layers(model))
    assert all(layer.active == ("default",) for layer in layers(model).values())


def test_parameters_keep_their_names_below_the_layer():
    model = gpt2(n_layers=1)
    before = list(bits(model))
    lora.attach(model, ml.LoRAConfig(targets="q"), name="poet", rng=0)
    q = "blocks.0.attn.q"
    at = before.index(f"{q}.W")
    expected = [f"{q}.base.W", f"{q}.base.b", f"{q}.poet.A", f"{q}.poet.B"]
    assert list(bits(model)) == before[:at] + expected + before[at + 2 :]


@pytest.mark.parametrize(
    "config, name, says",
    [
        ({"targets": "query"}, "new", "'query'.*down, k, o, pos, q, tok, up, v"),
        ({"targets": ("q", "ln1")}, "new", "'ln1'"),
        ({"targets": ()}, "new", "targets: no layer matches"),
        (
            {"targets": "q", "rank_pattern": {"v": 2}},
            "new",
            "rank_pattern, alpha_pattern: no adapted layer matches 'v': choose from q",
        ),
        (
            {"targets": "q", "alpha_pattern": {"v": 2}},
            "new",
            "rank_pattern, alpha_pattern: no adapted layer matches 'v': choose from q",
        ),
        (
            {"trainable": "head"}, "new",
            "trainable: no parameter matches 'head': choose from",
        ),
        (
            {"targets": "pos", "trainable": "pos"}, "new",
            "pos.W cannot have both a trained copy and an adapter",
        ),
        ({}, "base", "'base' cannot be an adapter's name"),
        ({}, "", "cannot be an adapter's name"),
        ({}, "a.b", "'a.b' cannot be an adapter's name"),
        ({}, "default", r"'default' cannot be .* attached are \['default'\]"),
    ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_attach_refuses_and_leaves_the_model_as_it_was(config, name, says, bare):
    model = gpt2() if bare and name != "default" else adapted(trainable="ln_f")[0]
    before = snapshot(model)
    with pytest.raises(ValueError, match=says):
        lora.attach(model, ml.LoRAConfig(**config), name=name, rng=0)
    assert snapshot(model) == before


def test_attaching_forgets_gradients_of_before():
    model = gpt2()
    model(IDS).sum().backward()
    lora.attach(model, ml.LoRAConfig(), rng=0)
    assert all(p.grad is None for p in model.parameters())


# What a layer computes.


FOUR = {name: ("q", "tok", *more) for name, *more in (
    ("one",), ("two", "up"), ("three", "up", "pos"), ("four", "pos"),
)}
orders = st.permutations(sorted(FOUR))  # of which any number is active


def four(seed: int = 0, family: str = "gpt2"):
    """A model with four adapters, two layers in all of them; none is zero."""
    model = made(family, seed)
    for i, (name, names) in enumerate(FOUR.items()):
        config = ml.LoRAConfig(r=1 + i % 3, alpha=5 - 3.5 * i, targets=fits(family, names))
        lora.attach(model, config, name, rng=i)
    parts = [x for layer in layers(model).values() for x in layer.adapters.values()]
    shake([p for adapter in parts for p in (adapter.A, adapter.B)], seed + 3)
    return model


@given(seeds, ranks, alphas, orders, st.integers(0, 4))
def test_a_layer_is_W0_plus_the_sum_of_its_active_updates(seed, r, alpha, order, count):
    active = order[:count]
    linear = nn.Linear(5, 3, rng=seed, dtype="float64")
    table = nn.Embedding(7, 4, rng=seed, std=1, dtype="float64")
    model = nn.Module()
    model.linear, model.table = linear, table
    for name, rank in (("one", r), ("two", 2), ("three", 3), ("four", 1)):
        config = ml.LoRAConfig(r=rank, alpha=alpha + rank, targets=("linear", "table"))
        lora.attach(model, config, name, rng=seed)
    shake(model.parameters(), seed, 1.0)
    lora.activate(model, *active)
    W, b, E = wide(linear.W), wide(linear.b), wide(table.W)
    if active:
        W, E = W + delta(model.linear, *active), E + delta(model.table, *active)
    x, h, at = normal(seed, 2, 6, 5), normal(seed, 2, 6, 4), ids(seed, vocabulary=7)
    near = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(ml.asnumpy(model.linear(Tensor(x))), x @ W.T + b, **near)
    np.testing.assert_allclose(ml.asnumpy(model.table(at)), E[at], **near)
    np.testing.assert_allclose(ml.asnumpy(model.table.project(Tensor(h))), h @ E.T, **near)


@given(seeds, dtypes, ranks, alphas)
def test_an_adapter_alone_is_its_formula(seed, dtype, r, alpha):
    """x goes through sums of 8 and of r terms, then the scale: 8 + r + 1 roundings."""
    model, paths = adapted(seed, dtype, r, alpha, targets="q")
    adapter = layers(model)[paths[0]].adapters["default"]
    x = normal(seed, 2, 3, 8, dtype=dtype)
    A, B, x64 = wide(adapter.A), wide(adapter.B), x.astype("float64")
    y = ml.asnumpy(adapter.update(Tensor(x)).data)
    size = abs(alpha / r) * np.abs(x64) @ np.abs(A).T @ np.abs(B).T
    assert y.dtype == dtype and adapter.scale == alpha / r
    wanted = (alpha / r * (x64 @ A.T @ B.T)).astype(dtype)
    assert_near(y, wanted, roundings(8 + r + 1, size, dtype))


@settings(max_examples=3)
@given(seeds)
def test_the_gradients_of_three_active_adapters_are_those_of_their_sum(seed):
    model = gpt2(seed)
    for i, name in enumerate(("one", "two", "three")):
        lora.attach(model, ml.LoRAConfig(r=i + 1, alpha=3 - 2 * i, targets="q"), name, rng=i)
    layer = layers(model)["blocks.0.attn.q"]
    factors = [p for a in layer.adapters.values() for p in (a.A, a.B)]
    shake(factors, seed)
    lora.activate(model, *layer.adapters)

    def f(x, *arrays):
        for (adapter, letter), t in zip([(a, n) for a in in_use(layer) for n in "AB"], arrays):
            setattr(adapter, letter, t)
        return layer(x)

    assert ml.gradcheck(f, normal(seed, 3, 8), *(ml.asnumpy(p) for p in factors)) < 1e-6


@settings(max_examples=3)
@given(seeds)
def test_the_gradients_of_an_adapter_are_those_of_its_formula(seed):
    model, _ = adapted(seed, targets=("tok", "q"))
    for path in ("tok", "blocks.0.attn.q"):
        layer = layers(model)[path]
        adapter, x = layer.adapters["default"], ids(seed) if path == "tok" else normal(seed, 3, 8)

        def f(A, B, path=path, layer=layer, adapter=adapter, x=x):
            adapter.A, adapter.B = A, B
            y = layer(x if x.dtype.kind == "i" else Tensor(x))
            return layer.project(ml.ops.tanh(y)) + y.sum() if path == "tok" else y

        assert ml.gradcheck(f, ml.asnumpy(adapter.A), ml.asnumpy(adapter.B)) < 1e-6


@settings(max_examples=3)
@given(seeds)
def test_the_gradients_go_through_the_dropout_that_was_drawn(seed):
    model, _ = adapted(seed, targets="q", dropout=0.5)
    layer = layers(model)["blocks.0.attn.q"]
    adapter = layer.adapters["default"]

    def f(x, A, B):
        adapter.A, adapter.B, adapter.rng = A, B, np.random.default_rng(seed)
        return layer(x)

    inputs = normal(seed, 3, 8), ml.asnumpy(adapter.A), ml.asnumpy(adapter.B)
    assert ml.gradcheck(f, *inputs) < 1e-6


# Training.


@given(families, seeds, targets, biases)
def test_no_frozen_tensor_gets_a_gradient_and_every_trained_one_does(family, seed, names, bias):
    model, paths = lora_of(family, seed, targets=names, bias=bias, trainable="blocks.1.ln2.g")
    ml.ops.cross_entropy(model(IDS), IDS).backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    expected = {f"{path}.default.{x}" for path in paths for x in "AB"} | {"blocks.1.ln2.g"}
    every = {name for name in flags(model) if name.endswith(".b")}
    adapted_biases = {f"{path}.base.b" for path in paths} & every
    expected |= {"none": set(), "lora": adapted_biases, "all": every}[bias]
    assert got == expected == set(model.trainable_parameters())


@few
@given(families, seeds, targets, biases)
def test_training_writes_no_byte_of_the_base_and_detach_gives_it_back(family, seed, names, bias):
    model = made(family, seed, "float32")
    model.blocks[1].requires_grad_(False)  # flags that have to come back, some on, some off
    before = snapshot(model)
    config = ml.LoRAConfig(
        r=2, alpha=3, targets=names, bias=bias, trainable=("blocks.1.ln2", "k.b")
    )
    paths = lora.attach(model, config, rng=seed)
    names_of = {f"{path}.base.{x}": f"{path}.{x}" for path in paths for x in ("W", "b")}
    trained = set(model.trainable_parameters())
    start = bits(model)
    train(model, weight_decay=0.1)
    after = bits(model)
    moved = {name for name in after if after[name] != start[name]}
    assert trained - unfelt(trained) <= moved <= trained
    frozen = {names_of.get(n, n): a for n, a in after.items() if n not in trained}
    assert frozen.items() <= before[0].items()
    assert lora.detach(model) is model
    assert snapshot(model) == before and not hasattr(model, "adapters")


@few
@given(families, seeds, st.sampled_from([1, 2, 3]), st.sampled_from(["tok", "q", "up"]))
def test_what_training_adds_has_rank_r_at_most(family, seed, r, name):
    model = made(family, seed)
    before = {name: wide(p) for name, p in model.named_parameters()}
    paths = lora.attach(model, ml.LoRAConfig(r=r, alpha=7, targets=name), rng=seed)
    train(model)
    lora.merge(model)
    for name, p in model.named_parameters():
        added = wide(p) - before[name]
        floor = 64 * np.finfo("float64").eps * np.linalg.norm(before[name])  # W0 + ΔW - W0 rounds
        rank = np.linalg.matrix_rank(np.atleast_2d(added), tol=floor)
        assert rank == r if name.removesuffix(".W") in paths else not added.any(), name


# Merging.


@given(families, seeds, dtypes, targets, ranks, alphas)
def test_each_layer_merged_is_the_layer_within_rounding(family, seed, dtype, names, r, alpha):
    """Both sides add up, per output, products of total size

        size = |x| |W0|ᵀ + |alpha / r| |x| |A|ᵀ |B|ᵀ + |b|.

    Unmerged, a product goes through at most k + r additions and products, 3 more for the scale,
    the sum of the two ways and the bias; merged through k, 1 for the bias, 1 for the rounding of
    W0 + ΔW. A number of n roundings is off by n · eps / 2 of its size to first order; `roundings`
    allows 4 times as much.
    """
    model, paths = lora_of(family, seed, dtype, r, alpha, targets=names)
    named, before = layers(model), []
    inputs = {path: normal(seed, 2, 3, named[path].base.W.shape[1], dtype=dtype) for path in paths}

    def outputs():
        modules = dict(model.named_modules())
        for path in paths:
            layer, x = modules[path], Tensor(inputs[path])
            tied = path in ("tok", "pos")
            yield ml.asnumpy((layer.project(x) if tied else layer(x)).data)

    before = list(outputs())
    lora.merge(model)
    for path, y, merged in zip(paths, before, outputs()):
        layer, x = named[path], np.abs(wide(inputs[path]))
        W, a = layer.base.W, layer.adapters["default"]
        narrow = np.abs(wide(a.B)) @ np.abs(wide(a.A)) * abs(alpha / r)
        narrow = narrow.T if path in ("tok", "pos") else narrow
        size = x @ (np.abs(wide(W)) + narrow).T
        size += np.abs(wide(layer.base.b)) if getattr(layer.base, "b", None) is not None else 0
        assert_near(merged, y, roundings(W.shape[1] + r + 3, size, dtype))


@given(families, seeds, targets, ranks, alphas)
def test_the_whole_model_merged_is_the_model_to_1e_12_in_float64(family, seed, names, r, alpha):
    model, _ = lora_of(family, seed, "float64", r, alpha, targets=names)
    before = logits(model, IDS)
    with lora.disabled(model):
        assert np.abs(logits(model, IDS) - before).max() > 1e-6  # the adapter counts
    lora.merge(model)
    assert np.abs(logits(model, IDS) - before).max() < 1e-12 * np.abs(before).max()


@few
@given(families, seeds, targets, ranks)
def test_the_whole_model_merged_is_the_model_within_its_bound_in_float32(family, seed, names, r):
    """`rounding.compare` carries each product's bound (the one above) to the worst logit."""
    model, _ = lora_of(family, seed, "float32", r, 7.0, targets=names)
    before = snapshot(model)
    found = rounding.compare(model, IDS)
    assert found.difference <= found.bound
    assert snapshot(model) == before


def ops_of(loss: Tensor) -> list[str]:
    """The names of the ops on the tape, in order."""
    nodes, waiting = {}, [loss._node]
    while waiting:
        node = waiting.pop()
        if node.serial not in nodes:
            nodes[node.serial] = node.name
            flows = [to for targets, _ in node.edges for to in targets]
            waiting += [to for to in flows if hasattr(to, "edges")]
    return [name for _, name in sorted(nodes.items())]


@few
@given(families, targets)
def test_a_merged_model_has_the_bases_types_names_flags_and_ops(family, names):
    base, model = made(family, 1), made(family, 1)
    for m in (base, model):
        m.blocks[0].mlp.requires_grad_(False)
    kept = [m for _, m in model.named_modules() if not isinstance(m, nn.Linear | nn.Embedding)]
    paths = lora.attach(model, ml.LoRAConfig(r=2, alpha=3, targets=names), rng=0)
    shake(model.trainable_parameters().values(), 0)
    assert ops_of(model(IDS).sum()) != ops_of(base(IDS).sum())
    assert set(lora.merge(model)) == set(paths)
    assert types(model) == types(base) and flags(model) == flags(base)
    assert [n for n in bits(model) if bits(model)[n] != bits(base)[n]] == [
        f"{path}.W" for path in [p for p, _ in base.named_modules()] if path in paths
    ]
    assert ops_of(model(IDS).sum()) == ops_of(base(IDS).sum())
    assert not hasattr(model, "adapters") and set(kept) < {m for _, m in model.named_modules()}
    train(model, 1)  # and it trains like any model


@pytest.mark.parametrize("fails", [False, True])
@given(family=families, seed=seeds, names=targets)
@few
def test_merged_for_a_block_gives_every_bit_and_object_back(family, fails, seed, names):
    model, _ = lora_of(family, seed, "float32", targets=names, bias="all", trainable="blocks.1.ln2")
    before, was, now = snapshot(model), logits(model, IDS), None
    try:
        with lora.merged(model):
            now = logits(model, IDS)
            assert not layers(model) and types(model) == types(made(family))
            assert all(p.requires_grad is False for n, p in model.named_parameters() if "W" in n)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert snapshot(model) == before and same_bytes(logits(model, IDS), was)
    np.testing.assert_allclose(now, was, rtol=1e-3, atol=1e-4)
    model.load_state_dict(model.state_dict())  # allowed again
    lora.merge(model)
    assert same_bytes(logits(model, IDS), now)


def test_inside_merged_nothing_can_be_written_that_would_be_lost(tmp_path):
    model, _ = adapted()
    lora.save(model, tmp_path / "a.npz")
    state, before = model.state_dict(), snapshot(model)
    with lora.merged(model):
        inside = snapshot(model)
        for act in (
            lambda: lora.attach(model, ml.LoRAConfig(), name="other"),
            lambda: lora.load(model, tmp_path / "a.npz", name="other"),
            lambda: lora.save(model, tmp_path / "b.npz"),
            lambda: lora.detach(model),
            lambda: lora.merge(model),
            lambda: lora.activate(model),
            lambda: lora.merged(model).__enter__(),
            lambda: lora.disabled(model).__enter__(),
            lambda: model.load_state_dict(state),
        ):
            with pytest.raises(RuntimeError, match="merged in this block"):
                act()
        assert snapshot(model) == inside
    assert snapshot(model) == before and not (tmp_path / "b.npz").exists()


def test_of_an_adapter_that_adds_nothing_nothing_is_lost():
    model = gpt2()
    paths = lora.attach(model, ml.LoRAConfig(), rng=0)
    assert lora.merge(model) == dict.fromkeys(paths, 0.0) and bits(model) == bits(gpt2())


@given(families, seeds)
def test_a_tied_table_stays_one_table(family, seed):
    model, _ = lora_of(family, seed, targets="tok")
    before = logits(model, IDS)
    W, d = wide(model.tok.base.W), delta(model.tok)
    plain = made(family, seed)
    plain.tok.W.data += ml.backend.asarray(d)
    np.testing.assert_allclose(before, logits(plain, IDS), rtol=1e-12, atol=1e-12)
    lora.merge(model)
    names = [name for name, p in model.named_parameters() if p.shape == W.shape]
    assert names == ["tok.W"] and type(model.tok) is nn.Embedding
    np.testing.assert_allclose(wide(model.tok.W), W + d, rtol=1e-14, atol=1e-15)
    model(IDS).sum().backward()
    both = wide(model.tok.W.grad)
    unused = np.setdiff1d(np.arange(11), IDS)  # rows that only the head reads
    assert both.any() and (unused.size == 0 or both[unused].any())


@pytest.mark.parametrize("letter", ["A", "B"])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("path", ["tok", "blocks.1.mlp.down"])
@pytest.mark.parametrize("how", [lora.merge, lambda model: lora.merged(model).__enter__()])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_merging_what_is_not_finite_names_the_layer_and_changes_nothing(letter, bad, path, how):
    model, _ = adapted(targets=("tok", "q", "down"))
    getattr(layers(model)[path].adapters["default"], letter).data[0, 0] = bad
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match=f"{path}: .* not finite in float64"):
        how(model)
    assert snapshot(model) == before


def test_merging_beyond_float16_names_the_layer_and_changes_nothing():
    model, _ = adapted(dtype="float16", targets=("q", "v"))
    adapter = layers(model)["blocks.1.attn.v"].adapters["default"]
    adapter.alpha = 1e9
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match=r"blocks\.1\.attn\.v: .* finite in float16"):
        lora.merge(model)
    assert snapshot(model) == before
    adapter.alpha = 5.0
    lora.merge(model)
    assert {str(p.dtype) for p in model.parameters()} == {"float16"}


@family
def test_merge_includes_trained_copies(family):
    model = made(family)
    model.blocks[1].ln2.requires_grad_(False)
    before = flags(model)
    lora.attach(model, ml.LoRAConfig(r=3, alpha=5, bias="all", trainable="blocks.1.ln2"), rng=0)
    shake(model.trainable_parameters().values(), 1)
    outputs, own = logits(model, IDS), bits(model)
    lora.merge(model)
    for name in ("blocks.1.ln2.g", "blocks.1.attn.v.b"):
        path = name.replace("v.b", "v.base.b")
        assert bits(model)[name] == own[path] != bits(made(family))[name]
    assert bits(model)["blocks.0.attn.q.b"] == own["blocks.0.attn.q.base.b"]
    assert flags(model) == before
    np.testing.assert_allclose(logits(model, IDS), outputs, rtol=1e-12, atol=1e-12)


def test_what_is_not_adapted_is_left_alone_and_the_rest_says_so():
    model = gpt2()
    assert lora.merge(model) == {}
    for act in (lora.detach, lora.activate, lambda m: lora.save(m, "a.npz")):
        with pytest.raises(ValueError, match=r"no adapter: attach one first, by lora\.attach"):
            act(model)


# Several adapters.


@given(families, seeds, orders, st.integers(0, 4))
def test_any_number_of_active_adapters_add_up_and_merge_to_what_they_compute(
    family, seed, order, count
):
    model, active, idle = four(seed, family), order[:count], order[count:]
    base, near = made(family, seed), {"rtol": 1e-11, "atol": 1e-11}
    for path, layer in layers(model).items():
        for name in layer.adapters.keys() & set(active):
            update = ml.backend.asarray(delta(layer, name))
            dict(base.named_modules())[path].W.data += update
    lora.activate(model, *active)
    together = logits(model, IDS)
    np.testing.assert_allclose(together, logits(base, IDS), **near)
    with lora.merged(model):
        np.testing.assert_allclose(logits(model, IDS), together, **near)
    for name in idle:
        lora.detach(model, name)
    adapted, places = {x for name in active for x in fits(family, FOUR[name])}, lora.adaptable(base)
    assert [*lora.merge(model)] == [at for at in places if at.split(".")[-1] in adapted]
    np.testing.assert_allclose(logits(model, IDS), together, **near)


@few
@given(families, seeds, orders)
def test_adapters_come_off_in_any_order_and_the_others_stay(family, seed, order):
    model = four(seed, family)
    for i, name in enumerate(order):
        kept = order[i + 1 :]
        lora.activate(model, *kept)
        expected = logits(model, IDS)
        lora.activate(model, name, *kept)
        lora.detach(model, name)
        assert same_bytes(logits(model, IDS), expected)
        assert {x for layer in layers(model).values() for x in layer.adapters} == set(kept)
        assert not kept or model.adapters.active == tuple(kept)
    assert bits(model) == bits(made(family, seed)) and all(flags(model).values())


@given(families, seeds)
def test_activation_switches_and_comes_back(family, seed):
    model = two(seed, family)
    outputs = dict.fromkeys([(), ("one",), ("two",), ("one", "two")])
    for names in outputs:
        lora.activate(model, *names)
        outputs[names] = logits(model, IDS)
    assert len({a.tobytes() for a in outputs.values()}) == 4
    assert same_bytes(outputs[()], logits(made(family, seed), IDS))
    for names, expected in outputs.items():
        lora.activate(model, *names)
        with lora.disabled(model):
            assert same_bytes(logits(model, IDS), outputs[()])
        assert same_bytes(logits(model, IDS), expected)


def test_disabled_gives_the_adapters_back_after_an_exception():
    model = two()
    lora.activate(model, "one", "two")
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt), lora.disabled(model):
        assert model.adapters.active == ()
        raise KeyboardInterrupt
    assert snapshot(model) == before


def test_an_adapter_that_is_not_there_is_named_with_those_that_are():
    model = two()
    before = snapshot(model)
    for act in (lora.activate, lora.detach, lambda m, name: lora.save(m, "a.npz", name)):
        says = r"no adapter is called 'three': attached are \['one', 'two'\]"
        with pytest.raises(KeyError, match=says):
            act(model, "three")
    assert snapshot(model) == before


@given(families, seeds, st.sampled_from(["one", "two"]), st.booleans())
def test_detaching_one_leaves_the_other_as_it_was(family, seed, gone, both):
    model, kept = (
        two(seed, family, bias="lora", trainable="blocks.1.ln2"),
        {"one": "two", "two": "one"}[gone],
    )
    lora.activate(model, kept)
    expected, trained = logits(model, IDS), bits(model)
    if both:
        lora.activate(model, "one", "two")
    lora.detach(model, gone)
    assert model.adapters.active == (kept,) and same_bytes(logits(model, IDS), expected)
    assert not any(f".{gone}." in name for name in bits(model))
    assert {n: b for n, b in bits(model).items() if n in trained}.items() <= trained.items()
    assert set(layers(model)) == {p for p, m in layers(model).items() if kept in m.adapters}
    assert type(model.tok) is (nn.Embedding if gone == "one" else lora.Adapted)
    lora.detach(model, kept)
    assert bits(model) == bits(made(family, seed)) and types(model) == types(made(family))
    assert all(flags(model).values())


def test_detaching_the_active_one_leaves_the_base_computing():
    model = two(4)
    lora.detach(model, "two")
    assert model.adapters.active == () and same_bytes(logits(model, IDS), logits(gpt2(4), IDS))


def test_two_adapters_that_each_own_a_parameter_cannot_both_be_active():
    model = gpt2()
    for name in ("one", "two"):
        lora.attach(model, ml.LoRAConfig(trainable="ln_f.g"), name=name, rng=0)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"one and two each train a copy of ln_f\.g"):
        lora.activate(model, "one", "two")
    assert snapshot(model) == before


def test_each_adapter_trains_its_own_copies():
    model, outputs = gpt2(), {}
    for i, name in enumerate(("one", "two")):
        lora.attach(model, ml.LoRAConfig(r=2, trainable="ln_f"), name=name, rng=i)
        train(model)
        outputs[name] = logits(model, IDS), bits(model)["ln_f.g"]
    assert len({outputs["one"][1], outputs["two"][1], bits(gpt2())["ln_f.g"]}) == 3
    for name, (expected, g) in outputs.items():
        lora.activate(model, name)
        assert same_bytes(logits(model, IDS), expected) and bits(model)["ln_f.g"] == g
    with lora.disabled(model):
        assert bits(model)["ln_f.g"] == bits(gpt2())["ln_f.g"]


def test_attaching_freezes_what_an_idle_adapter_trains_whole():
    model = gpt2()
    lora.attach(model, ml.LoRAConfig(bias="lora", trainable="ln_f"), name="one", rng=0)
    lora.activate(model)
    lora.attach(model, ml.LoRAConfig(), name="two", rng=0)
    lora.activate(model, "one")
    assert all(".two." in name for name in model.trainable_parameters())


# Files.


@few
@given(families, seeds, dtypes, targets, biases, st.booleans())
def test_saved_and_loaded_is_the_same_model_bit_for_bit(
    tmp_path_factory, family, seed, dtype, names, bias, trainable
):
    path = tmp_path_factory.mktemp("files") / "poet.npz"
    config = {"dropout": 0.1, "rank_pattern": {names[0]: 1}, "alpha_pattern": {names[-1]: 2.0}}
    model, paths = lora_of(
        family, seed, dtype, 2, 7.0, targets=names, bias=bias, trainable=("blocks.1.ln2",), **config
    )
    assert lora.save(model, path) == path
    fresh = made(family, seed, dtype).eval()
    assert lora.load(fresh, path, trainable=trainable) == paths
    assert same_bytes(logits(fresh, IDS), logits(model.eval(), IDS))
    assert bits(fresh) == bits(model) and fresh.adapters.configs == model.adapters.configs
    expected = flags(model) if trainable else dict.fromkeys(flags(model), False)
    assert flags(fresh) == expected
    again = path.with_name("again.npz")
    lora.save(fresh, again)
    (arrays, meta), (arrays2, meta2) = checkpoint.read(path), checkpoint.read(again)
    assert meta == meta2 and all(same_bytes(arrays[n], arrays2[n]) for n in arrays | arrays2)
    lora.detach(fresh)
    assert bits(fresh) == bits(made(family, seed, dtype)) and all(flags(fresh).values())


def test_a_file_holds_the_adapter_alone(tmp_path):
    model, paths = adapted(trainable="ln_f.g")
    arrays, meta = checkpoint.read(lora.save(model, tmp_path / "a.npz"), kind="adapter")
    assert set(arrays) == {f"{path}.{x}" for path in paths for x in "AB"} | {"ln_f.g"}
    assert meta["scales"] == dict.fromkeys(paths, 5 / 3) and meta["method"] == "lora"


def test_one_of_several_adapters_is_saved_whichever_is_active(tmp_path):
    model = two(trainable="ln_f")
    shake(model.adapters.copies["one"].values(), 5)
    with pytest.raises(ValueError, match=r"which one\? Attached are \['one', 'two'\]"):
        lora.save(model, tmp_path / "a.npz")
    lora.save(model, tmp_path / "a.npz", "one")  # "two" is active
    lora.activate(model, "one")
    expected = logits(model, IDS)
    fresh = gpt2()
    lora.load(fresh, tmp_path / "a.npz", name="new")
    assert same_bytes(logits(fresh, IDS), expected) and list(fresh.adapters.configs) == ["new"]


def test_an_adapter_of_another_base_loads_with_a_warning(tmp_path):
    model, _ = adapted(0)
    lora.save(model, tmp_path / "a.npz")
    other = gpt2(0)
    other.blocks[1].attn.v.W.data[0, 0] *= 1 + 2.0**-50
    with pytest.warns(UserWarning, match="another base"):
        lora.load(other, tmp_path / "a.npz")
    assert layers(other) and other.adapters.active == ("default",)


def test_a_file_that_is_not_there_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        lora.load(gpt2(), tmp_path / "none.npz")


# A base that is stored narrower than it computes.


def rounded(model):
    """The model, its matrices rounded to half precision and widened again."""
    for p in model.parameters():
        if p.data.ndim == 2:
            p.data[...] = p.data.astype("float16").astype(p.dtype)
    return model


def half(seed=0, dtype="float32", names=("q", "tok"), family="gpt2", **config):
    """A model with an adapter, B ≠ 0, over a base stored in half precision."""
    model = made(family, seed, dtype, **config.pop("sizes", {}))
    config = ml.LoRAConfig(r=3, alpha=5.0, targets=fits(family, names), **config)
    lora.attach(model, config, rng=seed + 1, base_dtype="float16")
    shake(model.trainable_parameters().values(), seed + 2)
    return model


def matrices(model) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if n.endswith(".W")}


def a_step(model, seed: int = 0) -> list[np.ndarray]:
    """Logits, loss and the gradients of all that is trained; then a step."""
    inputs, targets = ids(seed), ids(seed + 1)
    out = model(inputs)
    loss = ml.ops.cross_entropy(out, targets)
    loss.backward()
    trained = model.trainable_parameters()
    found = [np.array(ml.asnumpy(x)) for x in (out, loss, *(p.grad for p in trained.values()))]
    ml.AdamW(trained, lr=0.1).step()
    model.requires_grad_(False)
    for p in trained.values():
        p.requires_grad = True
    return found


@given(families, seeds, dtypes, targets, biases, st.sampled_from([0, 0.5]))
def test_stored_in_half_is_the_rounded_model_bit_for_bit(family, seed, dtype, names, bias, dropout):
    whole = rounded(made(family, seed, dtype))
    config = ml.LoRAConfig(
        r=3, alpha=5.0, targets=fits(family, names), bias=bias, dropout=dropout,
        trainable="blocks.1.ln2",
    )
    lora.attach(whole, config, rng=seed + 1)
    shake(whole.trainable_parameters().values(), seed + 2)
    model = half(seed, dtype, names, family, bias=bias, dropout=dropout, trainable="blocks.1.ln2")
    for step in range(3):
        got, wanted = a_step(model, step), a_step(whole, step)
        assert len(got) == len(wanted) > 4 and all(map(same_bytes, got, wanted))
    for name, p in model.named_parameters():
        assert str(p.dtype) == ("float16" if name.endswith(".W") else dtype)
    assert sum(p.data.nbytes for p in matrices(model).values()) == sum(
        p.data.nbytes * 2 // p.data.itemsize for p in matrices(whole).values()
    )


@given(families, seeds, dtypes, targets)
def test_half_storage_merges_wide_and_gives_the_base_back_as_stored(family, seed, dtype, names):
    model = half(seed, dtype, names, family)
    before, unmerged = bits(model), logits(model.eval(), IDS)
    with lora.merged(model):
        inside = logits(model, IDS)
        layers_now = dict(model.named_modules())
        assert all(str(layers_now[at].W.dtype) == dtype for at in layers(model))
    assert bits(model) == before
    wanted = {at: wide(layer.base.W) + delta(layer) for at, layer in layers(model).items()}
    size = np.abs(unmerged).max()
    assert np.abs(inside - unmerged).max() <= 1e4 * np.finfo(dtype).eps * max(size, 1)
    lost = lora.merge(model)
    modules = dict(model.named_modules())
    for at, W in wanted.items():
        assert same_bytes(ml.asnumpy(modules[at].W), W.astype(dtype))
    assert max(lost.values()) < 1e3 * np.finfo(dtype).eps
    assert same_bytes(logits(model, IDS), inside)


def test_what_is_stored_in_half_stays_frozen_when_the_adapter_is_gone():
    model = lora.detach(half(bias="all"))
    for name, p in model.named_parameters():
        stored = name.endswith(".W")
        assert p.requires_grad != stored and str(p.dtype) == ("float16" if stored else "float32")
    plain = half()
    lora.merge(plain)
    assert {n for n, p in plain.named_parameters() if not p.requires_grad} == set(matrices(plain))


def test_what_is_trained_whole_is_wide_even_over_a_base_stored_before():
    model = half(names=("q",), trainable="up")
    assert str(model.blocks[0].mlp.up.W.dtype) == "float32"
    assert str(model.adapters.base["blocks.0.mlp.up.W"].dtype) == "float16"
    exact = wide(gpt2(0, "float32").blocks[0].mlp.up.W)
    copy = model.adapters.copies["default"]["blocks.0.mlp.up.W"]
    assert np.abs(wide(copy) - exact).max() > 0, "shaken"
    lora.attach(model, ml.LoRAConfig(targets="v", trainable="down"), "two", rng=1)
    lora.activate(model, "default", "two")
    for name, p in model.named_parameters():
        narrow = name.endswith(".W") and not any(x in name for x in ("up", "down"))
        assert str(p.dtype) == ("float16" if narrow else "float32")
    assert not any(str(p.dtype) == "float16" for p in model.trainable_parameters().values())
    lora.attach(model, ml.LoRAConfig(targets="k"), "three", rng=1, base_dtype="float16")
    assert str(copy.dtype) == "float32", "another adapter's own is not the base"
    with lora.disabled(model):
        assert {str(p.dtype) for p in matrices(model).values()} == {"float16"}


def test_the_copy_that_is_trained_whole_starts_unrounded():
    model = gpt2(0, "float32")
    lora.attach(model, ml.LoRAConfig(trainable="up"), rng=0, base_dtype="float16")
    assert bits(model)["blocks.0.mlp.up.W"] == bits(gpt2(0, "float32"))["blocks.0.mlp.up.W"]


def test_an_adapter_of_a_half_base_is_saved_and_loaded(tmp_path):
    model = half(bias="lora")
    lora.save(model, tmp_path / "a.npz")
    same = gpt2(0, "float32")
    lora.load(same, tmp_path / "a.npz", base_dtype="float16")  # a warning is an error
    assert bits(same) == bits(model) and same_bytes(logits(same, IDS), logits(model, IDS))
    assert not same.trainable_parameters()
    stored = lora.detach(half(seed=0))
    lora.load(stored, tmp_path / "a.npz")
    assert same_bytes(logits(stored, IDS), logits(model, IDS))
    with pytest.warns(UserWarning, match="another base"):
        lora.load(gpt2(0, "float32"), tmp_path / "a.npz")


def test_a_model_with_half_matrices_is_saved_and_loaded_with_the_same_values(tmp_path):
    model = lora.detach(half())
    again = ml.load_model(ml.save_model(model, tmp_path / "m.npz"))
    assert {str(p.dtype) for p in again.parameters()} == {"float32"}
    state = model.state_dict()
    assert all(np.array_equal(array, state[name]) for name, array in again.state_dict().items())
    assert same_bytes(logits(again, IDS), logits(model, IDS))


@pytest.mark.parametrize(
    "dtype, value, says",
    [
        ("float32", 0.0, "base_dtype: float32 is not.* narrower.*of tok.W: give 'float16', or"),
        ("float64", 0.0, "float64 is not a narrower float than float32, the dtype of tok.W"),
        ("int16", 0.0, "int16 is not a narrower float"),
        ("nonsense", 0.0, "base_dtype: .*nonsense.*give 'float16'"),
        ("float16", 7e4, "blocks.1.attn.k.W contains 70000, and float16 ends at 65504: give a wid"),
        ("float16", -7e4, "blocks.1.attn.k.W contains 70000"),
        ("float16", np.nan, "blocks.1.attn.k.W contains nan"),
        ("float16", np.inf, "blocks.1.attn.k.W contains inf"),
    ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_a_base_that_cannot_be_stored_so_is_refused_and_left_alone(
    tmp_path, dtype, value, says, bare
):
    file = lora.save(adapted(dtype="float32", trainable="ln_f")[0], tmp_path / "a.npz")
    model = gpt2(0, "float32") if bare else adapted(dtype="float32", trainable="ln_f")[0]
    if value:
        model.blocks[1].attn.k.W.data[3, 1] = value
    before = snapshot(model)
    with pytest.raises(ValueError, match=says):
        lora.attach(model, ml.LoRAConfig(), "new", base_dtype=dtype)
    assert snapshot(model) == before
    with pytest.raises(ValueError, match=says):
        lora.load(model, file, "new", base_dtype=dtype)
    assert snapshot(model) == before


def test_a_call_that_fails_otherwise_stores_nothing_in_half(tmp_path):
    other, _ = adapted(dtype="float32", sizes={"d_model": 4})
    file, model = lora.save(other, tmp_path / "a.npz"), gpt2(0, "float32")
    before = snapshot(model)
    with pytest.raises(ValueError, match="does not fit"):
        lora.load(model, file, base_dtype="float16")
    for name, targets, says in (("a.b", "q", "'a.b' cannot be"), ("new", "query", "no layer")):
        with pytest.raises(ValueError, match=says):
            lora.attach(model, ml.LoRAConfig(targets=targets), name, base_dtype="float16")
    assert snapshot(model) == before


def test_the_largest_half_is_stored_and_float32_is_narrower_than_float64():
    model = gpt2(0, "float64")
    model.tok.W.data[0, 0] = -65504
    lora.attach(model, ml.LoRAConfig(), rng=0, base_dtype="float16")
    assert float(model.tok.W.data[0, 0]) == -65504
    model = gpt2(0, "float64")
    lora.attach(model, ml.LoRAConfig(), rng=0, base_dtype=np.float32)
    assert {str(p.dtype) for p in matrices(model).values()} == {"float32"}
    assert logits(model, IDS).dtype == "float64"


def test_half_storage_halves_the_books_and_stays_under_the_bound_of_rounding():
    model, whole = half(), rounded(gpt2(0, "float32"))
    lora.attach(whole, ml.LoRAConfig(r=3, alpha=5.0, targets=("q", "tok")), rng=1)
    shake(whole.trainable_parameters().values(), 2)
    books = [accounting.ledger(m, ml.AdamW(m.trainable_parameters()), 2, 7) for m in (model, whole)]
    saved = sum(p.data.nbytes for p in matrices(model).values())
    frozen = [book["frozen weights"] for book in books]
    assert frozen[1].measured - frozen[0].measured == saved
    assert frozen[1].predicted - frozen[0].predicted == saved
    assert books[0].activations == books[1].activations
    assert books[0]["activations"].measured == books[1]["activations"].measured
    result = rounding.compare(model, ids())
    assert 0 < result.difference <= result.bound < 1
    assert result == rounding.compare(whole, ids()), "the bound is of the dtype of its arithmetic"


# The small print.


@given(st.text("ab.*", max_size=6))
def test_a_pattern_is_a_path_its_end_or_a_glob(path):
    assert (
        matches(path, path)
        and matches(f"x.{path}", path)
        and matches(path, "*")
    )
    assert not matches(f"x{path}", f"{path}y")
    assert matches("blocks.0.q", "q") and not matches("blocks.0.aq", "q")


@example("blocks.0.attn.q")
@given(st.sampled_from([f"blocks.{i}.mlp.{x}" for i in (0, 1) for x in ("up", "down")]))
def test_swap_puts_a_module_at_its_path_and_nowhere_else(path):
    model, new = gpt2(), nn.Linear(8, 8, rng=0)
    before = dict(model.named_modules())
    swap(model, {id(before[path]): new})
    after = dict(model.named_modules())
    assert after[path] is new and list(after) == list(before)
    assert {p for p in after if after[p] is not before[p]} == {path}


def test_modules_in_dicts_and_nested_lists_are_adapted_too():
    model = nn.Module()
    model.by = {"left": nn.Linear(2, 3, rng=0), "more": [[nn.LayerNorm(2), nn.Linear(2, 3, rng=1)]]}
    paths = lora.attach(model, ml.LoRAConfig(r=1, targets=("left", "by.more.0.1")), rng=0)
    assert paths == ["by.left", "by.more.0.1"]
    assert isinstance(model.by["left"], lora.Adapted)
    assert isinstance(model.by["more"][0][1], lora.Adapted)
    lora.merge(model)
    assert [type(m) for _, m in model.named_modules()] == [
        nn.Module,
        nn.Linear,
        nn.LayerNorm,
        nn.Linear,
    ]


def test_the_tree_tells_rank_and_alpha():
    model, _ = adapted(r=3, alpha=5)
    assert "r=3 alpha=5" in repr(model) and "*3x8" in repr(model) and ".8x8" in repr(model)


# What was wrong once.


class Twins(nn.Module):
    """A layer "q", and below "sub" another "q": one path is the end of the other."""

    def __init__(self) -> None:
        self.q, self.sub = nn.Linear(3, 3, rng=0), nn.Module()
        self.sub.q = nn.Linear(3, 3, rng=1)


@pytest.mark.parametrize(
    "config",
    [
        {"targets": "q", "rank_pattern": {"sub.q": 1}},
        {"targets": "[q]"},
        {"targets": "sub.q", "trainable": "[q].W"},
    ],
)
def test_a_path_that_ends_another_is_loaded_as_it_was_saved(tmp_path, config):
    model = Twins()
    paths = lora.attach(model, ml.LoRAConfig(r=2, **config), rng=0)
    lora.save(model, tmp_path / "a.npz")
    fresh = Twins()
    assert lora.load(fresh, tmp_path / "a.npz") == paths and bits(fresh) == bits(model)


def test_the_fingerprint_is_of_the_base_whichever_adapter_is_active(tmp_path):
    model = gpt2()
    lora.attach(model, ml.LoRAConfig(targets="q", trainable="pos"), "one", rng=0)
    lora.attach(model, ml.LoRAConfig(targets="pos"), "two", rng=0)
    shake(model.adapters.copies["one"].values(), 1)
    lora.activate(model, "one")
    lora.save(model, tmp_path / "two.npz", "two")
    lora.load(gpt2(), tmp_path / "two.npz")  # a warning is an error


def test_a_model_that_is_a_layer_itself_is_not_swapped_into_itself():
    with pytest.raises(ValueError, match="targets: no layer matches"):
        lora.attach(nn.Linear(2, 2, rng=0), ml.LoRAConfig(targets="*"), rng=0)


def test_an_adapter_counts_once():
    model = two(3)
    expected = logits(model, IDS)
    try:
        lora.activate(model, "two", "two")
    except ValueError:
        return
    assert same_bytes(logits(model, IDS), expected)


class Classifier(nn.Module):
    """A model whose attribute is called as that of a layer which wraps another."""

    def __init__(self) -> None:
        self.base, self.head = gpt2(), nn.Linear(11, 11, rng=1, dtype="float64")

    def forward(self, x):
        return self.head(self.base(x))


def test_a_models_own_attribute_may_be_called_base():
    model = Classifier()
    before = logits(model, IDS)
    config = ml.LoRAConfig(r=2, targets=("q", "v", "head"), trainable="ln_f.g")
    paths = lora.attach(model, config, rng=0)
    assert paths == [f"base.blocks.{i}.attn.{x}" for i in (0, 1) for x in "qv"] + ["head"]
    assert [*layers(model)] == paths and same_bytes(logits(model, IDS), before)
    assert model.trainable_parameters().keys() == {
        *(f"{path}.default.{x}" for path in paths for x in "AB"),
        "base.ln_f.g",
    }
    train(model.train())
    assert all(delta(layer).any() for layer in layers(model).values())
    lora.detach(model)
    assert not layers(model) and same_bytes(logits(model, IDS), before)


def test_a_layer_keeps_a_forward_of_its_own_under_an_adapter():
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2.0

    model = nn.Module()
    model.q = Doubled(3, 3, rng=0, dtype="float64")
    x = Tensor(normal(0, 2, 3))
    before = wide(model.q(x))
    lora.attach(model, ml.LoRAConfig(r=1, targets="q"), rng=0)
    assert same_bytes(wide(model.q(x)), before)


def test_layers_in_tuples_and_under_keys_that_are_no_strings_are_adapted_too():
    Pair = namedtuple("Pair", "left right")
    model, one = nn.Module(), nn.Linear(2, 2, rng=0)
    model.by = {0: (one, [nn.Linear(2, 2, rng=1)]), "a.b": Pair(nn.Linear(2, 2, rng=2), one.b)}
    before, names = snapshot(model), ["by.0.0", "by.0.1.0", "by.a.b.0"]
    config = ml.LoRAConfig(r=1, targets=tuple(names), trainable="by.a.b.1")
    assert lora.attach(model, config, rng=0) == names == [*layers(model)]
    assert model.by.keys() == {0, "a.b"} and model.by["a.b"].left is layers(model)[names[2]]
    lora.detach(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("more", [False, True])
def test_an_attach_that_fails_in_the_middle_leaves_the_model_as_it_was(more, monkeypatch):
    model = two() if more else gpt2()
    before, parts = snapshot(model), {path: dict(x.adapters) for path, x in layers(model).items()}
    made, start = [], lora.LoRALinear.__init__

    def fails(self, *facts, **settings):
        if len(made) == 3:
            raise MemoryError
        made.append(start(self, *facts, **settings))

    monkeypatch.setattr(lora.LoRALinear, "__init__", fails)
    with pytest.raises(MemoryError):
        lora.attach(model, ml.LoRAConfig(targets=("q", "v"), trainable="ln_f"), "new", rng=0)
    assert snapshot(model) == before
    assert {path: x.adapters for path, x in layers(model).items()} == parts


@given(seeds, st.integers(1, 6), st.integers(1, 6), st.integers(1, 7))
def test_a_rank_that_no_update_can_have_is_warned_of(seed, d, k, r):
    model = nn.Module()
    model.linear = nn.Linear(k, d, rng=seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lora.attach(model, ml.LoRAConfig(r=r, targets="linear"))
    assert [str(w.message) for w in caught] == [
        f"ΔW of linear has rank {min(d, k)} at most, not r = {r}"
    ] * (r > min(d, k))
    assert all(w.filename == __file__ for w in caught)  # it points at who called


def test_an_adapter_can_be_trained_again_and_alone():
    model = two(trainable="ln_f")  # "one" has its own copy, "two" was attached after it
    lora.attach(model, ml.LoRAConfig(r=2, alpha=3, targets="k", trainable="ln_f"), "three", rng=3)
    trained = {"one": 2 * 3 + 2, "two": 2 * 4, "three": 2 * 2 + 2}
    for name in ("one", "two", "three", "two"):
        for p in model.parameters():
            p.grad = p.data
        lora.set_adapter(model, name)
        trainable = model.trainable_parameters()
        assert model.adapters.active == (name,) and len(trainable) == trained[name]
        assert all(f".{name}." in f".{path}" or path.startswith("ln_f") for path in trainable)
        assert not any(p.requires_grad for other, copies in model.adapters.copies.items()
                       if other != name for p in copies.values())
        assert not any(p.requires_grad for p in model.adapters.base.values())
        assert all(p.grad is None for p in model.parameters())
        before = bits(model)
        train(model)
        moved = {path for path, b in bits(model).items() if b != before[path]}
        assert set(trainable) - unfelt(trainable) <= moved <= set(trainable)
    with pytest.raises(KeyError, match="no adapter is called 'four'"):
        lora.set_adapter(model, "four")


def test_a_rank_that_is_too_high_warns_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lora.attach(gpt2(), ml.LoRAConfig(r=99, targets=("q", "v")), rng=0)
    (one,) = caught
    layers = 2 * gpt2().config.n_layers
    assert str(one.message).endswith(f"at most, not r = 99 (and {layers - 1} others)")


def test_all_linear_is_every_linear_layer_that_is_not_trained_as_a_whole():
    for name in ("gpt2", "bert"):
        model = made(name)
        linear = [path for path, m in model.named_modules() if isinstance(m, nn.Linear)]
        assert lora.attach(model, ml.LoRAConfig(targets="all-linear", r=2), rng=0) == linear
    model = made("bert", num_labels=3)
    config = ml.LoRAConfig(targets=("all-linear", "tok"), trainable="head", r=2)
    paths = lora.attach(model, config, rng=0)
    assert "tok" in paths and len(paths) > 10 and not any(at.startswith("head") for at in paths)
    assert "head.out.W" in model.trainable_parameters()
