"""Measure one LoRA training step of several engines, on the same weights and batch.

Each engine runs in its own process and waits for its turn, so memory is its own and nothing else
runs while it is measured. Losses and gradients are compared first; then the turns go A B C A B C.
tests/benchmarks measures what each optimisation of minilora gains.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import engines

Say = Callable[[str], Any]
TOLERANCE = 2e-4  # relative difference of engines in float32, which sum in different orders
PROGRAM = ("-m", "minilora.bench")  # the command that serves an engine


class Worker:
    """One engine on one shape, in its own process, which waits for its turn."""

    def __init__(
        self, engine: str, shape: str, threads: int, program: Sequence[str] = PROGRAM,
        device: str = "numpy",
    ) -> None:
        self.engine = engine
        command = [sys.executable, *program, engine, shape, str(threads), device]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(threads),
        )

    def ask(self, *words: Any) -> Any:
        """Send one line and return the JSON of the answer."""
        assert self.process.stdin and self.process.stdout
        print(*words, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"bench: the process of {self.engine} ended, see the output above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker: this number of threads for every BLAS."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}


def bench(
    shapes: Sequence[str], names: Sequence[str] | None = None, *, rounds: int = 10,
    threads: int = 2, whole: bool = True, device: str = "numpy", say: Say = print,
    begins: Say = str,
) -> dict[str, Any]:
    """Measure the engines on each shape; return shape -> engine -> numbers.

    names: engines of engines.py (None: all that can run here).
    "ms": minimum and median of a step over the rounds. "ratio": median over the rounds of
    minilora's time divided by the engine's, at the same work (a training step, a forward pass, or
    decoding). "peak": bytes. "whole": seconds for start, 50 steps and exit. On a device other than
    "numpy" a step ends when the device has finished, and the peak is that of its memory pool.
    begins is called with the name of each round and each process as it begins.
    Raises RuntimeError for a named engine that cannot run, and if engines disagree.
    """
    missing = {name: why for name in names or engines.ENGINES if (why := engines.missing(name))}
    for name, why in missing.items():
        if names:
            raise RuntimeError(f"bench: {name} cannot run: {why}")
        say(f"{name} is skipped: {why}")
    names = [name for name in names or engines.ENGINES if name not in missing]
    result: dict[str, Any] = {"threads": threads, "rounds": rounds, "missing": missing}
    for shape in shapes:
        say(f"\n{shape}: {engines.sizes(shape)}")
        result[shape] = measure_shape(shape, names, rounds, threads, whole, device, say, begins)
    return result


def measure_shape(
    shape: str, names: Sequence[str], rounds: int, threads: int, whole: bool, device: str, say: Say,
    begins: Say = str,
) -> dict[str, Any]:
    """Measure all engines on one shape, print the table and return it."""
    workers = [Worker(name, shape, threads, device=device) for name in names]
    try:
        say(agreement(workers))
        times = dict(zip(names, time_in_turns(workers, rounds, begins)))
        peaks = {worker.engine: worker.ask("peak") for worker in workers}
    finally:
        for worker in workers:
            worker.close()
    table: dict[str, Any] = {}
    for name in names:
        median = statistics.median(times[name])
        table[name] = {
            "ms": [min(times[name]), median],
            "tokens_s": 1000 * engines.tokens(name, shape) / median,
            "peak": peaks[name],
        }
        own = engines.AGAINST.get(name, "minilora")
        if own in times:
            pairs = [a / b for a, b in zip(times[own], times[name])]
            table[name]["ratio"] = statistics.median(pairs)
            table[name]["memory_ratio"] = peaks[own] / peaks[name]
    if whole:
        for name, seconds in full_runs(shape, names, threads, device, begins=begins).items():
            table[name]["whole"] = seconds
    say(
        f"{'':<16}{'ms, min':>9}{'median':>9}{'tokens/s':>10}{'peak MiB':>10}"
        f"{'step':>8}{'memory':>8}{'whole s' if whole else '':>9}"
    )
    for name, row in table.items():
        ratios = [f"{row[r]:.2f}" if r in row else "" for r in ("ratio", "memory_ratio")]
        say(
            f"{name:<16}{row['ms'][0]:>9.1f}{row['ms'][1]:>9.1f}{row['tokens_s']:>10,.0f}"
            f"{row['peak'] / 2**20:>10.0f}{ratios[0]:>8}{ratios[1]:>8}"
            + (f"{row['whole']:>9.1f}" if whole else "")
        )
    say("step, memory: minilora's divided by the engine's, at the same work")
    return table


def time_in_turns(
    workers: Sequence[Worker], rounds: int, begins: Say = str
) -> list[list[float]]:
    """Return the milliseconds of a step per worker and round, the workers in turns."""
    times: list[list[float]] = [[] for _ in workers]
    for worker in workers:
        worker.ask("step", 2)
    for i in range(1, rounds + 1):
        begins(f"round {i} of {rounds}")
        for worker, each in zip(workers, times):
            worker.ask("step", 1)  # not counted: warms the caches
            each.append(statistics.median(worker.ask("step", 3)))
    return times


def agreement(workers: Sequence[Worker]) -> str:
    """Compare the first losses and gradients with minilora's; return the result as a sentence.

    Raises RuntimeError if they differ by more than TOLERANCE.
    """
    results: dict[str, tuple[float, dict[str, np.ndarray]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for worker in (w for w in workers if w.engine in engines.SAME):
            path = Path(folder) / f"{len(results)}.npz"
            loss = worker.ask("check", path)
            with np.load(path) as file:
                results[worker.engine] = loss, {name: file[name] for name in file.files}
    if "minilora" not in results or len(results) < 2:
        return "losses and gradients are not compared: name minilora and another LoRA engine"
    worst, (loss, grads) = 0.0, results["minilora"]
    for name, (other, theirs) in results.items():
        gap = difference(loss, grads, other, theirs)
        worst = max(worst, gap)
        if not gap <= TOLERANCE:
            raise RuntimeError(f"bench: {name} and minilora differ by {gap:.1e}")
    return f"losses and gradients agree within {worst:.1e} ({', '.join(results)})"


def difference(loss: float, grads: engines.Grads, other: float, theirs: engines.Grads) -> float:
    """Return the largest relative difference of the losses and of the shared gradients."""
    gaps = [abs(loss - other) / abs(loss)]
    gaps += [
        float(np.linalg.norm(g - theirs[at])) / max(float(np.linalg.norm(g)), 1e-30)
        for at, g in grads.items()
        if at in theirs
    ]
    return float(np.max(gaps))  # nan if one of them is nan


def distance(exact: engines.Grads, other: engines.Grads) -> float:
    """Return ‖other - exact‖ / ‖exact‖ over all gradients together; nan if one of them is nan."""
    gap = sum(float(((other[name] - g) ** 2).sum()) for name, g in exact.items())
    return float((gap / sum(float((g**2).sum()) for g in exact.values())) ** 0.5)


def full_runs(
    shape: str, names: Sequence[str], threads: int, device: str, steps: int = 50,
    begins: Say = str,
) -> dict[str, float]:
    """Return the seconds for start, `steps` steps and exit: the median of three, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(3):
        begins("entire processes")
        for name in names:
            began = time.perf_counter()
            command = [sys.executable, *PROGRAM, name, shape, str(threads), device]
            subprocess.run(
                command, input=f"step {steps}\n", text=True, check=True,
                stdout=subprocess.DEVNULL, env=environment(threads),
            )
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}
