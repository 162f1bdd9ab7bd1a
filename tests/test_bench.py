"""The bench: engines agree and every number is reported. No time is asserted."""

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from benchmarks import growth, habits

import minilora as ml
from minilora import cli, ops
from minilora.accounting import plan
from minilora.bench import engines, ours, peers
from minilora.bench import turns as bench
from minilora.cli import bench as command
from minilora.training.adam import adam

pytestmark = pytest.mark.usefixtures("numpy_only")


@pytest.mark.thorough
def test_a_bench_of_the_tiny_shape_is_complete(capsys, tmp_path):
    pytest.importorskip("matplotlib").use("agg")
    names = ["minilora", "torch+peft", "autograd", "floor", "base forward", "merged forward"]
    names = [name for name in names if not engines.missing(name)]
    code = cli.main(["bench", "--json", "--shapes", "tiny", "--rounds", "2", "--no-whole",
                     "--engines", ",".join(names), "--chart", str(tmp_path / "a.png")])
    out, _ = capsys.readouterr()
    result = json.loads(out)
    assert code == 0 and set(result["tiny"]) == set(names) and not result["missing"]
    for row in result["tiny"].values():
        assert 0 < row["ms"][0] <= row["ms"][1] and row["peak"] > 1 << 20 and row["ratio"] > 0
    assert result["tiny"]["minilora"]["ratio"] == result["tiny"]["merged forward"]["ratio"] == 1
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_an_engine_that_disagrees_is_an_error(monkeypatch):
    class Liar:
        engine = "autograd"

        def ask(self, word, path):
            step = engines.ours("tiny")
            loss, grads = step()
            np.savez(path, **{name: 1.001 * g for name, g in grads().items()})
            return loss

    class Honest(Liar):
        engine = "minilora"

        def ask(self, word, path):
            loss, grads = engines.ours("tiny")()
            np.savez(path, **grads())
            return loss

    with pytest.raises(RuntimeError, match=r"autograd and minilora differ by 1\.0e-03"):
        bench.agreement([Honest(), Liar()])


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["minilora recompute", "autograd"])  # PEFT takes 7 s to import
def test_engines_agree_after_updates_too(name):
    if engines.missing(name):
        pytest.skip(engines.missing(name))
    steps = [engines.ENGINES[n]("tiny") for n in ("minilora", name)]
    losses = [[step()[0] for _ in range(5)] for step in steps]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert abs(losses[0][4] - losses[0][0]) > 1e-4 * losses[0][0], "the updates must matter"


@pytest.mark.oracle
def test_torch_decodes_the_same_tokens(monkeypatch):
    pytest.importorskip("torch")
    chosen, make = [], peers.torch_model

    def spy(shape, adapters):
        assert not adapters  # they are merged
        result = make(shape, adapters)
        hear = lambda model, inputs, out: chosen.append(int(out[0, -1].argmax()))  # noqa: E731
        result[0].register_forward_hook(hear)
        return result

    monkeypatch.setattr(peers, "torch_model", spy)
    engines.ENGINES["torch decode"]("tiny")()
    model, (ids, _) = ours.build("tiny")
    ml.lora.detach(model)
    wanted = ml.generate(model, ids[:1, : ours.PROMPT], 8, temperature=0)[0, ours.PROMPT :]
    assert chosen == wanted.tolist()


@pytest.mark.oracle
def test_torch_without_adapters_trains_the_full_q_and_v():
    pytest.importorskip("torch")
    mine, (ids, targets) = ours.build("tiny")
    ml.lora.detach(mine)
    for name, p in mine.named_parameters():
        p.requires_grad = ".attn.q." in name or ".attn.v." in name
    optimizer = ml.AdamW(mine.trainable_parameters(), ours.LR, exclude=())
    step = engines.ENGINES["torch"]("tiny")
    for _ in range(3):
        optimizer.zero_grad()
        loss = ops.cross_entropy(mine(ids), targets)
        loss.backward()
        optimizer.step()
        assert abs(step()[0] / loss.item() - 1) < 1e-5


