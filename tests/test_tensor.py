"""The engine: the tape, the gradients along it, the arrays that stay alive (minilora.tensor)."""

import gc
import math
import re
import threading
import weakref

import numpy as np
import pytest
from conftest import THOROUGH
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import (
    adapted,
    assert_near,
    dtypes,
    ids,
    leaves,
    normal,
    roundings,
    same_bytes,
    seeds,
)

import minilora as ml
from minilora import Tensor, ops
from minilora.backend import settings
from minilora.tensor import OPS, Node, op, recording, unbroadcast

numbers = st.integers(-4, 4).map(float)


def grad(t: Tensor) -> np.ndarray:
    return ml.asnumpy(t.grad)


# Sums over all paths


@given(st.data(), seeds)
def test_any_graph_of_sums_and_products_passes_gradcheck(data, seed):
    """Random reuse: diamonds, an input used twice, sums of gradients passed by reference."""
    count = data.draw(st.integers(1, 3))
    steps = data.draw(st.lists(st.tuples(st.sampled_from("+-*nr"), *[st.integers(0, 99)] * 2)))

    def f(*inputs):
        values = list(inputs)
        for kind, i, j in steps[:8]:
            x, y = values[i % len(values)], values[j % len(values)]
            match kind:
                case "+":
                    values.append(x + y)
                case "-":
                    values.append(x - y)
                case "*":
                    values.append(x * y * 0.5)
                case "n":
                    values.append(-x)
                case "r":
                    values.append(ops.transpose(x.reshape(2, 1)).reshape(2))
        return sum(values, 0.0)

    arrays = [normal(seed + i, 2) * 0.7 for i in range(count)]
    assert ml.gradcheck(f, *arrays, tolerance=1e-5) <= 1e-5


@given(st.integers(1, 9), numbers)
def test_an_input_used_k_times_gets_k_gradients(k, value):
    x = Tensor([value], requires_grad=True)
    sum([x] * k, Tensor([0.0])).sum().backward()
    assert grad(x) == k


@given(st.integers(1, 5))
def test_an_input_of_one_op_twice_gets_both_gradients(depth):
    x = Tensor([2.0], requires_grad=True)
    y = x
    for _ in range(depth):
        y = y + y
    (y * y).sum().backward()
    assert grad(x) == 2 * 4**depth * 2


def test_a_gradient_passed_on_by_reference_is_never_added_into():
    x, y = leaves(np.ones(2), np.ones(2))
    a, b = x * 1.0, y * 1.0
    ((a + b) + (a + a) + (x + y)).sum().backward()  # one array reaches a, b, x and y
    assert grad(x).tolist() == [4, 4] and grad(y).tolist() == [2, 2]


@pytest.mark.parametrize("late", [0, 1, 2])
def test_an_owned_array_is_added_into_whatever_the_order(late):
    x = Tensor([3.0], requires_grad=True)
    parts = [x * 5.0, x + 0.0, x * 7.0]
    parts = parts[late:] + parts[:late]
    (parts[0] + parts[1] + parts[2] + x).sum().backward()
    assert grad(x) == 14


def test_two_leaves_never_share_a_gradient():
    x, y = leaves(np.ones(3), np.ones(3))
    (x + y).sum().backward()
    x.grad += 1
    assert grad(y).tolist() == [1, 1, 1]


def test_a_gradient_never_shares_memory_with_an_array_of_the_user():
    x, weight = Tensor(np.ones(3), requires_grad=True), ml.backend.asarray(np.full(3, 2.0))
    (x.reshape(1, 3) * weight).sum().backward()
    x.grad += 1
    assert ml.asnumpy(weight).tolist() == [2] * 3 and ml.asnumpy(x).tolist() == [1] * 3


def test_a_gradient_is_an_array_that_can_be_written_to():
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    x.sum().backward()
    x.grad[0, 0] = 5.0
    assert grad(x).sum() == 10


@pytest.mark.parametrize("f", [lambda x: x * 1.0, lambda x: (x + 1) * 2, lambda x: -x + x * x])
def test_the_gradient_of_a_number_is_an_array(f):
    # NumPy's results for 0-d arrays are scalars, which optimizers could not write into
    x = Tensor(3.0, requires_grad=True)
    f(x).backward()
    assert isinstance(x.grad, type(x.data)) and x.grad.shape == ()


@given(dtypes)
def test_gradients_of_two_backward_calls_add_up(dtype):
    x = Tensor(np.array([1, 2], dtype), requires_grad=True)
    (x * x).sum().backward()
    (x * 3.0).sum().backward()
    assert same_bytes(grad(x), np.array([5, 7], dtype))


