"""What the tape keeps is its own, or is checked when it is used."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal
from test_ops import CASES, every_op

import minilora as ml
from minilora import Tensor, accounting, lora, nn, ops, optim
from minilora.backend.writes import last_write, wrote
from minilora.ops import OPS

WRITTEN = "was(.|\n)*written to since then: call backward\\(\\) before optimizer.step\\(\\)"


class Model(nn.Module):
    """Two matrices, a gain, a bias."""

    def __init__(self):
        self.W, self.V = (nn.Parameter(normal(i, 3, 3)) for i in (0, 1))
        self.g, self.b = nn.Parameter(normal(2, 3)), nn.Parameter(normal(3, 3))


def by_hand(p):
    p.data -= 0.5


def loaded(model, p):
    state = {name: x + 0.5 * (q is p) for (name, q), x in
             zip(model.named_parameters(), model.state_dict().values())}
    model.load_state_dict(state)


WRITERS = {
    **{kind.__name__: lambda model, p, kind=kind: kind({"p": p}, lr=0.1).step()
       for kind in (optim.SGD, optim.Adam, optim.AdamW)},
    "load_state_dict": loaded,
    "by hand": lambda model, p: by_hand(p),
    "loss scale": lambda model, p: ml.LossScale().step(optim.SGD({"p": p}, lr=0.1)),
}
USES = {  # how a loss may use W, and whether its other gradients need W as it was
    "matrix product": (lambda m, x: m.W @ (m.V @ x), True),
    "of a transpose": (lambda m, x: m.V @ m.W.T, True),
    "of a row": (lambda m, x: m.V * m.W[0], True),
    "reshaped": (lambda m, x: m.V * m.W.reshape(9).reshape(3, 3), True),
    "linear": (lambda m, x: ops.linear(m.V, m.W, m.b), True),
    "in a sum": (lambda m, x: m.V * x + m.W, False),
    "twice": (lambda m, x: m.W * m.W, True),
    "recomputed": (lambda m, x: recomputed(m, x), True),
}


def recomputed(m, x):
    class Block(nn.Module):
        def __init__(self):
            self.W, self.V = m.W, m.V

        def forward(self, y):
            return self.W @ (self.V @ y)

    from minilora.models.recompute import recomputed

    return recomputed(Block(), x * 1.0)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "kernel"])
def test_a_write_between_forward_and_backward_is_refused_or_has_no_effect(writer, use, plain):
    f, refused = USES[use]
    with ml.plain(plain):
        model, x = Model(), Tensor(normal(5, 3, 3))
        f(model, x).sum().backward()
        wanted = {name: ml.asnumpy(p.grad) for name, p in model.named_parameters()
                  if p.grad is not None}
        model = Model()
        model.W.grad = ml.xp.ones_like(model.W.data)  # of a loss before
        loss = f(model, x).sum()
        WRITERS[writer](model, model.W)
        model.requires_grad_()
        if refused:
            with pytest.raises(RuntimeError, match=WRITTEN):
                loss.backward()
            assert all(p.grad is None for p in model.parameters())
            f(model, x).sum().backward()  # the forward pass again
        else:
            loss.backward()
            for name, p in model.named_parameters():
                if p.grad is not None:
                    np.testing.assert_array_equal(ml.asnumpy(p.grad), wanted[name])


def test_a_new_array_is_not_a_write():
    model = Model()
    loss = (model.V @ model.W).sum()
    model.W.data = model.W.data - 1.0  # the tape has the old one
    loss.backward()
    np.testing.assert_allclose(ml.asnumpy(model.V.grad)[0], normal(0, 3, 3).sum(axis=1))


def test_a_write_to_a_view_is_one_to_its_owner_and_to_no_other():
    x, y = ml.xp.zeros((4, 4)), ml.xp.zeros((4, 4))
    before = last_write()
    wrote(x[1:, :2].T)
    assert last_write(x) == last_write(x[2]) == last_write() > before and last_write(y) <= before


@every_op
@given(data=st.data())
def test_arrays_may_be_reused_before_the_backward_pass(name, plain, data):
    """Each input in turn requires a gradient; the others are arrays of the caller's."""
    f, arrays = CASES[name](data.draw)
    if not arrays or name == "dropout":
        return
    which = data.draw(st.integers(0, len(arrays) - 1))

    def gradient(scribble):
        own = [np.array(x) for x in arrays]
        given = [Tensor(x, requires_grad=i == which) if i == which or data.draw(st.booleans())
                 else ml.backend.asarray(x) for i, x in enumerate(own)]
        with ml.plain(plain):
            loss = f(*given).sum()
            for x in (*own, *(g for g in given if not isinstance(g, Tensor))) if scribble else ():
                x[...] = 7.25
            if loss.requires_grad:
                loss.backward()
        return None if given[which].grad is None else ml.asnumpy(given[which].grad)

    np.testing.assert_array_equal(gradient(True), gradient(False))


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "kernel"])
def test_ids_targets_and_masks_may_be_reused_too(plain):
    def gradient(scribble):
        W = Tensor(normal(0, 6, 4), requires_grad=True)
        ids, mask = np.array([[1, 2, 3], [4, 5, 5]]), np.array([[1, 1, 0], [1, 1, 1]], bool)
        targets = np.array([[1, 0, -100], [3, 2, 1]])
        with ml.plain(plain):
            x = ops.embedding(W, ids)
            y = ops.attention(x, x, x, heads=2, mask=mask)
            loss = ops.cross_entropy(y, targets)
            if scribble:
                ids[...], mask[...], targets[...] = 0, 1, 0
            loss.backward()
        return ml.asnumpy(W.grad)

    np.testing.assert_array_equal(gradient(True), gradient(False))


