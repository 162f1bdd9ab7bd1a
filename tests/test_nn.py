"""nn: every parameter has one name, state is copied in full or not at all, modes set dropout."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import dtypes, gpt2, ids, normal, seeds, shake, sizes

import minilora as ml
from minilora import nn
from minilora.nn import evaluating

NORM, LINEAR = ("g", "b"), ("W", "b")
BLOCK = [
    *(f"ln1.{x}" for x in NORM),
    *(f"attn.{layer}.{x}" for layer in "qkvo" for x in LINEAR),
    *(f"ln2.{x}" for x in NORM),
    *(f"mlp.{layer}.{x}" for layer in ("up", "down") for x in LINEAR),
]


class Nest(nn.Module):
    """A parameter, nested lists, a tuple, a dict, and one layer that occurs twice."""

    def __init__(self, seed: int = 0, dtype: str = "float64") -> None:
        def layer(d_in: int) -> nn.Linear:
            return nn.Linear(d_in, 2, rng=seed, dtype=dtype)

        self.scale = nn.Parameter(normal(seed, 3, dtype=dtype))
        self.size = 7
        self.layers = [layer(1), [layer(2)], (layer(3),)]
        self.by = {"left": layer(4), "right": {"far": nn.Parameter(normal(seed, 2, dtype=dtype))}}
        self.again = self.layers[0]
        self.drop = nn.Dropout(0.5, rng=0)
        self.nothing = None


LAYERS = ("layers.0", "layers.1.0", "layers.2.0", "by.left")
NEST = ["scale", *(f"{at}.{x}" for at in LAYERS for x in LINEAR), "by.right.far"]


def state(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: ml.asnumpy(p.data).copy() for name, p in model.named_parameters()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and np.array_equal(a[n], b[n]) for n in a
    )


@given(st.integers(1, 4))
def test_the_names_of_a_gpt2_and_their_order(n_layers):
    blocks = [f"blocks.{i}.{name}" for i in range(n_layers) for name in BLOCK]
    expected = ["tok.W", "pos.W", *blocks, "ln_f.g", "ln_f.b"]
    assert [name for name, _ in gpt2(n_layers=n_layers).named_parameters()] == expected


def test_lists_tuples_and_dicts_are_walked_and_shared_parameters_come_once():
    model = Nest()
    names = [name for name, _ in model.named_parameters()]
    assert names == NEST
    assert len({id(p) for p in model.parameters()}) == len(names) == len(model.parameters())
    assert [path for path, _ in model.named_modules()][:3] == ["", "layers.0", "layers.1.0"]


def test_a_shared_parameter_collects_the_gradient_of_both_uses():
    model = Nest()
    x = ml.Tensor(normal(1, 5, 1))
    model.layers[0](x).sum().backward()
    once = ml.asnumpy(model.again.W.grad).copy()
    model.requires_grad_(True)
    (model.layers[0](x).sum() + model.again(x).sum()).backward()
    np.testing.assert_allclose(ml.asnumpy(model.again.W.grad), 2 * once, rtol=1e-14)


def test_a_misspelt_attribute_raises():
    model = gpt2()
    for owner, name in ((model, "block"), (model.blocks[0].attn, "query"), (model.ln_f, "W")):
        with pytest.raises(AttributeError, match=name):
            getattr(owner, name)


def test_a_module_without_a_forward_says_so():
    with pytest.raises(NotImplementedError, match="Nest has no forward"):
        Nest()(1)


def test_a_call_hands_everything_on_to_forward():
    class Echo(nn.Module):
        def forward(self, *args, **kwargs):
            return args, kwargs

    assert Echo()(1, 2, three=3) == ((1, 2), {"three": 3})


@given(seeds, dtypes)
def test_state_dict_round_trips_and_is_a_copy(seed, dtype):
    model, other = Nest(seed, dtype), Nest(seed + 1, dtype)
    copies = model.state_dict()
    before = {name: array.copy() for name, array in copies.items()}
    assert same(copies, state(model)) and all(type(a) is np.ndarray for a in copies.values())
    arrays = [p.data for p in other.parameters()]
    other.load_state_dict(copies)
    assert same(state(other), before)
    assert all(p.data is array for p, array in zip(other.parameters(), arrays)), "in place"
    shake(model.parameters(), seed)
    assert same(copies, before), "the model's arrays are not the state's"
    for array in copies.values():
        array += 1
    assert same(state(other), before), "the state's arrays are not the model's"


@given(seeds)
def test_loading_casts_to_the_dtype_of_the_model(seed):
    model = Nest(seed, "float32")
    model.load_state_dict(Nest(seed + 1, "float64").state_dict())
    expected = {n: a.astype("float32") for n, a in Nest(seed + 1, "float64").state_dict().items()}
    assert same(state(model), expected)


@given(st.sampled_from(NEST), st.sampled_from(["missing", "unexpected", "shape", "broadcast"]))
def test_a_state_that_does_not_fit_raises_and_changes_nothing(name, fault):
    model = Nest(0)
    before, new = state(model), Nest(1).state_dict()
    if fault == "missing":
        del new[name]
    elif fault == "unexpected":
        new[f"{name}x"] = new[name]
    elif fault == "shape":
        new[name] = np.zeros((*new[name].shape, 2))
    else:
        new[name] = new[name][:1] if new[name].shape[0] > 1 else new[name][:, :0]
    kind = KeyError if fault in ("missing", "unexpected") else ValueError
    with pytest.raises(kind, match=f"load_state_dict: .*{name}"):
        model.load_state_dict(new)
    assert same(state(model), before)


def test_not_strict_loads_what_is_common():
    model, new = Nest(0), Nest(1).state_dict()
    before, after = state(model), Nest(1).state_dict()
    del new["scale"]
    new["stranger"] = np.zeros(3)
    model.load_state_dict(new, strict=False)
    assert same(state(model), {**after, "scale": before["scale"]})


def test_into_what_is_locked_nothing_is_loaded():
    model = Nest(0)
    before, model.locked = state(model), "it is merged"
    with pytest.raises(RuntimeError, match="load_state_dict: it is merged"):
        model.load_state_dict(Nest(1).state_dict())
    assert same(state(model), before)


def test_train_and_eval_reach_every_module_and_nothing_else_changes():
    model = gpt2(dropout=0.25)
    before, flags = state(model), [p.requires_grad for p in model.parameters()]
    assert model.eval() is model and not any(m.training for _, m in model.named_modules())
    quiet = ml.asnumpy(model(ids()).data)
    assert np.array_equal(quiet, ml.asnumpy(model(ids()).data))
    assert model.train() is model and all(m.training for _, m in model.named_modules())
    assert not np.array_equal(quiet, ml.asnumpy(model(ids()).data))
    model.train(False)
    assert np.array_equal(quiet, ml.asnumpy(model(ids()).data))
    assert same(state(model), before) and flags == [p.requires_grad for p in model.parameters()]


@given(seeds, st.integers(0, 5))
def test_without_dropout_training_and_evaluation_are_the_same_function(seed, batch_seed):
    model = gpt2(seed)
    train = ml.asnumpy(model.train()(ids(batch_seed)).data)
    assert np.array_equal(train, ml.asnumpy(model.eval()(ids(batch_seed)).data))


def test_evaluating_gives_each_module_its_own_mode_back_even_after_an_error():
    model = gpt2(dropout=0.25)
    model.blocks[0].eval()
    modes = [m.training for _, m in model.named_modules()]
    assert len(set(modes)) == 2
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(m.training for _, m in model.named_modules())
        raise ZeroDivisionError
    assert modes == [m.training for _, m in model.named_modules()]


def test_requires_grad_freezes_all_and_forgets_gradients():
    model = gpt2()
    ml.ops.cross_entropy(model(ids()), ids(1)).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.requires_grad_(False) is model
    assert model.trainable_parameters() == {}
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    model.ln_f.g.requires_grad = True
    assert list(model.trainable_parameters()) == ["ln_f.g"]
    assert model.trainable_parameters()["ln_f.g"] is model.ln_f.g
    assert list(model.requires_grad_().trainable_parameters()) == list(model.state_dict())


@given(sizes, sizes, sizes, st.booleans(), dtypes, seeds)
def test_a_linear_is_x_times_w_transposed_plus_b(rows, d_in, d_out, bias, dtype, seed):
    layer = nn.Linear(d_in, d_out, bias, rng=seed, dtype=dtype)
    shake(layer.parameters(), seed)
    x, weights = normal(seed, 2, rows, d_in, dtype=dtype), layer.state_dict()
    assert list(weights) == ["W", "b"][: 1 + bias] and weights["W"].shape == (d_out, d_in)
    y = layer(ml.Tensor(x))
    exact = x.astype("float64") @ weights["W"].T.astype("float64") + weights.get("b", 0.0)
    assert y.shape == (2, rows, d_out) and str(y.dtype) == dtype
    bound = (d_in + 2) * np.finfo(dtype).eps
    scale = np.abs(x).astype("float64") @ np.abs(weights["W"]).T + np.abs(weights.get("b", 0.0))
    assert np.all(np.abs(ml.asnumpy(y.data) - exact) <= bound * scale)


@given(st.integers(1, 6), sizes, dtypes, seeds)
def test_what_is_stored_narrower_computes_in_the_dtype_of_the_module(n, d, dtype, seed):
    for layer in (
        nn.Embedding(n, d, rng=seed, dtype=dtype),
        nn.Linear(d, n, rng=seed, dtype=dtype),
    ):
        assert layer.dtype == dtype
        half, x = layer.W.data.astype("float16"), ml.Tensor(normal(seed, 2, d, dtype=dtype))
        outs = []
        for W in (half, half.astype(dtype)):
            layer.W = nn.Parameter(W, requires_grad=False)
            table = isinstance(layer, nn.Embedding)
            y = [layer(ids(seed, 3, 4, n)), layer.project(x)] if table else [layer(x)]
            outs.append([ml.asnumpy(out.data) for out in y])
        for narrow, wide in zip(*outs):
            assert narrow.dtype == dtype and np.array_equal(narrow, wide)


@given(st.integers(1, 6), sizes, dtypes, seeds)
def test_an_embedding_looks_rows_up_and_projects_onto_them(n, d, dtype, seed):
    table = nn.Embedding(n, d, rng=seed, dtype=dtype)
    W, at = table.state_dict()["W"], ids(seed, 3, 4, n)
    assert W.shape == (n, d) and W.dtype == dtype
    assert np.array_equal(ml.asnumpy(table(at).data), W[at])
    x = normal(seed, 2, d, dtype=dtype)
    eps = np.finfo(dtype).eps
    scores, size = ml.asnumpy(table.project(ml.Tensor(x)).data), np.abs(x) @ np.abs(W).T
    assert np.all(np.abs(scores - x.astype("float64") @ W.T.astype("float64")) <= d * eps * size)


@given(st.integers(2, 9), seeds)
def test_a_layer_norm_centres_and_scales_each_row(d, seed):
    x = normal(seed, 4, d) * 3 + 2
    norm = nn.LayerNorm(d, eps=1e-3, dtype="float64")
    shake(norm.parameters(), seed)
    weights = norm.state_dict()
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-3) * weights["g"] + weights["b"]
    np.testing.assert_allclose(ml.asnumpy(norm(ml.Tensor(x)).data), expected, rtol=0, atol=1e-12)
    assert nn.LayerNorm(d).eps == 1e-5  # as in PyTorch and GPT-2
    fresh = nn.LayerNorm(d).state_dict()
    assert fresh["g"].dtype == "float32" and np.all(fresh["g"] == 1) and np.all(fresh["b"] == 0)


def test_the_first_weights_have_the_spread_asked_for_and_biases_are_0():
    rows = 200
    for d_in, std in ((50, None), (50, 0.3)):
        weights = nn.Linear(d_in, rows, std=std, rng=0).state_dict()
        expected, n = std or 1 / math.sqrt(d_in), d_in * rows
        # the standard error of a sample's spread is σ / √(2n); allow six of them
        assert abs(weights["W"].std() / expected - 1) < 6 / math.sqrt(2 * n)
        assert abs(weights["W"].mean()) < 6 * expected / math.sqrt(n)
        assert not weights["b"].any()
    assert abs(nn.Embedding(rows, 50, rng=0).state_dict()["W"].std() / 0.02 - 1) < 0.05


@given(st.sampled_from([0.1, 0.5, 0.9]), dtypes, seeds)
def test_dropout_keeps_its_share_rescales_it_and_is_nothing_in_evaluation(rate, dtype, seed):
    layer, n = nn.Dropout(rate, rng=seed), 10_000
    x = ml.Tensor(np.ones((100, 100), dtype))
    y = ml.asnumpy(layer(x).data)
    assert y.dtype == dtype and set(np.unique(y)) <= {0.0, np.dtype(dtype).type(1 / (1 - rate))}
    # Hoeffding: a share of n draws is off by more than this once in 10^9
    assert abs((y != 0).mean() - (1 - rate)) < math.sqrt(math.log(2e9) / (2 * n))
    assert layer.eval()(x) is x


def test_dropout_of_0_is_the_input_and_a_rate_outside_0_to_1_raises():
    x = ml.Tensor(np.ones(3))
    assert nn.Dropout(0.0)(x) is x
    for rate in (-0.1, 1.0, math.nan, "0.1", None):
        with pytest.raises(ValueError, match=rf"^Dropout: rate must be in \[0, 1\), not .*{rate}"):
            nn.Dropout(rate)


def test_a_parameter_trains_floats_only_and_lies_in_c_order():
    p = nn.Parameter(normal(0, 4, 3).T)
    assert p.requires_grad and p.data.flags.c_contiguous and p.shape == (3, 4)
    np.testing.assert_array_equal(ml.asnumpy(p.data), normal(0, 4, 3).T)
    with pytest.raises(TypeError, match="floating"):
        nn.Parameter(np.arange(3))


def test_the_tree_marks_what_trains_and_shows_equal_blocks_once():
    assert "blocks.0-1 " in repr(gpt2(n_layers=2)) and "blocks.0 " in repr(gpt2(n_layers=1))
    model = gpt2(n_layers=3, dropout=0.1)
    model.requires_grad_(False)
    model.blocks[1].ln1.g.requires_grad = True
    lines = repr(model).splitlines()
    assert lines[0] == "GPT2"
    assert any(line.split() == ["tok", "W", ".11x8"] for line in lines)
    assert any(line.split() == ["ln1", "g", "*8", "b", ".8"] for line in lines)
    assert any(line.split() == ["q", "W", ".8x8", "b", ".8"] for line in lines)
    assert any(line.split() == ["drop", "rate", "0.1"] for line in lines)
    assert [line.split()[0] for line in lines if "blocks" in line] == [f"blocks.{i}" for i in "012"]
    model.requires_grad_(True)
    size = sum(p.data.size for p in model.blocks[0].parameters())
    (line,) = [line for line in repr(model).splitlines() if "blocks" in line]
    assert line.split() == ["blocks.0-2", f"{size:,}", "parameters"]
    assert " ." not in repr(model) and "*11x8" in repr(model)
    assert repr(Nest()).splitlines()[1].split() == ["scale", "*3"]


def test_a_module_says_of_itself_what_it_likes():
    class Scaled(nn.Module):
        def __init__(self):
            self.inner, self.by = nn.LayerNorm(2), 3

        def extra_repr(self):
            return f" by {self.by}"

    lines = repr(Scaled()).splitlines()
    assert lines[0] == "Scaled by 3" and "by" not in lines[1]


@given(st.sets(st.sampled_from(NEST)), dtypes)
def test_the_summary_counts_parameters_and_bytes(trained, dtype):
    model = Nest(0, dtype)
    parameters = dict(model.named_parameters())
    for name, p in parameters.items():
        p.requires_grad = name in trained
    total = sum(p.data.size for p in parameters.values())
    on = sum(parameters[name].data.size for name in trained)
    size = np.dtype(dtype).itemsize
    tree, known, nbytes = model.summary().rsplit("\n", 2)
    assert tree == repr(model)
    assert known == (
        f"trainable params: {on:,} || all params: {total:,} || trainable%: {100 * on / total:.4f}"
    )
    assert nbytes == (
        f"bytes: weights {total * size:,} | gradients {on * size:,} | Adam state {2 * on * size:,}"
    )