def test_a_second_call_adds_to_the_gradient_of_the_first_and_to_no_other():
    x, y = leaves(np.ones(2), np.ones(2))
    for _ in range(2):
        (x + y).sum().backward()
    x.grad += 1
    assert grad(x).tolist() == [3, 3] and grad(y).tolist() == [2, 2]


def test_only_leaves_receive_a_gradient():
    x = Tensor([1.0], requires_grad=True)
    y = x * 2.0
    y.sum().backward()
    assert y.grad is None and y.requires_grad and x.grad is not None


def test_a_chain_of_many_nodes_runs_and_is_freed(numpy_only):
    x = Tensor([1.0], requires_grad=True)
    length = 100_000 if THOROUGH else 30_000  # Python's own limit is 1,000
    y = x
    for _ in range(length):
        y = y + 1.0
    y.sum().backward()
    assert grad(x) == 1
    y = x
    for _ in range(length):
        y = y + 1.0
    del y  # backward never runs: freeing it must not recurse either


def test_a_ladder_with_2_to_the_60_paths_is_walked_once():
    x = Tensor([1.0], requires_grad=True)
    y = x
    for _ in range(60):
        y = (y + y) * 0.5
    y.sum().backward()
    assert grad(x) == 1


@pytest.mark.parametrize("order", ["o", "oo", "ob", "oob", "boo", "obob", "bboo"])
def test_no_gradient_is_copied_where_one_of_the_arrays_that_arrived_can_hold_the_sum(order):
    """o: the rule returns a new array; b: it returns the gradient that it received."""
    results = []

    @op
    def own(x):
        def dx(g):
            results.append(g * 1.0)
            return results[-1]

        return x * 1.0, (dx,)

    @op
    def lent(x):
        def dx(g):
            return g

        return x * 1.0, (dx,)

    (x,) = leaves(np.ones(2))
    ops.concat(*({"o": own, "b": lent}[kind](x) for kind in order)).sum().backward()
    assert any(x.grad is array for array in results) and grad(x).tolist() == [len(order)] * 2


# Broadcasting


@given(seeds, st.data())
def test_unbroadcast_is_the_adjoint_of_broadcast(seed, data):
    two = hnp.mutually_broadcastable_shapes(num_shapes=1, base_shape=(2, 1, 3), max_dims=4)
    drawn = data.draw(two)
    (shape,), broadcast = drawn.input_shapes, drawn.result_shape
    x, g = normal(seed, *shape), normal(seed + 1, *broadcast)
    back = ml.asnumpy(unbroadcast(ml.backend.asarray(g), shape))
    assert back.shape == shape
    left, right = (g * np.broadcast_to(x, broadcast)).sum(), (back * x).sum()
    assert abs(left - right) <= roundings(g.size + 1, np.abs(g).sum() * np.abs(x).max(), "f8")


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (2, 1), (1, 3), (2, 3)])
def test_a_stretched_input_gets_the_sum_over_what_it_was_stretched_along(shape):
    x, w = normal(0, *shape), normal(1, 4, 2, 3)
    (t,) = leaves(x)
    (t * ml.backend.asarray(w)).sum().backward()
    padded = (1,) * (3 - len(shape)) + shape
    axes = tuple(i for i in range(3) if padded[i] == 1)
    wanted = w.sum(axis=axes, keepdims=True).reshape(shape)
    assert_near(grad(t), wanted, roundings(w.size, np.abs(w).max() * w.size, "f8"))


def test_an_empty_broadcast_gives_a_gradient_of_zeros():
    (x,) = leaves(np.ones((1, 3)))
    (x + ml.backend.asarray(np.zeros((0, 3)))).sum().backward()
    assert grad(x).tolist() == [[0, 0, 0]]


# Errors of backward


@pytest.mark.parametrize("shape", [(3,), (2, 2), (0,)])
def test_backward_of_what_is_no_number_says_how_to_make_one(shape):
    (x,) = leaves(np.ones(shape))
    with pytest.raises(ValueError, match=r"scalar, got \([\d, ]*\): use .sum\(\) or .mean\(\)"):
        (x * 2.0).backward()


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_backward_takes_any_shape_of_one_number(shape):
    (x,) = leaves(np.full(shape, 3.0))
    (x * x).backward()
    assert grad(x).shape == shape and grad(x).item() == 6


def test_backward_without_a_tape_says_so():
    for loss in (Tensor([1.0]) * 2.0, (Tensor([1.0], requires_grad=True) * 2.0).detach()):
        message = r"depends on nothing that .*requires_grad_.*lora\.set_adapter"
        with pytest.raises(RuntimeError, match=message):
            loss.backward()


def test_a_second_backward_says_why_it_cannot():
    (x,) = leaves(np.ones(2))
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match=r"behind sum was consumed.* run the forward pass again"):
        loss.backward()
    assert grad(x).tolist() == [2, 2]


