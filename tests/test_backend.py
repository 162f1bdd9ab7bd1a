"""The array library in use, and its hooks (minilora.backend)."""

import ctypes
import math
import subprocess
import sys
import threading as python_threads
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_near, dtypes, normal, roundings, same_bytes, seeds, sizes

import minilora as ml
from minilora import Tensor, accounting, lora, optim
from minilora.backend import gpu, host, threads
from minilora.backend.settings import is_plain
from minilora.tensor import has_kernel


class Counting:
    """NumPy under another name; it counts the names that are looked up."""

    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        self.asked.append(name)
        return getattr(np, name)


class Other(ml.backend.Backend):
    name = "other"

    def __init__(self):
        self.module = Counting()


@pytest.fixture
def other(backend):
    """Another backend, in use; the fixture `backend` switches back."""
    counting = Other()
    ml.use(counting)
    yield counting
    ml.use(backend)


def test_use_returns_the_previous_backend_and_switches_back(backend):
    other = Other()
    assert ml.use(other) is backend and ml.current() is other
    assert ml.use(backend) is other and ml.current() is backend


def test_use_takes_a_name(backend):
    previous = ml.use("numpy")
    assert previous is backend and ml.current().name == "numpy" and ml.xp.exp is np.exp
    ml.use(previous)


def test_using_gives_the_backend_back_even_after_an_error(backend):
    with ml.using("numpy") as inside:
        assert ml.current() is inside is not backend and inside.name == "numpy"
    assert ml.current() is backend
    with pytest.raises(ZeroDivisionError), ml.using(Other()):
        raise ZeroDivisionError
    assert ml.current() is backend and ml.xp.exp is backend.module.exp


def test_a_backend_may_be_asked_for_plain(backend, monkeypatch):
    ml.ops.gelu(Tensor([1.0]))  # an op, so that the kernels are loaded
    monkeypatch.setattr(ml.ops.gelu, "kernel", lambda *arrays, **settings: 1 / 0)
    with ml.using("numpy", plain=True):
        assert is_plain()
        ml.ops.gelu(Tensor([1.0]))
    assert not is_plain()
    with pytest.raises(ZeroDivisionError):
        ml.ops.gelu(Tensor([1.0]))
    with pytest.raises(ValueError, match=r"plain=True goes with a backend's name; set \.plain"):
        ml.use(Other(), plain=True)
    assert ml.current() is backend


@given(seeds, st.integers(1, 4))
def test_equal_ids_add_up_in_their_order_whatever_stands_between(seed, n):
    ids = np.random.default_rng(seed).integers(0, n, 300)
    rows, together = normal(seed, 300, 2, dtype="float32"), np.zeros((n, 2), "float32")
    host.scatter_add(together, ids, rows)
    for i in range(n):
        alone = np.zeros((1, 2), "float32")
        host.scatter_add(alone, ids[ids == i] * 0, rows[ids == i])
        assert same_bytes(alone[0], together[i])


def test_peak_memory_is_in_bytes(backend, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5))
    assert host.reserved() == 5 * 1024


def test_work_is_not_cut_unless_it_is_asked_for(backend):
    cuts = []
    backend.share(cuts.append, 5, 5)
    backend.share(cuts.append, 5, 5, 2)
    first, *pieces = cuts
    assert first == slice(0, 5)
    assert [i for at in pieces for i in range(5)[at]] == list(range(5))


def test_what_may_have_a_kernel_runs_without_one():
    assert has_kernel(lambda x, *, y: x - y)(5, y=3) == 2


def test_numbers_are_read(backend):
    x = ml.backend.asarray(np.array(2.5))
    assert backend.read(x, 7.0) == 2.5
    assert backend.peek(x, 7.0) == (2.5 if backend.on_host else 7.0), "a device is not waited for"


def test_an_unknown_backend_lists_those_there_are(backend):
    with pytest.raises(ValueError, match="unknown backend 'torch': choose numpy, cupy"):
        ml.use("torch")
    assert ml.current() is backend


