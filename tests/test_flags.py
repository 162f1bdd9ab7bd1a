"""The engine computes with its own arithmetic flags, whatever `np.seterr` says."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal
from test_ops import CASES, every_op

import minilora as ml
from minilora import Tensor, accounting, lora, methods, nn, optim, rounding
from minilora.backend.flags import own_flags, quietly

MODES = ["raise", "ignore", "warn", "print", "call"]
DEFAULT = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


@pytest.fixture(params=MODES)
def flags(request, numpy_only):
    called = []
    before, handler = np.seterr(all=request.param), np.seterrcall(lambda *_: called.append(1))
    yield request.param
    assert set(np.geterr().values()) == {request.param}, "the user's flags are as they were"
    np.seterr(**before)
    np.seterrcall(handler)
    assert not called


def test_an_underflow_in_any_loop_is_no_error(flags):
    x = Tensor(np.array([-1000.0, 1.0], "float32"), requires_grad=True)
    y = (x.exp() * 1e-30 * 1e-30).sum()
    y.backward()
    p = nn.Parameter(np.array([1e-38], "float32"))
    for kind in (optim.SGD, optim.Adam, optim.AdamW):
        p.grad = np.array([1e-38], "float32")
        optim.clip_grad_norm({"p": p}, 1.0)
        kind({"p": p}, lr=1e-30).step()


def test_an_overflow_warns_as_ever(flags):
    with pytest.warns(RuntimeWarning, match="overflow"):
        Tensor([1e30]).exp()
    with pytest.warns(RuntimeWarning, match="divide by zero"):
        Tensor([0.0]).log()


def test_what_a_model_can_do_is_done_under_any_flags(flags, tmp_path):
    """Numbers so small that each product of two underflows."""
    config = ml.GPT2Config(vocab_size=8, n_positions=64, d_model=4, n_layers=1, n_heads=2)
    ids = np.arange(8)[None] % 8
    for dtype in ("float32", "float16"):
        model = ml.GPT2(config, rng=0, dtype=dtype)
        for p in model.parameters():
            with np.errstate(all="ignore"):  # this multiplication is the test's
                p.data[...] *= p.data.dtype.type(1e-3)
        lora.attach(model, ml.LoRAConfig(r=2, targets=("q", "v"), dropout=0.1), rng=0)
        optimizer = optim.AdamW(model.trainable_parameters(), lr=1e-6)
        ml.fit(model, [(ids, ids)], optimizer, steps=2, loss_scale=ml.LossScale())
        ml.evaluate(model, [(ids, ids)])
        ml.generate(model, ids[0, :2], 2, rng=0)
        ml.generate(model, ids[0, :2], 2, temperature=1e-3, rng=0)
        lora.verify(model, ids)
        rounding.compare(model, ids)
        accounting.ledger(model, optimizer, 1, 4)
        lora.save(model, tmp_path / "a.npz")
        with lora.merged(model):
            model(ids)
        lora.load(model, tmp_path / "a.npz", name="again")
        lora.detach(model, "default")
        lora.merge(model)
        ml.save_model(model, tmp_path / "m.npz")
        ml.load_model(tmp_path / "m.npz")
    for name in methods.METHODS:
        model = ml.GPT2(config, rng=0)
        methods.apply(model, name)
        ml.train_step(model, [(ids, ids)], optim.SGD(model.trainable_parameters(), lr=1e-3))


@every_op
@given(data=st.data())
def test_every_op_underflows_in_peace(numpy_only, name, plain, data):
    """On its arrays times 1e-30: products of two are 0 in float32."""
    f, arrays = CASES[name](data.draw)
    inputs = [Tensor(np.float32(1e-30) * x.astype("float32"), requires_grad=True) for x in arrays]
    with np.errstate(all="raise"), warnings.catch_warnings(), ml.plain(plain):
        warnings.simplefilter("ignore")  # 1 / x² overflows, and says so
        y = (f(*inputs) * 1e-30).sum()
        if np.isfinite(y.item()) and name not in ("power", "div"):
            y.backward()


def test_nested_and_quiet(numpy_only):
    seen = []

    @own_flags
    def inner():
        seen.append(np.geterr())

    with np.errstate(all="raise"):
        inner()
        quietly(inner)
        assert np.geterr()["under"] == "raise"
    assert seen[0] == DEFAULT and set(seen[1].values()) == {"ignore"}
    assert normal(0, 2).shape == (2,)
