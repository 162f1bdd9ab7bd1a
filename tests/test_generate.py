"""generate: the cache changes nothing, and sampling follows the distribution."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import adapted, gpt2, ids, made, normal, seeds, shake

import minilora as ml
from minilora import lora, methods
from minilora.generate import answers, first_not_finite, sample
from minilora.generate.sampling import Sampling, likeliest, penalized
from minilora.generate.text import Text, before
from minilora.nn import generators


def logits(model, at) -> np.ndarray:
    with ml.no_grad():
        return ml.asnumpy(model(at).data)


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def by_hand(model, at: np.ndarray, n: int) -> np.ndarray:
    """Decode greedily, (batch, tokens), and compute everything again for each token."""
    size = model.config.n_positions
    start = max(0, at.shape[1] - size)
    for _ in range(n):
        if at.shape[1] - start > size:
            start = at.shape[1] - max(1, size // 2)
        last = logits(model, at[:, start:])[:, -1]
        at = np.concatenate([at, last.argmax(-1)[:, None]], 1)
    return at


def nucleus(z: np.ndarray, p: float) -> set[int]:
    """Return the fewest likeliest tokens whose probabilities sum to p or more."""
    order, mass = np.argsort(-z), softmax(z)
    n = next(n for n in range(1, len(z) + 1) if n == len(z) or mass[order[:n]].sum() >= p)
    return set(order[:n].tolist())


def drawn(z, n: int, seed: int, temperature=1.0, top_k=None, top_p=None) -> np.ndarray:
    """Return the frequency of each token in n samples."""
    rng = np.random.default_rng(seed)
    out = [sample(z, temperature, top_k, top_p, rng) for _ in range(n)]
    return np.bincount(out, minlength=len(z)) / n


def slack(classes: int, n: int) -> float:
    """Bound the error of all frequencies of n draws; exceeded once in 10^9 (Hoeffding, union)."""
    return math.sqrt(math.log(2 * classes / 1e-9) / (2 * n))


@settings(max_examples=40)
@given(
    seeds, st.integers(1, 3), st.integers(1, 17), st.integers(1, 20), st.integers(1, 12),
    st.sampled_from([0.0, 1.0]), st.booleans(),
)
def test_with_and_without_cache_the_tokens_are_the_same(
    seed, batch, given_tokens, n, window, temperature, with_lora
):
    model = gpt2(seed, n_positions=window)
    if with_lora:
        model, _ = adapted(seed, sizes={"n_positions": window}, targets=("q", "v", "down"))
    at, how = ids(seed, batch, given_tokens), {"temperature": temperature, "rng": seed}
    cached = ml.generate(model, at, n, cache=True, **how)
    assert np.array_equal(cached, ml.generate(model, at, n, cache=False, **how))
    assert cached.shape == (batch, given_tokens + n) and cached.dtype == np.int64
    assert np.array_equal(cached[:, :given_tokens], at)
    if temperature == 0:
        assert np.array_equal(cached, by_hand(model, at, n))


@given(seeds)
def test_each_next_token_sees_the_logits_of_all_before_it(seed):
    model, at = gpt2(seed), ids(seed, 2, 4)
    seen = []
    forward = model.forward
    model.forward = lambda *a, **k: (seen.append(forward(*a, **k)), seen[-1])[1]
    out = ml.generate(model, at, 6, rng=seed)
    del model.forward
    expected = logits(model, out)
    assert [x.shape[1] for x in seen] == [4, 1, 1, 1, 1, 1], "each token is computed once"
    for i, x in enumerate(seen):
        last = ml.asnumpy(x.data)[:, -1]
        np.testing.assert_allclose(last, expected[:, 3 + i], rtol=0, atol=1e-12)


@given(seeds, st.integers(1, 15))
def test_one_sequence_in_is_one_sequence_out(seed, tokens):
    model, row = gpt2(seed), ids(seed, 1, tokens)[0]
    out = ml.generate(model, row, 5, temperature=0)
    assert out.shape == (tokens + 5,)
    assert np.array_equal(out, ml.generate(model, row[None], 5, temperature=0)[0])
    assert np.array_equal(out, ml.generate(model, row.tolist(), 5, temperature=0))


@given(seeds)
def test_each_sequence_of_a_batch_is_continued_as_if_alone(seed):
    model, at = gpt2(seed), ids(seed, 3, 5)
    together = ml.generate(model, at, 6, temperature=0)
    assert all(
        np.array_equal(together[i], ml.generate(model, at[i], 6, temperature=0)) for i in range(3)
    )


@given(seeds, st.sampled_from([{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}]))
def test_the_narrowest_sampling_is_greedy(seed, how):
    model, at = gpt2(seed), ids(seed)
    greedy = ml.generate(model, at, 5, temperature=0)
    assert np.array_equal(greedy, ml.generate(model, at, 5, rng=seed, **how))


@given(seeds)
def test_the_same_seed_gives_the_same_text(seed):
    model, at = gpt2(seed), ids(seed, 4)
    one, two = (ml.generate(model, at, 8, rng=seed) for _ in range(2))
    assert np.array_equal(one, two)
    generator = np.random.default_rng(seed)
    assert np.array_equal(one, ml.generate(model, at, 8, rng=generator))
    assert not np.array_equal(one, ml.generate(model, at, 8, rng=generator)), "a generator advances"


@settings(max_examples=10)
@given(seeds, st.sampled_from([0.5, 1.0, 2.0]))
def test_frequencies_follow_the_softmax_of_logits_over_temperature(seed, temperature):
    z, n = normal(seed, 6), 4000
    expected = softmax(z / temperature)
    assert np.abs(drawn(z, n, seed, temperature) - expected).max() < slack(6, n)


def test_frequencies_follow_the_distribution_closely(numpy_only):
    z, n = np.array([0.0, 1.0, -1.0, 0.5]), 50_000
    for temperature in (0.7, 1.5):
        got = drawn(z, n, 3, temperature)
        assert np.abs(got - softmax(z / temperature)).max() < slack(4, n) < 0.016


def test_the_model_is_sampled_from_its_own_distribution():
    model, rows = gpt2(5), 6000
    at = np.tile(ids(1, 1, 4), (rows, 1))
    expected = softmax(logits(model, at[:1])[0, -1] / 0.8)
    out = ml.generate(model, at, 1, temperature=0.8, rng=0)[:, -1]
    assert np.abs(np.bincount(out, minlength=11) / rows - expected).max() < slack(11, rows)


@settings(max_examples=15)
@given(seeds, st.integers(1, 7), st.sampled_from([0.5, 1.0]))
def test_top_k_keeps_the_k_likeliest_in_their_proportions(seed, k, temperature):
    z, n = np.random.default_rng(seed).random(6), 2000  # no token is rarer than 1 in 40
    likeliest = np.argsort(-z)[:k]
    expected = np.zeros(6)
    expected[likeliest] = softmax(z[likeliest] / temperature)
    got = drawn(z, n, seed, temperature, top_k=k)
    assert set(np.flatnonzero(got)) == set(likeliest.tolist())
    assert np.abs(got - expected).max() < slack(6, n)


@settings(max_examples=25)
@given(seeds, st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_likeliest_with_mass_p(seed, p):
    z, n = np.random.default_rng(seed).random(6), 2000
    likeliest = sorted(nucleus(z, p))
    expected = np.zeros(6)
    expected[likeliest] = softmax(z[likeliest])
    got = drawn(z, n, seed, top_p=p)
    assert np.flatnonzero(got).tolist() == likeliest
    assert np.abs(got - expected).max() < slack(6, n)


def test_a_mass_of_exactly_p_is_enough():
    z = np.log([0.5, 0.25, 0.25])
    assert np.count_nonzero(drawn(z, 500, 0, top_p=0.5)) == 1
    assert np.count_nonzero(drawn(z, 500, 0, top_p=0.51)) == 2
    assert np.count_nonzero(drawn(z, 500, 0, top_p=0.75)) == 2
    assert np.count_nonzero(drawn(z, 500, 0, top_p=1.0)) == 3


def test_top_p_measures_the_mass_at_the_temperature_among_the_top_k():
    z = np.log([0.5, 0.3, 0.1, 0.1])
    assert np.count_nonzero(drawn(z, 500, 0, temperature=0.25, top_p=0.8)) == 1
    assert np.count_nonzero(drawn(z, 500, 0, temperature=4.0, top_p=0.8)) == 4
    # of two tokens the first has probability 5/8
    assert np.count_nonzero(drawn(z, 500, 0, top_k=2, top_p=0.6)) == 1
    assert np.count_nonzero(drawn(z, 500, 0, top_k=2, top_p=0.7)) == 2


def test_huge_and_infinite_logits_are_safe():
    assert drawn(np.array([1e300, 0.0, -1e300]), 20, 0)[0] == 1
    assert drawn(np.array([-np.inf, 0.0, -np.inf]), 20, 0, temperature=0.1)[1] == 1


@pytest.mark.parametrize(
    ("name", "bad"),
    [("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
     ("temperature", "1"), ("top_k", 0), ("top_k", -3), ("top_k", 2.5), ("top_k", True),
     ("top_p", 0.0), ("top_p", 1.1), ("top_p", -1), ("top_p", math.nan), ("top_p", math.inf),
     ("repetition_penalty", 0), ("repetition_penalty", -1.0), ("repetition_penalty", math.inf),
     ("n_tokens", -1), ("n_tokens", 1.0), ("n_tokens", True), ("n_tokens", None)],
)
def test_bad_arguments_raise_before_the_model_runs(name, bad):
    model = gpt2()
    model.forward = None
    with pytest.raises(ValueError, match=rf"^generate: {name} must be .*, not .*{bad}"):
        ml.generate(model, ids(), **{"n_tokens": 1, name: bad})


def test_the_limits_of_the_arguments_are_accepted():
    out = ml.generate(gpt2(), ids(), 2, top_k=1, top_p=1.0)
    assert np.array_equal(out, ml.generate(gpt2(), ids(), np.int64(2), temperature=0.0))


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize(
    ("at", "kind", "words"),
    [
        (np.zeros(0, int), ValueError, r"ids must be .*, not \(0,\), with at least one"),
        ([], ValueError, r"ids must be .*, not \(0,\), with at least one"),
        (np.zeros((2, 0), int), ValueError, r"ids must be .*, not \(2, 0\)"),
        (np.zeros((1, 1, 1), int), ValueError, r"ids must be .*, not \(1, 1, 1\)"),
        (
            "To be",
            TypeError,
            r"ids must be integers, not the str 'To be': model\.tokenizer\.encode\(text\)",
        ),
        ([1.0, 2.0], TypeError, r"ids must be integers, not the list \[1.0, 2.0\]"),
        ([1, -1], ValueError, r"id -1 is not in the vocabulary, 0 to 10: "),
        ([[1, 2], [11, 3]], ValueError, r"id 11 is not in the vocabulary, 0 to 10: "),
    ],
)
def test_bad_ids_raise_before_the_model_runs(at, kind, words, n):
    model = gpt2()
    model.forward = None
    with pytest.raises(kind, match=f"^generate: {words}"):
        ml.generate(model, at, n)


def overflowing(model, path: str) -> None:
    """Make the outputs of this module infinite or nan."""
    part = dict(model.named_modules())[path]
    forward = part.forward
    part.forward = lambda *a, **k: forward(*a, **k) * 1e200 * 1e200


PLACES = ["tok", "blocks.0.ln1", "blocks.1.attn.q", "blocks.1.mlp.down", "blocks.1", "ln_f", ""]


@given(st.sampled_from(PLACES), st.sampled_from([math.nan, math.inf]), st.booleans(), seeds)
def test_logits_that_are_not_finite_are_an_error_with_the_place(path, bad, cache, seed):
    names = [name for name, _ in gpt2().named_parameters()]
    model = gpt2(seed, dropout=0.4)
    state = {name: g.bit_generator.state for name, g in generators(model).items()}
    for name in {names[seed % len(names)], names[-1]}:
        dict(model.named_parameters())[name].data.reshape(-1)[0] = bad
    with pytest.raises(FloatingPointError) as error:
        ml.generate(model, ids(), 3, cache=cache)
    assert f"starting at the parameter {names[seed % len(names)]}: load finite" in str(error.value)
    model = gpt2(seed, dropout=0.4)
    for later in PLACES[PLACES.index(path) :]:
        overflowing(model, later)
    before = [{"training": True} | vars(m) for _, m in model.named_modules()]
    with pytest.raises(FloatingPointError) as error:
        ml.generate(model, ids(), 3, cache=cache)
    assert f"starting at the output of {path or 'the model'}: load" in str(error.value)
    assert before == [dict(vars(m)) for _, m in model.named_modules()], "the modules are unchanged"
    assert all(state[n] == g.bit_generator.state for n, g in generators(model).items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_logit_of_one_sequence_is_an_error_in_a_full_window(bad):
    model = gpt2(n_positions=4)
    forward = model.forward

    def spoilt(*a, **k):
        out = forward(*a, **k)
        out.data[1, -1, 4] = bad
        return out

    model.forward = spoilt
    with pytest.raises(FloatingPointError, match="starting at the output of the model"):
        ml.generate(model, ids(), 1)


def test_a_logit_of_minus_infinity_is_no_error():
    model = gpt2()
    forward = model.forward

    def without(*a, **k):
        out = forward(*a, **k)
        out.data[..., 4] = -math.inf
        return out

    model.forward = without
    assert 4 not in ml.generate(model, np.array([1, 2]), 30, rng=0)[2:]
    model.forward = lambda *a, **k: without(*a, **k) - math.inf
    with pytest.raises(FloatingPointError, match="starting at the output of the model"):
        ml.generate(model, ids(), 1)


def test_the_search_for_the_place_changes_nothing():
    class Twice(ml.nn.Module):
        def __init__(self):
            self.one = ml.nn.Dropout(0.5, rng=0)
            self.two, self.by = self.one, {"three": ml.nn.LayerNorm(3)}

        def forward(self, x):
            seen.append((ml.tensor.recording(), self.one.training))
            return self.by["three"](self.two(self.one(x)))

    model, seen, x = Twice(), [], ml.Tensor(normal(0, 3, dtype="float32"))
    inner = model.one.forward
    model.one.forward = own = lambda x: inner(x)
    before = model.one.rng.bit_generator.state
    assert first_not_finite(model, x) == ""
    x.data[1] = math.inf
    assert first_not_finite(model, x) == "the output of one"
    assert seen == [(False, False)] * 2 and ml.tensor.recording() and model.one.training
    assert model.one.rng.bit_generator.state == before and model.one.forward is own
    assert [("forward" in vars(m)) for _, m in model.named_modules()] == [False, True, True, False]


def test_a_cache_that_is_not_finite_is_the_place():
    model, calls = gpt2(), []
    forward = model.forward

    def run(at, cache=None):
        calls.append(at)
        if cache and len(calls) == 2:
            cache[0].kv[...] = math.nan
        return forward(at, cache)

    model.forward = run
    with pytest.raises(FloatingPointError, match="starting at the key/value cache"):
        ml.generate(model, ids(), 3)


def test_zero_tokens_return_the_ids():
    assert np.array_equal(ml.generate(gpt2(), ids(), 0), ids())


def test_generation_records_no_tape_and_changes_no_mode_weight_or_id():
    model, at = gpt2(dropout=0.4), ids()
    seen, forward = [], model.forward
    model.forward = lambda *a, **k: (seen.append(forward(*a, **k)), seen[-1])[1]
    model.blocks[1].eval()
    modes = [m.training for _, m in model.named_modules()]
    before, state = at.copy(), model.state_dict()
    one, two = (ml.generate(model, at, 4, temperature=0) for _ in range(2))
    assert np.array_equal(one, two), "dropout is off"
    assert not any(x.requires_grad for x in seen)
    with pytest.raises(RuntimeError, match="nothing"):
        seen[0].sum().backward()
    assert modes == [m.training for _, m in model.named_modules()]
    assert np.array_equal(at, before)
    assert all(np.array_equal(state[n], a) for n, a in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model(at).requires_grad, "recording goes on afterwards"


# An end: the token after which a row is finished.


@settings(max_examples=100)
@given(seeds, st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_a_finished_row_is_filled_up_and_the_others_go_on(seed, batch, tokens, n, cache):
    model, at = gpt2(seed), ids(seed, batch, tokens)
    free = ml.generate(model, at, n, temperature=0, cache=cache)
    stop = int(free[0, tokens])  # the first row is finished at once
    out = ml.generate(model, at, n, temperature=0, cache=cache, stop=stop)
    ends = [[*row[tokens:], stop].index(stop) + 1 for row in free.tolist()]
    assert out.shape == (batch, tokens + min(n, max(ends)))
    for row, whole, end in zip(out, free, ends):
        assert np.array_equal(row[: tokens + end], whole[: len(row)][: tokens + end])
        assert (row[tokens + end :] == stop).all()


@given(seeds)
def test_an_end_in_the_prompt_ends_nothing(seed):
    model, row = gpt2(seed), ids(seed, 1, 4)[0]
    free = ml.generate(model, row, 3, temperature=0)
    unused = next(i for i in range(11) if i not in free[4:])
    row[:3] = unused  # also another prompt
    free = ml.generate(model, row, 3, temperature=0)
    if unused not in free[4:]:
        assert np.array_equal(ml.generate(model, row, 3, temperature=0, stop=unused), free)


@given(seeds, st.lists(st.integers(1, 6), max_size=7), st.integers(0, 6), st.integers(1, 3))
def test_answers_of_unlike_prompts_are_those_of_each_alone(seed, lengths, longest, batch):
    model = gpt2(seed)
    prompts = [ids(seed + i, 1, n)[0].tolist() for i, n in enumerate(lengths)]
    stop = seed % 11
    out = answers(model, prompts, longest, stop, batch)
    for prompt, answer in zip(prompts, out, strict=True):
        alone = ml.generate(model, prompt, longest, temperature=0)[len(prompt) :].tolist()
        assert answer == alone[: alone.index(stop) if stop in alone else longest]


@pytest.mark.parametrize("bad", [-1, 11, 1.5, True, [2, 11], (1, None)])
def test_an_end_is_a_token(bad):
    with pytest.raises(ValueError, match="generate: stop must be an integer from 0 to 10, not"):
        ml.generate(gpt2(0), [1], 1, stop=bad)


# Sequences of unlike lengths: each is continued as if it were alone.


def unlike(seed: int, lengths) -> list[np.ndarray]:
    return [ids(seed + i, 1, n)[0] for i, n in enumerate(lengths)]


def spawned(seed: int, batch: int) -> list[np.random.Generator]:
    """What the sequences of a batch draw from."""
    rng = np.random.default_rng(seed)
    return [rng, *rng.spawn(batch - 1)]


def padded(rows: list[np.ndarray], left: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) of rows with padding: of any ids, since nothing may depend on them."""
    width = max(map(len, rows))
    at, mask = ids(9, len(rows), width), np.zeros((len(rows), width), bool)
    for row, a, m in zip(rows, at, mask):
        where = slice(width - len(row), width) if left else slice(len(row))
        a[where], m[where] = row, True
    return at, mask