@pytest.mark.parametrize("name", ["numpy:0", "numpy:", "torch:0", "", ":1"])
def test_only_cupy_has_devices(backend, name):
    with pytest.raises(ValueError, match=f"unknown backend '{name}': choose numpy, cupy, cupy:1"):
        ml.use(name)
    assert ml.current() is backend


def test_a_backend_that_cannot_be_entered_leaves_the_one_in_use(backend):
    class Full(Other):
        def enter(self):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        ml.use(Full())
    assert ml.current() is backend and ml.xp.exp is backend.module.exp


@pytest.mark.parametrize("thing", [np, None, 3, {}, ml.backend.Backend], ids=repr)
def test_what_is_no_backend_is_refused(backend, thing):
    with pytest.raises(TypeError, match=r"a library is a name, such as 'numpy'"):
        ml.use(thing)
    assert ml.current() is backend


@given(seeds)
def test_one_owner_for_an_array_and_its_views_and_another_for_a_copy(seed):
    x, library = ml.backend.asarray(normal(seed, 4, 3)), ml.current()
    views = [x[1:], x.T, x.reshape(-1), x[1:].T[:2], x[..., None]]
    assert all(library.owner(view) is library.owner(x) for view in views)
    assert not any(map(library.owns, views))
    new = [x.copy(), x + 1, x[1:] * 2, x.sum(axis=0)]
    assert all(library.owner(y) is not library.owner(x) and library.owns(y) for y in new)
    assert library.owner(x).nbytes >= x.nbytes


def test_memory_that_is_not_an_arrays_is_nobodys_to_write_to(numpy_only):
    x = np.frombuffer(bytearray(8), "float32")
    assert ml.current().owner(x) is x and not ml.current().owns(x)


def test_a_device_goes_to_cupys_backend(monkeypatch, backend):
    asked = []
    create = lambda device="": asked.append(device) or Other()  # noqa: E731
    monkeypatch.setattr(gpu, "LIBRARY", create)
    for name in ("cupy", "cupy:1"):
        ml.use(name)
    ml.use(backend)
    assert asked == ["", "1"]


def test_xp_follows_the_switch_and_looks_up_once(backend, other):
    assert ml.xp.exp is np.exp and ml.xp.exp is np.exp
    assert other.module.asked == ["exp"]
    ml.use(backend)
    assert ml.xp.exp is backend.module.exp
    ml.use(other)
    assert ml.xp.exp is np.exp and other.module.asked == ["exp", "exp"]


def test_ops_run_on_the_backend_in_use(other):
    ml.ops.tanh(Tensor(np.ones(2)))
    assert "tanh" in other.module.asked


def test_xp_has_no_names_of_its_own():
    with pytest.raises(AttributeError, match="no_such_function"):
        ml.xp.no_such_function  # noqa: B018


def test_a_missing_library_says_what_to_install(monkeypatch, backend):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[gpu\]'"):
        ml.use("cupy")
    assert ml.current() is backend


@given(seeds, sizes, dtypes)
def test_arrays_go_to_the_device_and_back(seed, n, dtype):
    x = normal(seed, n, 2, dtype=dtype)
    there = ml.backend.asarray(x)
    assert same_bytes(ml.asnumpy(there), x) and same_bytes(ml.asnumpy(Tensor(there)), x)
    assert ml.backend.asarray(there) is there
    assert ml.asnumpy(ml.backend.asarray([1, 2], dtype)).dtype == dtype


