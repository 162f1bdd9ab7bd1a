"""analysis: spectra, subspaces, amplification and intruders, each beside its random control."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import adapted, gpt2, layers, made, normal, seeds, shake, train, wide

import minilora as ml
from minilora import analysis, lora, methods

EPS = np.finfo("float64").eps
host = pytest.mark.usefixtures("numpy_only")  # all is computed there, whatever the library
sides = st.integers(1, 9)


def near(got, wanted, steps=1000.0):
    """Equal within so many roundings of the largest number."""
    wanted = np.asarray(wanted, np.float64)
    return np.all(abs(np.asarray(got) - wanted) <= steps * EPS * abs(wanted).max(initial=EPS))


def rotation(seed, n, columns=None):
    """Orthonormal columns, uniform over all."""
    Q, R = np.linalg.qr(normal(seed, n, columns or n))
    return Q * np.sign(np.diag(R))


def matrix(seed, U, s, V):
    """U diag(s) Vᵀ for the first columns of U and V."""
    return (U[:, : len(s)] * s) @ V[:, : len(s)].T


@st.composite
def factored(draw):
    """(scale, B, A) of any shape, also with r above d and k."""
    d, r, k, seed = draw(sides), draw(sides), draw(sides), draw(seeds)
    scale = draw(st.sampled_from([1.0, -2.5, 0.25]))
    return scale, normal(seed, d, r), normal(seed + 1, r, k)


# spectra


@host
@given(factored())
def test_factors_have_the_spectrum_of_their_product(dW):
    scale, B, A = dW
    product = scale * B @ A
    s = analysis.spectrum(dW)
    wanted = np.linalg.svd(product, compute_uv=False)
    assert len(s) == min(B.shape[0], B.shape[1], A.shape[1]) and (np.diff(s) <= 0).all()
    assert near(s, wanted[: len(s)]) and near([*s, *wanted[len(s) :]], [*s, *0 * wanted[len(s) :]])
    assert near(analysis.spectrum(product), wanted)
    assert near(abs(scale) * analysis.spectrum((B, A)), s)
    assert near((s**2).sum(), (product**2).sum())


@host
def test_large_factors_are_never_multiplied():
    """The product would take 80 GB."""
    n = 100_000
    B, A = np.ones((n, 1)), np.ones((1, n))
    assert near(analysis.spectrum((3.0, B, A)), [3.0 * n])


def test_the_matrix_is_an_array_or_a_tensor_of_any_library():
    x = normal(0, 3, 4, dtype="float32")
    wanted = np.linalg.svd(x.astype("float64"), compute_uv=False)
    for given_ in (ml.backend.asarray(x), ml.Tensor(x), ml.nn.Parameter(x), x.tolist()):
        s = analysis.spectrum(given_)
        assert type(s) is np.ndarray and s.dtype == "float64" and near(s, wanted)
    assert near(analysis.spectrum((ml.Tensor(x), ml.Tensor(np.eye(4)))), wanted)
    assert analysis.spectrum(np.array([[3, 0], [0, 4]], "int8")).round(9).tolist() == [4, 3]


@host
@given(seeds, sides, sides, st.floats(0.05, 1.0))
def test_rank_for_is_the_smallest_number_with_that_share(seed, d, k, energy):
    x = normal(seed, d, k)
    squares = np.linalg.svd(x, compute_uv=False) ** 2
    n = analysis.rank_for(x, energy)
    assert 1 <= n <= min(d, k)
    assert squares[:n].sum() >= energy * squares.sum() * (1 - 1e-9)
    assert squares[: n - 1].sum() < energy * squares.sum() * (1 + 1e-9)


@host
@given(factored(), st.sampled_from([1e-200, 1.0, 1e150]))
def test_rank_for_all_energy_is_the_rank(dW, size):
    scale, B, A = dW
    rank = min(B.shape[0], B.shape[1], A.shape[1])
    assert analysis.rank_for((scale * size, B, A), energy=1) == rank
    assert analysis.rank_for(scale * size * B @ A, energy=1) == rank
    assert analysis.rank_for(0 * B @ A) == 0


@host
def test_rank_for_counts_squares_and_takes_a_share_that_is_met_exactly():
    assert analysis.rank_for(np.diag([3.0, 1.0])) == 1  # 9 of 10; of 3 + 1 it would be 3 of 4
    assert analysis.rank_for(np.diag([3.0, 1.0]), 0.91) == 2
    assert analysis.rank_for(np.eye(10)) == 9
    assert analysis.rank_for(np.diag([1.0, 1e-7]), 1) == 2  # whose square is less than a rounding
    assert analysis.rank_for(normal(0, 60, 3) @ normal(1, 3, 70), 1) == 3  # not that of its noise
    assert analysis.rank_for(np.diag([1.0, 5 * EPS, *np.zeros(48)]), 1) == 1
    noise = normal(0, 64, 64)
    assert 28 <= analysis.rank_for(noise) <= 36  # about half, as the docstring says


@host
@given(factored(), seeds)
def test_a_random_control_keeps_what_it_says(dW, seed):
    product = dW[0] * dW[1] @ dW[2]
    for x in (dW, product):
        same = analysis.random_like(x, seed)
        assert same.shape == product.shape
        assert near(analysis.spectrum(same), np.linalg.svd(product, compute_uv=False), 1e4)
        gauss = analysis.random_like(x, seed, keep="norm")
        assert gauss.shape == product.shape
        assert near(np.linalg.norm(gauss), np.linalg.norm(product))
    again = analysis.random_like(product, np.random.default_rng(seed), keep="norm")
    assert np.array_equal(gauss, again)
    assert not np.any(analysis.random_like(0 * product, 0)) and not np.any(
        analysis.random_like(0 * product, 0, keep="norm"))


@host
def test_a_random_control_has_directions_without_preference():
    """E u uᵀ = I / d, and E u = 0, which Q without the signs of R does not have."""
    draws, d = 400, 4
    rng = np.random.default_rng(1)
    first = np.array([analysis.random_like(np.diag([1.0, 0, 0, 0]), rng) for _ in range(draws)])
    spread = 5 / math.sqrt(draws)  # entries of u vᵀ have a variance of 1 / d²
    assert abs(first.mean(0)).max() < spread / d
    assert abs((first**2).mean(0) - 1 / d**2).max() < spread * 3 / d**2  # E u_i⁴ v_j⁴ < 9 / d⁴


# subspaces


@st.composite
def pairs(draw):
    """A1 (r1, k), A2 (r2, k) and i, j, with singular values well apart."""
    k = draw(st.integers(2, 9))
    r1, r2, seed = draw(st.integers(1, k)), draw(st.integers(1, k)), draw(seeds)
    A1 = matrix(seed, rotation(seed, r1), np.arange(r1, 0, -1.0), rotation(seed + 1, k))
    A2 = matrix(seed, rotation(seed + 2, r2), np.arange(r2, 0, -1.0), rotation(seed + 3, k))
    return A1, A2, draw(st.integers(1, r1)), draw(st.integers(1, r2))


def projector(A, n):
    """On the first n right singular vectors, from the eigenvectors of AᵀA."""
    first = np.linalg.eigh(A.T @ A)[1][:, ::-1][:, :n]
    return first @ first.T


def phi(A1, A2, i, j):
    return np.trace(projector(A1, i) @ projector(A2, j)) / min(i, j)


@host
@given(pairs())
def test_similarity_is_that_of_the_projectors_and_the_grid_has_them_all(pair):
    A1, A2, i, j = pair
    got = analysis.subspace_similarity(A1, A2, i, j)
    assert type(got) is float and 0 <= got <= 1
    assert abs(got - phi(A1, A2, i, j)) < 1e-9
    assert abs(got - analysis.subspace_similarity(A2, A1, j, i)) < 1e-12
    grid = analysis.subspace_grid(A1, A2)
    assert grid.shape == (len(A1), len(A2)) and (grid >= 0).all() and (grid <= 1).all()
    for a, b in np.ndindex(grid.shape):
        assert abs(grid[a, b] - phi(A1, A2, a + 1, b + 1)) < 1e-9
    few = analysis.subspace_grid(A1, A2, i, j)
    assert few.shape == (i, j) and np.allclose(few, grid[:i, :j], atol=1e-12)


@host
@given(pairs(), seeds, st.sampled_from([-1.0, 1e-6, 40.0]))
def test_similarity_does_not_depend_on_the_basis_of_the_rows_nor_on_units(pair, seed, c):
    A1, A2, i, j = pair
    got = analysis.subspace_similarity(A1, A2, i, j)
    Q, R = rotation(seed, len(A1)), rotation(seed + 1, A1.shape[1])
    assert abs(got - analysis.subspace_similarity(c * Q @ A1, A2, i, j)) < 1e-9
    assert abs(got - analysis.subspace_similarity(A1 @ R, A2 @ R, i, j)) < 1e-9  # of the columns
    assert abs(got - analysis.subspace_similarity((c, Q, A1), A2, i, j)) < 1e-9


@host
@given(seeds, st.integers(2, 9), st.data())
def test_similarity_is_1_if_one_space_holds_the_other_and_0_if_they_are_orthogonal(seed, k, data):
    V = rotation(seed, k)
    i, j = (data.draw(st.integers(1, k)) for _ in "ij")
    few = min(i, j)
    inside = np.hstack([V[:, :few] @ rotation(seed + 1, few), V[:, few:j]])
    A1, A2 = (matrix(0, rotation(seed + n, k), np.arange(k, 0, -1.0), X)
              for n, X in ((2, V), (3, np.hstack([inside, V[:, j:]]))))
    assert 1 - 1e-9 < analysis.subspace_similarity(A1, A2, i, j) <= 1
    other = np.roll(V, -i, axis=1)  # its first columns are i + 1, i + 2, ...
    if i + j <= k:
        A3 = matrix(0, rotation(seed, k), np.arange(k, 0, -1.0), other)
        assert analysis.subspace_similarity(A1, A3, i, j) < 1e-9


@host
@given(pairs())
def test_appendix_g_must_read_1_minus_d_squared_over_p(pair):
    """d² is half of ‖P1 - P2‖² for two spaces of p dimensions: p - Σ σ²."""
    A1, A2, i, j = pair
    p = min(i, j)
    d_squared = ((projector(A1, p) - projector(A2, p)) ** 2).sum() / 2
    got = analysis.subspace_similarity(A1, A2, p, p)
    assert abs(got - (1 - d_squared / p)) < 1e-9
    if p > 1 and got < 0.99:
        assert abs(got - (1 - d_squared) / p) > 1e-3  # as it is printed


@host
@pytest.mark.parametrize(("d", "i", "j"), [(24, 1, 1), (16, 2, 5), (12, 6, 3), (5, 5, 2)])
def test_similarity_of_random_spaces_is_what_chance_gives(d, i, j):
    """Within five standard errors, by the variance of the docstring; and the spread is that one."""
    draws = 300
    got = [analysis.subspace_similarity(normal(s, i, d), normal(9999 + s, j, d), i, j)
           for s in range(draws)]
    wanted = analysis.random_similarity(d, i, j)
    std = math.sqrt(2 * i * j * (d - i) * (d - j) / (d**2 * (d - 1) * (d + 2))) / min(i, j)
    assert wanted == max(i, j) / d == analysis.random_similarity(d, j, i)
    assert abs(np.mean(got) - wanted) <= 5 * std / math.sqrt(draws) + 1e-12
    assert 0.6 * std - 1e-12 <= np.std(got) <= 1.6 * std + 1e-12


@host
def test_directions_of_an_update_are_weighted_by_B():
    A1, B1, A2 = np.eye(2, 4), np.diag([1.0, 5.0]), np.eye(4)[1:2]
    assert analysis.subspace_similarity(np.diag([2.0, 1.0]) @ A1, A2, 1, 1) < 1e-12
    assert analysis.subspace_similarity((B1, A1), A2, 1, 1) > 1 - 1e-12
    assert near(analysis.subspace_similarity(np.diag([2.0, 1.0]) @ A1, A2, 2, 1), 1)


# how ΔW relates to W


@st.composite
def weights(draw):
    """W (d, k) with singular values apart, its U, s, V."""
    d, k, seed = draw(st.integers(2, 8)), draw(st.integers(2, 8)), draw(seeds)
    s = np.arange(min(d, k), 0, -1.0)
    U, V = rotation(seed, d), rotation(seed + 1, k)
    return matrix(seed, U, s, V), U, s, V


@host
@given(weights(), st.data(), st.sampled_from([-3.0, 0.5, 1e-170, 1e170]))
def test_amplification_of_a_multiple_of_w_is_proportional_to_it(weight, data, c):
    W, _, s, _ = weight
    r = data.draw(st.integers(1, len(s)))
    got, one = analysis.amplification(W, c * W, r), analysis.amplification(W, W, r)
    assert near(got.factor, abs(c) * one.factor)
    assert near(one.factor, np.linalg.norm(s) / np.linalg.norm(s[:r]))
    assert near(got.in_update, got.in_own) and near(got.in_own, np.linalg.norm(s[:r]))
    assert near(analysis.amplification(W, c * W, len(s)).factor, abs(c))
    assert got.r == r and near(got.update, abs(c) * np.linalg.norm(s))


@host
@given(seeds, st.integers(1, 3))
def test_amplification_is_that_of_the_formula_also_from_factors(seed, r):
    W, scale, B, A = normal(seed, 7, 5), 1.5, normal(seed + 1, 7, 3), normal(seed + 2, 3, 5)
    dW = scale * B @ A
    U, _, Vt = np.linalg.svd(dW)
    inside = np.linalg.norm(U[:, :r].T @ W @ Vt[:r].T)
    for given_ in (dW, (scale, B, A)):
        got = analysis.amplification(W, given_, r)
        assert abs(got.in_update - inside) < 1e-9 * np.linalg.norm(W)
        assert near(got.update, np.linalg.norm(dW))
        assert got.factor == got.update / got.in_update
        assert got.in_update <= got.in_own * (1 + 1e-9)


@host
def test_amplification_by_hand():
    W, dW = np.array([[0.0, 2.0, 0], [1.0, 0, 0]]), np.array([[0, 8.0, 0], [0, 0, 6.0]])
    got = analysis.amplification(W, dW, 1)
    assert near((got.factor, got.update, got.in_update, got.in_own), (5, 10, 2, 2))
    small = analysis.amplification(1e-200 * W, 1e-200 * dW, 1)  # whose squares are 0
    assert near((small.factor, 1e200 * small.in_own), (5, 2))
    assert near(got.in_random, math.sqrt(5 / 6)) and near(got.random_factor, 10 / got.in_random)
    assert analysis.amplification(W, np.array([[3.0, 0, 0], [0, 0, 0]]), 1).factor > 1e9
    assert analysis.Amplification(1, 3.0, 0.0, 2.0, 1.0).factor == math.inf


@host
def test_amplification_by_random_directions_is_what_chance_gives():
    """The mean of (Σ ...)² within five standard errors; the spread is that of the draws."""
    W, r, draws = normal(0, 10, 14) + 1, 3, 300
    got = [analysis.amplification(W, normal(s, 10, r) @ normal(777 + s, r, 14), r).in_update ** 2
           for s in range(1, draws)]
    wanted = analysis.amplification(W, W, r).in_random ** 2
    assert near(wanted, r * r / 140 * (W**2).sum())
    assert abs(np.mean(got) - wanted) < 5 * np.std(got) / math.sqrt(draws)


@host
@given(weights(), seeds)
def test_an_update_that_keeps_the_singular_vectors_plants_no_intruder(weight, seed):
    W, U, s, V = weight
    d, k = W.shape
    stretched = matrix(seed, U, np.random.default_rng(seed).uniform(0.5, 9, len(s)), V)
    for dW in (0 * W, stretched, (np.zeros((d, 1)), np.ones((1, k)))):
        got = analysis.intruders(W, dW, k=len(s), eps=0.9)
        assert got.count == 0 and got.which == ()
        assert np.allclose(got.cosines, 1, atol=1e-6) and len(got.cosines) == len(s)
        assert max(got.cosines) <= 1


@host
@given(seeds)
def test_a_large_random_update_of_rank_1_plants_the_first(seed):
    W, u, v = normal(seed, 40, 30), normal(seed + 1, 40, 1), normal(seed + 2, 1, 30)
    dW = (100.0, u / np.linalg.norm(u), v / np.linalg.norm(v))
    got = analysis.intruders(W, dW, k=3, eps=0.8)
    basis = np.linalg.svd(W, full_matrices=False)[0]
    after = np.linalg.svd(W + dW[0] * dW[1] @ dW[2])[0]
    assert np.allclose(got.cosines, abs(basis.T @ after[:, :3]).max(0), atol=1e-9)
    assert 0 in got.which
    assert got.which == tuple(i for i, cosine in enumerate(got.cosines) if cosine < 0.8)
    assert got.count == len(got.which) and got.eps == 0.8


@host
def test_intruders_are_left_vectors_among_all_that_w_has():
    W = np.diag([3.0, 2.0, 1.0, 0.0])
    up = np.zeros((4, 4))
    up[3, 0] = 50  # it writes where W never does, and reads what W reads
    got = analysis.intruders(W, up, k=3)
    assert got.which == (0,) and got.cosines[0] < 0.1 and near(got.cosines[1], 1)
    assert analysis.intruders(W, up.T, k=3).count == 0  # the right vector is new, the left is not
    swapped = np.diag([0, 0, 9.0, 0])  # W's last direction comes first
    assert analysis.intruders(W, swapped, k=3, eps=0.9).which == ()


@host
def test_an_intruder_is_closer_than_eps_to_none():
    """W + ΔW is turned by 40 degrees: its vectors are 40 and 50 degrees from those of W."""
    c, s = math.cos(math.radians(40)), math.sin(math.radians(40))
    W, turned = np.diag([2.0, 1.0]), np.array([[c, -s], [s, c]]) @ np.diag([3.0, 1.0])
    for eps, which in ((0.99 * c, ()), (1.01 * c, (0, 1))):
        got = analysis.intruders(W, turned - W, k=2, eps=eps)
        assert near(got.cosines, (c, c)) and got.which == which


# of models


def test_updates_are_those_that_a_merge_adds():
    for model in (adapted(targets=("q", "v", "tok"))[0], made("deberta")):
        if not layers(model):
            lora.attach(model, ml.LoRAConfig(r=2, alpha=3), rng=0)
            shake(model.trainable_parameters().values(), 1)
        before = {at: wide(m.base.W) for at, m in layers(model).items()}
        found = analysis.updates(model)
        assert set(found) == {f"{at}.W" for at in before}
        wanted = {at: wide(m.delta()) for at, m in layers(model).items()}
        for at, W0 in before.items():
            scale, B, A = found[f"{at}.W"]
            assert B.dtype == A.dtype == "float64" and B.shape[1] == len(A) < min(W0.shape)
            assert near(scale * B @ A, wanted[at]) and np.any(B)
            B += 1  # a copy
        assert near(*(analysis.spectrum(analysis.updates(model)[f"{at}.W"]) for _ in "ab"))
        scale, B, A = analysis.updates(model)[f"{at}.W"]
        assert near(scale * B @ A, wanted[at])


def test_updates_of_one_adapter_or_of_all_active_ones():
    model, paths = adapted(alpha=5)
    lora.attach(model, ml.LoRAConfig(r=1, alpha=2, targets=("q",)), "other", rng=5)
    shake(model.trainable_parameters().values(), 3)
    at = paths[0]
    alone = {name: analysis.updates(model, name) for name in ("default", "other")}
    assert set(analysis.updates(model)) == set(alone["other"]) < set(alone["default"])
    layer = layers(model)[at]
    for name, found in alone.items():
        scale, B, A = found[f"{at}.W"]
        assert near(scale * B @ A, wide(layer.adapters[name].delta()))
    lora.activate(model, "default", "other")
    scale, B, A = analysis.updates(model)[f"{at}.W"]
    assert near(scale * B @ A, wide(layer.delta())) and len(A) == 4
    lora.activate(model)
    with pytest.raises(ValueError, match="no update of a matrix"):
        analysis.updates(model)


@pytest.mark.parametrize("method", [
    methods.DoRA(r=2), methods.PiSSA(r=2), methods.RsLoRA(r=2), methods.Full(),
    methods.LoRAPreEmbed(r=2, lp=1, li=1),
], ids=lambda method: method.called)
def test_updates_of_other_methods_are_what_training_changed(method):
    model, base = gpt2(), gpt2()
    methods.apply(model, method, "mine", rng=0)
    shake(model.trainable_parameters().values(), 1)
    found = analysis.updates(model)
    with lora.merged(model) if layers(model) else contextlib.nullcontext():
        tuned = model.state_dict()
    for name, W0 in base.state_dict().items():
        if W0.ndim == 2 and name in tuned:
            dW = tuned[name] - W0
            got = found.pop(name, np.zeros(W0.shape))
            got = got if isinstance(got, np.ndarray) else got[0] * got[1] @ got[2]
            assert np.allclose(got, dW, atol=1e-12), name
    assert not found


def test_of_two_methods_each_has_its_own_updates():
    model = gpt2()
    methods.apply(model, "dora", "one", rng=0, r=2)
    shake(model.trainable_parameters().values(), 1)
    dora = analysis.updates(model, "one")
    methods.apply(model, "lora", "two", rng=1, r=2)
    shake(model.trainable_parameters().values(), 2)
    again = analysis.updates(model, "one")
    assert all(np.array_equal(dora[at], again[at]) for at in dora)
    assert all(isinstance(dW, tuple) for dW in analysis.updates(model).values())


def test_a_trained_adapter_goes_through_every_measure():
    model, base = gpt2(), gpt2().state_dict()
    lora.attach(model, ml.LoRAConfig(r=2, alpha=4, targets=("q", "v")), rng=0)
    train(model, steps=3)
    found = analysis.updates(model)
    assert len(found) == 4
    for at, dW in found.items():
        W, r = base[at], len(dW[2])
        assert analysis.spectrum(dW).shape == (r,) and analysis.rank_for(dW, 1) == r
        assert analysis.subspace_similarity(dW, dW, r, r) > 1 - 1e-9
        assert analysis.subspace_grid(dW, W, m=4).shape == (r, 4)
        assert 0 < analysis.amplification(W, dW, r).factor < math.inf
        assert len(analysis.intruders(W, dW, k=5).cosines) == 5
        assert analysis.random_like(dW, 0).shape == W.shape


def test_difference_is_that_of_full_fine_tuning():
    before, after = gpt2(), gpt2()
    train(after, steps=2)
    found = analysis.difference(before, after)
    old, new = before.state_dict(), after.state_dict()
    assert set(found) == {name for name, W in old.items() if W.ndim == 2}
    assert all(np.array_equal(dW, new[at] - old[at]) and np.any(dW) for at, dW in found.items())
    states = analysis.difference(old, new)
    assert all(np.array_equal(found[at], states[at]) for at in found)
    full = gpt2()
    methods.apply(full, "full")
    train(full, steps=2)
    assert all(np.allclose(dW, found[at], atol=1e-9) for at, dW in analysis.updates(full).items())


# errors


def bad(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


X = normal(0, 4, 5)
FACTORS = (normal(1, 4, 2), normal(2, 2, 5))
REFUSED = [
    (lambda: analysis.spectrum("x"), TypeError, r"dW must be a matrix, or its factors .* 'x'"),
    (lambda: analysis.spectrum(None), TypeError, "not None"),
    (lambda: analysis.spectrum([[1, 2], [3]]), TypeError, "not the list"),
    (lambda: analysis.spectrum(X * 1j), TypeError, "of real numbers, not the ndarray"),
    (lambda: analysis.spectrum(X > 0), TypeError, "of real numbers"),
    (lambda: analysis.spectrum((X,)), TypeError, "not a tuple of 1"),
    (lambda: analysis.spectrum((1, 2, X, X)), TypeError, "not a tuple of 4"),
    (lambda: analysis.spectrum(gpt2()), TypeError, r"a GPT2: analysis.updates\(model\)"),
    (lambda: analysis.spectrum((1.0, "b", X)), TypeError, "B of dW must be a matrix, of real"),
    (lambda: analysis.spectrum(("a", X, X)), ValueError, "scale of dW must be a finite number"),
    (lambda: analysis.spectrum((X, X)), ValueError, r"B is \(4, 5\), A is \(4, 5\): B has 5 col"),
    (lambda: analysis.spectrum(X[0]), ValueError, r"dW has shape \(5,\): give a matrix"),
    (lambda: analysis.spectrum(X[:0]), ValueError, r"shape \(0, 5\)"),
    (lambda: analysis.spectrum(X / [1, 1, 1, 1, np.inf] * np.nan), ValueError, "not finite"),
    (lambda: analysis.spectrum((1e300, FACTORS[0] * 1e200, FACTORS[1])), ValueError, "too large"),
    (lambda: analysis.rank_for(X, 1.5), ValueError, r"energy must be in \(0, 1\], not 1.5"),
    (lambda: analysis.rank_for(X, 0), ValueError, "energy must be in"),
    (lambda: analysis.random_like(X, 0, keep="rank"), ValueError, "one of spectrum, norm"),
    (lambda: analysis.subspace_similarity(X, X, 0, 1), ValueError, "i must be an integer from 1"),
    (lambda: analysis.subspace_similarity(X, X, 1, 5), ValueError, "j must .* from 1 to 4, not 5"),
    (lambda: analysis.subspace_similarity(FACTORS, X, 3, 1), ValueError, "i .* from 1 to 2, not 3"),
    (lambda: analysis.subspace_similarity(FACTORS[0] @ FACTORS[1], X, 3, 1), ValueError, "1 to 2"),
    (lambda: analysis.subspace_similarity(X, X.T, 1, 1), ValueError, "A1 has 5 columns, A2 has 4"),
    (lambda: analysis.subspace_similarity(X, 0 * X, 1, 1), ValueError, "A2 is 0"),
    (lambda: analysis.subspace_grid(X, X, 5), ValueError, "n must be an integer from 1 to 4"),
    (lambda: analysis.subspace_grid(X, X, 2, 2.0), ValueError, "m must be an integer"),
    (lambda: analysis.random_similarity(4, 5, 1), ValueError, "i must be .* from 1 to 4, not 5"),
    (lambda: analysis.random_similarity(0, 1, 1), ValueError, "d must be"),
    (lambda: analysis.amplification(X, X.T, 1), ValueError, r"W is \(4, 5\), dW is \(5, 4\)"),
    (lambda: analysis.amplification(X, FACTORS, 3), ValueError, "r .* from 1 to 2, not 3"),
    (lambda: analysis.amplification(0 * X, X, 1), ValueError, "W is 0"),
    (lambda: analysis.amplification(FACTORS, X, 1), TypeError, "W must be a matrix, of real num"),
    (lambda: analysis.intruders(X, X, 5), ValueError, "k .* from 1 to 4, not 5"),
    (lambda: analysis.intruders(X, X, 2, eps=0), ValueError, "eps must be in"),
    (lambda: analysis.intruders(X, X.T, 2), ValueError, "give an update of this W"),
    (lambda: analysis.updates(gpt2()), ValueError, "attach one first"),
    (lambda: analysis.updates(adapted()[0], "x"), KeyError, "no adapter is called 'x'"),
    (lambda: analysis.difference(gpt2(), adapted()[0]), KeyError, r"use updates\(model\)"),
    (lambda: analysis.difference(gpt2(), 3), TypeError, "after must be a model or its state_dict"),
    (lambda: analysis.difference({"a": X}, {"a": X.T}), ValueError, r"a is \(4, 5\) before, \(5"),
    (lambda: analysis.amplification(X, X, rank=1), TypeError, "rank is called r here"),
]


@host
@pytest.mark.parametrize(("call", "kind", "words"), REFUSED)
def test_what_cannot_be_is_refused_with_words(call, kind, words):
    bad(call, kind, words)


@host
def test_a_method_without_a_matrix_has_no_update():
    model = gpt2()
    methods.apply(model, "bitfit", "biases")
    bad(lambda: analysis.updates(model), ValueError, r"in \['biases'\]: activate, or name")
