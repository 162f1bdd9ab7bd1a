"""What LoRA implementations got wrong, a property each; the numbers are those of pitfalls.md.

Rows 2 and 11 are about what is not built: quantised bases and a fused c_attn.
"""

import numpy as np
import pytest
from conftest import kept
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import (
    FAMILIES,
    adapted,
    bits,
    delta,
    dtypes,
    families,
    family,
    fits,
    ids,
    layers,
    logits,
    lora_of,
    made,
    normal,
    same_bytes,
    seeds,
    shake,
    sizes,
    snapshot,
    train,
    wide,
)

import minilora as ml
from minilora import lora, nn, optim
from minilora.files import checkpoint
from minilora.tensor import Tensor

IDS = ids()
few = settings(max_examples=10)
ALL = ("tok", "pos", "q", "k", "v", "o", "up", "down")


def flags(model) -> list[tuple[str, bool]]:
    return [(name, p.requires_grad) for name, p in model.named_parameters()]


def pair(seed: int = 0, bias: str = "none", family: str = "gpt2"):
    """A model with the adapters "one" (q, tok) and "two" (q, up), neither of them zero."""
    model = made(family, seed)
    for name, targets in (("one", ("q", "tok")), ("two", ("q", "up"))):
        config = ml.LoRAConfig(r=2, alpha=3, targets=targets, bias=bias)
        lora.attach(model, config, name, rng=seed)
        shake(model.trainable_parameters().values(), seed + 2)
    return model


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@given(family=families, seed=seeds)
def test_row_01_a_merge_rounds_once_and_tells_what_that_cost(family, dtype, seed):
    """The update was cast to the weights' dtype first, then added: two roundings, none reported."""
    model, _ = lora_of(family, seed, dtype, targets=ALL)
    held = layers(model)
    lost = lora.merge(model)
    eps = np.finfo(dtype).eps
    for path, layer in held.items():
        W0, change = wide(layer.base.W), delta(layer)
        merged = dict(model.named_modules())[path].W
        assert str(merged.dtype) == dtype
        error = wide(merged) - (W0 + change)
        floor = np.finfo(dtype).smallest_subnormal + 1e-14
        assert np.all(np.abs(error) <= (eps / 2) * np.abs(W0 + change) * (1 + 1e-3) + floor)
        size = np.linalg.norm(change)
        if dtype != "float64":  # there, what is lost is what computing it in float64 loses
            assert abs(lost[path] - np.linalg.norm(error) / size) <= 1e-6 * lost[path] + 1e-12
        assert lost[path] <= eps * np.linalg.norm(np.abs(W0) + np.abs(change)) / size


@family
def test_row_03_a_hundred_merges_later_w0_has_the_same_bits(family):
    """Unmerging by subtraction leaves rounding behind, a little more with each other adapter."""
    model = pair(family=family)
    before = bits(model)
    held = [layer.adapters["one"] for layer in layers(model).values() if "one" in layer.adapters]
    for step in range(100):
        lora.activate(model, *(("one",), ("two",), ("one", "two"))[step % 3])
        for adapter in held:
            adapter.alpha = 0.1 + step
        with lora.merged(model):
            assert bits(model)["blocks.0.attn.q.W"] != before["blocks.0.attn.q.base.W"]
    assert bits(model) == before


@family
def test_row_04_unmerging_does_not_depend_on_what_happened_to_the_adapter(family):
    """The update to subtract was computed anew, from A, B and scale that had changed meanwhile."""
    model, _ = lora_of(family)
    held = layers(model)
    base = {path: bits(layer.base) for path, layer in held.items()}
    with lora.merged(model):
        inside = logits(model, IDS)
        for layer in held.values():
            layer.adapters["default"].alpha = -9.0
            shake([layer.adapters["default"].A, layer.adapters["default"].B], 7)
        assert same_bytes(logits(model, IDS), inside)
    assert {path: bits(layer.base) for path, layer in held.items()} == base
    with lora.disabled(model):
        assert same_bytes(logits(model, IDS), logits(made(family), IDS))


@family
def test_row_05_merging_twice_is_merging_once(family):
    """A second merge added the update a second time."""
    model, _ = lora_of(family, targets=("tok", "q"))
    lora.merge(model)
    once = snapshot(model)
    assert lora.merge(model) == {} and snapshot(model) == once
    said = logits(model, IDS)
    lora.attach(model, ml.LoRAConfig(), rng=0)  # and what comes next starts from the sum
    assert same_bytes(logits(model, IDS), said)


