"""The bench measures what it says: engines agree, every number is there. No time is asserted."""

import functools
import importlib
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

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
    told = json.loads(out)
    assert code == 0 and set(told["tiny"]) == set(names) and not told["missing"]
    for row in told["tiny"].values():
        assert 0 < row["ms"][0] <= row["ms"][1] and row["peak"] > 1 << 20 and row["ratio"] > 0
    assert told["tiny"]["minilora"]["ratio"] == told["tiny"]["merged forward"]["ratio"] == 1
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_an_engine_that_disagrees_is_refused(monkeypatch):
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

    with pytest.raises(RuntimeError, match=r"autograd and minilora disagree by 1\.0e-03"):
        bench._agree([Honest(), Liar()])


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["minilora recompute", "autograd"])  # PEFT takes 7 s to import
def test_engines_agree_after_updates_too(name):
    if engines.missing(name):
        pytest.skip(engines.missing(name))
    steps = [engines.ENGINES[n]("tiny") for n in ("minilora", name)]
    losses = [[step()[0] for _ in range(5)] for step in steps]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert abs(losses[0][4] - losses[0][0]) > 1e-4 * losses[0][0], "or it would prove little"


@pytest.mark.oracle
def test_torch_decodes_the_tokens_that_we_decode(monkeypatch):
    pytest.importorskip("torch")
    said, make = [], peers.torch_model

    def spy(shape, adapters):
        assert not adapters  # they are merged
        made = make(shape, adapters)
        hear = lambda model, inputs, out: said.append(int(out[0, -1].argmax()))  # noqa: E731
        made[0].register_forward_hook(hear)
        return made

    monkeypatch.setattr(peers, "torch_model", spy)
    engines.ENGINES["torch decode"]("tiny")()
    model, (ids, _) = ours.build("tiny")
    ml.lora.detach(model)
    wanted = ml.generate(model, ids[:1, : ours.PROMPT], 8, temperature=0)[0, ours.PROMPT :]
    assert said == wanted.tolist()


@pytest.mark.oracle
def test_torch_without_adapters_trains_q_and_v_whole():
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


@pytest.mark.parametrize("in_blocks", [False, True])
def test_the_floor_is_the_products_of_a_step_and_no_more(in_blocks, monkeypatch):
    """The plain op makes g B twice, for x and for A: that can be avoided."""
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
    peers.floor("tiny", in_blocks)()
    config = ml.GPT2Config(s.vocabulary, s.tokens, s.d_model, s.layers, s.heads)
    planned = plan(config, r=ours.R, targets=("q", "v"), batch=s.batch, plain=True)
    twice = 2 * (s.layers - 1) * 2 * s.batch * s.tokens * s.d_model * ours.R
    assert sum(products) == planned.forward.products + planned.backward.products - twice


def test_the_floor_in_blocks_leaves_out_what_no_query_sees(monkeypatch):
    monkeypatch.setitem(engines.SHAPES, "two blocks", engines.Shape(1, 8, 2, 100, 1, 9))
    seen = []

    class Counting:
        def __getattr__(self, name):
            return getattr(np, name)

        def matmul(self, x, y, out):
            if x.ndim == 3:
                seen.append((x.shape, y.shape))

    monkeypatch.setattr(peers, "np", Counting())
    peers.floor("two blocks", in_blocks=True)()
    scores = {(x[1], y[2]) for x, y in seen if x[2] == 4}
    assert scores == {(64, 64), (36, 100)}, "queries, and the keys up to the last of them"


def test_sizes_of_the_bench_are_gpt2s_where_they_are_called_so():
    small, ours_ = ml.GPT2Config(), engines.sizes("gpt2-small")
    assert (ours_.layers, ours_.d_model, ours_.heads) == (
        small.n_layers, small.d_model, small.n_heads,
    )


def square(tokens):
    """Bytes of one tokens x tokens array."""
    return 4 * tokens**2


def test_attention_beyond_512_tokens_needs_memory_for_its_tokens_not_for_their_square():
    peaks = {tokens: bench.attention_peak(tokens) for tokens in (1024, 2048, 4096)}
    assert peaks[2048] < 2.1 * peaks[1024] and peaks[4096] < 2.1 * peaks[2048]
    assert peaks[4096] < square(4096) / 2  # all arrays at once: so no single one, either


def test_that_would_be_seen(monkeypatch):
    monkeypatch.setattr(ml.backend.Backend, "queries", 4096)
    peaks = {tokens: bench.attention_peak(tokens) for tokens in (1024, 2048)}
    assert peaks[2048] > 2.1 * peaks[1024] and peaks[2048] > square(2048)


