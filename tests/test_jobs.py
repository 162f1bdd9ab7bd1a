"""Jobs: the same results wherever they are done, nothing twice, nothing lost."""

import os
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from fake_runs import faked, one

from minilora.backend.threads import threads
from minilora.experiments import jobs, training
from minilora.experiments.cells import Scale, cell
from minilora.experiments.jobs import Job, do, processes, work
from minilora.files.journal import Journal

pytestmark = pytest.mark.usefixtures("numpy_only")


class Now:
    """An executor that does the work at once, in the order of submission."""

    def submit(self, function, *args):
        future = Future()
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)
        return future


def test_every_kind_has_a_function_and_its_docstring():
    for kind in jobs.KINDS:
        try:
            assert jobs.function_of(kind).__doc__, kind
        except ModuleNotFoundError as error:
            assert "minilora.experiments" in str(error)


def test_a_key_depends_on_kind_settings_and_version(monkeypatch):
    job = one()
    keys = {job.key, Job("chance", job.config).key, one(seed=1).key, one(rate=2e-2).key,
            one(settings={"r": 5}).key}
    monkeypatch.setattr(jobs, "__version__", "another")
    assert len(keys | {job.key}) == 6
    a = cell("mini-e2e", "lora", r=4)
    runs = [a.run(1e-2, 0, Scale()), a.run(1e-2, 0, Scale(fast=True)), a.run(1e-2, 1, Scale()),
            a.varied("B frozen").run(1e-2, 0, Scale()), a.on("mini-sql").run(1e-2, 0, Scale())]
    assert len({run.key for run in runs}) == 5
    assert a.run(1e-2, 0, Scale(seeds=9)).key == runs[0].key  # more seeds keep what is done


def test_work_computes_on_one_thread_and_restores_their_number(monkeypatch):
    before = threads(3)
    seen = []
    monkeypatch.setattr(training, "train", lambda **config: seen.append(threads()) or config)
    try:
        assert work("train", {"x": 1}) == ({"x": 1}, pytest.approx(0, abs=5))
        assert seen == [1] and threads() == 3
        monkeypatch.setattr(training, "train", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            work("train", {})
        assert threads() == 3
    finally:
        threads(before)


@pytest.mark.parametrize("pool", [lambda: None, Now, lambda: ThreadPoolExecutor(3)])
def test_results_are_in_order_and_nothing_is_done_twice(pool, tmp_path):
    wanted = [one(10**-i) for i in (2, 3, 4, 2)]
    names = []
    with faked() as calls:
        expected = [training.train(**job.config) for job in wanted]
        calls.clear()
        with Journal(tmp_path / "runs.jsonl") as journal:
            executor = pool()
            assert do(wanted, journal, executor, names.append) == expected
            assert len(calls) == 3 == len(names)
            assert do(wanted[::-1], journal, executor) == expected[::-1]
            assert len(calls) == 3
        assert do(wanted, Journal(tmp_path / "runs.jsonl"), executor) == expected
        assert len(calls) == 3


def test_processes_give_the_same_results_and_leave_the_environment_alone(tmp_path):
    wanted = [Job("chance", {"task": task, "test": 3}) for task in ("mini-sql", "mini-mnli")]
    before = dict(os.environ)
    with processes(1) as nothing:
        assert nothing is None
        here = do(wanted, Journal(None), nothing)
    with processes(2) as executor:
        assert do(wanted, Journal(None), executor) == here
    assert dict(os.environ) == before


@pytest.mark.thorough
@pytest.mark.skipif(os.name != "posix", reason="processes are killed in another way there")
def test_no_process_outlives_the_one_that_started_it(tmp_path):
    script = tmp_path / "start.py"
    script.write_text(
        "import os, signal\n"
        "from minilora.experiments.jobs import processes\n"
        "if __name__ == '__main__':\n"
        "    with processes(2) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(jobs.__file__).parents[2]
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == -signal.SIGKILL and int(done.stdout)
    # `run` returned before its timeout: the output ended, so every process that had it has ended


def test_a_job_that_measures_time_runs_alone_in_this_process(monkeypatch):
    alone, journal = Job("train", {"x": 2}, alone=True), Journal(None)
    submitted = []

    class Counting(Now):
        def submit(self, function, *args):
            submitted.append(args)
            return super().submit(function, *args)

    monkeypatch.setattr(training, "train", lambda **config: config)
    do([alone, Job("train", {"x": 1})], journal, Counting())
    assert submitted == [("train", {"x": 1})] and [*journal.lines] == [
        Job("train", {"x": 1}).key, alone.key]


def test_what_was_finished_before_a_failure_is_kept(monkeypatch):
    def fails(rate, **config):
        if rate == 3:
            raise ValueError("the third")
        return rate

    monkeypatch.setattr(training, "train", fails)
    for executor in (None, Now()):
        journal = Journal(None)
        with pytest.raises(ValueError, match="the third"):
            do([one(rate) for rate in (1, 2, 3)], journal, executor)
        assert len(journal) == 2


def test_a_process_that_dies_is_an_error_with_a_remedy():
    class Dies(Now):
        def submit(self, function, kind, config):
            future = Future()
            future.set_exception(BrokenProcessPool("gone"))
            return future

    with pytest.raises(RuntimeError, match=r"died.*near rate 0.01: the same command goes on"):
        do([one()], Journal(None), Dies())


def test_an_interrupt_cancels_what_waits_and_keeps_what_is_done():
    class Waits(Now):
        futures: list = []  # noqa: RUF012

        def submit(self, function, *args):
            future = Future() if self.futures else super().submit(function, *args)
            self.futures.append(future)
            return future

    def stop(name):
        raise KeyboardInterrupt

    journal = Journal(None)
    with faked(), pytest.raises(KeyboardInterrupt):
        do([one(), one(1e-3), one(1e-4)], journal, Waits(), stop)
    assert len(journal) == 1 and all(future.cancelled() for future in Waits.futures[1:])
