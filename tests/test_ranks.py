"""ranks, shards: the same bits on any number of ranks, in threads here and under mpiexec."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import kept
from hypothesis import given
from hypothesis import strategies as st
from strategies import gpt2, ids, normal, seeds

import minilora as ml
from minilora import accounting, cli, lora, methods, nn, optim
from minilora.backend.library import current, switch
from minilora.cli import ranked
from minilora.nn import generators
from minilora.training import fit as loop
from minilora.training import ranks, shards
from minilora.training.ranks import Alone, Group

several = st.integers(2, 5)


class Left(Exception):
    """Another rank has raised."""


class Threads(Group):
    """A rank in a thread. One computes at a time, as the stand-in for CuPy needs it; those that
    wait in `gather` let the others compute."""

    def __init__(self, rank, size, turn, rounds, shards=None, exact=True):
        super().__init__(shards)
        self.rank, self.size, self.exact = rank, size, exact
        self.turn, self.rounds, self.round = turn, rounds, 0

    def gather(self, flat):
        given = self.rounds.setdefault(self.round, {})  # rank -> array
        given[self.rank], self.round = flat.copy(), self.round + 1
        self.turn.notify_all()
        self.turn.wait_for(lambda: len(given) == self.size or self.rounds.get("left"))
        if len(given) < self.size:
            raise Left
        return np.stack([given[rank] for rank in range(self.size)])

    def add(self, flat):
        flat[...] = self.gather(flat)[::-1].sum(axis=0)


def together(size, run, shards=None, exact=True):
    """Return what run(group) returns on each rank, or raises: all are as they are under MPI."""
    turn, rounds, library, results = threading.Condition(), {}, current(), [None] * size

    def work(rank):
        switch(library)
        with turn:
            try:
                results[rank] = run(Threads(rank, size, turn, rounds, shards, exact))
            except BaseException as error:
                results[rank], rounds["left"] = error, True
                turn.notify_all()

    crew = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    return results


def windows(seed, rows, tokens=6, masked=0.0, n=3):
    """Batches of as many rows as `rows` says; a part of the targets is masked."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(n):
        x = ids(seed + i, rows - i % 2 if rows > 2 else rows, tokens + 1)
        targets = x[:, 1:].copy()
        targets[rng.random(targets.shape) < masked] = -100
        targets[0, 0] = 1  # one counts
        result.append((x[:, :-1], targets))
    return result


def job(batches, dtype="float32", dropout=0.3, steps=3, **how):
    """group -> all that a run produces, as bytes."""

    def run(group):
        model = gpt2(1, dtype, dropout=dropout)
        lora.attach(model, ml.LoRAConfig(r=2, alpha=6, dropout=dropout, bias="lora"), rng=2)
        optimizer = optim.AdamW(model.trainable_parameters(), 0.02)
        scale = how.get("loss_scale")
        own = {"progress": False} | how | ({"loss_scale": ml.LossScale(scale)} if scale else {})
        history = ml.fit(model, batches, optimizer, steps, group=group, **own)
        draws = [repr(g.bit_generator.state) for g in generators(model).values()]
        arrays = {**model.state_dict(), **optimizer.state_dict()}
        return ([(name, a.tobytes()) for name, a in arrays.items()],
                dataclasses.astuple(history), draws)

    return run


# The same bits.


@given(several, st.integers(5, 9), st.floats(0, 0.9), st.sampled_from([None, 5, 12]), seeds)
def test_any_number_of_ranks_ends_with_the_same_bits(numpy_first, size, rows, masked, parts, seed):
    """With dropout, uneven batches, masked shards, clipping, and held-out batches."""
    run = job(windows(seed, rows, masked=masked), max_grad_norm=0.1, held_out=windows(9, 2))
    alone = run(Alone(parts))
    assert together(size if rows > 5 else 2, run, parts) == [alone] * (size if rows > 5 else 2)


