"""Models: GPT-2's function and its properties, and models in files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    adapted,
    assert_near,
    dtypes,
    families,
    family,
    gpt2,
    ids,
    lora_of,
    made,
    normal,
    roundings,
    seeds,
    shake,
)

import minilora as ml
from minilora import lora, ops
from minilora.data import BPE, load_text, sequential, split
from minilora.files import checkpoint
from minilora.models.pretrained import base_path
from minilora.models.transformer import MLP, Attention, Block
from minilora.nn import generators

SMALL = {"vocab_size": 5, "n_positions": 4, "d_model": 4, "n_layers": 1, "n_heads": 2}


def logits(model, at) -> np.ndarray:
    with ml.no_grad():
        return ml.asnumpy(model(at).data)


def through(model, path: str, at: np.ndarray):
    """The logits as a function of one parameter."""
    *way, last = path.split(".")

    def f(t):
        owner = model
        for step in way:
            owner = owner[int(step)] if step.isdigit() else getattr(owner, step)
        setattr(owner, last, t)
        return model(at)

    return f


def reference(model, at: np.ndarray) -> np.ndarray:
    """GPT-2 written out with plain NumPy, one row and one head at a time."""
    w, c = model.state_dict(), model.config

    def norm(x, path):
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return y * w[f"{path}.g"] + w[f"{path}.b"]

    def linear(x, path):
        return x @ w[f"{path}.W"].T + w[f"{path}.b"]

    rows = []
    for row in at:
        x = w["tok.W"][row] + w["pos.W"][: len(row)]
        for i in range(c.n_layers):
            at_block = f"blocks.{i}"
            y = norm(x, f"{at_block}.ln1")
            q, k, v = (linear(y, f"{at_block}.attn.{name}") for name in "qkv")
            heads = []
            for part in np.split(np.arange(c.d_model), c.n_heads):
                s = q[:, part] @ k[:, part].T / np.sqrt(len(part))
                s[np.triu_indices(len(row), 1)] = -np.inf
                p = np.exp(s - s.max(-1, keepdims=True))
                heads.append(p / p.sum(-1, keepdims=True) @ v[:, part])
            x = x + linear(np.concatenate(heads, -1), f"{at_block}.attn.o")
            u = linear(norm(x, f"{at_block}.ln2"), f"{at_block}.mlp.up")
            u = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
            x = x + linear(u, f"{at_block}.mlp.down")
        rows.append(norm(x, "ln_f") @ w["tok.W"].T)
    return np.stack(rows)


@given(st.integers(0, 3), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.sampled_from([0, 5]))
def test_gpt2_is_what_its_formulas_say(seed, layers, heads, d_ff):
    model = gpt2(seed, n_layers=layers, n_heads=heads, d_ff=d_ff)
    at = ids(seed, 2, 12)
    np.testing.assert_allclose(logits(model, at), reference(model, at), rtol=0, atol=1e-12)


@given(families, st.integers(1, 3), st.integers(1, 12), dtypes, st.sampled_from([0, 3]))
def test_logits_have_one_score_a_word_and_the_dtype_of_the_model(
    family, batch, tokens, dtype, d_ff
):
    model = made(family, 0, dtype, d_ff=d_ff)
    out = model(ids(0, batch, tokens))
    assert out.shape == (batch, tokens, 11) and str(out.dtype) == dtype
    assert {str(p.dtype) for p in model.parameters()} == {dtype}
    assert model.blocks[0].mlp.up.W.shape == (d_ff or 32, 8)


@given(seeds, st.integers(0, 10), dtypes, st.booleans(), st.sampled_from([1, 3, 6, 10]))
def test_later_ids_never_change_earlier_logits(seed, cut, dtype, with_lora, times):
    """Neither where scores are so large, some of them, that softmax goes another way."""
    model = adapted(seed, dtype, targets=("q", "k", "up"))[0] if with_lora else gpt2(seed, dtype)
    model.blocks[0].ln1.g.data *= times
    one, two = ids(seed, 2, 12), ids(seed + 1, 2, 12)
    two[:, : cut + 1] = one[:, : cut + 1]
    assert np.array_equal(logits(model, one)[:, : cut + 1], logits(model, two)[:, : cut + 1])


@given(seeds, st.integers(1, 11))
def test_each_position_sees_all_before_it_and_itself(seed, last):
    model, one = gpt2(seed), ids(seed, 1, 12)
    for at in (0, last - 1, last):
        two = one.copy()
        two[0, at] = (two[0, at] + 1) % 11
        assert not np.allclose(logits(model, one)[0, last], logits(model, two)[0, last], atol=1e-9)


def block(seed: int, causal: bool) -> Block:
    made = Block(8, 2, 12, causal=causal, rng=np.random.default_rng(seed), dtype="float64")
    shake(made.parameters(), seed, 0.3)
    return made


def through_block(made, x: np.ndarray, mask, at) -> tuple[np.ndarray, np.ndarray]:
    """The block's output for the tokens where `at` is true, and its gradient for x."""
    t = ml.Tensor(x, requires_grad=True)
    y = made(t, mask=mask)
    (y * ml.backend.asarray(normal(3, *x.shape) * at[..., None])).sum().backward()
    return ml.asnumpy(y.data)[at], ml.asnumpy(t.grad)


