"""`minilora bench`: one LoRA training step beside other engines, on the same weights and batch.

Every engine lives in a process of its own and waits for its turn, so memory is each one's own and
nothing runs beside the one that is measured. Turns go A B C A B C; before that, losses and
gradients are compared. The engines themselves are in `engines.py`; what each optimisation of
minilora brings by itself is measured in tests/benchmarks, with a page of notes beside it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import backend, ops
from ..tensor import Tensor
from . import engines

Say = Callable[[str], Any]
TOLERANCE = 2e-4  # relative, float32, sums in another order: agreement before any timing
PROGRAM = ("-m", "minilora.bench")  # what serves an engine
BATCHES, TOKENS = (1, 2, 4, 8, 16, 32), (512, 1024, 2048, 4096)  # what `growth` goes through
WIDTH, HEADS = 256, 8  # of its attention


class Worker:
    """One engine on one shape, in a process of its own that waits for its turn."""

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
    shapes: Sequence[str], names: Sequence[str] | None = None, *, rounds: int = 10,
    threads: int = 2, whole: bool = True, grow: bool = False, device: str = "numpy",
    say: Say = print,
) -> dict[str, Any]:
    """Measure; returns shape -> engine -> numbers, minilora's ratios to them among them.

    names: engines, see engines.py; None: all that can run here. Raises RuntimeError for one that is
    named and cannot, and where engines disagree.
    ms is a step's minimum and median over the rounds; ratio is the median, over the rounds, of
    minilora's step over the other's in the same round, of the same work (a training step, a forward
    pass, or decoding); peak is in bytes, whole in seconds for
    start, 50 steps and exit. `grow` adds "growth", see there. On another `device` than "numpy"
    a step ends when the device has done it, and the peak is what its memory pool has taken.
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
        result[shape] = _one(shape, names, rounds, threads, whole, device, say)
    if grow:
        result["growth"] = growth(rounds=rounds, threads=threads, say=say)
    return result


def growth(
    shape: str = "classroom", *, rounds: int = 10, threads: int = 2, say: Say = print
) -> dict[str, Any]:
    """How the time of a step grows with the batch, and attention's memory with the tokens.

    batch -> ms (minimum and median) and µs a token;   tokens -> peak bytes of attention, forward
    and backward, its inputs apart, bytes a token, and the bytes of all heads' whole squares.
    """
    workers = [Worker("minilora", f"{shape}:{batch}", threads) for batch in BATCHES]
    try:
        times = _turns(workers, rounds)
    finally:
        for worker in workers:
            worker.close()
    say(f"\na LoRA step, {shape}\n{'batch':>8}{'ms, min':>9}{'median':>9}{'µs a token':>12}")
    step, attention = {}, {}
    for batch, each in zip(BATCHES, times):
        median = statistics.median(each)
        a_token = 1000 * median / (batch * engines.sizes(shape).tokens)
        step[batch] = {"ms": [min(each), median], "us_a_token": a_token}
        say(f"{batch:>8}{min(each):>9.1f}{median:>9.1f}{a_token:>12.1f}")
    say(f"\nattention, {WIDTH} wide, {HEADS} heads, forward and backward")
    say(f"{'tokens':>8}{'peak MiB':>10}{'bytes a token':>15}{'whole squares, MiB':>20}")
    for tokens in TOKENS:
        peak, squares = attention_peak(tokens), 4 * HEADS * tokens**2
        attention[tokens] = {"peak": peak, "bytes_a_token": peak / tokens, "squares": squares}
        say(f"{tokens:>8}{peak / 2**20:>10.1f}{peak / tokens:>15,.0f}{squares / 2**20:>20.0f}")
    return {"batch": step, "attention": attention}


def attention_peak(tokens: int) -> int:
    """The most bytes of arrays alive at once in attention, forward and backward, in one thread."""
    before = backend.use("numpy")
    tracemalloc.start()
    try:
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((3, 1, tokens, WIDTH), np.float32)
        q, k, v = (Tensor(x, requires_grad=True) for x in inputs)
        resting = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        ops.attention(q, k, v, heads=HEADS).sum().backward()
        return tracemalloc.get_traced_memory()[1] - resting
    finally:
        tracemalloc.stop()
        backend.use(before)


def _one(
    shape: str, names: Sequence[str], rounds: int, threads: int, whole: bool, device: str, say: Say
) -> dict[str, Any]:
    workers = [Worker(name, shape, threads, device=device) for name in names]
    try:
        agreed = _agree(workers)
        say(agreed)
        times = dict(zip(names, _turns(workers, rounds)))
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
        for name, seconds in _whole(shape, names, threads, device).items():
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
    say("step, memory: minilora's divided by that engine's, at the same work")
    return table


def _turns(workers: Sequence[Worker], rounds: int) -> list[list[float]]:
    """Milliseconds of a step, per worker and round, the workers one after the other."""
    times: list[list[float]] = [[] for _ in workers]
    for worker in workers:
        worker.ask("step", 2)
    for _ in range(rounds):
        for worker, each in zip(workers, times):
            worker.ask("step", 1)  # not counted: the caches are another engine's
            each.append(statistics.median(worker.ask("step", 3)))
    return times


def _agree(workers: Sequence[Worker]) -> str:
    """Compare first losses and gradients with minilora's, and say so; raises where they part."""
    told: dict[str, tuple[float, dict[str, np.ndarray]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for worker in (w for w in workers if w.engine in engines.SAME):
            path = Path(folder) / f"{len(told)}.npz"
            loss = worker.ask("check", path)
            with np.load(path) as file:
                told[worker.engine] = loss, {name: file[name] for name in file.files}
    if "minilora" not in told or len(told) < 2:
        return "no losses and gradients to compare: name minilora and another that trains LoRA"
    worst, (loss, grads) = 0.0, told["minilora"]
    for name, (other, theirs) in told.items():
        gap = apart(loss, grads, other, theirs)
        worst = max(worst, gap)
        if not gap <= TOLERANCE:
            raise RuntimeError(f"bench: {name} and minilora disagree by {gap:.1e}")
    return f"losses and gradients agree: within {worst:.1e} ({', '.join(told)})"


def apart(loss: float, grads: engines.Grads, other: float, theirs: engines.Grads) -> float:
    """The largest relative difference of two losses, and of the gradients that both have."""
    gaps = [abs(loss - other) / abs(loss)]
    gaps += [
        float(np.linalg.norm(g - theirs[at])) / max(float(np.linalg.norm(g)), 1e-30)
        for at, g in grads.items()
        if at in theirs
    ]
    return float(np.max(gaps))  # nan, if there is one


def _whole(
    shape: str, names: Sequence[str], threads: int, device: str, steps: int = 50
) -> dict[str, float]:
    """Seconds for start, `steps` steps and exit: the median of three, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(3):
        for name in names:
            began = time.perf_counter()
            command = [sys.executable, *PROGRAM, name, shape, str(threads), device]
            subprocess.run(
                command, input=f"step {steps}\n", text=True, check=True,
                stdout=subprocess.DEVNULL, env=environment(threads),
            )
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}
