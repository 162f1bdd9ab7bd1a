"""Jobs: the same results wherever they are done, nothing twice, nothing lost, no other blamed."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from fake_runs import faked, one
from hypothesis import given
from hypothesis import strategies as st

import minilora
from minilora.backend.threads import threads
from minilora.experiments import kinds, training
from minilora.experiments.cells import Scale, cell
from minilora.experiments.kinds import work
from minilora.files.journal import Journal
from minilora.jobs import driver
from minilora.jobs.driver import Job, do, timed
from minilora.jobs.executors import NAMES, Pool, pool

pytestmark = pytest.mark.usefixtures("numpy_only")
ROOT = Path(minilora.__file__).parents[1]
LIBRARIES = {"loky": "loky", "mpi4py.futures": "mpi4py", "dask": "distributed"}


class Now:
    """An executor that does the work at once, in the order of submission."""

    def submit(self, function, *args):
        future = Future()
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)
        return future

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Fragile(Now):
    """An executor that does what it has when the driver waits for it; its deaths are made up.

    A job whose config is `deadly` breaks it, with all that it has, as it breaks processes.
    """

    made = 0

    def __init__(self, deadly):
        Fragile.made += 1
        self.deadly, self.waiting, self.broken = deadly, deque(), False

    def submit(self, function, *args):
        if self.broken:
            raise BrokenProcessPool("before")
        if function is threads:
            return super().submit(function, *args)
        future = Future()
        future.owner = self
        self.waiting.append((future, function, args))
        return future

    def turn(self):
        for future, _, args in self.waiting:
            if self.deadly(args[2]):
                self.broken = future
        while self.waiting:
            future, function, args = self.waiting.popleft()
            if self.broken:
                future.set_exception(BrokenProcessPool("gone"))
            else:
                return future.set_result(function(*args))
        return None


def waits(futures, **how):
    """As concurrent.futures.wait, for a Fragile one."""
    if not any(future.done() for future in futures):
        next(iter(futures)).owner.turn()
    return wait(futures, **how)


def numbers(kind, config):
    return config["x"] * 2


def of(x):
    return Job("double", {"x": x}, name=f"x = {x}")


def test_every_kind_has_a_function_and_its_docstring():
    for kind in kinds.KINDS:
        try:
            assert kinds.function_of(kind).__doc__, kind
        except ModuleNotFoundError as error:
            assert "minilora.experiments" in str(error)


def test_a_key_depends_on_kind_settings_and_version(monkeypatch):
    job = one()
    keys = {job.key, Job("chance", job.config).key, one(seed=1).key, one(rate=2e-2).key,
            one(settings={"r": 5}).key}
    monkeypatch.setattr(driver, "__version__", "another")
    assert len(keys | {job.key}) == 6
    a = cell("mini-e2e", "lora", r=4)
    runs = [a.run(1e-2, 0, Scale()), a.run(1e-2, 0, Scale(fast=True)), a.run(1e-2, 1, Scale()),
            a.varied("B frozen").run(1e-2, 0, Scale()), a.on("mini-sql").run(1e-2, 0, Scale())]
    assert len({run.key for run in runs}) == 5
    assert a.run(1e-2, 0, Scale(seeds=9)).key == runs[0].key  # more seeds keep what is done


def test_work_computes_on_one_thread_and_restores_their_number(monkeypatch):
    before, here = threads(3), minilora.__version__
    seen = []
    monkeypatch.setattr(training, "train", lambda **config: seen.append(threads()) or config)
    try:
        assert timed(work, "train", {"x": 1}, here) == ({"x": 1}, pytest.approx(0, abs=5))
        assert seen == [1] and threads() == 3
        monkeypatch.setattr(training, "train", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            timed(work, "train", {}, here)
        assert threads() == 3
    finally:
        threads(before)
    with pytest.raises(RuntimeError, match=f"a worker has minilora {here}, and the driver 9.*same"):
        timed(work, "train", {}, "9")


POOLS = {
    "here": lambda: None, "now": lambda: Pool(Now, 1), "three": lambda: Pool(Now, 3),
    "threads": lambda: Pool(lambda: ThreadPoolExecutor(3), 3),
}


@pytest.mark.parametrize("kind", POOLS)
def test_results_are_in_order_and_nothing_is_done_twice(kind, tmp_path):
    wanted = [one(10**-i) for i in (2, 3, 4, 2)]
    names = []
    with faked() as calls:
        expected = [training.train(**job.config) for job in wanted]
        calls.clear()
        with Journal(tmp_path / "runs.jsonl") as journal:
            where = POOLS[kind]()
            assert do(wanted, journal, work, where, names.append) == expected
            assert len(calls) == 3 == len(names)
            assert do(wanted[::-1], journal, work, where) == expected[::-1]
            assert len(calls) == 3
        assert do(wanted, Journal(tmp_path / "runs.jsonl"), work, where) == expected
        assert len(calls) == 3


@given(n=st.integers(1, 12), at_once=st.integers(1, 5), deadly=st.sets(st.integers(0, 11)))
def test_who_ends_a_worker_twice_is_lost_and_no_other(n, at_once, deadly):
    """Whatever runs beside it: each result is right, and an executor is made for each death."""
    journal, Fragile.made = Journal(None), 0
    where = Pool(lambda: Fragile(lambda config: config["x"] in deadly), at_once)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "wait", waits)
        results = do(map(of, range(n)), journal, numbers, where, lost="{0.name} is lost".format)
    killers = {x for x in deadly if x < n}
    assert results == [f"x = {x} is lost" if x in killers else 2 * x for x in range(n)]
    assert len(journal) == n and len(killers) + 1 <= Fragile.made <= 2 * len(killers) + 1


def test_without_a_result_for_lost_jobs_they_are_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr(driver, "wait", waits)
    journal = Journal(None)
    with pytest.raises(RuntimeError, match=r"x = 1 ended its process twice.*the same command goes"):
        do(map(of, range(3)), journal, numbers, Pool(lambda: Fragile(lambda c: c["x"] == 1), 1))
    assert [line["result"] for line in journal.lines.values()] == [0]


def test_a_pool_in_which_no_worker_starts_blames_no_job():
    class Dead(Now):
        def submit(self, *_):
            future = Future()
            future.set_exception(BrokenProcessPool("no memory"))
            return future

    journal = Journal(None)
    with pytest.raises(RuntimeError, match=r"no worker can start.*no memory"):
        do([of(1)], journal, numbers, Pool(Dead, 2), lost=lambda job: "lost")
    assert not len(journal)


class Killer(Now):
    """As Dask: a death is an exception of one job, and the others go on."""

    class Killed(Exception):
        pass

    def submit(self, function, *args):
        if function is timed and args[2]["x"] == 1:
            future = Future()
            future.set_exception(self.Killed())
            return future
        return super().submit(function, *args)


def test_deaths_are_what_the_pool_calls_so():
    journal = Journal(None)
    where = Pool(Killer, 3, (Killer.Killed,))
    assert do(map(of, range(4)), journal, numbers, where, lost=lambda job: "lost") == [
        0, "lost", 4, 6]
    with pytest.raises(Killer.Killed):
        do(map(of, range(4)), Journal(None), numbers, Pool(Killer, 3), lost=lambda job: "lost")


def test_processes_give_the_same_results_and_leave_the_environment_alone(tmp_path):
    wanted = [Job("chance", {"task": task, "test": 3}) for task in ("mini-sql", "mini-mnli")]
    before = dict(os.environ)
    here = do(wanted, Journal(None), work)
    with pool("processes", 2) as where:
        assert do(wanted, Journal(None), work, where) == here
    assert dict(os.environ) == before


def started(name):
    """The beginning of a command line whose process has two workers of an executor."""
    if name in LIBRARIES and not importlib.util.find_spec(LIBRARIES[name]):
        pytest.skip(f"{name} needs {LIBRARIES[name]}, which is not installed")
    if name != "mpi4py.futures":
        return [sys.executable]
    if not shutil.which("mpiexec"):
        pytest.skip("mpi4py.futures needs mpiexec, which is not installed: pip install mpich")
    return ["mpiexec", "-n", "3", sys.executable, "-m", "mpi4py.futures"]


def jobs_of(name):
    return None if name == "mpi4py.futures" else 2


def alive(name, deadly):
    """A script that does jobs with an executor; x = 2 ends its worker if `deadly`."""
    return (
        "import os, signal, sys\n"
        "from minilora.files.journal import Journal\n"
        "from minilora.jobs.driver import Job, do\n"
        "from minilora.jobs.executors import pool\n"
        "from jobs_of_test import work\n"
        "if __name__ == '__main__':\n"
        f"    with pool({name!r}, {jobs_of(name)}) as where, Journal(sys.argv[1]) as journal:\n"
        f"        jobs = [Job({'deadly' if deadly else 'kind'!r}, {{'x': x}}) for x in range(5)]\n"
        "        print(do(jobs, journal, work, where, lost=lambda job: 'lost'))\n"
    )


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_every_executor_does_the_same(name, tmp_path):
    """Only MPI does not survive the death of a worker: it ends the driver, too."""
    (tmp_path / "jobs_of_test.py").write_text(
        "import os\n"
        "def work(kind, config):\n"
        "    if kind == 'deadly' and config['x'] == 2: os._exit(3)\n"
        "    return [config['x'] ** 2, os.environ['OPENBLAS_NUM_THREADS']]\n"
    )
    deadly = name != "mpi4py.futures"
    (tmp_path / "script.py").write_text(alive(name, deadly))
    done = subprocess.run(
        [*started(name), tmp_path / "script.py", tmp_path / "runs.jsonl"], capture_output=True,
        text=True, timeout=120, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"})
    wanted = [[x**2, "1"] for x in range(5)]
    if deadly:
        wanted[2] = "lost"
    assert done.stdout == f"{wanted}\n", done.stderr
    assert len(Journal(tmp_path / "runs.jsonl")) == 5


@pytest.mark.thorough
@pytest.mark.skipif(os.name != "posix", reason="processes are killed in another way there")
@pytest.mark.parametrize("name", ["processes", "loky", "dask"])
def test_no_process_outlives_the_one_that_started_it(name, tmp_path):
    command = started(name)
    script = tmp_path / "start.py"
    script.write_text(
        "import os, signal\n"
        "from minilora.jobs.executors import pool\n"
        "if __name__ == '__main__':\n"
        f"    with pool({name!r}, 2) as where, where.make() as executor:\n"
        "        print(executor.submit(os.getpid).result(), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([*command, script], stdout=subprocess.PIPE, text=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL and int(done.stdout)
    # `run` returned before its timeout: the output ended, so every process that had it has ended


@pytest.mark.parametrize(("name", "jobs", "message"), [
    ("slurm", 1, r"slurm: choose processes, loky, mpi4py\.futures, dask, or dask:ADDR"),
    ("loky:8786", None, "loky:8786: choose"),
    ("dask:tcp://127.0.0.1:1", 2, "has its own number of workers: leave out --jobs"),
])
def test_a_pool_that_cannot_be_is_refused(name, jobs, message):
    with pytest.raises(ValueError, match=message), pool(name, jobs):
        pass


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_named_with_the_command_that_installs_it(name, monkeypatch):
    for module in ("loky", "mpi4py", "mpi4py.MPI", "mpi4py.futures", "distributed"):
        monkeypatch.setitem(sys.modules, module, None)
    extra = {"mpi4py.futures": "mpi"}.get(name, name)
    message = rf"need {LIBRARIES[name]}: pip install '\.\[{extra}\]'"
    with pytest.raises(ImportError, match=message), pool(name):
        pass


def test_a_job_that_measures_time_runs_alone_in_this_process(monkeypatch):
    alone, journal = Job("train", {"x": 2}, alone=True), Journal(None)
    submitted = []

    class Counting(Now):
        def submit(self, function, *args):
            submitted.extend(args[1:2])
            return super().submit(function, *args)

    monkeypatch.setattr(training, "train", lambda **config: config)
    do([alone, Job("train", {"x": 1})], journal, work, Pool(Counting, 2))
    assert submitted == ["train"] and [*journal.lines] == [
        Job("train", {"x": 1}).key, alone.key]


@pytest.mark.parametrize("at_once", [None, 1, 3])
def test_what_was_finished_before_a_failure_is_kept(at_once, monkeypatch):
    def fails(rate, **config):
        if rate == 3:
            raise ValueError("the third")
        return rate

    monkeypatch.setattr(training, "train", fails)
    journal = Journal(None)
    with pytest.raises(ValueError, match="the third"):
        do([one(rate) for rate in (1, 2, 3)], journal, work, at_once and Pool(Now, at_once))
    assert len(journal) == 2


def test_an_interrupt_cancels_what_waits_and_keeps_what_is_done():
    futures = []

    class Waits(Now):
        def submit(self, function, *args):
            future = super().submit(function, *args)
            if function is timed:
                future = Future() if futures else future
                futures.append(future)
            return future

    def stop(name):
        raise KeyboardInterrupt

    journal = Journal(None)
    with faked(), pytest.raises(KeyboardInterrupt):
        do([one(), one(1e-3), one(1e-4)], journal, work, Pool(Waits, 3), stop)
    assert len(journal) == 1 and all(future.cancelled() for future in futures[1:])
    assert len(futures) == 3