@pytest.mark.parametrize("how", [
    {"accumulation_steps": 3}, {"loss_scale": 2.0**9}, {"loss_scale": 1e38},
    {"accumulation_steps": 2, "max_grad_norm": 0.5},
], ids=str)
def test_so_it_does_with_batches_in_a_step_and_a_loss_scale(numpy_first, how):
    dtype = "float16" if "loss_scale" in how else "float32"
    run = job(windows(0, 6), dtype, **how)
    alone = run(Alone())
    for size in (2, 3):
        if size <= how.get("accumulation_steps", 8):
            assert together(size, run) == [alone] * size


@given(st.integers(1, 9), st.integers(1, 12), seeds)
def test_rows_are_added_neighbours_first(numpy_only, n, size, seed):
    rows = list(normal(seed, n, size, dtype="float32") * 10.0 ** np.arange(n)[:, None])
    rows = [row.astype("float32") for row in rows]

    def by_hand(rows):  # halves, the first of which is a power of two
        if len(rows) == 1:
            return rows[0]
        half = 1 << (len(rows) - 1).bit_length() - 1
        return by_hand(rows[:half]) + by_hand(rows[half:])

    assert np.array_equal(shards.added(rows), by_hand(rows))


@given(st.integers(1, 12), st.sampled_from([None, 1, 3, 8]), st.integers(1, 3))
def test_shards_are_the_batch_cut_by_rows(numpy_only, rows, parts, batches):
    batch = ((ids(0, rows, 4), ids(1, rows, 4), None), ids(2, rows), ids(3, rows, 2).tolist())
    got = shards.cut([batch] * batches, Alone(parts))
    each = min(rows, parts or (8 if batches == 1 else 1))
    assert len(got) == each * batches
    sizes = [len(targets) for _, targets, _ in got]
    assert sum(sizes) == rows * batches and max(sizes) - min(sizes) <= 1
    for get in (lambda b: b[0][0], lambda b: b[0][1], lambda b: b[1], lambda b: b[2]):
        assert np.array_equal(np.concatenate([*map(get, got[:each])]), get(batch))
    assert all(part[0][2] is None for part in got)


@given(several, st.integers(2, 9), st.floats(0, 0.9), seeds)
def test_the_gradient_is_that_of_the_whole_batch(size, rows, masked, seed):
    """Shards are weighed by their targets, not by their rows, and a parameter that no shard reaches
    has no gradient: AdamW does not let it decay."""
    batch = windows(seed, rows, masked=masked, n=1)

    def step(group):
        model = gpt2(1)
        lora.attach(model, ml.LoRAConfig(r=2, alpha=6), rng=2)
        lora.attach(model, ml.LoRAConfig(r=2), name="idle", rng=3)
        lora.activate(model, "default")
        factors = {n: p for n, p in model.named_parameters() if n.endswith((".A", ".B"))}
        for p in factors.values():
            p.requires_grad = True
        optimizer = optim.SGD(factors, 0.0)
        value = ml.train_step(model, batch, optimizer, group=group)
        return float(ml.asnumpy(value)), {
            name: p.grad if p.grad is None else ml.asnumpy(p.grad)
            for name, p in optimizer.parameters.items()}

    value, whole = step(None)
    for exact in (True, False):
        for loss, grads in together(min(size, rows), step, exact=exact):
            assert abs(loss - value) <= 1e-14 * abs(value)
            for name, g in grads.items():
                assert (g is None) == (whole[name] is None) == (".idle." in name)
                if g is not None:
                    assert abs(g - whole[name]).max() <= 1e-13 * max(1, abs(whole[name]).max())


def test_a_step_through_the_host_on_another_array_library():
    """As on a GPU, of which the tests have a stand-in: arrays go to the host and come back."""
    run = job(windows(0, 6, n=1), steps=1)
    alone = run(Alone())
    assert together(2, run) == [alone] * 2


@given(st.sampled_from([np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64]),
       seeds)
