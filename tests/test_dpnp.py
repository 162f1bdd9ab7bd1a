"""The same code on dpnp, a device library of somebody else, held against NumPy.

`pytest -m dpnp` runs every other test on it, too. Skipped where dpnp is not installed.
"""

import dpnp_library
import numpy as np
import pytest
from strategies import ids

import minilora as ml
from minilora import lora
from minilora.backend import asked

pytestmark = pytest.mark.dpnp


@pytest.fixture(autouse=True)
def backend():
    """dpnp, on its default device."""
    if dpnp_library.MISSING:
        pytest.skip(dpnp_library.MISSING)
    before = ml.use(dpnp_library.DpnpBackend())
    yield ml.current()
    ml.use(before)


STEPS = 20
CONFIG = ml.GPT2Config(vocab_size=64, n_positions=16, d_model=32, n_layers=2, n_heads=4)


def trained(library, plain, copies):
    """Return (losses, arrays of the adapters, logits after the merge) of 20 steps of AdamW.

    copies: emptied before the first step, and frozen after the last.
    """
    library.plain = plain
    with ml.using(library):
        model = ml.GPT2(CONFIG, rng=0)
        lora.attach(model, ml.LoRAConfig(r=4, alpha=8, targets=("q", "v")), rng=1)
        optimizer = ml.AdamW(model.trainable_parameters(), lr=1e-2)
        batches = np.random.default_rng(2).integers(0, 64, (STEPS, 2, 4, 16))
        copies.clear()
        losses = [ml.train_step(model, [(x, y)], optimizer) for x, y in batches]
        copies[:] = [tuple(copies)]
        adapters = {name: ml.asnumpy(p.data) for name, p in model.named_parameters()
                    if p.requires_grad}
        lora.merge(model)
        logits = ml.asnumpy(model(batches[0, 0]).data)
        return [float(ml.asnumpy(loss)) for loss in losses], adapters, logits


@pytest.fixture
def copies(backend, monkeypatch):
    """A list of the copies between host and device, in all ways that dpnp's arrays have."""
    seen, kind = [], backend.module.ndarray

    def watch(owner, name, note):
        call = getattr(owner, name)

        def watched(x, *args, **settings):
            seen.extend(note(x))
            return call(x, *args, **settings)

        monkeypatch.setattr(owner, name, watched, raising=False)

    for name in ("asarray", "array"):
        watch(backend.module, name, lambda x: [x.shape] if isinstance(x, np.ndarray) else [])
    for name in ("__bool__", "__float__", "__int__", "__index__", "__complex__", "asnumpy", "item",
                 "tobytes", "tolist"):
        watch(kind, name, lambda x, name=name: [name])
    ml.use(backend)  # xp forgets the names that it has looked up
    return seen


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "kernels"])
def test_twenty_steps_of_lora_are_those_of_numpy(backend, copies, plain):
    losses, adapters, logits = trained(ml.backend.Backend(), plain, [])
    theirs = trained(backend, plain, copies)
    far = [max(abs(a - b) for a, b in zip(losses, theirs[0])),
           max(abs(adapters[name] - theirs[1][name]).max() for name in adapters),
           abs(logits - theirs[2]).max()]
    print("largest difference: {:.1e} of losses, {:.1e} of adapters, {:.1e} of logits".format(*far))
    assert losses[-1] != losses[0] and adapters.keys() == theirs[1].keys()
    assert far[0] < 1e-5 and far[1] < 1e-4 and far[2] < 1e-4
    ids, targets = (4, 16), (64,)
    assert copies[0] == (ids, targets) * STEPS, "nothing comes back, and a step waits for nothing"
    assert len(copies) > 1, "reading the losses is seen"


def test_dpnp_has_all_that_is_asked_for_and_says_what_it_is(backend):
    assert asked.missing(backend) == [] and backend.describe().startswith("dpnp ")
    x = ml.xp.ones(3)
    backend.synchronize()
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(x)
    with pytest.raises(TypeError):
        x + np.ones(3)


def test_the_file_of_an_adapter_is_read_on_the_host(backend, tmp_path):
    config = ml.LoRAConfig(r=4, alpha=8, targets=("q", "v"))
    model = ml.GPT2(CONFIG, rng=0)
    lora.attach(model, config, rng=1)
    for p in model.trainable_parameters().values():
        p.data = p.data + 0.1
    there = ml.asnumpy(model(ids()).data)
    path = lora.save(model, tmp_path / "a.npz")
    with ml.using("numpy"):
        host = ml.GPT2(CONFIG, rng=0)
        lora.load(host, path)
        np.testing.assert_allclose(host(ids()).data, there, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("error, own", [
    (ValueError("No gemv implementation is available for ..."), True),
    (ValueError("x is (2, 3), W is (3, 4)"), False),
])
def test_a_fault_of_dpnps_is_told_from_one_of_ours(error, own):
    assert bool(dpnp_library.fault(error)) is own
    try:
        raise ValueError("linear: x is (2, 3)") from error
    except ValueError as outer:
        assert bool(dpnp_library.fault(outer)) is own
