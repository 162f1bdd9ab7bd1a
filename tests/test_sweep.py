"""Sweeps: the points of a file, refusals with a remedy, one journal wherever and however it ran."""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_jobs import Fragile, Now, started, waits

import minilora
from minilora import cli, viz
from minilora.cli import board, finetune, grid, settings, sweep
from minilora.files import owned
from minilora.files.journal import Journal
from minilora.jobs import driver, executors
from minilora.jobs.executors import NAMES, Pool

pytestmark = pytest.mark.usefixtures("numpy_only")
ROOT = Path(minilora.__file__).parents[1]
SMALL = '[finetune]\ntext = "words.txt"\nsteps = 1\nbatch = 1\nwindow = 8\nchecks = 1\n'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid.digest.cache_clear()
    Path("words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    return tmp_path


def points_of(text: str) -> list[dict]:
    Path("sweep.toml").write_text(text)
    return [job.config["options"] for job in grid.points(Path("sweep.toml"))]


some = st.sets(st.sampled_from([*settings.DEFAULTS]), min_size=1, max_size=4).map(sorted)


@given(methods=some, ranks=st.sets(st.integers(1, 9), max_size=3),
       rates=st.sets(st.sampled_from([1e-3, 0.5, 2]), max_size=3),
       seeds=st.sets(st.integers(0, 99), max_size=3))
def test_the_points_are_all_combinations_of_what_a_method_has(
    methods, ranks, rates, seeds, tmp_path_factory
):
    """Each once, and each is a line that finetune reads as the same settings."""
    ranked = [name for name in methods if "r" in settings.DEFAULTS[name]]
    ranks = ranks if ranked else set()
    axes = {"methods": methods, "ranks": sorted(ranks), "rates": sorted(rates),
            "seeds": sorted(seeds)}
    path = tmp_path_factory.mktemp("sweep") / "sweep.toml"
    path.write_text("\n".join(f"{name} = {json.dumps(list_)}" for name, list_ in axes.items()
                              if list_) + "\n" + SMALL)
    expected = {(name, r, rate, seed) for name, rate, seed in
                product(methods, rates or {None}, seeds or {0})
                for r in (ranks if name in ranked and ranks else {None})}
    found = [grid.arguments(job.config["options"]) for job in grid.points(path)]
    assert len(found) == len(expected)
    assert {(args.method, args.r, args.lr, args.seed) for args in found} == expected
    assert {(args.text, args.steps, args.batch) for args in found} == {("words.txt", 1, 1)}


def test_settings_of_some_methods_act_on_those_alone():
    both = points_of('methods = ["lora", "bitfit"]\ntargets = ["q", ["k", "v"]]\n'
                     '[finetune]\ntext = "kjv"\nalpha = 3\nrecompute = true\nbase-dtype = "nf4"\n')
    assert [(p["method"], p.get("targets"), p.get("alpha")) for p in both] == [
        ("lora", "q", "3"), ("lora", "k,v", "3"), ("bitfit", None, None)]
    args = grid.arguments(both[0])
    assert args.alpha == 3 and args.recompute and args.base_dtype == "nf4" and args.seed == 0


REFUSED = {
    "methods = 3": r"methods = 3: give a list of one or more, such as methods = \[\"lora\", \"dora",
    "seeds = []": r"seeds = \[\]: give a list of one or more, such as seeds = \[1, 4\]",
    "seeds = [1, 1]": "seeds: 1 is there twice: remove one",
    "rates = [1e-2, 0.01]": "rates: 0.01 is there twice",
    "ranks = [0]": "ranks 0: give an integer >= 1",
    "ranks = [1.5]": "ranks 1.5: give an integer",
    "rates = [nan]": "rates nan: give a finite number > 0",
    'methods = ["lorra"]': r"methods lorra: did you mean lora\?",
    "rank = [4]": r"rank: did you mean ranks\?",
    "steps = 3": r"steps: write it below \[finetune\]",
    "colour = 3": r"colour: give methods, ranks, targets, rates, seeds or \[finetune\]",
    "finetune = 3": r"finetune is a table: write \[finetune\]",
    'methods = ["bitfit"]\nranks = [4]': "ranks cannot act on bitfit: it is for lora, .*leave it",
    'methods = ["bitfit"]\n[finetune]\nalpha = 4': r"\[finetune\] alpha cannot act on bitfit",
    "[finetune]\nr = 4": r"\[finetune\] r: list it in ranks = \[\.\.\.\], above \[finetune\]",
    "[finetune]\nseed = 4": r"list it in seeds",
    '[finetune]\nout = "a.npz"': r"\[finetune\] out: minilora finetune writes the adapter",
    '[finetune]\nadapter = "a.npz"': r"\[finetune\] adapter: a point trains a new adapter",
    "[finetune]\nthreads = 2": r"\[finetune\] threads: it is no option of a point",
    "[finetune]\nsteps = 0": r"\[finetune\] steps 0: give an integer >= 1",
    "[finetune]\nstep = 2": r"\[finetune\] step: did you mean steps\?",
    "[finetune]\nbase_dtype = 'nf4'": r"\[finetune\] base_dtype: did you mean base-dtype\?",
    "[finetune]\nrecompute = false": r"\[finetune\] recompute = false: leave it out",
    "[finetune": "sweep.toml is no TOML file: ",
    # what finetune itself refuses, with the name of the point
    "seeds = [4]": "lora: finetune needs a text",
    '[finetune]\ntext = "none.txt"': "lora: none.txt is neither a file nor a built-in text",
    'targets = ["q", "zzz"]\n[finetune]\ntext = "kjv"': "lora targets=zzz: .*no layer",
    '[finetune]\ntext = "kjv"\ntask = "classify"': "lora: --task classify takes no text",
    '[finetune]\ntext = "words.txt"\nwindow = 4000': "lora: --window 4000: .*or less",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_has_no_use_is_refused_with_the_remedy(text, capsys):
    Path("sweep.toml").write_text(text)
    assert cli.main(["sweep", "sweep.toml", "--dry-run"]) == 2
    error = capsys.readouterr().err
    with pytest.raises(AssertionError, match=REFUSED[text]):
        raise AssertionError(error)
    assert error.count("\n") == 1 and not Path("sweep").exists()


@pytest.mark.parametrize(("options", "message"), [
    ("--seed 3", "sweep takes no --seed: list the seeds in the file"),
    ("--threads 2", "sweep takes no --threads: each process has one"),
    ("--plain", "sweep takes no --plain"),
    ("--executor dask:tcp://127.0.0.1:1 --jobs 2", "leave out --jobs"),
    ("--executor slurm", "--executor slurm: choose processes, loky"),
    ("--out words.txt", "words.txt is a file: give the name of a folder as --out"),
    ("--out no/where", "no is not a folder: create it first"),
    ("--out taken", "exists, and minilora did not write it so"),
])
def test_options_that_cannot_act_are_refused(options, message, capsys):
    Path("sweep.toml").write_text(SMALL)
    Path("taken").mkdir()
    Path("taken/table.md").write_text("mine")
    assert cli.main(["sweep", "sweep.toml", *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert Path("taken/table.md").read_text() == "mine" and not Path("sweep").exists()


@pytest.fixture
def faked(monkeypatch):
    """In this test a point is made up, in this process; the options of those that ran."""
    ran = []

    def run(args, say):
        ran.append((args.method, args.r, args.lr, args.seed))
        rate = args.lr or 0.01
        if rate > 0.05:
            raise FloatingPointError("the loss is nan")
        loss = 2 + abs(rate - 0.01) + args.seed / 100 - (args.r or 0) / 1000
        return {"before": 3.0, "after": loss, "trainable": 100 * (args.r or 3), "total": 900,
                "steps": 1, "adapter": "none"}

    @contextmanager
    def pool(name, jobs):
        yield Pool(Now, 2)

    monkeypatch.setattr(finetune, "run", run)
    monkeypatch.setattr(executors, "pool", pool)
    monkeypatch.setattr(viz, "available", lambda: False)
    return ran


GRID = 'methods = ["lora", "bitfit"]\nranks = [2, 8]\nrates = [1e-3, 1e-2, 0.1]\nseeds = [0, 1]\n'


def test_what_is_done_is_not_done_again_and_more_points_join_it(faked, capsys):
    text = f"ranks = [2, 8]\nrates = [1e-3, 1e-2]\n{SMALL}"
    Path("sweep.toml").write_text(text)
    assert cli.main(["sweep", "sweep.toml", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(faked) == len(set(faked)) == 4 == len(result["points"])
    pages = [board.DATA, board.TABLE]
    shown = {name: Path("sweep", name).read_bytes() for name in pages}
    assert json.loads(shown[board.DATA]) == {name: result[name] for name in
                                             ("version", "points", "rows")}
    assert cli.main(["sweep", "sweep.toml"]) == 0 and len(faked) == 4
    assert {name: Path("sweep", name).read_bytes() for name in pages} == shown
    Path("sweep.toml").write_text(text.replace("[2, 8]", "[2, 8, 16]"))
    assert cli.main(["sweep", "sweep.toml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("(done)") == 4 and "6 points, 4 of them done" in out and len(faked) == 4
    assert cli.main(["sweep", "sweep.toml"]) == 0 and len(faked) == 6
    Path("words.txt").write_text("another text, so nothing of it is done\n" * 40)
    grid.digest.cache_clear()
    assert cli.main(["sweep", "sweep.toml"]) == 0 and len(faked) == 12


def test_the_table_has_medians_the_best_rates_and_what_failed(faked, capsys):
    Path("sweep.toml").write_text(GRID + SMALL)
    assert cli.main(["sweep", "sweep.toml"]) == 0
    table = Path("sweep/table.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[:11]]
    assert cells[0] == ["method", "r", "rate", "trained", "loss", "from–to", "seeds", ""]
    assert cells[2] == ["lora", "2", "0.001", "200", "2.0120", "2.0070–2.0170", "2", ""]
    assert cells[3] == ["lora", "2", "0.01", "200", "2.0030", "1.9980–2.0080", "2", "best rate"]
    assert cells[4] == ["lora", "2", "0.1", "", "", "", "0", "2 diverged"]
    assert [row[0] for row in cells[2:]] == ["lora"] * 6 + ["bitfit"] * 3
    assert [row[-1] for row in cells].count("best rate") == 3
    assert "before the training it is 3.0000" in table and "a little too good" in table
    assert len({len(line) for line in table.splitlines()[:11]}) == 1
    assert table.rstrip() in capsys.readouterr().out


def test_a_point_that_ends_its_worker_twice_is_recorded_and_the_others_go_on(
    faked, monkeypatch, capsys
):
    @contextmanager
    def pool(name, jobs):
        yield Pool(lambda: Fragile(lambda config: config["options"].get("r") == "8"), 3)

    monkeypatch.setattr(executors, "pool", pool)
    monkeypatch.setattr(driver, "wait", waits)
    Path("sweep.toml").write_text(f"ranks = [2, 8, 4]\nseeds = [0, 1]\n{SMALL}")
    assert cli.main(["sweep", "sweep.toml"]) == 1
    out, error = capsys.readouterr()
    assert "lora r=8 seed=0 ended its process twice, perhaps for lack of memory" in error
    assert "and 1 more did: to try again, remove the lines with crashed from sweep/runs" in error
    assert out.count("2 crashed") == 1 and len(faked) == 4
    assert sum(line["result"] == {"crashed": True} for line in
               Journal("sweep/runs.jsonl").lines.values()) == 2
    assert cli.main(["sweep", "sweep.toml"]) == 1 and len(faked) == 4


def result_of(loss, **more):
    return {"before": 3.0, "after": loss, "trainable": 10, **more}


def test_a_rate_at_which_a_seed_is_lost_is_not_the_best():
    options = [{"method": "lora", "lr": lr, "seed": seed} for lr in "12" for seed in "01"]
    results = [result_of(1.0), {board.CRASHED: True}, result_of(2.0), result_of(2.5)]
    first, second = board.rows(options, results)
    assert (first["best"], second["best"]) == (False, True)
    assert first["losses"] == [1.0] and first[board.CRASHED] == 1
    assert "1 crashed" in board.table([first, second])
    (only,) = board.rows(options[:2], [{board.DIVERGED: "nan"}] * 2)
    assert not only["best"] and "2 diverged" in board.table([only]) and not board.pictures([only])


def test_a_sweep_of_sentences_has_their_accuracy():
    options = [{"method": "lora", "seed": str(seed), "task": "classify"} for seed in range(3)]
    rows = board.rows(options, [result_of(1.0, accuracy=x) for x in (0.5, 0.9, 0.7)])
    table = board.table(rows)
    assert "accuracy" in table and "0.7000" in table and "nats a sentence" in table
    assert "best rate" not in table and "seed" in table


def test_the_figure_has_a_line_for_each_setting_and_is_left_out_without_matplotlib(
    faked, monkeypatch, capsys
):
    Path("sweep.toml").write_text(GRID + SMALL)
    assert cli.main(["sweep", "sweep.toml"]) == 0
    assert "figure left out" in capsys.readouterr().out
    assert {*os.listdir("sweep")} == {board.TABLE, board.DATA, sweep.JOURNAL, owned.LIST}
    rows = json.loads(Path("sweep/sweep.json").read_text())["rows"]
    monkeypatch.undo()
    files = board.pictures(rows)
    assert {*files} == {"sweep.png", "sweep.svg"}
    words = re.findall(r"<!-- (.*?) -->", files["sweep.svg"].decode())
    for label in ("lora r=2", "lora r=8", "bitfit", "learning rate", "trained parameters"):
        assert label in words, words


def test_a_point_trains_as_finetune_does_and_leaves_no_file(capsys):
    Path("sweep.toml").write_text(f'ranks = [2]\nrates = [0.02]\nseeds = [5]\n{SMALL}')
    (job,) = grid.points(Path("sweep.toml"))
    before = {*os.listdir()}
    result = sweep.point(job.kind, job.config)
    assert {*os.listdir()} == before
    line = "finetune words.txt --steps 1 --batch 1 --window 8 --checks 1 --r 2 --lr 0.02 --seed 5"
    assert cli.main([*line.split(), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert result == {name: expected[name] for name in result} and "after" in result
    with pytest.raises(ValueError, match=r"words.txt is another file where a worker looks for it"):
        sweep.point(job.kind, {**job.config, "files": {"text": "0"}})


def test_a_point_that_diverges_is_done(monkeypatch):
    def fails(args, say):
        raise FloatingPointError("step 3: the loss is nan")

    monkeypatch.setattr(finetune, "run", fails)
    assert sweep.point("sweep", {"options": {"method": "lora", "text": "kjv"}, "files": {}}) == {
        "diverged": "step 3: the loss is nan"}


def contents(path) -> dict:
    """The lines of a journal by key, without the seconds, which no two runs share."""
    return {key: {name: x for name, x in line.items() if name != "seconds"}
            for key, line in Journal(path).lines.items()}


def driver_of(process, folder) -> int:
    """The process that drives: the one that was started, or what mpiexec started first."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "environ").read_bytes().split(b"\0")
            if b"PMI_RANK=0" in words and (path / "cwd").resolve() == folder.resolve():
                return int(path.name)
    return process.pid


@pytest.mark.thorough
@pytest.mark.skipif(os.name != "posix", reason="processes are killed in another way there")
@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_that_is_killed_twice_ends_with_the_same_journal(name, tmp_path):
    """By SIGKILL of the driver; the last line of the journal is torn in addition."""
    command = [*started(name), "-m", "minilora", "sweep", "sweep.toml", "--executor", name]
    command += ["--jobs", "2"] * (name != "mpi4py.futures")
    text = f'methods = ["lora", "bitfit"]\nranks = [1, 2]\nseeds = [0, 1, 2, 3]\n{SMALL}'
    Path("sweep.toml").write_text(text)
    expected = {job.key: sweep.point(job.kind, job.config)
                for job in grid.points(Path("sweep.toml"))}
    path, environment = Path("sweep/runs.jsonl"), os.environ | {"PYTHONPATH": str(ROOT)}
    for stop in (2, 6):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)
        until = time.monotonic() + 120
        while not path.exists() or path.read_bytes().count(b"\n") < stop:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        os.kill(driver_of(process, tmp_path), signal.SIGKILL)
        assert process.wait()
        with path.open("ab") as file:
            file.write(b'{"key": "torn')
    subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
    lines = contents(path)
    assert {key: line["result"] for key, line in lines.items()} == expected
    assert path.read_bytes().count(b"\n") == len(expected) == 12
