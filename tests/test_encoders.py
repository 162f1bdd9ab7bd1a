"""BERT, RoBERTa, DeBERTa: they follow their formulas, with any padding, on every backend."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DEBERTAS, bits, made, normal, seeds, seen

import minilora as ml
from minilora import ops
from minilora.kernels import attention
from minilora.models import deberta
from minilora.models.families import FAMILIES as MODELS
from minilora.models.families import SHAPES, build
from minilora.ops import neural

ENCODERS = ("bert", "roberta", "deberta")
encoder = pytest.mark.parametrize("family", ENCODERS)
encoders = st.sampled_from(ENCODERS)
HEADS = ({}, {"num_labels": 3})
KINDS = [
    ("bert", {"d_ff": 5}), ("roberta", {"n_heads": 4, "padding_id": 3}),
    *(("deberta", sizes) for sizes in DEBERTAS),
    ("deberta", {"z_steps": 2}), ("deberta", {"z_steps": 3, "conv_kernel_size": 0}),
]


def outputs(model, at, mask=None, types=None) -> np.ndarray:
    with ml.no_grad():
        return np.array(ml.asnumpy(model(at, mask=mask, types=types).data))


def reference(model, row: np.ndarray, types: np.ndarray) -> np.ndarray:
    """The logits of one sequence without padding, a head and a pair of tokens at a time."""
    w, c, n = model.state_dict(), model.config, len(row)
    kinds, span = getattr(c, "pos_att_type", ()), 0

    def norm(x, at):
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.eps)
        return y * w[f"{at}.g"] + w[f"{at}.b"]

    def linear(x, at):
        return x @ w[f"{at}.W"].T + w[f"{at}.b"]

    def gelu(x):
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    def row_of(away):  # of the table of distances
        far = abs(away)
        if (middle := c.position_buckets // 2) and far > middle:
            most = c.max_relative_positions or c.n_positions
            share = math.log(far / middle) / math.log((most - 1) / middle)
            far = middle + math.ceil(share * (middle - 1))
        return min(max(span + (far if away > 0 else -far), 0), 2 * span - 1)

    if kinds:
        table = norm(w["rel.W"], "ln_r") if c.norm_rel_ebd else w["rel.W"]
        span = c.position_buckets or c.max_relative_positions or c.n_positions
        assert len(table) == 2 * span

    def attention(x, context, at):
        q, k, v = (
            linear(y, f"{at}.{name}") for y, name in ((x, "q"), (context, "k"), (context, "v"))
        )
        if kinds:
            own = "" if c.share_att_key else "pos_"
            pos_k = linear(table, f"{at}.{own}k") if "c2p" in kinds else None
            pos_q = linear(table, f"{at}.{own}q") if "p2c" in kinds else None
        heads = []
        for part in np.split(np.arange(c.d_model), c.n_heads):
            s = q[:, part] @ k[:, part].T
            for i, j in np.ndindex(s.shape):
                if "c2p" in kinds:
                    s[i, j] += q[i, part] @ pos_k[row_of(i - j), part]
                if "p2c" in kinds:
                    s[i, j] += k[j, part] @ pos_q[row_of(i - j), part]
            p = np.exp(s / np.sqrt(len(part) * (1 + len(kinds))))
            heads.append(p / p.sum(-1, keepdims=True) @ v[:, part])
        return linear(np.concatenate(heads, -1), f"{at}.o")

    def block(i, x, context):
        x = norm(x + attention(x, context, f"blocks.{i}.attn"), f"blocks.{i}.ln1")
        up = gelu(linear(x, f"blocks.{i}.mlp.up"))
        return norm(x + linear(up, f"blocks.{i}.mlp.down"), f"blocks.{i}.ln2")

    def conv(x, y):
        size, out = c.conv_kernel_size, []
        for i in range(n):
            near = range(i - size // 2, i + size // 2 + 1)
            around = [x[j] if 0 <= j < n else np.zeros(c.d_model) for j in near]
            out.append(linear(np.concatenate(around), "conv.mix"))
        f = np.tanh if c.conv_act == "tanh" else gelu
        return norm(y + f(np.array(out)), "conv.ln")

    x = w["tok.W"][row]
    if type(c) is not ml.DebertaConfig or c.position_biased_input:
        start = c.padding_id + 1 if type(c) is ml.RobertaConfig else 0
        x = x + w["pos.W"][start : start + n]
    if c.n_types:
        x = x + w["types.W"][types]
    x = start = norm(x, "ln_e")
    for i in range(c.n_layers):
        before, x = x, block(i, x, x)
        if i == 0 and getattr(c, "conv_kernel_size", 0):
            x = conv(start, x)
    for _ in range(1, getattr(c, "z_steps", 0)):
        x = block(c.n_layers - 1, x, before)
    if c.num_labels:
        f = gelu if type(c) is ml.DebertaConfig else np.tanh
        return linear(f(linear(x[0], "head.dense")), "head.out")
    return norm(gelu(linear(x, "head.dense")), "head.ln") @ w["tok.W"].T + w["head.b"]


@pytest.mark.parametrize(("family", "sizes"), KINDS)
@settings(max_examples=4)
@given(seeds, st.sampled_from(HEADS), st.integers(1, 2), st.booleans())
def test_an_encoder_follows_its_formulas(family, sizes, seed, head, layers, typed):
    """For each row alone, without its padding."""
    model = made(family, seed, **{"n_layers": layers, "eps": 0.01} | sizes | head)
    at, mask = seen(model, seed)
    types = np.random.default_rng(seed).integers(0, model.config.n_types or 1, at.shape)
    given = {"types": types} if typed and model.config.n_types else {}
    out = outputs(model, at, mask, **given)
    for row, real, kinds, got in zip(at, mask, types, out):
        wanted = reference(model, row[real], kinds[real] if given else 0 * row[real])
        got = got if model.config.num_labels else got[real]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-11)


@encoder
@pytest.mark.parametrize("labels", [0, 1, 3])
def test_an_encoder_has_a_score_for_each_word_or_for_each_class(family, labels):
    model = made(family, num_labels=labels)
    at, mask = seen(model)
    assert outputs(model, at, mask).shape == ((3, labels) if labels else (3, 12, 11))


def shaken(model, seed: int):
    """A random direction, one array for each parameter."""
    return {n: normal(seed + i, *p.shape) for i, (n, p) in enumerate(model.named_parameters())}


def loss_of(model, at, mask=None, targets=None):
    out = model(at, mask=mask)
    if len(out.shape) == 2:
        return ops.cross_entropy(out, np.arange(len(at)) % 3)
    targets = at if targets is None else targets
    return ops.cross_entropy(out, targets if mask is None else np.where(mask, targets, -100))


@pytest.mark.parametrize(("family", "sizes"), KINDS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.usefixtures("numpy_first")
def test_the_gradient_along_any_direction_is_the_difference_of_two_losses(family, sizes, head):
    """All parameters at once: one that a rule forgets, or counts once instead of twice, is seen."""
    model = made(family, 1, **{"eps": 0.01} | sizes | head)
    at, mask = seen(model, 1)
    way, h, sides, slopes = shaken(model, 2), 1e-5, [], []
    for model.recompute in (False, True):
        loss_of(model, at, mask).backward()
        grads = {n: ml.asnumpy(p.grad) for n, p in model.named_parameters()}
        slopes.append(sum((grads[n] * way[n]).sum() for n in way))
        model.requires_grad_()
    start = model.state_dict()
    for side in (h, -h):
        model.load_state_dict({n: x + side * way[n] for n, x in start.items()})
        sides.append(loss_of(model, at, mask).item())
    assert slopes == pytest.approx(2 * [(sides[0] - sides[1]) / (2 * h)], rel=1e-5)


# Padding.


@pytest.mark.parametrize("head", HEADS)
@encoder
@settings(max_examples=5)
@given(seeds, st.integers(1, 6), st.booleans())
def test_a_row_does_not_know_what_is_padded_beside_it(family, head, seed, more, plain):
    """Neither what stands there, to the bit, nor how much of it, nor which rows are beside."""
    model = made(family, seed, n_positions=20, **head)
    at, mask = seen(model, seed)
    other = np.where(mask, at, np.random.default_rng(seed).integers(0, 11, at.shape))
    longer = np.pad(at, ((0, 0), (0, more)), constant_values=4)
    whole, real = np.pad(mask, ((0, 0), (0, more))), slice(None) if head else mask
    with ml.plain(plain):
        out, grads = [], []
        for ids in (at, other):
            loss_of(model, ids, mask, at).backward()
            grads.append({n: 1.0 * ml.asnumpy(p.grad) for n, p in model.named_parameters()})
            model.requires_grad_()
            out.append(outputs(model, ids, mask))
        wide = outputs(model, longer, whole)
        alone = [outputs(model, longer[i : i + 1], whole[i : i + 1])[0] for i in range(len(at))]
    assert np.array_equal(out[0][real], out[1][real])
    for name, grad in grads[0].items():  # equal ids add up in another order
        np.testing.assert_allclose(grads[1][name], grad, rtol=0, atol=1e-13, err_msg=name)
    for got in (wide, np.array(alone)):
        got = got if head else got[:, : at.shape[1]]
        np.testing.assert_allclose(got[real], out[0][real], rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["bool", "int64", "float32", "list"])
@encoder
def test_a_mask_may_have_any_dtype_and_one_without_padding_changes_nothing(family, kind):
    model = made(family)
    at, mask = seen(model)
    given = mask.tolist() if kind == "list" else mask.astype(kind)
    assert np.array_equal(outputs(model, at, given), outputs(model, at, mask))
    at, _ = seen(model, padded=False)
    np.testing.assert_allclose(outputs(model, at, np.ones_like(at)), outputs(model, at), atol=1e-12)


@encoder
def test_without_a_mask_there_is_no_array_and_no_op_for_it(family, numpy_only, monkeypatch):
    model = made(family)
    at, mask = seen(model, padded=False)[0], np.ones((3, 12), bool)
    with ml.using("shapes", plain=True) as library:

        def calls(*given):
            library.counts.reset()
            model = made(family)
            library.counts.reset()
            model(at, *given)
            return library.counts.cost.calls

        assert calls() == calls(None) < calls(mask)
    for place in (neural, attention, deberta):
        monkeypatch.setattr(place, "padding", None)
    monkeypatch.setattr(deberta, "asarray", None)
    for plain in (False, True):
        with ml.plain(plain):
            outputs(model, at)
            with pytest.raises(TypeError):
                outputs(model, at, mask)


# Dropout.


@pytest.mark.parametrize("labels", [0, 3])
@encoder
def test_dropout_is_where_it_should_be(numpy_only, family, labels):
    """One for the embeddings, two a block, one at the convolution, the head's: RoBERTa's two."""
    model, calls, out_of = made(family, dropout=0.5, num_labels=labels), [], {}
    at, mask = seen(model)
    quiet = outputs(model.eval(), at, mask)

    def watched(module, path):
        forward = module.forward

        def run(x, *also):
            if isinstance(module, ml.nn.Dropout):
                assert module.rate == 0.5
                calls.append((path, out_of.get(id(x), ("", None))[0]))
                return x * 1.0
            y = forward(x, *also)
            out_of[id(y)] = path, y  # kept, so that no other gets its id
            return y

        module.forward = run

    for path, module in model.named_modules():
        if isinstance(module, ml.nn.Dropout | ml.nn.Linear | ml.nn.LayerNorm):
            watched(module, path)
    assert np.array_equal(outputs(model, at, mask), quiet)
    blocks = [
        [(f"blocks.{i}.drop", f"blocks.{i}.{half}") for half in ("attn.o", "mlp.down")]
        for i in range(2)
    ]
    conv = [("conv.drop", "conv.mix")] if family == "deberta" else []
    head = [("head.drop", "")] * (labels and 1 + (family == "roberta"))
    assert calls == [("drop", "ln_e"), *blocks[0], *conv, *blocks[1], *head]


# What is given, and what is not.

IDS = np.array([[2, 3, 4], [5, 6, 1]])
BAD = [
    ("ids", "To be", "ids must be integers (batch, tokens), one token at least, not <U5 ()"),
    ("ids", [1, 2], "ids must be integers (batch, tokens), one token at least, not int64 (2,)"),
    ("ids", [[1.0]], "one token at least, not float64 (1, 1): encode each text with the model's"),
    ("ids", [[], []], "one token at least, not float64 (2, 0)"),
    ("ids", np.ones((2, 0), int), "one token at least, not int64 (2, 0)"),
    ("ids", np.ones((2, 13), int), "ids are (2, 13), 13 tokens, and n_positions is 12: cut"),
    ("ids", [[1, 11]], "the id 11 is not from 0 to 10, vocab_size is 11: encode with"),
    ("ids", [[1, -1]], "the id -1 is not from 0 to 10"),
    ("mask", [1, 1, 0], "mask is (3,): it must be (2, 3), as ids are"),
    ("mask", [[1, 1], [1, 0]], "mask is (2, 2): it must be (2, 3)"),
    ("mask", [[1, 1, 1], [0, 0, 0]], "mask (2, 3) hides all tokens of row 1: leave that row out"),
    ("mask", [[0.0, 0.0, -np.inf]] * 2, "mask contains -inf: give 1 for a token and 0"),
    ("mask", [[1, 2, 1]] * 2, "mask contains 2: give 1 for"),
    ("mask", [["1", "1", "0"]] * 2, "mask contains 1: give 1 for"),
]
OF_TYPES = [
    ("bert", [0, 1, 0], "types is (3,): it must be (2, 3), as ids are"),
    (
        "bert",
        [[0, 1, 2]] * 2,
        "the type 2 is not from 0 to 1, n_types is 2: number them from 0, or",
    ),
    ("bert", [[0.0, 1.0, 0.0]] * 2, "types must be integers, as ids are, not float64"),
    ("roberta", [[0, 1, 0]] * 2, "the type 1 is not from 0 to 0, n_types is 1: number them"),
    ("deberta", [[0, 0, 0]] * 2, "types (2, 3) are given, but n_types is 0: leave them out"),
]


@encoder
@pytest.mark.parametrize(("name", "bad", "words"), BAD)
def test_wrong_inputs_raise_with_the_remedy(numpy_only, family, name, bad, words):
    with pytest.raises(ValueError, match=f"^{family}: .*{re.escape(words)}".replace("^", "(?i)^")):
        made(family)(**{"ids": IDS, name: bad})


@pytest.mark.parametrize(("family", "bad", "words"), OF_TYPES)
def test_wrong_types_raise_with_the_remedy(numpy_only, family, bad, words):
    with pytest.raises(ValueError, match=f"(?i)^{family}: {re.escape(words)}"):
        made(family)(IDS, types=bad)


def test_types_that_are_left_out_are_of_kind_0(numpy_only):
    model = made("bert")
    kind = [outputs(model, IDS, None, types) for types in (None, 0 * IDS, 0 * IDS + 1)]
    assert np.array_equal(kind[0], kind[1]) and not np.allclose(kind[0], kind[2])


def test_a_position_of_roberta_s_is_as_in_fairseq(numpy_only):
    """padding_id + 1 is the first; what is padding, by its id or by the mask, takes none."""
    model = made("roberta", padding_id=3)
    at, mask = np.array([[3, 5, 6, 3, 7], [4, 5, 6, 7, 8]]), np.array([[1] * 5, [1, 1, 0, 1, 0]])
    assert model.positions(at, None).tolist() == [[3, 4, 5, 3, 6], [4, 5, 6, 7, 8]]
    assert model.positions(at, mask.astype(bool)).tolist() == [[3, 4, 5, 3, 6], [4, 5, 3, 6, 3]]
    assert made("roberta", padding_id=3).pos.W.shape[0] == 12 + 4  # tokens, and the rows before


# The sizes that are published.

PUBLISHED = {  # of each config.json: vocabulary, positions, d, layers, heads, d_ff, eps, types
    "bert-base": (30522, 512, 768, 12, 12, 3072, 1e-12, 2),
    "roberta-base": (50265, 512, 768, 12, 12, 3072, 1e-5, 1),
    "roberta-large": (50265, 512, 1024, 24, 16, 4096, 1e-5, 1),
    "deberta-v2-xxlarge": (128100, 512, 1536, 48, 24, 6144, 1e-7, 0),
}


@pytest.mark.parametrize("shape", PUBLISHED)
def test_shapes_have_the_published_settings(numpy_only, shape):
    c = SHAPES[shape]
    shared = c.vocab_size, c.n_positions, c.d_model, c.n_layers, c.n_heads
    assert (*shared, c.d_ff or 4 * c.d_model, c.eps, c.n_types) == PUBLISHED[shape]
    if "deberta" in shape:
        assert (c.pos_att_type, c.share_att_key, c.position_buckets) == (("c2p", "p2c"), True, 256)
        assert (c.conv_kernel_size, c.conv_act, c.position_biased_input) == (3, "gelu", False)
        assert (c.max_relative_positions, c.norm_rel_ebd, c.z_steps) == (0, True, 0)
    if "roberta" in shape:
        assert c.padding_id == 1
        with ml.using("shapes"):
            assert build(c, rng=0).pos.W.shape == (514, c.d_model)


def test_514_positions_of_roberta_s_are_512():
    words = "max_position_embeddings is called n_positions here, without the padding_id + 1 rows"
    with pytest.raises(TypeError, match=re.escape(words) + ".*512 for 514"):
        ml.RobertaConfig(max_position_embeddings=514)
    with pytest.warns(UserWarning, match=r"n_positions is 514: it counts tokens.*RoBERTa's is 512"):
        ml.RobertaConfig(n_positions=514)
    ml.RobertaConfig(n_positions=515)
    ml.BertConfig(n_positions=514)


@encoder
def test_the_first_weights_are_small_and_each_one_s_own(numpy_only, family):
    """Of BERT's spread, 0.02; biases are 0 and gains 1."""
    kind, own = MODELS[family][0], {"share_att_key": False} if family == "deberta" else {}
    state = build(kind(100, 300, 40, 2, 4, **own), rng=0).state_dict()
    for name, x in state.items():
        if name.endswith("W"):
            assert abs(x.std() / 0.02 - 1) < 6 / np.sqrt(2 * x.size), name
        else:
            assert (x == name.endswith(".g")).all(), name
    assert len({x.tobytes() for n, x in state.items() if n.endswith("W")}) == sum(
        n.endswith("W") for n in state
    )


@encoder
def test_a_head_for_classes_is_trained_saved_and_loaded_with_the_adapter(tmp_path, family):
    def fresh():
        return made(family, num_labels=3)

    model, config = fresh(), ml.LoRAConfig(r=2, alpha=3, trainable="head")
    ml.lora.attach(model, config, rng=0)
    at, mask = seen(model)
    optimizer = ml.AdamW(model.trainable_parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, at, mask).backward()
        optimizer.step()
    ml.lora.save(model, tmp_path / "a.npz")
    ml.lora.load(other := fresh(), tmp_path / "a.npz")
    assert bits(other) == bits(model) and bits(model)["head.out.W"] != bits(fresh())["head.out.W"]
    assert np.array_equal(outputs(other, at, mask), outputs(model, at, mask))
    with ml.lora.disabled(other):
        assert np.array_equal(outputs(other, at, mask), outputs(fresh(), at, mask))