def failed_load(model):
    with pytest.raises(ValueError, match="not finite"):
        model.load_state_dict({**model.state_dict(), "b": np.full(3, np.nan)})


def failed_verb(model):
    with pytest.raises(ValueError, match="no layer matches"):
        lora.attach(model, lora.LoRAConfig(targets=("none",)))


def measured(model):
    model.embed = nn.Embedding(3, 3, rng=0, dtype="float64")
    model.forward = lambda ids: model.embed(ids) @ model.W @ model.V
    accounting.ledger(model, optim.AdamW({"V": model.V}, lr=0.1), 2, 3)


@pytest.mark.parametrize("call", [failed_load, failed_verb, measured])
def test_what_changes_nothing_is_no_write(call):
    """Neither of trained arrays nor of frozen ones: the tape can still be used."""
    model, x = Model(), Tensor(normal(5, 3, 3), requires_grad=True)
    model.W.requires_grad = False
    loss = (model.W @ (model.V @ x)).sum()
    call(model)
    loss.backward()
    np.testing.assert_allclose(
        ml.asnumpy(x.grad), normal(1, 3, 3).T @ normal(0, 3, 3).T @ np.ones((3, 3)))


def test_two_parameters_of_one_array_are_two():
    array = normal(0, 3, 3)
    a, b = nn.Parameter(array), nn.Parameter(array)
    c = nn.Parameter(a)
    for p in (a, b, c):
        p.grad = ml.xp.ones_like(p.data)
    optim.SGD({"a": a}, lr=1.0).step()
    for p in (b, c):
        np.testing.assert_array_equal(ml.asnumpy(p.data), array)
    np.testing.assert_array_equal(array, normal(0, 3, 3))


@pytest.mark.parametrize("place", ["W", "list", "dict"])
@pytest.mark.parametrize("use", ["parameters", "state_dict", "trainable_parameters", "children"])
def test_a_trained_tensor_that_is_no_parameter_is_refused(place, use):
    model, tensor = Model(), Tensor(np.ones(3), requires_grad=True)
    setattr(model, place, {"W": tensor, "list": [1, tensor], "dict": {"k": tensor}}[place])
    name = {"W": "W", "list": "list.1", "dict": "dict.k"}[place]
    with pytest.raises(TypeError, match=rf"Model\.{name} is a Tensor that .* make it an nn\.Param"):
        list(getattr(model, use)())
    tensor.requires_grad = False  # a constant is allowed, and so is an output
    model.out = model.W * 2.0
    assert len(model.parameters()) == 4 - (place == "W")


def test_every_op_is_in_the_walk():
    assert CASES.keys() == OPS.keys()
