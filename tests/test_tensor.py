"""The engine: the tape, what flows along it, and what stays alive (minilora.tensor)."""

import gc
import math
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import assert_near, dtypes, leaves, normal, roundings, same_bytes, seeds

import minilora as ml
from minilora import Tensor, ops
from minilora.tensor import OPS, Early, Node, op, recording, unbroadcast

numbers = st.integers(-4, 4).map(float)


@pytest.fixture(autouse=True)
def own_ops_are_forgotten():
    """An op that a test defines is not an op of minilora."""
    before = dict(OPS)
    yield
    OPS.clear()
    OPS.update(before)


def grad(t: Tensor) -> np.ndarray:
    return ml.asnumpy(t.grad)


# Sums over all paths


@given(st.data(), seeds)
def test_any_graph_of_sums_and_products_passes_gradcheck(data, seed):
    """Random reuse: diamonds, an input used twice, sums of what was passed by reference."""
    count = data.draw(st.integers(1, 3))
    steps = data.draw(st.lists(st.tuples(st.sampled_from("+-*nr"), *[st.integers(0, 99)] * 2)))

    def f(*inputs):
        made = list(inputs)
        for kind, i, j in steps[:8]:
            x, y = made[i % len(made)], made[j % len(made)]
            match kind:
                case "+":
                    made.append(x + y)
                case "-":
                    made.append(x - y)
                case "*":
                    made.append(x * y * 0.5)
                case "n":
                    made.append(-x)
                case "r":
                    made.append(ops.transpose(x.reshape(2, 1)).reshape(2))
        return sum(made, 0.0)

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
    # of 0-d arrays, NumPy makes scalars, which optimizers could not write into
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


def test_a_chain_of_100_000_nodes_runs_and_is_freed(backend):
    x = Tensor([1.0], requires_grad=True)
    length = 100_000 if backend.name == "numpy" else 20_000  # the engine is the same
    y = x
    for _ in range(length):
        y = y + 1.0
    y.sum().backward()
    assert grad(x) == 1
    y = x
    for _ in range(length):
        y = y + 1.0
    del y  # never run backward: freeing it must not recurse either


def test_a_ladder_with_2_to_the_60_paths_is_walked_once():
    x = Tensor([1.0], requires_grad=True)
    y = x
    for _ in range(60):
        y = (y + y) * 0.5
    y.sum().backward()
    assert grad(x) == 1


@pytest.mark.parametrize("order", ["o", "oo", "ob", "oob", "boo", "obob", "bboo"])
def test_no_gradient_is_copied_where_one_of_the_arrays_that_arrived_can_hold_the_sum(order):
    """o: a rule makes an array of its own, b: it passes on what it was given."""
    made = []

    @op
    def own(x):
        def dx(g):
            made.append(g * 1.0)
            return made[-1]

        return x * 1.0, (dx,)

    @op
    def lent(x):
        def dx(g):
            return g

        return x * 1.0, (dx,)

    (x,) = leaves(np.ones(2))
    ops.concat(*({"o": own, "b": lent}[kind](x) for kind in order)).sum().backward()
    assert any(x.grad is array for array in made) and grad(x).tolist() == [len(order)] * 2


# Broadcasting


@given(seeds, st.data())
def test_unbroadcast_is_the_adjoint_of_broadcast(seed, data):
    two = hnp.mutually_broadcastable_shapes(num_shapes=1, base_shape=(2, 1, 3), max_dims=4)
    drawn = data.draw(two)
    (shape,), whole = drawn.input_shapes, drawn.result_shape
    x, g = normal(seed, *shape), normal(seed + 1, *whole)
    back = ml.asnumpy(unbroadcast(ml.backend.asarray(g), shape))
    assert back.shape == shape
    left, right = (g * np.broadcast_to(x, whole)).sum(), (back * x).sum()
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