@pytest.mark.parametrize("kernels", [True, False])
@given(seeds, st.booleans(), st.integers(2, 9), st.integers(2, 9))
def test_what_is_padded_changes_no_real_token(kernels, seed, causal, first, second):
    """Two sequences, one of them padded on the right; the padding is anything at all."""
    made, lengths = block(seed, causal), (first, second)
    n = max(lengths)
    mask = np.arange(n) < np.array(lengths)[:, None]
    x = normal(seed, 2, n, 8)
    other = np.where(mask[..., None], x, 100 * normal(seed + 1, 2, n, 8))
    with ml.plain(not kernels):
        y, dx = through_block(made, x, mask, mask)
        assert np.array_equal(y, through_block(made, other, mask, mask)[0])
        assert not dx[~mask].any()
        start = 0
        for row, length in enumerate(lengths):  # alone, it needs no padding and no mask
            part, alone = x[row : row + 1, :length], np.ones((1, length), bool)
            for given in (None, alone):
                one, _ = through_block(made, part, given, alone)
                np.testing.assert_allclose(y[start : start + length], one, rtol=0, atol=1e-12)
            start += length


@given(seeds, st.integers(0, 5), st.booleans())
def test_a_token_of_an_encoder_sees_all_and_one_of_a_decoder_what_came_before(seed, at, causal):
    made, x = block(seed, causal), normal(seed, 1, 6, 8)
    other = x.copy()
    other[0, at, 0] += 1
    whole = np.ones((1, 6), bool)
    y, z = (through_block(made, t, None, whole)[0] for t in (x, other))
    moved = np.abs(y - z).max(axis=-1) > 1e-9
    assert moved.tolist() == [i >= at or not causal for i in range(6)]


def test_a_block_is_a_decoder_by_default(rng):
    assert Attention(8, 2, rng=rng, dtype="float32").causal
    assert Block(8, 2, 12, rng=rng, dtype="float32").attn.causal


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_an_mlp_uses_the_chosen_gelu(approximate):
    made = MLP(4, 6, approximate=approximate, std=1.0, rng=np.random.default_rng(0), dtype="f8")
    x = ml.Tensor(normal(0, 3, 4))
    wanted = made.down(ops.gelu(made.up(x), approximate=approximate))
    assert np.array_equal(ml.asnumpy(made(x)), ml.asnumpy(wanted))


