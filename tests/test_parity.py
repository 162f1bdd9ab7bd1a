"""bench --parity: a device that is right agrees, one that is wrong does not, and all is told."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from strict import LOG, StrictBackend
from test_cli import put_in_use

import minilora as ml
from minilora import cli, ops
from minilora.bench import __main__ as worker
from minilora.bench import engines, parity
from minilora.bench import turns as bench


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    """The host, with the stand-in as the device, and a suite that has passed."""
    monkeypatch.setattr(parity, "suite", lambda: {"passed": True, "told": "1 passed"})
    before = ml.use("numpy")
    yield
    ml.use(before)


@pytest.fixture
def device(backend):
    before = ml.use(StrictBackend())
    with np.errstate(all="ignore"):
        yield ml.current()
    ml.use(before)


def test_a_device_that_computes_the_same_agrees_and_all_is_told(device):
    lines = []
    told = parity.parity(["tiny"], say=lines.append)
    row = told["tiny"]
    assert told["passed"] and row["agrees"] and ml.current() is device
    assert told["device"].startswith("strict 14 on device 0") and "numpy" in told["host"]
    assert len(row["losses"]) == parity.STEPS
    assert 0 < max(row["loss"]) < 1e-5 and 0 < max(row["gradient"]) < 1e-3
    assert row["pool"] == LOG.peak >= row["memory"]["peak"]["measured"] > 0
    gap = row["memory"]["peak"]["predicted"] / row["memory"]["peak"]["measured"] - 1
    assert abs(gap) < 0.1  # blocks of 512 bytes, at a tiny size
    assert json.loads(json.dumps(told)) == told
    text = "\n".join(lines)
    assert "the device agrees" in text and "1 passed" in text and "pool, by now" in text


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
    told = parity.parity(["tiny"], steps=2, say=lines.append)
    assert not told["passed"] and not told["tiny"]["agrees"]
    assert "THE DEVICE DISAGREES" in "\n".join(lines)


def test_one_step_gone_wrong_is_enough(device, monkeypatch):
    losses = iter(range(1000))
    plain = ops.cross_entropy

    def once(*args):
        loss = plain(*args)
        wrong = ml.current().name != "numpy" and next(losses) == 13
        return loss * 1.01 if wrong else loss

    monkeypatch.setattr(ops, "cross_entropy", once)
    assert not parity.parity(["tiny"], say=lambda line: None)["passed"]


def test_one_gradient_gone_wrong_is_enough(device, monkeypatch):
    calls, plain = iter(range(1000)), ops.cross_entropy

    def once(*args):
        loss = plain(*args)
        if ml.current().name == "numpy" or next(calls) != 3:
            return loss
        value, loss = loss.data, loss * 1.01
        loss.data = value  # the loss is right
        return loss

    monkeypatch.setattr(ops, "cross_entropy", once)
    told = parity.parity(["tiny"], steps=6, say=lambda line: None)["tiny"]
    assert not told["agrees"] and told["loss"][1] < 1e-5 < told["gradient"][1]


def test_the_device_is_waited_for_before_each_look_at_the_clock(device, monkeypatch):
    told = []
    clock = SimpleNamespace(perf_counter=lambda: told.append("clock") or len(told))
    monkeypatch.setattr(parity, "time", clock)
    monkeypatch.setattr(type(device.device), "synchronize", lambda self: told.append("wait"))
    parity.run("tiny", device, 2, "float32")
    assert told == ["wait", "clock"] * 4


def test_the_first_steps_are_not_in_the_median(device, monkeypatch):
    ms = [900.0, 500.0, 2.0, 3.0, 4.0]
    monkeypatch.setattr(parity, "run", lambda *_: parity.Run([1.0], [{"a": np.ones(1)}], ms))
    assert parity.parity(["tiny"], say=lambda line: None)["tiny"]["ms"] == [3.0, 3.0]


def test_a_gradient_that_is_not_a_number_disagrees():
    exact = {"a": np.ones(3), "b": np.ones(2)}
    assert parity._apart(exact, {"a": np.ones(3), "b": np.ones(2) * 2}) == pytest.approx(0.4**0.5)
    assert not parity._apart(exact, {"a": np.ones(3), "b": np.full(2, np.nan)}) <= 1e9


def test_a_suite_that_failed_is_not_passed(device, monkeypatch):
    monkeypatch.setattr(parity, "suite", lambda: {"passed": False, "told": "1 failed"})
    told = parity.parity(["tiny"], steps=1, say=lambda line: None)
    assert told["tiny"]["agrees"] and not told["passed"]


RUNS = {"pass": (True, "1 passed"), "pytest.skip('no GPU')": (False, "1 skipped")}


@pytest.mark.parametrize("does", RUNS)
def test_the_suite_is_run_and_skipping_is_not_passing(tmp_path, monkeypatch, does):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parity, "__file__", str(tmp_path / "package" / "bench" / "parity.py"))
    assert SUITE() == {"passed": None, "told": "not at hand: run this in a checkout of the project"}
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\naddopts = -q")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_gpu.py").write_text(
        f"import pytest\n@pytest.mark.gpu\ndef test_a():\n    {does}\ndef test_b(): pass\n"
    )
    told, (passed, words) = SUITE(), RUNS[does]
    assert told["passed"] is passed and f"{words}, 1 deselected" in told["told"], told


def test_the_host_has_nothing_to_be_compared_with(capsys):
    assert cli.main(["bench", "--parity"]) == 2
    assert "give --backend cupy" in capsys.readouterr().err


def test_growth_is_the_hosts(monkeypatch, capsys, device):
    put_in_use(device, monkeypatch)
    assert cli.main(["bench", "--backend", "cupy", "--growth"]) == 2
    assert "--growth measures the host" in capsys.readouterr().err


def test_the_command_prints_json_and_fails_where_the_device_disagrees(monkeypatch, capsys, device):
    put_in_use(device, monkeypatch)
    line = ["bench", "--backend", "cupy", "--parity", "--shapes", "tiny", "--json"]
    assert cli.main(line) == 0 and json.loads(capsys.readouterr().out)["passed"]
    monkeypatch.setattr(parity, "TIMES", 0.0)
    assert cli.main(line) == 1 and not json.loads(capsys.readouterr().out)["passed"]


def test_the_float64_run_starts_from_the_same_numbers():
    narrow, wide = (parity._model("tiny", dtype) for dtype in ("float32", "float64"))
    for (name, a), (_, b) in zip(narrow.named_parameters(), wide.named_parameters()):
        assert str(b.dtype) == "float64" and np.array_equal(a.data, b.data), name


def test_on_a_device_only_its_own_engines_run(device):
    told = {name: engines.missing(name) for name in engines.ENGINES}
    assert {name for name, why in told.items() if why == "it runs on the host alone"} == {
        "torch+peft", "torch", "torch decode", "autograd", "floor", "floor in blocks",
    }
    assert not told["minilora"] and not told["minilora half"]


def test_half_precision_is_a_devices_engine():
    assert engines.missing("minilora half") == "in half precision only a device is fast"
    loss, grads = engines.ours("tiny", dtype="float16")()
    whole, theirs = engines.ours("tiny")()
    assert abs(loss - whole) < 0.01 and bench.apart(whole, theirs(), loss, grads()) < 0.05


def test_an_engine_serves_on_its_device_and_waits_for_it(device, monkeypatch, capsys):
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
def test_a_worker_takes_its_steps_and_tells_their_milliseconds(name, monkeypatch, capsys):
    clock, did = iter(range(100)), []
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(clock) / 2)
    monkeypatch.setattr(worker, "use_threads", lambda n: did.append(f"{n} threads"))
    monkeypatch.setattr(worker.host, "keep_freed_memory", lambda: did.append("memory"))
    torch = SimpleNamespace(set_num_threads=lambda n: did.append(f"{n} of torch"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(engines.ENGINES, name, lambda shape: lambda: did.append(shape))
    monkeypatch.setattr(worker.sys, "stdin", io.StringIO("step 3\n"))
    worker.main(name, "tiny", "2")
    first = {"minilora": ["2 threads"], "torch+": ["2 of torch", "memory"]}.get(name, ["memory"])
    assert did == [*first, *["tiny"] * 3]
    assert json.loads(capsys.readouterr().out) == [500.0] * 3


def test_the_half_engine_is_half(monkeypatch):
    told = {}
    monkeypatch.setattr(engines, "ours", lambda shape, **settings: told.update(settings))
    engines.ENGINES["minilora half"]("tiny")
    assert told == {"dtype": "float16"}


def test_the_command_hands_its_device_to_every_worker(monkeypatch):
    class Stop(Exception):
        pass

    commands, told = [], {}

    def start(command, **_):
        commands.append(command)
        raise Stop

    monkeypatch.setattr(bench.subprocess, "run", lambda command, **_: commands.append(command))
    bench._whole("tiny", ["minilora"], 1, "cupy:1")
    monkeypatch.setattr(bench.subprocess, "Popen", start)
    with pytest.raises(Stop):
        bench.bench(["tiny"], ["minilora"], device="cupy:1", say=lambda line: None)
    assert len(commands) == 4 and all(command[-1] == "cupy:1" for command in commands)
    put_in_use(ml.current(), monkeypatch)
    monkeypatch.setattr(cli.bench, "bench", lambda *_, **settings: told.update(settings) or {})
    assert cli.main(["bench", "--backend", "cupy:1", "--shapes", "tiny"]) == 0
    assert told["device"] == "cupy:1"


def test_a_run_is_timed_in_milliseconds(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(parity.time, "perf_counter", lambda: next(clock) / 2)
    assert parity.run("tiny", ml.current(), 2, "float32").ms == [500.0] * 2


def test_a_worker_is_told_its_device():
    worker = bench.Worker("minilora", "tiny", 1, ("-c", "import sys; input(); print(sys.argv[4:])"),
                          device="cupy:1")
    print("go", file=worker.process.stdin, flush=True)
    assert worker.process.stdout.readline().strip() == "['cupy:1']"
    worker.close()