@family
def test_row_06_merging_some_of_several_never_drops_the_others_silently(family):
    """Once one adapter was merged, the other active ones no longer counted."""
    model = pair(family=family)
    lora.activate(model, "two")
    before, said = snapshot(model), logits(model, IDS)
    with pytest.raises(ValueError, match="merge: 'one' is not active and would be lost"):
        lora.merge(model)
    assert snapshot(model) == before
    with lora.merged(model):  # for a block nothing is lost
        np.testing.assert_allclose(logits(model, IDS), said, rtol=1e-12, atol=1e-12)
    lora.activate(model, "one", "two")
    said = logits(model, IDS)
    lora.merge(model)
    np.testing.assert_allclose(logits(model, IDS), said, rtol=1e-12, atol=1e-12)


@given(families, seeds, dtypes)
def test_row_07_train_and_eval_switch_dropout_and_nothing_else(family, seed, dtype):
    """eval() merged and train() unmerged, or should have and were never called."""
    model, _ = lora_of(family, seed, dtype, targets=("tok", "q"))
    before, said = snapshot(model), logits(model, IDS)
    for mode in (model.eval, model.eval, model.train, model.train):
        mode()
        assert snapshot(model) == before and same_bytes(logits(model, IDS), said)
    with lora.merged(model):
        merged = bits(model)
        model.train().eval()
        assert bits(model) == merged


@family
def test_row_08_a_state_dict_says_by_its_names_whether_it_is_merged(family):
    """`merged` was not saved: W0 + ΔW was taken for W0, and ΔW was added again."""
    model, _ = lora_of(family)
    state, said = model.state_dict(), logits(model, IDS)
    for path, layer in layers(model).items():
        assert same_bytes(state[f"{path}.base.W"], ml.asnumpy(layer.base.W.data))
    with lora.merged(model):
        inside, merged = model.state_dict(), logits(model, IDS)
    plain = made(family, 5)
    plain.load_state_dict(inside)  # a plain model's, and all of it
    assert same_bytes(logits(plain, IDS), merged)
    before = snapshot(model)
    with pytest.raises(KeyError, match="load_state_dict: missing"):
        model.load_state_dict(inside)
    assert snapshot(model) == before and same_bytes(logits(model, IDS), said)
    assert all(same_bytes(a, state[name]) for name, a in model.state_dict().items())


@example(3, 3, 0)
@given(sizes, sizes, seeds)
def test_row_09_an_update_lies_the_way_its_weight_does(d, k, seed):
    """A transpose was missing: in embeddings, and in one of two layouts of a Linear."""
    model = nn.Module()
    model.linear = nn.Linear(k, d, rng=seed, dtype="float64")
    model.table = nn.Embedding(k, d, rng=seed, dtype="float64")
    lora.attach(model, ml.LoRAConfig(r=1, alpha=2, targets=("linear", "table")), rng=0)
    before = {path: wide(layer.base.W).copy() for path, layer in layers(model).items()}
    A, B = np.arange(1.0, k + 1), 10.0 ** np.arange(d)  # (BA)ᵀ is not BA, square or not
    for layer in layers(model).values():
        adapter = layer.adapters["default"]
        adapter.A.data[...] = ml.backend.asarray(A[None])
        adapter.B.data[...] = ml.backend.asarray(B[:, None])
    lora.merge(model)
    np.testing.assert_array_equal(wide(model.linear.W), before["linear"] + 2 * np.outer(B, A))
    np.testing.assert_array_equal(wide(model.table.W), before["table"] + 2 * np.outer(A, B))


@few
@given(families, seeds)
def test_row_10_q_and_v_are_adapted_apart_and_k_is_not(family, seed):
    """A fused qkv got its updates through masks and convolutions, and its merge at wrong rows."""
    model, paths = lora_of(family, seed, targets=("q", "v"))
    plain, adapters = made(family, seed), layers(model)
    assert not any(path.endswith(".k") for path in paths)
    for path in paths:
        dict(plain.named_modules())[path].W.data += ml.backend.asarray(delta(adapters[path]))
    np.testing.assert_allclose(logits(model, IDS), logits(plain, IDS), rtol=1e-12, atol=1e-12)
    q, v = (adapters[f"blocks.0.attn.{x}"].adapters["default"] for x in "qv")
    assert not np.array_equal(wide(q.A), wide(v.A))