# What backward refuses


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
    for made in (Tensor([1.0]) * 2.0, (Tensor([1.0], requires_grad=True) * 2.0).detach()):
        with pytest.raises(RuntimeError, match="nothing that this was computed from requires"):
            made.backward()


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
    kept = grad(x).copy(), grad(y).copy()
    weights = [ml.backend.asarray(np.array([1.0] * n)) for n in (3, 2)]
    weights[at][1] = bad
    loss = (x * weights[0]).sum() + (y * weights[1]).sum()
    if not backend.numbers_are_free:  # it would have to wait for the device: the loss tells later
        loss.backward()
        assert math.isnan(loss.item()) and loss.dtype == "float64" and loss.shape == ()
        return
    shape = r"\(3,\)" if at == 0 else r"\(2,\)"
    with pytest.raises(FloatingPointError, match=f"tensor of shape {shape} is not finite"):
        loss.backward()
    assert same_bytes(grad(x), kept[0]) and same_bytes(grad(y), kept[1])


def test_a_finite_half_precision_gradient_with_a_large_sum_is_finite():
    # the sum would overflow in float16
    x = Tensor(np.tile(np.array([1, -1], "float16"), 1000), requires_grad=True)
    (x * 100.0).sum().backward()
    assert grad(x).tolist() == [100] * 2000


@pytest.mark.parametrize("data", [[1, 2], [True], np.zeros(2, "int64")])
def test_only_floating_point_tensors_can_be_trained(data):
    with pytest.raises(TypeError, match="only floating-point tensors have gradients, not"):
        Tensor(data, requires_grad=True)


# Frozen inputs, and what stays alive


@op
def watched(x, y, *, calls):
    """x + y with a note of each rule that ran."""

    def dx(g):
        calls.append("x")
        return g

    def dy(g):
        calls.append("y")
        return g

    return x + y, (dx, dy)


del OPS["watched"]


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
    assert max(alive) == 1  # the one that the rule is given


def test_a_training_step_leaves_no_reference_cycle():
    table, gain, shift, W, A, B = leaves(
        *(normal(i, *s) for i, s in enumerate([(5, 4), (4,), (4,), (4, 4), (2, 4), (4, 2)]))
    )
    ids = np.array([[0, 1, 4], [3, 3, 2]])

    def step():
        h = ops.layer_norm(ops.embedding(table, ids), gain, shift)
        h = ops.attention(h, ops.linear(h, W), ops.gelu(h), heads=2)
        h = ops.lora_linear(h, W, None, A, B, scale=2.0) + ops.gelu(h, form="erf")
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


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
def test_what_a_rule_prepares_is_prepared_only_if_the_tape_keeps_the_rule(trained, recorded):
    prepared = []

    @op
    def early(x):
        def prepare():
            prepared.append(True)
            return 3.0

        def dx(g, kept):
            return g * kept

        return x * 3.0, (Early(prepare, dx),)

    x = Tensor([1.0], requires_grad=trained)
    if recorded:
        y = early(x)
    else:
        with ml.no_grad():
            y = early(x)
    assert prepared == [True] * (trained and recorded)
    if trained and recorded:
        y.backward()
        assert grad(x) == 3 and prepared == [True]


def test_what_two_rules_share_is_computed_once():
    calls = []
    shared = ml.tensor.once(lambda g: calls.append(g) or g)
    assert [shared(1), shared(2)] == [1, 1] and calls == [1]


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


def test_a_tensor_of_a_tensor_is_a_leaf_on_the_same_array():
    y = Tensor([1.0], requires_grad=True) * 2.0
    z = Tensor(y, requires_grad=True)
    (z * 3.0).backward()
    assert z.data is y.data and grad(z) == 3


# Operators


@given(numbers, numbers.filter(bool), st.sampled_from("+-*/"), dtypes)
def test_operators_take_numbers_on_either_side(a, b, sign, dtype):
    f = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y,
         "/": lambda x, y: x / y}[sign]  # fmt: skip
    x, y = (Tensor(np.array([v], dtype)) for v in (a, b))
    wanted = np.array([f(np.dtype(dtype).type(a), np.dtype(dtype).type(b))], dtype)
    for made in (f(x, y), f(x, b), f(a, y)):
        assert isinstance(made, Tensor) and same_bytes(ml.asnumpy(made), wanted)