class Slow:
    """A worker of which every step takes 4 ms."""

    def __init__(self, engine, shape, threads, **how):
        self.asked = ASKED[shape] = []

    def ask(self, word, count):
        self.asked.append((word, count))
        return [9.0, 4.0, 4.0][-count:]

    def close(self):
        self.asked.append("closed")


ASKED = {}


def test_growth_is_of_medians_by_the_token_and_of_whole_squares(monkeypatch):
    monkeypatch.setattr(bench, "Worker", Slow)
    monkeypatch.setattr(bench, "TOKENS", (16,))
    told = bench.growth("tiny", rounds=2, say=lambda line: None)
    turn = [("step", 1), ("step", 3)]
    assert ASKED[f"tiny:{bench.BATCHES[-1]}"] == [("step", 2), *turn, *turn, "closed"]
    assert told["batch"][2] == {"ms": [4.0, 4.0], "us_a_token": 4000 / (2 * 16)}
    assert told["attention"][16]["squares"] == bench.HEADS * square(16)


def test_a_look_at_attentions_memory_leaves_the_library_in_use():
    with ml.using("shapes") as library:
        assert bench.attention_peak(16) > 0 and ml.current() is library


def test_a_gap_is_relative_to_ours():
    grads, theirs = {"A": np.array([3.0, 4.0])}, {"A": np.array([3.0, 3.0]), "C": np.ones(2)}
    assert bench.apart(2.0, {}, 3.0, {}) == 0.5 and bench.apart(1.0, grads, 1.1, theirs) == 0.2
    assert np.isnan(bench.apart(1.0, grads, float("nan"), theirs))
    assert bench.apart(1.0, {"A": np.zeros(2)}, 1.0, {"A": np.zeros(2)}) == 0


def test_a_whole_run_reads_how_many_steps_and_has_to_end_well(monkeypatch):
    monkeypatch.setattr(bench, "PROGRAM", ("-c", "assert input() == 'step 7'"))
    assert bench._whole("tiny", ["a", "b"], 1, "numpy", 7).keys() == {"a", "b"}
    monkeypatch.setattr(bench, "PROGRAM", ("-c", "raise SystemExit(3)"))
    with pytest.raises(subprocess.CalledProcessError):
        bench._whole("tiny", ["a"], 1, "numpy", 7)


