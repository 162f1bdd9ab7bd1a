"""Where a Tensor meets Python and NumPy: a number, an array, an op, or an error with a remedy."""

import copy
import math
import operator
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal

import minilora as ml
from minilora import Tensor, nn, ops
from minilora.ops import OPS

RELATIONS = ["eq", "ne", "lt", "le", "gt", "ge"]
floats = st.floats(-1e3, 1e3, width=16)
SCALARS = [np.float64, np.float32, np.float16, np.int64, np.int8, np.uint8, np.bool_, np.longdouble]


def trained(x, dtype="float32"):
    return Tensor(np.asarray(x, dtype), requires_grad=True)


@given(floats)
def test_one_number_is_a_number(x):
    for t in (trained(x), trained([[x]]), trained([x]) * 1.0):
        assert float(t) == t.item() == x and int(t) == int(x) and bool(t) == bool(x)
        assert f"{t:.3f}" == f"{x:.3f}" and math.floor(float(t)) == math.floor(x)
    assert np.mean([trained(x), trained(x)]) == np.float32(x)
    assert f"{trained(x)}" == str(trained(x))


@pytest.mark.parametrize("f", [float, int, bool, "{:.2f}".format, Tensor.item])
@pytest.mark.parametrize("shape", [(2,), (0,), (2, 1)])
def test_more_numbers_are_no_number(f, shape):
    with pytest.raises(ValueError, match=r"is not one number: use .*\.mean\(\).*\.numpy\(\)"):
        f(Tensor(np.ones(shape)))


@pytest.mark.parametrize("relation", RELATIONS)
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=4), st.integers(0, 9))
def test_comparisons_are_those_of_arrays(relation, values, seed):
    compare, x = getattr(operator, relation), np.array(values, "float32")
    y = np.random.default_rng(seed).integers(-2, 3, len(x)).astype("float32")
    t = trained(x)
    for other in (Tensor(y), ml.backend.asarray(y)):
        np.testing.assert_array_equal(ml.asnumpy(compare(t, other)), compare(x, y))
    np.testing.assert_array_equal(ml.asnumpy(compare(t, 1)), compare(x, 1))
    np.testing.assert_array_equal(ml.asnumpy(compare(1, t)), compare(1, x))
    np.testing.assert_array_equal(ml.asnumpy(compare(t, np.float64(0.5))), compare(x, 0.5))


def test_what_is_no_number_is_not_equal_and_sets_know_tensors_by_identity():
    t, same = trained([1.0, 2.0]), trained([1.0, 2.0])
    assert (t == None) is False and (t != None) is True and (t == "t") is False  # noqa: E711
    assert len({t, same, t}) == 2 and t in {t} and same not in {t: 0}
    with pytest.raises(TypeError, match="'<' not supported"):
        t < None  # noqa: B015


def test_iteration_gives_the_rows_on_the_tape_and_a_number_has_none():
    t = trained([[1.0, 2.0], [3.0, 4.0]])
    for row in t:
        row.sum().backward()
    np.testing.assert_array_equal(ml.asnumpy(t.grad), np.ones((2, 2)))
    for f in (iter, len, list):
        with pytest.raises(TypeError, match=r"unsized object|0-d"):
            f(trained(1.0))


def test_an_array_of_a_tensor_has_its_numbers_and_is_a_copy():
    t = trained([[1.0, 2.0]])
    for array in (np.asarray(t), np.array(t), t.numpy(), np.asarray(t, "float64")):
        np.testing.assert_array_equal(array, [[1, 2]])
        array[...] = 0
    assert t.numpy().dtype == "float32" and t.numpy().sum() == 3
    assert (t.size, t.ndim, t.shape, len(t)) == (2, 2, (1, 2), 1)
    assert np.asarray([t, t]).shape == (2, 1, 2) and np.asarray([t, t]).dtype == "float32"