def test_a_second_backward_through_what_is_shared_says_why_it_cannot():
    x, y = leaves(np.ones(2), np.ones(2))
    shared = ops.exp(x)
    first, second = (shared * 2.0).sum(), (shared * y).sum()
    first.backward()
    before = grad(x).copy()
    with pytest.raises(RuntimeError, match="behind exp was consumed by an earlier"):
        second.backward()
    assert same_bytes(grad(x), before) and y.grad is None


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, 1])
def test_a_gradient_that_is_not_finite_raises_and_leaves_every_gradient_alone(bad, at, backend):
    x, y = leaves(np.ones(3), np.ones(2))
    (x.sum() + y.sum()).backward()
    before = grad(x).copy(), grad(y).copy()
    weights = [ml.backend.asarray(np.array([1.0] * n)) for n in (3, 2)]
    weights[at][1] = bad
    loss = (x * weights[0]).sum() + (y * weights[1]).sum()
    if not backend.on_host:  # it does not wait for the device: the loss becomes nan
        loss.backward()
        assert math.isnan(loss.item()) and loss.dtype == "float64" and loss.shape == ()
        return
    shape = r"\(3,\)" if at == 0 else r"\(2,\)"
    with pytest.raises(FloatingPointError, match=f"tensor of shape {shape} is not finite"):
        loss.backward()
    assert same_bytes(grad(x), before[0]) and same_bytes(grad(y), before[1])


def test_a_finite_half_precision_gradient_with_a_large_sum_is_finite():
    # the sum would overflow in float16
    x = Tensor(np.tile(np.array([1, -1], "float16"), 1000), requires_grad=True)
    (x * 100.0).sum().backward()
    assert grad(x).tolist() == [100] * 2000


@pytest.mark.parametrize("data", [[1, 2], [True], np.zeros(2, "int64")])
def test_only_floating_point_tensors_can_be_trained(data):
    with pytest.raises(TypeError, match="only floating-point tensors have gradients, not"):
        Tensor(data, requires_grad=True)


# Frozen inputs, and the arrays that stay alive


@op
def watched(x, y, *, calls):
    """x + y, with a record of each rule that ran."""

    def dx(g):
        calls.append("x")
        return g

    def dy(g):
        calls.append("y")
        return g

    return x + y, (dx, dy)


@pytest.mark.parametrize("trained", ["", "x", "y", "xy"])
def test_the_rule_of_a_frozen_input_is_never_called(trained):
    calls = []
    x, y = (Tensor([1.0], requires_grad=name in trained) for name in "xy")
    out = watched(x, y, calls=calls)
    assert out.requires_grad == bool(trained)
    if trained:
        out.backward()
    assert sorted(calls) == sorted(trained)
    assert [t.grad is not None for t in (x, y)] == [name in trained for name in "xy"]


@pytest.mark.parametrize("trained", [True, False])
def test_what_only_the_rule_of_a_frozen_input_captured_is_freed(trained):
    x, y = Tensor(np.ones(3), requires_grad=True), Tensor(np.ones(3), requires_grad=trained)
    h = x + 1.0
    array = weakref.ref(h.data)
    out = h * y  # dy alone captures h
    del h
    assert (array() is not None) == trained
    out.sum().backward()
    assert array() is None


def test_memory_falls_as_backward_goes():
    arrays, alive = [], []

    @op
    def link(x):
        captured = x + 0.0
        arrays.append(weakref.ref(captured))

        def dx(g):
            alive.append(sum(a() is not None for a in arrays))
            return g * captured

        return x * 1.0, (dx,)

    (x,) = leaves(np.ones(2))
    y = x
    for _ in range(10):
        y = link(y)
    loss = y.sum()
    loss.backward()
    assert alive == list(range(10, 0, -1))
    assert not any(a() is not None for a in arrays)


def test_gradients_on_their_way_are_freed_as_backward_goes():
    passed, alive = [], []

    @op
    def link(x):
        def dx(g):
            alive.append(sum(a() is not None for a in passed))
            out = g * 1.0
            passed.append(weakref.ref(out))
            return out

        return x * 1.0, (dx,)

    (x,) = leaves(np.ones(2))
    y = x
    for _ in range(10):
        y = link(y)
    y.sum().backward()
    assert max(alive) == 1  # the one that the rule receives


def test_what_a_gradient_was_summed_from_is_freed():
    outputs, alive = [], []

    @op
    def stretched(x):
        def dx(g):
            out = g * 1.0
            outputs.append(weakref.ref(out))
            return out

        return x + ml.xp.zeros((5, 1)), (dx,)

    @op
    def link(x):
        def dx(g):
            alive.extend(a() is not None for a in outputs)
            return g

        return x * 1.0, (dx,)

    (x,) = leaves(np.ones(2))
    stretched(link(x)).sum().backward()
    assert alive == [False] and grad(x).tolist() == [5, 5]