def test_a_shard_draws_numbers_of_its_own(numpy_only, kind, seed):
    model = nn.Dropout(0.5, rng=np.random.Generator(kind(seed)))
    seen, ends = [], []
    for order in ([0, 1, 2], [2, 0]):
        model.rng = np.random.Generator(kind(seed))
        for _ in range(2):  # steps
            with shards.drawing(model) as draw_for:
                for shard in order:
                    draw_for(shard)
                    seen.append((shard, tuple(model.rng.random(4))))
        ends.append(repr(model.rng.bit_generator.state))
    assert ends[0] == ends[1]
    assert len({*seen}) == 6 and seen[2] == seen[6] and seen[5] == seen[8]
    assert len({numbers for _, numbers in seen}) == 6


@pytest.mark.parametrize("name", kept(methods.METHODS, "lora", "full", "prelayer"))
def test_what_the_ranks_send_is_what_is_planned(numpy_first, name):
    """For every method: bytes that a rank gives to the transport, against the plan on shapes."""
    config, kind = gpt2().config, methods.METHODS[name]
    method = kind(**{"lp": 1} if "lp" in [f.name for f in dataclasses.fields(kind)] else {})

    def step(group):
        model = gpt2(1, "float32")
        methods.apply(model, method, rng=0)
        optimizer = optim.SGD(model.trainable_parameters(), 0.1)
        with methods.prompt(3):
            ml.train_step(model, windows(0, 6, tokens=4, n=1), optimizer, group=group)
        return group.sent

    for exact, reduce in ((True, "exact"), (False, "fast")):
        plan = accounting.traffic(config, method, 4, reduce=reduce, shards=6)
        assert together(4, step, exact=exact) == [plan.given] * 4


def test_the_model_of_a_ring(numpy_only):
    config, method = gpt2().config, methods.BitFit()
    exact = accounting.traffic(config, method, 4, shards=8)
    fast = accounting.traffic(config, method, 4, shards=8, reduce="fast")
    assert exact.given == 2 * fast.given and exact.sent == 3 * exact.given
    assert fast.given <= fast.sent * 4 / 6 < fast.given + 4 and exact.trained == fast.trained
    for net in accounting.NETWORKS:
        assert exact.seconds[net.name] == 3 * (net.latency + exact.given / net.bandwidth)
        assert fast.seconds[net.name] == 6 * (net.latency + fast.sent / 6 / net.bandwidth)
    one = accounting.traffic(config, method, 1)
    assert one.given == one.sent == 0 == max(one.seconds.values())
    for words, how in (("ranks", {"ranks": 0}), ("shards", {"ranks": 9, "shards": 8}),
                       ("reduce", {"ranks": 2, "reduce": "slow"})):
        with pytest.raises(ValueError, match=words):
            accounting.traffic(config, method, **how)
    with pytest.raises(ValueError, match="unknown shape 'gpt5'"):
        accounting.traffic("gpt5", method, 2)


@given(several, st.integers(1, 9))
def test_what_the_ranks_have_in_turn_is_put_in_order(numpy_only, size, n):
    pairs = [(float(i), -float(i)) for i in range(n)]
    got = together(size, lambda group: ranks.in_order(group, pairs[group.rank :: size], n))
    assert got == [pairs] * size


def test_rank_0_alone_speaks_and_writes(numpy_only, tmp_path, monkeypatch):
    threads, savers, lines = {}, [], []
    monkeypatch.setattr(
        loop.Run, "save", lambda *_: savers.append(threads[threading.current_thread()]))

    def run(group):
        threads[threading.current_thread()] = group.rank
        job(windows(0, 6), checkpoint=tmp_path / "a.npz", save_every=2,
            progress=lambda line: lines.append((group.rank, line)))(group)

    assert together(3, run) == [None] * 3
    assert savers == [0, 0] and {rank for rank, _ in lines} == {0}
    assert [line[:8] for _, line in lines] == ["step 1/3", "step 2/3", "step 3/3"]


# What goes wrong on one rank.


def bad_row(model, batch):
    """nan for the row that has token 9 in front."""
    value = loop.lm_loss(model, batch)
    return value * float("nan") if (batch[0][:, 0] == 9).any() else value


