"""The methods on encoders, of any family, by the same paths (minilora.methods)."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from strategies import bits, ids, same_bytes, shake, snapshot
from test_methods import PREFIXES, make, size_of

import minilora as ml
from minilora import lora, methods

pytest.importorskip("minilora.models.encoder")
FAMILIES = ("Roberta", "Bert", "Deberta")
IDS, MASK = ids(tokens=6, vocabulary=9) + 2, np.array([[1] * 6, [1] * 4 + [0] * 2])
every = pytest.mark.parametrize("called", list(methods.METHODS))
family = pytest.mark.parametrize("family", FAMILIES)


def encoder(
    family: str, seed: int = 0, labels: int = 0, dtype: str = "float64", vocabulary: int = 11,
    **sizes,
):
    """A tiny encoder with random numbers everywhere."""
    config = getattr(ml, f"{family}Config")(
        vocab_size=vocabulary, n_positions=12, d_model=8, n_heads=2, d_ff=12, num_labels=labels,
        **({"position_buckets": 4} if family == "Deberta" else {}) | {"n_layers": 3} | sizes,
    )
    model = getattr(ml, family)(config, rng=seed, dtype=dtype)
    shake(model.parameters(), seed, 0.2)
    return model


@pytest.fixture(autouse=True)
def once(backend, request):
    """One family is enough on array libraries other than NumPy."""
    family = request.node.callspec.params.get("family", "Roberta")
    if backend.name != "numpy" and family != "Roberta":
        pytest.skip("RoBERTa runs there")


def outputs(model, mask=MASK):
    with ml.no_grad():
        return np.array(ml.asnumpy(model(IDS, mask=mask).data))


def loss_of(model):
    out = model(IDS, mask=MASK)
    return ml.ops.cross_entropy(out, IDS if len(out.shape) == 3 else np.array([0, 1]))


@every
@family
@pytest.mark.usefixtures("numpy_first")
def test_an_encoder_is_adapted_trained_counted_and_given_back(called, family):
    model = encoder(family, labels=2 * (len(called) % 2))  # one head or the other
    before, first = snapshot(model), outputs(model)
    base = [(p, p.data.tobytes()) for p in model.parameters()]
    method = make(called, r=3)
    method.apply(model, rng=0)
    assert same_bytes(outputs(model), first) == (called not in PREFIXES)
    trained = model.trainable_parameters()
    assert method.count(model.config) == size_of(trained.values())
    start = bits(model)
    optimizer, losses = ml.AdamW(trained, lr=0.02, weight_decay=0.1), []
    for _ in range(6):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    optimizer.zero_grad()
    assert losses[-1] < losses[0]
    now = bits(model)
    assert {n for n in now if now[n] != start[n]} <= set(trained)
    with methods.disabled(model):
        assert same_bytes(outputs(model), first)
    if isinstance(method, methods.LoRA):
        wanted = outputs(model)
        with lora.merged(model):
            np.testing.assert_allclose(outputs(model), wanted, rtol=1e-11, atol=1e-12)
    methods.remove(model)
    assert snapshot(model) == before and all(p.data.tobytes() == b for p, b in base)


@family
@settings(max_examples=12, phases=[Phase.generate])  # shrinking takes minutes
@given(st.data())
def test_what_is_trained_is_counted_by_the_formula(numpy_only, family, data):
    some, flag = data.draw, st.booleans()
    sizes = {
        "vocab_size": some(st.integers(3, 9)), "n_positions": some(st.integers(3, 9)),
        "d_model": 2 * some(st.integers(1, 4)), "n_heads": some(st.integers(1, 2)),
        "n_layers": some(st.integers(1, 3)), "d_ff": some(st.sampled_from([0, 3])),
        "num_labels": some(st.sampled_from([0, 3])), "n_types": some(st.integers(0, 2)),
    }
    if family == "Roberta":
        sizes["padding_id"] = some(st.integers(0, 2))
    if family == "Deberta":
        sizes |= {name: some(flag) for name in
                  ("share_att_key", "norm_rel_ebd", "position_biased_input")}
        sizes["pos_att_type"] = some(st.sampled_from([(), ("c2p",), ("c2p", "p2c")]))
        sizes["conv_kernel_size"] = some(st.sampled_from([0, 3]))
        buckets, most = some(st.sampled_from([(0, 0), (0, 12), (4, 12)]))
        sizes |= {"position_buckets": buckets, "max_relative_positions": most}
    model = getattr(ml, family)(getattr(ml, f"{family}Config")(**sizes), rng=0)
    for called in methods.METHODS:
        targets = some(st.sampled_from([("q", "v", "q"), ("k", "up", "down", "up")]))
        method = make(called, r=1, targets=targets)
        method.apply(model, rng=0)
        assert method.count(model.config) == size_of(model.trainable_parameters().values())
        methods.remove(model)


@every
@family
def test_padding_has_no_effect_and_blocks_recompute(called, family):
    model = encoder(family, labels=2)
    make(called, r=3).apply(model, rng=0)
    shake(model.trainable_parameters().values(), 1, 0.2)
    batch = outputs(model)
    model.eval()
    alone = np.array(ml.asnumpy(model(IDS[1:, :4], mask=MASK[1:, :4]).data))
    np.testing.assert_allclose(batch[1:], alone, rtol=1e-9, atol=1e-11)
    model.train()
    grads = []
    for again in (False, True):
        model.recompute = again
        loss_of(model).backward()
        grads.append([ml.asnumpy(p.grad).copy() for p in model.trainable_parameters().values()])
        for p in model.parameters():
            p.grad = None
    for one, two in zip(*grads):  # the shared table sums its gradients in another order
        np.testing.assert_allclose(two, one, rtol=1e-9, atol=1e-13)


@every
@family
def test_a_file_of_an_encoder_s_method(numpy_only, tmp_path, called, family):
    model = encoder(family)
    make(called).apply(model, rng=0)
    shake(model.trainable_parameters().values(), 1, 0.2)
    path, other = methods.save(model, tmp_path / "m.npz"), encoder(family)
    methods.load(other, path)
    np.testing.assert_allclose(outputs(other), outputs(model), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("labels", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
@family
def test_trained_tokens_equal_new_rows_of_the_table(family, labels, masked):
    """As in a model with a larger table, with ids of its new rows at these places."""
    model, large = encoder(family, 0, labels), encoder(family, 0, labels, vocabulary=14)
    for p, q in zip(model.parameters(), large.parameters()):
        q.data[: len(p.data)] = p.data
    make("preembed", lp=2, li=1).apply(model, rng=0)
    large.tok.W.data[11:] = next(iter(model.trainable_parameters().values())).data * 9
    for p in model.trainable_parameters().values():
        p.data *= 9
    mask = MASK if masked else None
    types = None if large.types is None else IDS % large.config.n_types
    ends = [6, 4] if masked else [6, 6]
    rows, wider, kinds, places = np.full((2, 9), 13), np.ones((2, 9)), np.zeros((2, 9), int), []
    for i, end in enumerate(ends):
        places.append([*range(2, 2 + end), *range(3 + end, 9)])
        rows[i, :2], rows[i, places[i]], wider[i, places[i]] = (11, 12), IDS[i], MASK[i]
        kinds[i, places[i]] = 0 if types is None else types[i]
    with ml.no_grad():
        got = ml.asnumpy(model(IDS, mask, types))
        hidden = large.encode(rows, wider if masked else None, None if types is None else kinds)
        at = [ml.asnumpy(hidden)[i : i + 1, where] for i, where in enumerate(places)]
        heads = [large.head(ml.Tensor(ml.xp.array(x)), large.tok) for x in at]
        wanted = np.concatenate([ml.asnumpy(x) for x in heads])
    np.testing.assert_allclose(got, wanted[..., : got.shape[-1]], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sizes", [{}, {"z_steps": 2, "conv_kernel_size": 0, "n_layers": 2}])
def test_a_block_sees_only_its_own_trained_tokens(sizes):
    """Not the table's rows at their places, nor the outputs of the block before."""
    model = encoder("Deberta", labels=2, **sizes)
    make("prelayer", lp=2, li=1).apply(model, rng=0)
    before = outputs(model)
    model.tok.W.data[0] += 1.0  # no token is 0
    assert same_bytes(outputs(model), before)
    if sizes:
        E = methods.trained_by(model, "default")
        model.blocks[0].attn.o.W.data[...] = 0.0  # so the others see nothing of the first
        before = outputs(model)
        shake([E["drop.E"]], 1)  # a norm would not see a constant
        assert same_bytes(outputs(model), before)
        shake([E["blocks.1.E"]], 1)
        assert not same_bytes(outputs(model), before)