def test_a_training_step_leaves_no_reference_cycle():
    table, gain, shift, W, A, B = leaves(
        *(normal(i, *s) for i, s in enumerate([(5, 4), (4,), (4,), (4, 4), (2, 4), (4, 2)]))
    )
    ids = np.array([[0, 1, 4], [3, 3, 2]])

    def step():
        h = ops.layer_norm(ops.embedding(table, ids), gain, shift)
        h = ops.attention(h, ops.linear(h, W), ops.gelu(h), heads=2)
        h = ops.lora_linear(h, W, None, A, B, scale=2.0) + ops.gelu(h, approximate="none")
        loss = ops.cross_entropy(ops.log_softmax(ops.softmax(h)) @ table.T, ids)
        loss.backward()
        with ml.no_grad():
            ops.attention(h, h, h, heads=2)

    step()
    gc.collect()
    gc.disable()
    try:
        step()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_forward_pass_without_backward_leaves_no_reference_cycle():
    (x,) = leaves(normal(0, 2, 3, 4))
    gc.collect()
    gc.disable()
    try:
        ops.attention(x, x, x, heads=2).sum()
        ops.lora_linear(
            x, *map(Tensor, (normal(1, 4, 4), normal(2, 4))), x[0][:2], x[1].T[:, :2], scale=1.0
        )
        assert gc.collect() == 0
    finally:
        gc.enable()


# Ops that a reader defines


def test_an_op_of_the_readers_own_changes_none_of_the_engines():
    before = dict(OPS)

    @op
    def mul(x, y):
        """Not the engine's: x + y"""

        def dx(g):
            return g * 100

        return x + y, (dx, dx)

    (x,) = leaves(np.full(2, 3.0))
    assert before == OPS and ops.mul is OPS["mul"] is not mul
    assert ml.asnumpy(x * x).tolist() == [9, 9] and ml.asnumpy(mul(x, x)).tolist() == [6, 6]
    (x * 2.0).sum().backward()
    assert grad(x).tolist() == [2, 2]


def test_an_op_may_take_none_numbers_and_arrays_by_name():
    @op
    def affine(x, W, b=None, *, by=1.0):
        def dx(g):
            return by * g * W

        def dW(g):
            return by * g * x

        def db(g):
            return g

        y = by * x * W
        return (y if b is None else y + b), (dx, dW, db)

    x, W, b = leaves(*(normal(i, 3) for i in range(3)))
    wanted = 2 * normal(0, 3) * normal(1, 3) + normal(2, 3)
    for result in (
        affine(x, W, b, by=2.0),
        affine(x, W=W, b=b, by=2.0),
        affine(b=b, W=W, x=x, by=2.0),
        affine(x, W, b=ml.backend.asarray(normal(2, 3)), by=2.0),
    ):
        assert_near(ml.asnumpy(result), wanted, roundings(3, np.abs(wanted) + 9, "float64"))
    assert ml.gradcheck(lambda x, W, b: affine(b=b, W=W, x=x, by=2.0), *map(ml.asnumpy, (x, W, b)))
    affine(x, W=W).sum().backward()
    assert b.grad is None and grad(x).tolist() == ml.asnumpy(W).tolist()


@pytest.mark.parametrize("plain", [True, False])
def test_the_engines_ops_take_arrays_by_name(plain):
    x, W, b, g = normal(0, 4, 3), normal(1, 2, 3), normal(2, 2), normal(3, 4, 2)
    results = []
    with ops.plain(plain):
        for call in (
            lambda x, W, b: ops.linear(x, W, b),
            lambda x, W, b: ops.linear(x, W, b=b),
            lambda x, W, b: ops.linear(b=b, W=W, x=x),
        ):
            tensors = leaves(x, W, b)
            y = call(*tensors)
            (y * ml.backend.asarray(g)).sum().backward()
            results.append([ml.asnumpy(y), *map(grad, tensors)])
    for other in results[1:]:
        assert all(map(same_bytes, results[0], other))


@pytest.mark.parametrize("plain", [True, False])
def test_a_tensor_among_the_settings_is_refused(plain):
    # otherwise it would be used without a gradient, silently
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    for call, name in (
        (lambda: ops.lora_linear(x, x, None, x, x.T, scale=Tensor(2.0)), "lora_linear: scale"),
        (lambda: ops.sum(x, axis=Tensor(0)), "sum: axis"),
        (lambda: watched(x, x, calls=Tensor(0)), "watched: calls"),
    ):
        message = f"^{name} is a setting, not an array: it takes no Tensor"
        with pytest.raises(TypeError, match=message), ops.plain(plain):
            call()


