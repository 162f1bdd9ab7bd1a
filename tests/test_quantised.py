"""Frozen matrices as codes of 4 and 8 bits: the format, the op, and models over such a base."""

import copy
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    bits,
    families,
    gpt2,
    ids,
    made,
    normal,
    same_bytes,
    seeds,
    shake,
    snapshot,
    value_and_grads,
)

import minilora as ml
from minilora import Tensor, accounting, lora, methods, nn, ops
from minilora.accounting import plan
from minilora.backend import Quantised, asarray, asnumpy, quantised
from minilora.backend.quantised import BLOCK, LEVELS, levels
from minilora.backend.writes import held
from minilora.models.families import SHAPES

PUBLISHED = [  # the values of NF4 in QLoRA, appendix E, as its authors' code has them
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.24611230, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]
EPS = float(np.finfo("float32").eps)
formats = st.sampled_from([*LEVELS])
every_format = pytest.mark.parametrize("format", LEVELS)
sides = st.integers(1, 20)
IDS = ids(tokens=6)


def numbers(Q: Quantised) -> np.ndarray:
    return asnumpy(Q.astype("float64"))


def blocks(x: np.ndarray) -> np.ndarray:
    """The numbers in rows of 64, filled up with zeros."""
    flat = np.zeros(-(-x.size // BLOCK) * BLOCK)
    flat[: x.size] = x.reshape(-1)
    return flat.reshape(-1, BLOCK)


def over(format, family="gpt2", seed=0, dtype="float32", method=None, **sizes):
    """A model over a base of codes, with an adapter of B ≠ 0 and alpha ≠ r."""
    model = made(family, seed, dtype, **sizes)
    method = method or ml.LoRAConfig(r=3, alpha=5.0, targets=("q", "down"))
    methods.apply(model, method, rng=seed + 1, base_dtype=format)
    shake(model.trainable_parameters().values(), seed + 2)
    return model


def coded(model) -> dict[str, Quantised]:
    parameters = model.named_parameters()
    return {name: p.data for name, p in parameters if isinstance(p.data, Quantised)}


# The format


def test_the_16_numbers_of_nf4_are_those_published():
    # theirs come of probabilities in float32: off by 2⁻²⁴, times 14 / 1.85, the slope at the end
    assert np.abs(levels("nf4") - PUBLISHED).max() < 2.0**-24 * 14 / 1.85
    assert levels("nf4")[[0, 7, 15]].tolist() == [-1, 0, 1]
    assert levels("int8").tolist() == [np.float32(i / 127) for i in range(-127, 128)]


@given(formats, seeds, sides, sides, st.floats(1e-30, 1e30), st.booleans())
def test_each_number_becomes_the_nearest_and_what_comes_back_stays(format, seed, d, k, size, some):
    W = (normal(seed, d, k) * size).astype("float32")
    if some:
        W[np.abs(W) < size / 2] = 0
    Q = quantised(asarray(W), format)
    assert Q.shape == (d, k) and str(Q.dtype) == "float32"
    largest = np.abs(blocks(W)).max(axis=1, keepdims=True)
    choices = largest[:, :, None] * levels(format)                # (blocks, 1, codes)
    nearest = np.abs(blocks(W)[:, :, None] - choices).min(axis=2)
    error = np.abs(blocks(numbers(Q)) - blocks(W))
    assert (error <= nearest + 4 * EPS * largest).all()           # ties, roundings of the scale
    assert (error <= largest * (np.diff(levels(format)).max() / 2 + 4 * EPS)).all()
    assert not numbers(Q)[W == 0].any()
    again = quantised(Q.astype("float32"), format)
    for one, other in zip(Q.arrays, again.arrays):
        assert same_bytes(asnumpy(one), asnumpy(other))
    Q[...] = Q.copy()
    assert same_bytes(numbers(Q), numbers(again))


@given(formats, seeds, st.integers(0, 3), st.sampled_from(["float16", "float64"]))
def test_each_block_has_a_scale_of_its_own(format, seed, which, dtype):
    W = normal(seed, 4, BLOCK).astype(dtype)
    before = numbers(quantised(asarray(W), format))
    W[which] *= -16
    after = quantised(asarray(W), format)
    assert str(after.dtype) == dtype == str(after.astype(dtype).dtype)
    changed = (numbers(after) != before).any(axis=1)
    assert changed.tolist() == [i == which for i in range(4)]
    assert np.array_equal(asnumpy(after.arrays[1])[:, 0], np.abs(W).max(axis=1).astype("float32"))


def test_the_first_of_two_codes_is_in_the_high_half_of_a_byte():
    W = np.zeros((1, BLOCK + 2), "float32")
    W[0, :3], W[0, -2:] = [-1, 1, 0.44], [0, 3]
    codes, scales, _ = map(asnumpy, quantised(asarray(W), "nf4").arrays)
    assert codes[0, :3].tolist() == [0x0F, 0xC7, 0x77] and codes[1, :2].tolist() == [0x7F, 0x77]
    assert scales.tolist() == [[1], [3]]


@every_format
def test_the_bytes_are_those_of_codes_and_scales(format):
    for d, k in ((1, 1), (8, 8), (5, 13), (160, 640)):
        n = -(-d * k // BLOCK)
        assert quantised(ml.xp.ones((d, k)), format).nbytes == n * (
            BLOCK // LEVELS[format][1] + 4)


@every_format
def test_what_is_no_array_says_what_to_do(format):
    Q = quantised(ml.xp.ones((2, 3), dtype="float32"), format)
    with pytest.raises(AttributeError, match=r"a matrix \(2, 3\) is stored as codes, and has no T"):
        Q.T  # noqa: B018
    assert same_bytes(np.asarray(pickle.loads(pickle.dumps(Q))), np.ones((2, 3), "float32"))


# The op


@given(formats, seeds, sides, sides, st.sampled_from(["float32", "float64"]), st.booleans())
def test_the_op_is_linear_with_the_numbers_of_its_codes(format, seed, d, k, dtype, plain):
    Q = quantised(asarray(normal(seed, d, k, dtype="float32")), format)
    arrays = [normal(seed + 1, 3, k, dtype=dtype), normal(seed + 2, d, dtype=dtype)]
    W = Tensor.of(Q.astype(dtype))

    def coded(x, b):
        return ops.quantised_linear(x, *map(Tensor.of, Q.arrays), b, shape=(d, k))

    with ops.plain(plain):
        y, grads = value_and_grads(coded, *arrays)
        want, wanted = value_and_grads(lambda x, b: ops.linear(x, W, b), *arrays)
    assert all(map(same_bytes, [y, *grads], [want, *wanted])) and y.dtype == dtype


@pytest.mark.parametrize("plain", [True, False])
@every_format
def test_the_tape_keeps_the_codes_and_never_the_numbers(format, plain):
    Q = quantised(asarray(normal(0, 40, 50, dtype="float32")), format)
    x = Tensor(normal(1, 3, 50, dtype="float32"), True)
    b = Tensor(ml.xp.zeros(40, dtype="float32"), True)
    with ops.plain(plain):
        y = ops.quantised_linear(x, *map(Tensor.of, Q.arrays), b, shape=Q.shape)
    kept = {id(array) for array in held([rule for _, rule in y._node.edges])}
    assert kept <= {id(array) for array in Q.arrays}
    with pytest.raises(ValueError, match=r"quantised_linear: .*x has 49 features, W takes 50"):
        ops.quantised_linear(x[:, 1:], *map(Tensor.of, Q.arrays), shape=Q.shape)


def test_codes_are_not_trained():
    layer = over("nf4").blocks[0].mlp.up
    layer.W.requires_grad = True
    with pytest.raises(RuntimeError, match="nf4 codes, which cannot be trained: freeze it"):
        layer(Tensor(ml.xp.ones((1, 8), dtype="float32")))


# Models


@given(formats, families, seeds, st.sampled_from(["float16", "float32", "float64"]))
def test_the_linear_layers_of_the_blocks_are_stored_and_no_others(format, family, seed, dtype):
    before = made(family, seed, dtype)
    parameters = dict(before.named_parameters())
    wanted = {name for name, layer in before.named_modules() if type(layer) is nn.Linear
              and name.startswith("blocks.")}
    lora.attach(before, ml.LoRAConfig(), rng=0, base_dtype=format)
    model, whole = lora.detach(before), made(family, seed, dtype).state_dict()
    assert coded(model).keys() == {f"{name}.W" for name in wanted} and len(wanted) >= 12
    for name, p in model.named_parameters():
        assert p is parameters[name] and p.requires_grad == (name not in coded(model))
        same = same_bytes(asnumpy(p.data), whole[name])
        assert same == (name not in coded(model)) and str(p.dtype) == dtype


def rounded(model):
    """The model, with the numbers of its codes as an array."""
    for _, p in model.named_parameters():
        if isinstance(p.data, Quantised):
            p.data = p.data.astype(p.dtype)
    return model


@pytest.mark.parametrize("method", [
    methods.LoRA(r=3, bias="all", trainable="ln_f"), methods.RsLoRA(r=2),
    methods.BitFit(), methods.AdapterH(r=2), methods.PreLayer(lp=1, li=1),
    methods.LoRAPreEmbed(r=2, lp=1, li=1),
], ids=lambda method: type(method).__name__)
@every_format
def test_values_and_gradients_are_those_of_a_model_with_the_same_numbers(format, method):
    model = over(format, dtype="float64", method=method)
    whole = rounded(copy.deepcopy(model))
    assert coded(model) and not coded(whole)
    with methods.prompt(IDS.shape[1]):
        for each in (model, whole):
            ops.cross_entropy(each(IDS), ids(1, tokens=6)).backward()
        assert np.allclose(model(IDS).numpy(), whole(IDS).numpy(), rtol=1e-12, atol=1e-12)
    for name, p in whole.trainable_parameters().items():
        grad = asnumpy(model.trainable_parameters()[name].grad)
        assert np.allclose(grad, asnumpy(p.grad), rtol=1e-10, atol=1e-12) and grad.any()


@given(formats, families, seeds)
def test_detach_gives_the_stored_base_back_bit_for_bit(format, family, seed):
    model = over(format, family, seed)
    stored = {name: bytes_of(Q) for name, Q in coded(lora.detach(copy.deepcopy(model))).items()}
    with lora.disabled(model):
        base = model.eval()(IDS).numpy()
    for targets in ("v", "up"):
        lora.attach(model, ml.LoRAConfig(targets=targets), targets, rng=0, base_dtype=format)
    with lora.merged(model):
        model(IDS)
    lora.detach(model)
    assert {name: bytes_of(Q) for name, Q in coded(model).items()} == stored
    assert same_bytes(model(IDS).numpy(), base)


def bytes_of(Q: Quantised) -> list[bytes]:
    return [asnumpy(array).tobytes() for array in Q.arrays[:2]]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@every_format
def test_the_proof_of_a_merge_holds_over_codes(format, dtype):
    with np.errstate(all="ignore"):
        assert lora.verify(over(format, dtype=dtype).eval(), IDS).passed


@every_format
def test_an_adapter_over_codes_is_saved_loaded_and_verified(format, tmp_path):
    model = over(format).eval()
    lora.save(model, tmp_path / "a.npz")
    same = gpt2(0, "float32").eval()
    lora.load(same, tmp_path / "a.npz", base_dtype=format)        # a warning is an error
    assert same_bytes(same(IDS).numpy(), model(IDS).numpy()) and not same.trainable_parameters()
    with pytest.warns(UserWarning, match="another base"):
        lora.load(gpt2(0, "float32"), tmp_path / "a.npz")
    with lora.per_row(model, ["default", "base"]):
        rows = model(IDS).numpy()
    assert np.allclose(rows[0], model(IDS[:1]).numpy()[0], rtol=1e-4, atol=1e-5)


@every_format
def test_the_state_of_a_model_over_codes_goes_round(format, tmp_path):
    model = lora.detach(over(format)).eval()
    before, y, state = bits(model), model(IDS).numpy(), model.state_dict()
    again = ml.load_model(ml.save_model(model, tmp_path / "m.npz"))
    assert not coded(again) and np.allclose(again(IDS).numpy(), y, rtol=1e-4, atol=1e-5)
    shake([model.tok.W], 0)
    model.load_state_dict({name: x * 2 for name, x in state.items()})
    assert bits(model) != before and coded(model)
    model.load_state_dict(state)
    assert bits(model) == before and same_bytes(model(IDS).numpy(), y)


@given(formats, seeds)
def test_merging_is_exact_into_numbers_and_measured_into_codes(format, seed):
    model, other = over(format, seed=seed).eval(), over(format, seed=seed).eval()
    path, y = "blocks.0.attn.q", model(IDS).numpy()
    layer = dict(lora.adaptable(model))[path]
    W0, delta = numbers(layer.base.W.data), asnumpy(layer.delta())
    lost = lora.merge(model)
    assert max(lost.values()) < 1e3 * EPS
    assert same_bytes(asnumpy(model.blocks[0].attn.q.W.data), (W0 + delta).astype("float32"))
    assert np.allclose(model(IDS).numpy(), y, rtol=1e-3, atol=1e-4)
    with pytest.warns(UserWarning) as seen:
        lost = lora.merge(other, base_dtype=format)
    W = numbers(coded(other)[f"{path}.W"])
    assert np.isclose(lost[path], np.linalg.norm(W - W0 - delta) / np.linalg.norm(delta))
    worst = max(lost, key=lost.get)
    says = str(seen[0].message)
    assert f"{lost[worst]:.0%} of that of {worst}" in says and "without base_dtype" in says
    assert f"merge: {format} codes lose {np.mean([*lost.values()]):.0%} of ΔW" in says
    assert not other.blocks[0].attn.q.W.requires_grad
    assert coded(other).keys() == {n for n in other.state_dict() if n.startswith("blocks.")
                                   and n.endswith(".W")}


def test_of_an_update_below_the_steps_nothing_survives():
    model = gpt2(0, "float32")
    lora.attach(model, ml.LoRAConfig(r=1, targets="q"), rng=0, base_dtype="nf4")
    q = model.blocks[0].attn.q.adapters["default"]
    q.A.data[...], q.B.data[...] = 1e-4, 1e-4
    model.blocks[1].attn.q.adapters["default"].B.data[...] = 1e3   # far above the steps
    with pytest.warns(UserWarning, match="10.% of that of blocks.0.attn.q"):
        lost = lora.merge(model, base_dtype="nf4")
    # the largest of a block is its scale, and follows even the smallest update
    assert 0.9 < lost["blocks.0.attn.q"] < 1.1 and lost["blocks.1.attn.q"] < 0.2


def test_a_merge_into_other_dtypes_is_refused():
    model = over("nf4")
    with pytest.raises(ValueError, match="merge: base_dtype is 'nf4' or 'int8', not 'float16'"):
        lora.merge(model, base_dtype="float16")
    table = gpt2(0, "float32")
    lora.attach(table, ml.LoRAConfig(targets="tok"), rng=0)
    with pytest.warns(UserWarning):
        lora.merge(table, base_dtype="nf4")
    assert not coded(table), "a table has no codes"


REFUSED = {
    "full": ({}, r"full\) trains a copy of blocks.0.attn.q.W, which is stored as nf4 codes"),
    "fttop2": ({}, r"fttop2\) trains a copy of blocks.0"),
    "lora": ({"trainable": "up"}, r"lora\) trains a copy of blocks.0.mlp.up.W, .* nf4 codes"),
    "dora": ({}, r"dora\) at blocks.0.attn.q: DoRA measures .*, and W is stored as nf4 codes"),
    "pissa": ({}, r"pissa\) at blocks.0.attn.q: PiSSA .*, and W is stored as nf4 codes"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("stored", [True, False], ids=["stored before", "stored now"])
def test_a_method_that_needs_the_numbers_of_w_is_refused(name, stored):
    settings, says = REFUSED[name]
    method, model = methods.METHODS[name](**settings), gpt2(0, "float32")
    if stored:
        lora.attach(model, ml.LoRAConfig(targets="v"), rng=0, base_dtype="nf4")
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"two .{says}"):
        methods.apply(model, method, "two", rng=0, base_dtype=None if stored else "nf4")
    assert snapshot(model) == before
    if not stored:                                                # and where it came first
        methods.apply(model, method, "two", rng=0)
        before = snapshot(model)
        with pytest.raises(ValueError, match=f"two .{says}"):
            lora.attach(model, ml.LoRAConfig(targets="k"), rng=0, base_dtype="nf4")
        assert snapshot(model) == before


def test_a_base_is_stored_in_one_format():
    model = over("nf4")
    before = {name: bytes_of(Q) for name, Q in coded(model).items()}
    for other in ("int8", "float16"):
        with pytest.raises(ValueError, match="W is stored as nf4 codes already"):
            lora.attach(model, ml.LoRAConfig(), "two", rng=0, base_dtype=other)
    lora.attach(model, ml.LoRAConfig(targets="k"), "two", rng=0, base_dtype="nf4")
    after = {name: bytes_of(Q) for name, Q in coded(lora.detach(model)).items()}
    assert [*after.values()] == [*before.values()]


class OneLayer(nn.Module):
    def __init__(self):
        self.q = nn.Linear(3, 2, rng=0)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_base_that_cannot_be_stored_as_codes_is_refused(number):
    model = gpt2(0, "float32")
    model.blocks[1].mlp.up.W.data[3, 1] = number
    with pytest.raises(ValueError, match=r"blocks.1.mlp.up.W contains (nan|inf), and float32 ends"):
        lora.attach(model, ml.LoRAConfig(), rng=0, base_dtype="int8")
    with pytest.raises(ValueError, match="nf4 is for the Linear layers of a model's `blocks`"):
        lora.attach(OneLayer(), ml.LoRAConfig(targets="q"), rng=0, base_dtype="nf4")


# The books


@pytest.mark.parametrize("plain", [True, False])
@every_format
def test_predicted_bytes_are_those_measured_and_those_planned(format, plain, numpy_only):
    config = ml.GPT2Config(vocab_size=50, n_positions=40, d_model=72, n_layers=2, n_heads=4)
    model = ml.GPT2(config, rng=0)
    lora.attach(model, ml.LoRAConfig(r=3), rng=0, base_dtype=format)
    stored = sum(Q.nbytes for Q in coded(model).values())
    n = sum(Q.size for Q in coded(model).values())
    assert stored == n // LEVELS[format][1] + 4 * (n // BLOCK)    # 72 · 72 = 81 · 64
    with ops.plain(plain):
        optimizer = ml.AdamW(model.trainable_parameters())
        book = accounting.ledger(model, optimizer, 2, 31)
        planned = plan(config, policy=f"{format} base", r=3, batch=2, tokens=31, plain=plain)
    rest = sum(p.data.nbytes for p in model.parameters()
               if not p.requires_grad and not isinstance(p.data, Quantised))
    for row in [*book.rows, book.peak]:
        assert row.predicted == row.measured or row.name == "peak"
        assert planned.bytes[row.name] == row.predicted
    assert abs(book.peak.predicted / book.peak.measured - 1) < 0.02   # NumPy's small objects
    assert book["frozen weights"].measured == stored + rest
    assert planned.count == accounting.count(model) and planned.count.frozen > n
    assert sum(book.activations.values()) == book["activations"].predicted


def test_a_plan_of_gpt3s_widths_counts_its_codes(numpy_only):
    d, layers = 12288, 2
    gpt3 = replace(SHAPES["gpt3-175b"], n_layers=layers)
    usual, small = (plan(gpt3, policy=policy, r=4, targets=("q", "v"), tokens=2)
                    for policy in ("float32", "nf4 base"))
    n = layers * 12 * d * d
    saved = usual.bytes["frozen weights"] - small.bytes["frozen weights"]
    assert saved == 4 * n - n // 2 - n // BLOCK * 4
    assert small.count == usual.count
    with pytest.raises(ValueError, match='"nf4 base" goes with "lora"'):
        plan("gpt2", method="full", policy="nf4 base")
    with pytest.raises(ValueError, match=r"fttop2\) trains a copy of blocks.10"):
        plan("gpt2", method="fttop2", policy="nf4 base", tokens=2)


@every_format
def test_training_over_codes_learns(format):
    model, losses = over(format, d_model=16), []
    optimizer = ml.AdamW(model.trainable_parameters(), lr=0.02)
    before = {name: bytes_of(Q) for name, Q in coded(model).items()}
    for _ in range(12):
        loss = ops.cross_entropy(model(IDS), ids(1, tokens=6))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] and math.isfinite(losses[-1])
    assert {name: bytes_of(Q) for name, Q in coded(model).items()} == before