def test_growth_is_told_for_every_batch_and_every_length(capsys, monkeypatch):
    monkeypatch.setattr(bench, "BATCHES", (1, 2))
    monkeypatch.setattr(bench, "TOKENS", (16, 32))
    monkeypatch.setattr(bench, "growth", functools.partial(bench.growth, "tiny"))
    assert cli.main(["bench", "--shapes", "", "--growth", "--rounds", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["growth"]
    assert list(told["batch"]) == ["1", "2"] and list(told["attention"]) == ["16", "32"]
    for row in told["batch"].values():
        assert 0 < row["ms"][0] <= row["ms"][1] and row["us_a_token"] > 0
    for tokens, row in told["attention"].items():
        assert row["peak"] == row["bytes_a_token"] * int(tokens) > 0


def test_the_floor_leaves_threads_to_blas_and_the_one_in_blocks_does_not(monkeypatch):
    shared = []
    monkeypatch.setattr(ml.backend.threads, "share", lambda task, *sizes: shared.append(sizes))
    engines.ENGINES["floor"]("tiny")()
    assert not shared
    engines.ENGINES["floor in blocks"]("tiny")()
    assert shared


def test_an_engine_that_died_is_named(capfd):
    worker = bench.Worker("abacus", "tiny", 1)
    with pytest.raises(RuntimeError, match="bench: abacus died, see above"):
        worker.ask("step", 1)
    worker.close()
    assert "KeyError: 'abacus'" in capfd.readouterr().err


def test_a_shape_may_name_its_batch():
    assert engines.sizes("tiny:7") == engines.SHAPES["tiny"]._replace(batch=7)
    assert ours.build("tiny:7")[1].shape == (2, 7, 16)


@pytest.mark.parametrize("shape", ["", "round", "tiny:", "tiny:0", "tiny:-1", "tiny:x", "tiny:1.5"])
def test_a_shape_that_there_is_not_is_told_with_those_that_are(shape):
    with pytest.raises(ValueError, match=f"no shape '{shape}': there are classroom, long, gpt2-sm"):
        engines.sizes(shape)


@pytest.fixture
def nothing_measured(monkeypatch):
    """No engine runs; gives those that would."""
    asked = []
    monkeypatch.setattr(
        bench, "_one", lambda shape, names, *how: asked.append((shape, names)) or {}
    )
    return asked


def test_an_engine_that_cannot_run_is_an_error_where_it_is_named_and_left_out_where_not(
    monkeypatch, capsys, nothing_measured
):
    monkeypatch.setattr(engines, "NEEDS", {"torch": ("numpy", "no_such_library")})
    lines = []
    told = bench.bench(["tiny"], say=lines.append)
    without = [name for name in engines.ENGINES if name not in ("torch", "minilora half")]
    assert nothing_measured == [("tiny", without)] and list(told["missing"]) == [
        "minilora half", "torch",
    ]
    assert "torch is skipped: not installed: pip install no_such_library" in lines
    assert cli.main(["bench", "--shapes", "tiny", "--engines", "minilora,torch"]) == 2
    assert capsys.readouterr().err == (
        "minilora: bench: torch cannot run: not installed: pip install no_such_library\n"
    )
    assert cli.main(["bench", "--shapes", "tiny", "--engines", " minilora ,decode"]) == 0
    assert nothing_measured[1:] == [("tiny", ["minilora", "decode"])]


def test_where_nothing_is_compared_no_agreement_is_told():
    class Alone:
        def __init__(self, engine):
            self.engine = engine

        def ask(self, word, path):
            loss, grads = engines.ours("tiny")()
            np.savez(path, **grads())
            return loss

    for names in ([], ["decode"], ["minilora"], ["autograd"], ["autograd", "torch+peft"]):
        assert "no losses and gradients to compare" in bench._agree([*map(Alone, names)])
    both = bench._agree([Alone("minilora"), Alone("autograd")])
    assert both == "losses and gradients agree: within 0.0e+00 (minilora, autograd)"


@pytest.mark.parametrize(("name", "begins"), [("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_a_chart_is_of_the_kind_that_its_name_says(name, begins, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("agg")
    row = {"ms": [1.0, 2.0], "peak": 1 << 20, "ratio": 1.0, "memory_ratio": 1.0, "tokens_s": 9.0}
    monkeypatch.setattr(command, "bench", lambda *_, **how: {"tiny": {"minilora": row}})
    assert cli.main(["bench", "--shapes", "tiny", "--chart", str(tmp_path / name)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_without_options_the_bench_does_what_its_help_says(monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(command, "bench", lambda *_, **how: asked.update(how) or {})
    assert cli.main(["bench"]) == 0
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert f"--rounds ROUNDS turns of three steps each ({asked['rounds']})" in " ".join(
        capsys.readouterr().out.split()
    )
    assert asked["threads"] == 2 and asked["whole"] and not asked["grow"]


def test_a_chart_of_nothing_is_refused_before_the_work(capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["bench", "--shapes", "", "--growth", "--chart", "a.png"]) == 2
    assert "needs a shape" in capsys.readouterr().err


BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def habits(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("habits")


@pytest.mark.thorough
def test_every_habit_has_a_twin_that_computes_the_same_and_a_line_in_table_and_notes(habits):
    lines, names = [], list(habits.HABITS)
    told = habits.table(names, ["tiny"], rounds=1, say=lines.append)
    rows = [told[name].get("tiny") or habits.measure(name, "tiny", rounds=1) for name in names]
    assert [line.split()[0] for line in lines[-len(names) :]] == names
    for row in rows:
        assert row.apart <= bench.TOLERANCE and min(row.ms) > 0 < row.ratio and row.memory > 0
    notes = (BENCHMARKS / "README.md").read_text("utf-8")
    for name, habit in habits.HABITS.items():
        assert f"- `{name}`: **{habit.title}" in " ".join(notes.split()), name
    for line in re.findall(r"^\w+ +.*\d\.\d\d$", notes, re.MULTILINE):  # a table, pasted in
        name = line.split()[0]
        assert line.startswith(f"{name:<14}{habits.HABITS[name].title} "), line


def test_every_kernel_is_a_habit(habits):
    assert {op.__name__ for op in ml.kernels.TABLE} < set(habits.HABITS)


def test_what_a_habit_swaps_in_is_what_runs(habits, monkeypatch):
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
def test_a_twin_that_is_another_computation_is_refused(habits, kind, monkeypatch):
    wrong = habits.Habit("wrong", habits.swap(WRONG[kind]))
    monkeypatch.setitem(habits.HABITS, "wrong", wrong)
    with pytest.raises(RuntimeError, match="wrong: the twin is another computation"):
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
