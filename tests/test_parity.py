"""benchmarks/parity.py: a correct device agrees with the host, a wrong one does not."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks import parity
from conftest import kept
from strict import LOG, StrictBackend
from test_cli import put_in_use

import minilora as ml
from minilora import cli, ops
from minilora.bench import __main__ as worker
from minilora.bench import engines
from minilora.bench import turns as bench


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    """The host, and a test suite that passes."""
    monkeypatch.setattr(parity, "suite", lambda: {"passed": True, "summary": "1 passed"})
    before = ml.use("numpy")
    yield
    ml.use(before)


@pytest.fixture
def device(backend):
    before = ml.use(StrictBackend())
    with np.errstate(all="ignore"):
        yield ml.current()
    ml.use(before)


def test_a_correct_device_agrees_and_all_numbers_are_reported(device):
    lines = []
    result = parity.parity(["tiny"], say=lines.append)
    row = result["tiny"]
    assert result["passed"] and row["agrees"] and ml.current() is device
    assert result["device"].startswith("strict 14 on device 0") and "numpy" in result["host"]
    assert len(row["losses"]) == parity.STEPS
    assert 0 < max(row["loss"]) < 1e-5 and 0 < max(row["gradient"]) < 1e-3
    assert row["pool"] == LOG.peak >= row["memory"]["peak"]["measured"] > 0
    gap = row["memory"]["peak"]["predicted"] / row["memory"]["peak"]["measured"] - 1
    assert abs(gap) < 0.1  # the pool's blocks of 512 bytes matter at this size
    assert json.loads(json.dumps(result)) == result
    text = "\n".join(lines)
    assert "the device agrees" in text and "1 passed" in text and "pool, so far" in text


WRONG = {
    "a GELU of another form": lambda x, how: _gelu(x, approximate="none"),
    "a gradient that is lost": lambda x, how: ml.Tensor(_gelu(x, approximate=how).data),
    "one number in a thousand": lambda x, how: _gelu(x * 1.001, approximate=how),
}
_gelu, SUITE = ops.gelu, parity.suite


@pytest.mark.parametrize("how", WRONG)
def test_a_device_that_computes_something_else_disagrees(how, device, monkeypatch):
    def gelu(x, approximate):
        if ml.current().name == "numpy":
            return _gelu(x, approximate=approximate)
        return WRONG[how](x, approximate)

    monkeypatch.setattr(ops, "gelu", gelu)
    lines = []
    result = parity.parity(["tiny"], steps=2, say=lines.append)
    assert not result["passed"] and not result["tiny"]["agrees"]
    assert "THE DEVICE DISAGREES" in "\n".join(lines)


def test_one_wrong_step_is_enough(device, monkeypatch):
    losses = iter(range(1000))
    plain = ops.cross_entropy

    def once(*args):
        loss = plain(*args)
        wrong = ml.current().name != "numpy" and next(losses) == 13
        return loss * 1.01 if wrong else loss

    monkeypatch.setattr(ops, "cross_entropy", once)
    assert not parity.parity(["tiny"], say=lambda line: None)["passed"]


def test_one_wrong_gradient_is_enough(device, monkeypatch):
    calls, plain = iter(range(1000)), ops.cross_entropy

    def once(*args):
        loss = plain(*args)
        if ml.current().name == "numpy" or next(calls) != 3:
            return loss
        value, loss = loss.data, loss * 1.01
        loss.data = value  # the loss is right
        return loss

    monkeypatch.setattr(ops, "cross_entropy", once)
    result = parity.parity(["tiny"], steps=6, say=lambda line: None)["tiny"]
    assert not result["agrees"] and result["loss"][1] < 1e-5 < result["gradient"][1]


def test_the_device_is_synchronized_before_the_clock_is_read(device, monkeypatch):
    events = []
    clock = SimpleNamespace(perf_counter=lambda: events.append("clock") or len(events))
    monkeypatch.setattr(parity, "time", clock)
    monkeypatch.setattr(type(device.device), "synchronize", lambda self: events.append("wait"))
    parity.run("tiny", device, 2, "float32")
    assert events == ["wait", "clock"] * 4


def test_the_first_steps_are_not_in_the_median(device, monkeypatch):
    ms = [900.0, 500.0, 2.0, 3.0, 4.0]
    monkeypatch.setattr(parity, "run", lambda *_: parity.Run([1.0], [{"a": np.ones(1)}], ms))
    assert parity.parity(["tiny"], say=lambda line: None)["tiny"]["ms"] == [3.0, 3.0]


def test_a_gradient_that_is_not_a_number_disagrees():
    exact = {"a": np.ones(3), "b": np.ones(2)}
    assert bench.distance(exact, {"a": np.ones(3), "b": np.ones(2) * 2}) == pytest.approx(0.4**0.5)
    assert not bench.distance(exact, {"a": np.ones(3), "b": np.full(2, np.nan)}) <= 1e9


def test_a_failed_suite_fails_the_comparison(device, monkeypatch):
    monkeypatch.setattr(parity, "suite", lambda: {"passed": False, "summary": "1 failed"})
    result = parity.parity(["tiny"], steps=1, say=lambda line: None)
    assert result["tiny"]["agrees"] and not result["passed"]


RUNS = {"pass": (True, "1 passed"), "pytest.skip('no GPU')": (False, "1 skipped")}


@pytest.mark.parametrize("does", kept(RUNS, "pytest.skip('no GPU')"))
def test_the_suite_is_run_and_skipping_is_not_passing(tmp_path, monkeypatch, does):
    monkeypatch.setattr(parity, "TESTS", tmp_path / "tests")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\naddopts = -q")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_gpu.py").write_text(
        f"import pytest\n@pytest.mark.gpu\ndef test_a():\n    {does}\ndef test_b(): pass\n"
    )
    result, (passed, words) = SUITE(), RUNS[does]
    assert result["passed"] is passed and f"{words}, 1 deselected" in result["summary"], result


def test_the_host_is_not_compared_with_itself():
    with pytest.raises(ValueError, match="give --backend cupy"):
        parity.main(["--backend", "numpy"])


def test_the_script_prints_json_and_fails_where_the_device_disagrees(monkeypatch, capsys, device):
    use = parity.use
    monkeypatch.setattr(parity, "use", lambda name: name if name == "cupy" else use(name))
    line = ["--backend", "cupy", "--shapes", "tiny", "--steps", "2", "--json"]
    assert parity.main(line) == 0 and json.loads(capsys.readouterr().out)["passed"]
    monkeypatch.setattr(parity, "TIMES", 0.0)
    assert parity.main(line) == 1 and not json.loads(capsys.readouterr().out)["passed"]


def test_the_float64_run_starts_from_the_same_numbers():
    narrow, wide = (parity.prepared_model("tiny", dtype) for dtype in ("float32", "float64"))
    for (name, a), (_, b) in zip(narrow.named_parameters(), wide.named_parameters()):
        assert str(b.dtype) == "float64" and np.array_equal(a.data, b.data), name


def test_on_a_device_only_its_own_engines_run(device):
    reasons = {name: engines.missing(name) for name in engines.ENGINES}
    assert {name for name, why in reasons.items() if why == "it runs on the host only"} == {
        "torch+peft", "torch", "torch decode", "autograd", "floor",
    }
    assert not reasons["minilora"] and not reasons["minilora half"]


def test_the_half_precision_engine_needs_a_device():
    assert engines.missing("minilora half") == "half precision is fast on a device only"
    loss, grads = engines.ours("tiny", dtype="float16")()
    full, theirs = engines.ours("tiny")()
    assert abs(loss - full) < 0.01 and bench.difference(full, theirs(), loss, grads()) < 0.05


def test_an_engine_runs_on_its_device_and_waits_for_it(device, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(worker.backend, "use", asked.append)
    monkeypatch.setattr(worker.sys, "stdin", io.StringIO("step 2\npeak\n"))
    waits, threads = LOG.waits, ml.threads()
    worker.main("minilora", "tiny", "1", "cupy:1")
    assert ml.threads(threads) == 1
    ms, peak = map(json.loads, capsys.readouterr().out.splitlines())
    assert asked == ["cupy:1"] and LOG.waits == waits + 2 and len(ms) == 2
    assert peak == LOG.peak


@pytest.mark.parametrize("name", ["minilora", "floor", "autograd 1", "torch+"])
def test_a_worker_does_its_steps_and_returns_their_milliseconds(name, monkeypatch, capsys):
    clock, did = iter(range(100)), []
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(clock) / 2)
    monkeypatch.setattr(worker, "use_threads", lambda n: did.append(f"{n} threads"))
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: did.append("memory"))
    torch = SimpleNamespace(set_num_threads=lambda n: did.append(f"{n} of torch"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(engines.ENGINES, name, lambda shape: lambda: did.append(shape))
    monkeypatch.setattr(worker.sys, "stdin", io.StringIO("step 3\n"))
    worker.main(name, "tiny", "2")
    first = {"minilora": ["2 threads"], "torch+": ["2 of torch", "memory"]}.get(name, ["memory"])
    assert did == [*first, *["tiny"] * 3]
    assert json.loads(capsys.readouterr().out) == [500.0] * 3


def test_the_half_precision_engine_uses_float16(monkeypatch):
    settings_used = {}
    monkeypatch.setattr(engines, "ours", lambda shape, **settings: settings_used.update(settings))
    engines.ENGINES["minilora half"]("tiny")
    assert settings_used == {"dtype": "float16"}


def test_the_command_passes_its_device_to_every_worker(monkeypatch):
    class Stop(Exception):
        pass

    commands, used = [], {}

    def start(command, **_):
        commands.append(command)
        raise Stop

    monkeypatch.setattr(bench.subprocess, "run", lambda command, **_: commands.append(command))
    bench.full_runs("tiny", ["minilora"], 1, "cupy:1")
    monkeypatch.setattr(bench.subprocess, "Popen", start)
    with pytest.raises(Stop):
        bench.bench(["tiny"], ["minilora"], device="cupy:1", say=lambda line: None)
    assert len(commands) == 4 and all(command[-1] == "cupy:1" for command in commands)
    put_in_use(ml.current(), monkeypatch)
    monkeypatch.setattr(cli.bench, "bench", lambda *_, **settings: used.update(settings) or {})
    assert cli.main(["bench", "--backend", "cupy:1", "--shapes", "tiny"]) == 0
    assert used["device"] == "cupy:1"


def test_a_run_is_timed_in_milliseconds(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(parity.time, "perf_counter", lambda: next(clock) / 2)
    assert parity.run("tiny", ml.current(), 2, "float32").ms == [500.0] * 2


def test_a_worker_gets_its_device():
    worker = bench.Worker("minilora", "tiny", 1, ("-c", "import sys; input(); print(sys.argv[4:])"),
                          device="cupy:1")
    print("go", file=worker.process.stdin, flush=True)
    assert worker.process.stdout.readline().strip() == "['cupy:1']"
    worker.close()