@family
def test_row_12_one_of_A_and_B_starts_at_0_and_not_both(family):
    """Either one at 0 is no update at first; both at 0 get no gradient, ever."""
    model = made(family)
    lora.attach(model, ml.LoRAConfig(r=2, targets=fits(family, ALL)), rng=0)
    held = [layer.adapters["default"] for layer in layers(model).values()]
    assert all(wide(a.A).all() and not wide(a.B).any() for a in held)
    for adapter in held:
        adapter.A.data[...] = 0
    train(model, 5, optim.Adam)
    assert not any(wide(a.A).any() or wide(a.B).any() for a in held)


@given(seeds, st.sampled_from([1, 64]))
def test_row_13_the_two_initialisations_have_the_size_they_say(seed, r):
    """The paper says Gaussian, the code kaiming uniform, a comment something else. Here:

    σ² = 1/k for a Linear, 1/r for a table, ±1/√k uniform for kaiming.
    """
    model = nn.Module()
    model.linear, model.table = nn.Linear(400, 2, rng=0), nn.Embedding(400, 2, rng=0)
    for init, name in (("gaussian", "normal"), ("kaiming", "uniform")):
        config = ml.LoRAConfig(r=r, targets=("linear", "table"), init=init)
        lora.attach(model, config, name, rng=seed)
    for layer, fan in ((model.linear, 400), (model.table, r)):
        gauss, flat = (wide(layer.adapters[name].A) * np.sqrt(fan) for name in layer.adapters)
        assert abs(gauss.std() - 1) < 5 / np.sqrt(2 * gauss.size)  # 5 standard errors
        assert np.abs(gauss).max() > 1.5 and 0.98 < np.abs(flat).max() <= 1 + 1e-6
        assert abs(flat.std() - 1 / np.sqrt(3)) < 5 / np.sqrt(flat.size)
        assert not any(wide(a.B).any() for a in layer.adapters.values())


@given(families, seeds, dtypes, st.sampled_from(["gaussian", "kaiming"]))
def test_row_14_at_the_first_step_A_gets_exactly_0_and_B_does_not(family, seed, dtype, init):
    """dA = scale · Bᵀ g xᵀ is 0 because B is: people took it for a broken graph."""
    model = made(family, seed, dtype)
    lora.attach(model, ml.LoRAConfig(r=2, alpha=3, targets=fits(family, ALL), init=init), rng=seed)
    held = [layer.adapters["default"] for layer in layers(model).values()]
    before = [wide(a.A).copy() for a in held]
    ml.ops.cross_entropy(model(IDS), IDS).backward()
    for adapter in held:
        assert not wide(adapter.A.grad).any() and wide(adapter.B.grad).any()
    train(model, 1, optim.Adam)
    assert all(np.array_equal(wide(a.A), A) and wide(a.B).any() for a, A in zip(held, before))
    train(model, 1, optim.Adam)
    assert not any(np.array_equal(wide(a.A), A) for a, A in zip(held, before))


@few
@given(seeds, st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([1, 2]))
def test_row_15_dropout_is_off_in_eval_and_right_on_average_in_training(seed, rate, active):
    """It stayed on in eval, was never wired in, or left a factor 1 - p behind at the merge."""
    model = nn.Module()
    model.q = nn.Linear(6, 4, rng=seed, dtype="float64")
    names = ("one", "two")[:active]
    for name in names:
        lora.attach(model, ml.LoRAConfig(r=2, alpha=3, targets="q", dropout=rate), name, rng=seed)
    shake(model.parameters(), seed, 1.0)
    lora.activate(model, *names)
    row, n = normal(seed, 1, 6), 4000
    x = Tensor(np.repeat(row, n, axis=0))
    noisy, again = ml.asnumpy(model.q(x).data), ml.asnumpy(model.q(x).data)
    exact = row @ (wide(model.q.base.W) + delta(model.q)).T + wide(model.q.base.b)
    error = 6 * noisy.std(axis=0) / np.sqrt(n)  # six standard errors
    assert np.all(noisy.std(axis=0) > 1e-6) and not np.array_equal(noisy, again)
    assert np.all(np.abs(noisy.mean(axis=0) - exact[0]) <= error)
    with lora.merged(model):  # merged in training mode, too
        np.testing.assert_allclose(ml.asnumpy(model.q(x).data), exact.repeat(n, 0), rtol=1e-12)
    model.eval()
    np.testing.assert_allclose(ml.asnumpy(model.q(x).data), exact.repeat(n, 0), rtol=1e-12)
    for name in names:  # the noise is there for each of them alone
        model.train()
        others = [model.q.adapters[other] for other in names if other != name]
        held = [np.array(wide(other.B)) for other in others]
        for other in others:
            other.B.data[...] = 0
        assert np.all(ml.asnumpy(model.q(x).data).std(axis=0) > 1e-6)
        for other, B in zip(others, held):
            other.B.data[...] = ml.backend.asarray(B)


