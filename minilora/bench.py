"""`minilora bench`: one LoRA training step beside other engines, on the same weights and batch.

Every engine lives in a process of its own and waits for its turn, so memory is each one's own and
nothing runs beside the one that is measured. Turns go A B C A B C; before that, losses and
gradients are compared. The engines themselves are in `engines.py`.
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
TOLERANCE = 2e-4  # relative, float32, sums in another order: agreement before any timing


class Worker:
    """One engine on one shape, in a process of its own that waits for its turn."""

    def __init__(self, engine: str, shape: str, threads: int) -> None:
        self.engine = engine
        command = [sys.executable, "-m", "minilora.engines", engine, shape, str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(threads),
        )  # fmt: skip

    def ask(self, *words: Any) -> Any:
        """Send a line, wait for the JSON that comes back."""
        assert self.process.stdin and self.process.stdout
        print(*words, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"bench: {self.engine} died, see above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def environment(threads: int) -> dict[str, str]:
    """The environment of a worker: that many threads for whichever library."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}


def bench(
    shapes: Sequence[str], names: Sequence[str], *, rounds: int = 10, threads: int = 2,
    whole: bool = True, say: Say = print,
) -> dict[str, Any]:  # fmt: skip
    """Measure; returns shape -> engine -> numbers, the ratios to "minilora" among them.

    ms is a step's minimum and median over the rounds; ratio is the median, over the rounds, of
    minilora's step over the other's in the same round; peak is in bytes, whole in seconds for
    start, 50 steps and exit.
    """
    missing = {name: why for name in names if (why := engines.missing(name))}
    for name, why in missing.items():
        say(f"{name} is skipped: {why}")
    names = [name for name in names if name not in missing]
    result: dict[str, Any] = {"threads": threads, "rounds": rounds, "missing": missing}
    for shape in shapes:
        say(f"\n{shape}: {engines.SHAPES[shape]}")
        result[shape] = _one(shape, names, rounds, threads, whole, say)
    return result


def _one(
    shape: str, names: Sequence[str], rounds: int, threads: int, whole: bool, say: Say
) -> dict[str, Any]:
    workers = [Worker(name, shape, threads) for name in names]
    try:
        agreed = _agree(workers)
        say(f"losses and gradients agree: {agreed}")
        for worker in workers:
            worker.ask("step", 2)
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for worker in workers:
                worker.ask("step", 1)  # not counted: the caches are another engine's
                times[worker.engine].append(statistics.median(worker.ask("step", 3)))
        peaks = {worker.engine: worker.ask("peak") for worker in workers}
    finally:
        for worker in workers:
            worker.close()
    tokens = engines.SHAPES[shape].tokens * engines.SHAPES[shape].batch
    table: dict[str, Any] = {}
    for name in names:
        median = statistics.median(times[name])
        table[name] = {
            "ms": [min(times[name]), median],
            "tokens_s": 1000 * tokens / median,
            "peak": peaks[name],
        }
        if "minilora" in times:
            pairs = [a / b for a, b in zip(times["minilora"], times[name])]
            table[name]["ratio"] = statistics.median(pairs)
            table[name]["memory_ratio"] = peaks["minilora"] / peaks[name]
    if whole:
        for name, seconds in _whole(shape, names, threads).items():
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
    say("step, memory: minilora's divided by that engine's")
    return table


def _agree(workers: Sequence[Worker]) -> str:
    """Compare first losses and gradients with minilora's; raises where they part."""
    told: dict[str, tuple[float, dict[str, np.ndarray]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for worker in (w for w in workers if w.engine in engines.SAME):
            path = Path(folder) / f"{len(told)}.npz"
            loss = worker.ask("check", path)
            with np.load(path) as file:
                told[worker.engine] = loss, {name: file[name] for name in file.files}
    worst = 0.0
    if "minilora" in told:
        loss, grads = told["minilora"]
        for name, (other, theirs) in told.items():
            parts = [abs(loss - other) / abs(loss)]
            parts += [
                float(np.linalg.norm(g - theirs[at])) / max(float(np.linalg.norm(g)), 1e-30)
                for at, g in grads.items()
                if at in theirs
            ]
            worst = max(worst, *parts)
            if not max(parts) <= TOLERANCE:
                raise RuntimeError(f"bench: {name} and minilora disagree by {max(parts):.1e}")
    return f"within {worst:.1e} ({', '.join(told)})"


def _whole(shape: str, names: Sequence[str], threads: int, steps: int = 50) -> dict[str, float]:
    """Seconds for start, `steps` steps and exit: the median of three, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(3):
        for name in names:
            began = time.perf_counter()
            command = [sys.executable, "-m", "minilora.engines", name, shape, str(threads)]
            subprocess.run(
                command, input=f"step {steps}\n", text=True, check=True,
                stdout=subprocess.DEVNULL, env=environment(threads),
            )  # fmt: skip
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}