lengths_of_rows = st.lists(st.integers(1, 16), min_size=2, max_size=4)


@settings(max_examples=60)
@given(
    seeds, lengths_of_rows, st.integers(0, 14), st.integers(1, 12),
    st.sampled_from([0.0, 1.0]), st.booleans(), st.sampled_from([None, 1.4]),
    st.sampled_from([None, 3, [3, 5]]),
)
def test_sequences_of_unlike_lengths_are_those_of_each_alone(
    seed, lengths, n, window, temperature, cache, penalty, stop
):
    """Also where the rows leave the window at different tokens, and end at different ones."""
    model, _ = adapted(seed, sizes={"n_positions": window}, targets=("q", "v", "down"))
    prompts, how = unlike(seed, lengths), {"temperature": temperature, "stop": stop}
    how["repetition_penalty"] = penalty
    out = ml.generate(model, prompts, n, rng=seed, cache=cache, **how)
    assert isinstance(out, list)
    for prompt, row, rng in zip(prompts, out, spawned(seed, len(prompts)), strict=True):
        alone = ml.generate(model, prompt, n, rng=rng, **how)
        assert row.dtype == np.int64 and np.array_equal(row, alone)


@given(seeds)
def test_one_sequence_does_not_change_what_another_draws(seed):
    model, prompts = gpt2(seed), unlike(seed, [3, 7, 5])
    all_three = ml.generate(model, prompts, 8, rng=seed)
    others = ml.generate(model, [prompts[0], prompts[2], prompts[1]], 8, rng=seed)
    alone = ml.generate(model, prompts[0], 8, rng=seed)
    assert np.array_equal(all_three[0], others[0]) and np.array_equal(all_three[0], alone)
    same = ml.generate(model, [prompts[0]] * 3, 8, rng=seed)
    assert len({row.tobytes() for row in same}) > 1, "each draws its own"
    assert np.array_equal(same, ml.generate(model, np.array([prompts[0]] * 3), 8, rng=seed))