def test_the_floor_has_exactly_the_products_of_a_step(monkeypatch):
    """The plain op computes g B twice, for x and for A; the floor computes it once."""
    products = []

    class Counting:
        def __getattr__(self, name):
            return getattr(np, name)

        def matmul(self, x, y, out):
            assert out.shape == (*x.shape[:-1], y.shape[-1])
            products.append(2 * out.size * x.shape[-1])
            np.matmul(x, y, out=out)

    monkeypatch.setattr(peers, "np", Counting())
    s = engines.sizes("tiny")
    peers.floor("tiny")()
    config = ml.GPT2Config(s.vocabulary, s.tokens, s.d_model, s.layers, s.heads)
    planned = plan(config, r=ours.R, targets=("q", "v"), batch=s.batch, plain=True)
    twice = 2 * (s.layers - 1) * 2 * s.batch * s.tokens * s.d_model * ours.R
    assert sum(products) == planned.forward.products + planned.backward.products - twice


def test_the_shape_gpt2_small_has_the_sizes_of_gpt2_small():
    small, ours_ = ml.GPT2Config(), engines.sizes("gpt2-small")
    assert (ours_.layers, ours_.d_model, ours_.heads) == (
        small.n_layers, small.d_model, small.n_heads,
    )


def square(tokens):
    """Return the bytes of one tokens x tokens array."""
    return 4 * tokens**2


def test_attention_memory_beyond_512_tokens_is_linear_in_the_tokens():
    peaks = {tokens: growth.attention_peak(tokens) for tokens in (1024, 2048, 4096)}
    assert peaks[2048] < 2.1 * peaks[1024] and peaks[4096] < 2.1 * peaks[2048]
    assert peaks[4096] < square(4096) / 2  # all arrays together, so no single array is a square


def test_a_quadratic_attention_memory_would_be_detected(monkeypatch):
    monkeypatch.setattr(ml.backend.Backend, "queries", 4096)
    peaks = {tokens: growth.attention_peak(tokens) for tokens in (1024, 2048)}
    assert peaks[2048] > 2.1 * peaks[1024] and peaks[2048] > square(2048)


class Slow:
    """A worker whose steps take 4 ms."""

    def __init__(self, engine, shape, threads, **how):
        self.asked = ASKED[shape] = []

    def ask(self, word, count):
        self.asked.append((word, count))
        return [9.0, 4.0, 4.0][-count:]

    def close(self):
        self.asked.append("closed")


ASKED = {}


def test_growth_reports_medians_per_token_and_full_squares(monkeypatch):
    monkeypatch.setattr(growth, "Worker", Slow)
    monkeypatch.setattr(growth, "TOKENS", (16,))
    result = growth.growth("tiny", rounds=2, say=lambda line: None)
    turn = [("step", 1), ("step", 3)]
    assert ASKED[f"tiny:{growth.BATCHES[-1]}"] == [("step", 2), *turn, *turn, "closed"]
    assert result["batch"][2] == {"ms": [4.0, 4.0], "us_a_token": 4000 / (2 * 16)}
    assert result["attention"][16]["squares"] == growth.HEADS * square(16)


def test_measuring_attention_memory_restores_the_backend():
    with ml.using("shapes") as library:
        assert growth.attention_peak(16) > 0 and ml.current() is library


def test_a_difference_is_relative_to_ours():
    grads, theirs = {"A": np.array([3.0, 4.0])}, {"A": np.array([3.0, 3.0]), "C": np.ones(2)}
    assert bench.difference(2.0, {}, 3.0, {}) == 0.5
    assert bench.difference(1.0, grads, 1.1, theirs) == 0.2
    assert np.isnan(bench.difference(1.0, grads, float("nan"), theirs))
    assert bench.difference(1.0, {"A": np.zeros(2)}, 1.0, {"A": np.zeros(2)}) == 0


def test_a_full_run_gets_its_number_of_steps_and_must_succeed(monkeypatch):
    monkeypatch.setattr(bench, "PROGRAM", ("-c", "assert input() == 'step 7'"))
    assert bench.full_runs("tiny", ["a", "b"], 1, "numpy", 7).keys() == {"a", "b"}
    monkeypatch.setattr(bench, "PROGRAM", ("-c", "raise SystemExit(3)"))
    with pytest.raises(subprocess.CalledProcessError):
        bench.full_runs("tiny", ["a"], 1, "numpy", 7)


