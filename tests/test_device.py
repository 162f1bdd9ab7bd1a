"""backend/device.py: what all devices share, and what each must have of its own."""

import numpy as np
import pytest

import minilora as ml
from minilora.backend.device import Device


class Bare(Device):
    name, module = "bare", np


@pytest.mark.parametrize("call", [
    lambda d: d.asnumpy(np.ones(2)), lambda d: d.synchronize(), lambda d: d.reserved(),
    lambda d: d.scatter_add(np.ones((2, 1)), np.array([0]), np.ones((1, 1))),
    lambda d: d.erf(np.ones(2)),
], ids=["asnumpy", "synchronize", "reserved", "scatter_add", "erf"])
def test_no_hook_of_numpys_stands_in_for_one_that_a_device_needs(numpy_only, call):
    with pytest.raises(NotImplementedError, match="bare: its Backend needs asnumpy, synchronize"):
        call(Bare())


def test_a_device_does_all_work_at_once_and_nothing_if_there_is_none(numpy_only):
    cuts = []
    Bare().share(cuts.append, 7, 7, 2)
    Bare().share(cuts.append, 0, 0)
    assert cuts == [slice(0, 7)]


def test_a_number_is_not_looked_at(numpy_only):
    assert Bare().peek(np.array(2.0), 7.0) == 7.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_makes_the_loss_nan(numpy_only, bad):
    good = [np.ones((2, 3), "float32"), np.full(3, -2.0, "float32")]
    loss = np.array(1.5, "float32")
    assert Bare().finite(loss, []) is loss
    assert Bare().finite(loss, good) == 1.5 and Bare().finite(loss, good).dtype == "float32"
    good[1][1] = bad
    with np.errstate(all="ignore"):
        assert np.isnan(Bare().finite(loss, good))


def test_a_device_says_its_name_and_version_and_that_it_has_no_meter(numpy_only):
    assert Bare().describe() == f"bare {np.__version__}"
    with ml.using(Bare()), pytest.raises(RuntimeError, match="bare cannot say which memory"):
        ml.accounting.traced.meter()
