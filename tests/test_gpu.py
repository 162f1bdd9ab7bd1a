"""Tests that need a real GPU: `pytest -m gpu`, which also runs every other test on CuPy.

They are skipped without a CUDA device. README.md says whether and where they last ran.
"""

import math

import numpy as np
import pytest
from benchmarks import parity
from strategies import adapted, ids

import minilora as ml
from minilora import accounting

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def backend():
    """CuPy, on its default device."""
    try:
        before = ml.use("cupy")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no GPU: {error}")
    yield ml.current()
    ml.use(before)


@pytest.mark.parametrize("shape", ["tiny", "classroom"])
def test_losses_and_gradients_are_those_of_the_host(shape, monkeypatch):
    monkeypatch.setattr(parity, "suite", lambda: {"passed": True, "summary": ""})
    told = parity.parity([shape])
    assert told["passed"], told


def test_each_device_by_its_index(backend):
    count = backend.module.cuda.runtime.getDeviceCount()
    for index in range(count):
        ml.use(f"cupy:{index}")
        x = ml.xp.ones(3)
        assert x.device.id == index and ml.current().describe().split(",")[0].endswith(str(index))
    with pytest.raises(ValueError, match=f"no CUDA device '{count}': there are {count}"):
        ml.use(f"cupy:{count}")


def test_the_pools_peak_is_what_shapes_predict(backend):
    model, _ = adapted(0, "float32", sizes={"d_model": 64, "n_positions": 512, "vocab_size": 500})
    book = accounting.ledger(model, ml.AdamW(model.trainable_parameters()), 4, 512)
    for row in (book["activations"], book.peak):
        assert abs(row.predicted - row.measured) < 0.1 * row.measured, row


def test_a_file_written_here_is_read_on_the_host_and_back(tmp_path):
    model, _ = adapted(0, "float32")
    there = ml.asnumpy(model(ids()).data)
    path = ml.lora.save(model, tmp_path / "a.npz")
    before = ml.use("numpy")
    try:
        host, _ = adapted(0, "float32")
        ml.lora.detach(host)
        ml.lora.load(host, path)
        here = host(ids()).data
    finally:
        ml.use(before)
    np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5)


def test_half_precision_learns_and_a_step_that_overflows_is_left_out():
    model, _ = adapted(0, "float16")
    optimizer = ml.AdamW(model.trainable_parameters(), lr=0.01)
    x = ids(0, tokens=8)
    scale = ml.LossScale(2.0**30)
    history = ml.fit(
        model, [(x[:, :-1], x[:, 1:])], optimizer, 40, loss_scale=scale, progress=False
    )
    assert history.losses[-1] < history.losses[0]
    assert 1 < float(ml.asnumpy(scale.scale)) < 2.0**30


def test_a_gradient_that_is_not_finite_raises_when_the_losses_are_read():
    model, _ = adapted(0, "float32")
    optimizer = ml.AdamW(model.trainable_parameters(), lr=0.01)
    x = ids(0, tokens=8)

    def loss(model, batch):
        return ml.train.lm_loss(model, batch) * math.inf

    with pytest.raises(FloatingPointError, match="fit: step 0"):
        ml.fit(model, [(x[:, :-1], x[:, 1:])], optimizer, 2, loss=loss, progress=False)