def test_growth_measures_every_batch_and_every_length(capsys, monkeypatch):
    monkeypatch.setattr(growth, "BATCHES", (1, 2))
    monkeypatch.setattr(growth, "TOKENS", (16, 32))
    result = growth.growth("tiny", rounds=1)
    assert list(result["batch"]) == [1, 2] and list(result["attention"]) == [16, 32]
    for row in result["batch"].values():
        assert 0 < row["ms"][0] <= row["ms"][1] and row["us_a_token"] > 0
    for tokens, row in result["attention"].items():
        assert row["peak"] == row["bytes_a_token"] * tokens > 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:1] == " "]
    assert rows == ["batch", "1", "2", "tokens", "16", "32"]


def test_the_growth_script_passes_its_options_on(monkeypatch):
    asked = {}
    monkeypatch.setattr(growth, "growth", lambda shape, **how: asked.update(how, shape=shape))
    monkeypatch.setattr("sys.argv", ["growth.py", "--rounds", "3", "--shape", "tiny"])
    growth.main()
    assert (asked["shape"], asked["rounds"], asked["threads"]) == ("tiny", 3, 2)


def test_the_floor_leaves_threads_to_blas(monkeypatch):
    monkeypatch.setattr(ml.backend.Backend, "on_cores", lambda *_: pytest.fail("it shared work"))
    engines.ENGINES["floor"]("tiny")()


def test_an_engine_that_died_is_named(capfd):
    worker = bench.Worker("abacus", "tiny", 1)
    with pytest.raises(RuntimeError, match="bench: the process of abacus ended, see the output"):
        worker.ask("step", 1)
    worker.close()
    assert "KeyError: 'abacus'" in capfd.readouterr().err


def test_a_shape_may_name_its_batch():
    assert engines.sizes("tiny:7") == engines.SHAPES["tiny"]._replace(batch=7)
    assert ours.build("tiny:7")[1].shape == (2, 7, 16)


@pytest.mark.parametrize("shape", ["", "round", "tiny:", "tiny:0", "tiny:-1", "tiny:x", "tiny:1.5"])
def test_an_unknown_shape_is_an_error_that_lists_the_shapes(shape):
    with pytest.raises(ValueError, match=f"unknown shape '{shape}': choose classroom, long, gpt2-"):
        engines.sizes(shape)


@pytest.fixture
def nothing_measured(monkeypatch):
    """Run no engine; return the list of (shape, engines) that would run."""
    asked = []
    monkeypatch.setattr(
        bench, "measure_shape", lambda shape, names, *how: asked.append((shape, names)) or {}
    )
    return asked


def test_an_engine_that_cannot_run_is_an_error_if_named_and_skipped_if_not(
    monkeypatch, capsys, nothing_measured
):
    monkeypatch.setattr(engines, "NEEDS", {"torch": ("numpy", "no_such_library")})
    lines = []
    result = bench.bench(["tiny"], say=lines.append)
    without = [name for name in engines.ENGINES if name not in ("torch", "minilora half")]
    assert nothing_measured == [("tiny", without)] and list(result["missing"]) == [
        "minilora half", "torch",
    ]
    assert "torch is skipped: not installed: pip install no_such_library" in lines
    assert cli.main(["bench", "--shapes", "tiny", "--engines", "minilora,torch"]) == 2
    assert capsys.readouterr().err == (
        "minilora: bench: torch cannot run: not installed: pip install no_such_library\n"
    )
    assert cli.main(["bench", "--shapes", "tiny", "--engines", " minilora ,decode"]) == 0
    assert nothing_measured[1:] == [("tiny", ["minilora", "decode"])]


def test_agreement_is_reported_only_after_a_comparison():
    class Alone:
        def __init__(self, engine):
            self.engine = engine

        def ask(self, word, path):
            loss, grads = engines.ours("tiny")()
            np.savez(path, **grads())
            return loss

    for names in ([], ["decode"], ["minilora"], ["autograd"], ["autograd", "torch+peft"]):
        assert "losses and gradients are not compared" in bench.agreement([*map(Alone, names)])
    both = bench.agreement([Alone("minilora"), Alone("autograd")])
    assert both == "losses and gradients agree within 0.0e+00 (minilora, autograd)"