def test_all_ranks_learn_of_a_gradient_that_is_not_finite(numpy_only):
    batch = (np.full((6, 5), 2), np.full((6, 5), 3))
    batch[0][4, 0] = 9
    results = together(3, job([batch], steps=1, loss=bad_row))
    assert all(isinstance(error, FloatingPointError) for error in results)
    assert "in a shard of another rank" in str(results[0]) == str(results[2]) != str(results[1])
    assert "fit: step 0" in str(results[1])


def test_an_overflow_on_one_rank_skips_the_step_on_all(numpy_only):
    def overflowing(model, batch):
        return loop.lm_loss(model, batch) * (1e38 if (batch[0][:, 0] == 9).any() else 1.0)

    batches = windows(0, 6, n=3)
    batches[1][0][:, 0] = [1, 9, 1, 1, 1][: len(batches[1][0])]
    run = job(batches, "float16", steps=2, loss=overflowing, loss_scale=2.0**9)
    alone = run(Alone())
    assert together(3, run) == [alone] * 3


def test_ranks_that_do_not_start_alike_are_refused(numpy_only, tmp_path):
    def run(group, what):
        other = group.rank == 1
        model = gpt2(2 if other and what == "weights" else 1, "float32")
        lora.attach(model, ml.LoRAConfig(r=2, dropout=0.5),
                    rng=3 if other and what == "factors" else 2)
        for rng in generators(model).values() if other and what == "draws" else ():
            rng.random()
        lr = 0.1 if other and what == "rate" else 0.2
        ml.fit(model, windows(0, 6), optim.SGD(model.trainable_parameters(), lr), 2, group=group,
               progress=False, checkpoint=None if what == "rate" else
               tmp_path / ("b.npz" if other and what == "file" else "a.npz"))

    expected = {"weights": "settings of the run", "factors": "weights to train",
                "draws": "random generators", "rate": "settings of the run"}
    for what, words in expected.items():
        (error, *rest) = together(3, lambda group, what=what: run(group, what))
        assert isinstance(error, ValueError) and [*map(str, rest)] == [str(error)] * 2
        assert f"{words}: rank 1 has others than rank 0: give all ranks" in str(error)
    assert together(2, lambda group: run(group, "")) == [None, None]
    (error, _) = together(2, lambda group: run(group, "file"))  # it sees no checkpoint
    assert "steps done in the checkpoint: rank 1 has others" in str(error)


def test_a_run_in_other_shards_is_another_run(numpy_only, tmp_path):
    how = {"steps": 1, "checkpoint": tmp_path / "a.npz"}
    job(windows(0, 6), **how)(Alone(3))
    with pytest.raises(ValueError, match="shards: 3 then, 2 now"):
        job(windows(0, 6), **how)(Alone(2))
    with pytest.raises(ValueError, match="shards: 3 then, nothing now"):
        job(windows(0, 6), **how)(None)
    (error, _) = together(2, job(windows(0, 6), **how), 3, exact=False)
    assert "reduce: 'exact' then, 'fast' now" in str(error)