def identity(g):
    return g


@pytest.mark.parametrize(
    ("rules", "given"),
    [
        ((), []),
        ((identity,), [True]),
        ((None, identity), [False, True]),
        ((identity, None), [True, False]),
        ((identity,) * 3, [True] * 3),
        ((identity, identity, None), [True, True, False]),
    ],
    ids=["none", "one", "first missing", "second missing", "three", "superfluous"],
)
def test_an_op_with_rules_too_few_or_too_many_says_so(rules, given):
    @op
    def product(x, y):
        return x * y, rules

    message = rf"^product: return value, \(one rule for each of x, y\); .* {re.escape(str(given))}$"
    with pytest.raises(TypeError, match=message):
        product(*leaves(np.ones(2), np.ones(2)))
    if len(rules) == 2:  # a frozen input needs no rule
        trained = [bool(rule) for rule in rules]
        product(*(Tensor(np.ones(2), requires_grad=flag) for flag in trained)).sum().backward()


@pytest.mark.parametrize("value", [lambda x: x.sum(), lambda x: x * 2, lambda x: [x, ()]])
def test_an_op_that_gives_its_value_alone_says_so(value):
    bare = op(value)
    with pytest.raises(
        TypeError, match=r"^<lambda>: return value, \(one rule for each of x\); the rules .* \[\]$"
    ):
        bare(*leaves(np.ones(2)))


def test_an_op_of_any_number_of_arrays_has_a_rule_for_each():
    @op
    def total(*parts, times):
        return sum(parts) * times, [lambda g: g * times] * (len(parts) - times)

    x, y = leaves(np.ones(2), np.ones(2))
    total(x, y, times=0)
    with pytest.raises(TypeError, match=r"^total: return .* of input 0, input 1\); .* \[True\]$"):
        total(x, y, times=1)


def test_a_rule_that_gives_nothing_is_named():
    @op
    def forgetful(x):
        def dx(g):
            g * 2

        return x * 2, (dx,)

    (x,) = leaves(np.ones(2))
    with pytest.raises(
        TypeError, match=r"^forgetful: a rule for 1 input returned None: is a return missing\?"
    ):
        forgetful(x).sum().backward()
    assert x.grad is None


def test_a_rule_that_gives_a_number_or_several_arrays_is_named():
    for result, message in (
        (1.0, "a rule returned a float, not an array"),
        ((1, 2), "a rule for 1 input returned 2 arrays"),
    ):

        @op
        def loose(x, result=None, *, of=result):
            return x * 1, (lambda g: of, None)

        with pytest.raises(TypeError, match=f"^loose: .*{message}"):
            loose(Tensor(np.ones(2), requires_grad=True)).sum().backward()


@pytest.mark.parametrize("shape", [(3,), (2, 2), (2, 3, 3), (4, 2, 1), ()])
def test_a_gradient_of_a_wrong_shape_is_named(shape):
    @op
    def crooked(x):
        def dx(g):
            return ml.xp.ones(shape)

        return x * 1, (dx,)

    x = Tensor(np.ones((2, 3)), requires_grad=True)
    wrong = re.escape(str(shape))
    message = rf"^crooked: an input is \(2, 3\), and its rule returned a gradient {wrong}"
    message += r": return \(2, 3\), or a shape it broadcasts to$"
    with pytest.raises(ValueError, match=message):
        crooked(x).sum().backward()


def test_an_error_inside_an_op_of_the_readers_own_names_it_and_its_arrays():
    @op
    def fussy(x, W):
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^fussy: x is \(2,\), W is \(3, 1\): no"):
        fussy(Tensor(np.ones(2)), W=Tensor(np.ones((3, 1))))


# ops.replaced


@op
def my_softmax(x, *, axis=-1):
    """The formula, with a record of each call."""
    MET.append("softmax")
    e = ml.xp.exp(x - x.max(axis=axis, keepdims=True))
    y = e / e.sum(axis=axis, keepdims=True)

    def dx(g):
        return y * (g - (g * y).sum(axis=axis, keepdims=True))

    return y, (dx,)


def my_gelu(x, *, approximate="tanh"):
    """A function of the engine's ops, among them the replaced one."""
    MET.append(approximate)
    return ops.gelu(x * 2.0, approximate=approximate) * 0.5


MET = []


@pytest.fixture
def met():
    MET.clear()
    yield MET
    assert ops.softmax(Tensor([1.0])) is not None
    assert not settings.thread_settings.replaced, "all is as it was"


