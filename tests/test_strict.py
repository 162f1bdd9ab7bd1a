"""The stand-in for CuPy: it catches a mistake of each kind, and says what CuPy would do."""

import copy
import math

import numpy as np
import pytest
from strategies import adapted, ids, normal
from strict import LOG, MODULE, Lacks, NotPortable, StrictArray, StrictBackend

import minilora as ml
from minilora.backend import gpu


@pytest.fixture(autouse=True)
def backend():
    """This file tests only the stand-in; its mistaken calls are not recorded as the package's."""
    before, fused = ml.use(StrictBackend()), dict(LOG.fused)
    with np.errstate(all="ignore"):
        yield ml.current()
    ml.use(before)
    LOG.wrapped.clear()
    LOG.fused = fused


def device(*shape, dtype="float32"):
    return ml.backend.asarray(normal(0, *shape, dtype=dtype))


def numbers(*values):
    return ml.backend.asarray(np.array(values))


def step(model, spoil=lambda: None):
    """Return one training step as in `fit`, with a call of `spoil` in its middle."""
    optimizer = ml.AdamW(model.trainable_parameters(), lr=0.01)
    x = ids(0, tokens=8)

    def run():
        optimizer.zero_grad()
        loss = ml.ops.cross_entropy(model(x[:, :-1]), x[:, 1:])
        spoil()
        loss.backward()
        optimizer.step()
        return loss

    return run


PLANTED = {  # kind: (the planted mistake, the message)
    "mixing, on the right": (lambda x: x + np.ones(3, "f4"), "mixes a NumPy array"),
    "mixing, on the left": (lambda x: np.ones(3, "f4") + x, "mixes a NumPy array"),
    "mixing, in place": (lambda x: x.__iadd__(np.ones(3, "f4")), "mixes a NumPy array"),
    "mixing, in a call": (lambda x: ml.xp.add(x, np.ones(3, "f4")), "mixes a NumPy array"),
    "mixing, in a list": (lambda x: ml.xp.concatenate([x, np.ones((1, 3))]), "mixes a NumPy"),
    "mixing, assigned": (lambda x: x.__setitem__(0, np.ones(3)), "cannot be used for fill"),
    "mixing, as an index": (lambda x: x[np.array([0])], "a NumPy array as an index"),
    "mixing, NumPy's ufunc": (lambda x: np.exp(x), r"xp\.exp belongs"),
    "mixing, NumPy's function": (lambda x: np.concatenate([x, x]), r"use xp\.concatenate"),
    "where=": (lambda x: ml.xp.exp(x, where=x > 0), "where="),
    "initial=": (lambda x: x.max(initial=0), "unexpected keyword argument 'initial'"),
    "keyword clip": (lambda x: ml.xp.clip(x, min=0), "missing a required argument: 'a_min'"),
    "a list for an array": (lambda x: ml.xp.sum([1, 2]), "is a list"),
    "implicit conversion": (lambda x: np.asarray(x), r"implicit conversion .* backend\.asnumpy"),
    "implicit conversion, index": (lambda x: [1, 2][numbers(1)[0]], "indices must be integers"),
    "implicit conversion, shape": (lambda x: ml.xp.zeros(numbers(1)[0]), "CuPy needs integers"),
    "implicit conversion, slice": (lambda x: x[: numbers(1)[0]], "no __index__"),
    "implicit conversion, range": (lambda x: range(numbers(1)[0]), "cannot be interpreted"),
    "`in`": (lambda x: 1 in x, "no __contains__"),
    "missing name": (lambda x: ml.xp.vecdot(x, x), "cupy has no 'vecdot'"),
    "missing name, errstate": (lambda x: ml.xp.errstate(all="ignore"), "cupy has no 'errstate'"),
    "missing name, unknown": (lambda x: ml.xp.fft, "not known .* the contract test checks it"),
    "missing method": (lambda x: x.setflags(write=False), "no attribute 'setflags'"),
    "missing flag": (lambda x: x.flags.writeable, r"flags\.writeable"),
    "missing ufunc method": (lambda x: ml.xp.maximum.accumulate(x), "cupy_maximum.accumulate"),
    "missing draw": (lambda x: ml.xp.random.default_rng(0).permutation(3), "no method 'permuta"),
    "missing einsum(out=)": (lambda x: ml.xp.einsum("ij->j", x, out=x), "not known"),
    "missing dtype": (lambda x: x.astype("longdouble"), "no such arrays"),
    "missing dtype, text": (lambda x: ml.backend.asarray(np.array(["a"])), "no such arrays"),
    "duplicate index": (lambda x: x.__setitem__(numbers(0, 0), 1), "duplicate indices"),
    "duplicate index, added": (lambda x: spread(x), r"duplicate .* use backend\.scatter_add"),
    "float64 creeping in": (lambda x: x * np.float64(2), "float64 creeps in: a NumPy scalar"),
    "float64 creeping in, left": (lambda x: np.float64(2) * x, "float64 creeps in"),
    "float64 creeping in, place": (lambda x: x.__imul__(np.float64(2)), "float64 creeps in"),
    "float64 creeping in, integer": (lambda x: x / np.int64(2), "float64 creeps in"),
    "by place, dtype": (lambda x: ml.xp.zeros(3, "f4"), "zeros: dtype by place: .*: write dtype="),
    "by place, dtype of full": (lambda x: ml.xp.full(3, 1, "f4"), "full: dtype by place"),
    "by place, k": (lambda x: ml.xp.triu(x, 1), "triu: k by place"),
    "by place, axis": (lambda x: ml.xp.stack([x, x], 1), "stack: axis by place"),
    "base": (lambda x: x[1:].base, r"ask current\(\)\.owner\(x\)"),
    "base, as a question": (lambda x: hasattr(x, "base"), r"ask current\(\)\.owner\(x\)"),
}


