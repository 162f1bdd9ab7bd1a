"""The one driver of all jobs: what a journal lacks is done, here or by any executor of PEP 3148.

A job's result depends on its kind and its config alone, so it is the same wherever it is done. The
driver is the only process that writes: a line for each finished job. Killed and started again, it
goes on from its journal. Each worker computes on one thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from .. import __version__
from ..backend.threads import threads
from ..files.journal import Journal, key_of
from .executors import Pool

Work = Callable[[str, Mapping[str, Any]], Any]  # (kind, config) -> the result, as JSON holds it
Begins = Callable[[str], Any]
Answer = tuple[Any, float]  # a result, and the seconds of processor time that it took


@dataclass(frozen=True)
class Job:
    """kind, config: what `work` is called with, as JSON can hold it; name: for the progress.

    alone: it measures time, so nothing else runs meanwhile. All that it measures is in its
    result["times"]; the rest of every result is the same each time.
    """

    kind: str
    config: Mapping[str, Any]
    name: str = field(default="", compare=False)
    alone: bool = field(default=False, compare=False)

    @property
    def key(self) -> str:
        return key_of({"kind": self.kind, "config": self.config, "version": __version__})

    def line(self, result: Any, seconds: float) -> dict[str, Any]:
        """Return what the journal keeps of the finished job."""
        return {"kind": self.kind, "config": self.config, "version": __version__,
                "seconds": round(seconds, 3), "result": result}


def do(
    jobs: Iterable[Job], journal: Journal, work: Work, pool: Pool | None = None,
    begins: Begins = lambda name: None, lost: Callable[[Job], Any] | None = None,
) -> list[Any]:
    """Return the results of the jobs, in order. Those that the journal lacks are done now.

    work: a function at the top of a module, so that another process finds it by its name
    pool: where it is done; None: in this process
    lost: gives the result of a job that ended its worker twice, the second time with no other job
    at work; None: RuntimeError, which names the job.

    After an error or an interrupt what runs is waited for. What is finished is in the journal.
    """
    jobs = list(jobs)
    waiting = {job.key: job for job in jobs if job.key not in journal}
    if pool is not None:
        together = deque(job for job in waiting.values() if not job.alone)
        _Spread(journal, work, pool, begins, lost).run(together)
    for key, job in waiting.items():
        if key not in journal:
            begins(job.name)
            journal.add(key, job.line(*timed(work, job.kind, job.config, __version__)))
    return [journal[job.key]["result"] for job in jobs]


def timed(work: Work, kind: str, config: Mapping[str, Any], version: str) -> Answer:
    """Do a job on one thread; return its result and the seconds of processor time that it took.

    Raises RuntimeError if this process has not the driver's version of minilora.
    """
    if version != __version__:
        raise RuntimeError(
            f"a worker has minilora {__version__}, and the driver {version}: install the same one")
    before = threads(1)
    began = time.process_time()
    try:
        return work(kind, config), time.process_time() - began
    finally:
        threads(before)


@dataclass(frozen=True)
class _Spread:
    """Does jobs in executors that the pool makes: another one each time that a worker dies.

    A dead worker breaks many an executor, with all that runs there. So each job that ran then is
    done again alone: the one that ends its worker again is lost, and no other.
    """

    journal: Journal
    work: Work
    pool: Pool
    begins: Begins
    lost: Callable[[Job], Any] | None

    def run(self, waiting: deque[Job]) -> None:
        """Do the jobs, and write each to the journal as it ends."""
        suspects = deque[Job]()
        while waiting or suspects:
            with self.pool.make() as executor:
                try:
                    executor.submit(threads).result()
                except self.pool.deaths as error:
                    raise RuntimeError(
                        f"no worker can start, perhaps for lack of memory: {error}") from error
                while suspects:
                    job = suspects.popleft()
                    if self._round(deque([job]), executor, 1):
                        self._keep(job, (self._without(job), 0.0))
                        self.begins(job.name)
                        break
                else:
                    suspects += self._round(waiting, executor, self.pool.at_once)

    def _round(self, waiting: deque[Job], executor: Any, at_once: int) -> list[Job]:
        """Do the jobs, `at_once` of them at a time, until none waits or a worker dies.

        Return the jobs that ran when it died and have no result. Those that never ran still wait.
        """
        running, suspects = dict[Future[Answer], Job](), list[Job]()
        try:
            while running or (waiting and not suspects):
                while waiting and not suspects and len(running) < at_once:
                    job = waiting[0]
                    future = executor.submit(timed, self.work, job.kind, job.config, __version__)
                    running[future] = waiting.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    try:
                        answer = future.result()
                    except self.pool.deaths:
                        suspects.append(job)
                    else:
                        self._keep(job, answer)
                        self.begins(job.name)
        except self.pool.deaths:  # by `submit`: what runs there is lost, too
            suspects += running.values()
            running.clear()
        except BaseException:
            self.pool.stop()
            raise
        finally:  # after an error or an interrupt: what runs is waited for and kept
            for future, job in running.items():
                if not future.cancel() and future.exception() is None:
                    self._keep(job, future.result())
        return suspects

    def _keep(self, job: Job, answer: Answer) -> None:
        self.journal.add(job.key, job.line(*answer))

    def _without(self, job: Job) -> Any:
        """Return the result of a lost job."""
        if self.lost is None:
            raise RuntimeError(
                f"{job.name or job.kind} ended its process twice, perhaps for lack of memory: the "
                "same command goes on from there")
        return self.lost(job)
