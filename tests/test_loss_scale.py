"""loss_scale: a power of two changes no bit, and preserves gradients that a half would lose."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import adapted, gpt2, ids, seeds, shake
from strict import LOG

import minilora as ml
from minilora import lora, ops
from minilora.training.fit import lm_loss
from minilora.training.loss_scale import LEAST, MOST, LossScale


def values(model, optimizer) -> dict[str, np.ndarray]:
    return {n: ml.asnumpy(p.data).copy() for n, p in model.trainable_parameters().items()} | {
        n: ml.asnumpy(a).copy() for n, a in optimizer.arrays().items()
    }


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def batches(seed: int = 0):
    x = ids(seed, 3, 9)
    return [(x[:, :-1], x[:, 1:]), (x[:2, :-1], x[:2, 1:])]


def run(dtype="float32", steps=6, loss_scale=None, seed=0, **settings):
    """Train LoRA; return (history, values of model and optimizer)."""
    model, _ = adapted(seed, dtype, targets=("q", "v", "up"))
    optimizer = ml.AdamW(model.trainable_parameters(), lr=0.01)
    history = ml.fit(model, batches(seed), optimizer, steps, loss_scale=loss_scale,
                     progress=settings.pop("progress", False), **settings)
    return history, values(model, optimizer)


@settings(max_examples=10)
@given(seeds, st.sampled_from(["float32", "float64"]), st.integers(-8, 16), st.integers(1, 9))
def test_a_power_of_two_changes_no_bit(seed, dtype, power, patience):
    plain = run(dtype, seed=seed, max_grad_norm=0.5, accumulation_steps=2)
    scaled = run(dtype, seed=seed, max_grad_norm=0.5, accumulation_steps=2,
                 loss_scale=LossScale(2.0**power, patience))
    assert plain[0].losses == scaled[0].losses and same(plain[1], scaled[1])


def half(seed: int = 0):
    """Return a model in half precision with adapters, B ≠ 0."""
    model, _ = adapted(seed, "float16", targets=("q", "v", "up", "tok"))
    return model


def gradients(model, shrink: float, scale: float = 1.0) -> np.ndarray:
    """Return all gradients of `shrink` times the loss, unscaled, in float64."""
    model.requires_grad_(False)
    for name, p in model.named_parameters():
        p.requires_grad = name.endswith((".A", ".B"))
    (x, y), _ = batches()
    loss = ops.cross_entropy(model(x), y) * shrink
    (loss * scale).backward()
    grads = [ml.asnumpy(p.grad) for p in model.trainable_parameters().values()]
    return np.concatenate([g.reshape(-1).astype("float64") for g in grads]) / scale


def test_small_gradients_vanish_only_without_a_scale():
    shrink = 2.0**-18
    model = half()
    exact = gradients(adapted(0, "float64", targets=("q", "v", "up", "tok"))[0], shrink)
    lost, scaled = gradients(model, shrink), gradients(model, shrink, 2.0**17)
    size = np.linalg.norm(exact)
    assert np.linalg.norm(scaled - exact) < 0.01 * size < 0.2 * size < np.linalg.norm(lost - exact)
    few = 0.2 if ml.current().name != "dpnp" else 0  # a library may add up halves in float32
    assert np.mean(scaled == 0) == 0 and np.mean(lost == 0) > few


def test_adapters_of_a_half_are_float32_and_the_base_stays_half():
    model = half()
    assert {str(p.dtype) for p in model.trainable_parameters().values()} == {"float32"}
    frozen = {str(p.dtype) for p in model.parameters() if not p.requires_grad}
    (x, y), _ = batches()
    logits = model(x)
    loss = ops.cross_entropy(logits, y)
    loss.backward()
    assert frozen == {str(logits.dtype)} == {"float16"} and str(loss.dtype) == "float32"
    assert {str(p.grad.dtype) for p in model.trainable_parameters().values()} == {"float32"}


def test_fully_trained_parameters_of_a_half_are_float32():
    model = gpt2(0, "float16")
    config = ml.LoRAConfig(r=2, alpha=3, targets="q", bias="all", trainable=("ln_f", "up", "pos"))
    lora.attach(model, config, rng=0)
    assert {str(p.dtype) for p in model.trainable_parameters().values()} == {"float32"}
    logits = model(batches()[0][0])
    ops.cross_entropy(logits, batches()[0][1]).backward()
    assert str(logits.dtype) == "float16"
    assert all(p.grad is not None for p in model.trainable_parameters().values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.usefixtures("numpy_first")
def test_a_half_learns_and_is_near_float32(recompute):
    histories = []
    for dtype, scale in (("float32", None), ("float16", LossScale())):
        model, _ = adapted(0, dtype, targets=("q", "v", "up"))
        model.recompute = recompute
        optimizer = ml.AdamW(model.trainable_parameters(), lr=0.02)
        histories.append(ml.fit(model, batches(), optimizer, 30, loss_scale=scale, progress=False))
        assert scale is None or 1 < float(ml.asnumpy(scale.scale)) < 2.0**17
    expected, halves = (np.array(history.losses) for history in histories)
    assert expected[-1] < 0.9 * expected[0] and np.abs(halves / expected - 1).max() < 0.02


def test_merging_a_half_adds_in_float64_and_rounds_once():
    model = half()
    layer = model.blocks[0].attn.q
    wanted = (ml.asnumpy(layer.base.W.data).astype("float64") + ml.asnumpy(layer.delta())).astype(
        "float16"
    )
    lora.merge(model)
    assert np.array_equal(ml.asnumpy(model.blocks[0].attn.q.W.data), wanted)


@pytest.mark.parametrize("full", [False, True])
def test_a_step_that_overflows_is_skipped_and_the_scale_halved(full):
    model = gpt2(0, "float16") if full else half()
    shake(model.trainable_parameters().values(), 5)
    optimizer = ml.AdamW(model.trainable_parameters(), lr=0.01)
    scale = LossScale(2.0**30)
    before, seen = values(model, optimizer), []
    assert full == any(name.endswith(".master") for name in before)
    for i in range(30):
        ml.fit(model, batches(), optimizer, 1, loss_scale=scale, progress=False)
        seen.append(float(ml.asnumpy(scale.scale)))
        assert optimizer.t == i + 1
        if seen[-1] == 2.0 ** (29 - i):
            assert same(values(model, optimizer), before), "left out, to the bit"
        else:
            break
    assert 3 < len(seen) < 30 and seen[-1] == seen[-2], "the first scale that fits stays"
    after = values(model, optimizer)
    assert not same(after, before) and all(np.isfinite(a).all() for a in after.values())


def test_one_overflow_in_an_accumulated_step_skips_the_entire_step():
    calls = []

    def loss(model, batch):
        calls.append(batch)
        value = lm_loss(model, batch)
        return value * (math.inf if len(calls) == 4 else 1.0)

    def finite_in_print(model, batch):  # the loss is finite, its gradient is not
        value = loss(model, batch)
        value.data = ml.xp.ones_like(value.data)
        return value

    scale = LossScale(4.0, patience=100)
    plain = run(steps=1, loss=lm_loss, accumulation_steps=3, loss_scale=LossScale(4.0))[1]
    spoilt = run(steps=2, loss=finite_in_print, accumulation_steps=3, loss_scale=scale)[1]
    assert same(plain, spoilt) and float(ml.asnumpy(scale.scale)) == 2.0


@given(st.integers(1, 5), st.integers(1, 12))
def test_it_doubles_after_patience_updates_in_a_row(patience, steps):
    scale = LossScale(8.0, patience)
    run(steps=steps, loss_scale=scale)
    assert scale.state_dict() == {"scale": 8.0 * 2 ** (steps // patience), "good": steps % patience}


def test_only_updates_in_a_row_count():
    model, _ = adapted(0, "float32")
    optimizer, scale = ml.AdamW(model.trainable_parameters()), LossScale(8.0, 3)
    for finite in (True, True, False, True, True):
        for p in optimizer.parameters.values():
            p.grad = ml.xp.zeros(p.shape, dtype="float32")
        scale.finite = ml.xp.full((), finite)
        scale.step(optimizer)
    assert scale.state_dict() == {"scale": 4.0, "good": 2} and LossScale().patience == 1000


def test_a_half_gradient_is_unscaled_in_float32_and_no_scale_is_too_large_for_it():
    p = ml.nn.Parameter(np.ones(3, "float16"))
    p.grad = ml.backend.asarray(np.full(3, 2.0, "float16"))
    scale = LossScale(2.0**25)  # its inverse is 0 in a half
    scale.unscale(ml.SGD([p], 0.1))
    assert str(p.grad.dtype) == "float32" and ml.asnumpy(p.grad)[0] == 2.0**-24


def test_unscaling_is_exact_where_a_half_would_round_up():
    p = ml.nn.Parameter(np.ones(1, "float16"))
    p.grad = ml.backend.asarray(np.full(1, 1.5 * 2.0**-9, "float16"))
    LossScale(2.0**16).unscale(ml.SGD([p], 0.1))
    assert float(ml.asnumpy(p.grad)[0]) == 1.5 * 2.0**-25  # 4e-8; the halves are 0 and 6e-8


def test_it_resumes_from_its_state():
    scale, state = LossScale(8.0, 5), {"scale": 2.0, "good": 3}
    scale.load_state_dict(state)
    assert scale.state_dict() == state


def test_it_does_not_grow_until_it_overflows():
    scale = LossScale(MOST, 1)
    run(steps=3, loss_scale=scale)
    assert scale.state_dict()["scale"] == MOST == 2.0**24
    p = ml.nn.Parameter(np.zeros(1, "float32"))
    optimizer, scale = ml.SGD([p], lr=1.0), LossScale(2.0**126, 1)
    for i in range(4):  # a start above the maximum is allowed, and stays
        optimizer.zero_grad()
        scale.backward((p * 1e-30).sum())
        scale.unscale(optimizer)
        scale.step(optimizer)
        assert ml.asnumpy(p.data)[0] == pytest.approx(-1e-30 * (i + 1))
    assert scale.state_dict()["scale"] == 2.0**126


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    class Stopped(Exception):
        pass

    def stop(line):
        if line.startswith("step 4"):
            raise Stopped

    settings = {"steps": 9, "log_every": 1, "dtype": "float16"}
    expected = run(loss_scale=LossScale(2.0**24, 2), **settings)
    settings["save_every"] = 1
    file = tmp_path / "run.npz"
    with pytest.raises(Stopped):
        run(loss_scale=LossScale(2.0**24, 2), checkpoint=file, progress=stop, **settings)
    again = LossScale(2.0**24, 2)
    resumed = run(loss_scale=again, checkpoint=file, **settings)
    assert expected[0].losses == resumed[0].losses and same(expected[1], resumed[1])
    for other in (None, LossScale(1.0, 2), LossScale(2.0**24, 3)):
        with pytest.raises(ValueError, match=r"checkpoint of another run: .* of loss_scale: "):
            run(loss_scale=other, checkpoint=file, **settings)


def test_a_loss_that_is_not_finite_and_gradients_that_never_are_raise():
    def nan(model, batch):
        return lm_loss(model, batch) * math.nan

    with pytest.raises(FloatingPointError, match="fit: step 0: the loss or a gradient is not"):
        run(loss=nan, loss_scale=LossScale())

    def steep(model, batch):  # the loss is finite, its gradients are not
        value = nan(model, batch)
        value.data = ml.xp.ones_like(value.data)
        return value

    with pytest.raises(FloatingPointError, match="not finite at any loss scale"):
        run(loss=steep, loss_scale=LossScale(LEAST * 8))


@pytest.mark.parametrize("full", [False, True])
def test_a_step_waits_for_nothing_on_a_device(backend, full):
    if backend.name != "strict":
        pytest.skip("copies are counted on the stand-in")
    model = gpt2(0, "float16", dropout=0.1)
    if not full:
        lora.attach(model, ml.LoRAConfig(targets=("q", "v", "up"), dropout=0.1), rng=0)
    optimizer = ml.AdamW(model.trainable_parameters(), lr=0.01)
    scale, ((x, y), _) = LossScale(), batches()
    for _ in range(2):
        optimizer.zero_grad()
        with LOG.watch() as seen, LOG.narrow():
            scale.backward(ops.cross_entropy(model(x), y))
            scale.unscale(optimizer)
            scale.step(optimizer)
        assert seen == ["to device: ndarray as int64 (3, 8)", "to device: ndarray as int64 (24,)"]


def test_a_step_without_a_gradient_raises_unless_it_overflowed(backend):
    model, _ = adapted(0, "float32")
    optimizer, scale = ml.AdamW(model.trainable_parameters()), LossScale(8.0)
    with pytest.raises(RuntimeError, match="AdamW: none of its parameters has a gradient"):
        scale.step(optimizer)
    assert optimizer.t == 0 and scale.state_dict() == {"scale": 8.0, "good": 0}
    if backend.on_host:  # an overflow leaves no gradient on the host; a device makes them nan
        scale.finite = ml.xp.zeros((), dtype=bool)
        scale.step(optimizer)
        assert optimizer.t == 1 and scale.state_dict() == {"scale": 4.0, "good": 0}


@pytest.mark.parametrize(
    "name, bad",
    [*(("scale", bad) for bad in (0.0, -1.0, math.inf, math.nan, 1e39, 1e-50, "8", None)),
     *(("patience", bad) for bad in (0, -1, 1.5, True, None))],
)
def test_bad_settings_raise(name, bad):
    with pytest.raises(
        ValueError, match=rf"^LossScale: {name} must be .*, not .*{re.escape(str(bad))}"
    ):
        LossScale(**{name: bad})


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"scale": 4.0},
        {"good": 3},
        {"scale": 4.0, "good": -1},
        {"scale": math.nan, "good": 3},
        {"scale": 4.0, "good": 1.5},
    ],
)
def test_an_invalid_state_is_refused_completely(state):
    scale = LossScale(8.0)
    with pytest.raises(ValueError, match=r"^LossScale: (scale|good) must be"):
        scale.load_state_dict(state)
    assert scale.state_dict() == {"scale": 8.0, "good": 0}
    scale.load_state_dict({"scale": 4, "good": 3})
    assert scale.state_dict() == {"scale": 4.0, "good": 3}