def test_what_cannot_be_shared_is_refused(numpy_only):
    few = [(ids(0, 2, 4), ids(1, 2, 4))]
    for error in together(3, job(few, steps=1)):
        assert "3 ranks for 2 shards in a step" in str(error)
    for error in together(4, job(windows(0, 6), accumulation_steps=3)):
        assert "4 ranks for 3 shards in a step, so some would do nothing" in str(error)
    with pytest.raises(ValueError, match=r"\(1, 4\) beside 2 targets cannot be cut into shards"):
        shards.cut([((few[0][0], ids(0, 1, 4)), few[0][1])], Alone())
    with pytest.raises(TypeError, match=r"group must be MPI\(\) or Alone\(\), not an int"):
        job(few)(4)
    with pytest.raises(ValueError, match="Alone: shards must be an integer >= 1, not 0"):
        Alone(0)
    with pytest.raises(ValueError, match='reduce must be "exact" or "fast"'):
        ml.MPI(reduce="slow")
    with pytest.raises(TypeError, match="Alone: unknown argument 'reduce'"):
        Alone(reduce="fast")
    with pytest.raises(NotImplementedError, match="Group has no gather"):
        Group().gather(np.zeros(1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_elsewhere(
    numpy_only, tmp_path, monkeypatch, number
):
    path, batches = tmp_path / "run.npz", windows(0, 6, n=4)
    how = {"checkpoint": path, "held_out": windows(9, 2), "eval_every": 2}
    expected = job(batches, steps=8, **how)(Alone())
    path.unlink()
    inbox = threading.local()

    class Box:
        def __enter__(self):
            inbox.received = []
            return inbox.received

        def __exit__(self, *_):
            assert not inbox.received

    class Interrupted(list):
        """Its batch 2 comes with a signal to the rank that reads it, if that is rank 1."""

        def __getitem__(self, i):
            if i == 2 and threading.current_thread() is self.target and hasattr(inbox, "received"):
                inbox.received.append(number)
            return super().__getitem__(i)

    own = Interrupted(batches)
    monkeypatch.setattr(loop.signals, "deferred", lambda wanted: Box())

    def run(group):
        if group.rank == 1:
            own.target = threading.current_thread()
        group.gather(np.zeros(1))
        try:
            return job(own, steps=8, **how)(group)
        finally:
            inbox.received.clear()

    results = together(3, run)
    kind = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    assert all(isinstance(error, kind) for error in results), results
    monkeypatch.undo()
    assert together(2, job(batches, steps=8, **how)) == [expected] * 2


# MPI itself.

HERE = importlib.util.find_spec("mpi4py") is not None and shutil.which("mpiexec")
mpi = pytest.mark.skipif(not HERE, reason="needs pip install '.[mpi]' mpich")
ROOT = Path(__file__).parent.parent
SCRIPT = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
import minilora as ml
from test_ranks import job, windows
from minilora import methods, optim
from minilora.training import ranks
from strategies import gpt2

group = ml.MPI(6)
assert group.gather(np.array([group.rank])).tolist() == [[i] for i in range(group.size)]
flat = np.full(3, 2.0 ** group.rank, "float32")
group.add(flat)
assert flat.tolist() == [2.0 ** group.size - 1] * 3
model = gpt2(1, "float32")
model.blocks[0].attn.q.W.data = model.blocks[0].attn.q.W.data.copy()
methods.apply(model, "lora", base_dtype="int8", rng=0)
before = [np.array(p.data.astype("float32")) for p in model.parameters()]
base = [p for p in model.parameters() if not p.requires_grad]
ranks.share_frozen(group, base)
assert all(np.array_equal(a, p.data.astype("float32")) for a, p in zip(before, model.parameters()))
arrays = [a for p in base for a in getattr(p.data, "arrays", [p.data])]
assert not any(a.flags.writeable for a in arrays) and all(a.ctypes.data % 4 == 0 for a in arrays)
result = job(windows(0, 7, masked=0.5), held_out=windows(9, 2))(group)
alone = job(windows(0, 7, masked=0.5), held_out=windows(9, 2))(ml.Alone(6))
assert result == alone
if group.gather(np.array([group.rank])).size == 2 and group.rank == 0:
    print("both are right")
"""


def mpiexec(n, *words, cwd):
    """Run it on n ranks; return the finished process."""
    return subprocess.run(["mpiexec", "-n", str(n), *map(str, words)], cwd=cwd, timeout=300,
                          capture_output=True, text=True, env=os.environ | {
                              "PYTHONPATH": f"{cwd}{os.pathsep}{ROOT}",
                              "PYTHONDONTWRITEBYTECODE": "1"})


@mpi
def test_mpi_is_what_the_threads_stand_for(numpy_only, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(tests=str(ROOT / "tests")))
    done = mpiexec(2, sys.executable, "-m", "mpi4py", "script.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "both are right\n"


FINETUNE = "finetune devil --steps 110 --batch 8 --window 4 --checks 1 --dropout 0.1 --out a.npz"
WRONG = """
import os, sys
if os.environ.get("PMI_RANK") == "{rank}" and "mpi4py" in sys.orig_argv:
    import resource, signal
    from minilora.data import Windows
    own = Windows.__getitem__
    seen = []
    def get(self, i):
        seen.append(i)
        if len(seen) == {n}:
            {what}
        return own(self, i)
    Windows.__getitem__ = get
"""


def finetuned(n, folder, wrong="", more=""):
    """Run the command as it is installed, by its script, on n ranks. wrong: code that Python runs
    before it."""
    script = folder / "minilora"
    script.write_text("import sys\nfrom minilora.__main__ import main\nsys.exit(main())\n")
    (folder / "sitecustomize.py").write_text(wrong)
    return mpiexec(n, sys.executable, script, *f"{FINETUNE} {more}".split(), cwd=folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The file that one rank writes."""
    folder = tmp_path_factory.mktemp("one")
    done = finetuned(1, folder)
    assert done.returncode == 0 and "MPI" not in done.stdout, done.stderr
    return (folder / "a.npz").read_bytes()


@mpi
@pytest.mark.thorough
def test_finetune_ends_with_the_same_file_on_any_number_of_ranks(
    numpy_only, tmp_path, undisturbed
):
    for n in (2, 4, 8):
        folder = tmp_path / str(n)
        folder.mkdir()
        done = finetuned(n, folder)
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"^step ", done.stdout, re.M)) == 10  # from rank 0 alone
        assert f"{n} ranks; in a step each gave" in done.stdout
        assert (folder / "a.npz").read_bytes() == undisturbed