def test_row_15_the_base_sees_x_without_dropout():
    """Dropout belongs to the adapter's input alone."""
    model, _ = adapted(dropout=0.5)
    layer = layers(model)["blocks.0.attn.q"]
    layer.adapters["default"].B.data[...] = 0
    x = Tensor(normal(0, 3, 8))
    assert same_bytes(ml.asnumpy(layer(x).data), ml.asnumpy(layer.base(x).data))


@family
def test_row_15_an_adapter_that_joins_a_model_in_eval_is_in_eval(family, tmp_path):
    """A new adapter came with dropout on."""
    source, _ = lora_of(family, dropout=0.5)
    lora.save(source, tmp_path / "a.npz")
    model = made(family).eval()
    lora.load(model, tmp_path / "a.npz")
    for name in ("default", "new"):
        assert same_bytes(logits(model, IDS), logits(model, IDS))
        if name == "default":
            with pytest.warns(UserWarning, match="attach: in eval mode dropout is off"):
                lora.attach(model, ml.LoRAConfig(dropout=0.5), name="new")
            shake(model.trainable_parameters().values(), 3)
    assert not same_bytes(logits(model.train(), IDS), logits(model, IDS))


@given(families, seeds, st.integers(1, 4), st.sampled_from([0.5, 7.0]), st.integers(1, 4))
def test_row_16_the_scale_is_alpha_over_r_and_travels_with_the_file(
    tmp_path_factory, family, seed, r, alpha, other
):
    """alpha without / r, a flat scale, a rank pattern that the loader ignored."""
    path = tmp_path_factory.mktemp("files") / "a.npz"
    model, _ = lora_of(
        family, seed, "float64", r, alpha, rank_pattern={"v": other}, alpha_pattern={"v": 9}
    )
    lora.save(model, path)
    assert checkpoint.read(path)[1]["scales"]["blocks.0.attn.v"] == 9 / other
    fresh = made(family, seed)
    lora.load(fresh, path)
    for held in (layers(model), layers(fresh)):
        for at, layer in held.items():
            adapter = layer.adapters["default"]
            assert adapter.scale == (9 / other if at.endswith("v") else alpha / r)
            expected = adapter.scale * wide(adapter.B) @ wide(adapter.A)
            np.testing.assert_allclose(wide(layer.delta()), expected, rtol=1e-13, atol=1e-15)


def two_and_their_sum(name: str, seed: int, weights):
    """A model with "one" and "two" of rank 2 and scale 3 / 2 on q, and Σ weight · ΔW by layer."""
    model = made(name, seed)
    for i, called in enumerate(("one", "two")):
        lora.attach(model, ml.LoRAConfig(r=2, alpha=3, targets="q"), called, rng=seed)
        shake(model.trainable_parameters().values(), seed + i)
    held = {at: x.adapters for at, x in layers(model).items()}
    return model, {
        at: sum(w * 1.5 * wide(a[n].B) @ wide(a[n].A) for n, w in weights.items())
        for at, a in held.items()
    }


@given(name=families, seed=seeds)
@few
def test_row_17_a_weighted_sum_is_of_updates_and_linear_says_how_far_it_is_off(name, seed):
    """A's and B's added up on their own have products in them that nobody asked for."""
    weights = {"one": 0.5, "two": -2.0}
    model, wanted = two_and_their_sum(name, seed, weights)
    for how in ("cat", "linear"):
        told = lora.combine(model, weights, how, how)
        for at, layer in layers(model).items():
            off = np.linalg.norm(wide(layer.adapters[how].delta()) - wanted[at])
            off /= np.linalg.norm(wanted[at])
            assert off == pytest.approx(told[at], abs=1e-12) and (off < 1e-12) == (how == "cat")


@given(name=families, seed=seeds)
@few
def test_row_18_the_scale_is_in_an_svd_combination_once(name, seed):
    """It was multiplied in twice: an update of scale s came out s times too large."""
    for weights in ({"one": 1.0}, {"one": 0.5, "two": 0.25}):
        model, wanted = two_and_their_sum(name, seed, weights)
        told = lora.combine(model, weights, "svd", "all", r=4)
        assert max(told.values()) < 1e-12
        for at, layer in layers(model).items():
            np.testing.assert_allclose(
                wide(layer.adapters["all"].delta()), wanted[at],
                rtol=0, atol=1e-12 * np.abs(wanted[at]).max(),
            )