@pytest.mark.parametrize(("name", "begins"), [("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_a_chart_has_the_format_of_its_suffix(name, begins, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("agg")
    row = {"ms": [1.0, 2.0], "peak": 1 << 20, "ratio": 1.0, "memory_ratio": 1.0, "tokens_s": 9.0}
    monkeypatch.setattr(command, "bench", lambda *_, **how: {"tiny": {"minilora": row}})
    assert cli.main(["bench", "--shapes", "tiny", "--chart", str(tmp_path / name)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_the_defaults_of_the_bench_are_those_in_its_help(monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(command, "bench", lambda *_, **how: asked.update(how) or {})
    assert cli.main(["bench"]) == 0
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    help = " ".join(capsys.readouterr().out.split())
    assert f"--rounds ROUNDS turns of each engine, three steps in each ({asked['rounds']})" in help
    assert asked["threads"] == 2 and asked["whole"]


def test_a_chart_of_nothing_is_an_error_before_the_work(capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["bench", "--shapes", "", "--chart", "a.png"]) == 2
    assert "leaves nothing to measure" in capsys.readouterr().err


BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.mark.thorough
def test_every_habit_has_a_twin_that_computes_the_same_and_a_line_in_table_and_notes():
    lines, names = [], list(habits.HABITS)
    results = habits.table(names, ["tiny"], rounds=1, say=lines.append)
    rows = [results[name].get("tiny") or habits.measure(name, "tiny", rounds=1) for name in names]
    assert [line.split()[0] for line in lines[-len(names) :]] == names
    for row in rows:
        assert row.apart <= bench.TOLERANCE and min(row.ms) > 0 < row.ratio and row.memory > 0
    notes = (BENCHMARKS / "README.md").read_text("utf-8")
    for name, habit in habits.HABITS.items():
        assert f"- `{name}`: **{habit.title}" in " ".join(notes.split()), name
    for line in re.findall(r"^\w+ +.*\d\.\d\d$", notes, re.MULTILINE):  # the rows of a table
        name = line.split()[0]
        assert line.startswith(f"{name:<13} {habits.HABITS[name].title} "), line


def test_every_kernel_is_a_habit():
    assert {op.__name__ for op in ml.kernels.TABLE} < set(habits.HABITS)


def test_the_replacement_of_a_habit_runs(monkeypatch):
    swapped, called = set(), set()

    def object(owner, name, value):
        if not callable(value):
            return mock.patch.object(owner, name, value)
        swapped.add(name)
        return mock.patch.object(owner, name, lambda *a, **k: (called.add(name), value(*a, **k))[1])

    monkeypatch.setattr(habits, "patch", SimpleNamespace(object=object, dict=mock.patch.dict))
    for name, habit in habits.HABITS.items():
        swapped.clear()
        called.clear()
        step = habit.step("tiny")
        with habit.twin():
            step()
        assert swapped == called, name
    assert engines.ours("tiny")()[0] > 0


WRONG = {
    "an op": (ops, "gelu", lambda x, approximate: ops.relu(x)),
    "an optimizer": (adam, "kernel", lambda p, g, *state, **how: p.__isub__(g)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_twin_that_computes_something_else_is_an_error(kind, monkeypatch):
    wrong = habits.Habit("wrong", habits.swap(WRONG[kind]))
    monkeypatch.setitem(habits.HABITS, "wrong", wrong)
    with pytest.raises(RuntimeError, match="wrong: the twin computes something else"):
        habits.measure("wrong", "tiny")


def test_merged_and_base_run_the_same_ops():
    model, (ids, _) = ours.build("tiny")
    ml.lora.merge(model)
    base, _ = ours.build("tiny")
    ml.lora.detach(base)

    def names(m):
        m.requires_grad_(True)
        seen, waiting = [], [m(ids)._node]
        while waiting:
            node = waiting.pop()
            seen.append(node.name)
            flows = [to for targets, _ in node.edges for to in targets]
            waiting += [to for to in flows if hasattr(to, "edges")]
        return seen

    assert names(model) == names(base)