@pytest.mark.parametrize("sign", "+-*/")
@pytest.mark.parametrize("left", [True, False])
def test_operators_take_arrays_on_either_side(sign, left):
    f = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y,
         "/": lambda x, y: x / y}[sign]  # fmt: skip
    a, b = normal(0, 2, 3), normal(1, 2, 3)
    pair = (ml.backend.asarray(a), Tensor(b)) if left else (Tensor(a), ml.backend.asarray(b))
    made = f(*pair)
    assert isinstance(made, Tensor) and same_bytes(ml.asnumpy(made), f(a, b))


def test_a_matrix_product_takes_an_array_on_either_side():
    a, b = normal(0, 2, 3), normal(1, 3, 2)
    for made in (Tensor(a) @ ml.backend.asarray(b), ml.backend.asarray(a) @ Tensor(b)):
        assert isinstance(made, Tensor)
        assert_near(ml.asnumpy(made), a @ b, roundings(4, np.abs(a) @ np.abs(b), "float64"))


def test_methods_are_the_ops():
    x = normal(0, 2, 3)
    t = Tensor(x)
    assert same_bytes(ml.asnumpy(-t), -x) and same_bytes(ml.asnumpy(t.T), x.T.copy())
    assert t.sum().shape == () and t.mean(axis=0).shape == (3,) and t.sum(axis=(0, 1)).shape == ()
    assert t.reshape(3, 2).shape == (3, 2) and t[1, :2].shape == (2,) and len(t) == 2
    assert Tensor([[3.5]]).item() == 3.5 and isinstance(Tensor(2).item(), float)


# Error messages and repr


def test_an_error_names_the_op_both_shapes_and_the_remedy():
    x, W = Tensor(np.zeros((32, 64))), Tensor(np.zeros((10, 48)))
    told = r"^linear: x is \(32, 64\), W is \(10, 48\): x has 64 features, W takes 48"
    with pytest.raises(ValueError, match=told):
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


def test_an_error_names_each_input_by_its_own_name():
    x, W, A = (Tensor(np.zeros(s)) for s in [(2, 3), (3, 4), (5, 4)])
    with pytest.raises(ValueError, match=r"A is \(5, 4\)"):
        ops.lora_linear(x, W, None, A, A, scale=1.0)
    with pytest.raises(ValueError) as told:
        ops.concat(x, W)
    assert "(2, 3)" in str(told.value) and "axis is" not in str(told.value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Tensor([1.0, 2.5]), "Tensor(f64 (2,), [1.0, 2.5])"),
        (lambda: Tensor(np.float32(2)), "Tensor(f32 (), 2.0)"),
        (lambda: Tensor([[1, 2]]), "Tensor(i64 (1, 2), [[1, 2]])"),
        (lambda: Tensor([1.0], requires_grad=True), "Tensor(f64 (1,), [1.0], grad)"),
        (lambda: Tensor([1.0], requires_grad=True) * 2, "Tensor(f64 (1,), [2.0], from mul, grad)"),
        (
            lambda: Tensor(np.arange(9.0).reshape(3, 3)),
            "Tensor(f64 (3, 3), mean 4 sd 2.58, min 0 max 8)",
        ),
        (lambda: Tensor(np.zeros((4, 100), "int32")), "Tensor(i32 (4, 100))"),
    ],
)
def test_repr_tells_dtype_shape_and_what_it_is(make, told):
    assert repr(make()) == told


@given(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6), dtypes)
def test_repr_is_one_line(shape, dtype):
    assert "\n" not in repr(Tensor(np.ones(shape, dtype)))


def test_a_node_is_younger_than_what_it_flows_to():
    (x,) = leaves(np.ones(2))
    y = x * 2.0
    z = y + x
    assert isinstance(z._node, Node) and z._node.serial > y._node.serial
    assert [target for target, _ in z._node.edges] == [y._node, x]