@given(families, seeds)
def test_row_19_a_merged_tied_table_survives_saving_and_loading(tmp_path_factory, family, seed):
    """The merged head was saved, the file said it was tied, and loading it lost the head."""
    path = tmp_path_factory.mktemp("files") / "m.npz"
    model, _ = lora_of(family, seed, targets=("tok", "q"))
    before = logits(model, IDS)
    lora.merge(model)
    ml.save_model(model, path)
    again = ml.load_model(path, dtype="float64")
    assert same_bytes(logits(again, IDS), logits(model, IDS)) and bits(again) == bits(model)
    np.testing.assert_allclose(logits(again, IDS), before, rtol=1e-12, atol=1e-12)


@few
@given(families, seeds, st.sampled_from([("blocks.1.ln2",), ("tok", "*.ln1.g"), ("blocks.1.mlp",)]))
def test_row_20_all_that_was_trained_is_saved(tmp_path_factory, family, seed, whole):
    """The head was trained, not saved, and random after loading."""
    path = tmp_path_factory.mktemp("files") / "a.npz"
    model = made(family, seed)
    lora.attach(model, ml.LoRAConfig(r=2, alpha=3, trainable=whole), rng=seed)
    trained = set(model.trainable_parameters())
    assert any(name.startswith(("blocks.1.ln2", "tok", "blocks.1.mlp")) for name in trained)
    train(model)
    lora.save(model, path)
    fresh = made(family, seed)
    lora.load(fresh, path)
    assert bits(fresh) == bits(model) and same_bytes(logits(fresh, IDS), logits(model, IDS))
    moved = {name for name, b in bits(fresh).items() if b != bits(made(family, seed)).get(name)}
    assert trained <= moved  # else this would prove nothing