decoders = st.sampled_from(["gpt2", "llama"])


@given(seeds, lengths_of_rows, st.booleans(), decoders)
def test_logits_are_those_of_each_sequence_without_padding(seed, lengths, left, family):
    model, rows = made(family, seed, n_positions=16), unlike(seed, lengths)
    at, mask = padded(rows, left)
    with ml.no_grad():
        together = ml.asnumpy(model(at, mask=mask).data)
        same = ml.asnumpy(model(at, mask=mask.astype(int)).data)
    assert np.array_equal(together, same)
    for row, got, real in zip(rows, together, mask):
        alone = logits(model, row[None])[0]
        np.testing.assert_allclose(got[real], alone, rtol=0, atol=1e-12)


@given(seeds, lengths_of_rows, st.integers(1, 4), st.booleans(), decoders)
def test_logits_after_a_padded_cache_are_those_without(seed, lengths, more, left, family):
    model, rows = made(family, seed, n_positions=20), unlike(seed, lengths)
    (at, mask), later = padded(rows, left), ids(seed, len(rows), more)
    cache = model.new_cache(len(rows))
    with ml.no_grad():
        model(at, cache, mask)
        got = ml.asnumpy(model(later, cache, np.pad(mask, ((0, 0), (0, more)), constant_values=1)))
    for row, new, z in zip(rows, later, got):
        alone = logits(model, np.append(row, new)[None])[0, -more:]
        np.testing.assert_allclose(z, alone, rtol=0, atol=1e-12)