@pytest.mark.parametrize("kind", SCALARS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_scalar_of_numpy_widens_nothing(kind, dtype):
    t, s = trained([1.0, 2.0], dtype), kind(1)
    signs = [operator.add, operator.sub, operator.mul, operator.truediv]
    results = [f(*pair) for f in signs for pair in ((t, s), (s, t))]
    results += [t ** np.float64(2), t / np.sqrt(3), np.pi * t]
    results.append(ops.layer_norm(Tensor(np.ones((2, 4), dtype)), *(
        Tensor(np.ones(4, dtype)) for _ in range(2)), eps=np.float64(1e-5)))
    results.append(ops.dropout(t, np.float64(0.5), np.random.default_rng(0)))
    A, B, W = (Tensor(np.ones(s, dtype)) for s in ((1, 2), (3, 1), (3, 2)))
    results.append(ops.lora_linear(Tensor(np.ones((5, 2), dtype)), W, None, A, B,
                                   scale=np.float64(0.5)))
    for result in results:
        assert isinstance(result, Tensor) and result.dtype == dtype, result
    results[0].sum().backward()
    assert t.grad.dtype == dtype


@given(st.floats(-3, 3), st.sampled_from([0, 1, 2, 3, -1, 0.5]))
def test_powers(x, n):
    x = abs(x) + 0.1
    t = trained([x], "float64")
    (t**n).sum().backward()
    assert np.allclose([(t**n).item(), float(t.grad[0])], [x**n, n * x ** (n - 1)])
    assert np.allclose((2.0**t).item(), 2**x)
    with pytest.raises((TypeError, ValueError), match=r"power: exponent is a setting"):
        t**t


def test_methods_and_functions_that_a_reader_tries_first():
    x = np.array([[0.5, -1.0], [2.0, 0.25]], "float32")
    t = trained(x)
    positive = trained(np.abs(x))
    for got, wanted in [
        (t.exp(), np.exp(x)), (positive.log(), np.log(np.abs(x))), (t.relu(), np.maximum(x, 0)),
        (t.tanh(), np.tanh(x)), (ops.sigmoid(t), 1 / (1 + np.exp(-x))), (t.max(), x.max()),
        (t.sum(keepdims=True), x.sum(keepdims=True)),
        (t.mean(1, keepdims=True), x.mean(1, keepdims=True)),
        (ops.max(t, axis=0), x.max(0)), (t.reshape((4,)), x.reshape(4)), (t.reshape(-1), x.ravel()),
    ]:
        assert got.shape == wanted.shape and got.requires_grad and got.dtype == "float32"
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-6)
    assert ops.sigmoid(Tensor([-1e4, 1e4])).numpy().tolist() == [0, 1]
    assert math.isclose(ops.sigmoid(Tensor([-80.0])).item(), math.exp(-80), rel_tol=1e-14)


# NumPy's own functions


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide", "matmul"])
@pytest.mark.parametrize("left", [True, False])
def test_a_ufunc_of_two_that_we_have_is_an_op(numpy_only, name, left):
    x, t = normal(0, 2, 2), trained(normal(1, 2, 2), "float64")
    pair = (t, x) if left else (x, t)
    out = getattr(np, name)(*pair)
    out.sum().backward()
    assert isinstance(out, Tensor) and np.any(t.grad)
    ml.gradcheck(lambda u: getattr(np, name)(*((u, x) if left else (x, u))), t.numpy())


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "negative", "sum", "mean", "max"])
def test_a_function_of_one_that_we_have_is_an_op(numpy_only, name):
    ml.gradcheck(getattr(np, name), np.abs(normal(0, 2, 3)) + 0.1)


def _functions():
    for name in dir(np):
        f = getattr(np, name)
        if isinstance(f, np.ufunc) or type(f).__name__ == "_ArrayFunctionDispatcher":
            yield name


@pytest.mark.parametrize("count", [1, 2])
def test_no_function_of_numpy_loses_a_gradient_in_silence(numpy_only, count):
    """Every function of NumPy's, with one Tensor or two: an op, bools or integers, or an error."""
    refused, kept = [], []
    for name in _functions():
        t = trained(np.eye(2) + 0.25)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = getattr(np, name)(*[t] * count)
        except Exception as error:
            if "t.numpy() for the numbers" in str(error):
                refused.append(name)
            continue
        parts = result if isinstance(result, tuple | list) else [result]
        kept.append(name)
        for part in parts:
            if not isinstance(part, Tensor):
                assert np.asarray(part).dtype.kind in "biuUSO", f"np.{name} gave {part!r}"
    assert len(refused) > 20 and (count == 2 or {"isnan", "argmax", "shape"} <= {*kept})


def test_numpy_may_compute_with_what_needs_no_gradient(numpy_only):
    t = Tensor(np.array([1.0, 4.0]))
    assert np.concatenate([t, t]).tolist() == [1, 4, 1, 4] and np.sign(t).tolist() == [1, 1]
    total = np.zeros(2)
    total += t
    assert total.tolist() == [1, 4] and np.allclose(trained([1.0]), 1)
    with pytest.raises(TypeError, match=r"use minilora\.ops"):
        total += trained([1.0, 2.0])
    assert total.tolist() == [1, 4], "nothing was written"


def test_numpy_asks_the_class_and_cupy_the_object_which_defers_to_the_tensor():
    assert callable(Tensor.__array_ufunc__) and trained([1.0]).__array_ufunc__ is None


def test_copies_and_pickles_of_a_tensor_are_tensors(numpy_only):
    t = trained([1.0, 2.0])
    for other in (copy.copy(t), copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
        assert other is not t and (other == t).all() and other.requires_grad


def test_every_op_is_reached_by_name():
    assert {"sigmoid", "max", "power"} <= OPS.keys() and callable(nn.Parameter([1.0]).relu)