def test_a_replacement_runs_in_the_ops_place_and_so_do_its_rules(met):
    x = normal(0, 2, 3)
    with ops.replaced(softmax=my_softmax, gelu=my_gelu):
        assert ml.gradcheck(lambda t: ops.softmax(t) + ops.gelu(t), x) <= 1e-6
        assert met[:2] == ["softmax", "tanh"]
        met.clear()
        inside = ops.gelu(Tensor(x), approximate="none")
        assert met == ["none"], "inside of itself, an op is the engine's own"
    assert_near(
        ml.asnumpy(inside),
        ml.asnumpy(ops.gelu(Tensor(2 * x), approximate="none")) / 2,
        roundings(2, 9, "float64"),
    )
    met.clear()
    ops.softmax(Tensor(x))
    assert met == []


def test_operators_and_methods_call_the_replacement_too(met):
    def doubled(x, y):
        met.append("mul")
        return x * y * 2.0

    def turned(x, *, axes=None):
        met.append("transpose")
        return ops.transpose(x, axes=axes) * 0.0

    x = Tensor(np.full((1, 2), 3.0))
    with ops.replaced(mul=doubled, transpose=turned):
        assert ml.asnumpy(x * x).tolist() == [[18, 18]] and ml.asnumpy(2.0 * x).tolist() == [
            [12, 12]
        ]
        assert met == ["mul", "mul"]
        assert ml.asnumpy(x.T).tolist() == [[0], [0]]
        assert met[2:] == ["transpose", "mul"], "and one stand-in meets the other"


def test_replaced_nests_and_ends_after_an_exception(met):
    def first(x, *, axis=-1):
        met.append("first")
        return ops.softmax(x, axis=axis)

    def second(x, *, axis=-1):
        met.append("second")
        return ops.softmax(x, axis=axis) + ops.gelu(x)

    x = Tensor([1.0, 2.0])
    with ops.replaced(softmax=first, gelu=my_gelu):
        with ops.replaced(softmax=second):
            ops.softmax(x)
            assert met == ["second", "tanh"], "the outer ones stay, but for the same op"
        met.clear()
        ops.softmax(x)
        assert met == ["first"]
        with pytest.raises(ZeroDivisionError), ops.replaced(softmax=second):
            raise ZeroDivisionError
        met.clear()
        ops.softmax(x)
        assert met == ["first"]

    def failing(x, *, axis=-1):
        raise KeyError("mine")

    with ops.replaced(gelu=my_gelu, softmax=failing):
        met.clear()
        with pytest.raises(KeyError, match="mine"):
            ops.softmax(x)
        ops.gelu(x)
        assert met == ["tanh"], "an error inside leaves the others in place"
        with pytest.raises(KeyError, match="mine"):
            ops.softmax(x)


@pytest.mark.parametrize("name", ["softmx", "Tensor", "dropout_mask", "replaced", "rows", ""])
def test_replaced_refuses_a_name_that_no_op_has(name):
    message = f"^replaced: unknown op '{name}': choose from add, attention, .*transpose"
    with pytest.raises(ValueError, match=message), ops.replaced(**{name: my_softmax}):
        pass
    assert not settings.thread_settings.replaced


@pytest.mark.parametrize("given", [np.ones(2), 1.0, None, (Tensor([1.0]),)])
def test_a_replacement_returns_a_tensor(given):
    message = rf"^softmax: its replacement returned a {type(given).__name__}, .* make it an @op"
    with pytest.raises(TypeError, match=message), ops.replaced(softmax=lambda x: given):
        ops.softmax(Tensor([1.0]))


def test_what_is_replaced_in_one_thread_is_not_in_another(met):
    inside, seen = threading.Event(), []

    def other():
        inside.wait(120)
        ops.softmax(Tensor([1.0]))
        with ops.plain():
            seen.extend([recording(), settings.is_plain(), list(met)])

    thread = threading.Thread(target=other)
    thread.start()
    with ops.replaced(softmax=my_softmax), ml.no_grad():
        inside.set()
        thread.join(120)
        assert seen == [True, True, []] and not settings.is_plain() and not recording()
        ops.softmax(Tensor([1.0]))
    assert met == ["softmax"]


def step(recompute, mine):
    """Return the loss and the gradients of one step; in its forward pass `mine` replaces ops."""
    model, _ = adapted(targets=("q", "v", "up"), dropout=0.2)
    model.recompute = recompute
    with ops.replaced(**mine):
        loss = ops.cross_entropy(model(ids(0)), ids(1))
    loss.backward()  # outside the block: the tape remembers its settings
    return [ml.asnumpy(x) for x in (loss, *(p.grad for p in model.trainable_parameters().values()))]