def step(model, at, seed: int) -> dict[str, np.ndarray]:
    """Logits, loss and gradients; dropout is drawn anew from the same seed."""
    for i, g in enumerate(generators(model).values()):
        g.bit_generator.state = np.random.default_rng(seed + i).bit_generator.state
    model.requires_grad_()
    out = model(at)
    loss = ops.cross_entropy(out, np.roll(at, -1, axis=1))
    loss.backward()
    grads = {name: np.array(ml.asnumpy(p.grad)) for name, p in model.named_parameters()}
    return {"logits": ml.asnumpy(out.data), "loss": ml.asnumpy(loss.data), **grads}


@pytest.mark.parametrize("tokens", [7, 70])  # one block of attention's queries, and two
@settings(max_examples=10)
@given(families, seeds, dtypes, st.booleans())
def test_plain_ops_and_kernels_are_one_model(tokens, family, seed, dtype, recompute):
    """Both round in another order. A number goes through sums of at most `longest` terms, one
    after the other `depth` times, and as often on the way back; k's bias has a gradient of 0, of
    which all is rounding of what W's is made of."""
    sizes = {"n_positions": tokens, "dropout": 0.1}
    model, _ = lora_of(
        family, seed, dtype, targets=("tok", "q", "v", "up"), dropout=0.2, sizes=sizes
    )
    model.recompute = recompute
    at = ids(seed, 2, tokens)
    fast = step(model, at, seed)
    with ml.plain():
        slow = step(model, at, seed)
    depth, longest = 2 * 8 + 2, max(32, 2 * tokens)
    for name, x in fast.items():
        beside = name.replace("attn.k.b", "attn.k.W")
        size = max(np.abs(slow[n]).max() for n in (name, beside))
        assert_near(x, slow[name], roundings(2 * depth * np.sqrt(longest), size, dtype))


@given(seeds, st.integers(1, 9), st.booleans(), st.sampled_from([0.0, 0.7]))
def test_plain_ops_write_what_kernels_write(seed, n, cache, temperature):
    model, _ = adapted(seed, targets=("q", "v", "up"))
    how = {"temperature": temperature, "rng": seed, "cache": cache}
    written = ml.generate(model, ids(seed), n, **how)
    with ml.plain():
        assert np.array_equal(written, ml.generate(model, ids(seed), n, **how))