@given(seeds)
def test_gradients_ignore_padding(seed):
    """Recomputed or not."""
    rows = unlike(seed, [3, 7])
    at, mask = padded(rows)
    grads = []
    for how in ({}, {"recompute": True}):
        model = gpt2(seed)
        model.recompute = bool(how)
        targets = np.where(mask, ids(seed + 1, 2, 7), -100)
        ml.ops.cross_entropy(model(at, mask=mask), targets).backward()
        grads.append([ml.asnumpy(p.grad) for p in model.parameters()])
    model = gpt2(seed)
    for row, target in zip(rows, targets):
        loss = ml.ops.cross_entropy(model(row[None]), target[-len(row) :][None])
        (loss * (len(row) / 10)).backward()
    for p, one, two in zip(model.parameters(), *grads):
        np.testing.assert_allclose(one, ml.asnumpy(p.grad), rtol=0, atol=1e-11)
        assert np.array_equal(one, two)


@pytest.mark.parametrize(
    "mask", [np.ones((2, 6)), np.ones((1, 7)), np.ones(7), np.full((2, 7), 2), [[1] * 7] * 3]
)
def test_a_mask_is_for_all_tokens_in_the_cache_and_the_new_ones(mask):
    with pytest.raises(ValueError, match=r"mask is \(.*\): it must be \(2, 7\), for the tokens"):
        gpt2()(ids(), mask=mask)
    model = gpt2()
    cache = model.new_cache(2)
    model(ids(), cache)
    with pytest.raises(ValueError, match=r"it must be \(2, 8\)"):
        model(ids(tokens=1), cache, mask=mask)