def by_hand(q, k, v, *, heads, causal=True, mask=None):
    """Attention, one head after the other, by the engine's ops."""
    MET.append("attention")
    width, outputs = q.shape[-1] // heads, []
    for h in range(heads):
        Q, K, V = (x[:, :, h * width : (h + 1) * width] for x in (q, k, v))
        scores = Q @ ops.transpose(K, axes=(0, 2, 1)) * (1 / math.sqrt(width))
        later = np.triu(np.full(scores.shape[1:], -1e9), 1)
        outputs.append(ops.softmax(scores + ml.backend.asarray(later)) @ V)
    return ops.concat(*outputs, axis=2)


def in_two(x, W, b, A, B, mask=None, *, scale):
    """The layer plus its update."""
    MET.append("lora_linear")
    into = x if mask is None else x * mask
    return ops.linear(x, W, b) + ops.linear(ops.linear(into, A), B) * scale


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("mine", "calls"),
    [
        ({"softmax": my_softmax}, {"softmax": 2}),
        ({"attention": by_hand}, {"attention": 2}),
        ({"attention": by_hand, "softmax": my_softmax}, {"attention": 2, "softmax": 4}),
        ({"lora_linear": in_two}, {"lora_linear": 6}),
    ],
    ids=["softmax", "attention", "both", "lora_linear"],
)
def test_a_model_calls_the_replacement(mine, calls, recompute, met):
    """Also deep inside: softmax in attention, attention in a block, a recomputed block."""
    wanted = step(recompute, {})
    assert met == []
    results = step(recompute, mine)
    runs = 2 if recompute else 1
    assert {name: met.count(name) for name in met} == {n: c * runs for n, c in calls.items()}
    for got, want in zip(results, wanted):  # some 10 sums of up to 100 terms, one after the other
        assert_near(got, want, roundings(1e3, np.abs(want).max(), "float64"))


def test_a_formula_without_op_is_refused_in_the_place_of_one():
    def formula(x, *, approximate):
        return x * 2.0, (identity,)

    model, _ = adapted()
    message = r"^gelu: its replacement returned a tuple, .* make it an @op"
    with pytest.raises(TypeError, match=message), ops.replaced(gelu=formula):
        model(ids(0))


# no_grad


def test_no_grad_records_nothing():
    (x,) = leaves(np.ones(2))
    h = x + 1.0
    array = weakref.ref(h.data)
    with ml.no_grad():
        y = h * x
        assert not recording()
    del h
    assert not y.requires_grad and array() is None and recording()


def test_no_grad_nests_and_ends_after_an_exception():
    with ml.no_grad():
        with ml.no_grad():
            pass
        assert not recording()
        with pytest.raises(KeyError), ml.no_grad():
            raise KeyError
        assert not recording()
    assert recording()
    with pytest.raises(KeyError), ml.no_grad():
        raise KeyError
    assert recording()


def test_detach_has_the_same_array_and_no_history():
    y = Tensor([1.0], requires_grad=True) * 2.0
    assert y.detach().data is y.data and not y.detach().requires_grad


def test_a_tensor_of_a_tensor_is_a_leaf_on_a_copy():
    y = Tensor([1.0], requires_grad=True) * 2.0
    z = Tensor(y, requires_grad=True)
    (z * 3.0).backward()
    z.data -= 1.0
    assert (y.item(), z.item(), grad(z)) == (2, 1, 3)


# Operators


@given(numbers, numbers.filter(bool), st.sampled_from("+-*/"), dtypes)
def test_operators_take_numbers_on_either_side(a, b, sign, dtype):
    f = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y,
         "/": lambda x, y: x / y}[sign]
    x, y = (Tensor(np.array([v], dtype)) for v in (a, b))
    wanted = np.array([f(np.dtype(dtype).type(a), np.dtype(dtype).type(b))], dtype)
    for result in (f(x, y), f(x, b), f(a, y)):
        assert isinstance(result, Tensor) and same_bytes(ml.asnumpy(result), wanted)


@pytest.mark.parametrize("sign", "+-*/")
@pytest.mark.parametrize("left", [True, False])
def test_operators_take_arrays_on_either_side(sign, left):
    f = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y,
         "/": lambda x, y: x / y}[sign]
    a, b = normal(0, 2, 3), normal(1, 2, 3)
    pair = (ml.backend.asarray(a), Tensor(b)) if left else (Tensor(a), ml.backend.asarray(b))
    result = f(*pair)
    assert isinstance(result, Tensor) and same_bytes(ml.asnumpy(result), f(a, b))


def test_a_matrix_product_takes_an_array_on_either_side():
    a, b = normal(0, 2, 3), normal(1, 3, 2)
    for result in (Tensor(a) @ ml.backend.asarray(b), ml.backend.asarray(a) @ Tensor(b)):
        assert isinstance(result, Tensor)
        assert_near(ml.asnumpy(result), a @ b, roundings(4, np.abs(a) @ np.abs(b), "float64"))