@mpi
@pytest.mark.thorough
@pytest.mark.parametrize(("what", "code", "words"), [
    ("os.kill(os.getpid(), signal.SIGKILL)", 9, ""),
    ('raise ValueError("bad input")', 1, "ValueError: bad input"),
    ("os.kill(os.getpid(), signal.SIGINT)", 130, "a.run.npz has the run's state"),
    ("os.kill(os.getpid(), signal.SIGTERM)", 143, ""),
])
def test_a_rank_that_ends_ends_the_job_and_the_run_goes_on(
    numpy_only, tmp_path, undisturbed, what, code, words
):
    done = finetuned(3, tmp_path, WRONG.format(rank=1, n=106, what=what))  # step 100 is in the file
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert done.stderr.count("Traceback") == done.stderr.count(words) * (code == 1)
    assert (tmp_path / "a.run.npz").exists() and not (tmp_path / "a.npz").exists()
    done = finetuned(2, tmp_path)
    assert done.returncode == 0 and "continuing from step 10" in done.stdout, done.stderr
    assert (tmp_path / "a.npz").read_bytes() == undisturbed


@mpi
@pytest.mark.thorough
def test_a_full_disk_on_rank_0_ends_the_job(numpy_only, tmp_path):
    """Here no file of rank 0 may be longer than 64 KiB."""
    what = "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, -1))"
    done = finetuned(2, tmp_path, WRONG.format(rank=0, n=50, what=what))
    assert done.returncode == 2, done.stderr
    assert "a.run.npz: it cannot be written (file too large)" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("*.npz"))


@mpi
@pytest.mark.thorough
@pytest.mark.parametrize(("words", "message"), [
    ("--batch 2", "fit: 3 ranks for 2 shards in a step"),
    ("--shards 2", "fit: 3 ranks for 2 shards in a step"),
    ("--adapter none.npz", "has its own method and settings: leave out --dropout"),
])
def test_what_is_wrong_on_all_ranks_is_said_by_rank_0(numpy_only, tmp_path, words, message):
    """Once, unless the machine is so busy that another rank waits in vain for the end of rank 0."""
    done = finetuned(3, tmp_path, more=words)
    assert done.returncode in (1, 2) and message in done.stderr
    assert done.stderr.count("minilora: ") <= 1