@given(seeds, sizes, st.integers(0, 12), sizes, st.sampled_from(["int64", "int32", "int8"]), dtypes)
def test_scatter_add_equals_add_at(seed, n, m, d, ids, dtype):
    rows, start = normal(seed, m, d, dtype=dtype), normal(seed + 1, n, d, dtype=dtype)
    index = np.random.default_rng(seed).integers(0, n, m).astype(ids)
    target = ml.backend.asarray(start.copy())
    ml.backend.scatter_add(target, ml.backend.asarray(index), ml.backend.asarray(rows))
    wanted, sums = start.copy(), np.abs(start)
    np.add.at(wanted, index, rows)
    np.add.at(sums, index, np.abs(rows))
    assert_near(ml.asnumpy(target), wanted, roundings(m + 1, sums, dtype))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_scatter_add_takes_unsigned_indices(dtype):
    # ordered[0] - 1 would overflow with a warning if the smallest index is 0
    target = ml.backend.asarray(np.zeros((2, 1)))
    index = ml.backend.asarray(np.array([1, 0, 1], dtype))
    ml.backend.scatter_add(target, index, ml.backend.asarray(np.ones((3, 1))))
    assert ml.asnumpy(target).tolist() == [[1], [2]]


def exact_erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x.flat]).reshape(x.shape)


@given(st.lists(st.floats(-1e300, 1e300) | st.floats(-7, 7), min_size=1, max_size=20))
def test_erf_is_that_of_math_to_14_digits(values):
    x = np.array(values)
    assert_near(ml.asnumpy(ml.backend.erf(ml.backend.asarray(x))), exact_erf(x), 1e-14)


def test_erf_is_right_on_a_fine_grid_odd_and_bounded():
    x = np.linspace(-8, 8, 4001)
    y, mirrored = (ml.asnumpy(ml.backend.erf(ml.backend.asarray(v))) for v in (x, -x))
    assert_near(y, exact_erf(x), 1e-14)
    assert np.array_equal(y, -mirrored) and np.abs(y).max() == 1
    ends = ml.asnumpy(ml.backend.erf(ml.backend.asarray(np.array([np.inf, -np.inf, 0.0, np.nan]))))
    assert np.array_equal(ends, [1, -1, 0, np.nan], equal_nan=True)


@given(seeds, st.sampled_from(["float16", "float32"]))
def test_erf_keeps_the_dtype_to_a_few_roundings(seed, dtype):
    x = normal(seed, 50, dtype=dtype) * np.dtype(dtype).type(2)
    y = ml.asnumpy(ml.backend.erf(ml.backend.asarray(x)))
    assert_near(y, exact_erf(x.astype(np.float64)).astype(dtype), roundings(4, 1.0, dtype))


@given(seeds, dtypes)
def test_normal_is_the_same_from_the_same_seed_and_moves_on(seed, dtype):
    def draw(rng):
        return ml.asnumpy(ml.backend.normal(rng, (3, 2), 0.5, dtype))

    rng = ml.backend.generator(seed)
    first, second = draw(rng), draw(rng)
    assert same_bytes(first, draw(ml.backend.generator(seed))) and not same_bytes(first, second)
    assert same_bytes(first, (normal(seed, 3, 2) * 0.5).astype(dtype))


def test_generator_takes_none_a_seed_or_a_generator(rng):
    assert ml.backend.generator(rng) is rng
    assert ml.backend.generator(7).random() == np.random.default_rng(7).random()
    assert ml.backend.generator(None).random() != ml.backend.generator(None).random()


def test_float32_and_float64_models_start_from_the_same_numbers():
    wide, narrow = (
        ml.asnumpy(ml.backend.normal(ml.backend.generator(0), (9,), 2.0, t))
        for t in ("float64", "float32")
    )
    assert same_bytes(wide.astype("float32"), narrow)


def test_describe_is_one_line_with_the_name():
    line = ml.current().describe()
    assert line.startswith(ml.current().name) and "\n" not in line


@pytest.fixture
def nothing_computed_yet():
    """A process that has not searched for its BLAS yet."""
    threads._blas.cache_clear()
    yield
    threads._blas.cache_clear()


def share(size: int) -> None:
    ml.backend.Backend().share(lambda rows: None, 2, size)


def test_the_c_library_is_asked_once_to_keep_freed_memory(monkeypatch, nothing_computed_yet):
    asked = []
    library = SimpleNamespace(mallopt=lambda *numbers: asked.append(numbers))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert asked == [], "an import asks for nothing"
    for _ in range(2):
        share(1)
    assert asked == [(-3, 32 << 20), (-1, 1 << 30)]