def test_methods_are_the_ops():
    x = normal(0, 2, 3)
    t = Tensor(x)
    assert same_bytes(ml.asnumpy(-t), -x) and same_bytes(ml.asnumpy(t.T), x.T.copy())
    assert t.sum().shape == () and t.mean(axis=0).shape == (3,) and t.sum(axis=(0, 1)).shape == ()
    assert t.reshape(3, 2).shape == (3, 2) and t[1, :2].shape == (2,) and len(t) == 2
    assert Tensor([[3.5]]).item() == 3.5 and isinstance(Tensor(2).item(), int)


# Error messages and repr


def test_an_error_names_the_op_both_shapes_and_the_remedy():
    x, W = Tensor(np.zeros((32, 64))), Tensor(np.zeros((10, 48)))
    message = r"^linear: x is \(32, 64\), W is \(10, 48\): x has 64 features, W takes 48"
    with pytest.raises(ValueError, match=message):
        ops.linear(x, W)
    with pytest.raises(ValueError, match=r"^add: x is \(32, 64\), y is \(10, 48\): "):
        x + W
    with pytest.raises(ValueError, match=r"^matmul: x is .*, y is .*: needs \(\.\.\., n, k\)"):
        x @ W
    with pytest.raises(IndexError, match=r"^getitem: x is \(32, 64\): "):
        x[99]
    with pytest.raises(ValueError, match=r"^layer_norm: .* must be \(64,\)"):
        ops.layer_norm(x, W, W)
    with pytest.raises(ValueError, match=r"^sum: x is \(32, 64\): "):
        x.sum(axis=5)


def test_an_array_given_by_name_may_follow_one_that_is_left_out():
    @op
    def weighed(x, a=None, b=None):
        """x a b"""
        one, two = 1.0 if a is None else a, 1.0 if b is None else b

        def da(g):
            return g * x * two

        return x * one * two, (lambda g: g * one * two, a is not None and da, lambda g: g * x * one)

    x, b = leaves(np.array([2.0, 3.0]), np.array([5.0, 7.0]))
    y = weighed(x, b=b)
    y.sum().backward()
    assert ml.asnumpy(y).tolist() == [10, 21]
    assert grad(x).tolist() == [5, 7] and grad(b).tolist() == [2, 3]


def test_an_error_names_each_input_by_its_own_name():
    x, W, A = (Tensor(np.zeros(s)) for s in [(2, 3), (3, 4), (5, 4)])
    with pytest.raises(ValueError, match=r"A is \(5, 4\)"):
        ops.lora_linear(x, W, None, A, A, scale=1.0)
    with pytest.raises(ValueError) as raised:
        ops.concat(x, W)
    assert "(2, 3)" in str(raised.value) and "axis is" not in str(raised.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Tensor([1.0, 2.5]), "Tensor(f64 (2,), [1.0, 2.5])"),
        (lambda: Tensor(np.float32(2)), "Tensor(f32 (), 2.0)"),
        (lambda: Tensor([[1, 2]]), "Tensor(i64 (1, 2), [[1, 2]])"),
        (lambda: Tensor([1.0] * 8), f"Tensor(f64 (8,), {[1.0] * 8})"),
        (lambda: Tensor([1.0] * 9), "Tensor(f64 (9,), mean 1 sd 0, min 1 max 1)"),
        (lambda: Tensor([1.0], requires_grad=True), "Tensor(f64 (1,), [1.0], grad)"),
        (lambda: Tensor([1.0], requires_grad=True) * 2, "Tensor(f64 (1,), [2.0], from mul, grad)"),
        (
            lambda: Tensor(np.arange(9.0).reshape(3, 3)),
            "Tensor(f64 (3, 3), mean 4 sd 2.58, min 0 max 8)",
        ),
        (lambda: Tensor(np.zeros((4, 100), "int32")), "Tensor(i32 (4, 100))"),
    ],
)
def test_repr_tells_dtype_shape_and_what_it_is(make, text):
    assert repr(make()) == text


@given(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6), dtypes)
def test_repr_is_one_line(shape, dtype):
    assert "\n" not in repr(Tensor(np.ones(shape, dtype)))


def test_a_node_is_younger_than_what_it_flows_to():
    (x,) = leaves(np.ones(2))
    y = x * 2.0
    z = y + x
    assert isinstance(z._node, Node) and z._node.serial > y._node.serial
    assert [list(targets) for targets, _ in z._node.edges] == [[y._node], [x]]
    ((targets, _),) = ops.linear(z, Tensor(np.ones((1, 2))), x[:1])._node.edges  # a kernel: one
    assert targets[:2] == [z._node, None] and targets[2].name == "getitem"