@mpi
@pytest.mark.thorough
def test_a_script_without_mpi4py_in_front_is_refused(numpy_only, tmp_path):
    code = "import minilora as ml; ml.MPI()"
    done = mpiexec(2, sys.executable, "-c", code, cwd=tmp_path)
    assert done.returncode and "start with `mpiexec -n 2 python -m mpi4py script.py`" in done.stderr
    assert mpiexec(1, sys.executable, "-c", code, cwd=tmp_path).returncode == 0


# The command, without mpiexec.


def test_the_command_starts_itself_again_under_mpi4py(numpy_only, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda *words: started.append(words))
    monkeypatch.setattr(ranked, "need", lambda *words: None)
    monkeypatch.delitem(sys.modules, "mpi4py.run", raising=False)
    ranked.begin()
    assert not started  # no mpiexec
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    for front in (["/bin/minilora"], ["-m", "minilora"]):
        monkeypatch.setattr(sys, "argv", ["/bin/minilora", "finetune", "devil"])
        python, words = ["python", "-W", "error"], [*front, "finetune", "devil"]
        monkeypatch.setattr(sys, "orig_argv", [*python, *words])
        ranked.begin()
        assert started.pop() == (sys.executable, [*python, "-m", "mpi4py", *words])
    monkeypatch.setitem(sys.modules, "mpi4py.run", sys)
    ranked.begin()
    assert not started


def test_mpi_of_another_library_is_refused(numpy_only, monkeypatch):
    """mpi4py then sees one process in each of those that mpiexec started."""

    class World:
        def Get_rank(self): return 0
        def Get_size(self): return 1
        def Split_type(self, kind): return self

    class Library:
        COMM_WORLD, COMM_TYPE_SHARED = World(), 1

    monkeypatch.setattr(ranks, "need", lambda *words: Library)
    for name in ranks.SIZES:
        monkeypatch.delenv(name, raising=False)
    assert ml.MPI(4).size == 1 and ml.MPI().shards is None
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(RuntimeError, match="mpiexec started 4 processes, and mpi4py sees 1: they"):
        ml.MPI()


def test_mpi_needs_its_extra(numpy_only, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    with pytest.raises(ImportError, match=r"several ranks need mpi4py: pip install .*\[mpi\]"):
        ml.MPI()


def test_shards_act_without_mpiexec_and_reduce_is_refused(numpy_only, tmp_path, monkeypatch,
                                                          capsys):
    monkeypatch.chdir(tmp_path)
    line = "finetune devil --steps 1 --batch 4 --window 8 --checks 1 --dropout 0.5 --json"
    files = []
    for more in ("", "--shards 2"):
        assert cli.main([*line.split(), *more.split()]) == 0
        files.append(Path("adapter.npz").read_bytes())
        capsys.readouterr()
    assert files[0] != files[1]  # each shard draws numbers of its own
    assert cli.main([*line.split(), "--reduce", "fast"]) == 2
    assert "--reduce fast is for several ranks: start with `mpiexec -n 4" in capsys.readouterr().err


def test_account_plans_what_ranks_send(numpy_only, capsys):
    assert cli.main(["account", "gpt2", "--ranks", "16", "--r", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    ((label, plans),) = json.loads(out).items()
    assert label == "lora r=4 targets=q,v" and plans["fast"]["trained"] == 147_456
    assert plans["exact"] == vars(accounting.traffic("gpt2", ml.LoRAConfig(r=4), 16))
    assert "Latency: 50 µs at 1 Gbit/s" in err and "exact: --shards 16" in err
    for words in ("--compare", "--batch 2", "--window 8", "--recompute", "--policy mixed"):
        assert cli.main(f"account gpt2 --ranks 2 {words}".split()) == 2
        assert f"{words.split()[0]} changes nothing: leave it out" in capsys.readouterr().err
    assert cli.main(["account", "--ranks", "2"]) == 2
    assert "--ranks needs a shape: account gpt2 --ranks 8" in capsys.readouterr().err
