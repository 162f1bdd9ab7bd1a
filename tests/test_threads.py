"""Shared work is the same work: covered once, the same numbers, errors told, BLAS as it was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import adapted, ids, normal

import minilora as ml
from minilora import lora, ops, threads


@pytest.fixture
def shared(monkeypatch):
    """Whatever its size, work is shared by three threads, in small pieces."""
    monkeypatch.setattr(threads, "WORTH", 0)
    monkeypatch.setattr(ml.backend.Backend, "piece", 64)
    with threads.working(3):
        yield


@given(st.integers(0, 40), st.integers(0, 7), st.integers(1, 5))
def test_every_row_is_done_once(n, piece, count):
    done = np.zeros(n, int)
    pool = threads.Pool(count)
    pool.run(lambda at: done.__setitem__(at, done[at] + 1), n, piece or n or 1)
    pool.close()
    assert (done == 1).all()


def test_loss_and_gradients_are_the_same_alone_and_shared(monkeypatch):
    def run():
        model, _ = adapted(targets=("q", "v", "o", "up"))
        loss = ops.cross_entropy(model(ids(0, 3, 9)), ids(1, 3, 9))
        loss.backward()
        return [loss.item(), *(ml.asnumpy(p.grad) for p in model.trainable_parameters().values())]

    alone = run()
    monkeypatch.setattr(threads, "WORTH", 0)
    monkeypatch.setattr(ml.backend.Backend, "piece", 64)
    with threads.working(3):
        together = run()
    for a, b in zip(alone, together):  # the same sums, cut at other rows
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rows", [3, 17])  # fewer and more than there are columns
@pytest.mark.parametrize("masked", [False, True])
def test_adapted_products_are_the_same_alone_and_shared(rows, masked, monkeypatch):
    arrays = [normal(0, rows, 9), normal(1, 8, 9), normal(2, 8), normal(3, 2, 9), normal(4, 8, 2)]
    mask = ml.backend.asarray(2.0 * (normal(5, rows, 9) > 0)) if masked else None

    def run():
        tensors = [ml.Tensor(a, requires_grad=True) for a in arrays]
        y = ops.lora_linear(*tensors, mask, scale=1.5) + ops.linear(*tensors[:3])
        (y * y).sum().backward()
        return [ml.asnumpy(y.data), *(ml.asnumpy(t.grad) for t in tensors)]

    alone = run()
    monkeypatch.setattr(threads, "WORTH", 0)
    with threads.working(3):
        together = run()
    for a, b in zip(alone, together):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_training_with_threads_is_deterministic(shared):
    def run():
        model, _ = adapted(dropout=0.2)
        optimizer = ml.AdamW(model.trainable_parameters(), 1e-2)
        return ml.fit(model, [(ids(), ids(1))], optimizer, 5, progress=False).losses

    assert run() == run()


def test_an_error_in_any_thread_is_raised_and_the_pool_goes_on():
    pool = threads.Pool(3)
    for bad in range(3):

        def task(at, bad=bad):
            if at.start == bad:
                raise ValueError(f"row {bad}")

        with pytest.raises(ValueError, match=f"row {bad}"):
            pool.run(task, 3, 1)
    pool.run(lambda at: None, 3, 1)
    pool.close()


def test_blas_has_its_threads_back_afterwards_even_after_an_error(backend):
    set_threads, get_threads = threads._blas()
    if set_threads is None:
        pytest.skip("this NumPy's BLAS cannot be told how many threads to use")
    found = get_threads()
    set_threads(2)
    before = get_threads()
    inside = 1 if backend.numbers_are_free else 2  # a device has nothing to share among the cores
    with pytest.raises(RuntimeError, match="stop"), threads.working(2):
        assert get_threads() == inside
        with threads.working(2):
            assert get_threads() == inside
        assert get_threads() == inside
        raise RuntimeError("stop")
    after = get_threads()
    set_threads(found)
    assert after == before == 2


def test_merged_and_unmerged_agree_when_shared(shared):
    model, _ = adapted()
    unmerged = ml.asnumpy(model(ids()).data)
    lora.merge(model)
    np.testing.assert_allclose(ml.asnumpy(model(ids()).data), unmerged, rtol=1e-11, atol=1e-12)