@given(seeds)
def test_rows_of_a_batch_do_not_meet(seed):
    model, at = gpt2(seed), ids(seed, 3, 6)
    apart = np.concatenate([logits(model, at[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(logits(model, at), apart, rtol=0, atol=1e-12)


@given(seeds, dtypes)
def test_one_seed_is_one_model_bit_for_bit(seed, dtype):
    config = ml.GPT2Config(11, 12, 8, 2, 2, dropout=0.3)
    one, two, other = (ml.GPT2(config, rng=s, dtype=dtype) for s in (seed, seed, seed + 1))
    a, b, c = (model.state_dict() for model in (one, two, other))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["tok.W"], c["tok.W"])
    assert not np.array_equal(a["blocks.0.attn.q.W"], a["blocks.1.attn.q.W"])
    assert np.array_equal(logits(one, ids()), logits(two, ids())), "dropout of the same seed"


def test_the_float32_model_is_the_float64_model_rounded():
    config = ml.GPT2Config(11, 12, 8, 1, 2)
    wide = ml.GPT2(config, rng=3, dtype="float64").state_dict()
    for name, array in ml.GPT2(config, rng=3, dtype="float32").state_dict().items():
        assert np.array_equal(array, wide[name].astype("float32"))


def test_the_first_weights_follow_gpt2():
    state = ml.GPT2(ml.GPT2Config(300, 64, 64, 8, 2), rng=0).state_dict()
    for name, std in (
        ("tok.W", 0.02), ("blocks.3.attn.q.W", 0.02), ("blocks.3.mlp.up.W", 0.02),
        ("blocks.3.attn.o.W", 0.02 / 4), ("blocks.3.mlp.down.W", 0.02 / 4),  # 1 / √(2 · layers)
    ):
        assert abs(state[name].std() / std - 1) < 6 / np.sqrt(2 * state[name].size), name
    assert all(not a.any() for n, a in state.items() if n.endswith(".b"))


@given(seeds)
def test_positions_matter(seed):
    model = gpt2(seed)
    same = np.full((1, 6), 3)
    out = logits(model, same)[0]
    assert all(not np.allclose(out[i], out[i + 1], atol=1e-9) for i in range(5))


def test_dropout_of_the_model_is_off_in_evaluation_and_drawn_from_its_seed_in_training():
    model, twin = gpt2(1, dropout=0.4), gpt2(1, dropout=0.4)
    plain = gpt2(1)
    assert np.array_equal(logits(model.eval(), ids()), logits(plain, ids()))
    drawn = [logits(model.train(), ids()) for _ in range(2)]
    assert not np.array_equal(*drawn)
    assert all(np.array_equal(logits(twin, ids()), d) for d in drawn)


@pytest.mark.parametrize("part", ["drop", "blocks.0.drop", "blocks.1.drop"])
def test_each_dropout_counts_once_in_the_embeddings_and_twice_in_a_block(part):
    model, calls = gpt2(1, dropout=0.4).eval(), []
    quiet = logits(model, ids())
    place = dict(model.named_modules())[part].train()
    assert not np.array_equal(quiet, logits(model, ids()))
    place.forward = lambda x: (calls.append(x.shape), x)[1]
    assert np.array_equal(quiet, logits(model, ids()))
    assert calls == [(2, 7, 8)] * (1 if part == "drop" else 2)


@pytest.mark.parametrize(
    "at",
    [np.zeros((1, 13), int), np.zeros((2, 0), int), np.zeros(3, int), np.zeros((1, 1, 1), int)],
)
def test_ids_that_are_too_long_empty_or_no_batch_raise(at):
    with pytest.raises(ValueError, match="GPT2: ids must be"):
        gpt2()(at)


@pytest.mark.parametrize("at", ["To be", [["to", "be"]], [[1.0, 2.0]], [[True]], None, [[None]]])
def test_what_are_no_ids_says_how_to_make_some(at):
    words = r"^GPT2: ids must be integers \(batch, tokens\), 1 to 12 tokens, not .* \("
    with pytest.raises(
        ValueError, match=words + r".*: encode a text as model\.tokenizer\.encode\(text"
    ):
        gpt2()(at)


@pytest.mark.parametrize("bad", [-1, 11])
def test_an_id_outside_the_vocabulary_raises(bad):
    with pytest.raises((ValueError, IndexError), match=r"embedding.*0 to 10"):
        gpt2()(np.array([[1, bad]]))


def test_a_cache_of_another_model_raises():
    with pytest.raises(ValueError, match="shorter"):
        gpt2(n_layers=3)(ids(), gpt2(n_layers=2).new_cache(2))


def test_a_cache_that_is_full_raises():
    model = gpt2()
    cache = model.new_cache(1)
    with ml.no_grad():
        model(ids(0, 1, 12), cache)
        with pytest.raises(ValueError, match="after 12"):
            model(ids(0, 1, 1), cache)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.usefixtures("numpy_first")
def test_every_gradient_of_a_whole_model_equals_finite_differences(seed, backend):
    if seed and backend.name != "numpy":
        pytest.skip("once will do")
    model = gpt2(seed, **SMALL)
    at = ids(seed, 2, 3, 5)
    for path, p in list(model.named_parameters()):
        ml.gradcheck(through(model, path, at), ml.asnumpy(p.data))
        through(model, path, at)(p)


@given(seeds)
def test_the_tied_table_collects_the_gradient_of_both_its_uses(seed):
    model = gpt2(seed, **SMALL)
    at, weights = ids(seed, 2, 3, 5), ml.backend.asarray(normal(seed, 2, 3, 5))
    (model(at) * weights).sum().backward()
    both = ml.asnumpy(model.tok.W.grad)
    head = ml.nn.Embedding(5, 4, dtype="float64")
    head.load_state_dict(model.tok.state_dict())
    untied = gpt2(seed, **SMALL)
    untied.tok.project = head.project
    (untied(at) * weights).sum().backward()
    parts = ml.asnumpy(untied.tok.W.grad), ml.asnumpy(head.W.grad)
    assert all(np.abs(part).max() > 0 for part in parts)
    np.testing.assert_allclose(both, sum(parts), rtol=0, atol=1e-12 * np.abs(both).max())


@given(seeds, st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_tokens_that_come_in_pieces_through_a_cache_give_the_same_logits(seed, pieces):
    at = ids(seed, 2, min(12, sum(pieces)))
    model = gpt2(seed)
    whole, cache, start, parts = logits(model, at), model.new_cache(2), 0, []
    with ml.no_grad():
        for n in pieces:
            piece = at[:, start : start + n]
            if piece.shape[1]:
                parts.append(ml.asnumpy(model(piece, cache).data))
            start += n
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=0, atol=1e-12)
    assert all(each.n == at.shape[1] for each in cache)


def test_a_new_cache_has_room_for_the_window_whatever_is_adapted():
    model, _ = adapted(targets=("pos", "tok", "q"))
    assert [each.kv.shape for each in model.new_cache(3)] == [(2, 3, 12, 8)] * 2
    with ml.no_grad():
        assert model(ids(0, 2, 12), model.new_cache(2)).shape == (2, 12, 11)


@settings(max_examples=8)
@given(families, seeds, dtypes, st.sampled_from([0.0, 0.3]))
def test_a_saved_model_comes_back_bit_for_bit(tmp_path_factory, family, seed, dtype, dropout):
    path = tmp_path_factory.mktemp("models") / "model.npz"
    model = made(family, seed, dtype, dropout=dropout, d_ff=5, vocab_size=260)
    model.tokenizer = BPE.train("the cat and the hat, the bat and the rat", 260)
    assert ml.save_model(model, path) == path
    back = ml.load_model(path, dtype=dtype)
    assert back.config == model.config and back.tokenizer.merges == model.tokenizer.merges
    a, b = model.state_dict(), back.state_dict()
    assert list(a) == list(b)
    assert all(a[n].dtype == b[n].dtype and np.array_equal(a[n], b[n]) for n in a)
    assert not any(m.training for _, m in back.named_modules())
    assert all(p.requires_grad for p in back.parameters())
    assert np.array_equal(logits(model.eval(), ids()), logits(back, ids()))


def test_float16_halves_the_file_and_rounds_once(tmp_path):
    model = gpt2(0, "float32", d_model=64, n_heads=4)
    full = ml.save_model(model, tmp_path / "full.npz").stat().st_size
    half = ml.save_model(model, tmp_path / "half.npz", dtype="float16").stat().st_size
    nbytes = sum(p.data.nbytes for p in model.parameters())
    assert full - half == pytest.approx(nbytes / 2, rel=0.01)
    back = ml.load_model(tmp_path / "half.npz")
    assert back.tokenizer is None
    for name, array in model.state_dict().items():
        assert back.state_dict()[name].dtype == "float32"
        assert np.array_equal(back.state_dict()[name], array.astype("float16").astype("float32"))


def test_what_is_said_about_a_model_is_in_its_file(tmp_path):
    ml.save_model(gpt2(), tmp_path / "m.npz", about={"trained_on": "nothing"})
    _, meta = checkpoint.read(tmp_path / "m.npz", kind="model")
    assert meta["trained_on"] == "nothing"


def test_saving_a_model_with_adapters_on_raises_until_they_are_merged_or_detached(tmp_path):
    model, _ = adapted()
    with pytest.raises(ValueError, match="merge or detach"):
        ml.save_model(model, tmp_path / "m.npz")
    assert not list(tmp_path.iterdir())
    adapted_logits = logits(model, ids())
    lora.merge(model)
    ml.save_model(model, tmp_path / "m.npz")
    back = ml.load_model(tmp_path / "m.npz", dtype="float64")
    np.testing.assert_allclose(logits(back, ids()), adapted_logits, rtol=0, atol=1e-12)


def test_a_file_that_is_no_model_or_is_damaged_raises(tmp_path):
    model, _ = adapted()
    lora.save(model, tmp_path / "adapter.npz")
    with pytest.raises(ValueError, match="holds an adapter, not a model"):
        ml.load_model(tmp_path / "adapter.npz")
    ml.save_model(gpt2(), tmp_path / "m.npz")
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes((tmp_path / "m.npz").read_bytes()[:2000])
    with pytest.raises(ValueError, match="damaged"):
        ml.load_model(damaged)
    with pytest.raises(FileNotFoundError):
        ml.load_model(tmp_path / "none.npz")


@family
@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "family", "setting"])
def test_a_file_of_a_model_that_does_not_fit_names_what(numpy_only, tmp_path, family, fault):
    path, other = tmp_path / "m.npz", "bert" if family == "roberta" else "roberta"
    ml.save_model(made(family, dtype="float32"), path)
    arrays, meta = checkpoint.read(path)
    name = "blocks.1.mlp.up.W"
    if fault == "missing":
        del arrays[name]
        name = f"({name}|its sizes ask for more numbers than)"
    elif fault == "unexpected":
        arrays[name := "blocks.1.mlp.over.W"] = arrays["blocks.1.mlp.up.W"]
    elif fault == "shape":
        arrays[name] = arrays[name].T.copy()
    elif fault == "family":
        meta["family"] = "t5"
        name = "unknown model family 't5': load_model reads gpt2, bert, roberta, deberta, llama"
    else:
        meta["config"] |= {"n_heads": 3}
        name = "n_heads"
    checkpoint.write(path, arrays, meta)
    with pytest.raises(ValueError, match=rf"m\.npz.*{name}"):
        ml.load_model(path)
    checkpoint.write(path, *checkpoint.read(ml.save_model(made(other), tmp_path / "o.npz")))
    loaded = ml.load_model(path)
    assert type(loaded).__name__.lower() == other


def test_a_base_that_is_not_there_raises_and_lists_the_names():
    with pytest.raises(ValueError, match=r"unknown built-in base 'homer'.*shakespeare"):
        ml.load_base("homer")


def test_the_built_in_base_is_small_whole_and_knows_the_plays(numpy_first):
    assert base_path("shakespeare").stat().st_size < 3_000_000
    model = ml.load_base("shakespeare")
    c = model.config
    sizes = c.vocab_size, c.n_positions, c.d_model, c.n_layers, c.n_heads
    assert sizes == (1024, 256, 160, 4, 5)
    assert {str(p.dtype) for p in model.parameters()} == {"float32"}
    assert model.tokenizer.vocab_size == 1024
    train_text, held_out = split(load_text("plays"), 0.05)
    tokens = model.tokenizer.encode(held_out)
    assert model.tokenizer.decode(tokens) == held_out
    # the best that one can do without looking at what came before: each token's own frequency
    seen = np.bincount(model.tokenizer.encode(train_text), minlength=1024) + 1.0
    part = sequential(tokens, 8, 256)[:2]
    targets = np.concatenate([t.reshape(-1) for _, t in part])
    unigram = -np.log(seen / seen.sum())[targets].mean()
    assert ml.evaluate(model, part) < unigram - 1.0


def test_a_model_learns_nothing_from_targets_that_are_ignored():
    model = gpt2()
    targets = ids(1)
    targets[:, :3] = -100
    ops.cross_entropy(model(ids()), targets).backward()
    before = {n: ml.asnumpy(p.grad).copy() for n, p in model.named_parameters()}
    model.requires_grad_(True)
    kept = model(ids())[:, 3:]
    ops.cross_entropy(kept, targets[:, 3:]).backward()
    for name, p in model.named_parameters():
        np.testing.assert_allclose(ml.asnumpy(p.grad), before[name], rtol=0, atol=1e-13)