@pytest.mark.parametrize(
    "fault, says",
    [
        ("missing", "does not fit"), ("unexpected", "does not fit"), ("shape", "does not fit"),
        ("transposed", "does not fit"), ("whole missing", "does not fit"),
        ("fewer layers", "does not fit"), ("taken", "cannot be an adapter's name"),
        ("kind", "holds a model, not an adapter"), ("truncated", "damaged"), ("garbage", "damaged"),
        ("empty", "damaged"),
    ],
)
@pytest.mark.parametrize(
    ("family", "bare"), [("gpt2", False), *((name, name != "bert") for name in FAMILIES)]
)
def test_row_21_a_file_that_does_not_fit_raises_and_changes_nothing(
    family, tmp_path, fault, says, bare
):
    """Loading was not strict: the adapter's keys were missing, and nobody noticed."""
    path = tmp_path / "a.npz"
    lora.save(lora_of(family, targets=("q", "up"), trainable="blocks.1.ln2")[0], path)
    arrays, meta = checkpoint.read(path)
    q, fresh, name = "blocks.0.attn.q", made(family), "new"
    if fault == "missing":
        del arrays[f"{q}.B"]
    elif fault == "unexpected":
        arrays["blocks.0.attn.k.A"] = arrays[f"{q}.A"]
    elif fault == "shape":
        arrays[f"{q}.A"] = arrays[f"{q}.A"][:, :1]  # would broadcast
    elif fault == "transposed":
        arrays["blocks.0.mlp.up.B"] = arrays["blocks.0.mlp.up.B"].T
    elif fault == "whole missing":
        del arrays["blocks.1.ln2.g"]
    elif fault == "kind":
        meta["kind"] = "model"
    elif fault == "fewer layers":
        fresh = made(family, n_layers=1)
    elif fault == "taken":
        bare, name = False, "default"
    checkpoint.write(path, arrays, meta)
    whole = path.read_bytes()
    cut = {"truncated": whole[: len(whole) // 2], "garbage": b"PK\3\4" + b"x" * 99, "empty": b""}
    path.write_bytes(cut.get(fault, whole))
    if not bare:
        lora.attach(fresh, ml.LoRAConfig(trainable="blocks.0.ln1", targets=("q", "tok")), rng=0)
    before = snapshot(fresh)
    with pytest.raises(ValueError, match=says):
        lora.load(fresh, path, name=name)
    assert snapshot(fresh) == before


@family
def test_row_22_what_is_active_and_what_is_trained_are_two_things(family, tmp_path):
    """Activating, disabling or loading an adapter froze or thawed another one."""
    model = pair(family=family, bias="lora")
    lora.save(model, tmp_path / "two.npz", "two")
    kept = flags(model)
    biases = 2 if family == "llama" else 4  # a Llama's `up` has none
    assert [on for _, on in kept].count(True) == 2 * 4 + biases  # A, B, b of two's four layers
    for names in ((), ("one",), ("two",)):
        lora.activate(model, *names)
        with lora.disabled(model):
            pass
        on = {n for n in model.trainable_parameters() if names != ("two",) or n[-1] != "b"}
        assert on == {n for n, _ in kept if ".two." in n}
    assert flags(model) == kept
    for name, trainable in (("three", False), ("four", True)):
        lora.load(model, tmp_path / "two.npz", name=name, trainable=trainable)
        new = [on for n, on in flags(model) if f".{name}." in n]
        assert len(new) == 8 and set(new) == {trainable}
        lora.activate(model, "two")
        assert [row for row in flags(model) if row in kept or row[0] in dict(kept)] == kept
    lora.detach(model, "one")
    assert set(flags(model)) >= {row for row in kept if ".two." in row[0]}


@pytest.mark.parametrize("bias", ["lora", "all"])
@few
@given(family=families, seed=seeds)
def test_row_23_a_disabled_adapter_takes_its_biases_and_heads_along(family, bias, seed):
    """Biases were trained in place: switching the adapter off did not give the base back."""
    model = made(family, seed)
    before, base = logits(model, IDS), bits(model)
    whole = ("blocks.1.ln2", "blocks.0.mlp")
    lora.attach(model, ml.LoRAConfig(r=2, alpha=3, bias=bias, trainable=whole), rng=0)
    train(model)
    trained, said = bits(model), logits(model, IDS)
    assert trained["blocks.1.ln2.g"] != base["blocks.1.ln2.g"]
    assert trained["blocks.0.attn.q.base.b"] != base["blocks.0.attn.q.b"]
    with lora.disabled(model):
        assert same_bytes(logits(model, IDS), before)
    assert bits(model) == trained and same_bytes(logits(model, IDS), said)
    lora.activate(model)
    assert same_bytes(logits(model, IDS), before)


def updates(family: str, s: float, root: float, make, lr: float, **how) -> list[np.ndarray]:
    """ΔW of each layer after 60 steps with scale s, learning rate root · lr and A = root · A0.

    8 where it is not the numbers that are tested but the array library or the family.
    """
    model = made(family, dtype="float32")
    config = ml.LoRAConfig(r=3, alpha=3 * s, targets=("q", "v", "up"))
    lora.attach(model, config, rng=0)
    for layer in layers(model).values():
        layer.adapters["default"].A.data *= root
        assert layer.adapters["default"].scale == s
    long = ml.current().name == "numpy" and family == "gpt2"
    train(model, 40 if long else 4, make, lr=lr * root, **how)
    return [ml.asnumpy(layer.delta()) for layer in layers(model).values()]


@pytest.mark.parametrize(
    ("family", "s"), kept(
        [("gpt2", 0.25), ("gpt2", 16.0), *((name, 4.0) for name in FAMILIES)],
        ("gpt2", 16.0), ("bert", 4.0), ("roberta", 4.0), ("deberta", 4.0))
)
@pytest.mark.usefixtures("numpy_first")
def test_row_24_alpha_is_a_learning_rate_bit_for_bit(family, s):
    """Scale s is scale 1 with √s times the learning rate and √s times A, under Adam with eps = 0.

    Adam's step does not depend on the gradient's size, and powers of two round nothing.
    """
    root = s**0.5
    ours = updates(family, s, 1.0, optim.Adam, 1e-2, eps=0.0)
    same = updates(family, 1.0, root, optim.Adam, 1e-2, eps=0.0)
    assert all(map(same_bytes, ours, same)) and all(d.any() for d in ours)
    decayed = updates(family, s, 1.0, optim.AdamW, 1e-2, eps=0.0, weight_decay=0.1)
    other = updates(family, 1.0, root, optim.AdamW, 1e-2, eps=0.0, weight_decay=0.1)
    for a, b in zip(decayed, other):  # lr · weight_decay is another one: it breaks here
        assert np.linalg.norm(a - b) > 1e-3 * np.linalg.norm(a)
    unscaled = updates(family, 1.0, 1.0, optim.Adam, 1e-2, eps=0.0)
    assert not any(map(same_bytes, ours, unscaled))  # s matters at all
