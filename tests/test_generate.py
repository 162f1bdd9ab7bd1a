"""generate: the cache changes nothing, and sampling follows the distribution."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import adapted, gpt2, ids, normal, seeds

import minilora as ml
from minilora.generate import answers, first_not_finite, sample
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


@pytest.mark.parametrize("bad", [-1, 11, 1.5, "a", True])
def test_an_end_is_a_token(bad):
    with pytest.raises(ValueError, match="generate: stop must be an integer from 0 to 10, not"):
        ml.generate(gpt2(0), [1], 1, stop=bad)


def test_an_encoder_continues_no_text():
    with pytest.raises(TypeError, match="a Bert is an encoder, which continues no text: give"):
        ml.generate(ml.load_base("mini-encoder"), [1, 2], 3)