def test_each_sequence_has_its_own_adapter():
    model, names = gpt2(3), ["one", "base", "two", "one"]
    for seed, name in enumerate(["one", "two"]):
        lora.attach(model, ml.LoRAConfig(r=2, alpha=3, targets=("q", "v", "pos")), name, rng=seed)
    shake(model.trainable_parameters().values(), 1, 0.5)
    lora.activate(model)
    prompts = unlike(4, [5, 2, 9, 3])
    for how in ({"temperature": 0}, {"rng": 3}):
        with lora.per_row(model, names):
            out = ml.generate(model, prompts, 14, **how)
        rngs = spawned(3, 4) if "rng" in how else [0] * 4
        different = set()
        for name, prompt, row, rng in zip(names, prompts, out, rngs):
            lora.activate(model, *[name] * (name != "base"))
            alone = ml.generate(model, prompt, 14, **how | {"rng": rng})
            assert np.array_equal(row, alone)
            different.add(alone[-14:].tobytes())
        lora.activate(model)
        assert len(different) > 2, "the adapters act"


@pytest.mark.parametrize("called", ["preembed", "prelayer"])
@pytest.mark.parametrize(("lp", "li"), [(2, 0), (0, 2), (3, 1)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.usefixtures("numpy_first")
def test_trained_tokens_stand_beside_each_prompt(family, called, lp, li):
    config = methods.PreEmbed if called == "preembed" else methods.PreLayer
    model, prompts = made(family, 2, n_positions=16), unlike(5, [2, 6, 4])
    config(lp=lp, li=li).apply(model, rng=0)
    shake(model.trainable_parameters().values(), 1, 0.5)

    def prompt(lengths):
        return methods.prompt(lengths) if li else contextlib.nullcontext()

    for cache in (True, False):
        with prompt([2, 5, 4]):
            out = ml.generate(model, prompts, 5 if li else 20, temperature=0, cache=cache)
        for row, own, length in zip(out, prompts, [2, 5, 4]):
            with prompt(length):
                alone = ml.generate(model, own, 5 if li else 20, temperature=0)
            assert np.array_equal(row, alone)
    at, mask = padded(prompts, left=False)
    with prompt([2, 5, 4]), pytest.raises(ValueError, match="padding after a token: put it at the"):
        model(at, mask=mask)
    if li:
        with prompt([3, 5, 4]), pytest.raises(ValueError, match="must contain them entirely"):
            ml.generate(model, prompts, 2)


@given(seeds)
def test_a_list_of_like_lengths_is_a_list_too(seed):
    model, at = gpt2(seed), ids(seed, 3, 4)
    out = ml.generate(model, at, 6, temperature=0)
    for listed in (at.tolist(), tuple(at), [*at]):
        rows = ml.generate(model, listed, 6, temperature=0)
        assert isinstance(rows, list) and np.array_equal(rows, out)
    assert np.array_equal(ml.generate(model, at[:1], 6, temperature=0), out[:1])
    [row] = ml.generate(model, [at[1]], 6, temperature=0)
    assert np.array_equal(row, out[1])


@pytest.mark.parametrize(
    ("at", "words"),
    [([[1], []], r"ids must be .*, not \(0,\)"), ([[1], [[2]]], r"ids must be .*, not \(1, 1\)"),
     ([[1, 2], [12]], "id 12 is not"), ([[1], [1.5]], "ids must be integers, not the list")],
)
def test_each_sequence_of_a_list_is_checked(at, words):
    model = gpt2()
    model.forward = None
    with pytest.raises((ValueError, TypeError), match=f"^generate: {words}"):
        ml.generate(model, at, 3)


def test_logits_that_are_not_finite_have_a_place_in_padded_sequences_too():
    model = gpt2()
    overflowing(model, "blocks.1.mlp.down")
    for cache in (True, False):
        with pytest.raises(FloatingPointError, match=r"the output of blocks\.1\.mlp\.down"):
            ml.generate(model, [[1, 2], [3]], 2, cache=cache)


# A penalty for tokens that are there already.


@given(seeds, st.floats(0.3, 3), st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_a_penalty_makes_what_was_said_less_likely(seed, penalty, said):
    z = normal(seed, 6)
    expected = [
        x if i not in said else x / penalty if x > 0 else x * penalty for i, x in enumerate(z)
    ]
    assert np.array_equal(penalized(z, said, penalty), expected)
    assert np.array_equal(z, normal(seed, 6)), "the logits are not changed"
    for i in said:
        assert (expected[i] - z[i]) * (penalty - 1) <= 0


@given(seeds, st.sampled_from([1.3, 5.0]), st.booleans())
def test_the_penalty_counts_the_prompt_and_what_was_generated(seed, penalty, cache):
    model, row = gpt2(seed, n_positions=6), ids(seed, 1, 4)[0]
    out = ml.generate(model, row, 9, temperature=0, repetition_penalty=penalty, cache=cache)
    start = 0
    for n in range(4, 13):
        start = n - 3 if n - start > 6 else start
        z = penalized(logits(model, out[None, start:n])[0, -1], out[:n], penalty)
        assert out[n] == z.argmax(), "also of what has left the window"


def test_a_penalty_of_1_changes_nothing():
    model, row = gpt2(), ids()[0]
    how = {"rng": 3, "top_p": 0.9}
    out = ml.generate(model, row, 9, repetition_penalty=1.0, **how)
    assert np.array_equal(out, ml.generate(model, row, 9, **how))


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.usefixtures("numpy_only")
def test_the_order_of_the_settings_is_that_of_transformers(seed):
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    rng = np.random.default_rng(seed)
    z, said = 2 * rng.standard_normal(40), rng.integers(0, 40, 15)
    how = Sampling(float(rng.uniform(0.4, 2)), int(rng.integers(2, 40)), float(rng.uniform(0.3, 1)),
                   float(rng.uniform(0.5, 3)))
    makes = [
        transformers.RepetitionPenaltyLogitsProcessor(how.repetition_penalty),
        transformers.TemperatureLogitsWarper(how.temperature),
        transformers.TopKLogitsWarper(how.top_k), transformers.TopPLogitsWarper(how.top_p),
    ]
    every = transformers.LogitsProcessorList(makes)
    scores = every(torch.tensor(said[None]), torch.tensor(z[None]))
    expected = scores.softmax(-1)[0].numpy()
    order, p = likeliest(penalized(z, said, how.repetition_penalty), *how[:3])
    got = np.zeros(40)
    got[order] = p / p.sum()
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    share = np.bincount([how.choose(z, said, rng) for _ in range(300)], minlength=40) / 300
    assert not share[expected == 0].any() and np.abs(share - expected).max() < slack(40, 300)


# Text: what the tokens say, as they come.

BYTES = [b"a", b"b", b"ab", b" ", b"\n", b"\n\n", b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98", b"c\xc3"]


class Letters:
    """A tokenizer of eleven tokens, some of which are parts of characters."""

    def decode(self, ids) -> str:
        return b"".join(BYTES[i] for i in ids).decode("utf-8", "replace")


class Words:
    """A tokenizer that writes no space before the first word, as those of Llama do."""

    def decode(self, ids) -> str:
        return " ".join("abcdefghijk"[i] for i in ids)


def speaking(seed: int = 0, tokenizer=Letters, **sizes):
    model = gpt2(seed, **sizes)
    model.tokenizer = tokenizer()
    return model


tokens = st.lists(st.integers(0, 10), max_size=25)


@settings(max_examples=300)
@given(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5]), min_size=1, max_size=3), tokens,
       st.sampled_from([Letters, Words]))
def test_pieces_are_the_text_and_never_change(given, new, tokenizer):
    decode, text, said = tokenizer().decode, Text(tokenizer(), given), ""
    for n, token in enumerate(new, start=1):
        said += text.add(token)
        whole = decode(given + new[:n])[len(decode(given)) :]
        assert whole.startswith(said) and said == whole.rstrip("\N{REPLACEMENT CHARACTER}")
    said += text.rest()
    assert decode(given) + said == decode(given + new) and text.rest() == ""


@settings(max_examples=300)
@given(tokens, st.lists(st.text("ab \n\xe9", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(new, strings):
    """Wherever the borders of the tokens are."""
    whole, text, said, used = Letters().decode(new), Text(Letters(), [0], tuple(strings)), "", 0
    for token in new:
        said, used = said + text.add(token), used + 1
        assert not any(each in said for each in strings)
        if text.ended:
            break
    over = text.ended
    said += text.rest()
    assert said == before(whole, strings)
    assert over == (said != whole)
    if over:
        settled = Letters().decode(new[: used - 1]).rstrip("\N{REPLACEMENT CHARACTER}")
        assert not any(each in settled for each in strings), "it ends at once"


def test_before_is_before_the_first():
    assert before("one, two. three", [".", ", "]) == "one"
    assert before("one", [".", "two"]) == before("one", []) == "one"


@settings(max_examples=60)
@given(seeds, st.integers(1, 14), st.integers(0, 20), st.sampled_from([0.0, 1.5]),
       st.lists(st.sampled_from(["a", "ab", "ba", "\n", "\xe9", " a", 3, 4]), max_size=2))
def test_a_stream_is_the_text_of_generate(seed, given, n, temperature, stop):
    model, row = speaking(seed, n_positions=9), ids(seed, 1, given)[0] % 6
    how = {"temperature": temperature, "stop": stop, "rng": seed}
    out = ml.stream(model, row, n, **how)
    pieces = [*out]
    whole = ml.generate(model, row, n, **how)
    assert np.array_equal(out.ids, whole) and all(pieces)
    new = whole[given:].tolist()
    text = model.tokenizer.decode(new[:-1] if new and new[-1] in stop else new)
    strings = [each for each in stop if isinstance(each, str)]
    assert "".join(pieces) == before(text, strings)
    assert [*out] == [], "it is over"
    if len(new) < n:
        assert new[-1] in stop or before(text, strings) != text
    [listed] = ml.generate(model, [row], n, **how)
    assert np.array_equal(listed, whole)


@given(seeds, st.sampled_from(["a", "ab", "\n", ["ba", " "]]))
def test_stop_strings_end_each_sequence_of_a_list(seed, stop):
    model, prompts = speaking(seed), [row % 6 for row in unlike(seed, [2, 5, 3])]
    rows = ml.generate(model, prompts, 12, rng=seed, stop=stop)
    for row, prompt, rng in zip(rows, prompts, spawned(seed, 3)):
        assert np.array_equal(row, ml.generate(model, prompt, 12, rng=rng, stop=stop))
    at = ids(seed, 3, 4) % 6
    filled = ml.generate(model, at, 12, rng=seed, stop=stop)
    rows = ml.generate(model, [*at], 12, rng=seed, stop=stop)
    assert filled.shape[1] == max(map(len, rows))
    for all_tokens, row in zip(filled, rows):
        assert np.array_equal(all_tokens[: len(row)], row)
        assert (all_tokens[len(row) :] == row[-1]).all()


def test_between_two_pieces_the_model_is_as_it_was():
    model = speaking(dropout=0.4)
    state, modes = model.state_dict(), []
    for _ in ml.stream(model, [0, 1], 30, rng=0):
        modes += [m.training for _, m in model.named_modules()]
        assert ml.tensor.recording() and model(ids()).requires_grad
    assert all(modes) and modes
    assert all(np.array_equal(state[n], a) for n, a in model.state_dict().items())


def test_a_stream_that_is_interrupted_is_over():
    model, calls = speaking(3, dropout=0.4), []
    forward = model.forward

    def stopped(*a, **k):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*a, **k)

    model.forward = stopped
    out, said = ml.stream(model, [0, 1], 30, rng=0), ""
    with pytest.raises(KeyboardInterrupt):
        for piece in out:
            said += piece
    assert len(out.ids) == 5 and model.training and ml.tensor.recording()
    said += "".join(out)
    assert said == model.tokenizer.decode(out.ids[2:])


def test_a_stream_checks_at_once():
    model = speaking()
    model.forward = None
    for bad, words in (
        ({"ids": [[1], [2]]}, r"ids must be one sequence, \(tokens,\), not \(2, 1\)"),
        ({"ids": [1.5]}, "ids must be integers"), ({"n_tokens": -1}, "n_tokens must be"),
        ({"top_k": 0}, "top_k must be"), ({"stop": 11}, "stop must be an integer from 0 to 10"),
        ({"stop": ["a", ""]}, r"stop=\['a', ''\] has an empty string"),
        ({"temperature": 0, "top_p": 0.5}, "top_p has no effect at temperature 0"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^stream: {words}"):
            ml.stream(model, **{"ids": [1], "n_tokens": 2} | bad)
    model.tokenizer = None
    with pytest.raises(ValueError, match=r"^stream: the model has no tokenizer: set model\.token"):
        ml.stream(model, [1], 2)
    with pytest.raises(ValueError, match=r"set model\.tokenizer, or give ids, not stop='a'"):
        ml.generate(model, [1], 2, stop="a")


def test_an_encoder_continues_no_text():
    with pytest.raises(TypeError, match="a Bert is an encoder, which continues no text: give"):
        ml.generate(ml.load_base("mini-encoder"), [1, 2], 3)