@pytest.mark.parametrize("wrong", ["a row", "a shape", "a mask", "ids"])
def test_wrong_inputs_raise_the_same_errors_with_trained_tokens(numpy_only, wrong):
    given = {"a row": (IDS, [[1] * 6, [0] * 6]), "a shape": (IDS, [1] * 6),
             "a mask": (IDS, MASK - 1.0), "ids": (IDS[0], None)}[wrong]
    model, says = encoder("Roberta"), []
    for tokens in (0, 2):
        if tokens:
            make("preembed", lp=tokens).apply(model, rng=0)
        with pytest.raises(ValueError) as caught:
            model(given[0], given[1])
        says.append(str(caught.value))
    assert says[0] == says[1]


def test_trained_tokens_are_not_padding_where_its_id_is_0():
    model, other = encoder("Roberta", padding_id=0), encoder("Roberta", padding_id=1)
    for p, q in zip(model.parameters(), other.parameters()):
        q.data[len(q.data) - len(p.data) :] = p.data  # one position more, before the others
    for one in (model, other):
        make("preembed", lp=2).apply(one, rng=0)
    assert same_bytes(outputs(model), outputs(other))


def test_two_prompts_cannot_be_active_together():
    model = encoder("Bert")
    for name in ("one", "two"):
        make("preembed").apply(model, name, rng=0)
    says = "one and two cannot be active together: each puts trained tokens"
    with pytest.raises(ValueError, match=says):
        methods.activate(model, "one", "two")