def spread(x):
    x[numbers(0, 1, 0)] += 1


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_mistake_is_caught_and_named(kind):
    mistake, message = PLANTED[kind]
    with pytest.raises(TypeError if "missing" not in kind else Exception, match=message) as raised:
        mistake(device(4, 3))
    builtin = kind in ("implicit conversion, index", "implicit conversion, range")
    assert builtin or isinstance(raised.value, NotPortable)


KINDS = {  # the kinds that no line of the package may have: one example of each
    "mixing": "mixing, in a call",
    "where=": "where=",
    "implicit conversion": "implicit conversion",
    "missing name": "missing name",
    "duplicate index": "duplicate index, added",
    "float64 creeping in": "float64 creeping in",
    "by place": "by place, dtype",
    "base": "base",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_planted_in_an_op_stops_a_training_step(kind, monkeypatch):
    mistake, message = PLANTED[KINDS[kind]]
    plain = ml.ops.gelu

    def gelu(x, approximate):
        mistake(device(4, 3))
        return plain(x, approximate=approximate)

    model, _ = adapted(0, "float32")
    step(model)()
    monkeypatch.setattr(ml.ops, "gelu", gelu)
    with pytest.raises(NotPortable, match=message):
        step(model)()


def test_unchecked_ids_are_caught_after_the_step(monkeypatch):
    def unchecked(W, ids):
        return ids if isinstance(ids, slice) else ml.backend.asarray(ids)

    model, _ = adapted(0, "float32")
    monkeypatch.setattr(ml.ops.shape, "_checked", unchecked)
    model(np.array([[0, 11]]))  # the table has 11 rows
    with pytest.raises(NotPortable, match="index 11 of axis 0, which has 11, wraps to 0"):
        LOG.no_wrapping()


def fuse(formula):
    return ml.current().fuse(formula)


def summed(x, y):
    x -= y.sum()


def multiplied(x, y):
    x += x @ y


def indexed(x, y):
    x += y[0]


def two_numbers(x, number):
    x *= 1 - number


def looked_at(x, number):
    if number > 0:
        x *= number


def narrow(x, y):
    y *= 2
    x += y


def narrow_out(x, y):
    ml.xp.exp(y, out=y)
    x += y


def gives(x):
    return x + 1


def capturing(factor):
    def captures(x):
        x *= factor

    return captures


FUSED = {
    "a sum": (summed, (3, 3), "ndarray.sum in summed: only operators, ufuncs"),
    "a product": (multiplied, (3, 3), "__matmul__ in multiplied"),
    "an index": (indexed, (3, 3), "__getitem__ in indexed"),
    "two numbers": (two_numbers, (3, 0.1), "two numbers meet.*half"),
    "a branch": (looked_at, (3, 0.1), "or one is looked at"),
    "several threads": (narrow, (3, 1), r"narrow writes \(__imul__\) to .* shape \(1,\)"),
    "several threads, out=": (narrow_out, (3, 1), r"narrow_out writes \(exp\) to an argument"),
    "a result": (gives, (3,), "gives returns a value"),
    "what it captures": (capturing(2.0), (3,), r"captures captures \('factor',\)"),
    "a NumPy scalar": (two_numbers, (3, np.float64(0.1)), "float64 creeps in.*use float"),
    "a host array": (summed, (3, np.ones(3)), "mixes a NumPy array"),
    "a list": (summed, (3, [1.0]), "summed of a list"),
}


@pytest.mark.parametrize("kind", FUSED)
def test_a_mistake_in_a_fused_formula_is_caught_and_named(kind):
    formula, sizes, message = FUSED[kind]
    args = [device(n) if isinstance(n, int) else n for n in sizes]
    with pytest.raises(NotPortable, match=message):
        fuse(formula)(*args)
    assert LOG.fusing is None


def test_a_fused_formula_takes_no_memory_but_its_arguments():
    def formula(x, y):
        x += y * 2 - y * y

    x, y = device(1000), device(1000)
    with ml.current().meter() as meter:
        before, _ = meter.read()
        fuse(formula)(x, y)
        assert meter.read() == (before, before)


def test_a_formula_is_fused_once():
    assert fuse(summed) is fuse(summed)


def test_the_device_is_chosen_by_its_index():
    assert StrictBackend().device.id == 0
    before = ml.use(StrictBackend("1"))
    assert StrictBackend().device.id == 1, "the thread's device is that one now"
    assert ml.current().describe() == "strict 14 on device 1, the host, once more"
    ml.use(StrictBackend("0"))
    assert StrictBackend().device.id == 0
    ml.use(before)


def test_devices_are_listed_or_the_reason_why_there_are_none(monkeypatch):
    monkeypatch.setattr(gpu, "CupyBackend", StrictBackend)
    assert gpu.devices() == "cupy:0 the host, cupy:1 the host, once more"

    def missing(self):
        raise ImportError("no module named cupy")

    monkeypatch.setattr(StrictBackend, "libraries", missing)
    install = "pip install '.[gpu]' in the checkout of minilora"
    assert f"{install} (no module named cupy)" in gpu.devices()


def test_a_device_that_cannot_be_used_is_named(monkeypatch):
    second = StrictBackend("1")

    def full(self):
        raise OSError("cudaErrorDevicesUnavailable")

    monkeypatch.setattr(type(second.device), "use", full)
    with pytest.raises(
        RuntimeError, match=r"CUDA device 1 cannot be used: .*Unavailable: is it full"
    ):
        ml.use(second)


@pytest.mark.parametrize("device", ["2", "-1", "one", "1.0"])
def test_a_device_that_there_is_not_is_named(device):
    with pytest.raises(
        ValueError, match=f"no CUDA device '{device}': there are 2, numbered from 0"
    ):
        StrictBackend(device)


def test_a_missing_name_is_an_attribute_error_too():
    assert not hasattr(ml.xp, "vecdot") and not hasattr(device(2), "setflags")
    assert issubclass(Lacks, AttributeError)


def test_an_index_out_of_range_wraps_and_is_put_on_record():
    table = device(4, 3)
    row = table[numbers(5)]  # without the check
    assert np.array_equal(ml.asnumpy(row)[0], ml.asnumpy(table)[1])
    with pytest.raises(NotPortable, match="index 5 of axis 0, which has 4, wraps to 1"):
        LOG.no_wrapping()
    LOG.no_wrapping()  # raised only once


@pytest.mark.parametrize("bad", [-5, 4])
def test_wrapping_looks_at_both_ends_and_take(bad):
    device(4, 3)[numbers(0, bad)]
    MODULE.take(device(4, 3), numbers(bad), axis=0)
    assert len(LOG.wrapped) == 2
    with pytest.raises(IndexError):
        device(4, 3)[bad]  # CuPy checks a single number, too


def test_a_wrap_behind_an_ellipsis_names_its_axis():
    device(2, 3, 4)[..., numbers(4)]
    assert LOG.wrapped == ["index 4 of axis 2, which has 4, wraps to 0: CuPy raises nothing: check "
                           "indices on the host"]


PEEKS = {
    "float()": lambda p: float(p.data.sum()),
    "bool()": lambda p: bool((p.data > 0).any()),
    "item()": lambda p: p.data.sum().item(),
    "get()": lambda p: ml.asnumpy(p.data),
    "to device": lambda p: ml.backend.asarray(np.ones(2)),
    "number of True": lambda p: p.data[p.data > 0],
    "size of nonzero": lambda p: ml.xp.nonzero(p.data),
    "tolist()": lambda p: p.data.tolist(),
    "format()": lambda p: f"{p.data.sum():.3f}",
}


@pytest.mark.parametrize("how", PEEKS)
def test_a_copy_planted_inside_the_step_is_counted_and_named(how):
    model, _ = adapted(0, "float32")
    p = next(iter(model.trainable_parameters().values()))
    with LOG.watch() as plain:
        step(model)()
    with LOG.watch() as spoilt:
        step(model, lambda: PEEKS[how](p))()
    more = [what for what in spoilt if what not in plain]
    assert len(spoilt) == len(plain) + 1
    assert how in more[0]


BATCH = [
    "to device: ndarray as int64 (2, 7)",  # the ids
    "to device: ndarray as int64 (14,)",  # the targets
]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_a_training_step_copies_the_batch_in_and_nothing_back(full, recompute, plain, backend):
    backend.plain = plain
    sizes = {"dropout": 0.2}
    model, _ = adapted(0, "float32", targets=("q", "v", "up"), bias="all", dropout=0.1, sizes=sizes)
    model.recompute = recompute
    if full:
        model.requires_grad_()
    run = step(model)
    run()
    with LOG.watch() as seen, LOG.narrow():
        loss = run()
    assert seen == BATCH
    with LOG.watch() as seen:
        assert math.isfinite(loss.item())
    assert seen == ["to host: get() of float32 ()"]


def test_fit_brings_the_losses_back_when_it_prints_them_and_nothing_else():
    model, _ = adapted(0, "float32")
    x = ids(0, tokens=8)
    optimizer, lines = ml.AdamW(model.trainable_parameters(), lr=0.01), []
    with LOG.watch() as seen:
        ml.fit(model, [(x[:, :-1], x[:, 1:])], optimizer, 6, log_every=3, progress=lines.append)
    back = [i for i, what in enumerate(seen) if what.startswith("to host")]
    assert len(lines) == 2 and len(seen) == 6 * 2 + 6 + 2
    # after the copies of steps 3 and 6: three losses, and whether all parameters are finite
    assert back == [6, 7, 8, 9, 16, 17, 18, 19]


@pytest.fixture(params=["to the host", "from the host"])
def ways(request, backend):
    """Two array libraries: one writes a file, the other reads it."""
    both = [backend, ml.backend.Backend()]
    return both if request.param == "to the host" else both[::-1]


def test_a_file_of_one_library_is_read_on_the_other(ways, tmp_path):
    write, read = ways
    ml.use(write)
    model, paths = adapted(0, "float32", bias="lora")
    adapter = ml.lora.save(model, tmp_path / "adapter.npz")
    trained = {name: ml.asnumpy(p.data) for name, p in model.trainable_parameters().items()}
    ml.lora.merge(model)
    path, merged = ml.save_model(model, tmp_path / "model.npz"), model.state_dict()
    ml.use(read)
    back = ml.load_model(path).state_dict()
    assert back.keys() == merged.keys()
    assert all(np.array_equal(array, merged[name]) for name, array in back.items())
    other, _ = adapted(0, "float32")
    ml.lora.detach(other)
    assert ml.lora.load(other, adapter, trainable=True) == paths
    loaded = {name: ml.asnumpy(p.data) for name, p in other.trainable_parameters().items()}
    assert loaded.keys() == trained.keys()
    assert all(np.array_equal(array, trained[name]) for name, array in loaded.items())


def test_a_run_that_was_interrupted_on_one_library_is_another_run_on_the_other(ways, tmp_path):
    class Stopped(Exception):
        pass

    def stop(line):
        if line.startswith("step 4"):
            raise Stopped

    def run(progress=False, **settings):
        settings |= {"save_every": 1} if settings else {}
        model, _ = adapted(0, "float32", dropout=0.2)
        optimizer = ml.AdamW(model.trainable_parameters(), lr=0.01)
        x = ids(0, tokens=8)
        history = ml.fit(model, [(x[:, :-1], x[:, 1:])], optimizer, 6, progress=progress,
                         log_every=1, max_grad_norm=1.0, **settings)
        return history.losses, model.state_dict()

    write, read = ways
    ml.use(write)
    with pytest.raises(Stopped):
        run(stop, checkpoint=tmp_path / "run.npz")
    ml.use(read)
    names = f"library: '{write.name}' then, '{read.name}' now"
    with pytest.raises(ValueError, match=names):  # its sums are in another order
        run(checkpoint=tmp_path / "run.npz")
    ml.use(write)
    (losses, state), (wanted, uninterrupted) = run(checkpoint=tmp_path / "run.npz"), run()
    assert losses == wanted
    assert all(np.array_equal(array, uninterrupted[name]) for name, array in state.items())


def calls(batch: int, tokens: int, **settings) -> int:
    """Return the number of launches in a step of so many tokens."""
    sizes = {"n_positions": tokens}
    model, _ = adapted(0, "float32", targets=("q", "v", "up"), sizes=sizes, **settings)
    optimizer = ml.AdamW(model.trainable_parameters(), lr=0.01)
    x = ids(0, batch, tokens + 1)

    def run():
        optimizer.zero_grad()
        ml.ops.cross_entropy(model(x[:, :-1]), x[:, 1:]).backward()
        ml.optim.clip_grad_norm(optimizer.parameters, 1.0)
        optimizer.step()

    run()
    before = LOG.calls
    run()
    return LOG.calls - before


def test_a_step_of_more_tokens_is_not_more_calls():
    assert calls(1, 4) == calls(2, 500) == calls(40, 16)
    assert calls(1, 600) == calls(2, 1000)  # beyond 512, attention's weights are recomputed
    assert calls(1, 4, dropout=0.1) == calls(9, 200, dropout=0.1)


def test_clipping_brings_nothing_back():
    model, _ = adapted(0, "float32")
    step(model)()
    with LOG.watch() as seen:
        norm = ml.optim.clip_grad_norm(model.trainable_parameters(), 1e-3)
    assert seen == [] and float(norm) > 1e-3


def test_float64_in_a_float32_step_is_caught_and_named():
    model, _ = adapted(0, "float32")
    with LOG.narrow():
        step(model)()
    with LOG.narrow(), pytest.raises(NotPortable, match="float64 creeps in: it makes an array"):
        step(model, lambda: ml.xp.zeros(3))()
    step(model, lambda: ml.xp.zeros(3))()  # outside the block it is allowed


def test_narrow_and_wide_scalars():
    x = device(3)
    assert (x * 2.0).dtype == (x * np.float32(2)).dtype == (2 * x).dtype == np.float32
    assert (device(3, dtype="float64") * np.float64(2)).dtype == np.float64


def test_reductions_and_elements_are_0d_arrays():
    x = device(3)
    for one in (x.sum(), x[0], ml.xp.sum(x), x.max(), abs(x).max()):
        assert isinstance(one, StrictArray) and one.shape == ()
    assert [part.shape for part in device(2, 3)] == [(3,), (3,)]


def test_views_share_and_say_so_and_copies_do_not():
    x = device(4, 3)
    library = ml.current()
    for view in (x[1:], x[1:].T, x.reshape(-1)):
        assert library.owner(view) is x and not library.owns(view)
    for new in (x, x.copy(), x + 1, copy.deepcopy(x)):
        assert library.owner(new) is new and library.owns(new)
    x[1:][...] = 0
    assert ml.asnumpy(x)[1:].sum() == 0


def test_the_host_never_shares_memory_with_the_device():
    host = np.ones(3)
    there = ml.backend.asarray(host)
    back = ml.asnumpy(there)
    host += 1
    back += 1
    assert ml.asnumpy(there).tolist() == [1, 1, 1]


def test_out_is_what_comes_back():
    x, out = device(3), device(3)
    assert ml.xp.exp(x, out=out) is out and ml.xp.sum(x, out=x[0]).shape == ()


def test_the_pool_counts_in_blocks_while_arrays_live():
    with ml.current().meter() as meter:
        before, _ = meter.read()
        x = ml.xp.zeros(200, dtype="float32")
        assert meter.read() == (before + 1024, before + 1024)
        y = x[:3]
        del x
        assert meter.read()[0] == before + 1024
        del y
        assert meter.read() == (before, before + 1024)
        meter.reset()
        assert meter.read() == (before, before)
    assert not LOG.hooks


def test_a_meters_peak_is_the_most_at_any_time():
    array = ml.xp.zeros(300)
    with ml.current().meter() as meter:
        assert meter.read()[0] == LOG.used >= array.nbytes
        a, b = ml.xp.zeros(1000), ml.xp.zeros(1000)
        top = LOG.used
        del a, b
        ml.xp.zeros(100)  # after the peak
        assert meter.read() == (LOG.used, top)
    x = ml.xp.zeros(1 << 16)
    del x
    assert ml.current().reserved() == LOG.peak > LOG.used


def test_a_loss_keeps_its_dtype_whether_it_becomes_nan_or_not():
    x = ml.Tensor(device(3, dtype="float16"), requires_grad=True)
    loss = (x * 2.0).sum()
    loss.backward()
    assert str(loss.dtype) == "float16" and math.isfinite(loss.item())


def test_rows_are_added_to_a_table_in_its_own_dtype(monkeypatch, backend):
    calls = []
    monkeypatch.setattr(type(backend), "scatter_add", lambda self, *arrays: calls.append(arrays))
    W = ml.Tensor(device(4, 3), requires_grad=True)
    out = ml.ops.embedding(W, np.array([0, 2]), dtype="float16")
    out.sum().backward()
    assert [str(a.dtype) for a in calls[0]] == ["float32", "int64", "float32"]


def test_erf_is_that_of_math():
    assert ml.asnumpy(ml.backend.erf(device(4, dtype="float64"))).tolist() == [
        math.erf(v) for v in normal(0, 4)
    ]