def test_where_there_is_no_such_library_nothing_is_asked(monkeypatch, nothing_computed_yet):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    share(1)


def test_importing_minilora_loads_numpy_and_nothing_else():
    code = """
import sys
before = set(sys.modules)
import numpy
import minilora
tops = {name.partition('.')[0] for name in set(sys.modules) - before}
print(sorted(tops - set(sys.stdlib_module_names) - {'numpy', 'minilora'}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]", run.stdout


# The library in use is a thread's own.


def in_thread(f):
    """Return what f() returns in a new thread, or raise what it raised there."""
    result = []

    def run():
        try:
            result.append((f(), None))
        except BaseException as error:
            result.append((None, error))

    thread = python_threads.Thread(target=run)
    thread.start()
    thread.join()
    value, error = result[0]
    if error:
        raise error
    return value


def test_a_thread_begins_with_what_the_main_thread_chose_and_changes_its_own(backend):
    here = ml.current()
    assert in_thread(ml.current) is here

    def other():
        ml.use("shapes")
        x = ml.xp.zeros((2, 3))
        with ml.using("numpy"):
            assert type(ml.xp.ones(2)) is np.ndarray
        return ml.current().name, type(x).__module__, in_thread(ml.current)

    name, module, third = in_thread(other)
    assert name == "shapes" and module.startswith("minilora.backend.shapes") and third is here
    assert ml.current() is here
    with ml.using("shapes"):
        assert in_thread(ml.current) is here and ml.current() is not here
        assert in_thread(lambda: ml.asnumpy(ml.Tensor([1.0]) + 1.0)).tolist() == [2]
    assert ml.current() is here


@pytest.mark.parametrize("busy", ["plan", "ledger", "use", "model"])
def test_training_and_shapes_at_once_are_as_alone(numpy_only, busy):
    """Every pass of one thread meets passes of the other."""
    config = ml.GPT2Config(vocab_size=16, n_positions=16, d_model=16, n_layers=1, n_heads=2)
    ids = np.arange(48).reshape(4, 12) % 16

    def train():
        model = ml.GPT2(config, rng=0)
        lora.attach(model, ml.LoRAConfig(r=2, targets=("q", "v")), rng=0)
        optimizer = optim.AdamW(model.trainable_parameters(), lr=1e-2)
        return [float(ml.train_step(model, [(ids, ids)], optimizer)) for _ in range(15)]

    def shapes():
        if busy == "plan":
            return str(accounting.plan(config, batch=2, tokens=8))
        if busy == "ledger":
            model = ml.GPT2(config, rng=0)
            return accounting.ledger(model, optim.SGD(model.parameters(), lr=0.1), 2, 8).as_dict()[
                "total"]["predicted"]
        if busy == "use":
            before = ml.use("shapes")
            size = (ml.Tensor(ml.xp.zeros((3, 4))) @ ml.Tensor(ml.xp.zeros((4, 5)))).shape
            ml.use(before)
            return size
        return str(accounting.count(ml.GPT2(config, rng=0)))

    alone, planned, seen, done = train(), shapes(), [], python_threads.Event()

    def again():
        while not done.is_set():
            seen.append(shapes())

    thread = python_threads.Thread(target=again)
    thread.start()
    try:
        results = [train() for _ in range(3)]
    finally:
        done.set()
        thread.join()
    assert results == [alone] * 3 and seen and all(one == planned for one in seen)


def test_helping_threads_compute_in_the_library_of_the_caller(numpy_only):
    class Named(ml.backend.Backend):
        name = "named"

    seen, before = [], ml.threads(3)

    def task(at):
        time.sleep(1e-3)  # so that each thread gets some
        seen.append((ml.current(), python_threads.get_ident()))

    try:
        for library in (Named(), ml.backend.Backend()):
            seen.clear()
            with ml.using(library):
                library.share(task, 64, 1 << 26, 1)
            assert {one for one, _ in seen} == {library}
            assert len({thread for _, thread in seen}) > 1 or threads._blas()[0] is None
    finally:
        ml.threads(before)
